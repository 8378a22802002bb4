"""What is common to operators: what they read, what they learn from, what they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features.array_times import Clock
from fastmtr.features.columns import Reader
from fastmtr.features.values import TICKS_A_SECOND
from fastmtr.schema import Feature, Schema

__all__ = ["Observer", "Operator", "clock_of", "damaged", "readers", "refuse_nulls"]


class Operator(Protocol):
    """How a feature of several numbers, or of several columns, becomes numbers once it is fitted."""

    @property
    def width(self) -> int:
        """Columns of the packed matrix."""
        ...

    def encode(self, columns: Sequence[Any]) -> NDArray[Any]:
        """The numbers (float32) of each row, shape (n, width), from the buffers of its :func:`readers`.

        SchemaError where a row is null and the feature's rule is nulls = "error".
        """
        ...

    def null(self) -> NDArray[Any]:
        """The numbers (float32) of a row that says nothing, shape (width,)."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        ...


class Observer(Protocol):
    """What was seen of a feature while it is fitted."""

    @property
    def reads(self) -> tuple[Reader, ...]:
        """The columns that it learns from: those of :func:`readers`, and perhaps others, such as labels."""
        ...

    def observe(self, columns: Sequence[Any], weights: NDArray[Any] | None) -> None:
        """Add a batch, each row as often as its weight says; a row of weight 0 leaves no trace."""
        ...

    def fit(self, encoders: Mapping[str, Any]) -> Any:
        """What was learned; `encoders` are those of plain features."""
        ...


def readers(feature: Feature, schema: Schema) -> tuple[Reader, ...]:
    """The raw columns of an operator, in the order in which it takes them; the schema's timestamp stands last."""
    if feature.cross:
        return tuple(Reader(column, "categories") for column in feature.cross)
    if feature.buckets:
        return (Reader(feature.column, "numbers"),)
    unit = schema.timestamp_unit
    clock = Reader(str(schema.timestamp), "ticks", unit)
    if feature.derive == "recency":
        return Reader(feature.column, "ticks", unit), clock
    if feature.kind == "gaps":
        return Reader(feature.column, "tick_lists", unit), clock
    if feature.kind == "vector":
        return (Reader(feature.column, "vectors", width=feature.dim),)
    if feature.kind == "tfidf":
        return (Reader(feature.column, "texts"),)
    if feature.kind == "target":
        return (Reader(schema.feature(str(feature.of)).column, "categories"),)
    assert feature.derive is not None
    return (clock,)


def clock_of(schema: Schema) -> Clock:
    """What the schema's ticks mean."""
    return Clock(TICKS_A_SECOND[schema.timestamp_unit], round(schema.utc_offset_hours * 60) * 60)


def refuse_nulls(name: str, rule: str, valid: NDArray[np.bool_]) -> None:
    """SchemaError if there is a null and the rule is "error"."""
    if rule == "error" and not valid.all():
        raise SchemaError(f"column {name!r} has {int((~valid).sum())} nulls, and its rule is nulls = 'error'")


def damaged(name: str, head: Mapping[str, Any]) -> str:
    """What is said of a saved state that was altered."""
    return f"the saved state of feature {name!r} is damaged: {dict(head)}"
