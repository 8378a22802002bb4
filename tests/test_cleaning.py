"""Each cleaning rule removes what it says and reports it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.schema import Feature, Schema, Task
from fastmtr.tables import read_table
from fastmtr.training.cleaning import CleaningRules, Range, clean

DAY = 86_400
SCHEMA = Schema(
    user="u",
    item="i",
    features=(Feature(name="i", entity="item", kind="categorical"),),
    tasks=(Task(name="click"),),
    timestamp="t",
)
NO_RULE = CleaningRules(duplicates=False)


def _clean(columns: dict[str, Any], rules: CleaningRules) -> tuple[pa.Table, dict[str, int]]:
    table, report = clean(read_table(columns), rules, schema=SCHEMA)
    assert report.removed == read_table(columns).num_rows - table.num_rows
    return table, {step.rule: step.removed for step in report.steps if step.removed}


def _log(**columns: Any) -> dict[str, Any]:
    n = len(next(iter(columns.values())))
    return {"u": [1] * n, "i": list(range(n)), "t": [0] * n} | columns


def test_rows_without_keys_always_go() -> None:
    table, removed = _clean({"u": [1, None, 3, 4], "i": [1, 2, None, 4], "t": [1, 2, 3, None]}, NO_RULE)
    assert table.to_pydict() == {"u": [1], "i": [1], "t": [1]}
    assert removed == {"u is null": 1, "i is null": 1, "t is null": 1}


def test_exact_duplicates_leave_the_first() -> None:
    columns = {"u": [1, 2, 1, 1], "i": [1, 2, 1, 1], "t": [0, 0, 0, 0], "click": [1, None, 1, 0]}
    table, removed = _clean(columns, CleaningRules())
    assert table.column("click").to_pylist() == [1, None, 0]
    assert removed == {"exact duplicate": 1}
    assert _clean(columns, NO_RULE)[0].num_rows == 4


def test_lists_take_part_in_the_comparison() -> None:
    columns = {"u": [1, 1, 1], "i": [1, 1, 1], "t": [0, 0, 0], "tags": [["a"], ["b"], ["a"]]}
    assert _clean(columns, CleaningRules())[0].column("tags").to_pylist() == [["a"], ["b"]]


def test_required_columns_and_ranges() -> None:
    rules = CleaningRules(
        duplicates=False, require=("x",), ranges={"y": Range(at_least=0), "z": Range(at_least=0, at_most=1)}
    )
    log = _log(x=[1.0, None, float("nan"), 1, 1, 1], y=[0, 0, 0, -1, 5, None], z=[0, 0, 0, 0, 2, 1])
    table, removed = _clean(log, rules)
    assert table.column("i").to_pylist() == [0, 5]
    assert removed == {"x is null": 2, "y outside [0, inf]": 1, "z outside [0, 1]": 1}


def test_stray_times() -> None:
    rules = CleaningRules(time_from="1970-01-02", time_until="1970-01-03")
    table, removed = _clean(_log(t=[0, DAY - 1, DAY, 2 * DAY - 1, 2 * DAY]), rules)
    assert table.column("i").to_pylist() == [2, 3]
    assert removed == {"before 1970-01-02": 2, "from 1970-01-03 on": 1}


def test_bots_leave_with_all_events() -> None:
    log = _log(u=["bot", "bot", "bot", "calm", "calm", "calm"], t=[0, 1, DAY, 0, DAY, 2 * DAY])
    table, removed = _clean(log, CleaningRules(max_events_a_day=1))
    assert set(table.column("u").to_pylist()) == {"calm"}
    assert removed == {"user with more than 1 events on one day": 3}


def test_the_report_shows_an_example_and_the_file_s_bad_rows(tmp_path: Any) -> None:
    (tmp_path / "log.csv").write_text("u,i,t\n1,2,3\n1,2\n,5,6\n")
    table, report = clean(read_table(tmp_path / "log.csv", bad_rows="skip"), CleaningRules(), schema=SCHEMA)
    rows = report.to_rows()
    assert table.num_rows == 1
    assert rows[0] == {"rule": "malformed rows of the file", "removed": 1, "kept": 2, "example": None}
    assert rows[1] == {"rule": "u is null", "removed": 1, "kept": 1, "example": "{'u': None, 'i': 5, 't': 6}"}


@pytest.mark.parametrize(
    ("columns", "rules", "error", "message"),
    [
        ({"u": [1], "i": [1]}, NO_RULE, SchemaError, r"the log has no column 't'; it has \['u', 'i'\]"),
        (_log(u=[1]), CleaningRules(require=("x",)), SchemaError, "no column 'x'"),
        (_log(u=[None]), NO_RULE, SchemaError, "cleaning left no row of the log; its steps: u is null: 1"),
        (_log(u=[1]), CleaningRules(time_from="soon"), ConfigError, r"cleaning\.time_from should be an ISO date"),
    ],
)
def test_refuses_kindly(columns: dict[str, Any], rules: CleaningRules, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        clean(read_table(columns), rules, schema=SCHEMA)
