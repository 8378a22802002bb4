"""What was known of a user or an item at a moment: its last events, and its past rates. Strictly earlier events only.

Everything is one sorted array of events and binary searches into it, so a log of millions of rows takes seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["HistoryRules", "PastEvents", "PastRates", "Span"]


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


class Span(NamedTuple):
    """Which of the sorted events came before a moment, for n owners.

    Attributes
    ----------
    start, end : ndarray of int64, shape (n,)
        The owner's, within the window if there is one.
    all : ndarray of int64, shape (n,)
        How many events of anybody, however long ago.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    all: NDArray[np.int64]


class PastEvents:
    """Events of many owners, each owner's in time order.

    Parameters
    ----------
    owners : ndarray of int64, shape (m,)
        Whose event: a row number from 0 on. Negative: nobody's.
    times : ndarray of int64, shape (m,)
        When it became known.
    payload : ndarray of int64, shape (m,)
        What happened (an item's row); breaks ties in time, so that the order of the rows does not matter.
    """

    def __init__(self, owners: NDArray[np.int64], times: NDArray[np.int64], payload: NDArray[np.int64]) -> None:
        self.in_time: NDArray[np.int64] = np.lexsort((payload, times))
        self.by_owner: NDArray[np.int64] = self.in_time[np.argsort(owners[self.in_time], kind="stable")]
        self._payload = np.append(payload[self.by_owner], -1)
        self._own_times = np.append(times[self.by_owner], 0)
        self._times = times[self.in_time]
        # Times become ranks, so that (owner, time) fits one integer that sorts the same way.
        self._stride = len(times) + 1
        sorted_owners = owners[self.by_owner]
        self._keys = sorted_owners * self._stride + np.searchsorted(self._times, self._own_times[:-1])
        most = int(sorted_owners[-1]) if len(owners) else -1
        self._starts = np.searchsorted(sorted_owners, np.arange(max(most, -1) + 2))

    def before(self, moments: NDArray[np.int64], owners: NDArray[np.int64], *, window: int | None = None) -> Span:
        """The events of each owner that are strictly earlier than a moment; nobody (below 0) has none.

        Parameters
        ----------
        moments, owners : ndarray of int64, shape (n,)
        window : int, optional
            Only those that are at most so many ticks older than the moment.
        """
        rank = np.searchsorted(self._times, moments)
        end = np.searchsorted(self._keys, owners * self._stride + rank)
        if window is None:
            start = self._starts[np.clip(owners, 0, len(self._starts) - 1)]
        else:
            # No subtraction below the least integer.
            since = np.maximum(moments, np.iinfo(np.int64).min + window) - window
            start = np.searchsorted(self._keys, owners * self._stride + np.searchsorted(self._times, since))
        return Span(start, np.where(owners < 0, start, end), rank)

    def last(self, span: Span, *, length: int) -> NDArray[np.int64]:
        """The payload of the last events of a span, newest first, -1 beyond them; shape (n, length)."""
        result: NDArray[np.int64] = self._payload[self._places(span, length)]
        return result

    def last_times(self, span: Span, *, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """When the events of :meth:`last` were, and which places hold one; both of shape (n, length)."""
        places = self._places(span, length)
        return self._own_times[places], places >= 0

    def _places(self, span: Span, length: int) -> NDArray[np.int64]:
        places = span.end[:, None] - np.arange(1, length + 1)
        places[places < span.start[:, None]] = -1
        return places


class PastRates:
    """Smoothed rates of one outcome for many owners, as of any moment.

    With n events of an owner (within the span's window) summing to s, and the mean m over all events so far (of
    anybody, however long ago), the rate is ``(s + strength * m) / (n + strength)``.

    Parameters
    ----------
    events : PastEvents
    outcomes : ndarray of float, shape (m,)
        One an event, in the order in which the events were given. NaN: not known, left out.
    strength : float
        How many events of the mean each owner starts with.
    """

    def __init__(self, events: PastEvents, outcomes: NDArray[np.floating], *, strength: float) -> None:
        known = ~np.isnan(outcomes)
        summands = np.where(known, outcomes, 0.0)
        self._counts, self._all_counts = (_cumulative(known[order]) for order in (events.by_owner, events.in_time))
        self._sums, self._all_sums = (_cumulative(summands[order]) for order in (events.by_owner, events.in_time))
        self._strength = strength

    def at(self, span: Span, *, statistic: Literal["log_odds", "rate", "count"]) -> NDArray[np.float64]:
        """The statistic of the events of a span, shape (n,); NaN where nothing at all is known yet."""
        count = self._counts[span.end] - self._counts[span.start]
        if statistic == "count":
            return count
        everything = self._all_counts[span.all]
        mean = np.divide(self._all_sums[span.all], everything, out=np.full(len(count), np.nan), where=everything > 0)
        total = self._sums[span.end] - self._sums[span.start]
        rate: NDArray[np.float64] = (total + self._strength * mean) / (count + self._strength)
        if statistic == "rate":
            return rate
        # Half an event of each kind keeps the odds of a task that never happened so far finite.
        floor = 0.5 / (everything + 1)
        rate = np.clip(rate, floor, 1 - floor)
        result: NDArray[np.float64] = np.log(rate) - np.log1p(-rate)
        return result


def _cumulative(x: NDArray[Any]) -> NDArray[np.float64]:
    result = np.zeros(len(x) + 1)
    np.cumsum(x, out=result[1:])
    return result
