"""What was known of a user or an item at a moment: its last events, and its past rates. Strictly earlier events only.

Everything is one sorted array of events and binary searches into it, so a log of millions of rows takes seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["HistoryRules", "PastEvents", "PastRates"]


class HistoryRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[history]`` section of a configuration: how the features that the log makes see the past.

    Validation and test samples see users and items as of the moment their part begins, which is what a bundle made then
    knows of them; so these rules are about training samples.

    Parameters
    ----------
    step : {"day", "event"}
        A training sample sees what was known when its day began (as one that is served from daily updated tables), or
        all that came before it.
    strength : float
        How many events of the overall mean smooth a rate.
    """

    step: Literal["day", "event"] = "day"
    strength: Annotated[float, msgspec.Meta(gt=0)] = 20.0


class PastEvents:
    """Events of many owners, each owner's in time order.

    Parameters
    ----------
    owners : ndarray of int64, shape (m,)
        Whose event: a row number from 0 on. Negative: nobody's, left out.
    times : ndarray of int64, shape (m,)
        When it became known.
    payload : ndarray of int64, shape (m,), optional
        What happened (an item's row); breaks ties in time, so that the order of the rows does not matter.
    """

    def __init__(
        self, owners: NDArray[np.int64], times: NDArray[np.int64], payload: NDArray[np.int64] | None = None
    ) -> None:
        tie = np.zeros(len(owners), np.int64) if payload is None else payload
        order = np.lexsort((tie, times, owners))
        self.order: NDArray[np.int64] = order[np.searchsorted(owners[order], 0) :]
        self._payload = tie[self.order]
        # Times become ranks, so that (owner, time) fits one integer that sorts the same way.
        self._times = np.unique(times)
        self._stride = len(self._times) + 1
        self._keys = owners[self.order] * self._stride + np.searchsorted(self._times, times[self.order])

    def span(self, owners: NDArray[np.int64], before: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the sorted events each owner's begin, and where those earlier than `before` end; shape (n,) each."""
        floor = owners * self._stride
        start = np.searchsorted(self._keys, floor)
        end = np.searchsorted(self._keys, floor + np.searchsorted(self._times, before))
        return start, end

    def last(self, owners: NDArray[np.int64], before: NDArray[np.int64], *, length: int) -> NDArray[np.int64]:
        """The payload of each owner's last events before a moment, newest first, -1 beyond them; shape (n, length)."""
        start, end = self.span(owners, before)
        places = end[:, None] - 1 - np.arange(length)
        there = (places >= start[:, None]) & (owners >= 0)[:, None]
        payload = np.append(self._payload, -1)
        result: NDArray[np.int64] = np.where(there, payload[np.where(there, places, -1)], -1)
        return result


class PastRates:
    """Smoothed rates of one outcome for many owners, as of any moment.

    With n events of an owner summing to s, and the mean m over all events so far, the rate is ``(s + strength * m) /
    (n + strength)``.

    Parameters
    ----------
    owners, times : ndarray of int64, shape (m,)
        As of :class:`PastEvents`.
    outcomes : ndarray of float, shape (m,)
        NaN: not known, left out.
    strength : float
        How many events of the mean each owner starts with.
    """

    def __init__(
        self, owners: NDArray[np.int64], times: NDArray[np.int64], outcomes: NDArray[np.floating], *, strength: float
    ) -> None:
        known = ~np.isnan(outcomes)
        summands = outcomes[known].astype(np.float64)
        # Equal times by outcome, so that no sum depends on the order of the rows.
        level = np.unique(summands, return_inverse=True)[1]
        self._events = PastEvents(owners[known], times[known], level)
        self._sums = _cumulative(summands[self._events.order])
        by_time = np.lexsort((level, times[known]))
        self._all_times = times[known][by_time]
        self._all_sums = _cumulative(summands[by_time])
        self._strength = strength

    def at(
        self, owners: NDArray[np.int64], before: NDArray[np.int64], *, statistic: Literal["log_odds", "rate", "count"]
    ) -> NDArray[np.float64]:
        """The statistic of each owner's events before a moment, shape (n,); NaN where nothing at all is known yet.

        An owner below 0 is nobody: it has the mean.
        """
        start, end = self._events.span(np.maximum(owners, 0), before)
        end = np.where(owners < 0, start, end)
        count = (end - start).astype(np.float64)
        if statistic == "count":
            return count
        everything = np.searchsorted(self._all_times, before)
        mean = np.divide(self._all_sums[everything], everything, out=np.full(len(count), np.nan), where=everything > 0)
        rate: NDArray[np.float64] = (self._sums[end] - self._sums[start] + self._strength * mean) / (
            count + self._strength
        )
        if statistic == "rate":
            return rate
        # Half an event of each kind keeps the odds of a task that never happened so far finite.
        floor = 0.5 / (everything + 1)
        rate = np.clip(rate, floor, 1 - floor)
        result: NDArray[np.float64] = np.log(rate) - np.log1p(-rate)
        return result


def _cumulative(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.zeros(len(x) + 1)
    np.cumsum(x, out=result[1:])
    return result
