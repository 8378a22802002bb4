"""The hash is what its name says: that of the package xxhash, for texts, integers and several values together."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features.hashing import HASH_NAME, cross_hashes, hash_integers, hash_packed_bytes
from fastmtr.features.values import text_bytes

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def hashed(*texts: bytes, seed: int = 0) -> list[int]:
    data = np.frombuffer(b"".join(texts), np.uint8)
    return hash_packed_bytes(data, np.cumsum([0, *map(len, texts)]), seed=seed).tolist()


def xxh64(value: int | str, seed: int = 0) -> int:
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    return xxhash.xxh64_intdigest(data, seed=seed)


def test_known_values() -> None:
    assert HASH_NAME == "xxh64"
    # Published values of XXH64; saved bundles rely on them.
    assert hashed(b"", b"a", b"abc") == [0xEF46DB3751D8E999, 0xD24EC4F1A98C6E5B, 0x44BC2CF5AD770999]


@given(st.lists(st.binary(max_size=200)), st.integers(0, 2**64 - 1))
def test_the_hash_is_xxh64(texts: list[bytes], seed: int) -> None:
    assert hashed(*texts, seed=seed) == [xxhash.xxh64_intdigest(text, seed=seed) for text in texts]


@given(st.lists(st.tuples(INT64, INT64), min_size=1), st.integers(0, 15))
def test_values_together(rows: list[tuple[int, int]], seed: int) -> None:
    columns = [hash_integers(np.array(column, np.int64)) for column in zip(*rows, strict=True)]
    joined = [struct.pack("<QQ", xxh64(a), xxh64(b)) for a, b in rows]
    assert cross_hashes(columns, seed=seed).tolist() == [xxhash.xxh64_intdigest(each, seed=seed) for each in joined]


@given(st.lists(INT64), st.integers(0, 2**64 - 1))
def test_integers(values: list[int], seed: int) -> None:
    assert hash_integers(np.array(values, np.int64), seed=seed).tolist() == [xxh64(v, seed) for v in values]


@given(st.lists(TEXT))
def test_texts(values: list[str]) -> None:
    hashes = hash_packed_bytes(*text_bytes(pa.array(values, pa.string())))
    assert hashes.tolist() == [xxh64(v) for v in values]


def test_texts_of_a_slice() -> None:
    whole = pa.array(["aaa", "b", "", "cc"])
    assert hash_packed_bytes(*text_bytes(whole.slice(1, 3))).tolist() == [xxh64(v) for v in ("b", "", "cc")]
