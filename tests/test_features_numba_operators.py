"""Every operator by Numba against the arrays: the same ids, the same bits, the same errors, whatever the values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import operator_schema
import pyarrow as pa
import pytest
from feature_columns import FLOATS, INTS, LARGEST, SMALL_FLOATS, TEXTS, columns_of
from feature_engines import assert_same, both, both_of, left_to_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline, warm_up
from fastmtr.features.numba_text import SPACES
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema, Task

# Final sigma, dotless and dotted i, letters whose lower case takes more bytes or fewer, marks, digits of other scripts.
LETTERS = "aBé_7 ,.ßΣςİıȺⱥKÅſ日本٣²\u0301\u200d\u00a0\u0085\u3000\u2003\x1c𐐀𐐨𝟘\U0010ffff"
WORDY = st.one_of(st.text(LETTERS, max_size=30), TEXTS)
SMALL = st.sampled_from(["a", "b", "a ", "B", "", "é", "x" * 20])
LENGTHS = st.integers(1, 6)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm_up()


def schema_of(*features: Feature, **options: Any) -> Schema:
    return Schema(user="u", item="i", features=features, tasks=(Task(name="click"),), **options)


def some(values: st.SearchStrategy[Any], most: int = 12) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(st.none(), values), max_size=most)


def chunked(values: list[Any], kind: pa.DataType, at: int) -> pa.ChunkedArray:
    """In two pieces, the first of which begins within its buffers."""
    half = len(values) // 2
    return pa.chunked_array([columns_of(values[:half], kind, at=at), columns_of(values[half:], kind)], kind)


VOCABULARIES = st.fixed_dictionaries(
    {},
    optional={
        "unseen": st.sampled_from(["row", "error"]),
        "oov_rows": st.sampled_from([1, 2, 7]),
        "min_count": st.integers(1, 2),
    },
)
HASHED = st.fixed_dictionaries({"hash_rows": st.sampled_from([1, 3, 10, 4096])})
KEEP = st.sampled_from(["first", "last"])


# ---- lists -----------------------------------------------------------------------------------------------------------

ELEMENTS = st.sampled_from(
    [
        (SMALL, pa.string()),
        (TEXTS, pa.large_string()),
        (SMALL, pa.dictionary(pa.int32(), pa.string())),
        (st.integers(-3, 3), pa.int64()),
        (INTS, pa.int64()),
        (st.integers(-3, 3), pa.int8()),
        (st.one_of(st.integers(-3, 3).map(float), st.just(math.nan)), pa.float64()),
        (st.booleans(), pa.bool_()),
    ]
)


@given(st.data(), ELEMENTS, st.one_of(VOCABULARIES, HASHED), KEEP, LENGTHS, st.booleans())
@settings(deadline=None, max_examples=200)
def test_sets(data: Any, drawn: Any, rules: dict[str, Any], keep: Any, length: int, large: bool) -> None:
    element, kind = drawn
    rows = some(some(element, 40))
    fitted, found = data.draw(rows), data.draw(rows)
    schema = schema_of(Feature(name="x", entity="candidate", kind="multi", keep=keep, length=length, **rules))
    lists = pa.large_list(kind) if large else pa.list_(kind)
    table = pa.table({"x": chunked(found + fitted, lists, data.draw(st.integers(0, 3)))})
    assert_same(both(schema, pa.table({"x": columns_of(fitted, lists)}), table, threads=2))


@given(st.data(), ELEMENTS, st.one_of(VOCABULARIES, HASHED), KEEP, LENGTHS)
@settings(deadline=None)
def test_sequences_share_a_vocabulary(data: Any, drawn: Any, rules: dict[str, Any], keep: Any, length: int) -> None:
    element, kind = drawn
    item = Feature(name="i", entity="item", kind="categorical", nulls=data.draw(st.sampled_from(["fill", "error"])))
    schema = schema_of(
        Feature(name="last", entity="user", kind="sequence", of="i", source="s", keep=keep, length=length),
        type(item)(**{f: getattr(item, f) for f in ("name", "entity", "kind", "nulls")}, **rules),
    )
    items = data.draw(st.lists(element, min_size=1, max_size=12))
    rows = data.draw(some(some(st.one_of(element, st.sampled_from(items)), 8)))
    fitted = pa.table({"i": columns_of(items, kind), "s": columns_of([None] * len(items), pa.list_(kind))})
    table = pa.table({"s": columns_of(rows, pa.list_(kind), at=data.draw(st.integers(0, 3)))})
    assert_same(both(schema, fitted, table, domain="request"))


@given(st.data(), st.sampled_from([(TEXTS, pa.string()), (INTS, pa.int64())]), KEEP, LENGTHS)
@settings(deadline=None)
def test_attributes_of_past_items(data: Any, drawn: Any, keep: Any, length: int) -> None:
    key, kind = drawn
    schema = schema_of(
        Feature(name="author", entity="item", kind="categorical"),
        Feature(
            name="last", entity="user", kind="sequence", of="author", lookup=True, source="s", keep=keep, length=length
        ),
    )
    keys = data.draw(st.lists(key, unique=True, min_size=1, max_size=12))
    authors = data.draw(st.lists(st.one_of(st.none(), SMALL), min_size=len(keys), max_size=len(keys)))
    pipeline = FeaturePipeline(schema).fit(
        items=pa.table({"i": pa.array(keys, kind), "author": pa.array(authors, pa.string())})
    )
    rows = data.draw(some(some(st.one_of(key, st.sampled_from(keys)), 8)))
    assert_same(both_of(pipeline, pa.table({"s": columns_of(rows, pa.list_(kind))}), domain="request"))


def test_long_lists_are_sets() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, top, n).tolist() for top in (3, 40, 5000) for n in (16, 17, 33, 1000)]
    table = pa.table({"x": rows})
    for keep in ("first", "last"):
        for rules in ({}, {"hash_rows": 50}):
            x = Feature(name="x", entity="candidate", kind="multi", keep=keep, length=100, **rules)  # type: ignore[arg-type]
            assert_same(both(schema_of(x), table, table))


def test_what_a_null_list_hides_is_not_read() -> None:
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 5], pa.int32()),
        pa.array(["a", "b", "strange", "a", "a"]),
        mask=pa.array([False, True, False]),
    )
    for each in (hidden, hidden[1:], pa.array([["a", "b"], None], pa.list_(pa.string(), 2))):
        x = Feature(name="x", entity="candidate", kind="multi", length=3, unseen="error")
        results = both(schema_of(x), pa.table({"x": [["a", "b"]]}), pa.table({"x": each}))
        assert isinstance(results[0], Packed)
        assert_same(results)


def test_columns_that_are_no_lists() -> None:
    x = Feature(name="x", entity="candidate", kind="multi", length=3)
    for fitted, found in (
        ([["a"]], [["a"], [1]][1:]),
        ([[1]], [["a"]]),
        ([[1]], ["1,2"]),
        ([["1"]], [3]),
        ([[None]], [["a"]]),
        ([[None]], [[7]]),
        ([["a"]], [None]),
        ([["a"]], [[None]]),
        ([["a"]], [[["a"]]]),
    ):
        assert_same(both(schema_of(x), pa.table({"x": fitted}), pa.table({"x": found})))


@given(st.data(), st.sampled_from([(FLOATS, pa.float64()), (SMALL_FLOATS, pa.float32()), (INTS, pa.int64())]))
@settings(deadline=None)
def test_vectors(data: Any, drawn: Any) -> None:
    number, kind = drawn
    width, nulls = data.draw(st.sampled_from([1, 2, 3, 64, 65])), data.draw(st.sampled_from(["fill", "error"]))
    row = st.lists(st.one_of(st.none(), number), min_size=min(width, 3), max_size=min(width, 3))
    rows = [each and (each * width)[:width] for each in data.draw(some(row))]
    if data.draw(st.integers(0, 9)) == 0:
        rows.append([1] * (width - 1))
    x = Feature(name="x", entity="candidate", kind="vector", dim=width, nulls=nulls)
    kinds = [pa.list_(kind), pa.large_list(kind)] + [pa.list_(kind, width)] * (
        not rows or rows[-1] != [1] * (width - 1)
    )
    for lists in kinds:
        table = pa.table({"x": columns_of(rows, lists, at=data.draw(st.integers(0, 3)))})
        assert_same(both(schema_of(x), pa.table({"x": pa.array([], lists)}), table))


# ---- categories of several columns, and as numbers -------------------------------------------------------------------

CATEGORIES = st.sampled_from(
    [
        (SMALL, pa.string()),
        (TEXTS, pa.large_string()),
        (SMALL, pa.string_view()),
        (SMALL, pa.dictionary(pa.int8(), pa.string())),
        (INTS, pa.int64()),
        (st.integers(0, 3), pa.uint64()),
        (st.one_of(st.integers(-3, 3).map(float), st.just(math.nan)), pa.float32()),
        (st.booleans(), pa.bool_()),
    ]
)


@given(st.data(), CATEGORIES, st.one_of(VOCABULARIES, HASHED), st.sampled_from(["fill", "error"]))
@settings(deadline=None)
def test_categories_of_any_type(data: Any, drawn: Any, rules: dict[str, Any], nulls: Any) -> None:
    value, kind = drawn
    fitted, found = data.draw(some(value)), data.draw(some(value))
    x = Feature(name="x", entity="candidate", kind="categorical", nulls=nulls, **rules)
    table = pa.table({"x": chunked(found + fitted, kind, data.draw(st.integers(0, 9)))})
    assert_same(both(schema_of(x), pa.table({"x": columns_of(fitted, kind)}), table))


@given(
    st.data(),
    st.lists(CATEGORIES, min_size=2, max_size=5),
    st.one_of(VOCABULARIES, HASHED.flatmap(lambda rules: st.integers(1, 3).map(lambda k: rules | {"hashes": k}))),
    st.sampled_from(["fill", "error"]),
)
@settings(deadline=None, max_examples=200)
def test_crosses(data: Any, drawn: Any, rules: dict[str, Any], nulls: Any) -> None:
    names = [f"c{i}" for i in range(len(drawn))]
    x = Feature(name="x", entity="candidate", kind="categorical", cross=tuple(names), nulls=nulls, **rules)
    tables = []
    for n in (data.draw(st.integers(0, 10)), data.draw(st.integers(0, 30))):
        columns = [data.draw(st.lists(st.none() | value, min_size=n, max_size=n)) for value, _ in drawn]
        at = data.draw(st.integers(0, 9))
        tables.append(
            pa.table({f: columns_of(c, k, at=at) for f, c, (_, k) in zip(names, columns, drawn, strict=True)})
        )
    fitted, table = tables
    for given_table in (table, fitted):
        assert_same(both(schema_of(x), fitted, given_table))


@given(st.data(), CATEGORIES, st.one_of(VOCABULARIES, HASHED), st.sampled_from(["target", "count", "rate"]))
@settings(deadline=None)
def test_categories_by_their_outcomes(data: Any, drawn: Any, rules: dict[str, Any], encoding: Any) -> None:
    value, kind = drawn
    # Fitting reads every fitted value, which is refused where it is too rare and unseen values are.
    rules = {key: rule for key, rule in rules.items() if key != "min_count"}
    nulls = data.draw(st.sampled_from(["fill", "error"]))
    fitted, found = data.draw(some(value)), data.draw(some(value))
    n = len(fitted)
    schema = schema_of(
        Feature(name="c", entity="candidate", kind="categorical", nulls=nulls, **rules),
        Feature(
            name="x", entity="candidate", kind="target", of="c", encoding=encoding,
            event="click" if encoding == "target" else None,
        ),
    )  # fmt: skip
    clicks = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    log = {"c": columns_of(fitted, kind), "u": pa.array(range(n), pa.int64()), "click": pa.array(clicks, pa.int64())}
    assert_same(both(schema, pa.table(log), pa.table({"c": columns_of(found + fitted, kind)})))


# ---- text ------------------------------------------------------------------------------------------------------------


@given(st.data(), st.one_of(VOCABULARIES, HASHED), KEEP, st.integers(1, 12), st.integers(1, 4))
@settings(deadline=None, max_examples=300)
def test_words(data: Any, rules: dict[str, Any], keep: Any, length: int, ngrams: int) -> None:
    fitted, found = data.draw(some(WORDY)), data.draw(some(WORDY))
    x = Feature(name="x", entity="candidate", kind="text", keep=keep, length=length, ngrams=ngrams, **rules)
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
    table = pa.table({"x": chunked(found + fitted, kind, data.draw(st.integers(0, 9)))})
    assert_same(both(schema_of(x), pa.table({"x": columns_of(fitted, kind)}), table, threads=2))


@given(st.data(), st.sampled_from([1, 2, 7, 64, 100]), st.integers(1, 3), st.sampled_from(["fill", "error"]))
@settings(deadline=None)
def test_tfidf(data: Any, dim: int, ngrams: int, nulls: Any) -> None:
    fitted, found = data.draw(some(WORDY)), data.draw(some(WORDY))
    x = Feature(name="x", entity="candidate", kind="tfidf", dim=dim, ngrams=ngrams, nulls=nulls)
    table = pa.table({"x": columns_of(found + fitted, pa.string(), at=data.draw(st.integers(0, 9)))})
    assert_same(both(schema_of(x), pa.table({"x": columns_of(fitted, pa.string())}), table))


def test_every_code_point_is_read_alike() -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    words = ["a" + "b".join(points[i : i + 64]) for i in range(0, len(points), 64)]
    parts = [f" {p},{p}x{p} " for p in points[: len(words)]]
    features = (
        Feature(name="words", entity="candidate", kind="text", length=200, ngrams=2, hash_rows=1 << 20),
        Feature(name="parts", entity="candidate", kind="multi", length=4, hash_rows=1 << 20),
    )
    table = pa.table({"words": words, "parts": parts})
    assert_same(both(schema_of(*features), table[:0], table))
    assert len(words) > SPACES
    assert not any(chr(c).isspace() for c in range(SPACES, 0x110000))


@given(
    st.data(),
    st.one_of(VOCABULARIES, HASHED),
    KEEP,
    LENGTHS,
    st.sampled_from([",", "a", "||", "é", "日本", "  "]),
)
@settings(deadline=None, max_examples=200)
def test_texts_that_are_lists(data: Any, rules: dict[str, Any], keep: Any, length: int, separator: str) -> None:
    part = st.sampled_from(["a", "b", " a ", "\u3000", "\x85é\xa0", "", separator[0], separator[-1], "日", "x" * 20])
    texts = some(st.one_of(st.lists(part, max_size=40).map(separator.join), WORDY))
    fitted, found = data.draw(texts), data.draw(texts)
    x = Feature(name="x", entity="candidate", kind="multi", separator=separator, keep=keep, length=length, **rules)
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
    table = pa.table({"x": chunked(found + fitted, kind, data.draw(st.integers(0, 9)))})
    assert_same(both(schema_of(x), pa.table({"x": columns_of(fitted, kind)}), table))


@pytest.mark.parametrize("kind", ["text", "tfidf", "multi"])
@given(st.lists(st.one_of(st.none(), st.binary(max_size=6), st.text(LETTERS, max_size=6).map(str.encode)), max_size=6))
@settings(deadline=None)
def test_bytes_that_are_no_text(kind: Any, rows: list[bytes | None]) -> None:
    x = Feature(name="x", entity="candidate", kind=kind, **({} if kind == "tfidf" else {"hash_rows": 9, "length": 3}))
    raw = pa.array(rows, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
    assert_same(both(schema_of(x), pa.table({"x": ["a"]}), pa.table({"x": column})))


# ---- times -----------------------------------------------------------------------------------------------------------

TICKS = st.one_of(
    st.sampled_from([0, -1, 1, 86_399, -86_400, 10**18, LARGEST, -LARGEST - 1, LARGEST - 1]),
    st.integers(-(10**10), 10**10),
    st.integers(-(2**63), LARGEST),
)
UNITS = st.sampled_from(["s", "ms", "us", "ns"])
OFFSETS = st.sampled_from([0.0, 5.5, -12.0, 14.0])


@given(st.data(), UNITS, OFFSETS, st.sampled_from(["fill", "error"]))
@settings(deadline=None)
def test_times(data: Any, unit: Any, offset: float, nulls: Any) -> None:
    cycles = [
        Feature(name=part, entity="context", kind="numeric", derive=part, nulls=nulls)  # type: ignore[arg-type]
        for part in ("hour_cycle", "weekday_cycle", "year_cycle")
    ]
    parts = [
        Feature(name=part, entity="context", kind="categorical", derive=part, **rules)  # type: ignore[arg-type]
        for part, rules in (
            ("hour", {}),
            ("weekday", {"unseen": data.draw(st.sampled_from(["row", "error"]))}),
            ("hour_of_week", {"hash_rows": 10, "hashes": 2}),
        )
    ]
    schema = schema_of(*cycles, *parts, timestamp="t", timestamp_unit=unit, utc_offset_hours=offset)
    kind = data.draw(st.sampled_from([pa.int64(), pa.timestamp("s"), pa.timestamp("us", tz="UTC")]))
    tick = st.integers(-(10**9), 10**9) if pa.types.is_timestamp(kind) else TICKS
    fitted = [tick for tick in data.draw(some(tick)) if tick is not None or nulls == "fill"]
    table = pa.table({"t": chunked(data.draw(some(tick)) + fitted, kind, data.draw(st.integers(0, 9)))})
    assert_same(both(schema, pa.table({"t": columns_of(fitted, kind)}), table, domain="request"))


@given(st.data(), UNITS)
@settings(deadline=None, max_examples=200)
def test_time_since(data: Any, unit: Any) -> None:
    options = {
        "scaling": data.draw(st.sampled_from(["none", "standard", "log1p", "quantile"])),
        "out_of_range": data.draw(st.sampled_from(["keep", "clip", "null", "error"])),
        "nulls": data.draw(st.sampled_from(["fill", "error"])),
        "indicator": data.draw(st.booleans()),
    }
    scaling = data.draw(st.sampled_from(["none", "standard", "minmax", "robust", "quantile", "normal"]))
    schema = schema_of(
        Feature(name="ago", entity="user", kind="numeric", derive="recency", source="then", **options),
        Feature(name="i", entity="item", kind="categorical"),
        Feature(name="last", entity="user", kind="sequence", of="i", source="s", length=3),
        Feature(name="gaps", entity="user", kind="gaps", of="last", source="g", scaling=scaling, length=3),
        timestamp="t",
        timestamp_unit=unit,
    )
    tables = []
    for most in (8, 20):
        n = data.draw(st.integers(0, most))
        ticks, then = (data.draw(st.lists(st.none() | TICKS, min_size=n, max_size=n)) for _ in range(2))
        gaps = data.draw(st.lists(st.none() | some(TICKS, 5), min_size=n, max_size=n))
        at = data.draw(st.integers(0, 9))
        tables.append(
            pa.table(
                {
                    "t": columns_of(ticks, pa.int64(), at=at),
                    "then": columns_of(then, pa.int64(), at=at),
                    "g": columns_of(gaps, pa.list_(pa.int64()), at=at),
                    "s": pa.array([None] * n, pa.list_(pa.int64())),
                    "i": pa.array([1] * n, pa.int64()),
                }
            )
        )
    assert_same(both(schema, *tables, domain="request"))


def test_columns_that_are_no_times() -> None:
    schema = schema_of(
        Feature(name="ago", entity="user", kind="numeric", derive="recency", source="then"),
        Feature(name="i", entity="item", kind="categorical"),
        Feature(name="last", entity="user", kind="sequence", of="i", source="s", length=3),
        Feature(name="gaps", entity="user", kind="gaps", of="last", source="g", length=3),
        timestamp="t",
    )
    good = {"t": [1, 2], "then": [0, 1], "g": [[0], None], "s": [[1], None], "i": [1, 2]}
    pipeline = FeaturePipeline(schema).fit(interactions=pa.table(good))
    for change in (
        {"g": [None, None]}, {"g": [1, 2]}, {"g": [["a"], None]}, {"then": ["a", "b"]}, {"t": [None, None]},
        {"t": [1.5, 2]}, {"t": [1.0, math.nan]}, {"then": [None, None]}, {"s": [None, None]},
    ):  # fmt: skip
        assert_same(both_of(pipeline, pa.table(good | change), domain="request"))


# ---- whole tables ----------------------------------------------------------------------------------------------------


def test_the_first_feature_that_is_wrong_is_named() -> None:
    features = (
        Feature(name="a", entity="candidate", kind="numeric", nulls="error"),
        Feature(name="b", entity="candidate", kind="multi", unseen="error", length=2),
        Feature(name="c", entity="candidate", kind="categorical"),
        Feature(name="d", entity="candidate", kind="vector", dim=2),
    )
    good = {"a": [1.0], "b": [["x"]], "c": ["y"], "d": [[1.0, 2.0]]}
    pipeline = FeaturePipeline(schema_of(*features)).fit(interactions=pa.table(good))
    wrong = {"a": pa.array([None], pa.float64()), "b": [["z"]], "c": [5], "d": [[1.0]]}
    names = list(good)
    for first in range(4):
        for others in range(16):
            bad = {name: wrong[name] for i, name in enumerate(names) if i == first or (i > first and others >> i & 1)}
            with pytest.raises(SchemaError, match=f"'{names[first]}'"):
                pipeline.transform("candidate", pa.table(good | bad), engine="numba")
            assert_same(both_of(pipeline, pa.table(good | bad)))


@pytest.mark.parametrize("domain", ["request", "item", "candidate"])
def test_parts_and_threads_change_nothing(domain: Any) -> None:
    raw = operator_schema.raw_tables()
    n = len(raw["log"]["user"])
    made = {"day_rate": np.linspace(0, 1, n), "click_gaps": [[i, None, -i] for i in range(n)]}
    pipeline = FeaturePipeline(operator_schema.SCHEMA).fit(
        users=pa.table(raw["users"]), items=pa.table(raw["items"]), interactions=pa.table(raw["log"] | made)
    )
    few = {"request": raw["users"], "item": raw["items"], "candidate": raw["log"]}[domain]
    length = len(next(iter(few.values())))
    columns = {name: raw["log"][name][:length] for name in ("time", "query")} | few
    columns |= {name: column[:length] for name, column in made.items()}
    columns["clicked"] = [[100, None, 7]] * length
    rng = np.random.default_rng(0)
    table = pa.table(columns).take(rng.integers(0, length, 40_000))
    expected = pipeline.transform(domain, table, engine="arrays")
    for threads in (1, 2, 5):
        assert_same([expected, pipeline.transform(domain, table, engine="numba", threads=threads)])
    assert left_to_arrays(pipeline, table, domain=domain) == set()
    assert_same(both_of(pipeline, table[:0], domain=domain))
    assert_same(
        [Packed(expected.ids[7:9], expected.dense[7:9]), pipeline.transform(domain, table[7:9], engine="numba")]
    )
