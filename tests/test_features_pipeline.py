"""The pipeline: rules for values, whatever they come in, and a state that is checked when it is read."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from xxhash import xxh64_intdigest

from fastmtr.errors import BackendError, SchemaError
from fastmtr.features import FeaturePipeline, warm_up
from fastmtr.graph import Input, Packed
from fastmtr.schema import Feature, Schema, Task
from fastmtr.tables import read_table

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]), st.integers(0, 3))
TEXT = st.one_of(
    st.sampled_from(
        ["", " ", "a", "A", "a,b", "b, a ,,a", "\x00", "e\u0301", "\u00e9", "\U0001f600", "a\x1cb", "\u2028,x"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e308, -1e308, 3.5e38, 5e-324, 2.0**53 + 1]),
)
SCALINGS = ("none", "standard", "minmax", "log1p", "quantile")


def _schema(*features: Feature) -> Schema:
    return Schema(
        user="u", item="i", features=features, tasks=(Task(name="click"),), timestamp="t", timestamp_unit="ms"
    )


def _fitted(features: list[Feature], columns: dict[str, Any]) -> FeaturePipeline:
    table = read_table(columns)
    schema = _schema(*features)
    return FeaturePipeline(schema).fit(items=table, interactions=table)


def _number(name: str = "x", **options: Any) -> Feature:
    return Feature(name=name, entity="item", kind="numeric", **options)


def _category(name: str = "c", **options: Any) -> Feature:
    return Feature(name=name, entity="item", kind="categorical", **options)


def _rows_agree(pipeline: FeaturePipeline, columns: dict[str, list[Any]]) -> None:
    packed = pipeline.transform("item", read_table(columns))
    for i in range(packed.n_rows):
        row = pipeline.transform_row("item", {name: values[i] for name, values in columns.items()})
        assert row.ids.dtype == packed.ids.dtype == np.int32
        assert row.dense.dtype == packed.dense.dtype == np.float32
        assert row.ids.tolist() == [packed.ids[i].tolist()]
        assert row.dense.tobytes() == packed.dense[i].tobytes()
    assert np.isfinite(packed.dense).all()


def _same(a: Packed, b: Packed) -> bool:
    return a.ids.tobytes() == b.ids.tobytes() and a.dense.tobytes() == b.dense.tobytes()


# ---------------------------------------------------------------------- rows and tables agree


MIXED = st.one_of(st.none(), st.booleans(), INT64, st.integers(-(2**70), 2**70), NUMBERS, TEXT, st.just("\ud800"))


@given(MIXED, st.sampled_from(["int", "str"]))
def test_one_value_is_refused_in_both_ways_or_in_neither(value: Any, kind: str) -> None:
    known = [1, 2, 3] if kind == "int" else ["a", "b", "a,b"]
    features = [_category(), _category("h", hash_rows=3), _number()]
    pipeline = _fitted(features, {"c": known, "h": known, "x": [1, 2, 3]})
    for name in ("c", "h", "x"):
        try:
            row: Any = pipeline.transform_row("item", {name: value})
        except SchemaError:
            row = None
        try:
            table: Any = pipeline.transform("item", read_table({name: [value]}), missing="null")
        except SchemaError:
            table = None
        too_big = type(value) is int and not -(2**63) <= value < 2**63
        if name == "x" and too_big:
            # A list of such integers is no Arrow column; alone it is a number like others.
            assert row is not None
        else:
            assert (row is None) == (table is None)
            assert row is None or _same(row, table)


# ---------------------------------------------------------------------- rules for values


def test_rules_of_categories() -> None:
    pipeline = _fitted([_category(min_count=2)], {"c": [7, 7, 7, 5, 5, 9, None, 8, 8]})
    # Most frequent first, the smaller value first among equals; 9 is too rare.
    packed = pipeline.transform("item", read_table({"c": [None, 9, 1234, 7, 5, 8]}))
    assert packed.ids[:, 0].tolist() == [0, 1, 1, 2, 3, 4]
    assert pipeline.inputs == (Input("c", "item", "ids", 0, 1, rows=5, padding=None),)
    for same in ([7, True, 1.0], [np.int8(7), np.bool_(True), np.float32(1)]):
        rows = [pipeline.transform_row("item", {"c": value}).ids[0, 0] for value in same]
        assert rows == [2, 1, 1]


def test_a_column_of_nulls_only_takes_either_type_later() -> None:
    features = [_category(), _category("h", hash_rows=5), Feature(name="m", entity="item", kind="multi", length=2)]
    pipeline = _fitted(features, {name: [None, None] for name in "chm"})
    pipeline = FeaturePipeline.from_state(pipeline.schema, *pipeline.state())
    _rows_agree(pipeline, {"c": [1, None], "h": [1, 2], "m": [[1], None]})
    _rows_agree(pipeline, {"c": ["a", None], "h": ["a", ""], "m": ["a,b", None]})
    assert pipeline.transform_row("item", {"c": "a", "m": "a,b"}).ids.tolist() == [[1, 0, 1, 0]]


def test_rules_of_hashed_categories() -> None:
    pipeline = _fitted([_category(hash_rows=10)], {"c": ["a", "b"]})
    packed = pipeline.transform("item", read_table({"c": [None, "zzz"]}))
    assert packed.ids[:, 0].tolist() == [0, 2 + xxh64_intdigest(b"zzz") % 10]
    assert pipeline.inputs[0].rows == 12


def test_rules_of_numbers() -> None:
    values = [1.0, 2.0, 3.0, None, 10.0]
    pipeline = _fitted([_number(s, scaling=s) for s in SCALINGS], dict.fromkeys(SCALINGS, values))

    def scaled(x: float | None) -> dict[str, float]:
        dense = pipeline.transform_row("item", dict.fromkeys(SCALINGS, x)).dense[0]
        return dict(zip(SCALINGS, dense.tolist(), strict=True))

    known = np.array([1.0, 2, 3, 10])
    logs = np.log1p(known)
    assert scaled(3.0) == pytest.approx(
        {
            "none": 3,
            "standard": (3 - 4) / known.std(),
            "minmax": 2 / 9,
            "log1p": (np.log(4) - logs.mean()) / logs.std(),
            "quantile": 2 / 3,
        }
    )
    assert scaled(None) == pytest.approx(
        {"none": 4, "standard": 0, "minmax": 1 / 3, "log1p": 0, "quantile": 2 / 3 + 1 / 21}
    )
    # Out of range: clipped by minmax and quantile; what float32 cannot hold is an end of the range for all.
    assert (scaled(99.0)["minmax"], scaled(99.0)["quantile"], scaled(-99.0)["quantile"]) == (1, 1, 0)
    for huge in (math.inf, 1e300, 10**400):
        assert scaled(huge) == scaled(10.0)
        assert scaled(-huge) == scaled(1.0)


def test_strict_nulls_raise() -> None:
    pipeline = _fitted([_number(nulls="error")], {"x": [1, 2]})
    with pytest.raises(SchemaError, match=r"column 'x' has 2 nulls, and its rule is nulls = 'error'"):
        pipeline.transform("item", read_table({"x": [1.0, None, math.nan]}))
    base = pipeline.transform("item", read_table({"x": [1.0]}))
    for row, stored in (({}, None), ({"x": None}, None), ({"x": None}, base)):
        with pytest.raises(SchemaError, match="column 'x' is null" if row else "column 'x' is not given"):
            pipeline.transform_row("item", row, base=stored)
    assert _same(pipeline.transform_row("item", {}, base=base), base)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_columns_without_information(scaling: Any) -> None:
    for values in ([None, None], [5.0, 5.0], [math.inf, -math.inf]):
        pipeline = _fitted([_number(scaling=scaling)], {"x": pa.array(values, pa.float64())})
        dense = pipeline.transform("item", read_table({"x": [5.0, -1.0, None, math.inf]})).dense
        assert np.isfinite(dense).all()


def test_rules_of_lists() -> None:
    features = [
        Feature(name="tags", entity="item", kind="multi", length=3, separator="|"),
        Feature(name="title", entity="item", kind="text", length=3),
    ]
    pipeline = _fitted(features, {"tags": ["a|b", "a", "a| c"], "title": ["The cat", "the DOG", "the"]})
    packed = pipeline.transform(
        "item",
        read_table({"tags": ["c|c|x|y|a", "", None, "b"], "title": ["Dog! the cat, the dog", "", None, "cow the"]}),
    )
    a, b, c, the, cat, dog = 2, 3, 4, 2, 3, 4
    assert packed.ids[:, :3].tolist() == [[c, 1, a], [0, 0, 0], [0, 0, 0], [b, 0, 0]]
    assert packed.ids[:, 3:].tolist() == [[dog, the, cat], [0, 0, 0], [0, 0, 0], [1, the, 0]]


def test_sequences_share_the_vocabulary_of_their_feature() -> None:
    schema = _schema(
        _category("video", hash_rows=None), Feature(name="last", entity="user", kind="sequence", of="video", length=3)
    )
    pipeline = FeaturePipeline(schema).fit(items=pa.table({"video": [10, 20, 30]}))
    packed = pipeline.transform("request", read_table({"last": [[30, None, 99, 30, 10], [], None]}))
    assert packed.ids.tolist() == [[4, 1, 4], [0, 0, 0], [0, 0, 0]]
    assert pipeline.inputs == (
        Input("last", "request", "ids", 0, 3, rows=5, padding=0),
        Input("video", "item", "ids", 0, 1, rows=5, padding=None),
    )


def test_derived_features_come_from_the_timestamp() -> None:
    hour = Feature(name="hour", entity="context", kind="categorical", derive="hour")
    day = Feature(name="day", entity="context", kind="categorical", derive="weekday")
    schema = msgspec.structs.replace(_schema(hour, day), utc_offset_hours=5.5)
    moments = [datetime.datetime(2024, 1, d, h, tzinfo=datetime.UTC) for d in range(1, 8) for h in range(24)]
    ticks = [int(m.timestamp() * 1000) for m in moments]
    pipeline = FeaturePipeline(schema).fit(interactions=pa.table({"t": ticks}))
    local = [m.astimezone(datetime.timezone(datetime.timedelta(hours=5.5))) for m in moments]
    packed = pipeline.transform("request", pa.table({"t": ticks}))
    given = pipeline.transform(
        "request", pa.table({"hour": [m.hour for m in local], "day": [m.weekday() for m in local]})
    )
    stamps = pipeline.transform("request", pa.table({"t": pa.array(moments)}))
    assert _same(packed, given)
    assert _same(packed, stamps)
    for i in (0, 50, 167):
        assert _same(pipeline.transform_row("request", {"t": ticks[i]}), packed.take([i]))
        assert _same(pipeline.transform_row("request", {"t": moments[i]}), packed.take([i]))
    # What is said outright counts more than what follows from the time.
    said = pipeline.transform_row("request", {"t": ticks[0], "hour": 3}).ids[0]
    assert said.tolist() == [pipeline.transform_row("request", {"hour": 3}).ids[0, 0], packed.ids[0, 1]]
    assert pipeline.transform_row("request", {"t": None}).ids.tolist() == [[0, 0]]
    assert pipeline.transform_row("request", {"t": -(2**63)}).ids.all()


def test_a_base_row_keeps_what_is_not_named() -> None:
    schema = _schema(
        Feature(name="age", entity="user", kind="numeric"),
        Feature(name="city", entity="user", kind="categorical"),
        Feature(name="tags", entity="user", kind="multi", length=2),
        Feature(name="tab", entity="context", kind="categorical"),
        Feature(name="depth", entity="context", kind="numeric"),
    )
    table = read_table({"age": [1, 2], "city": ["a", "b"], "tags": ["x", "y"], "tab": [1, 2], "depth": [3, 4]})
    pipeline = FeaturePipeline(schema).fit(interactions=table)
    base = pipeline.transform("request", table).take([1])
    row = pipeline.transform_row("request", {"tab": 1, "depth": 3}, base=base)
    assert _same(row, pipeline.transform_row("request", {"age": 2, "city": "b", "tags": "y", "tab": 1, "depth": 3}))
    assert _same(pipeline.transform_row("request", {}, base=base), base)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"citty": "a"}, "'citty' is no feature of the request; did you mean 'city'"),
        ({"zzzzzz": 1}, r"'zzzzzz' is no feature of the request; they are \['city', 'age', 'tags', 'n'\]"),
        ({"city": 5}, "column 'city' should hold text, found the number 5"),
        ({"city": ["a"]}, "column 'city' should hold whole numbers or text, found a list"),
        ({"city": "\udfff"}, "column 'city' holds text that is not valid Unicode"),
        ({"age": "12"}, "column 'age' should hold numbers, found the text '12'"),
        ({"age": 1j}, "column 'age' should hold numbers, found a complex"),
        ({"tags": 5}, "column 'tags' should hold a list or text, found the number 5"),
        ({"tags": [["a"]]}, "column 'tags' should hold whole numbers or text, found a list"),
        ({"n": "12"}, "column 'n' should hold whole numbers, found the text '12'"),
        ({"n": 1.5}, "column 'n' should hold whole numbers or text, found the number 1.5"),
        ({"n": 2**63}, "column 'n' should hold whole numbers of 64 bits, found the number 9223372036854775808"),
    ],
)
def test_rows_are_refused_kindly(row: dict[str, Any], message: str) -> None:
    schema = _schema(
        Feature(name="city", entity="user", kind="categorical"),
        Feature(name="age", entity="user", kind="numeric"),
        Feature(name="tags", entity="user", kind="multi"),
        Feature(name="n", entity="user", kind="categorical"),
    )
    table = read_table({"city": ["a"], "age": [1], "tags": ["x"], "n": [1]})
    pipeline = FeaturePipeline(schema).fit(users=table)
    with pytest.raises(SchemaError, match=message):
        pipeline.transform_row("request", row)


def test_tables_are_refused_kindly() -> None:
    pipeline = _fitted([_category(), _number()], {"c": ["a"], "x": [1]})
    for columns, message in [
        ({"c": ["a"]}, r"no column for feature 'x'; it has \['c'\]"),
        ({"c": [1], "x": [1]}, "column 'c' should hold text, found a column of type int64"),
        ({"c": ["a"], "x": ["1"]}, "column 'x' should hold numbers, found a column of type string"),
        (
            {"c": pa.array([b"a"]), "x": [1]},
            "column 'c' should hold whole numbers or text, found a column of type binary",
        ),
    ]:
        with pytest.raises(SchemaError, match=message):
            pipeline.transform("item", read_table(columns))
    with pytest.raises(SchemaError, match="feature 'c' of entity 'item' has no column"):
        FeaturePipeline(_schema(_category())).fit(items=pa.table({"x": [1]}))
    with pytest.raises(SchemaError, match="not fitted yet"):
        FeaturePipeline(_schema(_category())).transform("item", pa.table({"c": [1]}))


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    pipeline = _fitted([_category()], {"c": ["a"]})
    with pytest.raises(BackendError, match=r"Numba is not installed: pip install 'fastmtr\[features\]'"):
        pipeline.transform("item", {"c": ["a"]}, engine="numba")
    with pytest.raises(BackendError, match="Numba is not installed"):
        warm_up()
    assert pipeline.transform("item", {"c": ["a"]}).ids.tolist() == [[2]]


# ---------------------------------------------------------------------- fitting and state


def test_entities_count_as_often_as_they_occur() -> None:
    schema = Schema(
        user="u",
        item="i",
        features=(_category("i", min_count=2), _category("author"), _number("size")),
        tasks=(Task(name="click"),),
    )
    items = pa.table({"i": [1, 2, 3, 4], "author": ["x", "y", "y", "z"], "size": [10.0, 20.0, 30.0, 1000.0]})
    pipeline = FeaturePipeline(schema).fit(items=items, interactions=pa.table({"i": [1, 1, 1, 2, 3, 3]}))
    packed = pipeline.transform("item", items)
    # Item 2 is rare, item 4 and its author never occur, and its size is not in the mean.
    assert packed.ids.tolist() == [[2, 2], [1, 3], [3, 3], [1, 1]]
    mean, deviation = 110 / 6, np.std([10, 10, 10, 20, 30, 30])
    np.testing.assert_allclose(packed.dense[:, 0], (np.array([10, 20, 30, 1000]) - mean) / deviation, rtol=1e-6)


FULL = [
    _category("n"),
    _category("s"),
    _category("h", hash_rows=7),
    Feature(name="m", entity="item", kind="multi", length=3),
    Feature(name="w", entity="item", kind="text", length=3),
    *(_number(scaling, scaling=scaling) for scaling in SCALINGS),
]
FULL_COLUMNS: dict[str, list[Any]] = {
    "n": [1, 2, None, -(2**63)],
    "s": ["é", "", "\x00", "\U0001f600"],
    "h": ["a", None, "b", "c"],
    "m": ["a,b", None, "", "c"],
    "w": ["The cat", None, "", "dog"],
    **{scaling: [1.5, None, -2.0, 1e30] for scaling in SCALINGS},
}


def test_loading_and_one_row_need_no_pyarrow(tmp_path: Any) -> None:
    pipeline = _fitted(FULL, FULL_COLUMNS)
    state, arrays = pipeline.state()
    row = {name: values[0] for name, values in FULL_COLUMNS.items()}
    expected = pipeline.transform_row("item", row)
    (tmp_path / "a.safetensors").write_bytes(save(arrays))
    (tmp_path / "a.json").write_bytes(
        msgspec.json.encode([pipeline.schema, state, row, expected.ids.tolist(), expected.dense.tolist()])
    )
    script = """
import sys, pathlib, msgspec
sys.modules["pyarrow"] = None
from safetensors.numpy import load
from fastmtr.features import FeaturePipeline
from fastmtr.schema import Schema
folder = pathlib.Path(sys.argv[1])
saved = (folder / "a.json").read_bytes()
schema, state, row, ids, dense = msgspec.json.decode(saved, type=tuple[Schema, dict, dict, list, list])
pipeline = FeaturePipeline.from_state(schema, state, load((folder / "a.safetensors").read_bytes()))
packed = pipeline.transform_row("item", row)
assert (packed.ids.tolist(), packed.dense.tolist()) == (ids, dense)
"""
    subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a: s.update(version=99), "state is .99, "),
        (lambda s, a: s.update(hash="md5"), "this fastmtr reads"),
        (lambda s, a: s["features"].pop("n"), "has nothing for feature 'n'"),
        (lambda s, a: s["features"]["n"].update(type="float"), "state of feature 'n' is damaged"),
        (lambda s, a: s["features"]["h"].update(hash_rows=8), "state of feature 'h' is damaged"),
        (lambda s, a: s["features"]["standard"].update(factor=0.0), "state of feature 'standard' is damaged"),
        (
            lambda s, a: s["features"]["standard"].update(mean="x"),
            "state of feature 'standard' is damaged: Expected `float`",
        ),
        (lambda s, a: s["features"]["standard"].update(kind="minmax"), "fitted for scaling 'minmax'"),
        (lambda s, a: a.pop("n/values"), "should hold 'values', a vector of int64; found nothing"),
        (lambda s, a: a.update({"n/values": a["n/values"].astype(np.int32)}), "found int32"),
        (lambda s, a: a.update({"n/values": np.array([1, 1, 2])}), "a category stands twice"),
        (lambda s, a: a.update({"s/offsets": a["s/offsets"] + 1}), "texts do not lie within their bytes"),
        (lambda s, a: a.update({"s/bytes": a["s/bytes"] | 0x80}), "state of feature 's' is damaged"),
        (lambda s, a: a.update({"quantile/knots": a["quantile/knots"][::-1]}), "quantiles do not ascend"),
    ],
)
def test_damaged_state_is_refused(change: Any, message: str) -> None:
    pipeline = _fitted(FULL, FULL_COLUMNS)
    state, arrays = pipeline.state()
    state = msgspec.json.decode(msgspec.json.encode(state))
    change(state, arrays)
    with pytest.raises(SchemaError, match=message):
        FeaturePipeline.from_state(pipeline.schema, state, arrays)
