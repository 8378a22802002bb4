"""The batch kernels, compiled for the host and run on NumPy's arrays (on a GPU, on CuPy's), against the arrays' way:
the same ids, the same bits, the same errors, and nothing left to the host but what it must refuse.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feature_columns import (
    FLOATS,
    HASHES,
    INTS,
    LARGEST,
    RULES,
    SCALES,
    SMALL_FLOATS,
    TEXTS,
    VOCABULARIES,
    columns_of,
    schema_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_operators import ROWS, as_table, fitted

from devices import NAMESPACES
from fastmtr import _native
from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline, device_batch
from fastmtr.features.device_columns import COLUMN
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema, Task

on_each = pytest.mark.parametrize("xp", NAMESPACES)


def on_host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()


class LeftToHost:
    """A pipeline, and which features the host encodes."""

    def __init__(self, pipeline: FeaturePipeline) -> None:
        self._pipeline, self.features = pipeline, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def transform_blocks(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        self.features += [each.name for each in features]
        return self._pipeline.transform_blocks(features, *args, **kwargs)


def check(
    xp: Any,
    pipeline: FeaturePipeline,
    table: Any,
    *,
    domain: Any = "candidate",
    left: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """Both ways give the same, and `left` are the features that the kernels do not read."""
    try:
        expected: Packed | str = pipeline.transform(domain, table, engine="arrays", **options)
    except SchemaError as error:
        expected = str(error)
    watched: Any = LeftToHost(pipeline)
    try:
        found: Packed | str = device_batch.transform(watched, domain, table, xp=xp, **options)
    except SchemaError as error:
        found = str(error)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert tuple(watched.features) == left
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, xp.ndarray)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert on_host(mine).tobytes() == theirs.tobytes()


def check_feature(xp: Any, schema: Schema, fitted_rows: pa.Table, rows: pa.Table, **options: Any) -> None:
    check(xp, FeaturePipeline(schema).fit(interactions=fitted_rows), rows, **options)


# ---- every operator --------------------------------------------------------------------------------------------------


@on_each
@pytest.mark.parametrize("domain", sorted(ROWS))
@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_every_operator(xp: Any, domain: Any, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(ROWS[domain]), min_size=1, max_size=5))
    table = as_table(rows)
    check(xp, fitted(), table, domain=domain)
    at = data.draw(st.integers(0, len(rows)))
    columns = {name: table.column(name).combine_chunks().slice(at) for name in table.column_names}
    check(xp, fitted(), columns, domain=domain)


@on_each
@pytest.mark.parametrize("domain", sorted(ROWS))
def test_no_rows(xp: Any, domain: Any) -> None:
    table = as_table([dict.fromkeys(ROWS[domain])])
    check(xp, fitted(), table.slice(0, 0), domain=domain)
    check(xp, fitted(), table, domain=domain)


@on_each
def test_columns_that_are_missing(xp: Any) -> None:
    for domain in sorted(ROWS):
        table = pa.table({"other": [1, 2]})
        check(xp, fitted(), table, domain=domain, missing="null")
        check(xp, fitted(), table, domain=domain)


@on_each
def test_parts_of_the_clock(xp: Any) -> None:
    times = [datetime.datetime(1969, 12, 31, 23, 59, 59), None, datetime.datetime(2024, 2, 29, 12)]
    columns = {name: [None] * 3 for name in ROWS["request"]}
    for unit in ("s", "ms", "us", "ns"):
        table = pa.table(columns | {"time": pa.array(times, pa.timestamp(unit))})
        check(xp, fitted(), table, domain="request")
    for ticks in (pa.array([-1, 2**40, None], pa.int64()), pa.array([-1.0, 5.0, None]), pa.array([0.5, 1, 2])):
        check(xp, fitted(), pa.table(columns | {"time": ticks}), domain="request")
    check(xp, fitted(), pa.table(columns | {"time": [1, 2, 3], "hour": [5, 167, 168]}), domain="request")


# ---- categories ------------------------------------------------------------------------------------------------------


@on_each
@given(st.data(), RULES, st.one_of(VOCABULARIES, HASHES), st.sampled_from([pa.string(), pa.large_string()]))
@settings(deadline=None)
def test_categories_of_text(xp: Any, data: st.DataObject, rules: Any, more: Any, kind: Any) -> None:
    if "hash_rows" in more:
        rules.pop("min_count", None)
    texts = st.lists(st.one_of(st.none(), TEXTS), max_size=30)
    known, found, at = data.draw(texts), data.draw(texts), data.draw(st.integers(0, 9))
    found += data.draw(st.permutations(known))
    schema = schema_of(kind="categorical", **{"nulls": "fill", **rules}, **more)
    check_feature(xp, schema, pa.table({"x": columns_of(known, kind)}), pa.table({"x": columns_of(found, kind, at=at)}))


WHOLE = [
    (INTS, pa.int64()),
    (st.integers(0, 2**64 - 1) | st.integers(-5, 5).map(abs), pa.uint64()),
    (st.integers(-128, 127), pa.int8()),
    (st.integers(0, 65_535), pa.uint16()),
    (st.integers(-(2**31), 2**31 - 1), pa.int32()),
    (st.booleans(), pa.bool_()),
    (FLOATS | st.sampled_from([2.0**62, -(2.0**63), 2.0**63, 5.0]), pa.float64()),
    (SMALL_FLOATS | st.integers(-9, 9).map(float), pa.float32()),
]


@on_each
@given(st.data(), RULES, st.one_of(VOCABULARIES, HASHES), st.sampled_from(WHOLE))
@settings(deadline=None, max_examples=200)
def test_categories_of_numbers(xp: Any, data: st.DataObject, rules: Any, more: Any, drawn: Any) -> None:
    if "hash_rows" in more:
        rules.pop("min_count", None)
    values, kind = drawn
    numbers = st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=20)
    known, found = data.draw(numbers), data.draw(st.lists(st.one_of(st.none(), values), max_size=20))
    column = columns_of(found, kind, at=data.draw(st.integers(0, 9)))
    schema = schema_of(kind="categorical", **rules, **more)
    check_feature(xp, schema, pa.table({"x": pa.array(known, pa.int64())}), pa.table({"x": column}))


@on_each
def test_columns_of_another_type_are_refused_in_the_same_words(xp: Any) -> None:
    fits: dict[str, list[Any]] = {
        "categorical": [["a"], [1], [None]],
        "multi": [[["a"]], [[1]], ["a,b"]],
        "text": [["some words"]],
        "numeric": [[1.0]],
        "vector": [[[1.0, 2.0]]],
        "tfidf": [["a"]],
        "sequence": [["a"], [1]],
    }
    others: tuple[list[Any], ...] = (
        ["a"], [1], [1.5], [None], [True], [["a"]], [[1]], [[None]], [[1.5]], [[1, 2]], [["a", "b"]], [[None, 1]],
        [[["a"]]], [b"a"], [datetime.date(2020, 1, 1)],
    )  # fmt: skip
    for kind, columns in fits.items():
        for known in columns:
            domain = "candidate"
            if kind != "sequence":
                schema = schema_of(kind=kind, **({"dim": 2} if kind in ("vector", "tfidf") else {}))
            else:
                item = Feature(name="item", entity="item", kind="categorical")
                past = Feature(name="x", entity="user", kind="sequence", of="item", length=2)
                schema = Schema(user="u", item="item", features=(item, past), tasks=(Task(name="click"),))
                domain = "request"
            pipeline = FeaturePipeline(schema).fit(interactions=pa.table({"x": known, "item": known, "u": [1]}))
            for values in others:
                check(xp, pipeline, pa.table({"x": values}), domain=domain)


@on_each
def test_what_only_the_host_reads(xp: Any) -> None:
    import decimal

    pipeline = FeaturePipeline(schema_of(kind="numeric")).fit(interactions=pa.table({"x": [1.0, 2.0]}))
    check(xp, pipeline, pa.table({"x": [decimal.Decimal("1.5"), None]}), left=("x",))
    check(xp, pipeline, pa.table({"x": pa.array([1.5, None], pa.float16())}), left=("x",))


@on_each
def test_nulls_in_a_list_are_left_out_whatever_the_rule(xp: Any) -> None:
    features = (
        Feature(name="item", entity="item", kind="categorical", nulls="error"),
        Feature(name="x", entity="user", kind="sequence", of="item", length=3),
    )
    pipeline = FeaturePipeline(Schema(user="u", item="item", features=features, tasks=(Task(name="click"),)))
    pipeline.fit(interactions=pa.table({"u": [1, 2], "item": [5, 6], "x": [[5], [6]]}))
    check(xp, pipeline, pa.table({"x": [[5, None, 6], None, [None]]}), domain="request")
    check(xp, pipeline, pa.table({"x": [[5.0, float("nan"), 6.0]]}), domain="request")


@on_each
def test_text_that_is_not_utf8(xp: Any) -> None:
    for bad in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        column = pa.array([b"ok ok", bad, None]).cast(pa.large_binary())
        texts = pa.Array.from_buffers(pa.large_string(), len(column), column.buffers())
        for rules in ({"kind": "multi"}, {"kind": "text"}, {"kind": "tfidf", "dim": 4}):
            pipeline = FeaturePipeline(schema_of(**rules)).fit(interactions=pa.table({"x": ["a"]}))
            with pytest.raises(SchemaError, match="UTF-8"):
                device_batch.transform(pipeline, "candidate", pa.table({"x": texts}), xp=xp)


@on_each
@given(st.data(), st.one_of(VOCABULARIES, HASHES), st.sampled_from(["fill", "error"]))
@settings(deadline=None)
def test_crosses(xp: Any, data: st.DataObject, more: Any, nulls: str) -> None:
    n = data.draw(st.integers(1, 8))
    rows = st.lists(st.none() | TEXTS, min_size=n, max_size=n), st.lists(st.none() | INTS, min_size=n, max_size=n)
    known, found = ({"a": data.draw(rows[0]), "b": data.draw(rows[1])} for _ in range(2))
    found = {name: found[name] + known[name] for name in found}
    kinds = {"a": pa.string(), "b": pa.int64(), "c": pa.bool_()}
    tables = [
        pa.table({k: pa.array([*v], kinds[k]) for k, v in each.items()} | {"c": pa.array([True] * len(each["a"]))})
        for each in (known, found)
    ]
    check_feature(xp, schema_of(kind="categorical", cross=("a", "b", "c"), nulls=nulls, **more), *tables)


# ---- lists and texts -------------------------------------------------------------------------------------------------

LISTS = st.fixed_dictionaries(
    {"length": st.integers(1, 5), "keep": st.sampled_from(["first", "last"])},
    optional={"hash_rows": st.sampled_from([1, 3, 50])},
) | st.just({"length": 2, "unseen": "error"})


@on_each
@given(st.data(), LISTS, st.booleans(), st.sampled_from([pa.list_, pa.large_list]))
@settings(deadline=None, max_examples=200)
def test_sets(xp: Any, data: st.DataObject, rules: Any, of_text: bool, shape: Any) -> None:
    values = st.sampled_from(["a", "b", "", "é"]) | TEXTS if of_text else st.integers(-2, 2) | INTS
    lists = st.lists(st.none() | st.lists(st.none() | values, max_size=12), max_size=8)
    known, found = data.draw(lists), data.draw(lists)
    kind = shape(pa.string() if of_text else pa.int64())
    tables = [pa.table({"x": columns_of(each, kind, at=at)}) for each, at in ((known, 0), (known + found, 3))]
    check_feature(xp, schema_of(kind="multi", **rules), *tables)


@on_each
@given(st.data(), LISTS, st.sampled_from([",", "|", ", ", "é"]))
@settings(deadline=None, max_examples=200)
def test_sets_in_a_text(xp: Any, data: st.DataObject, rules: Any, separator: str) -> None:
    part = st.sampled_from(["a", "b", " a", "a\u3000", "", " ", "é", ",", "\x1c"]) | st.text(max_size=4)
    texts = st.lists(st.none() | st.lists(part, max_size=9).map(separator.join), max_size=8)
    known, found = data.draw(texts), data.draw(texts)
    tables = [pa.table({"x": columns_of(each, pa.string(), at=2)}) for each in (known, known + found)]
    check_feature(xp, schema_of(kind="multi", separator=separator, **rules), *tables)


@on_each
@pytest.mark.parametrize("keep", ["first", "last"])
def test_long_lists(xp: Any, keep: Any) -> None:
    rng = np.random.default_rng(5)
    features = (
        Feature(name="item", entity="item", kind="categorical"),
        Feature(name="x", entity="user", kind="multi", length=7, keep=keep),
        Feature(name="y", entity="user", kind="sequence", of="item", source="x", length=60, keep=keep),
    )
    pipeline = FeaturePipeline(Schema(user="user", item="item", features=features, tasks=(Task(name="click"),)))
    lists = [rng.zipf(1.2, n) % 5000 for n in (50_000, 0, 1, 7, 8, 59, 60, 61, 121)]
    table = pa.table({"user": np.arange(9), "item": np.arange(9), "x": [each.tolist() for each in lists]})
    check(xp, pipeline.fit(interactions=table), table, domain="request")


WORDS = st.lists(
    st.sampled_from(["Summer", "DRESS", "İ", "Ⱥ", "ß", "été", "42", "a_b", "日本", "𝒳", "-", "\0", " "]), max_size=9
).map(" ".join)


@on_each
@given(st.data(), st.integers(1, 4), LISTS)
@settings(deadline=None)
def test_words(xp: Any, data: st.DataObject, ngrams: int, rules: Any) -> None:
    texts = st.lists(st.none() | WORDS | st.text(max_size=30), max_size=8)
    known, found = data.draw(texts), data.draw(texts)
    tables = [pa.table({"x": columns_of(each, pa.string(), at=1)}) for each in (known, known + found)]
    check_feature(xp, schema_of(kind="text", ngrams=ngrams, **rules), *tables)


@on_each
@given(st.data(), st.integers(1, 4), st.integers(1, 9), st.sampled_from(["fill", "error"]))
@settings(deadline=None)
def test_weights_of_words(xp: Any, data: st.DataObject, ngrams: int, dim: int, nulls: str) -> None:
    texts = st.lists(st.none() | WORDS | st.text(max_size=30), max_size=8)
    known, found = data.draw(texts), data.draw(texts)
    tables = [pa.table({"x": columns_of(each, pa.large_string(), at=1)}) for each in (known, known + found)]
    check_feature(xp, schema_of(kind="tfidf", ngrams=ngrams, dim=dim, nulls=nulls), *tables)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@on_each
@given(st.data(), SCALES, st.sampled_from(WHOLE))
@settings(deadline=None, max_examples=300)
def test_numbers(xp: Any, data: st.DataObject, rules: Any, drawn: Any) -> None:
    values, kind = drawn
    known = data.draw(st.lists(st.one_of(st.none(), values), max_size=30))
    found = data.draw(st.lists(st.one_of(st.none(), values), max_size=30)) + known
    if rules.get("nulls") == "error":
        found = [each for each in found if each is not None] or found
    at = data.draw(st.integers(0, 9))
    tables = [pa.table({"x": columns_of(known, kind)}), pa.table({"x": columns_of(found, kind, at=at)})]
    check_feature(xp, schema_of(kind="numeric", **rules), *tables)


@on_each
@given(st.lists(st.one_of(st.none(), FLOATS), max_size=40), st.lists(st.one_of(st.none(), FLOATS), max_size=99))
@settings(deadline=None)
def test_buckets(xp: Any, known: Any, found: Any) -> None:
    tables = [pa.table({"x": columns_of(each, pa.float64())}) for each in (known, found)]
    check_feature(xp, schema_of(kind="categorical", buckets=5), *tables)


@on_each
@given(st.data(), st.sampled_from([(FLOATS, pa.float64()), (SMALL_FLOATS, pa.float32()), (INTS, pa.int64())]))
@settings(deadline=None)
def test_vectors(xp: Any, data: st.DataObject, drawn: Any) -> None:
    values, kind = drawn
    lists = st.lists(st.none() | st.lists(st.none() | values, min_size=3, max_size=3), max_size=8)
    found = data.draw(lists)
    if data.draw(st.booleans()):
        found.append([0])
    for shape in (pa.list_(kind), pa.large_list(kind), *([pa.list_(kind, 3)] if [0] not in found else [])):
        column = columns_of(found, shape, at=1)
        check_feature(xp, schema_of(kind="vector", dim=3), pa.table({"x": [[1.0, 2.0, 3.0]]}), pa.table({"x": column}))


# ---- arrays that are there already -----------------------------------------------------------------------------------


@on_each
def test_columns_in_the_memory_of_the_namespace(xp: Any) -> None:
    features = (
        Feature(name="whole", entity="candidate", kind="categorical", oov_rows=2),
        Feature(name="flag", entity="candidate", kind="categorical"),
        Feature(name="number", entity="candidate", kind="numeric", scaling="log1p"),
        Feature(name="small", entity="candidate", kind="numeric", scaling="quantile"),
        Feature(name="text", entity="candidate", kind="categorical"),
        Feature(name="vector", entity="candidate", kind="vector", dim=3),
        Feature(name="half", entity="candidate", kind="numeric"),
    )
    rng = np.random.default_rng(2)
    n = 300
    there = {
        "whole": rng.integers(0, 50, n, np.uint8),
        "flag": rng.random(n) < 0.5,
        "number": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
        "small": rng.normal(size=2 * n).astype(np.float32)[::2],
        "half": rng.normal(size=n).astype(np.float16),
    }
    text = pa.array([f"t{i % 7}" for i in range(n)])
    vectors = rng.normal(size=(n, 3))
    host = pa.table({**there, "text": text, "vector": vectors.tolist()})
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    pipeline = FeaturePipeline(schema).fit(interactions=host)
    expected = pipeline.transform("candidate", host, engine="arrays")
    arrays = {name: xp.asarray(each) for name, each in there.items()}
    watched: Any = LeftToHost(pipeline)
    table = {"text": text, "vector": xp.asarray(vectors), **arrays}
    found = device_batch.transform(watched, "candidate", table, xp=xp)
    assert watched.features == ["half"]
    assert [on_host(each).tobytes() for each in found] == [each.tobytes() for each in expected]
    with pytest.raises(SchemaError, match="column 'whole' should hold whole numbers"):
        device_batch.transform(pipeline, "candidate", table | {"whole": arrays["number"] + 0.5}, xp=xp)
    with pytest.raises(SchemaError, match="different lengths"):
        device_batch.transform(pipeline, "candidate", table | {"whole": arrays["whole"][:-1]}, xp=xp)
    with pytest.raises(SchemaError, match="one dimension"):
        device_batch.transform(pipeline, "candidate", table | {"whole": arrays["whole"][:, None, None]}, xp=xp)
    only = pipeline.transform("candidate", {"whole": there["whole"]}, engine="arrays", missing="null")
    again = device_batch.transform(pipeline, "candidate", {"whole": arrays["whole"]}, missing="null", xp=xp)
    assert [on_host(each).tobytes() for each in again] == [each.tobytes() for each in only]


@on_each
def test_training_takes_the_result_without_a_copy(xp: Any) -> None:
    torch = pytest.importorskip("torch")
    packed = device_batch.transform(fitted(), "candidate", as_table([dict.fromkeys(ROWS["candidate"])] * 3), xp=xp)
    for array in packed:
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == device_batch.address(array)
        assert tensor.is_contiguous()


@on_each
def test_what_was_fitted_is_copied_once(xp: Any) -> None:
    features = (
        Feature(name="item", entity="item", kind="categorical"),
        Feature(name="past", entity="user", kind="sequence", of="item", length=2),
        Feature(name="query", entity="user", kind="text", length=1),
        Feature(name="words", entity="user", kind="tfidf", dim=2, source="query"),
    )
    pipeline = FeaturePipeline(Schema(user="u", item="item", features=features, tasks=(Task(name="click"),)))
    table = pa.table({"u": [1, 2, 3], "item": [7, 8, 8], "past": [[8, 9], [], [7]], "query": ["a b", "b", None]})
    pipeline.fit(interactions=table)
    for domain in ("request", "item", "request"):
        check(xp, pipeline, table, domain=domain)
        (uploads,) = pipeline.uploads.values()
        # The items, the words and their bytes, the weights; what is known of code points, twice.
        assert len(uploads.arrays) == 6
    assert pipeline.fit(interactions=table.slice(0, 2)).uploads == {}
    check(xp, pipeline, table, domain="request")


# ---- structs ---------------------------------------------------------------------------------------------------------


def test_structs_of_another_size_are_refused() -> None:
    steps, columns = np.zeros(device_batch.STEP.itemsize, np.uint8), np.zeros(COLUMN.itemsize, np.uint8)
    assert _native.feature_kernels.encode_rows(steps[:0], columns, 0).shape == (0,)
    with pytest.raises(ValueError, match=f"steps must be structs of {device_batch.STEP.itemsize} bytes"):
        _native.feature_kernels.encode_rows(steps[:-1], columns, 0)
    with pytest.raises(ValueError, match=f"columns must be structs of {COLUMN.itemsize} bytes"):
        _native.feature_kernels.encode_rows(steps, columns[:-1], 0)


def test_vocabularies_of_values_that_stand_twice() -> None:
    with pytest.raises(ValueError, match="value 2 stands twice"):
        _native.feature_kernels.index_ints(np.array([LARGEST, 1, LARGEST]))
    with pytest.raises(ValueError, match="value 1 stands twice"):
        _native.feature_kernels.index_texts(np.frombuffer(b"aa", np.uint8), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="offsets must ascend"):
        _native.feature_kernels.index_texts(np.frombuffer(b"aa", np.uint8), np.array([0, 3]))
