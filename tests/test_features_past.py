"""What was known of somebody at a moment: checked against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features.past import PastEvents, PastRates

EVENT = st.tuples(st.integers(-1, 3), st.integers(-5, 5), st.integers(0, 9), st.sampled_from([0.0, 1.0, math.nan]))
QUERY = st.tuples(st.integers(-1, 4), st.sampled_from([-(2**63), -6, -2, 0, 1, 5, 6, 2**63 - 1]))


def _columns(rows: list[tuple[int, ...]], n: int) -> list[np.ndarray]:
    return [np.array([row[i] for row in rows], np.int64) for i in range(n)]


WINDOW = st.none() | st.sampled_from([1, 3, 7, 2**62, 2**63 - 1])


@given(st.lists(EVENT, max_size=30), st.lists(QUERY, max_size=10), WINDOW)
def test_last_events(
    events: list[tuple[int, int, int, float]], queries: list[tuple[int, int]], window: int | None
) -> None:
    owners, times, payload = _columns(events, 3)
    asked, before = _columns(queries, 2)
    past = PastEvents(owners, times, payload)
    span = past.before(before, asked, window=window)
    found, (moments, there) = past.last(span, length=3), past.last_times(span, length=3)
    assert found.shape == moments.shape == there.shape == (len(queries), 3)
    for i, (owner, moment) in enumerate(queries):
        least = -(2**63) if window is None else moment - window
        own = sorted((t, p) for o, t, p, _ in events if o == owner and o >= 0 and least <= t < moment)[::-1][:3]
        assert found[i].tolist() == [p for _, p in own] + [-1] * (3 - len(own))
        assert moments[i][there[i]].tolist() == [t for t, _ in own]
        assert there[i].tolist() == [k < len(own) for k in range(3)]


@given(st.lists(EVENT, max_size=30), st.lists(QUERY, max_size=10), WINDOW)
def test_rates(events: list[tuple[int, int, int, float]], queries: list[tuple[int, int]], window: int | None) -> None:
    owners, times, payload = _columns(events, 3)
    outcomes = np.array([event[3] for event in events])
    asked, before = _columns(queries, 2)
    index = PastEvents(owners, times, payload)
    past, span = PastRates(index, outcomes, strength=2.0), index.before(before, asked, window=window)
    counts, rates, odds = (past.at(span, statistic=s) for s in ("count", "rate", "log_odds"))
    for i, (owner, moment) in enumerate(queries):
        known = [(o, y, t) for o, t, _, y in events if t < moment and not math.isnan(y)]
        own = [y for o, y, t in known if o == owner and o >= 0 and (window is None or t >= moment - window)]
        assert counts[i] == len(own)
        if not known:
            assert np.isnan([rates[i], odds[i]]).all()
            continue
        mean = sum(y for _, y, _ in known) / len(known)
        rate = (sum(own) + 2 * mean) / (len(own) + 2)
        assert rates[i] == pytest.approx(rate)
        floor = 0.5 / (len(known) + 1)
        kept = min(max(rate, floor), 1 - floor)
        assert odds[i] == pytest.approx(math.log(kept / (1 - kept)))


@given(st.lists(EVENT, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(events: list[tuple[int, int, int, float]], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    asked, before = np.arange(4), np.full(4, 3)
    indexes = [PastEvents(*_columns(rows, 3)) for rows in (events, shuffled)]
    results = [each.last(each.before(before, asked), length=5).tolist() for each in indexes]
    assert results[0] == results[1]
