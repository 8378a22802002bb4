"""The stable 64-bit hash of feature values.

FNV-1a over the bytes (Fowler, Noll and Vo; draft-eastlake-fnv), then the finaliser of MurmurHash3 (Appleby), because
the rows are taken modulo a number and plain FNV-1a mixes its low bits weakly. An integer is hashed as its eight
little-endian bytes, a text as its UTF-8 bytes. The result depends on neither platform nor process, and is part of the
bundle format: ``HASH_NAME`` is saved with every pipeline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["HASH_NAME", "hash_bytes", "hash_integers", "hash_packed_bytes", "hash_value"]

HASH_NAME = "fnv1a64-fmix64"

_BASIS = 0xCBF29CE484222325
_PRIME = 0x100000001B3
_FMIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_MASK = 0xFFFFFFFFFFFFFFFF


def hash_bytes(data: bytes) -> int:
    """The hash of one value's bytes."""
    h = _BASIS
    for byte in data:
        h = ((h ^ byte) * _PRIME) & _MASK
    h ^= h >> 33
    h = (h * _FMIX[0]) & _MASK
    h ^= h >> 33
    h = (h * _FMIX[1]) & _MASK
    return h ^ (h >> 33)


def hash_value(value: int | str) -> int:
    """The hash of one integer (signed 64 bits) or text."""
    return hash_bytes(value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True))


def hash_integers(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The hash of each integer."""
    columns = np.ascontiguousarray(values, dtype="<i8").view(np.uint8).reshape(-1, 8)
    h = np.full(len(columns), _BASIS, np.uint64)
    for i in range(8):
        h = (h ^ columns[:, i]) * np.uint64(_PRIME)
    return _finish(h)


def hash_packed_bytes(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The hash of each text: text i is ``data[offsets[i]:offsets[i + 1]]``."""
    lengths = np.diff(offsets)
    h = np.full(len(lengths), _BASIS, np.uint64)
    # Longest first, so that the texts that still have a byte i are always the first few.
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = offsets[:-1][order], lengths[order]
    alive = len(lengths)
    for i in range(int(lengths[0]) if len(lengths) else 0):
        alive = int(np.searchsorted(-lengths[:alive], -i, side="left"))
        h[:alive] = (h[:alive] ^ data[starts[:alive] + i]) * np.uint64(_PRIME)
    result = np.empty_like(h)
    result[order] = h
    return _finish(result)


def _finish(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h ^= h >> np.uint64(33)
    h *= np.uint64(_FMIX[0])
    h ^= h >> np.uint64(33)
    h *= np.uint64(_FMIX[1])
    h ^= h >> np.uint64(33)
    return h
