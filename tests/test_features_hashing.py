"""The hash is what its name says, and its three forms agree."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features.hashing import HASH_NAME, cross_hashes, hash_bytes, hash_integers, hash_packed_bytes, hash_value
from fastmtr.features.values import text_bytes

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_known_values() -> None:
    assert HASH_NAME == "xxh64"
    # Published values of XXH64.
    assert hash_bytes(b"") == 0xEF46DB3751D8E999
    assert hash_bytes(b"a") == 0xD24EC4F1A98C6E5B
    assert hash_bytes(b"abc") == 0x44BC2CF5AD770999
    # Saved bundles rely on these.
    assert hash_value(0) == hash_bytes(bytes(8))
    assert hash_value(-1) == hash_bytes(b"\xff" * 8)
    assert hash_value("é") == hash_bytes(b"\xc3\xa9")


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_the_hash_is_xxh64(data: bytes, seed: int) -> None:
    assert hash_bytes(data, seed=seed) == xxhash.xxh64_intdigest(data, seed=seed)


@given(st.lists(st.tuples(INT64, INT64), min_size=1), st.integers(0, 15))
def test_values_together(rows: list[tuple[int, int]], seed: int) -> None:
    columns = [hash_integers(np.array(column, np.int64)) for column in zip(*rows, strict=True)]
    joined = [struct.pack("<QQ", hash_value(a), hash_value(b)) for a, b in rows]
    assert cross_hashes(columns, seed=seed).tolist() == [hash_bytes(each, seed=seed) for each in joined]


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
