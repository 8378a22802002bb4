"""What every feature promises, whatever its operator: one state for any order and cut of the data, the same bits when
it is saved and read, and the same ids, bits and refusals from everything that encodes.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from feature_columns import FLOATS, INTS, TEXTS, columns_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from devices import NAMESPACES
from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline, device_batch
from fastmtr.graph import Domain, Packed
from fastmtr.schema import Feature, Scaling, Schema, Task

# ---- every operator: features, and the raw columns that they read ----------------------------------------------------

STRINGS, LISTS, TICK = pa.string(), pa.list_(pa.int64()), pa.int64()
MANY_TEXTS = st.lists(st.none() | TEXTS, max_size=40)
SENTENCES = TEXTS | st.sampled_from(["Summer DRESS, red", "İstanbul ſ K", " a\x85,b ,", "a,b,,a", "x_1 " * 60])
TICKS = st.none() | INTS | st.sampled_from([86_399, 86_400, -86_401, 2**62])
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "text": (STRINGS, st.none() | TEXTS),
    "sentence": (STRINGS, st.none() | SENTENCES),
    "whole": (pa.int64(), st.none() | INTS),
    "float_whole": (pa.float64(), st.none() | st.just(math.nan) | st.integers(-(2**53), 2**53).map(float)),
    "flag": (pa.bool_(), st.none() | st.booleans()),
    "number": (pa.float64(), st.none() | FLOATS),
    "texts": (pa.list_(STRINGS), st.none() | MANY_TEXTS),
    "wholes": (LISTS, st.none() | st.lists(st.none() | INTS, max_size=40)),
    "keys": (LISTS, st.none() | st.lists(st.none() | st.integers(-2, 9) | INTS, max_size=12)),
    "vector": (pa.list_(pa.float64()), st.none() | st.lists(st.none() | FLOATS, min_size=3, max_size=3)),
    "since": (TICK, TICKS),
    "times": (LISTS, st.none() | st.lists(TICKS, max_size=12)),
    "time": (TICK, TICKS),
}
ITEMS = {"item": list(range(8)), "author": ["ann", "bob", None, "ann", "", "eve", "bob", "é"]}


class Case(NamedTuple):
    """A feature f, with others that it needs, and the columns of its rows."""

    rules: Mapping[str, Any]
    columns: tuple[str, ...]
    others: tuple[Feature, ...] = ()

    @property
    def schema(self) -> Schema:
        features = (Feature(**{"name": "f", "entity": "candidate", **self.rules}), *self.others)
        tasks = (Task(name="click"),)
        return Schema(user="user", item="item", timestamp="time", features=features, tasks=tasks, utc_offset_hours=-3.5)

    @property
    def feature(self) -> Feature:
        return self.schema.feature("f")

    @property
    def domain(self) -> Domain:
        return "request" if self.feature.entity in ("user", "context") else "candidate"


def _category(column: str, **rules: Any) -> Case:
    return Case({"kind": "categorical", "source": column, **rules}, (column,))


def _number(**rules: Any) -> Case:
    return Case({"kind": "numeric", "source": "number", **rules}, ("number",))


_ITEM = Feature(name="item", entity="item", kind="categorical")
_AUTHOR = Feature(name="author", entity="item", kind="categorical")
_SHELF = Feature(name="shelf", entity="candidate", kind="categorical", source="text", oov_rows=2)
_HISTORY = Feature(name="history", entity="user", kind="sequence", of="item", source="keys", length=3)
CASES: dict[str, Case] = {
    "category of text": _category("text"),
    "category of whole numbers": _category("whole", oov_rows=3),
    "category of floats": _category("float_whole", min_count=2),
    "category of booleans": _category("flag"),
    "category, hashed": _category("text", hash_rows=7, hashes=2),
    "category, whole numbers hashed": _category("whole", hash_rows=1000),
    "hour": Case({"kind": "categorical", "derive": "hour", "entity": "context"}, ("time",)),
    "hour of the week": Case({"kind": "categorical", "derive": "hour_of_week", "entity": "context"}, ("time",)),
    "cross": Case({"kind": "categorical", "cross": ("text", "whole"), "oov_rows": 2}, ("text", "whole")),
    "cross, hashed": Case(
        {"kind": "categorical", "cross": ("text", "flag"), "hash_rows": 9, "hashes": 2}, ("text", "flag")
    ),
    "buckets": _category("number", buckets=5),
    "set of texts": Case({"kind": "multi", "source": "texts", "length": 3}, ("texts",)),
    "set of whole numbers, the last": Case(
        {"kind": "multi", "source": "wholes", "length": 3, "keep": "last", "oov_rows": 2}, ("wholes",)
    ),
    "set in a text": Case({"kind": "multi", "source": "sentence", "length": 3, "hash_rows": 5}, ("sentence",)),
    "sequence": Case({"kind": "sequence", "entity": "user", "of": "item", "source": "keys"}, ("keys",), (_ITEM,)),
    "attributes": Case(
        {"kind": "sequence", "entity": "user", "of": "author", "source": "keys", "lookup": True, "length": 4},
        ("keys",),
        (_ITEM, _AUTHOR),
    ),
    "words": Case({"kind": "text", "source": "sentence", "ngrams": 2, "length": 6}, ("sentence",)),
    "words, hashed, the last": Case(
        {"kind": "text", "source": "sentence", "hash_rows": 11, "length": 4, "keep": "last"}, ("sentence",)
    ),
    "tfidf": Case({"kind": "tfidf", "source": "sentence", "ngrams": 2, "dim": 8}, ("sentence",)),
    **{f"number, {scaling}": _number(scaling=scaling) for scaling in get_args(Scaling)},
    "number, clipped": _number(clip=(0.1, 0.9), indicator=True),
    "number, clipped to the range": _number(out_of_range="clip", scaling="log1p"),
    "number, null beyond the range": _number(out_of_range="null", scaling="minmax", indicator=True),
    "recency": Case(
        {"kind": "numeric", "derive": "recency", "source": "since", "scaling": "log1p", "indicator": True},
        ("since", "time"),
    ),
    **{
        name: Case({"kind": "numeric", "derive": name, "entity": "context"}, ("time",))
        for name in ("hour_cycle", "weekday_cycle", "year_cycle")
    },
    "gaps": Case(
        {"kind": "gaps", "entity": "user", "of": "history", "source": "times", "length": 3},
        ("times", "keys", "time"),
        (_ITEM, _HISTORY),
    ),
    "mean outcome": Case({"kind": "target", "of": "shelf", "event": "click", "folds": 3}, ("text",), (_SHELF,)),
    "count": Case({"kind": "target", "of": "shelf", "encoding": "count", "folds": 3}, ("text",), (_SHELF,)),
    "vector": Case({"kind": "vector", "source": "vector", "dim": 3}, ("vector",)),
}  # fmt: skip
Rows = list[dict[str, Any]]


def rows_of(case: Case, *, most: int = 12) -> st.SearchStrategy[Rows]:
    return st.lists(st.fixed_dictionaries({name: COLUMNS[name][1] for name in case.columns}), max_size=most)


def table_of(case: Case, rows: Rows, *, at: int = 0) -> pa.Table:
    """As a table, of columns that begin within their buffers."""
    return pa.table({name: columns_of([row[name] for row in rows], COLUMNS[name][0], at=at) for name in case.columns})


def fit(case: Case, rows: Rows, *, order: Any = None, pieces: int = 0) -> FeaturePipeline:
    n = len(rows)
    table = table_of(case, rows)
    table = table if "time" in case.columns else table.append_column("time", pa.array(range(n), TICK))
    for name, values in {"user": range(n), "item": np.arange(n) % 9, "click": np.arange(n) % 2}.items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    table = table if order is None else table.take(pa.array(order, pa.int64()))
    given: Any = [table.slice(i, pieces) for i in range(0, n, pieces)] if pieces and n else table
    items = pa.table(ITEMS) if {"item", "author"} & {f.name for f in case.others} else None
    return FeaturePipeline(case.schema).fit(items=items, interactions=given)


@cache
def example(name: str) -> tuple[FeaturePipeline, Rows]:
    """Fitted on rows of common and of rare values."""
    rng = np.random.default_rng(0)
    some: dict[str, list[Any]] = {
        "text": ["a", "a", "é", "", None, "日本"], "sentence": ["red dress", "a,b", None, "Red, red", ""],
        "whole": [1, 1, -(2**63), 2**63 - 1, None], "float_whole": [1.0, 1.0, -5.0, None], "flag": [True, False, None],
        "number": [0.0, 1.5, -2.0, 1e30, 5e-324, None], "texts": [["a", None, "b"], [], None, ["b", "b", "é"]],
        "wholes": [[1, 2, 2, None], None, [], [3] * 9], "keys": [[1, 2, 99], None, [None, 3], []],
        "vector": [[1.0, None, -2.0], None, [0.0, 1e300, 3.0]], "since": [0, 86_400, None, -5],
        "times": [[5, None, 10**6], None, []], "time": [10**6, 10**7, 2 * 10**6, None],
    }  # fmt: skip
    rows = [{c: some[c][int(rng.integers(len(some[c])))] for c in CASES[name].columns} for _ in range(60)]
    return fit(CASES[name], rows), rows


every_operator = pytest.mark.parametrize("name", CASES)

# ---- everything that encodes -----------------------------------------------------------------------------------------

Execution = Callable[[FeaturePipeline, Case, Rows, int], Packed]


def _by_rows(pipeline: FeaturePipeline, case: Case, rows: Rows, at: int) -> Packed:
    found = [pipeline.transform_row(case.domain, row) for row in rows]
    return _joined(pipeline, case, found)


def _over_stored_rows(pipeline: FeaturePipeline, case: Case, rows: Rows, at: int) -> Packed:
    """Each row over what another one is packed as."""
    stored = [pipeline.transform_row(case.domain, row) for row in rows[1:] + rows[:1]]
    found = [pipeline.transform_row(case.domain, row, base=base) for row, base in zip(rows, stored, strict=True)]
    return _joined(pipeline, case, found)


def _joined(pipeline: FeaturePipeline, case: Case, rows: list[Packed]) -> Packed:
    ids, dense = (len(names) for names in pipeline.get_feature_names_out(case.domain))
    empty = Packed(np.empty((0, ids), np.int32), np.empty((0, dense), np.float32))
    return Packed(*(np.concatenate(parts) for parts in zip(empty, *rows, strict=True)))


def _columns(pipeline: FeaturePipeline, case: Case, rows: Rows, at: int) -> Packed:
    columns = {name: [row[name] for row in rows] for name in case.columns}
    return Packed(*pipeline.native.encode_columns(case.domain, columns, len(rows)))


def _table(**options: Any) -> Execution:
    return lambda pipeline, case, rows, at: pipeline.transform(case.domain, table_of(case, rows, at=at), **options)


def _batch(xp: Any) -> Execution:
    def execute(pipeline: FeaturePipeline, case: Case, rows: Rows, at: int) -> Packed:
        found = device_batch.transform(pipeline, case.domain, table_of(case, rows, at=at), xp=xp)
        return Packed(*(each if xp is np else xp.asnumpy(each) for each in found))

    return execute


# What runs everywhere, and what needs a library or a GPU.
EXECUTIONS = [
    pytest.param((_by_rows, _over_stored_rows, _columns, _table(engine="arrays", threads=2)), id="arrays and rows"),
    pytest.param(
        (_table(engine="numba"),),
        id="numba",
        marks=pytest.mark.skipif(
            find_spec("numba") is None, reason="Numba is not installed: fastmtr[features] brings it"
        ),
    ),
    *(pytest.param((_batch(*each.values),), id=f"batch kernels, {each.id}", marks=each.marks) for each in NAMESPACES),
]


def same(found: Packed, expected: Packed) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.tobytes() == theirs.tobytes(), (mine, theirs)


# ---- what is promised ------------------------------------------------------------------------------------------------


def test_every_operation_of_the_engine_has_a_case() -> None:
    programs = [example(name)[0].state()[0]["program"] for name in CASES]
    found = {entry["op"] for program in programs for entry in program}
    assert found == set(device_batch._OPS)


@every_operator
@pytest.mark.parametrize("executions", EXECUTIONS)
@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_all_executions_give_the_same_bits(name: str, executions: Sequence[Execution], data: st.DataObject) -> None:
    case = CASES[name]
    if data.draw(st.booleans()):
        pipeline, _ = example(name)
    else:
        pipeline = fit(case, data.draw(rows_of(case, most=6)))
    rows = data.draw(rows_of(case))
    expected = pipeline.transform(case.domain, table_of(case, rows), engine="arrays")
    for execute in executions:
        same(execute(pipeline, case, rows, data.draw(st.integers(0, 9))), expected)
    assert np.isfinite(expected.dense).all()
    for each in pipeline.inputs:
        if each.kind == "ids" and each.domain == case.domain:
            block = expected.ids[:, each.offset : each.offset + each.width]
            assert block.min(initial=0) >= 0
            assert block.max(initial=0) < each.rows


def saved(pipeline: FeaturePipeline) -> tuple[bytes, bytes]:
    head, arrays = pipeline.state()
    return msgspec.json.encode(head), save({key: np.ascontiguousarray(array) for key, array in arrays.items()})


@every_operator
@given(data=st.data())
@settings(deadline=None, max_examples=10)
def test_neither_order_nor_batches_change_what_is_learned(name: str, data: st.DataObject) -> None:
    pipeline, rows = example(name)
    order = data.draw(st.permutations(range(len(rows))))
    assert saved(fit(CASES[name], rows, order=order, pieces=data.draw(st.integers(1, 61)))) == saved(pipeline)


@every_operator
def test_saved_and_read_it_gives_the_same_bits(name: str) -> None:
    case, (pipeline, rows) = CASES[name], example(name)
    head, arrays = saved(pipeline)
    again = FeaturePipeline.from_state(case.schema, json.loads(head), load(arrays))
    assert saved(again) == (head, arrays)
    assert again.inputs == pipeline.inputs
    for execute in (_table(), _by_rows):
        same(execute(again, case, rows, 0), execute(pipeline, case, rows, 0))


@every_operator
def test_names_are_those_of_the_packed_columns(name: str) -> None:
    case, (pipeline, rows) = CASES[name], example(name)
    packed = pipeline.transform(case.domain, table_of(case, rows))
    names = pipeline.get_feature_names_out(case.domain)
    assert [len(each) for each in names] == [packed.ids.shape[1], packed.dense.shape[1]]
    assert packed.ids.flags.c_contiguous
    assert packed.dense.flags.c_contiguous
    own = [each for each in (*names[0], *names[1]) if each == "f" or each.startswith("f_")]
    (place,) = (each for each in pipeline.inputs if each.name == "f")
    assert len(own) == place.width


@every_operator
def test_what_is_not_given_is_null(name: str) -> None:
    case, (pipeline, _) = CASES[name], example(name)
    null = pipeline.transform(case.domain, table_of(case, [dict.fromkeys(case.columns)]))
    same(pipeline.transform_row(case.domain, {}), null)
    same(pipeline.transform(case.domain, pa.table({"else": [1]}), missing="null"), null)
    same(pipeline.transform_row(case.domain, {}, base=null), null)
    with pytest.raises(SchemaError, match="the table has no column for feature"):
        pipeline.transform(case.domain, pa.table({"else": [1]}))


@every_operator
def test_a_table_without_rows(name: str) -> None:
    case, (pipeline, _) = CASES[name], example(name)
    packed = pipeline.transform(case.domain, table_of(case, []))
    same(packed, _joined(pipeline, case, []))
    nothing = fit(case, [])
    assert saved(FeaturePipeline.from_state(case.schema, *nothing.state())) == saved(nothing)


@every_operator
def test_it_is_not_pickled(name: str) -> None:
    with pytest.raises(TypeError, match=r"not pickled: .*Save state\(\)"):
        pickle.dumps(example(name)[0])


# ---- rules -----------------------------------------------------------------------------------------------------------


def _with(name: str, **rules: Any) -> Case:
    return CASES[name]._replace(rules={**CASES[name].rules, **rules})


STRICT: dict[str, tuple[Case, Rows, Any, str]] = {
    # The feature with a rule, rows that teach it, a row that is refused, and what is said of it.
    **{
        f"nulls of {name}": (_with(name, nulls="error"), good, bad, "nulls = 'error'")
        for name, good, bad in (
            ("category of text", [{"text": "a"}], {"text": None}),
            ("category, hashed", [{"text": "a"}], {"text": None}),
            ("hour", [{"time": 5}], {"time": None}),
            ("cross", [{"text": "a", "whole": 1}], {"text": "a", "whole": None}),
            ("cross, hashed", [{"text": "a", "flag": True}], {"text": None, "flag": True}),
            ("buckets", [{"number": 1.0}], {"number": math.nan}),
            ("tfidf", [{"sentence": "a"}], {"sentence": None}),
            ("number, standard", [{"number": 1.0}], {"number": None}),
            ("recency", [{"since": 1, "time": 5}], {"since": None, "time": 5}),
            ("hour_cycle", [{"time": 5}], {"time": None}),
            ("vector", [{"vector": [1.0, None, 3.0]}], {"vector": None}),
        )
    },
    **{
        f"unseen values of {name}": (
            _with(name, unseen="error", oov_rows=1), good, bad, "unseen = 'error'",
        )
        for name, good, bad in (
            ("category of text", [{"text": "a"}], {"text": "b"}),
            ("category of whole numbers", [{"whole": 1}], {"whole": 2}),
            ("cross", [{"text": "a", "whole": 1}], {"text": "a", "whole": 2}),
            ("set of texts", [{"texts": ["a"]}], {"texts": ["a", "b"]}),
            ("words", [{"sentence": "a"}], {"sentence": "a b"}),
        )
    },
    **{
        f"range of {name}": (
            _with(name, out_of_range="error"), good, bad, "out_of_range = 'error'",
        )
        for name, good, bad in (
            ("number, none", [{"number": 1.0}, {"number": 2.0}], {"number": 3.0}),
            ("number, quantile", [{"number": 1.0}, {"number": 2.0}], {"number": -math.inf}),
            ("recency", [{"since": 1, "time": 5}], {"since": 1, "time": 50}),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("rule", STRICT)
@pytest.mark.parametrize("executions", EXECUTIONS)
def test_rules_refuse_whatever_encodes(rule: str, executions: Sequence[Execution]) -> None:
    case, good, bad, message = STRICT[rule]
    pipeline = fit(case, good)
    for execute in executions:
        same(execute(pipeline, case, good, 3), pipeline.transform(case.domain, table_of(case, good), engine="arrays"))
        with pytest.raises(SchemaError, match=message):
            execute(pipeline, case, [*good, bad], 0)


@pytest.mark.parametrize("rule", [rule for rule in STRICT if rule.startswith("nulls")])
def test_who_must_give_a_column_and_does_not_is_refused(rule: str) -> None:
    case, good, _, _ = STRICT[rule]
    pipeline = fit(case, good)
    stored = pipeline.transform_row(case.domain, good[0])
    same(pipeline.transform_row(case.domain, {}, base=stored), stored)
    with pytest.raises(SchemaError, match=r"is not given, and the rule of feature 'f' is nulls = 'error': give it"):
        pipeline.transform_row(case.domain, {})
