"""Whole tables by the batch kernels (``csrc/core/feature_batch.h``), on a GPU by CuPy.

What is here works on arrays of a namespace `xp`, NumPy or CuPy: it uploads what was fitted, once, and the columns of a
table, and has the kernels write the packed rows where those then stay. With NumPy the host runs the kernels, in tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmtr import _native
from fastmtr.features.attributes import Attributes
from fastmtr.features.categories import Categories, Texts
from fastmtr.features.device_columns import COLUMN, Column, Columns, address
from fastmtr.features.kinds import is_operator, operation
from fastmtr.features.made_categories import Buckets, Cross
from fastmtr.features.operators import clock_of, readers
from fastmtr.features.pipeline import FeaturePipeline, unset_rows
from fastmtr.features.scales import Scale
from fastmtr.features.target_encoding import TargetTable
from fastmtr.features.text import Tfidf
from fastmtr.features.times import Cyclic, Gaps, Recency
from fastmtr.features.unicode_tables import code_points
from fastmtr.graph import Domain, Input, Packed
from fastmtr.schema import Feature

__all__ = ["STEP", "transform"]


def _struct(*members: tuple[str, Any]) -> np.dtype[Any]:
    return np.dtype(list(members), align=True)


def _words(*names: str) -> list[tuple[str, Any]]:
    return [(name, np.uint64) for name in names]


# The structs of feature_batch.h and feature_kernels.h; pointers are whole numbers.
_CATEGORIES = _struct(
    *_words("type", "refuse_nulls", "refuse_unseen", "hash_rows", "oov_rows", "mask", "ints", "texts", "bytes")
)
_SCALE = _struct(
    *((name, np.float64) for name in ("low", "high", "least", "most", "shift", "factor")),
    ("filler", np.float32),
    ("log1p", np.bool_),
    ("out_of_range", np.uint8),
    *_words("n_knots", "knots", "levels"),
)
STEP = _struct(
    ("op", np.uint8),
    ("part", np.uint8),
    *((name, np.bool_) for name in ("refuse_nulls", "keep_last", "as_set", "indicator")),
    *_words("column", "n_columns", "clock", "width", "out", "stride"),
    ("ticks_per_second", np.int64),
    ("clock_offset", np.int64),
    *_words("ngrams", "separator", "separator_size", "scratch", "doubles", "n_doubles", "ids", "table"),
    *_words("lower", "word"),
    ("categories", _CATEGORIES),
    ("scale", _SCALE),
)
_OPS = (
    "category", "cross", "bucket", "many", "attribute", "words", "tfidf", "scale", "recency", "cyclic", "gaps", "table",
    "vector",
)  # fmt: skip
_PARTS = ("none", "hour", "weekday", "hour_of_week", "year")
_RANGES = ("keep", "clip", "null", "error")
_CATEGORY_TYPES = (None, "int", "str")
# Bytes of struct IntEntry and of struct TextEntry.
_INT_ENTRY, _TEXT_ENTRY = 16, 32

_Members = dict[str, Any]


def transform(
    pipeline: FeaturePipeline, domain: Domain, table: Any, *, missing: Literal["error", "null"] = "error", xp: Any
) -> Packed:
    """Pack the rows of a table, as :meth:`FeaturePipeline.transform` does, in the memory of a namespace.

    Parameters
    ----------
    pipeline : FeaturePipeline
    domain : {"request", "item", "candidate"}
    table : table
        See :class:`fastmtr.features.device_columns.Columns`.
    missing : {"error", "null"}
    xp : module
        NumPy or CuPy.

    Returns
    -------
    Packed
        Of arrays of `xp`.
    """
    columns = Columns(table, xp=xp)
    inputs = [each for each in pipeline.inputs if each.domain == domain]
    packed = unset_rows(inputs, columns.n_rows, xp=xp)
    device = None if xp is np else xp.cuda.Device().id
    batch = _Batch(columns, pipeline.uploads.setdefault(device, _Uploads(xp)), xp)
    by_step: list[Input] = []
    others: list[Input] = []
    for place in inputs:
        added = batch.add(pipeline, pipeline.schema.feature(place.name), _block(packed, place))
        (by_step if added else others).append(place)
    others += [place for place, refused in zip(by_step, batch.run().tolist(), strict=True) if refused]
    # What the kernels do not take, and what they refused: the host says why, or does it.
    for place in others:
        feature = pipeline.schema.feature(place.name)
        block = pipeline.null(feature)
        if missing == "error" or pipeline.has_column(feature, columns.names):
            block = pipeline.transform_blocks((feature,), columns.on_host)[feature.name]
        _block(packed, place)[:] = xp.asarray(block)
    return packed


def _block(packed: Packed, place: Input) -> Any:
    return getattr(packed, place.kind)[:, place.offset : place.offset + place.width]


class _Batch:
    """The steps of a table, and the columns that they read."""

    def __init__(self, columns: Columns, uploads: _Uploads, xp: Any) -> None:
        self._columns, self._uploads, self._xp = columns, uploads, xp
        self._steps: list[_Members] = []
        self._records: list[dict[str, int]] = []
        self._held: list[Any] = []

    def add(self, pipeline: FeaturePipeline, feature: Feature, out: Any) -> bool:
        """Add what makes a feature; False if the table has no columns for it, or none that the kernels read."""
        found = self._read(pipeline, feature)
        if found is None:
            return False
        places, first = found
        step = self._uploads.step(pipeline, feature) | places
        step |= {"out": address(out), "stride": out.strides[0], "width": out.shape[1]}
        if room := _room(feature, first.size, self._columns.n_rows):
            scratch = self._xp.empty(room, np.uint8)
            self._held.append(scratch)
            step["scratch"] = address(scratch)
        self._steps.append(step)
        return True

    def run(self) -> NDArray[np.uint32]:
        """Write all rows; of each step, whether one was refused."""
        rows = self._columns.n_rows
        steps, columns = _filled(STEP, self._steps), _filled(COLUMN, self._records)
        if not len(steps) or not rows:
            return np.zeros(len(steps), np.uint32)
        if self._xp is np:
            return _native.feature_kernels.encode_rows(steps.view(np.uint8), columns.view(np.uint8), rows)
        from fastmtr.features.cupy_kernels import encode_rows

        return encode_rows(steps, columns, rows)

    def _read(self, pipeline: FeaturePipeline, feature: Feature) -> tuple[_Members, Column] | None:
        """Where the columns of a feature are among the records; and the first of them."""
        schema, names = pipeline.schema, self._columns.names
        reads: list[tuple[str, str]]
        if is_operator(feature):
            reads = [(reader.column, reader.kind) for reader in readers(feature, schema)]
        elif feature.column in names:
            plain = {"numeric": "numbers", "categorical": "categories", "text": "words"}
            reads = [(feature.column, plain.get(feature.kind, "lists"))]
        elif feature.derive is not None:
            reads = [(str(schema.timestamp), "ticks")]
        else:
            return None
        encoder = pipeline.encoder(feature.name)
        types = encoder.types if isinstance(encoder, Cross) else [None] * len(reads)
        found: list[tuple[Column, str]] = []
        for name, kind in reads:
            unit = schema.timestamp_unit if kind in ("ticks", "tick_lists") else None
            column = self._columns.get(name, unit=unit) if name in names else None
            if column is None or not _is_read(column, kind):
                return None
            found.append((column, kind))
        at = len(self._records)
        members: _Members = {"column": at, "n_columns": len(found)}
        for (column, kind), of in zip(found, types, strict=True):
            if kind == "ticks":
                members["clock"] = len(self._records)
            self._records += column.records(expected=_CATEGORY_TYPES.index(of))
            self._held.append(column)
        if feature.kind == "categorical" and reads[0][1] == "ticks":
            members["part"] = _PARTS.index(str(feature.derive))
        return members, found[0][0]


def _room(feature: Feature, size: int, rows: int) -> int:
    """Bytes of scratch memory, for so many rows of so many bytes of text, or elements, in all.

    For a row whose text or list begins at b and has n of them, words have 2 n bytes from 2 b on, and a set that keeps
    its last ones 16 (n + 1) bytes from 16 (b + row) on; a cross has 8 for each of its columns.
    """
    if feature.kind in ("text", "tfidf"):
        return 2 * size
    if feature.kind == "multi" and feature.keep == "last":
        return 16 * (size + rows)
    return 8 * len(feature.cross) * rows


def _is_read(column: Column, kind: str) -> bool:
    """Whether the kernels tell values of this type from those that have to be refused."""
    is_list = column.elements is not None
    if kind == "numbers":
        return not is_list and column.type != "text"
    if kind == "vectors" and column.elements is not None:
        return _is_read(column.elements, "numbers")
    if kind in ("lists", "tick_lists") and column.elements is not None:
        return column.elements.elements is None
    return not is_list


def _filled(struct: np.dtype[Any], members: list[_Members]) -> NDArray[Any]:
    array = np.zeros(len(members), struct)
    for i, each in enumerate(members):
        for name, value in each.items():
            if isinstance(value, dict):
                for inner, found in value.items():
                    array[name][inner][i] = found
            else:
                array[name][i] = value
    return array


# ---- what was fitted -------------------------------------------------------------------------------------------------


class _Uploads:
    """What was fitted, in the memory of a namespace: copied there when it is first needed, and shared by features.

    Attributes
    ----------
    arrays : list of arrays of the namespace
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.arrays: list[Any] = []
        self._steps: dict[str, _Members] = {}
        # By the id of what they were made of, which is kept for that.
        self._vocabularies: dict[int, tuple[Categories, _Members]] = {}

    def step(self, pipeline: FeaturePipeline, feature: Feature) -> _Members:
        """The members of a feature's step that do not change from table to table."""
        if feature.name not in self._steps:
            self._steps[feature.name] = dict(self._members(pipeline, feature))
        return self._steps[feature.name]

    def _members(self, pipeline: FeaturePipeline, feature: Feature) -> Iterator[tuple[str, Any]]:
        encoder, clock = pipeline.encoder(feature.name), clock_of(pipeline.schema)
        yield "op", _OPS.index(operation(feature))
        yield from (("ticks_per_second", clock.ticks_per_second), ("clock_offset", clock.offset))
        yield from (("keep_last", feature.keep == "last"), ("as_set", feature.kind == "multi"))
        yield "refuse_nulls", feature.nulls == "error"
        if isinstance(encoder, Categories):
            yield "categories", self._categories(encoder)
        elif isinstance(encoder, Attributes):
            yield from (("categories", self._categories(encoder.keys)), ("ids", self._copy(encoder.ids, np.int32)))
        elif isinstance(encoder, Cross):
            yield "categories", self._categories(encoder.categories)
        elif isinstance(encoder, TargetTable):
            yield "categories", self._categories(encoder.categories)
            yield "table", self._copy(encoder.table, np.float32)
        elif isinstance(encoder, Buckets):
            yield from (("doubles", self._copy(encoder.bounds, np.float64)), ("n_doubles", len(encoder.bounds)))
        elif isinstance(encoder, Tfidf):
            yield "doubles", self._copy(encoder.idf, np.float64)
        elif isinstance(encoder, Cyclic):
            yield "part", _PARTS.index(encoder.part)
        elif isinstance(encoder, Recency | Gaps | Scale):
            scale = encoder if isinstance(encoder, Scale) else encoder.scale
            yield from (("scale", self._scale(scale)), ("indicator", scale.indicator))
        if feature.kind in ("text", "tfidf"):
            yield "ngrams", feature.ngrams
            yield from self._code_points.items()
        if feature.kind == "multi":
            separator = np.frombuffer(feature.separator.encode(), np.uint8)
            yield from (("separator", self._copy(separator, np.uint8)), ("separator_size", len(separator)))

    @cached_property
    def _code_points(self) -> _Members:
        table = code_points()
        return {"lower": self._copy(table.lower, np.uint32), "word": self._copy(table.word, np.uint8)}

    def _categories(self, known: Categories) -> _Members:
        if id(known) not in self._vocabularies:
            self._vocabularies[id(known)] = known, self._vocabulary(known)
        return self._vocabularies[id(known)][1]

    def _vocabulary(self, known: Categories) -> _Members:
        members: _Members = {
            "type": _CATEGORY_TYPES.index(known.type),
            "refuse_nulls": known.nulls == "error",
            "refuse_unseen": known.unseen == "error",
            "hash_rows": known.hash_rows or 0,
            "oov_rows": known.oov_rows,
        }
        if known.hash_rows is not None or known.type is None:
            return members
        if isinstance(known.known, Texts):
            data = np.ascontiguousarray(known.known.data, np.uint8)
            index = _native.feature_kernels.index_texts(data, np.ascontiguousarray(known.known.offsets, np.int64))
            members |= {"texts": self._copy(index, np.uint8), "bytes": self._copy(data, np.uint8)}
            return members | {"mask": len(index) // _TEXT_ENTRY - 1}
        index = _native.feature_kernels.index_ints(np.ascontiguousarray(known.known, np.int64))
        return members | {"ints": self._copy(index, np.uint8), "mask": len(index) // _INT_ENTRY - 1}

    def _scale(self, scale: Scale) -> _Members:
        members: _Members = {key: getattr(scale, key) for key in ("low", "high", "least", "most", "shift", "factor")}
        members |= {"filler": scale.filler, "log1p": scale.kind == "log1p"}
        members |= {"out_of_range": _RANGES.index(scale.out_of_range), "n_knots": len(scale.knots)}
        return members | {key: self._copy(getattr(scale, key), np.float64) for key in ("knots", "levels")}

    def _copy(self, array: Any, dtype: Any) -> int:
        """Where the numbers are, once they are there."""
        self.arrays.append(self._xp.asarray(np.ascontiguousarray(array, dtype)))
        return address(self.arrays[-1])
