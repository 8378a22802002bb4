"""What a feature does with nulls, unseen values and values out of range, by its rule; and categories that are made."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer, RobustScaler
from xxhash import xxh64_intdigest

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema, Task
from fastmtr.tables import read_table

CITIES = ["Rome", "Rome", "Oslo", "Graz", None]


def _fitted(feature: Feature, columns: dict[str, Any]) -> FeaturePipeline:
    schema = Schema(user="u", item="i", features=(feature,), tasks=(Task(name="click"),))
    return FeaturePipeline(schema).fit(items=read_table(columns))


def _category(**options: Any) -> Feature:
    return Feature(name="c", entity="item", kind="categorical", **options)


def _number(**options: Any) -> Feature:
    return Feature(name="x", entity="item", kind="numeric", **options)


def _both(pipeline: FeaturePipeline, columns: dict[str, list[Any]]) -> Packed:
    """The rows of a table, which one by one are the same."""
    packed = pipeline.transform("item", read_table(columns))
    saved = FeaturePipeline.from_state(pipeline.schema, *pipeline.state())
    for i in range(packed.n_rows):
        row = saved.transform_row("item", {name: values[i] for name, values in columns.items()})
        assert row.ids.tobytes() == packed.ids[i].tobytes()
        assert row.dense.tobytes() == packed.dense[i].tobytes()
    return packed


def test_unseen_values_have_rows_of_their_own() -> None:
    pipeline = _fitted(_category(oov_rows=3), {"c": CITIES})
    ids = _both(pipeline, {"c": ["Rome", "Oslo", "Paris", "Bern", None]}).ids[:, 0]
    assert ids.tolist() == [4, 6, 1 + xxh64_intdigest(b"Paris") % 3, 1 + xxh64_intdigest(b"Bern") % 3, 0]
    assert pipeline.inputs[0].rows == 7


def test_unseen_values_and_nulls_may_be_refused() -> None:
    pipeline = _fitted(_category(unseen="error"), {"c": CITIES})
    with pytest.raises(SchemaError, match=r"'c' has 2 values that were not seen when it was fitted, such as 'Paris'"):
        pipeline.transform("item", read_table({"c": ["Rome", "Paris", "Bern"]}))
    with pytest.raises(SchemaError, match=r"'c' has the text 'Paris', which was not seen .* unseen = 'error'"):
        pipeline.transform_row("item", {"c": "Paris"})
    pipeline = _fitted(_category(nulls="error"), {"c": CITIES[:4]})
    with pytest.raises(SchemaError, match=r"column 'c' has 1 nulls, and its rule is nulls = 'error'"):
        pipeline.transform("item", read_table({"c": CITIES}))


def test_several_hashes_of_a_value() -> None:
    pipeline = _fitted(_category(hash_rows=50, hashes=3), {"c": CITIES})
    packed = _both(pipeline, {"c": ["Rome", None, "new"]})
    assert packed.ids[1].tolist() == [0, 0, 0]
    assert packed.ids[2].tolist() == [2 + xxh64_intdigest(b"new", seed=seed) % 50 for seed in range(3)]
    assert (pipeline.inputs[0].width, pipeline.inputs[0].rows) == (3, 52)


@pytest.mark.parametrize("options", [{}, {"hash_rows": 20, "hashes": 2}, {"oov_rows": 4}])
def test_a_cross_of_columns(options: dict[str, Any]) -> None:
    pipeline = _fitted(_category(cross=("city", "age"), **options), {"city": CITIES, "age": [1, 1, 2, None, 3]})
    columns = {"city": ["Rome", "Oslo", "Oslo", None, "Rome"], "age": [1, 2, 1, 1, None]}
    ids = _both(pipeline, columns).ids
    joint = [
        xxh64_intdigest(struct.pack("<QQ", xxh64_intdigest(city.encode()), xxh64_intdigest(struct.pack("<q", age))))
        for city, age in (("Oslo", 1), ("Rome", 1))
    ]
    assert not ids[3:].any()
    if "hash_rows" in options:
        assert ids[0, 0] == 2 + joint[1] % 20
        assert ids.shape == (5, 2)
    else:
        oov = options.get("oov_rows", 1)
        unseen = 1 + xxh64_intdigest(struct.pack("<Q", joint[0])) % oov
        assert ids[:3, 0].tolist() == [1 + oov, 2 + oov, unseen]


def test_buckets_of_a_number() -> None:
    pipeline = _fitted(_category(buckets=4), {"c": [*range(100), None]})
    assert pipeline.encoder("c").bounds.tolist() == [24, 49, 74]  # type: ignore[union-attr]
    ids = _both(pipeline, {"c": [None, -math.inf, 23.9, 24.0, 50.0, 1e9, math.nan]}).ids[:, 0]
    assert ids.tolist() == [0, 2, 2, 3, 4, 5, 0]
    constant = _fitted(_category(buckets=4), {"c": [7.0, 7.0]})
    assert _both(constant, {"c": [1.0, 7.0, 9.0]}).ids[:, 0].tolist() == [2, 2, 2]


def test_robust_and_normal_scaling_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(2, 3, 201)
    robust = _both(_fitted(_number(scaling="robust"), {"x": x}), {"x": x.tolist()}).dense[:, 0]
    np.testing.assert_allclose(robust, RobustScaler().fit_transform(x[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    normal = _both(_fitted(_number(scaling="normal"), {"x": x}), {"x": x.tolist()}).dense[:, 0]
    theirs = QuantileTransformer(n_quantiles=201, output_distribution="normal").fit_transform(x[:, None])[:, 0]
    inner = np.abs(theirs) < 2
    np.testing.assert_allclose(normal[inner], theirs[inner], atol=0.05)
    assert abs(float(normal.mean())) < 0.01


def test_clipping_to_quantiles() -> None:
    pipeline = _fitted(_number(scaling="none", clip=(0.1, 0.9)), {"x": np.arange(1, 101)})
    assert _both(pipeline, {"x": [-5.0, 10.0, 50.0, 90.0, 95.0]}).dense[:, 0].tolist() == [10, 10, 50, 90, 90]
    standard = _fitted(_number(clip=(0.0, 0.9)), {"x": [*range(1, 10), 10**9]})
    kept = np.minimum(np.array([*range(1, 10), 10**9]), 9)
    expected = (np.array([3.0, 50.0]).clip(1, 9) - kept.mean()) / kept.std()
    np.testing.assert_allclose(_both(standard, {"x": [3.0, 50.0]}).dense[:, 0], expected, rtol=1e-6)


def test_an_indicator_of_nulls() -> None:
    pipeline = _fitted(_number(indicator=True), {"x": [1.0, 3.0, None]})
    assert _both(pipeline, {"x": [3.0, None, math.nan]}).dense.tolist() == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(("rule", "expected"), [("keep", [-5, 2, 50]), ("clip", [0, 2, 10]), ("null", [5, 2, 5])])
def test_numbers_out_of_range(rule: Any, expected: list[float]) -> None:
    pipeline = _fitted(_number(scaling="none", out_of_range=rule), {"x": [0.0, 5.0, 10.0]})
    assert _both(pipeline, {"x": [-5.0, 2.0, 50.0]}).dense[:, 0].tolist() == expected


def test_numbers_out_of_range_may_be_refused() -> None:
    pipeline = _fitted(_number(out_of_range="error"), {"x": [0.0, 5.0, 10.0]})
    with pytest.raises(
        SchemaError, match=r"'x' has 2 values beyond 0.0 and 10.0, such as -5.0, and its rule is out_of"
    ):
        pipeline.transform("item", read_table({"x": [-5.0, 2.0, math.inf]}))


@given(st.lists(st.lists(st.none() | st.integers(0, 5), max_size=8), min_size=1, max_size=8))
def test_the_last_values_of_a_list(lists: list[list[int | None]]) -> None:
    feature = Feature(name="m", entity="item", kind="multi", length=3, keep="last")
    column = pa.array(lists, pa.list_(pa.int64()))
    pipeline = _fitted(feature, {"m": pa.array([[0, 1, 2, 3, 4]], pa.list_(pa.int64()))})
    packed = pipeline.transform("item", pa.table({"m": column}))
    for row, values in zip(packed.ids.tolist(), lists, strict=True):
        # 0 to 4 are known, and occurred once each.
        distinct = list(dict.fromkeys(2 + v if v < 5 else 1 for v in values if v is not None))
        assert row == [*distinct[-3:], 0, 0, 0][:3]
    for row, values in zip(packed.ids.tolist(), lists, strict=True):
        assert pipeline.transform_row("item", {"m": values}).ids.tolist() == [row]


@pytest.mark.parametrize("rule", ["fill", "error"])
def test_lists_leave_nulls_out_whatever_the_rule_of_their_vocabulary(rule: Any) -> None:
    features = (
        _category(nulls=rule),
        Feature(name="last", entity="user", kind="sequence", of="c", length=3),
    )
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    pipeline = FeaturePipeline(schema).fit(interactions=read_table({"c": [7]}))
    seen = [None, 7, None, 8]
    assert pipeline.transform("request", read_table({"last": [seen]})).ids.tolist() == [[2, 1, 0]]
    assert pipeline.transform_row("request", {"last": seen}).ids.tolist() == [[2, 1, 0]]


def test_a_category_that_must_be_given() -> None:
    pipeline = _fitted(_category(nulls="error", source="raw"), {"raw": CITIES[:4]})
    stored = pipeline.transform_row("item", {"raw": "Rome"})
    assert pipeline.transform_row("item", {}, base=stored).ids.tolist() == stored.ids.tolist()
    with pytest.raises(SchemaError, match=r"column 'raw' is not given, and the rule of feature 'c' is nulls = 'error'"):
        pipeline.transform_row("item", {})
    crossed = _fitted(_category(nulls="error", cross=("a", "b")), {"a": [1], "b": ["x"]})
    with pytest.raises(SchemaError, match=r"column 'b' is not given, and the rule of feature 'c'"):
        crossed.transform_row("item", {"a": 1})


def test_states_of_the_first_version() -> None:
    """They are read unless they hash, and are saved in the present one."""
    pipeline = _fitted(_number(scaling="minmax"), {"x": [1.0, 5.0]})
    state, arrays = pipeline.state()
    head = {key: state["features"]["x"][key] for key in ("kind", "nulls", "mean", "low", "high", "shift", "factor")}
    before = {"version": 1, "hash": "fnv1a64-fmix64", "features": {"x": head}}
    again = FeaturePipeline.from_state(pipeline.schema, before, arrays)
    assert again.state()[0]["features"] == state["features"]
    hashed = _fitted(_category(hash_rows=8), {"c": CITIES})
    before["features"] = {"c": {"type": "str", "hash_rows": 8}}
    with pytest.raises(
        SchemaError, match=r"an earlier release, whose hash \(fnv1a64-fmix64\) gave other rows than xxh64"
    ):
        FeaturePipeline.from_state(hashed.schema, before, {})


def test_a_program_that_is_not_the_schemas_is_refused() -> None:
    pipeline = _fitted(_number(), {"x": [1.0, 5.0]})
    state, arrays = pipeline.state()
    state["program"][0]["offset"] = 3
    with pytest.raises(SchemaError, match="its program is not that of the schema's features"):
        FeaturePipeline.from_state(pipeline.schema, state, arrays)


def test_names_of_the_packed_columns_and_whatever_table() -> None:
    features = (
        _category(hash_rows=9, hashes=2),
        _number(indicator=True),
        Feature(name="y", entity="item", kind="numeric"),
    )
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    columns = {"c": ["a", None, "b"], "x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]}
    pipeline = FeaturePipeline(schema)
    assert "not fitted" in repr(pipeline)
    packed = pipeline.fit_transform("item", columns)
    assert pipeline.get_feature_names_out("item") == (["c_0", "c_1"], ["x_0", "x_1", "y"])
    assert pipeline.get_feature_names_out("request") == ([], [])
    for table in (pa.table(columns), pd.DataFrame(columns), pl.DataFrame(columns)):
        for threads in (1, 3):
            again = pipeline.transform("item", table, threads=threads)
            assert again.ids.tobytes() == packed.ids.tobytes()
            assert again.dense.tobytes() == packed.dense.tobytes()
    assert packed.ids.flags.c_contiguous
    assert packed.dense.flags.c_contiguous


def test_a_cross_of_stored_and_new_values_is_not_made_of_half() -> None:
    features = (_category(cross=("city", "tab")), Feature(name="z", entity="item", kind="categorical", source="tab"))
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    pipeline = FeaturePipeline(schema).fit(items=read_table({"city": CITIES, "tab": [1, 2, 3, 4, 5]}))
    stored = pipeline.transform_row("item", {"city": "Rome", "tab": 1})
    both = pipeline.transform_row("item", {"city": "Rome", "tab": 2}, base=stored)
    assert both.ids.tolist() == pipeline.transform("item", read_table({"city": ["Rome"], "tab": [2]})).ids.tolist()
    with pytest.raises(SchemaError, match=r"'c' is made of 'city', 'tab' together, and the row has no 'city'"):
        pipeline.transform_row("item", {"tab": 2}, base=stored)


def test_buckets_where_one_value_dominates() -> None:
    pipeline = _fitted(_category(buckets=4), {"c": [0.0] * 9 + [3.0, 5.0]})
    assert _both(pipeline, {"c": [0.0, 3.0, 9.0]}).ids[:, 0].tolist() == [2, 3, 3]


def test_numbers_whose_range_was_never_seen() -> None:
    pipeline = _fitted(_number(out_of_range="error", scaling="none"), {"x": pa.array([None, None], pa.float64())})
    assert _both(pipeline, {"x": [5.0, -1e30]}).dense[:, 0].tolist() == [5.0, np.float32(-1e30)]


def test_a_range_next_to_nothing() -> None:
    pipeline = _fitted(_number(scaling="robust"), {"x": [0.0, 5e-324, 1e-323, 1e300]})
    assert np.isfinite(_both(pipeline, {"x": [1e30, -1e30]}).dense).all()


@pytest.mark.parametrize(("part", "value"), [("clock", {}), ("keys", {"user": "v", "item": "i"}), ("features", [])])
def test_altered_parts_of_a_state_are_refused(part: str, value: Any) -> None:
    pipeline = _fitted(_number(), {"x": [1.0, 5.0]})
    state, arrays = pipeline.state()
    with pytest.raises(SchemaError, match="the pipeline's state is damaged"):
        FeaturePipeline.from_state(pipeline.schema, state | {part: value}, arrays)


def test_messages_name_the_raw_column() -> None:
    pipeline = _fitted(_category(source="raw"), {"raw": [1, 2]})
    with pytest.raises(SchemaError, match="column 'raw' should hold whole numbers"):
        pipeline.transform_row("item", {"raw": "text"})
    crossed = _fitted(_category(cross=("a", "b")), {"a": [1], "b": ["x"]})
    with pytest.raises(SchemaError, match="column 'b' should hold text"):
        crossed.transform("item", read_table({"a": [1], "b": [2]}))


@pytest.mark.parametrize("rows", ["oov_rows", "hash_rows"])
def test_rows_fit_ids(rows: str) -> None:
    with pytest.raises(SchemaError, match="Expected `int` <= 1073741824"):
        Schema.from_json(
            Schema(user="u", item="i", features=(_category(**{rows: 7}),), tasks=(Task(name="click"),))
            .to_json()
            .replace(b'": 7', b'": 4294967296')
        )


def test_statistics_of_hashed_values_take_no_memory_of_all_rows() -> None:
    pipeline = _fitted(_category(hash_rows=2**30), {"c": CITIES})
    statistics = pipeline.statistics["c"]
    assert len(statistics.bins) == 20
    assert sum(statistics.bins) == 4
    few = _fitted(_category(hash_rows=3), {"c": ["a", "b", "c", "d"]})
    rows = few.transform("item", read_table({"c": ["a", "b", "c", "d"]})).ids[:, 0] - 2
    assert few.statistics["c"].bins == np.bincount(rows, minlength=3).tolist()
    assert few.check(read_table({"c": ["a"]})).columns
