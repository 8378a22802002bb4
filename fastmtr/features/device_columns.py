"""Raw columns for the batch kernels (``csrc/core/feature_batch.h``): as Arrow keeps them, in the memory of a namespace.

`xp` is NumPy or CuPy. What is in the host's memory is copied over as it is, what is in the device's is read there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmtr.errors import SchemaError
from fastmtr.features import values
from fastmtr.features.arrow_structs import CUDA_MEMORY, HOST_MEMORY, ArrowColumn, device_type, exported

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMN", "Column", "Columns", "address"]

# struct Column.
COLUMN = np.dtype(
    [(name, np.uint64) for name in ("type", "width", "first_bit", "base", "expected", "values", "offsets", "valid")]
)
_TYPES = ("null", "whole", "natural", "floating", "bits", "text", "list", "vectors")
# Of Arrow's types of numbers, their type here and how many bytes they have.
_NUMBERS = {
    "c": ("whole", 1), "s": ("whole", 2), "i": ("whole", 4), "l": ("whole", 8), "C": ("natural", 1),
    "S": ("natural", 2), "I": ("natural", 4), "L": ("natural", 8), "f": ("floating", 4), "g": ("floating", 8),
}  # fmt: skip
# Of texts and lists, and how many bytes an offset has.
_VARYING = {"u": ("text", 4), "U": ("text", 8), "+l": ("list", 4), "+L": ("list", 8)}


class Column(NamedTuple):
    """One column, or the elements of one.

    Attributes
    ----------
    type : str
        Of ``enum class ColumnType``.
    fields : dict
        Other members of ``struct Column``.
    held : object
        What must stay in memory.
    elements : Column, optional
        Of lists and vectors.
    size : int
        How many elements, or bytes of text, it has.
    """

    type: str
    fields: dict[str, int]
    held: Any = None
    elements: Column | None = None
    size: int = 0

    def records(self, *, expected: int = 0) -> list[dict[str, int]]:
        """The structs: its own, and that of its elements."""
        own = {"type": _TYPES.index(self.type), "expected": expected, **self.fields}
        return [own, *(self.elements.records() if self.elements else [])]


def address(array: Any) -> int:
    """Where an array's memory begins."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Columns:
    """The columns of a table, wherever they are.

    Parameters
    ----------
    table : table
        What :func:`fastmtr.tables.read_table` takes; a mapping may have columns of the device's memory too: Arrow's, by
        its C device interface, or arrays, by DLPack or ``__cuda_array_interface__``. Arrays have no nulls but NaN; one
        of two dimensions holds a vector a row. Or a table of cuDF.
    xp : module
        NumPy or CuPy.
    """

    def __init__(self, table: Any, *, xp: Any) -> None:
        from fastmtr.tables import read_table

        self._xp = xp
        if hasattr(table, "to_pylibcudf"):
            table = dict(zip(table.columns, table.to_pylibcudf()[0].columns(), strict=True))
        # Columns that are there already.
        self._there: dict[str, Any] = {}
        if isinstance(table, Mapping):
            found = {str(name): _there(each, xp) for name, each in table.items()}
            self._there = {name: each for name, each in found.items() if each is not None}
            table = {name: each for name, each in table.items() if str(name) not in self._there}
        sizes = {
            name: len(each) if isinstance(each, xp.ndarray) else exported(each).length
            for name, each in self._there.items()
        }
        self._table = read_table(table)
        if self._table.num_columns or not sizes:
            sizes["the columns of the host"] = self._table.num_rows
        if len(set(sizes.values())) > 1:
            raise SchemaError(f"the table cannot be read: its columns are of different lengths, {sizes}")
        self.n_rows = next(iter(sizes.values()))
        self._found: dict[tuple[str, str | None], Column | None] = {}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self._table.column_names, *self._there]

    def get(self, name: str, *, unit: str | None = None) -> Column | None:
        """A column in the device's memory; None if it is of a type that the kernels do not read.

        Parameters
        ----------
        name : str
        unit : str, optional
            Points in time are read as so many of these since 1970.
        """
        key = name, unit
        if key not in self._found:
            there = self._there.get(name)
            if there is None:
                column = _in_unit(values.combined(self._table.column(name)), unit)
                self._found[key] = _Importer(self._xp, there=self._xp is np).column(exported(column), unit)
            elif isinstance(there, self._xp.ndarray):
                self._found[key] = _column_of_array(there)
            else:
                self._found[key] = _Importer(self._xp, there=True).column(exported(there), unit)
        return self._found[key]

    @cached_property
    def on_host(self) -> pa.Table:
        """All of the table, as Arrow's."""
        import pyarrow as pa

        from fastmtr.tables import read_table

        table = self._table
        for name, column in self._there.items():
            if isinstance(column, self._xp.ndarray):
                array = column if isinstance(column, np.ndarray) else column.get()
                one = pa.array(array.reshape(-1))
                one = one if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(one, array.shape[1])
            else:
                one = pa.Array._import_from_c_capsule(*column.__arrow_c_array__())
            table = table.append_column(name, one) if table.num_columns else pa.table({name: one})
        return read_table(table)


def _there(column: Any, xp: Any) -> Any | None:
    """A column that lies in the memory of the namespace's arrays: an array of it, or what exports one of Arrow's."""
    memory = HOST_MEMORY if xp is np else CUDA_MEMORY
    if hasattr(column, "__arrow_c_device_array__"):
        return column if device_type(column) in memory else None
    if isinstance(column, np.ndarray):
        array = column if xp is np and column.dtype.kind in "biuf" else None
    elif hasattr(column, "__cuda_array_interface__"):
        array = xp.asarray(column)
    else:
        is_there = hasattr(column, "__dlpack_device__") and column.__dlpack_device__()[0] in memory
        array = xp.from_dlpack(column) if is_there else None
    if array is not None and array.ndim not in (1, 2):
        raise SchemaError(f"a column has one dimension, or two for vectors; found an array of shape {array.shape}")
    return None if array is None else xp.ascontiguousarray(array)


def _column_of_array(array: Any) -> Column | None:
    kinds = {"b": "natural", "u": "natural", "i": "whole", "f": "floating"}
    kind, width = kinds.get(array.dtype.kind), array.dtype.itemsize
    if kind is None or (kind == "floating" and width not in (4, 8)):
        return None
    numbers = Column(kind, {"width": width, "values": address(array)}, array)
    if array.ndim == 1:
        return numbers
    return Column("vectors", {"width": array.shape[1]}, elements=numbers, size=array.size)


def _in_unit(array: pa.Array, unit: str | None) -> pa.Array:
    """Points in time, alone or in lists, in that unit."""
    import pyarrow as pa

    kind = array.type
    if unit is not None and pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp(unit, tz=kind.tz), safe=False)
    if unit is not None and pa.types.is_large_list(kind) and pa.types.is_timestamp(kind.value_type):
        return array.cast(pa.large_list(pa.timestamp(unit, tz=kind.value_type.tz)), safe=False)
    return array


class _Importer:
    """Makes columns of Arrow's arrays in the memory of a namespace; copies over what is not there."""

    def __init__(self, xp: Any, *, there: bool) -> None:
        self._xp, self._there = xp, there

    def column(self, of: ArrowColumn, unit: str | None, begin: int = 0, end: int | None = None) -> Column | None:
        """The elements from `begin` to `end`, or all; None if the kernels do not read that type."""
        if of.event:
            self._xp.cuda.runtime.eventSynchronize(of.event)
        n = (of.length if end is None else end) - begin
        first, fields, held = of.offset + begin, {"first_bit": (of.offset + begin) % 8}, [of.held]

        def bring(member: str, buffer: int, low: int, high: int) -> None:
            """These bytes, there."""
            if high > low:
                held.append(self._xp.asarray(self._bytes(of.buffers[buffer] + low, high - low, of.held)))
                fields[member] = address(held[-1])

        bits = first // 8, (first + n + 7) // 8 if n else 0
        if of.null_count and of.format != "n" and of.buffers[0]:
            bring("valid", 0, *bits)
        kind = "l" if unit is not None and of.format.startswith(f"ts{unit[0]}:") else of.format
        if kind == "n":
            return Column("null", {})
        if kind == "b":
            bring("values", 1, *bits)
            return Column("bits", fields, held)
        if kind in _NUMBERS:
            number, width = _NUMBERS[kind]
            bring("values", 1, first * width, (first + n) * width)
            return Column(number, fields | {"width": width}, held)
        if kind in _VARYING:
            shape, width = _VARYING[kind]
            bring("offsets", 1, first * width, (first + n + 1) * width if n else 0)
            low, high = self._ends(of, first, n, width) if n else (0, 0)
            fields |= {"width": width, "base": low}
        elif kind.startswith("+w:"):
            shape, width = "vectors", int(kind[3:])
            low, high = first * width, (first + n) * width
            fields["width"] = width
        else:
            return None
        if shape == "text":
            bring("values", 2, low, high)
            return Column("text", fields, held, size=high - low)
        elements = self.column(of.children[0], unit, low, high)
        return None if elements is None else Column(shape, fields, held, elements, high - low)

    def _bytes(self, at: int, n: int, held: Any) -> Any:
        """Memory as it lies, without a copy."""
        if self._there and self._xp is not np:
            memory = self._xp.cuda.UnownedMemory(at, n, held)
            return self._xp.ndarray((n,), np.uint8, self._xp.cuda.MemoryPointer(memory, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(at))

    def _ends(self, of: ArrowColumn, first: int, n: int, width: int) -> tuple[int, int]:
        """Where the first text or list begins, and the last ends."""
        found = [self._bytes(of.buffers[1] + (first + i) * width, width, of.held) for i in (0, n)]
        begin, end = (int(each.view(f"i{width}")[0]) for each in found)
        return begin, end
