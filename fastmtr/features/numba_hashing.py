"""XXH64 and remainders by Numba, of one value and of a block of short ones at a time.

A block goes through the stages of XXH64 together, each stage without a branch for a value, so that the compiler makes
vectors of it; a stage that no value of the block needs is left out. The hashes are those of
:mod:`fastmtr.features.hashing`.
"""

from __future__ import annotations

import numpy as np

from fastmtr.features.numba_memory import kernel, load_i32, load_u8, load_u64, upper_product

__all__ = [
    "FIRST",
    "HASH",
    "LONGEST",
    "P1",
    "P2",
    "SECOND",
    "SIZE",
    "hash_block",
    "hash_bytes",
    "remainder",
    "remainders",
]

# Rows of the scratch memory of a block of values; see hash_block().
FIRST, SECOND, SIZE, HASH = range(4)


# The longest values, in bytes, that a block hashes together: eight, and what is left of less than eight.
LONGEST = 15

P1, P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
_HALF, _LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)


@kernel
def _rotated(x, by):
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


@kernel
def _round(total, word):
    return _rotated(total + word * P2, 31) * P1


@kernel
def _lane(h, word):
    return _rotated(h ^ _round(np.uint64(0), word), 27) * P1 + _P4


@kernel
def _half_lane(h, word):
    return _rotated(h ^ (word * P1), 23) * P2 + _P3


@kernel
def _byte(h, byte):
    return _rotated(h ^ (byte * _P5), 11) * P1


@kernel
def _finish(h):
    h = (h ^ (h >> np.uint64(33))) * P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@kernel
def hash_bytes(at, size, seed):
    """The hash of `size` bytes at an address."""
    end = at + size
    h = seed + _P5
    if size >= 32:
        a, b, c, d = seed + P1 + P2, seed + P2, seed, seed - P1
        while at + 32 <= end:
            a, b = _round(a, load_u64(at)), _round(b, load_u64(at + 8))
            c, d = _round(c, load_u64(at + 16)), _round(d, load_u64(at + 24))
            at += 32
        h = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        h = (h ^ _round(np.uint64(0), a)) * P1 + _P4
        h = (h ^ _round(np.uint64(0), b)) * P1 + _P4
        h = (h ^ _round(np.uint64(0), c)) * P1 + _P4
        h = (h ^ _round(np.uint64(0), d)) * P1 + _P4
    h += np.uint64(size)
    while at + 8 <= end:
        h = _lane(h, load_u64(at))
        at += 8
    if at + 4 <= end:
        h = _half_lane(h, np.uint64(load_i32(at)) & _LOWER)
        at += 4
    while at < end:
        h = _byte(h, np.uint64(load_u8(at)))
        at += 1
    return _finish(h)


@kernel
def hash_block(n, block, seed):
    """Hash n values of at most LONGEST bytes together.

    Parameters
    ----------
    n : int
    block : ndarray of uint64, shape (SCRATCH, m)
        Rows FIRST and SECOND hold the first eight bytes of each value and the others, zeros behind the end (SECOND
        anything if no value is longer); SIZE their sizes. FIRST is lost, HASH becomes the hash; of a longer value
        anything.
    seed : uint64
    """
    longest, bits = np.uint64(0), np.uint64(0)
    for j in range(n):
        longest = max(longest, block[SIZE, j])
        bits |= block[SIZE, j]
    start = seed + _P5
    for j in range(n):
        block[HASH, j] = start + block[SIZE, j]
    if longest >= np.uint64(8):
        for j in range(n):
            lane = _lane(block[HASH, j], block[FIRST, j])
            block[HASH, j] = lane if block[SIZE, j] >= np.uint64(8) else block[HASH, j]
    if longest > np.uint64(8):
        for j in range(n):
            block[FIRST, j] = block[SECOND, j] if block[SIZE, j] >= np.uint64(8) else block[FIRST, j]
    if bits & np.uint64(4):
        for j in range(n):
            four = (block[SIZE, j] & np.uint64(4)) != np.uint64(0)
            half = _half_lane(block[HASH, j], block[FIRST, j] & _LOWER)
            block[HASH, j] = half if four else block[HASH, j]
            block[FIRST, j] = block[FIRST, j] >> _HALF if four else block[FIRST, j]
    if bits & np.uint64(3):
        for k in range(3):
            shift = np.uint64(8 * k)
            for j in range(n):
                byte = _byte(block[HASH, j], (block[FIRST, j] >> shift) & np.uint64(0xFF))
                block[HASH, j] = byte if (block[SIZE, j] & np.uint64(3)) > np.uint64(k) else block[HASH, j]
    for j in range(n):
        block[HASH, j] = _finish(block[HASH, j])


@kernel
def remainder(h, rows, magic, shift):
    """h % rows, by a product: see numba_features.divider()."""
    if magic == 0:  # a power of two
        return h & np.uint64(rows - 1)
    upper = upper_product(h, np.uint64(magic))
    return h - ((((h - upper) >> np.uint64(1)) + upper) >> np.uint64(shift)) * np.uint64(rows)


@kernel
def remainders(n, block, rows, magic, shift):
    """Replace each of n hashes by its remainder."""
    for j in range(n):
        block[HASH, j] = remainder(block[HASH, j], rows, magic, shift)
