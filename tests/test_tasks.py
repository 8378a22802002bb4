"""Labels from both shapes of log, checked against the rules in plain words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.schema import Feature, Schema, Task
from fastmtr.tables import read_table
from fastmtr.training.splits import Boundaries
from fastmtr.training.tasks import TaskLog, TaskRule, TaskRules, label_log

DAY = 86_400
FOREVER = Boundaries(-(2**63), 10 * DAY, 20 * DAY, 2**63 - 1)


def _schema(*tasks: Task) -> Schema:
    return Schema(
        user="u", item="i", features=(Feature(name="i", entity="item", kind="categorical"),), tasks=tasks, timestamp="t"
    )


def _wide(tasks: tuple[Task, ...], rules: dict[str, TaskRule], columns: dict[str, Any]) -> TaskLog:
    n = len(next(iter(columns.values())))
    log = read_table({"u": [1] * n, "i": [1] * n, "t": list(range(n))} | columns)
    return label_log(log, TaskRules(rules=rules), schema=_schema(*tasks), cuts=FOREVER)


def test_wide_rules() -> None:
    tasks = (Task(name="click"), Task(name="finish"), Task(name="good"), Task(name="watch", kind="regression"))
    rules = {
        "finish": TaskRule(column="play", at_least_column="duration"),
        "good": TaskRule(column="stars", at_least=4),
        "watch": TaskRule(column="play", log1p=True),
    }
    log = _wide(
        tasks,
        rules,
        {
            "click": [1, 0, None, 1],
            "play": [5, 10, 0, None],
            "duration": [5, 20, None, 3],
            "stars": [4, 3.9, 5, None],
        },
    )
    nan = math.nan
    expected = [[1, 1, 1, math.log(6)], [0, 0, 0, math.log(11)], [nan, nan, 1, 0], [1, nan, nan, nan]]
    np.testing.assert_allclose(log.labels, expected, rtol=1e-6)
    assert log.known_from.tolist() == [0, 1, 2, 3]
    assert {name: rows.tolist() for name, (_, rows) in log.positives.items()} == {
        "click": [0, 3],
        "finish": [0],
        "good": [0, 2],
    }
    assert dict(log.report.rules) == {
        "click": "click",
        "finish": "play >= duration",
        "good": "stars >= 4",
        "watch": "log(1 + play)",
    }


@pytest.mark.parametrize(
    ("task", "rule", "columns", "error", "message"),
    [
        (Task(name="click"), TaskRule(), {"x": [1]}, SchemaError, "task 'click' needs column 'click'; the log has"),
        (
            Task(name="click"),
            TaskRule(),
            {"click": [2]},
            SchemaError,
            "is binary, but click holds 2 .1 such rows.*an 'at_least'",
        ),
        (Task(name="click"), TaskRule(), {"click": ["yes"]}, SchemaError, "column 'click' should hold numbers"),
        (Task(name="click"), TaskRule(log1p=True), {"click": [1]}, ConfigError, "log1p belongs to a regression"),
        (
            Task(name="w", kind="regression"),
            TaskRule(log1p=True),
            {"w": [-1.0]},
            SchemaError,
            "log1p needs values above -1",
        ),
        (Task(name="w", kind="regression"), TaskRule(), {"w": [math.inf]}, SchemaError, "holds an infinity"),
    ],
)
def test_wide_refuses_kindly(
    task: Task, rule: TaskRule, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _wide((task,), {task.name: rule}, columns)


def test_a_rule_for_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.rules\.clik: no such task; the schema's tasks are \['click'\]"):
        _wide((Task(name="click"),), {"clik": TaskRule()}, {"click": [1]})


FUNNEL = (Task(name="cart"), Task(name="buy", depends_on="cart"), Task(name="buys", kind="regression"))
LONG = [  # user, item, action, time
    ("a", 1, "pv", 100),
    ("a", 1, "pv", 200),  # the same day: no sample of its own
    ("a", 1, "cart", 300),
    ("a", 1, "buy", 100 + DAY),
    ("a", 1, "pv", 50 + 2 * DAY),
    ("a", 1, "buy", 60 + 2 * DAY),
    ("a", 1, "buy", 70 + 2 * DAY),
    ("b", 1, "pv", 100),
    ("b", 2, "buy", 100),  # never shown
    ("b", 1, "cart", 99),  # before it was shown
    ("b", 3, "pv", 9 * DAY),
    ("b", 3, "buy", 10 * DAY),  # in the next part
]


def _long(rules: TaskRules, rows: list[tuple[Any, ...]], tasks: tuple[Task, ...] = FUNNEL) -> TaskLog:
    columns = dict(zip(("u", "i", "action", "t"), map(list, zip(*rows, strict=True)), strict=True))
    return label_log(read_table(columns), rules, schema=_schema(*tasks), cuts=FOREVER)


RULES = {"buys": TaskRule(actions=("buy",))}


def test_long_labels_without_a_window() -> None:
    log = _long(TaskRules(shape="long", impressions=("pv",), rules=RULES), LONG)
    assert log.samples.select(["u", "i", "t"]).to_pylist() == [
        {"u": "a", "i": 1, "t": 100},
        {"u": "b", "i": 1, "t": 100},
        {"u": "a", "i": 1, "t": 50 + 2 * DAY},
        {"u": "b", "i": 3, "t": 9 * DAY},
    ]
    assert log.labels.tolist() == [[1, 1, 3], [0, 0, 0], [0, 1, 2], [0, 0, 0]]
    assert log.known_from.tolist() == [10 * DAY] * 4
    assert dict(log.report.without_sample) == {"cart": 1, "buy": 2}
    assert log.positives["buy"][1].tolist() == [3, 5, 6, 8, 11]


def test_long_labels_within_a_window() -> None:
    log = _long(TaskRules(shape="long", impressions=("pv",), window_days=1, rules=RULES), LONG)
    assert log.labels.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 0]]
    assert log.known_from.tolist() == [100 + DAY, 100 + DAY, 50 + 3 * DAY, 10 * DAY]


def test_any_action_can_make_a_sample() -> None:
    log = _long(TaskRules(shape="long", rules=RULES), LONG)
    assert ("b", 2) in list(zip(*(log.samples.column(c).to_pylist() for c in "ui"), strict=True))
    assert dict(log.report.without_sample) == {"cart": 0, "buy": 0}


ACTION = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(0, 2), st.sampled_from(["pv", "buy"]), st.integers(0, 25 * DAY)
)


@given(st.lists(ACTION, min_size=1, max_size=25), st.none() | st.sampled_from([0.5, 1.0, 30.0]))
def test_long_labels_are_what_the_rule_says(rows: list[tuple[Any, ...]], window: float | None) -> None:
    rows = [*rows, ("z", 9, "pv", 0), ("z", 8, "buy", 0)]
    log = _long(TaskRules(shape="long", impressions=("pv",), window_days=window), rows, (Task(name="buy"),))
    firsts = {}
    for u, i, action, t in sorted(rows, key=lambda row: row[3]):
        if action == "pv":
            firsts.setdefault((u, i, t // DAY), t)
    expected = {}
    for (u, i, _), t in firsts.items():
        end = next((cut for cut in (10 * DAY, 20 * DAY) if t < cut), math.inf)
        end = min(end, t + (math.inf if window is None else window * DAY))
        expected[u, i, t] = float(any((u, i, "buy") == row[:3] and t <= row[3] < end for row in rows))
    found = zip(*(log.samples.column(c).to_pylist() for c in "uit"), log.labels[:, 0].tolist(), strict=True)
    assert {(u, i, t): y for u, i, t, y in found} == expected


def test_drawn_negatives_are_items_that_the_user_never_touched() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (int(u), int(i), "pv", int(t))
        for u, i, t in zip(
            rng.integers(0, 20, 300), rng.integers(0, 40, 300) // 2, rng.integers(0, DAY, 300), strict=True
        )
    ]
    rules = TaskRules(shape="long", rules={"click": TaskRule(actions=("pv",))}, negatives=2)
    log = _long(rules, rows, (Task(name="click"),))
    assert log.report.negatives == log.drawn.sum() > log.report.samples
    touched = {row[:2] for row in rows}
    pairs = list(zip(*(log.samples.column(c).to_pylist() for c in "ui"), strict=True))
    assert not touched & {pair for pair, drawn in zip(pairs, log.drawn, strict=True) if drawn}
    assert log.labels[:, 0].tolist() == (~log.drawn).astype(float).tolist()
    # The same whatever the order of the rows, and for the same seed only.
    again = _long(rules, rows[::-1], (Task(name="click"),))
    assert again.samples.equals(log.samples)
    other = _long(TaskRules(shape="long", rules=rules.rules, negatives=2, seed=1), rows, (Task(name="click"),))
    assert not other.samples.equals(log.samples)


def test_long_refuses_kindly() -> None:
    with pytest.raises(SchemaError, match=r"no action 'click'; it has \['buy', 'cart', 'pv'\]"):
        _long(TaskRules(shape="long", impressions=("click",), rules=RULES), LONG)
    with pytest.raises(SchemaError, match=r"no column 'behavior' for the action \(tasks\.action\)"):
        _long(TaskRules(shape="long", action="behavior"), LONG)
    log = pa.table({"u": [1], "i": [1], "t": [1], "action": [7]})
    with pytest.raises(SchemaError, match="column 'action' should hold text"):
        label_log(log, TaskRules(shape="long"), schema=_schema(Task(name="buy")), cuts=FOREVER)
