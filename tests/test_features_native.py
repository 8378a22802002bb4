"""The engine's feature program: the ids and bits of the pipeline, from raw values of one row."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import operator_schema
import pytest

from fastmtr import _native
from fastmtr.errors import BundleError, SchemaError
from fastmtr.features import FeaturePipeline, array_times, hashing
from fastmtr.schema import Feature, Schema, Task
from fastmtr.tables import read_table


@pytest.fixture(scope="module")
def pipeline() -> FeaturePipeline:
    raw = operator_schema.raw_tables()
    n = len(raw["log"]["user"])
    # What the log makes, as a column.
    raw["log"] |= {"day_rate": np.linspace(0, 1, n), "click_gaps": [[i, None, -i] for i in range(n)]}
    tables = {name: read_table(columns) for name, columns in raw.items()}
    return FeaturePipeline(operator_schema.SCHEMA).fit(
        users=tables["users"], items=tables["items"], interactions=tables["log"]
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"author": 5}, "column 'author' should hold text, found the number 5"),
        ({"item": "x"}, "column 'item' should hold whole numbers, found the text 'x'"),
        ({"item": 1.5}, "found the number 1.5"),
        ({"item": 2**63}, "whole numbers of 64 bits"),
        ({"item": [1]}, "should hold whole numbers or text, found a list"),
        ({"price": "7"}, "column 'price' should hold numbers, found the text '7'"),
        ({"author": "a\ud800"}, "surrogates not allowed"),
        ({"picture": [1.0]}, "should hold lists of 4 numbers, found a list of 1"),
        ({"picture": 1.0}, "should hold lists of 4 numbers, found"),
        ({"tags": 5}, "should hold a list or text, found the number 5"),
        ({"tags": ["a", 5]}, "should hold whole numbers or text, found a list of numbers and text"),
        ({"title": ["a"]}, "column 'title' should hold text, found a list"),
        ({"prise": 1}, "'prise' is no feature of the item; did you mean 'price'"),
    ],
)
def test_values_that_do_not_fit_are_refused(pipeline: FeaturePipeline, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        pipeline.transform_row("item", row)
    assert problem in str(caught.value)


def test_rules_refuse() -> None:
    features = (
        Feature(name="c", entity="item", kind="categorical", nulls="error", unseen="error"),
        Feature(name="x", entity="item", kind="numeric", nulls="error", out_of_range="error"),
    )
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    fitted = FeaturePipeline(schema).fit(items=read_table({"c": ["a", "b"], "x": [0.0, 1.0]}))
    for row, problem in (
        ({"c": None, "x": 0.5}, "'c' is null"),
        ({"c": "z", "x": 0.5}, "'c' has the text 'z', which was not seen"),
        (
            {"c": "a"},
            "column 'x' is not given, and the rule of feature 'x' is nulls = 'error': give it, unless",
        ),
        ({"x": 0.5}, "column 'c' is not given, and the rule of feature 'c' is nulls = 'error'"),
        ({"c": "a", "x": 2}, "'x' is 2, beyond 0 and 1"),
    ):
        with pytest.raises(SchemaError, match=problem):
            fitted.transform_row("item", row)


def test_counters() -> None:
    feature = Feature(name="x", entity="item", kind="numeric")
    city = Feature(name="c", entity="item", kind="categorical")
    schema = Schema(user="u", item="i", features=(feature, city), tasks=(Task(name="click"),))
    native = FeaturePipeline(schema).fit(items=read_table({"c": ["a"], "x": [1.0]})).native
    native.encode_rows("item", [{"x": None, "c": "a"}, {"x": 5, "c": "b"}, {"c": None}])
    assert json.loads(native.counts())["item"] == {
        "x": {"rows": 3, "nulls": 2, "values": 1, "beyond": 1},
        "c": {"rows": 3, "nulls": 1, "values": 2, "unseen": 1},
    }


def test_columns_of_rows(pipeline: FeaturePipeline) -> None:
    columns = {"shelf": ["top", None, "new"], "match": [[1.0, 2.0], None, [0, math.nan]], "labels": [["x"], [], None]}
    ids, dense = pipeline.native.encode_columns("candidate", columns, 3)
    table = pipeline.transform("candidate", read_table(columns))
    assert ids.tolist() == table.ids.tolist()
    assert dense.tobytes() == table.dense.tobytes()
    with pytest.raises(ValueError, match="'shelf' has 3 values, expected 2"):
        pipeline.native.encode_columns("candidate", columns, 2)
    assert pipeline.native.encode_columns("candidate", {}, 0)[0].shape == (0, ids.shape[1])


def test_kernels_are_those_of_the_arrays() -> None:
    kernels = _native.feature_kernels
    rng = np.random.default_rng(0)
    numbers = rng.integers(-(2**63), 2**63 - 1, 100)
    texts = [rng.bytes(n) for n in range(100)]
    data, offsets = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)])
    for seed in (0, 1, 2**64 - 1):
        assert (kernels.hash_ints(numbers, seed) == hashing.hash_integers(numbers, seed=seed)).all()
        assert (kernels.hash_texts(data, offsets, seed) == hashing.hash_packed_bytes(data, offsets, seed=seed)).all()
    x = np.concatenate([rng.gamma(0.1, 1e6, 1000), [0.0, 5e-324, 1e-10, 0.5, 1.0, 2.0**53, 1.7e308]])
    assert kernels.log1p(x).tobytes() == array_times.log1p(x).tobytes()
    phase = np.append(rng.random(1000), np.arange(8) / 8)
    assert kernels.sincos(phase).tobytes() == array_times.sincos(phase).tobytes()
    assert kernels.elapsed(2**63 - 1, -(2**63), 1) == 2.0**63


def _damaged(pipeline: FeaturePipeline, change: Any) -> None:
    state, arrays = pipeline.state()
    state = json.loads(json.dumps(state))
    change(state, arrays)
    _native.Features(json.dumps(state).encode(), arrays)


def _entry(state: Any, name: str) -> Any:
    return next(entry for entry in state["program"] if entry["name"] == name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s, a: s.update(version=1), "version 1 is read by fastmtr's Python only"),
        (lambda s, a: s.update(version=3), "of a later fastmtr"),
        (lambda s, a: s.update(hash="fnv"), "the hash is 'fnv'"),
        (lambda s, a: s.update(more=1), "unknown member 'more'"),
        (lambda s, a: s.pop("clock"), "'clock' is missing"),
        (lambda s, a: s["clock"].update(ticks_per_second=0), "'ticks_per_second' must be a whole number 1"),
        (lambda s, a: s["clock"].update(column=None), "it is made of the time, but 'clock' has no column"),
        (lambda s, a: _entry(s, "author").update(offset=5), "'author': 'offset' is 5, but the feature before"),
        (lambda s, a: _entry(s, "author").update(width=2), "'author': expected 1 ids, found 'width' 2"),
        (lambda s, a: _entry(s, "author").update(op="guess"), "'op' is 'guess', expected one of category"),
        (lambda s, a: _entry(s, "author").update(state="none"), "'state' is 'none', of which nothing was saved"),
        (lambda s, a: _entry(s, "author").update(columns=["a", "b"]), "'columns' names 2, expected 1"),
        (lambda s, a: _entry(s, "author").update(extra=1), "unknown member 'extra'"),
        (lambda s, a: s["features"]["author"].update(oov_rows=0), "'oov_rows' must be a whole number 1"),
        (lambda s, a: s["features"]["author"].update(hashes=2), "'hashes' above 1 need 'hash_rows'"),
        (lambda s, a: s["features"]["author"].update(type="date"), "a type must be"),
        (lambda s, a: s["features"]["price"].update(factor=0.0), "'factor' must be above 0"),
        (lambda s, a: s["features"]["price"].update(low=1e300, high=0.0), "a range must not end before it begins"),
        (lambda s, a: s["features"]["price"].update(shift="x"), "'shift' must be a finite number"),
        (lambda s, a: a.pop("author/bytes"), "there is no array 'author/bytes'"),
        (lambda s, a: a.update({"author/offsets": a["author/offsets"].astype(np.int32)}), "is I32, expected I64"),
        (lambda s, a: a.update({"author/offsets": a["author/offsets"] + 1}), "'offsets' must begin at 0"),
        (lambda s, a: a.update({"author/bytes": a["author/bytes"] | 0x80}), "a category is not valid UTF-8"),
        (lambda s, a: a.update({"item/values": np.array([1, 1])}), "category 1 stands twice"),
        (lambda s, a: a.update({"age/knots": a["age/knots"][::-1]}), "'knots' must be finite numbers that ascend"),
        (lambda s, a: a.update({"age/levels": a["age/levels"][1:]}), "knots and"),
        (lambda s, a: a.update({"last_authors/ids": a["last_authors/ids"] + 99}), "an id is"),
        (lambda s, a: a.update({"author_clicks/table": a["author_clicks/table"][1:]}), "'table' must have"),
        (lambda s, a: a.update({"words/idf": -a["words/idf"]}), "'idf' must be finite numbers from 0 on"),
        (lambda s, a: a.update({"price_range/bounds": np.array([1.0, math.inf])}), "'bounds' must be finite"),
        (lambda s, a: a.update({"item/values": a["item/values"][None]}), "must have one dimension"),
    ],
)
def test_a_damaged_program_is_refused(pipeline: FeaturePipeline, change: Any, problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        _damaged(pipeline, change)
    assert problem in str(caught.value)
