"""The hash is what its name says, and its three forms agree."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features.hashing import HASH_NAME, hash_bytes, hash_integers, hash_packed_bytes, hash_value
from fastmtr.features.values import text_bytes

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _unfinish(h: int) -> int:
    """Invert the finaliser of MurmurHash3."""
    for factor in (0xC4CEB9FE1A85EC53, 0xFF51AFD7ED558CCD):
        h ^= h >> 33
        h = (h * pow(factor, -1, 2**64)) % 2**64
    return h ^ (h >> 33)


def test_known_values() -> None:
    assert HASH_NAME == "fnv1a64-fmix64"
    # Test vectors of FNV-1a 64, from draft-eastlake-fnv.
    assert _unfinish(hash_bytes(b"")) == 0xCBF29CE484222325
    assert _unfinish(hash_bytes(b"a")) == 0xAF63DC4C8601EC8C
    assert _unfinish(hash_bytes(b"foobar")) == 0x85944171F73967E8
    # Saved bundles rely on these.
    assert hash_value(0) == hash_bytes(bytes(8))
    assert hash_value(-1) == hash_bytes(b"\xff" * 8)
    assert hash_value("é") == hash_bytes(b"\xc3\xa9")


@given(st.lists(INT64))
def test_integers(values: list[int]) -> None:
    assert hash_integers(np.array(values, np.int64)).tolist() == [hash_value(v) for v in values]


@given(st.lists(TEXT))
def test_texts(values: list[str]) -> None:
    hashes = hash_packed_bytes(*text_bytes(pa.array(values, pa.string())))
    assert hashes.tolist() == [hash_value(v) for v in values]


def test_texts_of_a_slice() -> None:
    whole = pa.array(["aaa", "b", "", "cc"])
    assert hash_packed_bytes(*text_bytes(whole.slice(1, 3))).tolist() == [hash_value(v) for v in ("b", "", "cc")]
