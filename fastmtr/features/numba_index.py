"""Vocabularies by Numba: where each value stands, for look-ups of whole columns.

An index is open addressing over buckets of one cache line: the keys of four places, then their sizes and ranks. Values
of up to eight bytes are their own key; the key of a longer one is its hash, and the bytes are compared where hash and
size agree. A whole number is a value of eight bytes. Rank and size of an empty place are EMPTY, its key is NO_KEY: any
number, which had better be no value's.
"""

from __future__ import annotations

import numpy as np

from fastmtr.features.numba_hashing import (
    FIRST,
    HASH,
    LONGEST,
    P1,
    P2,
    SECOND,
    SIZE,
    hash_block,
    hash_bytes,
    remainder,
    remainders,
)
from fastmtr.features.numba_memory import (
    item_i32,
    item_i64,
    item_u64,
    kernel,
    load_i32,
    load_i64,
    load_u8,
    load_u64,
    prefetch,
    prefetch_lines,
    store_i32,
    store_u64,
)

__all__ = [
    "BLOCK",
    "EMPTY",
    "NO_KEY",
    "ROWS",
    "SCRATCH",
    "fill_places",
    "hash_values",
    "hashed_ids",
    "is_valid",
    "known_ids",
    "null_flags",
    "offset",
    "same_bytes",
    "text_id",
]

# Values whose look-ups are under way together, and rows of one column before those of the next: few, so that the packed
# rows of all columns stay near.
BLOCK, ROWS = 64, 256
# Rows of the scratch memory of a block: those of hashes, where values stand, and where they may stand in an index.
SCRATCH = 6
_AT, _HOME = 4, 5

EMPTY, NO_KEY = 0xFFFFFFFFFFFFFFFF, 0x9E3779B97F4A7C15
_EMPTY, _NOTHING = np.uint64(EMPTY), np.uint64(0)
_HALF, _LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)


# ---- reading a block -------------------------------------------------------------------------------------------------


@kernel
def is_valid(step, i):
    """Whether row i is not null."""
    bit = step.first_bit + i
    return step.valid == 0 or ((load_u8(step.valid + (bit >> 3)) >> (bit & 7)) & 1) != 0


@kernel
def null_flags(step, low, n, null):
    """Which of n rows from `low` on are null; how many."""
    count = 0
    if step.valid == 0:
        for j in range(n):
            null[j] = False
        return count
    for start in range(0, n, 64):
        bit = step.first_bit + low + start
        at, shift = step.valid + (bit >> 3), np.uint64(bit & 7)
        if n - start >= 64:
            bits = load_u64(at) >> shift
            if shift:
                bits |= np.uint64(load_u8(at + 8)) << (np.uint64(64) - shift)
            for j in range(64):
                missing = ((bits >> np.uint64(j)) & np.uint64(1)) == _NOTHING
                null[start + j] = missing
                count += missing
        else:
            for j in range(start, n):
                null[j] = not is_valid(step, low + j)
                count += null[j]
    return count


@kernel
def offset(step, i):
    """Where text i begins."""
    return load_i64(step.offsets + 8 * i) if step.width == 8 else np.int64(load_i32(step.offsets + 4 * i))


@kernel
def _masked(word, size):
    """The first bytes of a word, at most eight; zeros for the others."""
    kept = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - (min(size, np.uint64(8)) << np.uint64(3)))
    return word & kept if size else _NOTHING


@kernel
def _word_before(at, size, end):
    """Up to eight bytes before the end of what may be read."""
    word = _NOTHING
    for i in range(min(size, 8, end - at)):
        word |= np.uint64(load_u8(at + i)) << np.uint64(8 * i)
    return word


@kernel
def _read(step, low, n, block):
    """The values of n rows from `low` on: their first 16 bytes, sizes and addresses; the largest size.

    SECOND is anything if no value is longer than eight bytes.
    """
    values, offsets, width = step.values, step.offsets + step.width * low, step.width
    if step.offsets == 0:
        prefetch_lines(values + 8 * (low + ROWS), 8 * n)
        for j in range(n):
            block[FIRST, j] = item_u64(values, low + j)
            block[SIZE, j] = np.uint64(8)
        return np.uint64(8)
    if width == 8:
        start, end = load_i64(offsets), load_i64(offsets + 8 * n)
        for j in range(n):
            block[_AT, j] = np.uint64(values + item_i64(offsets, j))
            block[SIZE, j] = np.uint64(item_i64(offsets, j + 1) - item_i64(offsets, j))
    else:
        start, end = np.int64(load_i32(offsets)), np.int64(load_i32(offsets + 4 * n))
        for j in range(n):
            block[_AT, j] = np.uint64(values + np.int64(item_i32(offsets, j)))
            block[SIZE, j] = np.uint64(np.int64(item_i32(offsets, j + 1)) - np.int64(item_i32(offsets, j)))
    prefetch_lines(offsets + width * ROWS, width * n)
    prefetch_lines(values + start + ROWS // BLOCK * (end - start), end - start)
    longest = _NOTHING
    for j in range(n):
        longest = max(longest, block[SIZE, j])
    if longest == np.uint64(8) and end - start == 8 * n:
        for j in range(n):
            block[FIRST, j] = item_u64(values + start, j)
    elif values + end + 16 <= step.limit:
        for j in range(n):
            block[FIRST, j] = load_u64(np.int64(block[_AT, j]))
        for j in range(n):
            block[FIRST, j] = _masked(block[FIRST, j], block[SIZE, j])
        if longest > np.uint64(8):
            for j in range(n):
                block[SECOND, j] = load_u64(np.int64(block[_AT, j]) + 8)
            for j in range(n):
                size = max(block[SIZE, j], np.uint64(8)) - np.uint64(8)
                block[SECOND, j] = _masked(block[SECOND, j], size)
    else:
        for j in range(n):
            at, size = np.int64(block[_AT, j]), np.int64(block[SIZE, j])
            block[FIRST, j] = _word_before(at, size, at + size)
            block[SECOND, j] = _word_before(at + 8, size - 8, at + size)
    return longest


@kernel
def _hash(n, block, longest, seed):
    """The hashes of the values of a block; their first bytes are lost."""
    hash_block(n, block, seed)
    if longest > np.uint64(LONGEST):
        for j in range(n):
            if block[SIZE, j] > np.uint64(LONGEST):
                block[HASH, j] = hash_bytes(np.int64(block[_AT, j]), np.int64(block[SIZE, j]), seed)


@kernel
def hash_values(step, low, n, block):
    """Write the hashes of n rows from `low` on."""
    _hash(n, block, _read(step, low, n, block), step.seed)
    for j in range(n):
        store_u64(step.out + (low + j) * step.stride, block[HASH, j])


@kernel
def hashed_ids(step, low, n, block, null):
    """Write the ids of n rows from `low` on: their hashes, within so many rows. Returns how many are null."""
    _hash(n, block, _read(step, low, n, block), step.seed)
    nulls = null_flags(step, low, n, null)
    remainders(n, block, step.rows, step.magic, step.shift)
    first_row = np.uint64(step.first_row)
    for j in range(n):
        block[HASH, j] = _NOTHING if null[j] else block[HASH, j] + first_row
    out, stride = step.out + low * step.stride, step.stride
    for j in range(n):
        store_i32(out + j * stride, np.int32(block[HASH, j]))
    return nulls


# ---- the index -------------------------------------------------------------------------------------------------------


@kernel
def _home(key, size, buckets):
    """Where the bucket of a value begins in the index."""
    h = (key ^ size) * P1
    h = (h ^ (h >> _HALF)) * P2
    return (((h >> _HALF) * np.uint64(buckets)) >> _HALF) << np.uint64(6)


@kernel
def _keys(n, block, longest, buckets):
    """The key of each value, in place of its first bytes, and its bucket."""
    if longest > np.uint64(8):
        for j in range(n):
            block[_HOME, j] = block[FIRST, j]
        _hash(n, block, longest, np.uint64(0))
        for j in range(n):
            block[FIRST, j] = block[_HOME, j] if block[SIZE, j] <= np.uint64(8) else block[HASH, j]
    for j in range(n):
        block[_HOME, j] = _home(block[FIRST, j], block[SIZE, j], buckets)


@kernel
def same_bytes(a, b, size):
    """Whether so many bytes at two addresses are equal."""
    i = 0
    while i + 8 <= size:
        if load_u64(a + i) != load_u64(b + i):
            return False
        i += 8
    while i < size:
        if load_u8(a + i) != load_u8(b + i):
            return False
        i += 1
    return True


@kernel
def _same(step, rank, at, size):
    """Whether a long value is the known one of that rank."""
    return same_bytes(step.known + load_i64(step.known_offsets + 8 * rank), at, size)


@kernel
def _find(step, home, key, size, at):
    """The rank of a value, or -1, looking further than at its bucket."""
    where = np.int64(home)
    while True:
        for place in range(step.index + where, step.index + where + 32, 8):
            meta = load_u64(place + 32)
            if meta == _EMPTY:
                return np.int64(-1)
            rank = np.int64(meta >> _HALF)
            alike = load_u64(place) == key and (meta & _LOWER) == size
            if alike and (size <= np.uint64(8) or _same(step, rank, at, np.int64(size))):
                return rank
        where += 64
        where = np.int64(0) if where == step.buckets << 6 else where


@kernel
def text_id(step, at, size, counts):
    """The id of one text."""
    if step.index != 0:
        key = _word_before(at, size, at + size) if size <= 8 else hash_bytes(at, size, np.uint64(0))
        rank = _find(step, _home(key, np.uint64(size), step.buckets), key, np.uint64(size), at)
        if rank >= 0:
            return np.int32(step.first_row + rank)
        counts[1] += step.refuses
        if step.rows == 1:
            return np.int32(1)
    first_row = np.int64(1) if step.index != 0 else step.first_row
    place = remainder(hash_bytes(at, size, np.uint64(0)), step.rows, step.magic, step.shift)
    return np.int32(first_row + np.int64(place))


@kernel
def fill_places(step, n, block):
    """Fill an index with n values; the number of values that stand twice."""
    twice = 0
    for low in range(0, n, BLOCK):
        size = min(BLOCK, n - low)
        _keys(size, block, _read(step, low, size, block), step.buckets)
        for j in range(size):
            key, length = block[FIRST, j], block[SIZE, j]
            twice += _find(step, block[_HOME, j], key, length, np.int64(block[_AT, j])) >= 0
            place = np.int64(block[_HOME, j])
            while load_u64(step.index + place + 32) != _EMPTY:
                place += 8
                if place & 32:
                    place += 32
                    place = np.int64(0) if place == step.buckets << 6 else place
            store_u64(step.index + place, key)
            store_u64(step.index + place + 32, (np.uint64(low + j) << _HALF) | length)
    return twice


@kernel
def known_ids(step, low, n, block, null):
    """Write the ids of n rows from `low` on: their ranks in a vocabulary, or those of unseen values.

    Returns how many are null and unseen.
    """
    longest = _read(step, low, n, block)
    _keys(n, block, longest, step.buckets)
    index, first_row, out, stride = step.index, step.first_row, step.out + low * step.stride, step.stride
    for j in range(n):
        prefetch(index + np.int64(block[_HOME, j]))
    nulls, unseen = null_flags(step, low, n, null), 0
    for j in range(n):
        key, size = block[FIRST, j], block[SIZE, j]
        bucket = index + np.int64(block[_HOME, j])
        # Without a branch for a place. Where several have the key, for other sizes or empty, _find() looks again.
        one, two, three = load_u64(bucket + 8) == key, load_u64(bucket + 16) == key, load_u64(bucket + 24) == key
        alike = one * 8 + two * 16 + three * 24
        place = bucket + (alike & 24)
        rank = np.int64(-1)
        if load_u64(place) == key:
            meta = load_u64(place + 32)
            rank = np.int64(meta >> _HALF)
            further = (meta & _LOWER) != size or (
                size > np.uint64(8) and not _same(step, rank, np.int64(block[_AT, j]), np.int64(size))
            )
        else:
            further = alike != 0 or load_u64(bucket + 56) != _EMPTY
        if further:
            rank = _find(step, block[_HOME, j], key, size, np.int64(block[_AT, j]))
        row = np.int32(rank + first_row)
        if rank < 0:
            unseen += not null[j]
            row = np.int32(1)
        store_i32(out + j * stride, np.int32(0) if null[j] else row)
    if unseen and step.rows > 1:
        _hash(n, block, _read(step, low, n, block), np.uint64(0))
        remainders(n, block, step.rows, step.magic, step.shift)
        for j in range(n):
            if load_i32(out + j * stride) == 1:
                store_i32(out + j * stride, np.int32(np.int64(block[HASH, j]) + 1))
    return nulls, unseen
