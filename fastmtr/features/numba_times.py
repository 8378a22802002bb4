"""Points in time by Numba: the operations of :mod:`fastmtr.features.array_times`, in their order, number by number."""

from __future__ import annotations

import numpy as np

from fastmtr.features.array_times import _COS, _EIGHTH, _SIN
from fastmtr.features.numba_index import is_valid
from fastmtr.features.numba_kernels import log1p
from fastmtr.features.numba_memory import kernel, load_i64, load_u8, store_f32, store_f64, store_i64

__all__ = ["clock_parts", "cycles", "gaps", "since"]

_INT64 = np.iinfo(np.int64)
_LEAST, _MOST = np.int64(_INT64.min), np.int64(_INT64.max)


@kernel
def _within(step, tick):
    return (tick // step.ticks_per_second % step.period + step.ahead) % step.period


@kernel
def clock_parts(step, begin, end):
    """Write the hour, weekday or hour of the week of each tick as a whole number."""
    for i in range(begin, end):
        store_i64(step.out + i * step.stride, _within(step, load_i64(step.values + 8 * i)) // step.unit)


@kernel
def _horner(coefficients, z):
    p = coefficients[0]
    for i in range(1, len(coefficients)):
        p = p * z + coefficients[i]
    return p


@kernel
def cycles(step, begin, end, counts):
    """Write sine and cosine of each tick's place in the period."""
    for i in range(begin, end):
        out = step.out + i * step.stride
        if not is_valid(step, i):
            counts[0] += 1
            store_f32(out, np.float32(0.0))
            store_f32(out + 4, np.float32(0.0))
            continue
        place = _within(step, load_i64(step.values + 8 * i))
        t = 8.0 * (np.float64(place) / np.float64(step.period))
        octant = np.int64(t)
        r = t - np.float64(octant)
        if octant & 1:
            r = 1.0 - r
        a = r * _EIGHTH
        z = a * a
        s, c = _horner(_SIN, z) * a, _horner(_COS, z)
        if (octant + 1) & 2 == 2:
            s, c = c, s
        store_f32(out, np.float32(-s if octant >= 4 else s))
        store_f32(out + 4, np.float32(-c if (octant + 2) & 4 == 4 else c))


@kernel
def _has_now(step, i):
    bit = step.now_bit + i
    return step.now_valid == 0 or ((load_u8(step.now_valid + (bit >> 3)) >> (bit & 7)) & 1) != 0


@kernel
def _elapsed(now, then, ticks_per_second):
    difference = now - then
    if ((now ^ then) & (now ^ difference)) < 0:
        difference = _LEAST if now < 0 else _MOST
    return max(np.float64(difference) / np.float64(ticks_per_second), 0.0)


@kernel
def since(step, begin, end):
    """Write the seconds from each tick to the clock as float64, NaN where either is null."""
    for i in range(begin, end):
        seconds = np.nan
        if is_valid(step, i) and _has_now(step, i):
            seconds = _elapsed(load_i64(step.now + 8 * i), load_i64(step.values + 8 * i), step.ticks_per_second)
        store_f64(step.out + 8 * i, seconds)


@kernel
def gaps(step, begin, end):
    """Write log(1 + the seconds since each event), one column a place of the history; NaN where there is none."""
    for i in range(begin, end):
        start, after = load_i64(step.offsets + 8 * i), load_i64(step.offsets + 8 * i + 8)
        has_now = _has_now(step, i)
        for j in range(step.length):
            logarithm = np.nan
            if has_now and start + j < after and is_valid(step, start + j):
                then = load_i64(step.values + 8 * (start + j))
                logarithm = log1p(_elapsed(load_i64(step.now + 8 * i), then, step.ticks_per_second))
            store_f64(step.out + j * step.stride + 8 * i, logarithm)
