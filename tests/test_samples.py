"""The whole data side: nothing flows backwards in time, and what is packed is what the tables say."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from safetensors.numpy import save

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.features.past import HistoryRules
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema, Task
from fastmtr.training.samples import Prepared, Samples, prepare
from fastmtr.training.splits import SplitRules
from fastmtr.training.tasks import TaskRule, TaskRules

DAY = 86_400
TASKS = (Task(name="click"), Task(name="like"))
FEATURES = (
    Feature(name="user", entity="user", kind="categorical"),
    Feature(name="age", entity="user", kind="numeric"),
    Feature(name="clicked", entity="user", kind="sequence", of="item", event="click", length=4),
    Feature(name="liked_authors", entity="user", kind="sequence", of="author", event="like", length=3),
    Feature(name="user_rate", entity="user", kind="numeric", event="click", scaling="none", statistic="rate"),
    Feature(name="tab", entity="context", kind="categorical"),
    Feature(name="hour", entity="context", kind="categorical", derive="hour"),
    Feature(name="item", entity="item", kind="categorical"),
    Feature(name="author", entity="item", kind="categorical"),
    Feature(name="length", entity="item", kind="numeric", scaling="none"),
    Feature(name="item_count", entity="item", kind="numeric", event="click", scaling="none", statistic="count"),
    Feature(name="recent", entity="item", kind="numeric", event="click", scaling="none", statistic="count", window=36),
    Feature(name="author_odds", entity="item", kind="numeric", event="like", of="author"),
    Feature(name="position", entity="candidate", kind="numeric", scaling="none"),
)
SCHEMA = Schema(user="user", item="item", features=FEATURES, tasks=TASKS, timestamp="time")
SPLIT = SplitRules(train_from="1970-01-02", valid_from="1970-01-06", test_from="1970-01-07", test_until="1970-01-09")


def _log(seed: int = 0, n: int = 600) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, 25, n),
        "item": rng.integers(100, 130, n),
        "time": np.sort(rng.integers(0, 9 * DAY, n)),
        "tab": rng.integers(0, 3, n),
        "position": rng.integers(0, 10, n).astype(float),
        "click": rng.integers(0, 2, n),
        "like": (rng.random(n) < 0.2).astype(int),
    }


USERS = {"user": np.arange(20)[::-1], "age": np.arange(20.0)}
ITEMS = {
    "item": np.arange(100, 140),
    "author": [None if i % 9 == 0 else f"author {i % 7}" for i in range(40)],
    "length": np.arange(40.0),
}


def _prepare(log: dict[str, Any], **changes: Any) -> Prepared:
    options: dict[str, Any] = {"tasks": TaskRules(), "split": SPLIT, "users": USERS, "items": ITEMS} | changes
    return prepare(options.pop("schema", SCHEMA), log, **options)


def _column(prepared: Prepared, packed: Packed, name: str) -> np.ndarray:
    found = next(i for i in prepared.pipeline.inputs if i.name == name)
    matrix = packed.ids if found.kind == "ids" else packed.dense
    return matrix[:, found.offset : found.offset + found.width]


def _bytes(samples: Samples) -> list[bytes]:
    candidate = samples.candidate
    assert candidate is not None
    arrays = [*samples.request, *candidate, samples.item_rows, samples.user_rows, samples.timestamps, samples.labels]
    return [a.tobytes() for a in arrays] + [b"" if samples.item_dense is None else samples.item_dense.tobytes()]


def test_shapes_and_order() -> None:
    prepared = _prepare(_log())
    log = pd.DataFrame(_log())
    for part, days in (("train", (1, 5)), ("valid", (5, 6)), ("test", (6, 8))):
        samples: Samples = getattr(prepared, part)
        expected = log[log.time.between(days[0] * DAY, days[1] * DAY - 1)]
        expected = expected.sort_values(["time", "user", "item"], kind="stable")
        assert samples.timestamps.tolist() == expected.time.tolist()
        assert prepared.users.keys[samples.user_rows].tolist() == expected.user.tolist()
        assert prepared.catalogue.keys[samples.item_rows].tolist() == expected.item.tolist()
        assert samples.labels.tolist() == expected[["click", "like"]].astype(float).to_numpy().tolist()
        assert samples.request.n_rows == samples.n_rows == samples.candidate.n_rows == len(expected)  # type: ignore[union-attr]
        assert _column(prepared, samples.candidate, "position")[:, 0].tolist() == expected.position.tolist()  # type: ignore[arg-type]
    assert prepared.users.keys.tolist() == list(range(25))
    assert prepared.catalogue.keys.tolist() == list(range(100, 140))
    assert (prepared.report.undescribed_users, prepared.report.undescribed_items) == (5, 0)
    assert prepared.report.before_training == int((log.time < DAY).sum())


@pytest.mark.parametrize("step", ["day", "event"])
def test_the_past_is_strictly_earlier(step: Any) -> None:
    prepared = _prepare(_log(), history=HistoryRules(step=step, strength=3))
    rows = pd.DataFrame(_log())
    item_ids = dict(
        zip(
            prepared.catalogue.keys.tolist(),
            _column(prepared, prepared.catalogue.packed, "item")[:, 0].tolist(),
            strict=True,
        )
    )
    for part in ("train", "valid", "test"):
        samples: Samples = getattr(prepared, part)
        items = samples.items(prepared.catalogue.packed)
        for i in range(0, samples.n_rows, 17):
            t = int(samples.timestamps[i])
            cut = {"valid": 5 * DAY, "test": 6 * DAY}.get(part, t if step == "event" else t // DAY * DAY)
            past = rows[rows.time < cut]
            user, item = (
                int(prepared.users.keys[samples.user_rows[i]]),
                int(prepared.catalogue.keys[samples.item_rows[i]]),
            )
            own = past[(past.user == user) & (past.click == 1)].sort_values(["time", "item"])
            history = [item_ids[key] for key in own.item.tolist()[::-1][:4]]
            assert _column(prepared, samples.request, "clicked")[i].tolist() == history + [0] * (4 - len(history))
            mine = past[past.user == user]
            rate = (mine.click.sum() + 3 * past.click.mean()) / (len(mine) + 3)
            assert _column(prepared, samples.request, "user_rate")[i, 0] == pytest.approx(rate)
            assert _column(prepared, items, "item_count")[i, 0] == (past.item == item).sum()
            recent = past[past.time >= cut - 1.5 * DAY]
            assert _column(prepared, items, "recent")[i, 0] == (recent.item == item).sum()


def test_items_without_an_author_leave_no_trace_in_a_history_of_authors() -> None:
    log = {"user": [1] * 6, "item": [100, 101, 109, 102, 103, 104], "time": [0, 1, 2, DAY, 6 * DAY, 7 * DAY]}
    log |= {"tab": [0] * 6, "position": [0.0] * 6, "click": [1] * 6, "like": [1] * 6}
    prepared = _prepare(log, split=SplitRules(valid_from="1970-01-03", test_from="1970-01-08"))
    authors = _column(prepared, prepared.catalogue.packed, "author")[:, 0]
    # Items 100 and 109 have none.
    assert _column(prepared, prepared.train.request, "liked_authors")[-1].tolist() == [authors[1], 0, 0]


def test_what_happens_later_changes_no_input() -> None:
    log = _log()
    prepared = _prepare(log)
    late = log["time"] >= 6 * DAY
    changed = log | {name: np.where(late, 1 - log[name], log[name]) for name in ("click", "like")}
    other = _prepare(changed)
    assert _bytes(other.train) == _bytes(prepared.train)
    assert _bytes(other.valid) == _bytes(prepared.valid)
    assert other.test.request.ids.tobytes() == prepared.test.request.ids.tobytes()
    assert other.test.request.dense.tobytes() == prepared.test.request.dense.tobytes()
    assert (other.test.labels != prepared.test.labels).all()
    for name in ("catalogue", "users"):
        before, after = getattr(prepared, name).packed, getattr(other, name).packed
        assert (before.ids.tobytes(), before.dense.tobytes()) == (after.ids.tobytes(), after.dense.tobytes())
    # The validation day changes what test samples see, and nothing that training sees.
    day = (log["time"] >= 5 * DAY) & ~late
    other = _prepare(log | {"click": np.where(day, 1 - log["click"], log["click"])})
    assert _bytes(other.train) == _bytes(prepared.train)
    assert other.test.request.ids.tobytes() != prepared.test.request.ids.tobytes()


def test_the_order_of_the_log_changes_nothing() -> None:
    log = _log()
    log["time"] = log["time"] // 3600 * 3600  # many ties
    log = pd.DataFrame(log).drop_duplicates(["time", "user", "item"]).to_dict("series")
    log = {name: values.to_numpy() for name, values in log.items()}
    order = np.random.default_rng(1).permutation(len(log["time"]))
    one, two = (_prepare(each) for each in (log, {k: v[order] for k, v in log.items()}))
    for part in ("train", "valid", "test"):
        assert _bytes(getattr(one, part)) == _bytes(getattr(two, part))
    assert msgspec.json.encode(one.pipeline.state()[0]) == msgspec.json.encode(two.pipeline.state()[0])
    assert save(one.pipeline.state()[1]) == save(two.pipeline.state()[1])
    assert one.catalogue.packed.dense.tobytes() == two.catalogue.packed.dense.tobytes()


def test_known_users_and_items_are_what_test_samples_see() -> None:
    prepared = _prepare(_log())
    test = prepared.test
    assert test.item_dense is None
    for i in range(0, test.n_rows, 11):
        base = prepared.users.packed.take([int(test.user_rows[i])])
        log = {"tab": int(_log()["tab"][np.flatnonzero(_log()["time"] >= 6 * DAY)][i]), "time": int(test.timestamps[i])}
        row = prepared.pipeline.transform_row("request", log, base=base)
        assert row.ids.tolist() == [test.request.ids[i].tolist()]
        assert row.dense.tobytes() == test.request.dense[i].tobytes()
    assert not _column(prepared, prepared.users.packed, "tab").any()


def test_seen_items() -> None:
    prepared = _prepare(_log())
    log = pd.DataFrame(_log())
    for row, key in enumerate(prepared.users.keys.tolist()):
        met = sorted(set(log[(log.user == key) & (log.time < 6 * DAY)].item))
        assert prepared.catalogue.keys[prepared.seen.of(row)].tolist() == met


def test_statistics_of_attributes_and_their_nulls() -> None:
    prepared = _prepare(_log())
    odds = _column(prepared, prepared.catalogue.packed, "author_odds")[:, 0]
    by_author: dict[Any, set[float]] = {}
    for author, value in zip(ITEMS["author"], odds.tolist(), strict=True):
        by_author.setdefault(author, set()).add(value)
    assert all(len(values) == 1 for values in by_author.values())
    assert len({next(iter(values)) for values in by_author.values()}) > 3


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table, lambda log: pa.table(log).to_reader()])
def test_all_kinds_of_tables(kind: Any) -> None:
    expected, found = _prepare(_log()), _prepare(kind(_log()), users=kind(USERS), items=kind(ITEMS))
    for part in ("train", "valid", "test"):
        assert _bytes(getattr(found, part)) == _bytes(getattr(expected, part))


def test_entities_from_the_log_alone_and_text_keys() -> None:
    log = _log()
    features = tuple(f for f in FEATURES if f.name not in ("age", "length", "author", "author_odds", "liked_authors"))
    features += (Feature(name="shop", entity="item", kind="categorical"),)
    text = log | {"user": [f"u{k}" for k in log["user"]], "item": [f"i{k}" for k in log["item"]]}
    # A shop that changes: the last one before the test samples counts.
    text["shop"] = np.where(log["time"] < 5.5 * DAY, "old", np.where(log["time"] < 6 * DAY, "new", "later")).tolist()
    schema = msgspec.structs.replace(SCHEMA, features=features)
    prepared = _prepare(text, users=None, items=None, schema=schema, item_label="{item} of {shop}")
    assert prepared.catalogue.keys.tolist() == sorted({f"i{k}" for k in log["item"]})
    assert prepared.users.keys.tolist() == sorted({f"u{k}" for k in log["user"]})
    assert prepared.catalogue.labels is not None
    assert {label.split()[-1] for label in prepared.catalogue.labels} <= {"old", "new"}
    assert prepared.catalogue.labels[0].startswith("i100 of ")
    assert prepared.report.undescribed_items == 0


def test_long_logs_go_the_same_way() -> None:
    log = _log()
    actions = np.where(log["click"] == 1, "pv", "buy").tolist()
    columns = {name: log[name] for name in ("user", "item", "time", "tab", "position")} | {"action": actions}
    rules = TaskRules(
        shape="long", rules={"click": TaskRule(actions=("pv",)), "like": TaskRule(actions=("buy",))}, negatives=1
    )
    prepared = _prepare(columns, tasks=rules)
    assert prepared.report.tasks.negatives > 0
    assert set(np.unique(prepared.train.labels)) == {0.0, 1.0}
    counts = _column(prepared, prepared.train.items(prepared.catalogue.packed), "item_count")
    # Labels are known when a sample's part ends, so training samples see no rate of their own part.
    assert not counts.any()
    assert _column(prepared, prepared.test.items(prepared.catalogue.packed), "item_count").any()


def test_the_report_counts() -> None:
    prepared = _prepare(_log())
    train = prepared.report.splits[0]
    assert [s.part for s in prepared.report.splits] == ["train", "valid", "test"]
    assert train.samples == prepared.train.n_rows
    assert train.positives["click"] == prepared.train.labels[:, 0].sum()
    assert train.mean["like"] == pytest.approx(prepared.train.labels[:, 1].mean())
    assert (train.first, train.last) == (prepared.train.timestamps[0], prepared.train.timestamps[-1])


def test_parts_may_be_empty() -> None:
    late = SplitRules(valid_from="1970-02-01", test_from="1970-02-02")
    prepared = _prepare(_log(), split=late, item_label="{item} by {author}")
    assert (prepared.train.n_rows, prepared.valid.n_rows, prepared.test.n_rows) == (600, 0, 0)
    for samples in (prepared.valid, prepared.test):
        assert samples.request.ids.shape == (0, prepared.train.request.ids.shape[1])
        assert samples.request.dense.shape == (0, prepared.train.request.dense.shape[1])
    assert prepared.report.splits[1].first is None
    assert prepared.catalogue.labels is not None
    assert prepared.catalogue.labels[:2] == ("100 by ?", "101 by author 1")


def test_progress_is_quiet_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    _prepare(_log(), progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"schema": Schema(user="user", item="item", features=FEATURES[:2], tasks=TASKS)},
            ConfigError,
            "needs a 'timestamp'",
        ),
        (
            {"split": SplitRules(valid_from="1960-01-01", test_from="1970-01-09")},
            SchemaError,
            "no training sample: the log runs",
        ),
        ({"users": {"age": [1.0]}}, SchemaError, r"the users' table has no column 'user'; it has \['age'\]"),
        (
            {"users": {"user": [1, 1], "age": [1.0, 2.0]}},
            SchemaError,
            "the users' table has 1 keys in column 'user' that stand twice",
        ),
        ({"users": {"user": [1, None], "age": [1.0, 2.0]}}, SchemaError, "has 1 rows whose 'user' is null"),
        ({"users": {"user": [1]}}, SchemaError, "feature 'age' of entity 'user' has no column"),
        ({"users": {"user": ["1"], "age": [1.0]}}, SchemaError, "the users' table and the log disagree: column 'user'"),
        ({"items": None}, SchemaError, "feature 'author' has no column; there is no table for 'item'"),
        ({"item_label": "{name}"}, ConfigError, "item_label: the items' table has no column 'name'"),
        (
            {"tasks": TaskRules(rules={"like": TaskRule(column="likes")})},
            SchemaError,
            "task 'like' needs column 'likes'",
        ),
    ],
)
def test_refuses_kindly(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _prepare(_log(), **changes)
