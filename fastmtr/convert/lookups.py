"""Ids and masks: embeddings, comparisons, and choosing between two values, as nodes of a graph."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from fastmtr.convert.tensors import Array, Column, Mask, Tensors, Value
from fastmtr.convert.values import Raw, Rows, Shape
from fastmtr.errors import ConversionError

__all__ = [
    "MINUS_INFINITY",
    "Comparison",
    "averaged",
    "both",
    "compare",
    "either",
    "embedding",
    "embedding_bag",
    "negate",
    "summed",
    "where",
]

Comparison = Literal["eq", "ne", "lt", "le", "gt", "ge"]

MINUS_INFINITY = -1e30
"""What stands for an infinity in a masked value: a finite number whose softmax is 0 beside any that is not masked."""


def embedding(t: Tensors, ids: Raw, table: Array, name: str) -> Rows:
    """Rows of a table, a new last axis; `name` is the table's in the model."""
    shape, axis = ids.shape.insert(ids.shape.rank, table.shape[1])
    pieces = []
    columns = ids.columns.reshape(-1)
    offsets = np.zeros_like(columns) if ids.offsets is None else ids.offsets.reshape(-1)
    starts = sorted({*offsets.tolist(), table.shape[0]})
    t.ids.update(columns.tolist())
    for offset, span in _by_offset(columns, offsets):
        part = table
        if len(starts) > 2:  # one table for several inputs, each with rows of its own
            part = table[offset : starts[starts.index(offset) + 1]]
        weight = t.weight(f"{name}.{offset}" if len(starts) > 2 else name, part)
        for column, size in t.spans(span):
            if len(starts) > 2 and size < column.width:
                raise ConversionError(
                    f"the columns of {column.ids!r} are ids of several features, each with rows of its own in one "
                    "table; name them: columns={'user': 0, 'item': 1, ...}"
                )
            pieces.append(t.cut(_whole(t, column, weight), column.at * table.shape[1], size * table.shape[1]))
    made = Rows.packed(t.concat(pieces, "embeddings"), shape)
    assert axis == len(shape.inner) - 1
    return made


def embedding_bag(
    t: Tensors, ids: Raw, table: Array, name: str, *, mode: Literal["sum", "mean", "max"], padding: int | None
) -> Rows:
    """The sum, mean or greatest of the rows of a table for all ids, without those that are the padding."""
    flat = ids.columns.reshape(-1)
    ((column, size), *more) = t.spans(flat)
    if more or size != column.width or ids.offsets is not None:
        if padding is not None:
            raise ConversionError("an embedding bag with padding over ids of several inputs has no counterpart")
        return t.reduce(embedding(t, Raw(flat, Shape((flat.size,))), table, name), mode, [0], keep=False)
    t.ids.update(flat.tolist())
    made = t.builder.embedding_bag(
        column.ids, t.weight(name, table), mode=mode, padding=padding, name=t.name(f"{column.ids}.embedding", scope="")
    )
    return Rows.packed(made, Shape((table.shape[1],)))


def _whole(t: Tensors, column: Column, weight: str) -> str:
    """The embedding of all columns of an input, made once."""
    key = (column.ids, weight)
    if key not in t.embedded:
        t.embedded[key] = t.builder.embedding(column.ids, weight, name=t.name(f"{column.ids}.embedding", scope=""))
    return t.embedded[key]


def _by_offset(columns: Array, offsets: Array) -> list[tuple[int, Array]]:
    edges = [0, *(np.flatnonzero(np.diff(offsets)) + 1).tolist(), len(columns)]
    return [(int(offsets[a]), columns[a:b]) for a, b in pairwise(edges)]


def summed(t: Tensors, mask: Rows, rows: Rows) -> str | None:
    """An embedding bag, if that is what the sum of a mask times an embedding is: the mask tells the padding."""
    known = t.masks.get(mask.name)
    table = next(
        (weight for (ids, weight), name in t.embedded.items() if name == rows.name and known and ids == known.ids), None
    )
    if known is None or table is None:
        return None
    made = t.builder.embedding_bag(known.ids, table, mode="sum", padding=known.padding, name=t.name("bag"))
    t.bags[made] = (known, table)
    return made


def averaged(t: Tensors, total: Rows, count: Rows) -> Rows | None:
    """An embedding bag, if that is what a sum of embeddings by their number (and a tiny constant) is."""
    name, least = t.bounded.get(count.name, (count.name, 1.0))  # at least so many, so that nothing is divided by 0
    before = t.scaled.get(name)
    known = t.counts.get(before.name if before is not None else name)
    if known is None or total.name not in t.bags or t.bags[total.name][0] != known or not 0 < least <= 1:
        return None
    if before is not None and not ((before.scale == 1).all() and (abs(before.shift) < 1e-6).all()):
        return None
    made = t.builder.embedding_bag(
        known.ids, t.bags[total.name][1], mode="mean", padding=known.padding, name=t.name("bag")
    )
    return replace(total, name=made)


def compare(
    t: Tensors, x: Value, kind: Comparison, y: Value | Array, *, whole: bool, boolean: bool = False
) -> Rows | bool:
    """1 where the comparison holds, else 0; True or False where it is the same for every row.

    Parameters
    ----------
    whole : bool
        Both sides are whole numbers. Other comparisons have no counterpart: they are not continuous.
    boolean : bool
        x is a mask.
    """
    if isinstance(x, Rows) and x.name in t.row_sums and kind in ("eq", "ne") and not np.any(np.asarray(y)):
        return _nothing_in_row(t, x, kind)
    if (
        (boolean or (isinstance(x, Rows) and x.name in t.flags))
        and isinstance(x, Rows)
        and not isinstance(y, Raw | Rows)
        and kind in ("eq", "ne")
    ):
        if (np.asarray(y) == (kind == "eq")).all():
            return x
        if (np.asarray(y) == (kind == "ne")).all():
            return negate(t, x)
    if isinstance(x, Raw) and not isinstance(y, Raw | Rows) and np.size(y) == 1:
        found = _ids(t, x, kind, float(np.reshape(y, ())))
        if found is not None:
            return found
    if not whole:
        raise ConversionError(
            "it compares numbers that are not whole: a score that jumps has no counterpart (comparisons of ids, and of "
            "lengths with positions, have)"
        )
    if kind in ("gt", "ge", "ne"):
        flipped: dict[str, Comparison] = {"gt": "le", "ge": "lt", "ne": "eq"}
        opposite = compare(t, x, flipped[kind], y, whole=True)
        return not opposite if isinstance(opposite, bool) else negate(t, opposite)
    difference = _difference(t, x, y)
    if kind == "eq":  # 1 - min(|d|, 1)
        return negate(t, _clamp(t, t.unary(difference, "abs")))
    return _flagged(t, _clamp(t, difference if kind == "lt" else t.shift(difference, 1)))


def _nothing_in_row(t: Tensors, x: Rows, kind: Comparison) -> Rows:
    """Where the embeddings add up to 0 (or do not): some models know padding by that. A lookup, too."""
    ids, weight = t.row_sums[x.name]
    total = t.builder.array(weight).sum(axis=1, keepdims=True)
    name = t.name("padding" if kind == "eq" else "present")
    table = t.weight(f"{name}.table", total == 0 if kind == "eq" else total != 0)
    return _flagged(t, replace(x, name=t.builder.embedding(ids, table, name=name)))


def _difference(t: Tensors, x: Value, y: Value | Array) -> Rows:
    """``y - x``"""
    if isinstance(y, Raw | Rows):
        return t.binary(y, x, "sub")
    return t.shift(t.scale(t.rows(x), -1), np.asarray(y))


def _clamp(t: Tensors, x: Rows) -> Rows:
    """Between 0 and 1, exactly for whole numbers: what is masked may be multiplied by a very large number."""
    return t.binary(t.unary(x, "relu"), t.unary(t.shift(x, -1), "relu"), "sub")


def _ids(t: Tensors, x: Raw, kind: Comparison, value: float) -> Rows | bool | None:
    """Of ids, which are whole and not negative, with one number."""
    flat = x.columns.reshape(-1)
    if not t.is_ids(flat) or x.offsets is not None:
        return None
    if value < 0 or (value == 0 and kind in ("lt", "ge")):
        return kind in ("ne", "gt", "ge")
    if (kind, value) in (("gt", 0), ("ge", 1)):
        kind, value = "ne", 0
    elif (kind, value) in (("lt", 1), ("le", 0)):
        kind, value = "eq", 0
    if kind not in ("eq", "ne") or value != int(value):
        return None
    pieces = []
    for column, size in t.spans(flat):
        key = (column.ids, int(value))
        if key not in t.present:
            t.present[key] = t.builder.present(
                column.ids, padding=int(value), name=t.name(f"{column.ids}.present", scope="")
            )
            t.masks[t.present[key]] = Mask(*key)
        pieces.append(t.cut(t.present[key], column.at, size))
    made = Rows.packed(t.concat(pieces, "present"), x.shape)
    return _flagged(t, made) if kind == "ne" else negate(t, made)


def negate(t: Tensors, mask: Rows) -> Rows:
    """1 where the mask is 0."""
    return _flagged(t, t.shift(t.scale(mask, -1), 1))


def both(t: Tensors, a: Rows, b: Rows) -> Rows:
    """1 where both masks are."""
    return _flagged(t, t.binary(a, b, "mul"))


def either(t: Tensors, a: Rows, b: Rows) -> Rows:
    """1 where one of the masks is."""
    return _flagged(t, t.binary(a, b, "max"))


def _flagged(t: Tensors, mask: Rows) -> Rows:
    t.flags.add(mask.name)
    return mask


def where(t: Tensors, mask: Rows, x: Value | Array, y: Value | Array) -> Rows:
    """x where the mask is 1, y where it is 0; both may be constants over the inner axes."""
    if not isinstance(y, Raw | Rows):
        y = _finite(y)
        if np.ptp(y) == 0 and isinstance(x, Raw | Rows):
            made = _masked(t, mask, t.rows(x), float(np.ravel(y)[0]))
            if made is not None:
                return made
    return t.binary(_times(t, mask, x), _times(t, negate(t, mask), y), "add")


def _finite(values: Array) -> Array:
    return np.maximum(np.asarray(values, np.float64), MINUS_INFINITY)


def _times(t: Tensors, mask: Rows, x: Value | Array) -> Rows:
    if isinstance(x, Raw | Rows):
        return t.binary(mask, x, "mul")
    return t.scale(mask, _finite(x))


def _masked(t: Tensors, mask: Rows, x: Rows, value: float) -> Rows | None:
    """The graph's own mask, where the mask tells which ids are padding and x lies accordingly."""
    known = t.masks.get(mask.name)
    if known is None or len(mask.sizes) != 1:
        return None
    a, x = t.together(mask, x)
    (axis,) = a.axes
    if x.order[axis] is None or any(
        n > 1 and p is None and x.order[i] is None for i, (n, p) in enumerate(zip(a.shape.inner, a.order, strict=True))
    ):
        return None
    x = t.with_axes(x, [axis, *[i for i in x.axes if i != axis]])
    assert math.prod(x.sizes) % x.shape.inner[axis] == 0
    made = t.builder.mask(x.name, known.ids, padding=known.padding, value=value, name=t.name("mask"))
    return replace(x, name=made)
