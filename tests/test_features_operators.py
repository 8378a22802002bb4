"""One schema with every operator: rows and tables alike, any order and cut of the data, saved and read again."""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import strategies as st
from operator_schema import DAY, SCHEMA, raw_tables
from safetensors.numpy import save

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Domain
from fastmtr.schema import Schema

OWN = tuple(f for f in SCHEMA.features if f.name not in ("clicked", "click_gaps", "day_rate"))
PLAIN = msgspec.structs.replace(SCHEMA, features=OWN)
INT64 = st.integers(-(2**63), 2**63 - 1)
TICKS = st.none() | INT64 | st.sampled_from([-1, 0, DAY, 2**62])
NUMBERS = st.none() | st.floats(width=64) | st.sampled_from([-0.0, 5e-324, 3.5e38, -1e308])
TEXTS = (
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["", "Summer DRESS"])
)
KEYS = st.none() | st.integers(98, 131) | INT64
ROWS: dict[Domain, dict[str, Any]] = {
    "request": {
        "user": st.none() | st.integers(-1, 41),
        "city": st.none() | st.sampled_from(["Rome", "Oslo", "", "rome"]) | TEXTS,
        "age": NUMBERS,
        "joined": TICKS,
        "visited": st.none() | st.lists(KEYS, max_size=5),
        "visit_times": st.none() | st.lists(TICKS, max_size=5),
        "time": TICKS,
        "query": TEXTS,
    },
    "item": {
        "item": KEYS,
        "author": st.none() | st.sampled_from(["ann", "bob", "eve", "zoe"]),
        "tags": st.none() | st.lists(st.none() | st.sampled_from(["new", "sale", "x"]), max_size=5),
        "price": NUMBERS,
        "published": TICKS,
        "picture": st.none() | st.lists(NUMBERS, min_size=4, max_size=4),
        "title": TEXTS,
        "time": TICKS,
    },
    "candidate": {
        "shelf": st.none() | st.sampled_from(["top", "side", "none"]),
        "match": st.none() | st.lists(NUMBERS, min_size=2, max_size=2),
        "labels": st.none() | st.lists(st.none() | st.sampled_from(["x", "y", "z"]), max_size=4),
    },
}
TYPES = {
    "joined": pa.int64(),
    "published": pa.int64(),
    "visited": pa.list_(pa.int64()),
    "visit_times": pa.list_(pa.int64()),
    "time": pa.int64(),
    "picture": pa.list_(pa.float64(), 4),
    "tags": pa.list_(pa.string()),
    "labels": pa.list_(pa.string()),
    "match": pa.list_(pa.float64()),
    "price": pa.float64(),
    "age": pa.float64(),
    "user": pa.int64(),
    "item": pa.int64(),
}


def interactions() -> pa.Table:
    return pa.table(raw_tables()["log"])


def entities(name: str) -> pa.Table:
    return pa.table({k: pa.array(v, TYPES.get(k)) for k, v in raw_tables()[name].items()})


@lru_cache(maxsize=1)
def fitted() -> FeaturePipeline:
    return FeaturePipeline(PLAIN).fit(users=entities("users"), items=entities("items"), interactions=interactions())


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], TYPES.get(name, pa.string())) for name in rows[0]})


def state_of(pipeline: FeaturePipeline) -> tuple[bytes, bytes]:
    head, arrays = pipeline.state()
    return msgspec.json.encode(head), save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def test_neither_order_nor_batches_change_what_is_learned() -> None:
    order = np.random.default_rng(1).permutation(interactions().num_rows)
    shuffled = interactions().take(pa.array(order))
    pieces = [shuffled.slice(at, 100) for at in range(0, shuffled.num_rows, 100)]
    tables = {name: entities(name).take(pa.array(np.arange(n)[::-1])) for name, n in (("users", 40), ("items", 30))}
    other = FeaturePipeline(PLAIN).fit(interactions=pieces, **tables)
    assert state_of(other) == state_of(fitted())


def test_a_saved_pipeline_has_forgotten_the_folds() -> None:
    again = FeaturePipeline.from_state(PLAIN, *fitted().state())
    with pytest.raises(SchemaError, match="does not keep what encodes training samples"):
        again.encoder("author_clicks").encode_out_of_fold([pa.array(["ann"])], np.zeros(1, np.int64))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "head", "arrays"),
    [
        ("day", {"part": "year"}, {}),
        ("account_age", {"factor": 0.0}, {}),
        ("visit_gaps", {"length": 4}, {}),
        ("visit_gaps", {"shift": float("nan")}, {}),
        ("picture", {"width": 3}, {}),
        ("words", {"ngrams": 1}, {}),
        ("words", {}, {"idf": np.ones(7)}),
        ("words", {}, {"idf": np.full(8, np.inf)}),
        ("words", {}, {"idf": np.full(8, -1.0)}),
        ("words", {}, {"idf": np.ones(8, np.float32)}),
        ("author_clicks", {"encoding": "rate"}, {}),
        ("author_clicks", {}, {"table": np.zeros((4, 1), np.float32)}),
        ("author_clicks", {}, {"table": np.zeros(5, np.float32)}),
        ("author_clicks", {}, {"table": np.full((5, 1), np.nan, np.float32)}),
        ("author_clicks", {"type": "int"}, {}),
        ("last_authors", {"rows": None}, {}),
        ("last_authors", {"rows": 3}, {}),
        ("last_authors", {}, {"ids": np.zeros(29, np.int32)}),
        ("last_authors", {}, {"ids": np.full(30, -1, np.int32)}),
        ("last_authors", {}, {"values": np.zeros(30, np.int64)}),
    ],
)
def test_an_altered_state_is_refused(name: str, head: dict[str, Any], arrays: dict[str, Any]) -> None:
    state, saved = fitted().state()
    heads = {**state["features"], name: state["features"][name] | head}
    altered = saved | {f"{name}/{part}": array for part, array in arrays.items()}
    with pytest.raises(SchemaError, match=f"the saved state of feature '{name}'"):
        FeaturePipeline.from_state(PLAIN, state | {"features": heads}, altered)


@pytest.mark.parametrize(
    ("domain", "column", "value", "message"),
    [
        ("item", "picture", [1.0, 2.0], "column 'picture' should hold lists of 4 numbers, found a list of 2"),
        ("item", "picture", "abc", "column 'picture' should hold lists of 4 numbers, found"),
        ("item", "picture", [1.0, 2.0, "x", 4.0], "column 'picture' should hold numbers, found"),
        ("item", "title", 3, "column 'title' should hold text, found"),
        ("item", "published", "yesterday", "column 'published' should hold (points in time, as )?whole numbers, found"),
        ("request", "visit_times", 3, "column 'visit_times' should hold lists of points in time, found"),
        ("request", "visit_times", [1, "x"], "column 'visit_times' should hold points in time, found"),
        ("request", "time", 1.5, "column 'time' should hold (points in time, as )?whole numbers"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_in_both_ways(
    domain: Domain, column: str, value: Any, message: str
) -> None:
    pipeline = fitted()
    rest = dict.fromkeys(ROWS[domain])
    with pytest.raises(SchemaError, match=message.split(", found")[0]):
        pipeline.transform_row(domain, rest | {column: value})
    if isinstance(value, list) and "x" in value:
        return  # Arrow has no such column.
    table = as_table([rest]).drop_columns([column]).append_column(column, pa.array([value]))
    with pytest.raises(SchemaError, match=message.split(", found")[0]):
        pipeline.transform(domain, table)


def test_surrogates_and_broken_texts_are_refused() -> None:
    pipeline = fitted()
    with pytest.raises(SchemaError, match="column 'query' holds text that is not valid Unicode"):
        pipeline.transform_row("request", {"query": "a\ud800"})
    for broken in (b"\xff", b"\xc3"):
        bytes_ = pa.array([b"fine", broken, b"\xa9"]).view(pa.string())
        table = as_table([dict.fromkeys(ROWS["item"])] * 3).drop_columns(["title"]).append_column("title", bytes_)
        with pytest.raises(SchemaError, match="column 'title' holds text that"):
            pipeline.transform("item", table)


def test_nulls_may_be_refused() -> None:
    strict = tuple(msgspec.structs.replace(f, nulls="error") for f in OWN if f.name in ("day", "picture", "words"))
    schema = msgspec.structs.replace(PLAIN, features=(*strict, SCHEMA.feature("item")))
    pipeline = FeaturePipeline(schema).fit(items=entities("items"), interactions=interactions())
    row = {"picture": [1.0, 2.0, None, 4.0], "title": "", "item": 1}
    assert pipeline.transform_row("item", row).dense[0, :4].tolist() == [1, 2, 0, 4]
    for name in ("picture", "title"):
        with pytest.raises(SchemaError, match=f"column '{name}' is null, and its rule is nulls = 'error'"):
            pipeline.transform_row("item", row | {name: None})
        with pytest.raises(SchemaError, match=f"column '{name}' is not given"):
            pipeline.transform_row("item", {k: v for k, v in row.items() if k != name})
    with pytest.raises(SchemaError, match="'picture' has 2 nulls, and its rule is nulls = 'error'"):
        pipeline.transform("item", pa.table({"picture": pa.nulls(2), "title": ["a", "b"], "item": [1, 2]}))
    with pytest.raises(SchemaError, match="column 'day' is null"):
        pipeline.transform_row("request", {"time": None})
    # What a table does not have at all may be left to its null value.
    assert not pipeline.transform("request", pa.table({"user": [1]}), missing="null").dense.any()


def test_datetimes_are_points_in_time() -> None:
    pipeline = fitted()
    moment = datetime.datetime(1970, 1, 5, 3, tzinfo=datetime.UTC)
    ticks = int(moment.timestamp())
    raw = {"joined": moment - datetime.timedelta(hours=7), "visit_times": [moment], "time": moment}
    as_ticks = {"joined": ticks - 7 * 3600, "visit_times": [ticks], "time": ticks}
    found, expected = (pipeline.transform_row("request", each) for each in (raw, as_ticks))
    assert (found.ids.tobytes(), found.dense.tobytes()) == (expected.ids.tobytes(), expected.dense.tobytes())
    table = pa.table({name: pa.array([value]) for name, value in raw.items()})
    assert pipeline.transform("request", table, missing="null").dense.tobytes() == expected.dense.tobytes()


def test_the_clock_alone_changes_only_what_it_makes() -> None:
    pipeline = fitted()
    known = {"joined": 5, "visit_times": [7, 3], "time": DAY}
    base = pipeline.transform_row("request", known)
    later = pipeline.transform_row("request", {"time": 9 * DAY + 3600}, base=base)
    for each in (i for i in pipeline.inputs if i.domain == "request" and i.kind == "dense"):
        at = slice(each.offset, each.offset + each.width)
        same = later.dense[:, at].tobytes() == base.dense[:, at].tobytes()
        assert same == (each.name not in ("day", "year"))


def test_what_stands_in_two_tables_is_joined_by_the_key() -> None:
    log = interactions()
    joined, order = log, np.random.default_rng(0).permutation(40)
    for name, key, columns in (
        ("users", "user", ["joined", "city", "visit_times"]),
        ("items", "item", ["author", "published"]),
    ):
        table = entities(name)
        place = pc.index_in(log.column(key), value_set=table.column(key).combine_chunks())
        for column in columns:
            joined = joined.append_column(column, table.column(column).take(place))
    users = entities("users").take(pa.array(order))
    other = FeaturePipeline(PLAIN).fit(users=users, items=entities("items"), interactions=joined)
    assert state_of(other) == state_of(fitted())
    # A user that the table does not have is null.
    fewer = FeaturePipeline(PLAIN).fit(users=users.slice(1), items=entities("items"), interactions=log)
    assert state_of(fewer) != state_of(fitted())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"items": None}, r"feature 'last_authors' is learned from \['author', 'item'\] in the items"),
        ({"interactions": {"drop": "click"}}, "feature 'city_clicks' .* interactions, with the users joined by 'user'"),
        ({"interactions": {"drop": "user"}}, "feature 'account_age' .* joined by 'user'"),
        ({"interactions": {"drop": "like"}}, "feature 'shelf_likes' is learned from .* in the interactions"),
        ({"items": {"twice": True}}, "30 keys in column 'item' of the users or items stand twice"),
    ],
)
def test_what_cannot_be_learned_is_told(source: dict[str, Any], message: str) -> None:
    tables = {"users": entities("users"), "items": entities("items"), "interactions": interactions()}
    for name, change in source.items():
        if change is None:
            del tables[name]
        elif "drop" in change:
            tables[name] = tables[name].drop_columns([change["drop"]])
        else:
            tables[name] = pa.concat_tables([tables[name]] * 2)
    schema: Schema = PLAIN
    if "items" not in tables:
        tables["interactions"] = tables["interactions"].append_column("author", pa.nulls(900, pa.string()))
        kept = tuple(f for f in PLAIN.features if f.entity != "item" or f.name in ("author", "item"))
        schema = msgspec.structs.replace(PLAIN, features=kept)
    with pytest.raises(SchemaError, match=message):
        FeaturePipeline(schema).fit(**tables)
