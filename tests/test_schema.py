"""A schema checks itself, and survives JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmtr.errors import SchemaError
from fastmtr.schema import Feature, Schema, Task

ITEM = Feature(name="item", entity="item", kind="categorical")
AUTHOR = Feature(name="author", entity="item", kind="categorical")
TASKS = (Task(name="click"), Task(name="buy", depends_on="click"), Task(name="watch", kind="regression"))


def _schema(
    *features: Feature, tasks: tuple[Task, ...] = TASKS, timestamp: str | None = "time", **options: Any
) -> Schema:
    return Schema(
        user="user", item="item", features=(ITEM, AUTHOR, *features), tasks=tasks, timestamp=timestamp, **options
    )


def _user(**options: Any) -> Feature:
    return Feature(**({"name": "f", "entity": "user", "kind": "numeric"} | options))


def test_json_round_trip() -> None:
    schema = _schema(
        _user(kind="sequence", of="item", event="click"),
        _user(name="g", event="buy", statistic="rate"),
        Feature(name="hour", entity="context", kind="categorical", derive="hour"),
        timestamp_unit="ms",
        utc_offset_hours=5.5,
    )
    assert Schema.from_json(schema.to_json()) == schema
    with pytest.raises(SchemaError, match=r"schema: .*unknown field `features_`"):
        Schema.from_json(schema.to_json().replace(b'"features"', b'"features_"'))


def test_lookups() -> None:
    schema = _schema(_user())
    assert schema.feature("author") is AUTHOR
    assert [f.name for f in schema.of_entity("user", "item")] == ["item", "author", "f"]
    assert [t.name for t in schema.chain("buy")] == ["click", "buy"]
    with pytest.raises(SchemaError, match=r"no feature is named 'x'; there are \['item', 'author', 'f'\]"):
        schema.feature("x")


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"name": "item"}, "feature 'item' stands twice"),
        ({"kind": "sequence", "entity": "item", "of": "item"}, "a sequence belongs to entity 'user', found 'item'"),
        (
            {"kind": "sequence"},
            r"'of' must name a categorical item feature \(one of \['author', 'item'\]\), found None",
        ),
        (
            {"kind": "sequence", "of": "item", "event": "like"},
            r"'event' must name a task \(one of \['click', 'buy', 'watch'\]\)",
        ),
        ({"kind": "sequence", "of": "item", "event": "watch"}, "positives of a binary task; 'watch' is a regression"),
        (
            {"kind": "categorical", "of": "item"},
            "'of' and 'event' belong to kind 'sequence', 'gaps', 'target' or a 'numeric' with an event",
        ),
        ({"of": "item"}, "'of' and 'event' belong to kind 'sequence', 'gaps', 'target' or a 'numeric' with an event"),
        (
            {"entity": "context", "event": "click"},
            "a past statistic belongs to entity 'user' or 'item', found 'context'",
        ),
        ({"event": "click", "of": "item"}, r"'of' must name a categorical user feature \(one of \[\]\), found 'item'"),
        ({"event": "watch"}, "log_odds need a binary task; 'watch' is a regression, so choose statistic 'rate'"),
        ({"derive": "hour"}, "'hour' belongs to a categorical of entity 'context', not a numeric of 'user'"),
        (
            {"derive": "hour_cycle", "kind": "categorical", "entity": "context"},
            "'hour_cycle' belongs to a numeric of entity 'context', not a categorical of 'context'",
        ),
        (
            {"derive": "recency", "kind": "vector", "source": "born"},
            "'recency' belongs to a numeric of any entity, not a vector",
        ),
        ({"derive": "recency"}, "'recency' needs the column of the times as 'source'"),
        ({"derive": "recency", "source": "born", "event": "click"}, "both 'derive' and 'event'"),
        ({"window": 24.0}, "'window' belongs to a numeric with an 'event'"),
        ({"ngrams": 2}, "'ngrams' belong to kind 'text' or 'tfidf', not 'numeric'"),
        ({"lookup": True}, "'lookup' belongs to a sequence without an 'event'"),
        ({"kind": "sequence", "of": "item", "event": "click", "lookup": True}, "'lookup' belongs to a sequence"),
        ({"kind": "gaps", "of": "item"}, r"'of' must name a sequence user feature \(one of \[\]\), found 'item'"),
        ({"kind": "gaps", "event": "click"}, "its events are those of the sequence that 'of' names"),
        ({"kind": "gaps", "scaling": "log1p"}, "the gaps are logarithms already"),
        ({"kind": "target", "of": "item"}, "encoding 'target' needs 'event'"),
        ({"kind": "target", "of": "item", "encoding": "count", "event": "click"}, "encoding 'count' reads no 'event'"),
        ({"kind": "target", "event": "click", "scaling": "minmax"}, "scaling must be 'none' or 'standard'"),
        ({"kind": "target", "event": "click", "of": "item"}, "'of' must name a categorical user feature"),
    ],
)
def test_features_that_contradict_the_schema(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        _schema(_user(**feature))


@pytest.mark.parametrize(
    "feature",
    [
        {"event": "click"},
        {"kind": "sequence", "of": "item", "event": "click"},
        {"entity": "context", "kind": "categorical", "derive": "hour"},
        {"derive": "recency", "source": "born"},
        {"kind": "gaps"},
    ],
)
def test_what_needs_a_timestamp_says_so(feature: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="'timestamp' column"):
        _schema(_user(**feature), timestamp=None)


def test_tasks_that_contradict_each_other() -> None:
    with pytest.raises(SchemaError, match="task 'a' depends on itself: a <- b <- a"):
        _schema(tasks=(Task(name="a", depends_on="b"), Task(name="b", depends_on="a")))
    with pytest.raises(SchemaError, match="no task is named 'x'"):
        _schema(tasks=(Task(name="a", depends_on="x"),))
    with pytest.raises(SchemaError, match="task 'a' stands twice"):
        _schema(tasks=(Task(name="a"), Task(name="a")))
    with pytest.raises(SchemaError, match="the schema has no task"):
        _schema(tasks=())
    with pytest.raises(SchemaError, match="the schema has no feature"):
        Schema(user="u", item="i", features=(), tasks=TASKS)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `int` >= 1"):
        msgspec.convert({"name": "a", "entity": "user", "kind": "categorical", "dim": 0}, Feature)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"kind": "categorical", "cross": ("a",)}, "'cross' needs at least two different columns"),
        ({"kind": "categorical", "cross": ("a", "a")}, "'cross' needs at least two different columns"),
        ({"kind": "categorical", "cross": ("a", "b"), "source": "c"}, "so it has no 'source'"),
        ({"kind": "categorical", "cross": ("a", "b"), "buckets": 4}, "both 'cross' and 'buckets'"),
        ({"cross": ("a", "b")}, "'cross' belongs to kind 'categorical', not 'numeric'"),
        ({"buckets": 4}, "'buckets' belongs to kind 'categorical', not 'numeric'"),
        ({"kind": "categorical", "buckets": 4, "oov_rows": 2}, "neither 'hash_rows' nor 'oov_rows'"),
        ({"kind": "categorical", "hashes": 2}, "'hashes' belong to a categorical with 'hash_rows'"),
        ({"kind": "categorical", "hash_rows": 9, "oov_rows": 2}, "'oov_rows' belongs to a categorical, multi or text"),
        (
            {"kind": "categorical", "hash_rows": 9, "unseen": "error"},
            "'unseen' belongs to a categorical, multi or text",
        ),
        ({"keep": "last"}, "'keep' belongs to a multi, text, or sequence that is given"),
        ({"kind": "multi", "nulls": "error"}, "a multi leaves nulls out"),
        ({"kind": "categorical", "clip": (0.0, 1.0)}, "'clip' belongs to a numeric, not a categorical"),
        ({"clip": (0.5, 0.5)}, r"'clip' must be two quantiles, ascending, from 0 to 1; found \[0.5, 0.5\]"),
        ({"entity": "context", "derive": "hour_cycle", "indicator": True}, "'indicator' belongs to a numeric"),
        ({"kind": "vector", "out_of_range": "clip"}, "'out_of_range' belongs to a numeric, not a vector"),
    ],
)
def test_rules_of_values_are_checked(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        _schema(_user(**feature))
