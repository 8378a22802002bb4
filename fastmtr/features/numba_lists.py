"""Lists by Numba: the ids of their elements in rows of one length, vectors, and what an id stands for in a table.

The steps are those of :mod:`fastmtr.features.numba_kernels`; the results those of ``categories.encode_lists`` and
``vectors``.
"""

from __future__ import annotations

import numpy as np

from fastmtr.features.numba_index import BLOCK
from fastmtr.features.numba_kernels import FLOAT32_MAX, read_numbers
from fastmtr.features.numba_memory import kernel, load_i32, load_i64, store_f32, store_i32

__all__ = ["gather", "lists", "put_ids", "set_places", "vectors"]

# Of so few ids the equal ones are found by comparing all.
_FEW = 16


def set_places(longest: int) -> int:
    """How many ids of 4 bytes the set of a list of at most so many takes in the scratch memory."""
    return 0 if longest <= _FEW else 1 << (2 * longest - 1).bit_length()


@kernel
def gather(step, begin, end):
    """Write what stands in a table of 4 bytes a row for each id."""
    for i in range(begin, end):
        row = np.int64(load_i32(step.values + 4 * i))
        store_i32(step.out + i * step.stride, load_i32(step.table + 4 * row))


@kernel
def _without_repeats(ids, n, scratch):
    """Keep the first of equal ids, where they stand; how many are left."""
    kept = 0
    if n <= _FEW:
        for i in range(n):
            one = load_i32(ids + 4 * i)
            is_there = False
            for j in range(kept):
                is_there |= load_i32(ids + 4 * j) == one
            if not is_there:
                store_i32(ids + 4 * kept, one)
                kept += 1
        return kept
    places = np.int64(1)
    while places < 2 * n:
        places *= 2
    for place in range(places):
        store_i32(scratch + 4 * place, np.int32(0))
    for i in range(n):
        one = load_i32(ids + 4 * i)
        place = np.int64((np.uint64(one) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & (places - 1)
        there = load_i32(scratch + 4 * place)
        while there != 0 and there != one:
            place = (place + 1) & (places - 1)
            there = load_i32(scratch + 4 * place)
        if there == 0:
            store_i32(scratch + 4 * place, one)
            store_i32(ids + 4 * kept, one)
            kept += 1
    return kept


@kernel
def put_ids(step, ids, n, scratch, out):
    """Write the row of n ids, which are changed: without those that are missing, padded at the end."""
    kept = 0
    for i in range(n):
        one = load_i32(ids + 4 * i)
        if one != 0:
            store_i32(ids + 4 * kept, one)
            kept += 1
    if step.as_set != 0:
        kept = _without_repeats(ids, kept, scratch)
    most = min(kept, step.length)
    first = ids + 4 * (kept - most) if step.keep_last != 0 else ids
    for j in range(most):
        store_i32(out + 4 * j, load_i32(first + 4 * j))
    for j in range(most, step.length):
        store_i32(out + 4 * j, np.int32(0))


@kernel
def lists(step, begin, end, scratch):
    """Put the ids of each row's elements into it."""
    start = load_i64(step.offsets + 8 * begin)
    for i in range(begin, end):
        after = load_i64(step.offsets + 8 * i + 8)
        put_ids(step, step.values + 4 * start, after - start, scratch, step.out + i * step.stride)
        start = after


@kernel
def vectors(step, begin, end, counts, x, null):
    """Copy each row's numbers; a row without any is null."""
    for i in range(begin, end):
        start, out = load_i64(step.offsets + 8 * i), step.out + i * step.stride
        if load_i64(step.offsets + 8 * i + 8) == start:
            counts[0] += 1
            for j in range(step.length):
                store_f32(out + 4 * j, np.float32(0.0))
            continue
        for low in range(0, step.length, BLOCK):
            n = min(BLOCK, step.length - low)
            read_numbers(step, start + low, n, x, null)
            for j in range(n):
                v = 0.0 if x[j] != x[j] else x[j]
                v = FLOAT32_MAX if v > FLOAT32_MAX else (-FLOAT32_MAX if v < -FLOAT32_MAX else v)
                store_f32(out + 4 * (low + j), np.float32(v))
