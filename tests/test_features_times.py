"""Points in time against datetime and math, at the ends of the range, too."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features import array_times
from fastmtr.features.array_times import CYCLES, Clock

INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0, -1, 86_399, 86_400])
CLOCKS = st.builds(
    Clock, st.sampled_from([1, 1000, 10**6, 10**9]), st.integers(-24 * 60, 24 * 60).map(lambda m: 60 * m)
)


@given(st.lists(INT64, min_size=1, max_size=10), CLOCKS)
def test_parts_of_the_clock_are_exact(ticks: list[int], clock: Clock) -> None:
    column = np.array(ticks, np.int64)
    found = {part: array_times.clock_part(column, part, clock).tolist() for part in array_times.PARTS}
    for i, tick in enumerate(ticks):
        hours = (tick // clock.ticks_per_second + clock.offset) // 3600
        assert found["hour"][i] == hours % 24
        assert found["weekday"][i] == (hours // 24 + 3) % 7
        assert found["hour_of_week"][i] == (hours + 3 * 24) % 168


def test_parts_of_the_clock_are_those_of_datetime() -> None:
    rng = np.random.default_rng(0)
    ticks = rng.integers(-(10**9), 4 * 10**9, 200)
    zone = datetime.timezone(datetime.timedelta(hours=-3.5))
    clock = Clock(1, -12_600)
    hours, weekdays, both = (array_times.clock_part(ticks, part, clock) for part in ("hour", "weekday", "hour_of_week"))
    for i, tick in enumerate(ticks.tolist()):
        local = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=tick)
        local = local.astimezone(zone)
        assert (hours[i], weekdays[i], both[i]) == (local.hour, local.weekday(), local.weekday() * 24 + local.hour)


@given(st.lists(INT64, min_size=1, max_size=10), CLOCKS, st.sampled_from(sorted(CYCLES)))
def test_a_cycle_is_the_sine_and_cosine_of_the_phase(ticks: list[int], clock: Clock, kind: str) -> None:
    found = array_times.cycle(np.array(ticks, np.int64), kind, clock)  # type: ignore[arg-type]
    period, shift = CYCLES[kind].period, CYCLES[kind].shift  # type: ignore[index]
    for (sine, cosine), tick in zip(found, ticks, strict=True):
        angle = 2 * math.pi * ((tick // clock.ticks_per_second + shift + clock.offset) % period) / period
        # math.sin sees an angle that is rounded.
        assert sine == pytest.approx(math.sin(angle), abs=2e-15)
        assert cosine == pytest.approx(math.cos(angle), abs=2e-15)


def test_sines_of_whole_eighths_are_as_good_as_exact() -> None:
    found = array_times.sincos(np.arange(8) / 8)
    half = math.sqrt(0.5)
    expected = [[0, 1], [half, half], [1, 0], [half, -half], [0, -1], [-half, -half], [-1, 0], [-half, half]]
    assert np.abs(found - expected).max() < 2e-16
    fine = np.linspace(0, 1, 10_001)[:-1]
    assert np.abs((array_times.sincos(fine) ** 2).sum(axis=1) - 1).max() < 5e-16


@given(st.lists(st.floats(0, 1.7976931348623157e308), min_size=1, max_size=20))
def test_the_logarithm_is_good_to_the_last_bits(numbers: list[float]) -> None:
    found = array_times.log1p(np.array([*numbers, 0.0, 2.0**53, np.sqrt(2) - 1, 5e-324]))
    assert found[-4] == 0
    np.testing.assert_allclose(found, np.log1p([*numbers, 0.0, 2.0**53, np.sqrt(2) - 1, 5e-324]), rtol=5e-16)


@given(st.lists(st.tuples(INT64, INT64), min_size=1, max_size=10), st.sampled_from([1, 1000, 10**9]))
def test_elapsed_time_saturates_and_is_never_negative(pairs: list[tuple[int, int]], per_second: int) -> None:
    now, then = np.array(pairs, np.int64).T
    found = array_times.elapsed(now, then, per_second)
    for seconds, (a, b) in zip(found.tolist(), pairs, strict=True):
        difference = max(min(a - b, 2**63 - 1), -(2**63))
        assert seconds == max(float(difference) / per_second, 0.0)


@given(
    st.lists(st.tuples(INT64, st.lists(INT64 | st.none(), max_size=5)), max_size=6),
    st.integers(1, 4),
)
def test_gaps_keep_their_places(rows: list[tuple[int, list[int | None]]], length: int) -> None:
    flat = [tick for _, events in rows for tick in events]
    offsets = np.cumsum([0, *(len(events) for _, events in rows)])
    seconds, known = array_times.gaps(
        np.array([tick or 0 for tick in flat], np.int64),
        np.array([tick is not None for tick in flat], bool),
        offsets,
        np.array([clock for clock, _ in rows], np.int64),
        ticks_per_second=1000,
        length=length,
    )
    assert seconds.shape == known.shape == (len(rows), length)
    for i, (clock, events) in enumerate(rows):
        kept = events[:length]
        kept += [None] * (length - len(kept))
        assert known[i].tolist() == [tick is not None for tick in kept]
        for tick, found in zip(kept, seconds[i].tolist(), strict=True):
            assert found == (0 if tick is None else max(float(min(clock - tick, 2**63 - 1)) / 1000, 0))
