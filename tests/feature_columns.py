"""Columns of raw values, and rules of features, as property tests of tables draw them."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from fastmtr.schema import Feature, Schema, Task

LARGEST = 2**63 - 1
# Of 0, 8, 16 and 32 bytes, and one more or less, where kernels go another way; equal beginnings; zeros; marks.
TEXTS = st.one_of(
    st.sampled_from(["", "\0", "\0\0", "a", "a\0", "é", "é", "日本", "x" * 7, "x" * 8, "x" * 9, "x" * 15, "x" * 16]),
    st.sampled_from(["x" * 17, "x" * 31, "x" * 32, "x" * 33, "x" * 40 + "y", "x" * 40 + "z", "y" * 300]),
    st.text(max_size=40),
)
# Among them the key of an empty place of an index, see numba_index.NO_KEY.
INTS = st.one_of(
    st.sampled_from([0, 1, -1, LARGEST, -LARGEST - 1, 0x9E3779B97F4A7C15 - 2**64]),
    st.integers(-5, 5),
    st.integers(-(2**63), LARGEST),
)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e308, -1e308, 3.4e38, 3.5e38]),
    st.floats(),
    st.floats(-10, 10),
    st.integers(-3, 3).map(float),
)
SMALL_FLOATS = st.one_of(st.just(math.nan), st.floats(width=32))

RULES = st.fixed_dictionaries(
    {},
    optional={
        "nulls": st.sampled_from(["fill", "error"]),
        "min_count": st.integers(1, 2),
    },
)
VOCABULARIES = st.fixed_dictionaries(
    {}, optional={"unseen": st.sampled_from(["row", "error"]), "oov_rows": st.sampled_from([1, 2, 3, 7])}
)
HASHES = st.fixed_dictionaries(
    {"hash_rows": st.sampled_from([1, 2, 3, 10, 1000, 4096])}, optional={"hashes": st.integers(1, 3)}
)
SCALES = st.fixed_dictionaries(
    {"scaling": st.sampled_from(["none", "standard", "minmax", "robust", "log1p", "quantile", "normal"])},
    optional={
        "nulls": st.sampled_from(["fill", "error"]),
        "out_of_range": st.sampled_from(["keep", "clip", "null", "error"]),
        "indicator": st.booleans(),
        "clip": st.just((0.1, 0.9)),
    },
)


def columns_of(values: list[Any], kind: pa.DataType, *, at: int = 0) -> pa.Array:
    """As an Arrow column that begins within its buffers."""
    return pa.array([values[0] if values else None] * at + values, kind)[at:]


def schema_of(**rules: Any) -> Schema:
    """Of one feature, x, of the candidate."""
    return Schema(
        user="user",
        item="item",
        features=(Feature(name="x", entity="candidate", **rules),),
        tasks=(Task(name="click"),),
    )
