"""Batches of columns by Numba: the ids of categories and the scales of numbers, from Arrow's buffers without a copy,
straight into the rows of a packed matrix.

A :data:`STEP` says what one column becomes; :func:`run` goes through many of them, block by block, so that the rows it
writes stay in the cache. It holds no lock: several threads may each do their part of the rows. The results are those of
:mod:`fastmtr.features.categories`, ``scales`` and ``made_categories``, bit for bit: nothing is reassociated, no product
and sum is fused.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fastmtr.features.numba_memory import (
    bits_of,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u64,
    number_of,
    prefetch,
    store_f32,
    store_i32,
    store_u64,
    upper_product,
)

__all__ = [
    "BUCKET",
    "HASH_INTS",
    "HASH_TEXTS",
    "INDEX_TEXTS",
    "INT_IDS",
    "NUMBER",
    "STEP",
    "TEXT_IDS",
    "UNKNOWN",
    "run",
]

# What a step does.
TEXT_IDS, INT_IDS, NUMBER, BUCKET, HASH_TEXTS, HASH_INTS, INDEX_TEXTS, INDEX_INTS = range(8)
# Those of numba_lists, numba_text and numba_times.
GATHER, LIST, VECTOR, TEXT_LIST, WORDS, TFIDF, CLOCK_PART, CYCLE, SINCE, GAPS = range(8, 18)

# The rank of an empty place of an index.
UNKNOWN = 0xFFFFFFFF

STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "op",
            "values",  # address of whole numbers or numbers, or of the bytes of texts
            "limit",  # the end of these bytes
            "width",  # of values: 8 or 4 bytes; of texts: of their offsets
            "floating",  # numbers are floats
            "offsets",
            "valid",  # address of Arrow's bitmap of valid rows; 0: all are
            "first_bit",
            "out",
            "stride",
            "index",  # address of the places of a vocabulary; 0: the values are hashed
            "mask",
            "known",  # address of the vocabulary's bytes
            "first_row",
            "rows",  # what hashes are divided by: rows of hashes, or those of unseen values
            "magic",  # see divider()
            "shift",
            "log",
            "range_rule",  # 0 keep, 1 clip, 2 null, 3 error
            "indicator",
            "n_knots",
            "knots",
            "levels",
            # Of the steps of numba_lists, numba_text and numba_times.
            "elements",  # address of where each row's elements begin: the step goes through these; 0: through rows
            "length",
            "as_set",
            "keep_last",
            "refuses",  # unseen values are counted
            "table",  # what an id becomes; the lower case of each code point; weights
            "word",  # which code points are of words
            "space",  # which of the first code points are white space
            "separator",
            "separator_size",
            "ngrams",
            "most_words",  # as many are read
            "second",  # where the second and the third part of the scratch memory begin
            "third",
            "now",  # address of the clock's ticks
            "now_valid",
            "now_bit",
            "ticks_per_second",
            "period",  # seconds
            "ahead",  # seconds from the beginning of the period to 1970
            "unit",  # seconds of a part of the period
        )
    ]
    + [("seed", np.uint64)]
    + [(name, np.float64) for name in ("low", "high", "least", "most", "of_shift", "factor", "filler")]
)

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LN2_HIGH, _LN2_LOW = (float(np.uint64(b).view(np.float64)) for b in (0x3FE62E42FEE00000, 0x3DEA39EF35793C76))
_ATANH = tuple(1.0 / (2 * i + 1) for i in range(12))

# Rows that are worked on at once: of all columns, so that the packed rows stay in the second cache; and of one column,
# so that the look-ups of all are under way together.
_ROWS, _TOGETHER = 2048, 64

_entry = njit(nogil=True, cache=True, error_model="numpy")
_kernel = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_inline = _kernel


# ---- hashes ----------------------------------------------------------------------------------------------------------


@_kernel
def _rotated(x, by):
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


@_kernel
def _round(total, word):
    return _rotated(total + word * _P2, 31) * _P1


@_kernel
def _lane(h, word):
    return _rotated(h ^ _round(np.uint64(0), word), 27) * _P1 + _P4


@_kernel
def _finish(h):
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@_kernel
def _hash_bytes(at, size, seed):
    end = at + size
    h = seed + _P5
    if size >= 32:
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + 32 <= end:
            a, b = _round(a, load_u64(at)), _round(b, load_u64(at + 8))
            c, d = _round(c, load_u64(at + 16)), _round(d, load_u64(at + 24))
            at += 32
        h = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        h = (h ^ _round(np.uint64(0), a)) * _P1 + _P4
        h = (h ^ _round(np.uint64(0), b)) * _P1 + _P4
        h = (h ^ _round(np.uint64(0), c)) * _P1 + _P4
        h = (h ^ _round(np.uint64(0), d)) * _P1 + _P4
    h += np.uint64(size)
    while at + 8 <= end:
        h = _lane(h, load_u64(at))
        at += 8
    if at + 4 <= end:
        word = np.uint64(load_i32(at)) & np.uint64(0xFFFFFFFF)
        h = _rotated(h ^ (word * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotated(h ^ (np.uint64(load_u8(at)) * _P5), 11) * _P1
        at += 1
    return _finish(h)


@_kernel
def _hash_int(value, seed):
    return _finish(_lane(seed + _P5 + np.uint64(8), np.uint64(value)))


@_kernel
def _remainder(h, rows, magic, shift):
    """h % rows, by a product: see divider()."""
    if rows == 1:
        return np.int64(0)
    upper = upper_product(h, magic)
    return np.int64(h - ((((h - upper) >> np.uint64(1)) + upper) >> np.uint64(shift)) * np.uint64(rows))


# ---- indexes: open addressing, 32 bytes a place: two words, size and rank, a place in the vocabulary's bytes ---------
# A text of up to 16 bytes is its two words, padded by zeros; of a longer one these are its hash and its place. A whole
# number is the first word.


@_kernel
def _words(at, size, limit):
    """The first 16 bytes of a text of at most 16, as two words."""
    if at + 16 <= limit:
        first, second = min(size, 8), max(size, 8) - 8
        a = load_u64(at) << np.uint64((64 - 8 * first) & 63)
        b = load_u64(at + 8) << np.uint64((64 - 8 * second) & 63)
        a, b = a >> np.uint64((64 - 8 * first) & 63), b >> np.uint64((64 - 8 * second) & 63)
        return (a if first else np.uint64(0)), (b if second else np.uint64(0))
    a, b = np.uint64(0), np.uint64(0)
    for i in range(size):
        byte = np.uint64(load_u8(at + i)) << np.uint64(8 * (i & 7))
        if i < 8:
            a |= byte
        else:
            b |= byte
    return a, b


@_kernel
def _place(a, b, size):
    h = (a ^ (np.uint64(size) * _P3)) * _P1
    h = ((h ^ (h >> np.uint64(32))) + b) * _P2
    return h ^ (h >> np.uint64(29))


@_kernel
def _same_bytes(a, b, size):
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


@_kernel
def _find_text(index, mask, known, a, b, size, at, h):
    """The rank of a text, or -1."""
    where = h
    while True:
        where &= mask
        entry = index + np.int64(where << np.uint64(5))
        meta = load_u64(entry + 16)
        rank = np.int64(meta >> np.uint64(32))
        if rank == UNKNOWN:
            return np.int64(-1)
        if load_u64(entry) == a and np.int64(meta & np.uint64(0xFFFFFFFF)) == size:
            if size <= 16:
                if load_u64(entry + 8) == b:
                    return rank
            elif _same_bytes(known + load_i64(entry + 8), at, size):
                return rank
        where += np.uint64(1)


@_kernel
def _find_int(index, mask, value, h):
    where = h
    while True:
        where &= mask
        entry = index + np.int64(where << np.uint64(5))
        rank = np.int64(load_u64(entry + 16) >> np.uint64(32))
        if rank == UNKNOWN:
            return np.int64(-1)
        if load_i64(entry) == value:
            return rank
        where += np.uint64(1)


@_kernel
def _valid(step, i):
    bit = step.first_bit + i
    return step.valid == 0 or ((load_u8(step.valid + (bit >> 3)) >> (bit & 7)) & 1) != 0


@_kernel
def _offset(step, i):
    return load_i64(step.offsets + 8 * i) if step.width == 8 else np.int64(load_i32(step.offsets + 4 * i))


@_inline
def _index_texts(step, n):
    """Fill an index with the values; the number of values that stand twice."""
    twice = 0
    mask = np.uint64(step.mask)
    for i in range(n):
        start = _offset(step, i)
        size, at = _offset(step, i + 1) - start, step.values + start
        if size <= 16:
            a, b = _words(at, size, step.limit)
            h = _place(a, b, size)
        else:
            a, b = _hash_bytes(at, size, np.uint64(0)), np.uint64(start)
            h = a
        twice += _find_text(step.index, mask, step.values, a, b, size, at, h) >= 0
        where = h & mask
        while load_u64(step.index + np.int64(where << np.uint64(5)) + 16) >> np.uint64(32) != UNKNOWN:
            where = (where + np.uint64(1)) & mask
        entry = step.index + np.int64(where << np.uint64(5))
        store_u64(entry, a)
        store_u64(entry + 8, b)
        store_u64(entry + 16, (np.uint64(i) << np.uint64(32)) | np.uint64(size))
    return twice


@_inline
def _index_ints(step, n):
    twice = 0
    mask = np.uint64(step.mask)
    for i in range(n):
        value = load_i64(step.values + 8 * i)
        h = _place(np.uint64(value), np.uint64(0), 8)
        twice += _find_int(step.index, mask, value, h) >= 0
        where = h & mask
        while load_u64(step.index + np.int64(where << np.uint64(5)) + 16) >> np.uint64(32) != UNKNOWN:
            where = (where + np.uint64(1)) & mask
        entry = step.index + np.int64(where << np.uint64(5))
        store_u64(entry, np.uint64(value))
        store_u64(entry + 16, np.uint64(i) << np.uint64(32))
    return twice


# ---- ids -------------------------------------------------------------------------------------------------------------


@_inline
def _hashed_texts(step, begin, end, counts):
    rows, magic, shift = step.rows, np.uint64(step.magic), step.shift
    start = _offset(step, begin)
    for i in range(begin, end):
        after = _offset(step, i + 1)
        h = _hash_bytes(step.values + start, after - start, step.seed)
        row = np.int32(step.first_row + _remainder(h, rows, magic, shift))
        if not _valid(step, i):
            row = np.int32(0)
            counts[0] += 1
        store_i32(step.out + i * step.stride, row)
        start = after


@_inline
def _known_texts(step, begin, end, counts, words):
    mask = np.uint64(step.mask)
    for low in range(begin, end, _TOGETHER):
        n = min(_TOGETHER, end - low)
        start = _offset(step, low)
        for j in range(n):
            after = _offset(step, low + j + 1)
            size, at = after - start, step.values + start
            start = after
            if size <= 16:
                a, b = _words(at, size, step.limit)
                h = _place(a, b, size)
            else:
                a, b = _hash_bytes(at, size, np.uint64(0)), np.uint64(0)
                h = a
            words[0, j], words[1, j], words[2, j], words[3, j] = a, b, h, np.uint64(size)
            prefetch(step.index + np.int64((h & mask) << np.uint64(5)))
        for j in range(n):
            i = low + j
            row = np.int32(0)
            if _valid(step, i):
                a, b, h, size = words[0, j], words[1, j], words[2, j], np.int64(words[3, j])
                at = step.values + _offset(step, i)
                rank = _find_text(step.index, mask, step.known, a, b, size, at, h)
                row = np.int32(step.first_row + rank)
                if rank < 0:
                    counts[1] += 1
                    row = np.int32(1)
                    if step.rows > 1:
                        found = _hash_bytes(at, size, np.uint64(0))
                        row += np.int32(_remainder(found, step.rows, np.uint64(step.magic), step.shift))
            else:
                counts[0] += 1
            store_i32(step.out + i * step.stride, row)


@_inline
def _int_ids(step, begin, end, counts):
    mask, magic = np.uint64(step.mask), np.uint64(step.magic)
    ahead = step.index != 0
    for low in range(begin, end, _TOGETHER):
        high = min(low + _TOGETHER, end)
        if ahead:
            for i in range(low, high):
                h = _place(np.uint64(load_i64(step.values + 8 * i)), np.uint64(0), 8)
                prefetch(step.index + np.int64((h & mask) << np.uint64(5)))
        for i in range(low, high):
            row = np.int32(0)
            if _valid(step, i):
                value = load_i64(step.values + 8 * i)
                rank = np.int64(-1)
                if ahead:
                    rank = _find_int(step.index, mask, value, _place(np.uint64(value), np.uint64(0), 8))
                if rank >= 0:
                    row = np.int32(step.first_row + rank)
                else:
                    place = _remainder(_hash_int(value, step.seed), step.rows, magic, step.shift)
                    row = np.int32((1 if ahead else step.first_row) + place)
                    counts[1] += ahead
            else:
                counts[0] += 1
            store_i32(step.out + i * step.stride, row)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@_kernel
def _log1p(x):
    """The logarithm of 1 + the magnitude, with the sign of the number."""
    a = abs(x)
    u = 1.0 + a
    c = (a - (u - 1.0)) / u
    c = c if a < 9007199254740992.0 else 0.0
    bits = bits_of(u)
    m_bits = (bits & np.uint64(0xFFFFFFFFFFFFF)) | np.uint64(0x3FF0000000000000)
    upper = m_bits >= np.uint64(0x3FF6A09E667F3BCD)
    m = number_of(m_bits)
    f = (m * 0.5 if upper else m) - 1.0
    e = np.float64(np.int64(bits >> np.uint64(52)) - np.int64(1023) + np.int64(upper))
    s = f / (2.0 + f)
    z = s * s
    p = _ATANH[11] * z + _ATANH[10]
    p = p * z + _ATANH[9]
    p = p * z + _ATANH[8]
    p = p * z + _ATANH[7]
    p = p * z + _ATANH[6]
    p = p * z + _ATANH[5]
    p = p * z + _ATANH[4]
    p = p * z + _ATANH[3]
    p = p * z + _ATANH[2]
    p = p * z + _ATANH[1]
    p = p * z + _ATANH[0]
    y = e * _LN2_HIGH + ((2.0 * s) * p + (e * _LN2_LOW + c))
    return number_of((bits_of(y) & np.uint64(0x7FFFFFFFFFFFFFFF)) | (bits_of(x) & np.uint64(0x8000000000000000)))


@_kernel
def _at_most(bounds, n, x):
    """How many of the ascending bounds are at most x."""
    low, high = np.int64(0), n
    while low < high:
        middle = (low + high) >> 1
        if load_f64(bounds + 8 * middle) <= x:
            low = middle + 1
        else:
            high = middle
    return low


@_kernel
def _read(step, begin, n, x):
    """Numbers as float64; NaN where they are not valid."""
    at = step.values + step.width * begin
    if step.floating and step.width == 8:
        for j in range(n):
            x[j] = load_f64(at + 8 * j)
    elif step.floating:
        for j in range(n):
            x[j] = np.float64(load_f32(at + 4 * j))
    elif step.width == 8:
        for j in range(n):
            x[j] = np.float64(load_i64(at + 8 * j))
    else:
        for j in range(n):
            x[j] = np.float64(load_i32(at + 4 * j))
    if step.valid != 0:
        for j in range(n):
            if not _valid(step, begin + j):
                x[j] = np.nan


@_inline
def _numbers(step, begin, end, counts, x, null):
    low, high, least, most = step.low, step.high, step.least, step.most
    shift, factor, filler, rule = step.of_shift, step.factor, np.float32(step.filler), step.range_rule
    for first in range(begin, end, _TOGETHER):
        n = min(_TOGETHER, end - first)
        _read(step, first, n, x)
        nulls, beyond = 0, 0
        for j in range(n):
            missing = x[j] != x[j]
            v = 0.0 if missing else x[j]
            below, above = (v < low) & (not missing), (v > high) & (not missing)
            nulls += missing
            beyond += below | above
            if rule == 1:
                v = low if below else (high if above else v)
            if rule == 2:
                missing = missing | below | above
            v = high if v > _FLOAT32_MAX else (low if v < -_FLOAT32_MAX else v)
            v = least if v < least else v
            v = most if v > most else v
            x[j] = v + 0.0
            null[j] = missing
        counts[0] += nulls
        counts[1] += beyond
        if step.log:
            for j in range(n):
                x[j] = _log1p(x[j])
        if step.n_knots == 0:
            for j in range(n):
                x[j] = (x[j] - shift) / factor
        elif step.n_knots == 1:
            for j in range(n):
                x[j] = load_f64(step.levels)
        else:
            for j in range(n):
                left = min(max(_at_most(step.knots, step.n_knots, x[j]) - 1, 0), step.n_knots - 2)
                a, b = load_f64(step.knots + 8 * left), load_f64(step.knots + 8 * left + 8)
                low_level, high_level = load_f64(step.levels + 8 * left), load_f64(step.levels + 8 * left + 8)
                x[j] = low_level + (x[j] - a) / (b - a) * (high_level - low_level)
        at = step.out + first * step.stride
        for j in range(n):
            v = x[j]
            v = _FLOAT32_MAX if v > _FLOAT32_MAX else (-_FLOAT32_MAX if v < -_FLOAT32_MAX else v)
            store_f32(at + j * step.stride, filler if null[j] else np.float32(v))
        if step.indicator:
            for j in range(n):
                store_f32(at + j * step.stride + 4, np.float32(1.0 if null[j] else 0.0))


@_inline
def _buckets(step, begin, end, counts, x):
    for first in range(begin, end, _TOGETHER):
        n = min(_TOGETHER, end - first)
        _read(step, first, n, x)
        for j in range(n):
            row = np.int32(0)
            if x[j] == x[j]:
                row = np.int32(step.first_row + _at_most(step.knots, step.n_knots, x[j]))
            else:
                counts[0] += 1
            store_i32(step.out + (first + j) * step.stride, row)


# ---- steps -----------------------------------------------------------------------------------------------------------


@_inline
def _hashes(step, begin, end):
    for i in range(begin, end):
        if step.op == HASH_INTS:
            h = _hash_int(load_i64(step.values + 8 * i), step.seed)
        else:
            start = _offset(step, i)
            h = _hash_bytes(step.values + start, _offset(step, i + 1) - start, step.seed)
        store_u64(step.out + i * step.stride, h)


@_kernel
def run(steps, begin, end, counts):
    """Go through the steps for the rows from `begin` to `end`.

    Parameters
    ----------
    steps : ndarray of STEP, shape (s,)
    begin, end : int
    counts : ndarray of int64, shape (s, 2)
        Nulls, and values that were unseen or out of range, are added.
    """
    words = np.empty((4, _TOGETHER), np.uint64)
    x, null = np.empty(_TOGETHER, np.float64), np.empty(_TOGETHER, np.bool_)
    for low in range(begin, end, _ROWS):
        high = min(low + _ROWS, end)
        for s in range(len(steps)):
            step = steps[s]
            if step.op == TEXT_IDS and step.index != 0:
                _known_texts(step, low, high, counts[s], words)
            elif step.op == TEXT_IDS:
                _hashed_texts(step, low, high, counts[s])
            elif step.op == INT_IDS:
                _int_ids(step, low, high, counts[s])
            elif step.op == NUMBER:
                _numbers(step, low, high, counts[s], x, null)
            elif step.op == BUCKET:
                _buckets(step, low, high, counts[s], x)
            else:
                _hashes(step, low, high)


@_entry
def fill_index(steps):
    """Fill the index of each step of INDEX_TEXTS or INDEX_INTS, whose `rows` are values; how many stand twice."""
    twice = 0
    for s in range(len(steps)):
        step = steps[s]
        twice += _index_texts(step, step.rows) if step.op == INDEX_TEXTS else _index_ints(step, step.rows)
    return twice
