"""Numbers in fewer bits: rows of stored item tables, and tables of embeddings. ``docs/bundle.md`` has the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EMBEDDING_PRECISIONS",
    "EmbeddingPrecision",
    "EncodedTable",
    "decoded_shapes",
    "decoded_weights",
    "encode_table",
    "stored_rows",
]

EmbeddingPrecision = Literal["fp32", "fp16", "int8", "int4"]
EMBEDDING_PRECISIONS: tuple[EmbeddingPrecision, ...] = ("fp32", "fp16", "int8", "int4")

_SIGNED_LEVELS = 127
_BITS: dict[EmbeddingPrecision, int] = {"int8": 8, "int4": 4}
_HALF_LIMIT = 65520.0  # rounds to infinity
_SCALE_AND_SHIFT = 8  # bytes a row
_BLOCK = 1 << 22  # numbers encoded at once


def stored_rows(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """What is read of rows that were stored in a plan's buffer of that dtype.

    Parameters
    ----------
    rows : ndarray, shape (n, width)
        Whole rows of the buffer.
    dtype : str
        ``f32``: as they are. ``f16``: to the nearest number of IEEE 754 binary16. ``i8``: to the nearest of the 255
        multiples of the row's scale, which is its largest size / 127.

    Returns
    -------
    ndarray, shape (n, width)
        Of the dtype of ``rows``.
    """
    if dtype == "f16":
        return rows.astype(np.float16).astype(rows.dtype)
    if dtype == "i8":
        scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / _SIGNED_LEVELS
        return np.asarray(np.round(rows / np.where(scale > 0, scale, 1)) * scale, dtype=rows.dtype)
    return rows


# ---- tables of embeddings --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EncodedTable:
    """A table of embeddings as a bundle keeps it.

    Parameters
    ----------
    precision : {"fp16", "int8", "int4"}
    table : ndarray, shape (rows, columns) or for int4 (rows, columns / 2)
        float16, or uint8: numbers q, for int4 two a byte, the first in the low bits.
    scale, shift : ndarray of float32, shape (rows,), optional
        Of int8 and int4: a number is q * scale + shift.
    """

    precision: EmbeddingPrecision
    table: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None

    def decode(self) -> NDArray[np.float32]:
        """The numbers that the engine reads, shape (rows, columns)."""
        if self.scale is None or self.shift is None:
            return self.table.astype(np.float32)
        rows, width = self.table.shape
        columns = width * 8 // _BITS[self.precision]
        decoded = np.empty((rows, columns), np.float32)
        for part in _blocks(rows, columns):
            q = self.table[part]
            if self.precision == "int4":
                q = np.stack([q & 15, q >> 4], axis=2).reshape(len(q), columns)
            decoded[part] = q * self.scale[part, None].astype(np.float64) + self.shift[part, None]
        return decoded

    @property
    def bits(self) -> int | None:
        """The attribute of the steps that look it up; None of fp16."""
        return _BITS.get(self.precision)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(each.nbytes for each in (self.table, self.scale, self.shift) if each is not None)


def encode_table(table: NDArray[np.float32], precision: EmbeddingPrecision) -> EncodedTable | None:
    """A table in at most so many bits a number: in the smallest form that it fits, of equal ones the most precise.

    int8 and int4 keep a scale and a shift a row, so that narrow tables are smaller in fp16; int4 takes an even number
    of columns; fp16 takes no number beyond 65504.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, columns)
        Finite numbers.
    precision : {"fp32", "fp16", "int8", "int4"}

    Returns
    -------
    EncodedTable or None
        None: it stays in fp32.
    """
    columns = table.shape[1]
    sizes: dict[EmbeddingPrecision, float] = {
        "fp32": 4 * columns,
        "fp16": 2 * columns,
        "int8": columns + _SCALE_AND_SHIFT,
        "int4": columns / 2 + _SCALE_AND_SHIFT,
    }
    allowed = list(EMBEDDING_PRECISIONS[: EMBEDDING_PRECISIONS.index(precision) + 1])
    if columns % 2 and "int4" in allowed:
        allowed.remove("int4")
    if "fp16" in allowed and max(table.max(initial=0), -table.min(initial=0)) >= _HALF_LIMIT:
        allowed.remove("fp16")
    best = min(allowed, key=sizes.__getitem__)  # the first of equal ones
    if best == "fp32":
        return None
    if best == "fp16":
        return EncodedTable(best, table.astype(np.float16))
    return _encode_rows(table, best)


def _encode_rows(table: NDArray[np.float32], precision: EmbeddingPrecision) -> EncodedTable:
    rows, columns = table.shape
    bits = _BITS[precision]
    levels = 2**bits - 1
    low, high = table.min(axis=1), table.max(axis=1)
    scale = ((high.astype(np.float64) - low) / levels).astype(np.float32)
    packed = np.empty((rows, columns * bits // 8), np.uint8)
    for part in _blocks(rows, columns):
        steps = np.where(scale[part] > 0, scale[part], 1).astype(np.float64)[:, None]
        q = np.clip(np.rint((table[part] - low[part, None].astype(np.float64)) / steps), 0, levels).astype(np.uint8)
        packed[part] = q if bits == 8 else q[:, 0::2] | q[:, 1::2] << 4
    return EncodedTable(precision, packed, scale, low)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // columns)
    for first in range(0, rows, step):
        yield slice(first, first + step)


def decoded_weights(plan: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The tensors of a bundle with its encoded tables in fp32 again, under the same names."""
    decoded = dict(tensors)
    for step in plan["steps"]:
        name = step["weights"].get("table") if step["op"] in ("embedding", "embedding_bag") else None
        if name is None or decoded[name].dtype == np.float32:
            continue
        if tensors[name].dtype == np.float16:
            made = EncodedTable("fp16", tensors[name])
        else:
            roles = step["weights"]
            precision: EmbeddingPrecision = "int4" if step["attrs"]["bits"] == 4 else "int8"
            scale, shift = (tensors[roles[role]] for role in ("table_scale", "table_shift"))
            made = EncodedTable(precision, tensors[name], scale, shift)
        decoded[name] = made.decode()
    return decoded


def decoded_shapes(plan: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that :func:`decoded_weights` gives tensors of these shapes."""
    decoded = dict(shapes)
    for step in plan["steps"]:
        if step["attrs"].get("bits") == 4:
            rows, columns = shapes[step["weights"]["table"]]
            decoded[step["weights"]["table"]] = rows, 2 * columns
    return decoded
