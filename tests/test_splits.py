"""Times, days and the boundaries between training, validation and test."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fastmtr.errors import ConfigError
from fastmtr.schema import Feature, Schema, Task
from fastmtr.training.splits import SplitRules, boundaries, day_of, day_start, parse_time, times_of

HOUR = 3_600_000


def _schema(offset: float = 0.0, unit: str = "ms") -> Schema:
    return Schema(
        user="u",
        item="i",
        features=(Feature(name="i", entity="item", kind="categorical"),),
        tasks=(Task(name="click"),),
        timestamp="t",
        timestamp_unit=unit,  # type: ignore[arg-type]
        utc_offset_hours=offset,
    )


def test_times_are_local_unless_they_name_an_offset() -> None:
    china = _schema(8)
    assert parse_time("1970-01-02", china, "k") == 16 * HOUR
    assert parse_time("1970-01-01T09:30", china, "k") == 1.5 * HOUR
    assert parse_time("1970-01-01T00:00+00:00", china, "k") == 0
    assert parse_time("1970-01-01T00:00:01", _schema(unit="ns"), "k") == 10**9
    assert parse_time("1969-12-31", _schema(unit="s"), "k") == -86_400
    with pytest.raises(ConfigError, match=r"split\.valid_from should be an ISO date or time such as .* found '5 May'"):
        parse_time("5 May", china, "split.valid_from")


def test_days_begin_at_local_midnight() -> None:
    times = np.array([0, 15 * HOUR, 16 * HOUR, -9 * HOUR])
    assert day_of(times, _schema(8)).tolist() == [0, 0, 1, -1]
    assert day_start(times, _schema(8)).tolist() == [-8 * HOUR, -8 * HOUR, 16 * HOUR, -32 * HOUR]


def test_parts_touch_without_overlap() -> None:
    rules = SplitRules(
        train_from="1970-01-02", valid_from="1970-01-03", test_from="1970-01-04", test_until="1970-01-05"
    )
    cuts = boundaries(rules, _schema())
    day = 24 * HOUR
    times = np.array([0, day - 1, day, 2 * day - 1, 2 * day, 3 * day - 1, 3 * day, 4 * day - 1, 4 * day])
    assert cuts.part_of(times).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3]
    open_ended = boundaries(SplitRules(valid_from="1970-01-03", test_from="1970-01-04"), _schema())
    assert open_ended.part_of(np.array([-(2**63), 0, 2**62])).tolist() == [0, 0, 2]


def test_boundaries_must_ascend() -> None:
    with pytest.raises(ConfigError, match=r"must ascend, found .*valid_from = 2020-01-02, test_from = 2020-01-02"):
        boundaries(SplitRules(valid_from="2020-01-02", test_from="2020-01-02"), _schema())


def test_times_of_reads_integers_and_timestamps() -> None:
    stamps = pa.array([0, 1500], pa.timestamp("ms"))
    assert times_of(pa.table({"t": stamps}), _schema(unit="s")).tolist() == [0, 1]
    assert times_of(pa.table({"t": [5, 6]}), _schema()).tolist() == [5, 6]
