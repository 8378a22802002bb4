"""The stable 64-bit hash of feature values: XXH64 (Yann Collet, xxHash).

An integer is hashed as its eight little-endian bytes, a text as its UTF-8 bytes; several values together as the hash of
their hashes, eight little-endian bytes each. The result depends on neither platform nor process, and is part of the
bundle format: ``HASH_NAME`` is saved with every pipeline. Seeds other than 0 give further, independent hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HASH_NAME", "cross_hashes", "hash_integers", "hash_packed_bytes"]

HASH_NAME = "xxh64"

_PRIMES = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_P1, _P2, _P3, _P4, _P5 = (np.uint64(prime) for prime in _PRIMES)
_STRIPE = 32


def hash_integers(values: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """The hash of each integer."""
    words = np.ascontiguousarray(values, np.int64).view(np.uint64)
    h = np.full(len(words), _start(seed, 8), np.uint64)
    return _finish(_lane(h, words))


def cross_hashes(parts: Sequence[NDArray[np.uint64]], *, seed: int = 0) -> NDArray[np.uint64]:
    """The hash of each row of several values, from the hash (with seed 0) of each of them."""
    rows = np.ascontiguousarray(np.stack([np.asarray(part, np.uint64) for part in parts], axis=1))
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * (8 * len(parts))
    return hash_packed_bytes(rows.reshape(-1).view(np.uint8), offsets, seed=seed)


def hash_packed_bytes(data: NDArray[np.uint8], offsets: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """The hash of each text: text i is ``data[offsets[i]:offsets[i + 1]]``."""
    lengths = np.diff(offsets)
    at = offsets[:-1].astype(np.int64)
    h = np.array([_start(seed, 0)], np.uint64) + lengths.astype(np.uint64)
    long = np.flatnonzero(lengths >= _STRIPE)
    if len(long):
        h[long] = _stripes(data, at[long], lengths[long] // _STRIPE, seed) + lengths[long].astype(np.uint64)
        at[long] += lengths[long] // _STRIPE * _STRIPE
    left = lengths % _STRIPE
    for lane in range(3):
        rows = np.flatnonzero(left // 8 > lane)
        h[rows] = _lane(h[rows], _numbers(data, at[rows], 8))
        at[rows] += 8
    rows = np.flatnonzero(left % 8 >= 4)
    h[rows] = _rotated(h[rows] ^ _numbers(data, at[rows], 4) * _P1, 23) * _P2 + _P3
    at[rows] += 4
    for byte in range(3):
        rows = np.flatnonzero(left % 4 > byte)
        h[rows] = _rotated(h[rows] ^ _numbers(data, at[rows] + byte, 1) * _P5, 11) * _P1
    return _finish(h)


def _start(seed: int, length: int) -> int:
    return (seed + _PRIMES[4] + length) % 2**64


def _stripes(
    data: NDArray[np.uint8], at: NDArray[np.int64], stripes: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    starts = (seed + _PRIMES[0] + _PRIMES[1], seed + _PRIMES[1], seed, seed - _PRIMES[0])
    sums = [np.full(len(at), start % 2**64, np.uint64) for start in starts]
    for stripe in range(int(stripes.max())):
        rows = np.flatnonzero(stripes > stripe)
        for lane, total in enumerate(sums):
            word = _numbers(data, at[rows] + (stripe * _STRIPE + lane * 8), 8)
            total[rows] = _round(total[rows], word)
    turns = (1, 7, 12, 18)
    h: NDArray[np.uint64] = np.sum(
        [_rotated(t, by) for t, by in zip(sums, turns, strict=True)], axis=0, dtype=np.uint64
    )
    for total in sums:
        h = (h ^ _round(np.zeros_like(total), total)) * _P1 + _P4
    return h


def _numbers(data: NDArray[np.uint8], at: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """The little-endian number of so many bytes at each place."""
    out = np.zeros(len(at), np.uint64)
    for i in range(width):
        out |= data[at + i].astype(np.uint64) << np.uint64(8 * i)
    return out


def _rotated(x: Any, by: int) -> Any:
    return x << np.uint64(by) | x >> np.uint64(64 - by)


def _round(total: Any, word: Any) -> Any:
    return _rotated(total + word * _P2, 31) * _P1


def _lane(h: Any, word: Any) -> Any:
    return _rotated(h ^ _round(np.zeros_like(word), word), 27) * _P1 + _P4


def _finish(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ h >> np.uint64(33)) * _P2
    h = (h ^ h >> np.uint64(29)) * _P3
    result: NDArray[np.uint64] = h ^ h >> np.uint64(32)
    return result
