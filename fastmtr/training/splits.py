"""Splitting a log by time: what is learned from comes before what is measured."""

from __future__ import annotations

import datetime
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastmtr.errors import ConfigError
from fastmtr.features.values import TICKS_A_SECOND, ticks_column
from fastmtr.schema import Schema

__all__ = ["Boundaries", "SplitRules", "boundaries", "day_of", "day_start", "parse_time", "times_of"]


class SplitRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[split]`` section of a configuration: ISO dates or times in the schema's local time.

    Parameters
    ----------
    valid_from, test_from : str
        Training samples lie before ``valid_from``, validation before ``test_from``, test samples from there on.
    train_from : str, optional
        Earlier events teach the past of users and items (histories and rates) but are no samples.
    test_until : str, optional
        Later events are not used at all.
    """

    valid_from: str
    test_from: str
    train_from: str | None = None
    test_until: str | None = None


class Boundaries(msgspec.Struct, frozen=True):
    """The same in the schema's ticks: where train, valid and test begin, and where all ends."""

    train: int
    valid: int
    test: int
    end: int

    def part_of(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """-1 too early, 0 train, 1 valid, 2 test, 3 too late."""
        result: NDArray[np.int64] = (
            np.searchsorted([self.train, self.valid, self.test, self.end], times, side="right") - 1
        )
        return result


def boundaries(rules: SplitRules, schema: Schema) -> Boundaries:
    """Read the rules; ConfigError unless they ascend."""
    names = ("train_from", "valid_from", "test_from", "test_until")
    extremes = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    found = []
    for name, absent in zip(names, (extremes[0], None, None, extremes[1]), strict=True):
        text = getattr(rules, name)
        found.append(absent if text is None else parse_time(text, schema, f"split.{name}"))
    ticks = [int(tick) for tick in found if tick is not None]
    if any(a >= b for a, b in pairwise(ticks)):
        raise ConfigError(
            f"split: the times must ascend, found {', '.join(f'{n} = {getattr(rules, n)}' for n in names)}"
        )
    return Boundaries(*ticks)


def parse_time(text: str, schema: Schema, key: str) -> int:
    """An ISO date or time, local unless it names its offset, in the schema's ticks; ConfigError names `key`."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{key} should be an ISO date or time such as '2022-05-05' or '2022-05-05T12:00', found {text!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=schema.utc_offset_hours)))
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    microseconds = since // datetime.timedelta(microseconds=1)
    return microseconds * TICKS_A_SECOND[schema.timestamp_unit] // 1_000_000


def day_of(times: NDArray[np.int64], schema: Schema) -> NDArray[np.int64]:
    """The local day of each time, counted from 1970-01-01."""
    result: NDArray[np.int64] = (times + _offset(schema)) // (86_400 * TICKS_A_SECOND[schema.timestamp_unit])
    return result


def day_start(times: NDArray[np.int64], schema: Schema) -> NDArray[np.int64]:
    """When the local day of each time began."""
    return day_of(times, schema) * (86_400 * TICKS_A_SECOND[schema.timestamp_unit]) - _offset(schema)


def times_of(table: pa.Table, schema: Schema) -> NDArray[np.int64]:
    """The timestamps of a table without null ones."""
    assert schema.timestamp is not None
    column = ticks_column(table.column(schema.timestamp), name=schema.timestamp, unit=schema.timestamp_unit)
    times: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return times


def _offset(schema: Schema) -> int:
    return round(schema.utc_offset_hours * 3600) * TICKS_A_SECOND[schema.timestamp_unit]
