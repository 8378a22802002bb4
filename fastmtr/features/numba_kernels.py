"""Batches of columns by Numba: the ids of categories and the scales of numbers, from Arrow's buffers without a copy,
straight into the rows of a packed matrix.

A :data:`STEP` says what one column becomes; :func:`run` goes through many of them, block by block, so that the rows it
writes stay in the cache. It holds no lock: several threads may each do their part of the rows. The results are those of
:mod:`fastmtr.features.categories`, ``scales`` and ``made_categories``, bit for bit: nothing is reassociated, no product
and sum is fused.
"""

from __future__ import annotations

import numpy as np

from fastmtr.features.numba_index import BLOCK, ROWS, hash_values, hashed_ids, known_ids, null_flags
from fastmtr.features.numba_memory import (
    bits_of,
    item_f32,
    item_f64,
    item_i32,
    item_i64,
    kernel,
    load_f64,
    number_of,
    prefetch_lines,
    store_f32,
    store_i32,
)

__all__ = ["BUCKET", "FLOAT32_MAX", "HASH", "IDS", "NUMBER", "STEP", "log1p", "read_numbers", "run"]

# What a step does.
IDS, NUMBER, BUCKET, HASH = range(4)
# Those of numba_lists, numba_text and numba_times.
GATHER, LIST, VECTOR, TEXT_LIST, WORDS, TFIDF, CLOCK_PART, CYCLE, SINCE, GAPS = range(4, 14)

STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "op",
            "values",  # address of whole numbers or numbers, or of the bytes of texts
            "limit",  # the end of these bytes
            "width",  # of values: 8 or 4 bytes; of texts: of their offsets
            "floating",  # numbers are floats
            "offsets",  # of texts; 0: the values are whole numbers
            "valid",  # address of Arrow's bitmap of valid rows; 0: all are
            "first_bit",
            "out",
            "stride",
            "index",  # address of the buckets of a vocabulary; 0: the values are hashed
            "buckets",
            "known",  # address of the vocabulary's bytes
            "known_offsets",
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

FLOAT32_MAX = float(np.finfo(np.float32).max)
_LN2_HIGH, _LN2_LOW = (float(np.uint64(b).view(np.float64)) for b in (0x3FE62E42FEE00000, 0x3DEA39EF35793C76))
_ATANH = tuple(1.0 / (2 * i + 1) for i in range(12))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@kernel
def log1p(x):
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


@kernel
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


@kernel
def read_numbers(step, begin, n, x, null):
    """Numbers as float64; NaN where they are not valid."""
    at = step.values + step.width * begin
    prefetch_lines(at + step.width * ROWS, step.width * n)
    if step.floating and step.width == 8:
        for j in range(n):
            x[j] = item_f64(at, j)
    elif step.floating:
        for j in range(n):
            x[j] = np.float64(item_f32(at, j))
    elif step.width == 8:
        for j in range(n):
            x[j] = np.float64(item_i64(at, j))
    else:
        for j in range(n):
            x[j] = np.float64(item_i32(at, j))
    if null_flags(step, begin, n, null):
        for j in range(n):
            x[j] = np.nan if null[j] else x[j]


@kernel
def _numbers(step, begin, end, counts, x, y, null):
    low, high, least, most = step.low, step.high, step.least, step.most
    shift, factor, filler, rule = step.of_shift, step.factor, np.float32(step.filler), step.range_rule
    for first in range(begin, end, BLOCK):
        n = min(BLOCK, end - first)
        read_numbers(step, first, n, x, null)
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
            v = high if v > FLOAT32_MAX else (low if v < -FLOAT32_MAX else v)
            v = least if v < least else v
            v = most if v > most else v
            x[j] = v + 0.0
            null[j] = missing
        counts[0] += nulls
        counts[1] += beyond
        if step.log:
            for j in range(n):
                x[j] = log1p(x[j])
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
        for j in range(n):
            v = x[j]
            v = FLOAT32_MAX if v > FLOAT32_MAX else (-FLOAT32_MAX if v < -FLOAT32_MAX else v)
            y[j] = filler if null[j] else np.float32(v)
        stride = step.stride
        at = step.out + first * stride
        for j in range(n):
            store_f32(at + j * stride, y[j])
        if step.indicator:
            for j in range(n):
                store_f32(at + j * step.stride + 4, np.float32(1.0 if null[j] else 0.0))


@kernel
def _buckets(step, begin, end, counts, x, null):
    for first in range(begin, end, BLOCK):
        n = min(BLOCK, end - first)
        read_numbers(step, first, n, x, null)
        for j in range(n):
            row = np.int32(0)
            if x[j] == x[j]:
                row = np.int32(step.first_row + _at_most(step.knots, step.n_knots, x[j]))
            else:
                counts[0] += 1
            store_i32(step.out + (first + j) * step.stride, row)


# ---- steps -----------------------------------------------------------------------------------------------------------


@kernel
def run(step, low, high, counts, block, x, y, null):
    """Go through a step for the rows from `low` to `high`."""
    if step.op == NUMBER:
        _numbers(step, low, high, counts, x, y, null)
    elif step.op == BUCKET:
        _buckets(step, low, high, counts, x, null)
    else:
        for first in range(low, high, BLOCK):
            n = min(BLOCK, high - first)
            if step.op == HASH:
                hash_values(step, first, n, block)
            elif step.index != 0:
                nulls, unseen = known_ids(step, first, n, block, null)
                counts[0] += nulls
                counts[1] += unseen
            else:
                counts[0] += hashed_ids(step, first, n, block, null)
