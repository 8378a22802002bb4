"""Tables by Numba: each column is read once, where Arrow keeps it, and written into the rows of the packed matrices.

Categories of one value, numbers and buckets go this way; other features are encoded as they always are, and copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.features import numba_kernels as kernels
from fastmtr.features import values
from fastmtr.features.categories import Categories, Texts
from fastmtr.features.made_categories import FIRST_BUCKET, Buckets
from fastmtr.features.scales import Scale
from fastmtr.graph import Input, Packed
from fastmtr.schema import Feature

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.features.pipeline import FeaturePipeline

__all__ = ["Index", "fill", "hash_integers", "hash_texts"]

# Rows that a thread takes at once.
_CHUNK = 1 << 14
_RULES = {"keep": 0, "clip": 1, "null": 2, "error": 3}
_Step = dict[str, Any]


class Index:
    """Where each value of a vocabulary stands in it: for look-ups of whole columns.

    Parameters
    ----------
    known : ndarray of int64, or Texts
    """

    def __init__(self, known: NDArray[np.int64] | Texts) -> None:
        n = len(known)
        places = 1 << max(3, (3 * n // 2 + 1).bit_length())
        room = np.zeros(4 * places + 8, np.uint64)
        # Two places of 32 bytes each in a cache line.
        self.places = room[-room.ctypes.data % 64 // 8 :][: 4 * places]
        self.places.reshape(places, 4)[:, 2] = np.uint64(kernels.UNKNOWN << 32)
        self.mask, self.known_bytes = places - 1, 0
        step: _Step = {"op": kernels.INDEX_INTS, "index": _address(self.places), "mask": self.mask, "rows": n}
        self._held: list[NDArray[Any]] = [self.places]
        if isinstance(known, Texts):
            data, offsets = np.ascontiguousarray(known.data), np.ascontiguousarray(known.offsets)
            self._held += [data, offsets]
            self.known_bytes = _address(data)
            step |= {"op": kernels.INDEX_TEXTS, "values": self.known_bytes, "limit": self.known_bytes + len(data)}
            step |= {"offsets": _address(offsets), "width": 8}
        else:
            numbers = np.ascontiguousarray(known, np.int64)
            self._held.append(numbers)
            step["values"] = _address(numbers)
        kernels.compile_kernels()
        self.twice = int(kernels.fill_index(_steps([step])))

    def step(self) -> _Step:
        """What a step needs to know of it."""
        return {"index": _address(self.places), "mask": self.mask, "known": self.known_bytes}


class _Task(NamedTuple):
    """One column of one feature: its step, what must stay in memory, and what may not be found."""

    feature: Feature
    step: _Step
    held: Any
    refuses_nulls: bool
    refuses_others: bool


def fill(
    pipeline: FeaturePipeline, table: pa.Table, *, into: Packed, places: Mapping[str, Input], threads: int
) -> frozenset[str]:
    """Pack the features that these kernels know.

    Parameters
    ----------
    pipeline : FeaturePipeline
    table : pyarrow.Table
    into : Packed
        Of as many rows; the columns of other features are left as they are.
    places : mapping of feature to Input
    threads : int

    Returns
    -------
    frozenset of str
        The features that were packed.
    """
    tasks: list[_Task] = []
    for name, place in places.items() if table.num_rows else ():
        matrix = into.ids if place.kind == "ids" else into.dense
        out = matrix[:, place.offset : place.offset + place.width]
        tasks += _tasks(pipeline, pipeline.schema.feature(name), table, out)
    counts = _run([task.step for task in tasks], table.num_rows, threads)
    for task, (nulls, others) in zip(tasks, counts.tolist(), strict=True):
        if (nulls and task.refuses_nulls) or (others and task.refuses_others):
            pipeline.transform_blocks([task.feature], table)  # says what is wrong
            raise AssertionError(f"feature {task.feature.name!r} should have been refused")
    return frozenset(task.feature.name for task in tasks)


def _run(steps: list[_Step], n: int, threads: int) -> NDArray[np.int64]:
    """Go through the steps for n rows; nulls and others of each."""
    array = _steps(steps)
    kernels.compile_kernels()
    parts = [(begin, min(begin + _CHUNK, n)) for begin in range(0, n, _CHUNK)] if steps else []

    def run(part: tuple[int, int]) -> NDArray[np.int64]:
        counts = np.zeros((len(steps), 2), np.int64)
        kernels.run(array, *part, counts)
        return counts

    if threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(run, parts))
    else:
        found = list(map(run, parts))
    return sum(found, np.zeros((len(steps), 2), np.int64))


# ---- the steps of a feature ------------------------------------------------------------------------------------------


def _tasks(pipeline: FeaturePipeline, feature: Feature, table: pa.Table, out: NDArray[Any]) -> Iterator[_Task]:
    """What makes a feature from its column, if that is one of the operations of the kernels."""
    encoder = pipeline.encoder(feature.name) if feature.kind in ("categorical", "numeric") else None
    if feature.column not in table.column_names:
        return
    if isinstance(encoder, Categories):
        yield from _category(feature, encoder, values.combined(table.column(feature.column)), out)
    elif isinstance(encoder, Scale | Buckets):
        step, held = _number_column(values.combined(table.column(feature.column)), feature.column)
        step |= _place(out)
        refuses_others = False
        if isinstance(encoder, Buckets):
            bounds = np.ascontiguousarray(encoder.bounds, np.float64)
            step |= {"op": kernels.BUCKET, "first_row": FIRST_BUCKET, "knots": _address(bounds)}
            step["n_knots"], held = len(bounds), (held, bounds)
        else:
            knots, levels = (np.ascontiguousarray(each, np.float64) for each in (encoder.knots, encoder.levels))
            step |= {"op": kernels.NUMBER, "knots": _address(knots), "levels": _address(levels), "n_knots": len(knots)}
            step |= {key: getattr(encoder, key) for key in ("low", "high", "least", "most", "factor", "indicator")}
            step |= {"of_shift": encoder.shift, "filler": encoder.filler, "log": encoder.kind == "log1p"}
            step["range_rule"], held = _RULES[encoder.out_of_range], (held, knots, levels)
            refuses_others = encoder.out_of_range == "error"
        yield _Task(feature, step, held, encoder.nulls == "error", refuses_others)


def _category(feature: Feature, encoder: Categories, array: pa.Array, out: NDArray[Any]) -> Iterator[_Task]:
    held: Any
    if encoder.type == "str" and values.is_text(array.type):
        step, held = _text_column(array)
        step["op"] = kernels.TEXT_IDS
    elif encoder.type == "int" and not values.is_text(array.type):
        _, held = values.category_column(array, name=encoder.name, expected="int")
        step = _fixed_column(held)
        step["op"] = kernels.INT_IDS
    else:
        return
    step["first_row"] = encoder.first_row
    refuses = encoder.nulls == "error", encoder.unseen == "error" and encoder.hash_rows is None
    if encoder.hash_rows is None:
        index = encoder.index
        step |= index.step() | divider(encoder.oov_rows)
        yield _Task(feature, step | _place(out), (held, index), *refuses)
        return
    for seed in range(encoder.hashes):
        yield _Task(feature, step | divider(encoder.hash_rows) | _place(out[:, seed:]) | {"seed": seed}, held, *refuses)


def divider(rows: int) -> _Step:
    """What the kernels need for remainders by `rows`, at least 1, without a division.

    T. Granlund and P. Montgomery, Division by invariant integers using multiplication, 1994; its form for divisors
    whose multiplier takes 65 bits.
    """
    bits = rows.bit_length() - 1
    if rows & (rows - 1) == 0:
        return {"rows": rows, "magic": 0, "shift": max(bits - 1, 0)}
    magic = (1 << (65 + bits)) // rows + 1 - (1 << 64)
    return {"rows": rows, "magic": _signed(magic), "shift": bits}


def _number_column(array: pa.Array, name: str) -> tuple[_Step, Any]:
    import pyarrow as pa

    kind = array.type
    if kind in (pa.float64(), pa.float32(), pa.int64(), pa.int32()):
        return _fixed_column(array) | {"floating": pa.types.is_floating(kind)}, array
    numbers = np.ascontiguousarray(values.number_column(array, name=name))
    return {"values": _address(numbers), "width": 8, "floating": True}, numbers


def _fixed_column(array: pa.Array) -> _Step:
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    return _validity(array) | {"values": (data.address if data else 0) + array.offset * width, "width": width}


def _text_column(array: pa.Array) -> tuple[_Step, Any]:
    import pyarrow as pa

    width = 8 if pa.types.is_large_string(array.type) else 4
    _, offsets, data = array.buffers()
    step = _validity(array) | {"offsets": offsets.address + array.offset * width, "width": width}
    return step | ({"values": data.address, "limit": data.address + data.size} if data else {}), array


def _validity(array: pa.Array) -> _Step:
    valid = array.buffers()[0]
    return {"valid": valid.address, "first_bit": array.offset} if valid and array.null_count else {}


def _place(out: NDArray[Any]) -> _Step:
    return {"out": _address(out), "stride": out.strides[0]}


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _steps(steps: list[_Step]) -> NDArray[Any]:
    array = np.zeros(len(steps), kernels.STEP)
    for i, step in enumerate(steps):
        for key, value in step.items():
            array[i][key] = value
    return array


# ---- hashes of whole columns -----------------------------------------------------------------------------------------


def hash_integers(numbers: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """What :func:`fastmtr.features.hashing.hash_integers` gives."""
    numbers, out = np.ascontiguousarray(numbers, np.int64), np.empty(len(numbers), np.uint64)
    _run([{"op": kernels.HASH_INTS, "values": _address(numbers), "seed": seed} | _place(out)], len(numbers), 1)
    return out


def hash_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """What :func:`fastmtr.features.hashing.hash_packed_bytes` gives."""
    data, offsets = np.ascontiguousarray(data, np.uint8), np.ascontiguousarray(offsets, np.int64)
    out = np.empty(len(offsets) - 1, np.uint64)
    step = {"op": kernels.HASH_TEXTS, "values": _address(data), "offsets": _address(offsets), "width": 8, "seed": seed}
    _run([step | _place(out)], len(out), 1)
    return out
