"""Columns where they lie: Arrow's arrays through its C interfaces, and arrays, with offsets, nulls and without rows."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_features_operators import ROWS, as_table, fitted

from fastmtr.errors import SchemaError
from fastmtr.features import device_batch
from fastmtr.features.arrow_structs import HOST_MEMORY, device_type, exported
from fastmtr.features.device_columns import Columns
from fastmtr.tables import read_table


class OfHost:
    """Exports an array as the host's alone, as libraries do that know no devices."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._array.__arrow_c_array__(requested_schema)


def test_what_an_array_consists_of() -> None:
    array = pa.array([[1, None], None, [], [3]], pa.list_(pa.int16()))[1:]
    for exporter in (array, OfHost(array)):
        found = exported(exporter)
        assert (found.format, found.length, found.offset, found.event) == ("+l", 3, 1, 0)
        assert [buffer.address for buffer in array.buffers()[:2]] == list(found.buffers)
        (child,) = found.children
        assert (child.format, child.length, child.null_count) == ("s", 3, 1)
        assert found.null_count in (-1, 1)
    assert device_type(array) in HOST_MEMORY
    assert exported(pa.array(["a"]).dictionary_encode()).format == "dictionary"


@pytest.mark.parametrize("at", [0, 1, 7, 9])
@pytest.mark.parametrize("width", [pa.list_, pa.large_list])
def test_slices(at: int, width: Any) -> None:
    texts = width(pa.string()) if width is pa.list_ else width(pa.large_string())
    table = pa.table(
        {
            "bits": pa.array([True, None, False] * 4)[at:],
            "small": pa.array([5, None, -6] * 4, pa.int16())[at:],
            "text": pa.array(["ab", None, "c"] * 4)[at:],
            "texts": pa.array([["x", None, "yz"], None, []] * 4, texts)[at:],
            "fixed": pa.array([[1.0, None], None, [2.0, 3.0]] * 4, pa.list_(pa.float32(), 2))[at:],
            "null": pa.nulls(12)[at:],
        }
    )
    columns = Columns({name: table.column(name).chunk(0) for name in table.column_names}, xp=np)
    assert (columns.n_rows, columns.names) == (12 - at, table.column_names)
    assert columns.on_host == read_table(table)
    bits, small, text, lists, fixed, null = map(columns.get, columns.names)
    assert bits is not None
    assert small is not None
    assert text is not None
    assert lists is not None
    assert fixed is not None
    assert null is not None
    assert [each.type for each in (bits, small, text, lists, fixed, null)] == [
        "bits", "whole", "text", "list", "vectors", "null",
    ]  # fmt: skip
    assert bits.fields["first_bit"] == small.fields["first_bit"] == at % 8
    assert [small.held[-1].view(np.int16)[i] for i in range(12 - at) if i % 3 != (1 - at) % 3] == [
        each for each in table["small"].to_pylist() if each is not None
    ]
    assert text.held[-1].tobytes() == "".join(filter(None, table["text"].to_pylist())).encode()
    assert lists.elements is not None
    assert lists.elements.held[-1].tobytes() == b"xyz" * sum(bool(each) for each in table["texts"].to_pylist())
    assert fixed.elements is not None
    assert (fixed.fields["width"], fixed.size, fixed.elements.type) == (2, 2 * (12 - at), "floating")
    assert columns.get("small") is small


def test_points_in_time() -> None:
    at = datetime.datetime(2020, 1, 1, 12)
    times = pa.array([at, None], pa.timestamp("ms", tz="Europe/Rome"))
    for columns in (Columns({"x": times}, xp=np), Columns(pa.table({"x": times}), xp=np)):
        assert columns.get("x") is None  # a moment is no number
        found = columns.get("x", unit="ms")
        assert found is not None
        assert (found.type, found.held[-1].view(np.int64)[0]) == ("whole", 1_577_880_000_000)
    assert Columns({"x": times}, xp=np).get("x", unit="s") is None  # where it lies nothing is made of it
    found = Columns(pa.table({"x": times}), xp=np).get("x", unit="s")
    assert found is not None
    assert found.held[-1].view(np.int64)[0] == 1_577_880_000
    lists = Columns(pa.table({"x": pa.array([[at], None], pa.list_(pa.timestamp("us")))}), xp=np).get("x", unit="s")
    assert lists is not None
    assert lists.elements is not None
    assert lists.elements.held[-1].view(np.int64)[0] == 1_577_880_000


def test_types_that_the_kernels_do_not_read() -> None:
    for array in (
        pa.array([b"a"]), pa.array([datetime.date(2020, 1, 1)]), pa.array([1.0], pa.float16()), pa.array([{"a": 1}]),
        pa.array(["a"]).dictionary_encode(), pa.array([[b"a"]]), pa.array(["a"], pa.string_view()),
    ):  # fmt: skip
        columns = Columns({"x": array}, xp=np)
        assert columns.get("x") is None
        assert columns.on_host == read_table(pa.table({"x": array}))


@pytest.mark.parametrize("domain", sorted(ROWS))
def test_a_mapping_of_arrow_arrays(domain: Any) -> None:
    table = as_table([dict.fromkeys(ROWS[domain])] * 3)
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    found = device_batch.transform(fitted(), domain, columns, xp=np)
    expected = fitted().transform(domain, table, engine="arrays")
    assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]
    with pytest.raises(SchemaError, match="different lengths"):
        device_batch.transform(fitted(), domain, columns | {table.column_names[0]: pa.nulls(4)}, xp=np)
