"""One meaning for a value, whether it comes in a column or alone in a request.

A category is a whole number (booleans and floats without a fraction included) or text; NaN is null. The engine reads
Python's own int, float and str itself; of one value of another type, it asks the functions here that are named in the
singular.
"""

from __future__ import annotations

import datetime
import math
import numbers
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "TICKS_A_SECOND",
    "ValueType",
    "category",
    "category_column",
    "check_utf8",
    "combined",
    "is_text",
    "list_elements",
    "number",
    "number_column",
    "text_buffers",
    "text_bytes",
    "ticks",
    "ticks_column",
    "utf8",
]

ValueType = Literal["int", "str"]

_INT64 = (-(2**63), 2**63 - 1)
TICKS_A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _is_null(value: Any) -> bool:
    """None, NaN, or the missing value of pandas."""
    return (
        value is None
        or (isinstance(value, float | np.floating) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def category(value: Any, *, name: str) -> int | None:
    """A whole number of whatever type as one of Python; None is null. SchemaError if it is no category."""
    if _is_null(value):
        return None
    if not isinstance(value, numbers.Real | np.bool_):
        _refuse_type(name, "whole numbers or text", f"a {type(value).__name__}")
    return _whole(value, name)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        _refuse_type(name, "whole numbers or text", f"the number {value}")
    whole = int(value)
    if whole != value or not _INT64[0] <= whole <= _INT64[1]:
        _refuse_type(name, "whole numbers of 64 bits", f"the number {value}")
    return whole


def category_column(
    column: pa.Array | pa.ChunkedArray, *, name: str, expected: ValueType | None
) -> tuple[ValueType, pa.Array]:
    """A column of categories as an int64 or string array, with its type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = combined(column)
    kind = array.type
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    if array.null_count == len(array):
        nothing = expected or ("str" if is_text(kind) else "int")
        return nothing, pa.nulls(len(array), pa.int64() if nothing == "int" else pa.large_string())
    if is_text(kind):
        if expected == "int":
            _refuse_type(name, "whole numbers", f"text ({_example(array)!r})")
        return "str", array.cast(pa.large_string())
    if pa.types.is_floating(kind):
        values = array.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
        wrong = values[~((values == np.floor(values)) & (values >= -(2.0**63)) & (values < 2.0**63))]
        if len(wrong):
            _refuse_type(name, "whole numbers of 64 bits, or text", f"the number {wrong[0]}")
        array = array.cast(pa.float64()).cast(pa.int64(), safe=False)
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        try:
            array = array.cast(pa.int64())
        except pa.ArrowInvalid as error:
            _refuse_type(name, "whole numbers of 64 bits", str(error))
    else:
        _refuse_type(name, "whole numbers or text", f"a column of type {kind}")
    if expected == "str":
        _refuse_type(name, "text", f"a column of type {kind}")
    return "int", array


def is_text(kind: pa.DataType) -> bool:
    """Whether a column type holds text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def number(value: Any, *, name: str) -> float:
    """A number of whatever type as float64; NaN is null. SchemaError if it is no number."""
    if _is_null(value):
        return math.nan
    if not isinstance(value, numbers.Number | np.bool_) or isinstance(value, complex):
        _refuse_type(name, "numbers", f"a {type(value).__name__}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def number_column(column: pa.Array | pa.ChunkedArray, *, name: str) -> NDArray[np.float64]:
    """A column of numbers as float64; NaN is null."""
    import pyarrow as pa

    array = combined(column)
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif not (
        pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    ):
        _refuse_type(name, "numbers", f"a column of type {kind}")
    return np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def ticks(value: Any, *, name: str, unit: str) -> int | None:
    """One point in time: a whole number of `unit` since 1970, or a datetime (UTC where it names no zone)."""
    if isinstance(value, datetime.datetime) and not _is_null(value):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
        return (aware - _EPOCH) // datetime.timedelta(microseconds=1) * TICKS_A_SECOND[unit] // TICKS_A_SECOND["us"]
    return category(value, name=name)


def ticks_column(column: pa.Array | pa.ChunkedArray, *, name: str, unit: str) -> pa.Array:
    """A column of points in time as int64 `unit` since 1970, nulls kept."""
    import pyarrow as pa

    array = combined(column)
    if pa.types.is_timestamp(array.type):
        return array.cast(pa.timestamp(unit, tz=array.type.tz), safe=False).cast(pa.int64())
    return category_column(array, name=name, expected="int")[1]


def text_bytes(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of a text column without nulls, and where each value begins (one more offset than values)."""
    import pyarrow as pa

    large = array.cast(pa.large_string())
    _, offsets_buffer, data = large.buffers()
    offsets = (
        np.frombuffer(offsets_buffer, np.int64)[large.offset : large.offset + len(large) + 1]
        if len(large)
        else np.zeros(1, np.int64)
    )
    start, end = int(offsets[0]), int(offsets[-1])
    content = np.frombuffer(data, np.uint8)[start:end] if data is not None else np.zeros(0, np.uint8)
    return content, offsets - start


def utf8(text: str, *, name: str) -> bytes:
    """A text's bytes; SchemaError if it holds half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"column {name!r} holds text that is not valid Unicode: {error.reason} in {text!r}"
        ) from error


def text_buffers(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int32] | NDArray[np.int64]]:
    """The same without a copy: the offsets do not begin at 0, and nulls have some."""
    import pyarrow as pa

    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    rows = slice(array.offset, array.offset + len(array) + 1)
    if pa.types.is_large_string(array.type):
        return content, np.frombuffer(offsets, np.int64)[rows]
    return content, np.frombuffer(offsets, np.int32)[rows]


def check_utf8(data: NDArray[np.uint8], offsets: NDArray[np.int64], *, problem: str) -> None:
    """SchemaError unless each text is valid UTF-8."""
    try:
        data.tobytes().decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"{problem}: {error}") from error
    inner = offsets[offsets < len(data)]
    if ((data[inner] & 0xC0) == 0x80).any():
        raise SchemaError(f"{problem}: a text begins in the midst of a character")


def combined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def list_elements(array: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """The elements of all lists of a column, and where each row's begin (one more than rows); a null list has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = array.cast(pa.large_list(array.type.value_type))
    if not len(array):
        return array.values[:0], np.zeros(1, np.int64)
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if array.null_count:
        counts = np.diff(offsets)
        absent = array.is_null().to_numpy(zero_copy_only=False)
        if counts[absent].any():
            counts[absent] = 0
            return pc.list_flatten(array), np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return array.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def _example(array: pa.Array) -> Any:
    return array.drop_null()[0].as_py() if array.null_count < len(array) else None


def _refuse_type(name: str, expected: str, found: str) -> NoReturn:
    raise SchemaError(f"column {name!r} should hold {expected}, found {found}")
