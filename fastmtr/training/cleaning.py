"""Cleaning a behaviour log: rules that remove rows, and a report of how many each removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.features import values
from fastmtr.schema import Schema
from fastmtr.tables import BAD_ROWS
from fastmtr.training.splits import day_of, parse_time, times_of

__all__ = ["CleaningReport", "CleaningRules", "CleaningStep", "Range", "clean"]


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The possible values of a column, ends included."""

    at_least: float | None = None
    at_most: float | None = None


class CleaningRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[cleaning]`` section of a configuration. Rows without user, item or timestamp always go.

    Parameters
    ----------
    duplicates : bool
        Remove rows that equal an earlier row in every column.
    require : tuple of str
        Columns that must not be null either.
    ranges : dict of str to Range
        Columns with impossible values outside a range.
    time_from, time_until : str, optional
        ISO dates or times in the schema's local time: the log covers ``time_from <= t < time_until``.
    max_events_a_day : int, optional
        A user with more events on one day is a bot, and leaves with all events.
    """

    duplicates: bool = True
    require: tuple[str, ...] = ()
    ranges: dict[str, Range] = {}
    time_from: str | None = None
    time_until: str | None = None
    max_events_a_day: int | None = None


@dataclass(frozen=True)
class CleaningStep:
    """What one rule did: `example` is the first row that it removed, as text."""

    rule: str
    removed: int
    kept: int
    example: str | None


@dataclass(frozen=True)
class CleaningReport:
    """What cleaning did, one step a rule, in the order of application."""

    steps: tuple[CleaningStep, ...]

    @property
    def removed(self) -> int:
        """Rows removed in all."""
        return sum(step.removed for step in self.steps)

    def to_rows(self) -> list[dict[str, Any]]:
        """The steps as dictionaries, for tables and JSON."""
        return [{"rule": s.rule, "removed": s.removed, "kept": s.kept, "example": s.example} for s in self.steps]


def clean(log: pa.Table, rules: CleaningRules, *, schema: Schema) -> tuple[pa.Table, CleaningReport]:
    """Apply the rules.

    Returns
    -------
    table : pyarrow.Table
        The rows that are left, in their order.
    report : CleaningReport

    Raises
    ------
    SchemaError
        A column that the schema or a rule names is not there, or nothing is left.
    """
    steps: list[CleaningStep] = []
    if log.schema.metadata and BAD_ROWS in log.schema.metadata:
        bad = int(log.schema.metadata[BAD_ROWS])
        steps.append(CleaningStep("malformed rows of the file", bad, log.num_rows, None))

    def apply(rule: str, keep: NDArray[np.bool_]) -> None:
        nonlocal log
        gone = int((~keep).sum())
        example = str(log.slice(int(np.argmin(keep)), 1).to_pylist()[0]) if gone else None
        if gone:
            log = log.filter(pa.array(keep))
        steps.append(CleaningStep(rule, gone, log.num_rows, example))

    keys = [schema.user, schema.item, *([schema.timestamp] if schema.timestamp else [])]
    for name in dict.fromkeys([*keys, *rules.require]):
        apply(f"{name} is null", ~_nulls(_column(log, name)))
    if rules.duplicates:
        apply("exact duplicate", first_of_equals(log))
    for name, allowed in rules.ranges.items():
        numbers = values.number_column(_column(log, name), name=name)
        outside = np.zeros(len(numbers), bool)
        if allowed.at_least is not None:
            outside |= numbers < allowed.at_least
        if allowed.at_most is not None:
            outside |= numbers > allowed.at_most
        apply(f"{name} outside {_show(allowed)}", ~outside)
    _apply_times(log, rules, schema, apply, lambda: log)
    if log.num_rows == 0:
        raise SchemaError(
            "cleaning left no row of the log; its steps: " + "; ".join(f"{s.rule}: {s.removed}" for s in steps)
        )
    return log, CleaningReport(tuple(steps))


def _apply_times(log: pa.Table, rules: CleaningRules, schema: Schema, apply: Any, current: Any) -> None:
    wants = [n for n in ("time_from", "time_until", "max_events_a_day") if getattr(rules, n) is not None]
    if not wants:
        return
    if schema.timestamp is None:
        raise ConfigError(f"cleaning.{wants[0]} needs the schema's 'timestamp' column, and the schema names none")
    if rules.time_from is not None:
        apply(
            f"before {rules.time_from}",
            times_of(current(), schema) >= parse_time(rules.time_from, schema, "cleaning.time_from"),
        )
    if rules.time_until is not None:
        apply(
            f"from {rules.time_until} on",
            times_of(current(), schema) < parse_time(rules.time_until, schema, "cleaning.time_until"),
        )
    table = current()
    if rules.max_events_a_day is not None and table.num_rows:
        _, users = values.category_column(table.column(schema.user), name=schema.user, expected=None)
        codes = users.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
        days = day_of(times_of(table, schema), schema)
        days -= days.min()
        _, group, counts = np.unique(codes * (days.max() + 1) + days, return_inverse=True, return_counts=True)
        busy = np.unique(codes[counts[group] > rules.max_events_a_day])
        apply(f"user with more than {rules.max_events_a_day} events on one day", ~np.isin(codes, busy))


def first_of_equals(table: pa.Table) -> NDArray[np.bool_]:
    """True for the first of the rows that are equal in every column."""
    place = "fastmtr row number"
    names = table.column_names
    for i, name in enumerate(names):
        if pa.types.is_nested(table.schema.field(name).type):
            # Arrow does not group by lists.
            table = table.set_column(i, name, pa.array([repr(value) for value in table.column(i).to_pylist()]))
    numbered = table.append_column(place, pa.array(np.arange(table.num_rows)))
    firsts = numbered.group_by(names, use_threads=False).aggregate([(place, "min")]).column(f"{place}_min")
    keep = np.zeros(table.num_rows, bool)
    keep[firsts.to_numpy()] = True
    return keep


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise SchemaError(f"the log has no column {name!r}; it has {table.column_names}")
    return table.column(name)


def _nulls(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = pc.is_null(column, nan_is_null=True).to_numpy()
    return result


def _show(allowed: Range) -> str:
    low = "-inf" if allowed.at_least is None else f"{allowed.at_least:g}"
    return f"[{low}, {'inf' if allowed.at_most is None else f'{allowed.at_most:g}'}]"
