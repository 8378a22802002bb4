"""How the dimensions of tensors lie in the columns of a graph's values: views move columns only where they have to."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.convert.values import Raw, Rows, Shape, batch_axes
from fastmtr.graph import GraphBuilder, Input

__all__ = ["Array", "Column", "Layout", "Stepped", "Value"]

Array: TypeAlias = NDArray[Any]
Value: TypeAlias = "Rows | Raw"

_MOST_PIECES = 64
"""Above so many pieces, columns are moved by a transpose instead of being put together one by one."""


class Column(NamedTuple):
    """A column of the model's inputs: the input, its place there, and the input's names in the graph."""

    ids: str
    dense: str
    at: int
    width: int


class Stepped(NamedTuple):
    """A value is a product of each of so many runs of columns with a matrix [n, k], and a bias."""

    x: str
    w: Array
    b: Array | None
    steps: int


class Layout(ABC):
    """Builds a graph of tensors whose dimensions lie in columns: names, weights, and views.

    Parameters
    ----------
    inputs : sequence of Input
        Of the graph. A model's input that may be read both as ids and as numbers has one of each kind.
    columns : sequence of Column
        What the numbers in :attr:`Raw.columns` mean.
    ids : iterable of int
        Columns that are known to be ids.

    Attributes
    ----------
    builder : GraphBuilder
    scope : str
        Where in the model the operation stands; the names of values start with it.
    ids : set of int
        Columns that some operator has read as ids, in this pass or an earlier one.
    """

    def __init__(self, inputs: Sequence[Input], columns: Sequence[Column], *, ids: Iterable[int] = ()) -> None:
        self.builder = GraphBuilder(inputs)
        self.columns = tuple(columns)
        self.scope = ""
        self.ids = set(ids)
        self.joined: dict[str, tuple[str, ...]] = {}
        self.stepped: dict[str, Stepped] = {}
        self._taken = {i.name for i in inputs}
        self._dense: dict[str, Rows] = {}
        self._weights: dict[tuple[tuple[int, ...], bytes], str] = {}

    # ---- names and weights -------------------------------------------------------------------------------------------

    def name(self, what: str, *, scope: str | None = None) -> str:
        """A name for a new value: where it is in the model, and what it is."""
        where = self.scope if scope is None else scope
        wanted = ".".join(part for part in (where, what) if part) or "value"
        found, n = wanted, 2
        while found in self._taken:
            found, n = f"{wanted}_{n}", n + 1
        self._taken.add(found)
        return found

    def weight(self, name: str, array: ArrayLike) -> str:
        """Register a weight; equal ones are kept once."""
        made = np.asarray(array, dtype=np.float32)
        key = (made.shape, hashlib.sha256(np.ascontiguousarray(made).data).digest())
        if key not in self._weights:
            self._weights[key] = self.builder.weight(name, made)
        return self._weights[key]

    def is_ids(self, columns: NDArray[np.int64]) -> bool:
        """Some operator of the model reads all these columns as ids."""
        return set(columns.tolist()) <= self.ids

    # ---- columns in order --------------------------------------------------------------------------------------------

    def rows(self, x: Value) -> Rows:
        """A value as numbers in one piece: an input that nothing has read so far becomes a dense one."""
        return self._one(self.numbers(x))

    def numbers(self, x: Value) -> Rows:
        """A value as numbers, maybe in parts."""
        if isinstance(x, Rows):
            return x
        if x.offsets is not None:
            return self.shift(self.rows(Raw(x.columns, x.shape)), x.offsets)
        pieces = []
        for column, size in self.spans(x.columns):
            pieces.append(self.cut(column.dense, column.at, size))
        return Rows.packed(self.concat(pieces, "inputs"), x.shape)

    def spans(self, columns: NDArray[np.int64]) -> list[tuple[Column, int]]:
        """Columns in row-major order as pieces of inputs: the first column of each, and how many."""
        found: list[tuple[Column, int]] = []
        for run in _ascending(columns.reshape(-1).tolist()):
            here = [self.columns[c] for c in run]
            starts = [0, *[i for i in range(1, len(here)) if here[i].at == 0], len(here)]
            found += [(here[a], b - a) for a, b in pairwise(starts)]
        return found

    def in_order(self, x: Rows, axes: Sequence[int]) -> str:
        """The graph's value whose columns are these inner axes in that order; axes that repeat are repeated."""
        x = self._one(x)
        wanted = [a for a in axes if x.shape.inner[a] > 1]
        held = [a for a in wanted if x.order[a] is not None]
        if len(held) != len(x.sizes):
            raise AssertionError("every axis that has columns must be named")
        name = self._permute(x, held)
        outer = 1
        for axis in wanted:
            size = x.shape.inner[axis]
            if x.order[axis] is None:
                name = self.builder.repeat(name, size, outer=outer, name=self.name("repeat"))
            outer *= size
        return name

    def packed(self, x: Rows) -> Rows:
        """The same tensor with its inner axes in order, all of them with columns of their own."""
        x = self._one(x)
        return Rows.packed(self.in_order(x, range(len(x.shape.inner))), x.shape)

    def with_axes(self, x: Rows, axes: Sequence[int]) -> Rows:
        """The same tensor with these inner axes in that order, and nothing else, in its columns."""
        return Rows.laid_out(self.in_order(x, axes), x.shape, axes)

    def _permute(self, x: Rows, axes: Sequence[int]) -> str:
        name, have = x.name, list(x.axes)
        for i, axis in enumerate(axes):
            at = have.index(axis)
            if at == i:
                continue
            inner = x.shape.inner
            before, between, after = (
                math.prod(inner[a] for a in part) for part in (have[:i], have[i:at], have[at + 1 :])
            )
            name = self.builder.transpose(
                name, a=between, b=inner[axis], outer=before, inner=after, name=self.name("transpose")
            )
            have.insert(i, have.pop(at))
        return name

    def _one(self, x: Rows) -> Rows:
        """A value that is not in parts."""
        if not x.parts:
            return x
        key = repr(x)
        if key not in self._dense:
            outer = [
                a for a in range(len(x.shape.inner)) if a != x.axis and any(p.order[a] is not None for p in x.parts)
            ]
            count = math.prod(x.shape.inner[a] for a in outer)
            order = [*outer, x.axis]
            names = [self.in_order(p, order) for p in x.parts]
            widths = [p.shape.inner[x.axis] for p in x.parts]
            if count > _MOST_PIECES:
                turned = [
                    self.builder.transpose(n, a=count, b=w, name=self.name("transpose")) if w > 1 else n
                    for n, w in zip(names, widths, strict=True)
                ]
                made = Rows.laid_out(self.concat(turned, "concat"), x.shape, [x.axis, *outer])
                name = self._permute(made, [a for a in order if x.shape.inner[a] > 1])
            else:
                name = self.concat(
                    [self.cut(n, i * w, w) for i in range(count) for n, w in zip(names, widths, strict=True)], "concat"
                )
            self._dense[key] = Rows.laid_out(name, x.shape, order)
        return self._dense[key]

    def cut(self, name: str, offset: int, width: int) -> str:
        """Columns ``offset .. offset + width`` of a value."""
        if width == self.builder.width(name):
            return name
        start = 0
        for part in self.joined.get(name, ()):
            stop = start + self.builder.width(part)
            if start <= offset and offset + width <= stop:
                return self.cut(part, offset - start, width)
            start = stop
        return self.builder.slice(name, offset, width, name=self.name("slice"))

    def concat(self, names: Sequence[str], what: str) -> str:
        """Values side by side."""
        if len(names) == 1:
            return names[0]
        name = self.builder.concat(list(names), name=self.name(what))
        self.joined[name] = tuple(names)
        return name

    # ---- views -------------------------------------------------------------------------------------------------------

    def reshape(self, x: Value, shape: Shape) -> Value:
        """The same values, in row-major order, as another shape."""
        if isinstance(x, Raw):
            offsets = None if x.offsets is None else x.offsets.reshape(shape.inner)
            return Raw(x.columns.reshape(shape.inner), shape, offsets)
        found = x.reshaped(shape)
        if found is None:
            found = self.packed(x).reshaped(shape)
            assert found is not None
        return found

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        """The tensor with its dimensions in that order."""
        shape, axes = x.shape.permuted(dims)
        if isinstance(x, Raw):
            offsets = None if x.offsets is None else x.offsets.transpose(axes)
            return Raw(x.columns.transpose(axes), shape, offsets)
        x = self._one(x)
        return replace(x, shape=shape, order=tuple(x.order[a] for a in axes))

    def unsqueeze(self, x: Value, dim: int) -> Value:
        """With a dimension of size 1 at that place."""
        shape, axis = x.shape.insert(dim, 1)
        if isinstance(x, Raw):
            return self.reshape(x, shape)
        x = self._one(x)
        return replace(x, shape=shape, order=(*x.order[:axis], None, *x.order[axis:]))

    def squeeze(self, x: Value, axis: int) -> Value:
        """Without an inner axis of size 1; one of another size stays."""
        if x.shape.inner[axis] != 1:
            return x
        shape = x.shape.without(axis)
        if isinstance(x, Raw):
            return self.reshape(x, shape)
        x = self._one(x)
        return replace(x, shape=shape, order=(*x.order[:axis], *x.order[axis + 1 :]))

    def expand(self, x: Value, shape: Shape) -> Value:
        """Repeated along axes of size 1, and along new ones in front."""
        lifted, target = batch_axes(x.shape, shape)
        if isinstance(x, Raw):
            spread = [
                None if v is None else np.broadcast_to(v.reshape(lifted.inner), target.inner)
                for v in (x.columns, x.offsets)
            ]
            assert spread[0] is not None
            return Raw(spread[0], target, spread[1])
        x = self._one(x)
        added = len(target.inner) - len(x.shape.inner)
        return replace(x, shape=target, order=(*[None] * added, *x.order))

    def tile(self, x: Rows, axis: int, times: int) -> Rows:
        """An inner axis [n] as [times n], the whole of it again and again."""
        shape = x.shape.with_size(axis, x.shape.inner[axis] * times)
        if x.shape.inner[axis] == 1:
            return replace(self._one(x), shape=shape)
        return self._repeated(x, axis, times, at=axis)

    def repeat_each(self, x: Rows, axis: int, times: int) -> Rows:
        """An inner axis [n] as [n times], each value so often."""
        return self._repeated(x, axis, times, at=axis + 1)

    def _repeated(self, x: Rows, axis: int, times: int, *, at: int) -> Rows:
        """An inner axis, `times` as long by a new axis at `at` that is merged with it."""
        shape = x.shape.with_size(axis, x.shape.inner[axis] * times)
        apart = Shape((*x.shape.inner[:at], 1, *x.shape.inner[at:]), x.shape.batch + (axis < x.shape.batch))
        spread = self.expand(self._apart(x, apart), apart.with_size(at, times))
        found = self.reshape(spread, shape)
        assert isinstance(found, Rows)
        return found

    def _apart(self, x: Rows, shape: Shape) -> Value:
        return self.reshape(replace(self._one(x), shape=replace(x.shape, merged=0, led=0)), shape)

    def slice(self, x: Value, axis: int, start: int, size: int) -> Value:
        """Values ``start .. start + size`` along an inner axis."""
        return self.take(x, axis, range(start, start + size))

    def take(self, x: Value, axis: int, indices: Sequence[int]) -> Value:
        """These values along an inner axis, in that order."""
        shape = x.shape.with_size(axis, len(indices))
        if isinstance(x, Raw):
            offsets = None if x.offsets is None else x.offsets.take(indices, axis)
            return Raw(x.columns.take(indices, axis), shape, offsets)
        if list(indices) == list(range(x.shape.inner[axis])):
            return x
        x = self._one(x)
        place = x.order[axis]
        if place is None:
            return replace(x, shape=shape)
        stepped = self.stepped.get(x.name)
        if stepped is not None and place == len(x.sizes) - 1 and len(stepped.w) == x.sizes[place]:
            return Rows.laid_out(self._rows_of_weight(stepped, list(indices)), shape, x.axes)
        outer, inner = math.prod(x.sizes[:place]), math.prod(x.sizes[place + 1 :])
        spans = [(run[0] * inner, len(run) * inner) for run in _ascending(indices)]
        if outer * len(spans) > _MOST_PIECES and place > 0:
            front = [axis, *[a for a in x.axes if a != axis]]
            return self.take(self.with_axes(x, front), axis, indices)
        step = x.sizes[place] * inner
        pieces = [self.cut(x.name, i * step + at, width) for i in range(outer) for at, width in spans]
        return Rows.laid_out(self.concat(pieces, "concat"), shape, x.axes)

    def _rows_of_weight(self, product: Stepped, rows: list[int]) -> str:
        """Some columns of every step: a product with these rows of the weight, so that nothing has to be moved."""
        name = self.name("part")
        return self.builder.affine(
            product.x,
            w=self.weight(f"{name}.w", product.w[rows]),
            b=None if product.b is None else self.weight(f"{name}.b", product.b[rows]),
            steps=product.steps,
            name=name,
        )

    def cat(self, parts: Sequence[Value], axis: int) -> Value:
        """Joined along an inner axis."""
        shape = parts[0].shape.with_size(axis, sum(p.shape.inner[axis] for p in parts))
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(p, Raw) for p in parts):
            raws = [p for p in parts if isinstance(p, Raw)]
            columns = np.concatenate([p.columns for p in raws], axis)
            offsets = None
            if any(p.offsets is not None for p in raws):
                offsets = np.concatenate(
                    [np.zeros_like(p.columns) if p.offsets is None else p.offsets for p in raws], axis
                )
            return Raw(columns, shape, offsets)
        made = [self.rows(p) for p in parts]
        others = [a for a in range(len(shape.inner)) if a != axis and any(p.order[a] is not None for p in made)]
        if axis < min(others, default=axis + 1) or all(p.axes[:1] == (axis,) or p.shape.inner[axis] == 1 for p in made):
            held = [a for a in made[0].axes if a != axis]
            order = [axis, *(held if len(held) == len(others) else others)]
            names = [self.in_order(p, order) for p in made]
            return Rows.laid_out(self.concat(names, "concat"), shape, order)
        flat = [q for p in made for q in ((p.parts if p.axis == axis else ()) or (p,))]
        order_of = tuple(0 if a in (*others, axis) else None for a in range(len(shape.inner)))
        return Rows("", shape, (), order_of, tuple(flat), axis)

    @abstractmethod
    def shift(self, x: Rows, by: ArrayLike) -> Rows:
        """``x + by``, a constant over the inner axes."""


def _ascending(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers in pieces that ascend by one."""
    found: list[list[int]] = []
    for n in numbers:
        if found and found[-1][-1] + 1 == n:
            found[-1].append(int(n))
        else:
            found.append([int(n)])
    return found
