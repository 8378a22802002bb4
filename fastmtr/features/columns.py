"""What operators read: a raw column of a table, as NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import values

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Buffers", "Reader", "Texts", "TickLists", "Ticks", "Vectors"]


class Ticks(NamedTuple):
    """Points in time.

    Attributes
    ----------
    values : ndarray of int64, shape (n,)
    valid : ndarray of bool, shape (n,)
    """

    values: NDArray[np.int64]
    valid: NDArray[np.bool_]


class TickLists(NamedTuple):
    """Points in time, any number a row; a null list is empty.

    Attributes
    ----------
    ticks : Ticks
        Of all rows, one after the other.
    offsets : ndarray of int64, shape (n + 1,)
    """

    ticks: Ticks
    offsets: NDArray[np.int64]


class Texts(NamedTuple):
    """Texts in valid UTF-8.

    Attributes
    ----------
    data : ndarray of uint8
    offsets : ndarray of int64, shape (n + 1,)
        Text i is ``data[offsets[i]:offsets[i + 1]]``.
    valid : ndarray of bool, shape (n,)
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    valid: NDArray[np.bool_]


class Vectors(NamedTuple):
    """Vectors of numbers, all of one width.

    Attributes
    ----------
    values : ndarray of float64, shape (n, width)
        NaN: null.
    valid : ndarray of bool, shape (n,)
    """

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]


Buffers = Any
"""One of the above; for categories the column itself; for numbers a vector of float64."""


class Reader(NamedTuple):
    """One raw column of an operator, and what it should hold.

    Attributes
    ----------
    column : str
    kind : {"ticks", "tick_lists", "texts", "vectors", "categories", "numbers"}
    unit : str
        Of ticks.
    width : int
        Of vectors.
    """

    column: str
    kind: Literal["ticks", "tick_lists", "texts", "vectors", "categories", "numbers"]
    unit: str = "s"
    width: int = 0

    def of_column(self, column: pa.Array | pa.ChunkedArray) -> Buffers:
        """The values of a table's column; SchemaError if it holds something else."""
        array = values.combined(column)
        if self.kind == "categories":
            return array
        if self.kind == "numbers":
            return values.number_column(array, name=self.column)
        if self.kind == "ticks":
            return self._ticks(array)
        if self.kind == "texts":
            return self._texts(array)
        elements, offsets = self._lists(array)
        if self.kind == "tick_lists":
            return TickLists(self._ticks(elements), offsets)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        self._check_widths(np.diff(offsets)[valid])
        numbers = values.number_column(elements, name=self.column).reshape(-1, self.width)
        found = np.full((len(array), self.width), np.nan)
        found[valid] = numbers
        return Vectors(found, valid)

    @property
    def _what(self) -> str:
        lists = {"tick_lists": "lists of points in time", "vectors": f"lists of {self.width} numbers"}
        return lists.get(self.kind, "text")

    def _ticks(self, array: pa.Array) -> Ticks:
        ticks = values.ticks_column(array, name=self.column, unit=self.unit)
        filled = ticks.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return Ticks(filled, ticks.is_valid().to_numpy(zero_copy_only=False))

    def _texts(self, array: pa.Array) -> Texts:
        if not values.is_text(array.type):
            if array.null_count < len(array):
                raise SchemaError(f"column {self.column!r} should hold text, found a column of type {array.type}")
            return Texts(np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64), np.zeros(len(array), bool))
        data, offsets = values.text_bytes(array)
        values.check_utf8(data, offsets, problem=f"column {self.column!r} holds text that is not valid UTF-8")
        return Texts(data, offsets, array.is_valid().to_numpy(zero_copy_only=False))

    def _lists(self, array: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
        """The elements of all lists, and where each row's begin; a null list has none."""
        import pyarrow as pa

        kind = array.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return values.list_elements(array)
        if array.null_count < len(array):
            raise SchemaError(f"column {self.column!r} should hold {self._what}, found a column of type {kind}")
        return pa.nulls(0), np.zeros(len(array) + 1, np.int64)

    def _check_widths(self, counts: NDArray[np.int64]) -> None:
        wrong = counts[counts != self.width]
        if len(wrong):
            raise SchemaError(f"column {self.column!r} should hold {self._what}, found a list of {wrong[0]}")
