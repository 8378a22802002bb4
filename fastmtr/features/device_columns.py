"""Raw columns for the batch kernels (``csrc/core/feature_batch.h``): as Arrow keeps them, in the memory of a namespace.

`xp` is NumPy or CuPy. What is in the host's memory is copied over as it is, what is in the device's is read there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmtr.errors import SchemaError
from fastmtr.features import values

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMN", "Column", "Columns", "address"]

# struct Column.
COLUMN = np.dtype(
    [(name, np.uint64) for name in ("type", "width", "first_bit", "base", "expected", "values", "offsets", "valid")]
)
_TYPES = ("null", "whole", "natural", "floating", "bits", "text", "list", "vectors")
# Of DLPack: the memory of a namespace's arrays.
_HOST_MEMORY, _DEVICE_MEMORY = (1,), (2, 13)


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
        What :func:`fastmtr.tables.read_table` takes; a mapping may have arrays of the device's memory too: of CuPy, or
        of another library with DLPack or ``__cuda_array_interface__``. Those have no nulls but NaN; one of two
        dimensions holds a vector a row.
    xp : module
        NumPy or CuPy.
    """

    def __init__(self, table: Any, *, xp: Any) -> None:
        from fastmtr.tables import read_table

        self._xp = xp
        self._arrays: dict[str, Any] = {}
        if isinstance(table, Mapping):
            self._arrays = {str(name): _array(each, xp) for name, each in table.items() if _is_there(each, xp)}
            table = {name: each for name, each in table.items() if str(name) not in self._arrays}
        sizes = {name: len(each) for name, each in self._arrays.items()}
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
        return [*self._table.column_names, *self._arrays]

    def get(self, name: str, *, unit: str | None = None) -> Column | None:
        """A column in the device's memory; None if it is of a type that the kernels do not read.

        Parameters
        ----------
        name : str
        unit : str, optional
            Points in time are turned into so many of these since 1970.
        """
        key = name, unit
        if key not in self._found:
            if name in self._arrays:
                self._found[key] = _column_of_array(self._arrays[name], self._xp)
            else:
                self._found[key] = _column_of_arrow(values.combined(self._table.column(name)), name, unit, self._xp)
        return self._found[key]

    def on_host(self) -> pa.Table:
        """All of the table, as Arrow's."""
        table = self._table
        for name, array in self._arrays.items():
            import pyarrow as pa

            there = array if isinstance(array, np.ndarray) else array.get()
            flat = pa.array(there.reshape(-1))
            one = flat if there.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, there.shape[1])
            table = table.append_column(name, one) if table.num_columns else pa.table({name: one})
        return table


def _is_there(column: Any, xp: Any) -> bool:
    """Whether a column lies in the memory of the namespace's arrays already."""
    if xp is np:
        return isinstance(column, np.ndarray) and column.dtype.kind in "biuf"
    if hasattr(column, "__cuda_array_interface__"):
        return True
    return hasattr(column, "__dlpack_device__") and column.__dlpack_device__()[0] in _DEVICE_MEMORY


def _array(column: Any, xp: Any) -> Any:
    array = xp.asarray(column) if hasattr(column, "__cuda_array_interface__") else xp.from_dlpack(column)
    if array.ndim not in (1, 2):
        raise SchemaError(f"a column has one dimension, or two for vectors; found an array of shape {array.shape}")
    return xp.ascontiguousarray(array)


def _column_of_array(array: Any, xp: Any) -> Column | None:
    kinds = {"b": "natural", "u": "natural", "i": "whole", "f": "floating"}
    kind, width = kinds.get(array.dtype.kind), array.dtype.itemsize
    if kind is None or (kind == "floating" and width not in (4, 8)):
        return None
    numbers = Column(kind, {"width": width, "values": address(array)}, array)
    if array.ndim == 1:
        return numbers
    return Column("vectors", {"width": array.shape[1]}, elements=numbers, size=array.size)


def _column_of_arrow(array: pa.Array, name: str, unit: str | None, xp: Any) -> Column | None:
    import pyarrow as pa

    if unit is not None and pa.types.is_timestamp(array.type):
        array = values.ticks_column(array, name=name, unit=unit)
    kind, n, first = array.type, len(array), array.offset
    held = []
    fields = {"first_bit": first % 8}

    def put(member: str, buffer: Any, begin: int, end: int) -> None:
        """Copy these bytes over."""
        if end > begin:
            held.append(xp.asarray(np.frombuffer(buffer, np.uint8)[begin:end]))
            fields[member] = address(held[-1])

    if pa.types.is_null(kind):
        return Column("null", {})
    buffers = array.buffers()
    bits = (first // 8, (first + n + 7) // 8) if n else (0, 0)
    if array.null_count:
        put("valid", buffers[0], *bits)
    if pa.types.is_boolean(kind):
        put("values", buffers[1], *bits)
        return Column("bits", fields, held)
    if pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64()):
        fields["width"] = width = kind.bit_width // 8
        put("values", buffers[1], first * width, (first + n) * width)
        whole = "whole" if pa.types.is_signed_integer(kind) else "natural"
        return Column("floating" if pa.types.is_floating(kind) else whole, fields, held)
    begin = end = 0
    if pa.types.is_fixed_size_list(kind):
        fields["width"] = kind.list_size
        begin, end = first * kind.list_size, (first + n) * kind.list_size
    elif values.is_text(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        fields["width"] = width = 8 if pa.types.is_large_string(kind) or pa.types.is_large_list(kind) else 4
        if n:
            put("offsets", buffers[1], first * width, (first + n + 1) * width)
            offsets = np.frombuffer(buffers[1], f"i{width}")
            begin, end = int(offsets[first]), int(offsets[first + n])
        fields["base"] = begin
    else:
        return None
    if values.is_text(kind):
        put("values", buffers[2], begin, end)
        return Column("text", fields, held, size=end - begin)
    elements = _column_of_arrow(array.values.slice(begin, end - begin), name, unit, xp)
    shape = "vectors" if pa.types.is_fixed_size_list(kind) else "list"
    return None if elements is None else Column(shape, fields, held, elements, end - begin)
