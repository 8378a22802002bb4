"""Points in time, column by column: parts of the clock, the place on a cycle, and gaps between two moments.

The sequence of operations is that of the native code, so the bits are the same.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = ["CYCLES", "PARTS", "Clock", "Cycle", "Part", "clock_part", "cycle", "elapsed", "gaps", "log1p", "sincos"]

_DAY, _WEEK, _YEAR = 86_400, 604_800, 31_556_952
# 1970-01-01 was a Thursday, and Monday is 0.
_MONDAY = 3 * _DAY

Part = Literal["hour", "weekday", "hour_of_week"]
Cycle = Literal["hour", "weekday", "year"]


class _Part(NamedTuple):
    """Seconds of the period, its beginning before 1970, and the seconds of one unit."""

    period: int
    shift: int
    unit: int


PARTS: dict[Part, _Part] = {
    "hour": _Part(_DAY, 0, 3600),
    "weekday": _Part(_WEEK, _MONDAY, _DAY),
    "hour_of_week": _Part(_WEEK, _MONDAY, 3600),
}
CYCLES: dict[Cycle, _Part] = {
    "hour": _Part(_DAY, 0, 1),
    "weekday": _Part(_WEEK, _MONDAY, 1),
    "year": _Part(_YEAR, 0, 1),
}


class Clock(NamedTuple):
    """What ticks mean: how many a second, and local time minus UTC in seconds."""

    ticks_per_second: int
    offset: int


def clock_part(ticks: Any, part: Part, clock: Clock) -> Any:
    """The local hour (0-23), weekday (Monday 0) or hour of the week (0-167) of each tick.

    Parameters
    ----------
    ticks : ndarray of int64
    part : {"hour", "weekday", "hour_of_week"}
    clock : Clock

    Returns
    -------
    ndarray of int64
    """
    return _within(ticks, PARTS[part], clock) // PARTS[part].unit


def cycle(ticks: Any, kind: Cycle, clock: Clock) -> Any:
    """Sine and cosine of where each tick lies in the day, the week or the (mean Gregorian) year.

    Returns
    -------
    ndarray of float64, shape (n, 2)
    """
    return sincos(phase(ticks, kind, clock))


def phase(ticks: Any, kind: Cycle, clock: Clock) -> Any:
    """Where each tick lies in the day, the week or the year, float64 in [0, 1)."""
    place = _within(ticks, CYCLES[kind], clock)
    return place.astype(np.float64) / float(CYCLES[kind].period)


def _within(ticks: Any, part: _Part, clock: Clock) -> Any:
    # The first remainder keeps the sum far from the ends of int64.
    return (ticks // clock.ticks_per_second % part.period + (part.shift + clock.offset)) % part.period


_SIN = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(17, 0, -2))
_COS = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(16, -1, -2))
_EIGHTH = math.pi / 4


def sincos(phase: Any) -> Any:
    """Sine and cosine of ``2 pi phase``, by Taylor's series in the eighth of a turn: the same bits on any machine.

    Parameters
    ----------
    phase : ndarray of float64, shape (n,)
        In [0, 1).

    Returns
    -------
    ndarray of float64, shape (n, 2)
    """
    t = 8.0 * phase
    octant = t.astype(np.int64)
    r = t - octant
    r = np.where(octant & 1 == 1, 1.0 - r, r)
    a = r * _EIGHTH
    z = a * a
    s, c = _horner(_SIN, z) * a, _horner(_COS, z)
    swapped = (octant + 1) & 2 == 2
    sine, cosine = np.where(swapped, c, s), np.where(swapped, s, c)
    out = np.empty((len(phase), 2), np.float64)
    out[:, 0] = np.where(octant >= 4, -sine, sine)
    out[:, 1] = np.where((octant + 2) & 4 == 4, -cosine, cosine)
    return out


def _horner(coefficients: tuple[float, ...], z: Any) -> Any:
    p = coefficients[0] + 0.0 * z
    for coefficient in coefficients[1:]:
        p = p * z + coefficient
    return p


_ROOT_TWO = 0x3FF6A09E667F3BCD
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_ATANH = tuple(1.0 / (2 * i + 1) for i in range(11, -1, -1))


def log1p(a: Any) -> Any:
    """``log(1 + a)`` by the series of the inverse hyperbolic tangent: the same bits on any machine.

    Parameters
    ----------
    a : ndarray of float64
        Finite, at least 0.
    """
    u = 1.0 + a
    # What rounding took from 1 + a.
    c = np.where(a < 2.0**53, (a - (u - 1.0)) / u, 0.0)
    bits = u.view(np.int64)
    mantissa = bits & ((1 << 52) - 1) | (1023 << 52)
    upper = mantissa >= _ROOT_TWO
    e = ((bits >> 52) - 1023 + upper).astype(np.float64)
    m = mantissa.view(np.float64)
    f = np.where(upper, m * 0.5, m) - 1.0
    s = f / (2.0 + f)
    return e * _LN2_HIGH + ((2.0 * s) * _horner(_ATANH, s * s) + (e * _LN2_LOW + c))


def elapsed(now: Any, then: Any, ticks_per_second: int) -> Any:
    """Seconds from one tick to another, 0 where it lies in the future.

    Parameters
    ----------
    now, then : ndarray of int64, of shapes that broadcast

    Returns
    -------
    ndarray of float64
    """
    difference = now - then
    overflows = ((now ^ then) & (now ^ difference)) < 0
    ends = np.iinfo(np.int64)
    difference = np.where(overflows, np.where(now < 0, ends.min, ends.max), difference)
    return np.maximum(difference.astype(np.float64) / float(ticks_per_second), 0.0)


def gaps(ticks: Any, valid: Any, offsets: Any, clock: Any, *, ticks_per_second: int, length: int) -> tuple[Any, Any]:
    """How long ago the events of each row were.

    Parameters
    ----------
    ticks : ndarray of int64, shape (m,)
    valid : ndarray of bool, shape (m,)
        False: null, which keeps its place.
    offsets : ndarray of int64, shape (n + 1,)
        Where each row's events begin.
    clock : ndarray of int64, shape (n,)
    ticks_per_second, length : int
        Of a longer row the first ones are kept.

    Returns
    -------
    seconds : ndarray of float64, shape (n, length)
        0 where nothing is known.
    known : ndarray of bool, shape (n, length)
    """
    places = offsets[:-1, None] + np.arange(length)
    inside = places < offsets[1:, None]
    if not len(ticks):
        return np.zeros(inside.shape, np.float64), inside & False
    places = np.where(inside, places, 0)
    known = inside & valid[places]
    seconds = elapsed(clock[:, None], ticks[places], ticks_per_second)
    return np.where(known, seconds, 0.0), known
