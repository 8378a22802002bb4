"""Numba's kernels against the arrays: the same ids, the same bits, the same errors, whatever the values."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from feature_columns import (
    FLOATS,
    HASHES,
    INTS,
    RULES,
    SCALES,
    SMALL_FLOATS,
    TEXTS,
    VOCABULARIES,
    columns_of,
    schema_of,
)
from feature_engines import assert_same, both
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline, hashing, warm_up
from fastmtr.features.numba_batch import Index, hash_integers, hash_texts
from fastmtr.features.numba_features import divider
from fastmtr.features.numba_index import BLOCK
from fastmtr.schema import Feature, Schema, Task


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    warm_up()


# ---- hashes ----------------------------------------------------------------------------------------------------------


@given(st.lists(TEXTS, max_size=20), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_hashes_of_texts(texts, seed):
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)]).astype(np.int64)
    expected = hashing.hash_packed_bytes(data, offsets, seed=seed)
    np.testing.assert_array_equal(hash_texts(data, offsets, seed=seed), expected)


@pytest.mark.parametrize("sizes", [range(41), [8] * 200, [7, 8] * 100, [15] * 130, [0, 3, 4, 11, 12, 40] * 30])
@pytest.mark.parametrize("room", [0, 1, 15, 16])
def test_every_size_at_the_end_of_a_buffer(sizes, room):
    """In blocks of one size and of several; the last text of a buffer has nothing or little behind it."""
    data = np.random.default_rng(len(sizes)).integers(1, 256, sum(sizes) + 40).astype(np.uint8)
    offsets = np.cumsum([0, *sizes])
    for n in {1, len(sizes) // 2, BLOCK - 1, BLOCK, BLOCK + 1, *range(1, min(len(sizes), 42)), len(sizes)}:
        part = offsets[: min(n, len(sizes)) + 1]
        own = data[: part[-1] + room].copy()
        np.testing.assert_array_equal(hash_texts(own, part), hashing.hash_packed_bytes(own, part))


@given(st.lists(INTS, max_size=20), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_hashes_of_integers(numbers, seed):
    numbers = np.array(numbers, np.int64)
    np.testing.assert_array_equal(hash_integers(numbers, seed=seed), hashing.hash_integers(numbers, seed=seed))


@given(st.one_of(st.integers(1, 40), st.integers(1, 2**31 - 1), st.integers(0, 30).map(lambda i: 2**i)))
@settings(deadline=None)
def test_remainders_without_division(rows):
    numbers = divider(rows)
    magic, shift = numbers["magic"] % 2**64, numbers["shift"]
    some = [rows * k + d for k in (0, 1, 2, 2**64 // rows - 2) for d in (0, 1, rows - 1)] + [2**63, 2**64 - 1]
    for h in (each for each in some if 0 <= each < 2**64):
        upper = h * magic >> 64
        quotient = ((h - upper >> 1) + upper) >> shift
        assert rows == 1 or h - quotient * rows == h % rows


# ---- ids -------------------------------------------------------------------------------------------------------------


@given(st.data(), RULES, st.one_of(VOCABULARIES, HASHES), st.sampled_from([pa.string(), pa.large_string()]))
@settings(deadline=None)
def test_categories_of_text(data, rules, more, kind):
    if "hash_rows" in more:
        rules.pop("min_count", None)
    texts = st.lists(st.one_of(st.none(), TEXTS), max_size=30)
    fitted, found, at = data.draw(texts), data.draw(texts), data.draw(st.integers(0, 9))
    found += data.draw(st.permutations(fitted))
    schema = schema_of(kind="categorical", **{"nulls": "fill", **rules}, **more)
    fitted_rows = pa.table({"x": columns_of(fitted, kind)})
    assert_same(both(schema, fitted_rows, pa.table({"x": columns_of(found, kind, at=at)}), threads=2))


@given(st.data(), RULES, st.one_of(VOCABULARIES, HASHES))
@settings(deadline=None)
def test_categories_of_integers(data, rules, more):
    if "hash_rows" in more:
        rules.pop("min_count", None)
    numbers = st.lists(st.one_of(st.none(), INTS), max_size=30)
    fitted, found, at = data.draw(numbers), data.draw(numbers), data.draw(st.integers(0, 9))
    found += data.draw(st.permutations(fitted))
    schema = schema_of(kind="categorical", **rules, **more)
    fitted_rows = pa.table({"x": columns_of(fitted, pa.int64())})
    assert_same(both(schema, fitted_rows, pa.table({"x": columns_of(found, pa.int64(), at=at)})))


def test_a_large_vocabulary_finds_every_value():
    texts = [f"{'long ' * (i % 7)}{i}" for i in range(50_000)]
    table = pa.table({"x": pa.chunked_array([texts[:30_000], texts[30_000:], ["new"], [None]])})
    arrays, compiled = both(schema_of(kind="categorical"), pa.table({"x": texts}), table, threads=2)
    np.testing.assert_array_equal(arrays.ids, compiled.ids)
    assert len(np.unique(compiled.ids)) == 50_002


def test_texts_that_differ_in_zeros_at_the_end_are_different_values():
    texts = [size * "\0" for size in range(20)] + ["a" + size * "\0" for size in range(20)]
    for known in (texts, texts[::2], texts[::-3]):
        table = pa.table({"x": [*texts, None, *texts]})
        assert_same(both(schema_of(kind="categorical", oov_rows=3), pa.table({"x": known}), table))


def test_a_vocabulary_of_long_texts_that_differ_anywhere():
    texts = [f"{'x' * (i % 30)}{i}{'y' * (i % 17)}" for i in range(3000)]
    table = pa.table({"x": pa.array([*texts[::-1], *(text + "z" for text in texts)], pa.large_string())})
    assert_same(both(schema_of(kind="categorical", oov_rows=5), pa.table({"x": texts}), table))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 129, 700])
@pytest.mark.parametrize("at", [0, 1, 7, 8, 13])
def test_nulls_wherever_a_block_begins(rows, at):
    rng = np.random.default_rng(rows + at)
    nulls = rng.random(rows + at) < 0.3
    columns = {
        "text": pa.array([f"{i % 50}" for i in range(rows + at)], mask=nulls),
        "int": pa.array(np.arange(rows + at) % 50, mask=nulls),
        "number": pa.array(np.arange(rows + at) / 3, mask=nulls),
    }
    features = (
        Feature(name="text", entity="candidate", kind="categorical"),
        Feature(name="hashed", entity="candidate", kind="categorical", source="text", hash_rows=1000),
        Feature(name="int", entity="candidate", kind="categorical"),
        Feature(name="number", entity="candidate", kind="numeric", indicator=True),
        Feature(name="bucket", entity="candidate", kind="categorical", source="number", buckets=4),
    )
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    assert_same(both(schema, pa.table(columns), pa.table(columns).slice(at)))


def test_a_value_that_stands_twice_is_noticed():
    assert Index(np.array([3, 5, 3])).twice == 1
    assert Index(np.array([3, 5, 4])).twice == 0


def test_columns_of_another_type_are_refused_in_the_same_words():
    schema = schema_of(kind="categorical")
    for fitted, found in ((["a"], [1]), ([1], ["a"]), ([1], [1.5]), ([None], ["a"]), ([None], [None]), (["a"], [None])):
        assert_same(both(schema, pa.table({"x": fitted}), pa.table({"x": found})))


def test_a_column_that_is_missing():
    pipeline = FeaturePipeline(schema_of(kind="categorical")).fit(interactions=pa.table({"x": ["a"]}))
    table = pa.table({"y": [1, 2]})
    assert pipeline.transform("candidate", table, engine="numba", missing="null").ids.tolist() == [[0], [0]]
    with pytest.raises(SchemaError, match="no column for feature 'x'"):
        pipeline.transform("candidate", table, engine="numba")


# ---- numbers ---------------------------------------------------------------------------------------------------------


@given(
    st.data(),
    SCALES,
    st.sampled_from([(FLOATS, pa.float64()), (SMALL_FLOATS, pa.float32()), (INTS, pa.int64())])
    | st.just((st.integers(-(2**31), 2**31 - 1), pa.int32()))
    | st.just((st.integers(0, 2**64 - 1), pa.uint64()))
    | st.just((st.booleans(), pa.bool_())),
)
@settings(deadline=None, max_examples=300)
def test_numbers(data, rules, drawn):
    numbers, kind = drawn
    fitted = data.draw(st.lists(st.one_of(st.none(), numbers), max_size=30))
    found = data.draw(st.lists(st.one_of(st.none(), numbers), max_size=30)) + fitted
    schema = schema_of(kind="numeric", **rules)
    fitted_rows = pa.table({"x": columns_of(fitted, kind)})
    if rules.get("nulls") == "error":
        found = [each for each in found if each is not None] or found
    at = data.draw(st.integers(0, 9))
    assert_same(both(schema, fitted_rows, pa.table({"x": columns_of(found, kind, at=at)})))


@given(st.lists(st.one_of(st.none(), FLOATS), max_size=40), st.lists(st.one_of(st.none(), FLOATS), max_size=200))
@settings(deadline=None)
def test_buckets(fitted, found):
    schema = schema_of(kind="categorical", buckets=5)
    results = both(
        schema, pa.table({"x": columns_of(fitted, pa.float64())}), pa.table({"x": columns_of(found, pa.float64())})
    )
    assert_same(results)


@given(st.lists(st.floats(0, 1.7e308), max_size=300))
@settings(deadline=None)
def test_logarithms_have_the_bits_of_the_arrays(numbers):
    table = pa.table({"x": pa.array([0.0, 1.0, *numbers], pa.float64())})
    assert_same(both(schema_of(kind="numeric", scaling="log1p"), pa.table({"x": [0.0, 3.0, 5e-324]}), table))


# ---- whole tables ----------------------------------------------------------------------------------------------------


def test_threads_and_blocks_change_nothing():
    rng = np.random.default_rng(3)
    n = 40_000
    texts = np.array([f"value {i}" for i in range(3000)])[rng.zipf(1.3, n) % 3000]
    numbers = pa.array(rng.lognormal(size=n), mask=rng.random(n) < 0.2)
    table = pa.table({"text": texts, "number": numbers, "int": rng.integers(-9, 9, n), "tags": ["a|b"] * n})
    features = (
        Feature(name="text", entity="candidate", kind="categorical", min_count=2, oov_rows=3),
        Feature(name="hashed", entity="candidate", kind="categorical", source="text", hash_rows=1000, hashes=2),
        Feature(name="number", entity="candidate", kind="numeric", scaling="log1p", indicator=True),
        Feature(name="tags", entity="candidate", kind="multi", length=2),
        Feature(name="int", entity="candidate", kind="categorical"),
        Feature(name="both", entity="candidate", kind="categorical", cross=("text", "int"), hash_rows=50),
    )
    pipeline = FeaturePipeline(Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))).fit(
        interactions=table
    )
    expected = pipeline.transform("candidate", table, engine="arrays")
    for threads in (1, 2, 5):
        assert_same([expected, pipeline.transform("candidate", table, engine="numba", threads=threads)])
    rows = [7, 0, 39_999]
    assert_same(
        [
            type(expected)(expected.ids[rows], expected.dense[rows]),
            pipeline.transform("candidate", table.take(rows), engine="numba"),
        ]
    )


def test_automatic_once_it_is_compiled():
    code = (
        "import sys, pyarrow as pa\n"
        "from fastmtr.features import FeaturePipeline, warm_up\n"
        "from fastmtr.schema import Feature, Schema, Task\n"
        "features = (Feature(name='x', entity='candidate', kind='categorical'),)\n"
        "schema = Schema(user='u', item='i', features=features, tasks=(Task(name='c'),))\n"
        "table = pa.table({'x': ['a', 'b']})\n"
        "pipeline = FeaturePipeline(schema).fit(interactions=table)\n"
        "pipeline.transform('candidate', table)\n"
        "assert 'numba' not in sys.modules\n"
        "warm_up()\n"
        "from fastmtr.features import numba_run\n"
        "compiled = len(numba_run.run.signatures)\n"
        "pipeline.transform('candidate', table)\n"
        "assert compiled == len(numba_run.run.signatures) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, cwd="/")
