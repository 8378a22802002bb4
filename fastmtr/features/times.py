"""Features of points in time: cycles of the clock, time since a moment, and since each event of a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import array_times
from fastmtr.features.accumulators import NumberSummary
from fastmtr.features.array_times import Clock, Cycle
from fastmtr.features.columns import TickLists, Ticks
from fastmtr.features.operators import clock_of, damaged, readers, refuse_nulls
from fastmtr.features.scales import Scale, signed_log1p
from fastmtr.schema import Feature, Schema

__all__ = ["Cyclic", "Gaps", "ObservedCycle", "ObservedGaps", "ObservedRecency", "Recency"]


class Cyclic(msgspec.Struct, frozen=True, kw_only=True):
    """Sine and cosine of where the clock stands in the day, the week or the year; null gives 0, 0."""

    name: str
    part: Cycle
    clock: Clock
    nulls: Literal["fill", "error"] = "fill"
    width: int = 2

    @classmethod
    def of(cls, feature: Feature, schema: Schema) -> Cyclic:
        """The operator of a feature; it learns nothing."""
        part = str(feature.derive).removesuffix("_cycle")
        assert part in get_args(Cycle)
        return cls(name=feature.name, part=part, clock=clock_of(schema), nulls=feature.nulls)  # type: ignore[arg-type]

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The two numbers of each row, shape (n, 2)."""
        ticks: Ticks
        (ticks,) = columns
        refuse_nulls(self.name, self.nulls, ticks.valid)
        found: NDArray[np.float32] = array_times.cycle(ticks.values, self.part, self.clock).astype(np.float32)
        found[~ticks.valid] = 0
        return found

    def null(self) -> NDArray[np.float32]:
        """The middle of the circle."""
        return np.zeros(2, np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds; there are no arrays."""
        return {"part": self.part, "nulls": self.nulls}, {}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Cyclic:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        found = cls.of(feature, schema)
        if head != found.state()[0]:
            raise SchemaError(damaged(feature.name, head))
        return found


class ObservedCycle:
    """Where the clock stood so far, from 0 to 1 within the period."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.reads = readers(feature, schema)
        self.summary = NumberSummary()
        self._cyclic = Cyclic.of(feature, schema)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        ticks: Ticks
        (ticks,) = columns
        phase = array_times.phase(ticks.values, self._cyclic.part, self._cyclic.clock)
        self.summary.update(np.where(ticks.valid, phase, np.nan), weights)

    def fit(self, encoders: Mapping[str, Any]) -> Cyclic:
        """The operator, which needs none of it."""
        return self._cyclic


class Recency(msgspec.Struct, frozen=True, kw_only=True):
    """The seconds from a moment to the clock, scaled; null where either is, 0 where the moment lies in the future."""

    scale: Scale
    clock: Clock

    @property
    def width(self) -> int:
        """Columns of the packed matrix."""
        return self.scale.width

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The scaled time of each row, shape (n, width)."""
        return self.scale.encode(_since(columns, self.clock))

    def null(self) -> NDArray[np.float32]:
        """The fitted mean."""
        return self.scale.null()

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        return self.scale.state()

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Recency:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        return cls(scale=Scale.from_state(feature, head, arrays), clock=clock_of(schema))


class ObservedRecency:
    """The times since a moment so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature, self.clock = feature, clock_of(schema)
        self.reads = readers(feature, schema)
        self.summary = _summary(feature)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        self.summary.update(_since(columns, self.clock), weights)

    def fit(self, encoders: Mapping[str, Any]) -> Recency:
        """What they teach."""
        return Recency(scale=Scale.fit(self.feature, self.summary), clock=self.clock)


class Gaps(msgspec.Struct, frozen=True, kw_only=True):
    """The logarithm of 1 + the seconds since each event of a history, scaled; 0 where there is no event."""

    scale: Scale
    clock: Clock
    width: int

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The numbers of each row, shape (n, width)."""
        logarithms, known = _gaps(columns, self.clock, length=self.width)
        scaled = self.scale.encode(logarithms.reshape(-1))[:, 0].reshape(logarithms.shape)
        return np.where(known, scaled, np.float32(0))

    def null(self) -> NDArray[np.float32]:
        """No events."""
        return np.zeros(self.width, np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head, arrays = self.scale.state()
        return head | {"length": self.width}, arrays

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Gaps:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        of_scale = dict(head)
        if of_scale.pop("length", None) != feature.length:
            raise SchemaError(damaged(feature.name, head))
        scale = Scale.from_state(feature, of_scale, arrays)
        return cls(scale=scale, clock=clock_of(schema), width=feature.length)


class ObservedGaps:
    """The gaps of a history so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature, self.clock = feature, clock_of(schema)
        self.reads = readers(feature, schema)
        self.summary = _summary(feature)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        logarithms, known = _gaps(columns, self.clock, length=self.feature.length)
        of_event = None if weights is None else np.broadcast_to(weights[:, None], known.shape)[known]
        self.summary.update(logarithms[known], of_event)

    def fit(self, encoders: Mapping[str, Any]) -> Gaps:
        """What they teach."""
        scale = Scale.fit(self.feature, self.summary)
        return Gaps(scale=scale, clock=self.clock, width=self.feature.length)


def _summary(feature: Feature) -> NumberSummary:
    return NumberSummary(transform=signed_log1p if feature.scaling == "log1p" else None)


def _since(columns: Sequence[Any], clock: Clock) -> NDArray[np.float64]:
    then: Ticks
    now: Ticks
    then, now = columns
    seconds = array_times.elapsed(now.values, then.values, clock.ticks_per_second)
    return np.where(then.valid & now.valid, seconds, np.nan)


def _gaps(columns: Sequence[Any], clock: Clock, *, length: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    events: TickLists
    now: Ticks
    events, now = columns
    seconds, known = array_times.gaps(
        events.ticks.values,
        events.ticks.valid,
        events.offsets,
        now.values,
        ticks_per_second=clock.ticks_per_second,
        length=length,
    )
    return array_times.log1p(seconds), known & now.valid[:, None]
