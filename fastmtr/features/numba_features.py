"""The steps of features for Numba: what :mod:`fastmtr.features.numba_run` does with which memory, feature by feature.

A column is taken where Arrow keeps it if it has the type that kernels read, else as the functions of ``values`` make
it, which the arrays take, too. What comes between two steps lies in arrays of one value a row or element.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.features import numba_kernels as kernels
from fastmtr.features import values
from fastmtr.features.array_times import CYCLES, PARTS, Clock
from fastmtr.features.attributes import Attributes
from fastmtr.features.categories import MISSING, UNSEEN, Categories
from fastmtr.features.made_categories import FIRST_BUCKET, Buckets, Cross
from fastmtr.features.numba_lists import set_places
from fastmtr.features.numba_text import SPACES
from fastmtr.features.operators import clock_of, readers
from fastmtr.features.scales import Scale
from fastmtr.features.target_encoding import TargetTable
from fastmtr.features.text import Tfidf
from fastmtr.features.times import Cyclic, Gaps, Recency
from fastmtr.features.unicode_tables import code_points
from fastmtr.features.vectors import Vector
from fastmtr.schema import Feature

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.features.pipeline import FeaturePipeline

__all__ = ["Step", "Task", "address", "divider", "place", "tasks_of"]

Step = dict[str, Any]

_RULES = {"keep": 0, "clip": 1, "null": 2, "error": 3}
_MANY = 1 << 62


class Task(NamedTuple):
    """A step, what must stay in memory for it, what may not be found, and the bytes of scratch memory it takes."""

    step: Step
    held: Any = None
    refuses_nulls: bool = False
    refuses_others: bool = False
    scratch: int = 0


def tasks_of(pipeline: FeaturePipeline, feature: Feature, table: pa.Table, out: NDArray[Any]) -> list[Task] | None:
    """What makes a feature of a table's columns.

    Parameters
    ----------
    pipeline : FeaturePipeline
    feature : Feature
    table : pyarrow.Table
        Of at least one row; columns as :func:`fastmtr.tables.read_table` makes them.
    out : ndarray of int32 or float32, shape (n, width)
        The feature's columns of a packed matrix.

    Returns
    -------
    list of Task, in their order; or None
        None: the table has no such column, or one that the arrays refuse.

    Raises
    ------
    SchemaError
        A column holds values of the wrong kind.
    """
    if not pipeline.has_column(feature, table.column_names):
        return None
    encoder = pipeline.encoder(feature.name)
    if isinstance(encoder, Categories | Attributes) and feature.kind != "categorical":
        return _many(feature, encoder, values.combined(table.column(feature.column)), out)
    if isinstance(encoder, Categories):
        if feature.column in table.column_names:
            outs = [out[:, seed] for seed in range(encoder.hashes)]
            return _category(encoder, values.combined(table.column(feature.column)), outs)
        return _clock_part(feature, encoder, _Clock(pipeline, table), out)
    if isinstance(encoder, Scale):
        step, held = _number_column(values.combined(table.column(feature.column)), feature.column)
        return [_scaled(encoder, step, held, out)]
    columns = [values.combined(table.column(reader.column)) for reader in readers(feature, pipeline.schema)]
    if isinstance(encoder, Buckets):
        return [_bucket(encoder, columns[0], feature.column, out)]
    if isinstance(encoder, Cross):
        return _cross(encoder, columns, out)
    if isinstance(encoder, TargetTable):
        ids = np.empty(table.num_rows, np.int32)
        return [*_category(encoder.categories, columns[0], [ids]), _gather(encoder.table, np.float32, ids, out[:, 0])]
    if isinstance(encoder, Tfidf):
        return _tfidf(encoder, columns[0], out)
    if isinstance(encoder, Vector):
        return _vector(encoder, columns[0], feature.column, out)
    clock = _Clock(pipeline, table)
    if isinstance(encoder, Cyclic):
        return [_cycle(encoder, clock, out)]
    if isinstance(encoder, Recency):
        return _recency(encoder, clock, clock.ticks(columns[0], feature.column), out)
    assert isinstance(encoder, Gaps)
    return _gaps(encoder, clock, columns[0], feature.column, out)


# ---- categories ------------------------------------------------------------------------------------------------------


def _category(categories: Categories, array: pa.Array, outs: Sequence[NDArray[np.int32]]) -> list[Task]:
    """The ids of each value of a column, by as many hashes as there are places for them."""
    if not len(array):
        return []
    text, array = _category_column(array, categories.name, categories.type)
    return _ids(categories, _text_column(array) if text else _fixed_column(array), array, outs)


def _ids(categories: Categories, step: Step, held: Any, outs: Sequence[NDArray[np.int32]]) -> list[Task]:
    refuses = categories.nulls == "error", categories.unseen == "error" and categories.hash_rows is None
    step = step | _vocabulary(categories) | {"op": kernels.IDS}
    return [
        Task(step | place(out) | {"seed": seed}, (held, out, categories), *refuses) for seed, out in enumerate(outs)
    ]


def _vocabulary(categories: Categories) -> Step:
    """How values become rows."""
    if categories.hash_rows is not None:
        return divider(categories.hash_rows) | {"first_row": categories.first_row}
    return categories.index.step() | divider(categories.oov_rows) | {"first_row": categories.first_row}


def _category_column(array: pa.Array, name: str, expected: values.ValueType | None) -> tuple[bool, pa.Array]:
    """Whether it holds text, and the column as kernels read it."""
    if values.is_text(array.type) and expected != "int":
        return True, array
    kind, array = values.category_column(array, name=name, expected=expected)
    return kind == "str", array


def divider(rows: int) -> Step:
    """What the kernels need for remainders by `rows`, at least 1, without a division.

    T. Granlund and P. Montgomery, Division by invariant integers using multiplication, 1994; its form for divisors
    whose multiplier takes 65 bits.
    """
    bits = rows.bit_length() - 1
    if rows & (rows - 1) == 0:
        return {"rows": rows, "magic": 0, "shift": max(bits - 1, 0)}
    magic = (1 << (65 + bits)) // rows + 1 - (1 << 64)
    return {"rows": rows, "magic": _signed(magic), "shift": bits}


def _cross(encoder: Cross, columns: Sequence[pa.Array], out: NDArray[np.int32]) -> list[Task]:
    """The hashes of a row's values lie side by side, as one text."""
    import pyarrow.compute as pc

    n, size = len(out), 8 * len(columns)
    hashes = np.empty((n, len(columns)), np.uint64)
    tasks, valid = [], None
    for i, (name, column, kind) in enumerate(zip(encoder.columns, columns, encoder.types, strict=True)):
        text, array = _category_column(column, name, kind)
        step = _text_column(array) if text else _fixed_column(array)
        tasks.append(Task({"op": kernels.HASH} | step | place(hashes[:, i]), array))
        if array.null_count:
            valid = array.is_valid() if valid is None else pc.and_(valid, array.is_valid())
    offsets = np.arange(n + 1, dtype=np.int64) * size
    joint: Step = {"values": address(hashes), "limit": address(hashes) + hashes.nbytes}
    joint |= {"offsets": address(offsets), "width": 8}
    bits: Step = {} if valid is None else {"valid": valid.buffers()[1].address, "first_bit": valid.offset}
    held = hashes, offsets, valid
    if encoder.categories.hash_rows is not None:
        outs = [out[:, seed] for seed in range(encoder.width)]
        return tasks + _ids(encoder.categories, joint | bits, held, outs)
    whole = np.empty(n, np.uint64)
    tasks.append(Task(joint | {"op": kernels.HASH} | place(whole), held))
    single: Step = {"values": address(whole), "width": 8} | bits
    return tasks + _ids(encoder.categories, single, (whole, valid), [out[:, 0]])


def _gather(table: Any, kind: Any, ids: NDArray[np.int32], out: NDArray[Any]) -> Task:
    """What each id stands for."""
    known = np.ascontiguousarray(table, kind)
    return Task({"op": kernels.GATHER, "values": address(ids), "table": address(known)} | place(out), (known, ids))


# ---- lists -----------------------------------------------------------------------------------------------------------


def _many(
    feature: Feature, encoder: Categories | Attributes, array: pa.Array, out: NDArray[np.int32]
) -> list[Task] | None:
    import pyarrow as pa

    if pa.types.is_large_list(array.type):
        return None if feature.kind == "text" else _list(feature, encoder, array, out)
    if array.null_count == len(array):
        out[:] = MISSING
        return []
    if not values.is_text(array.type) or not isinstance(encoder, Categories) or encoder.type == "int":
        return None
    if feature.kind == "text":
        return _words(feature, encoder, array, out)
    return _text_list(feature, encoder, array, out) if feature.kind == "multi" and feature.separator else None


def _list(feature: Feature, encoder: Categories | Attributes, array: pa.Array, out: NDArray[np.int32]) -> list[Task]:
    elements, offsets = values.list_elements(array)
    ids = np.empty(len(elements), np.int32)
    keys = encoder.keys if isinstance(encoder, Attributes) else encoder
    tasks = _category(keys, elements, [ids])
    if isinstance(encoder, Attributes):
        by_key = np.concatenate([np.array([MISSING, UNSEEN], np.int32), encoder.ids])
        tasks.append(_gather(by_key, np.int32, ids, ids))
    # Nulls of a list are left out, whatever the rule of the feature whose vocabulary it is.
    tasks = [t._replace(step=t.step | {"elements": address(offsets)}, refuses_nulls=False) for t in tasks]
    step = {"op": kernels.LIST, "values": address(ids), "offsets": address(offsets)} | _row_of(feature) | place(out)
    scratch = 4 * set_places(_longest(offsets)) if feature.kind == "multi" else 0
    return [*tasks, Task(step, (ids, offsets), scratch=scratch)]


def _row_of(feature: Feature) -> Step:
    """How the ids of many values become a row."""
    return {"length": feature.length, "as_set": feature.kind == "multi", "keep_last": feature.keep == "last"}


def _vector(encoder: Vector, array: pa.Array, name: str, out: NDArray[np.float32]) -> list[Task] | None:
    import pyarrow as pa

    if not pa.types.is_large_list(array.type):
        return _nothing(encoder, array, out)
    elements, offsets = values.list_elements(array)
    if np.count_nonzero(np.diff(offsets) != encoder.width) != array.null_count:
        return None
    step, held = _number_column(elements, name)
    step |= {"op": kernels.VECTOR, "offsets": address(offsets), "length": encoder.width}
    return [Task(step | place(out), (held, offsets), encoder.nulls == "error")]


def _nothing(encoder: Vector | Tfidf, array: pa.Array, out: NDArray[np.float32]) -> list[Task] | None:
    """A column of another type: nulls, or what the arrays refuse."""
    if array.null_count < len(array) or encoder.nulls == "error":
        return None
    out[:] = 0
    return []


# ---- text ------------------------------------------------------------------------------------------------------------


def _words(feature: Feature, encoder: Categories, array: pa.Array, out: NDArray[np.int32]) -> list[Task]:
    refuses = encoder.unseen == "error"
    enough = _MANY if refuses or feature.keep == "last" else feature.length + feature.ngrams - 1
    step, scratch = _word_room(array, 0)
    step |= _text_column(array) | _vocabulary(encoder) | _row_of(feature) | place(out)
    step |= {"op": kernels.WORDS, "ngrams": feature.ngrams, "most_words": enough, "refuses": refuses}
    return [Task(step, (array, encoder), False, True, scratch)]


def _tfidf(encoder: Tfidf, array: pa.Array, out: NDArray[np.float32]) -> list[Task] | None:
    if not values.is_text(array.type):
        return _nothing(encoder, array, out)
    idf = np.ascontiguousarray(encoder.idf, np.float64)
    step, scratch = _word_room(array, 4 * encoder.width)
    step |= _text_column(array) | divider(encoder.width) | place(out)
    step |= {"op": kernels.TFIDF, "ngrams": encoder.ngrams, "most_words": _MANY, "knots": address(idf)}
    return [Task(step | {"length": encoder.width}, (array, idf), encoder.nulls == "error", True, scratch)]


def _word_room(array: pa.Array, before: int) -> tuple[Step, int]:
    """The tables of characters, and the scratch memory for the words of each text of a column."""
    longest, points = _longest(values.text_buffers(array)[1]), code_points()
    second = -(-before // 8) * 8
    # Lower case may take three bytes where upper case took two.
    third = second + -(-(2 * longest + 16) // 8) * 8
    step = {"table": address(points.lower), "word": address(points.word), "second": second, "third": third}
    return step, third + 16 * (longest // 2 + 1)


def _text_list(feature: Feature, encoder: Categories, array: pa.Array, out: NDArray[np.int32]) -> list[Task]:
    separator = np.frombuffer(feature.separator.encode(), np.uint8)
    most = _longest(values.text_buffers(array)[1]) // len(separator) + 1
    spaces, refuses = _white_space(), encoder.unseen == "error"
    step = _text_column(array) | _vocabulary(encoder) | _row_of(feature) | place(out)
    step |= {"op": kernels.TEXT_LIST, "space": address(spaces), "separator": address(separator), "second": 4 * most}
    step |= {"separator_size": len(separator), "refuses": refuses}
    return [Task(step, (array, encoder, separator, spaces), False, True, 4 * (most + set_places(most)))]


@lru_cache(maxsize=1)
def _white_space() -> NDArray[np.bool_]:
    """Which code points ``str.strip`` takes away."""
    return np.array([chr(point).isspace() for point in range(SPACES)])


# ---- numbers and times -----------------------------------------------------------------------------------------------


def _scaled(scale: Scale, step: Step, held: Any, out: NDArray[np.float32]) -> Task:
    knots, levels = (np.ascontiguousarray(each, np.float64) for each in (scale.knots, scale.levels))
    step = step | place(out) | {key: getattr(scale, key) for key in ("low", "high", "least", "most", "factor")}
    step |= {"op": kernels.NUMBER, "knots": address(knots), "levels": address(levels), "n_knots": len(knots)}
    step |= {"of_shift": scale.shift, "filler": scale.filler, "log": scale.kind == "log1p"}
    step |= {"range_rule": _RULES[scale.out_of_range], "indicator": scale.indicator}
    return Task(step, (held, knots, levels), scale.nulls == "error", scale.out_of_range == "error")


def _bucket(encoder: Buckets, array: pa.Array, name: str, out: NDArray[np.int32]) -> Task:
    step, held = _number_column(array, name)
    bounds = np.ascontiguousarray(encoder.bounds, np.float64)
    step |= {"op": kernels.BUCKET, "first_row": FIRST_BUCKET, "knots": address(bounds), "n_knots": len(bounds)}
    return Task(step | place(out), (held, bounds), encoder.nulls == "error")


class _Clock:
    """The schema's clock in a table."""

    def __init__(self, pipeline: FeaturePipeline, table: pa.Table) -> None:
        name, self._unit = str(pipeline.schema.timestamp), pipeline.schema.timestamp_unit
        self.means: Clock = clock_of(pipeline.schema)
        self.now = self.ticks(values.combined(table.column(name)), name)

    def ticks(self, array: pa.Array, name: str) -> pa.Array:
        """A column of points in time as int64."""
        return values.ticks_column(array, name=name, unit=self._unit)

    def now_step(self) -> Step:
        """The clock of each row, beside the values of a step."""
        step = _fixed_column(self.now)
        return {
            "now": step["values"],
            "now_valid": step.get("valid", 0),
            "now_bit": step.get("first_bit", 0),
            "ticks_per_second": self.means.ticks_per_second,
        }

    def within(self, part: Any) -> Step:
        """The place in a period; `part` is one of array_times.PARTS or CYCLES."""
        step: Step = {"ticks_per_second": self.means.ticks_per_second, "period": part.period, "unit": part.unit}
        return _fixed_column(self.now) | step | {"ahead": part.shift + self.means.offset}


def _clock_part(feature: Feature, encoder: Categories, clock: _Clock, out: NDArray[np.int32]) -> list[Task] | None:
    if encoder.type == "str":
        return None
    parts = np.empty(len(out), np.int64)
    step = clock.within(PARTS[feature.derive]) | {"op": kernels.CLOCK_PART} | place(parts)  # type: ignore[index]
    found = {"values": address(parts), "width": 8} | _validity(clock.now)
    outs = [out[:, seed] for seed in range(encoder.hashes)]
    return [Task(step, clock.now), *_ids(encoder, found, (parts, clock.now), outs)]


def _cycle(encoder: Cyclic, clock: _Clock, out: NDArray[np.float32]) -> Task:
    step = clock.within(CYCLES[encoder.part]) | {"op": kernels.CYCLE} | place(out)
    return Task(step, clock.now, encoder.nulls == "error")


def _recency(encoder: Recency, clock: _Clock, then: pa.Array, out: NDArray[np.float32]) -> list[Task]:
    seconds = np.empty(len(out))
    step = _fixed_column(then) | clock.now_step() | {"op": kernels.SINCE} | place(seconds)
    return [Task(step, (then, clock.now)), _scaled(encoder.scale, _floats(seconds), seconds, out)]


def _gaps(encoder: Gaps, clock: _Clock, array: pa.Array, name: str, out: NDArray[np.float32]) -> list[Task] | None:
    import pyarrow as pa

    if not pa.types.is_large_list(array.type):
        if array.null_count < len(array):
            return None
        out[:] = 0
        return []
    elements, offsets = values.list_elements(array)
    then = clock.ticks(elements, name)
    # One column a place; of a place without an event nothing is known, which is 0 here and no null.
    logarithms = np.empty((encoder.width, len(out)))
    step = _fixed_column(then) | clock.now_step() | {"op": kernels.GAPS, "offsets": address(offsets)}
    step |= place(logarithms) | {"length": encoder.width}
    tasks = [Task(step, (then, clock.now, offsets))]
    for each, column in zip(logarithms, out.T, strict=True):
        scaled = _scaled(encoder.scale, _floats(each), logarithms, column)
        tasks.append(scaled._replace(step=scaled.step | {"filler": 0.0}, refuses_nulls=False))
    return tasks


# ---- columns as memory -----------------------------------------------------------------------------------------------


def _number_column(array: pa.Array, name: str) -> tuple[Step, Any]:
    import pyarrow as pa

    kind = array.type
    if kind in (pa.float64(), pa.float32(), pa.int64(), pa.int32()):
        return _fixed_column(array) | {"floating": pa.types.is_floating(kind)}, array
    numbers = np.ascontiguousarray(values.number_column(array, name=name))
    return _floats(numbers), numbers


def _floats(numbers: NDArray[np.float64]) -> Step:
    return {"values": address(numbers), "width": 8, "floating": True}


def _fixed_column(array: pa.Array) -> Step:
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    return _validity(array) | {"values": (data.address if data else 0) + array.offset * width, "width": width}


def _text_column(array: pa.Array) -> Step:
    import pyarrow as pa

    width = 8 if pa.types.is_large_string(array.type) else 4
    _, offsets, data = array.buffers()
    step = _validity(array) | {"offsets": offsets.address + array.offset * width, "width": width}
    return step | ({"values": data.address, "limit": data.address + data.size} if data else {})


def _validity(array: pa.Array) -> Step:
    valid = array.buffers()[0]
    return {"valid": valid.address, "first_bit": array.offset} if valid and array.null_count else {}


def _longest(offsets: NDArray[Any]) -> int:
    return int(np.diff(offsets).max(initial=0))


def place(out: NDArray[Any]) -> Step:
    """Where rows are written."""
    return {"out": address(out), "stride": out.strides[0]}


def address(array: NDArray[Any]) -> int:
    """Where an array's memory begins."""
    return int(array.ctypes.data)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
