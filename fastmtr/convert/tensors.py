"""Operations on tensors of a source model as nodes of a graph: what the converters of all sources have in common.

A :class:`Tensors` wraps a :class:`~fastmtr.graph.GraphBuilder`. Its methods take and give the values of
:mod:`fastmtr.convert.values`, and constants (NumPy arrays); they move columns only where they have to. Sums of products
are in :mod:`fastmtr.convert.products`, comparisons and lookups in :mod:`fastmtr.convert.lookups`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.convert.values import Raw, Rows, Shape, batch_axes
from fastmtr.errors import ConversionError
from fastmtr.graph import GraphBuilder, Input

__all__ = ["Array", "Column", "Mask", "Scaled", "Tensors", "Value"]

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


class Scaled(NamedTuple):
    """The value that a value was before it was multiplied by constants, and shifted, column by column."""

    name: str
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


class Mask(NamedTuple):
    """A value is 1 where the ids of an input are not ``padding`` (0 where they are), one column an id."""

    ids: str
    padding: int


class Terms(NamedTuple):
    """`made` is the sum, difference or product of two others of its shape."""

    kind: str
    a: Rows
    b: Rows
    made: Rows

    def of(self, x: Rows) -> tuple[Rows, Rows] | None:
        """The two in the shape of x, if x is what was made of them, seen the same way."""
        if (x.shape.inner, x.order) != (self.made.shape.inner, self.made.order):
            return None
        return replace(self.a, shape=x.shape), replace(self.b, shape=x.shape)


class Tensors:
    """Builds a graph from operations on tensors.

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
        self.masks: dict[str, Mask] = {}
        self.scaled: dict[str, Scaled] = {}
        self.terms: dict[str, Terms] = {}
        self.joined: dict[str, tuple[str, ...]] = {}
        self.embedded: dict[tuple[str, str], str] = {}
        self.present: dict[tuple[str, int], str] = {}
        self.counts: dict[str, Mask] = {}
        self.bags: dict[str, tuple[Mask, str]] = {}
        self.bounded: dict[str, tuple[str, float]] = {}
        self.norms: dict[str, tuple[Rows, tuple[int, ...]]] = {}
        self._taken = {i.name for i in inputs}
        self._dense: dict[str, Rows] = {}
        self._weights: dict[tuple[Any, ...], str] = {}

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
        key = (made.shape, made.tobytes())
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
        apart = Shape((*x.shape.inner[:axis], 1, *x.shape.inner[axis:]), x.shape.batch + (axis < x.shape.batch))
        spread = self.expand(self._apart(x, apart), apart.with_size(axis, times))
        found = self.reshape(spread, shape)
        assert isinstance(found, Rows)
        return found

    def repeat_each(self, x: Rows, axis: int, times: int) -> Rows:
        """An inner axis [n] as [n times], each value so often."""
        shape = x.shape.with_size(axis, x.shape.inner[axis] * times)
        at = axis + 1
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
        outer, inner = math.prod(x.sizes[:place]), math.prod(x.sizes[place + 1 :])
        spans = [(run[0] * inner, len(run) * inner) for run in _ascending(indices)]
        if outer * len(spans) > _MOST_PIECES and place > 0:
            front = [axis, *[a for a in x.axes if a != axis]]
            return self.take(self.with_axes(x, front), axis, indices)
        step = x.sizes[place] * inner
        pieces = [self.cut(x.name, i * step + at, width) for i in range(outer) for at, width in spans]
        return Rows.laid_out(self.concat(pieces, "concat"), shape, x.axes)

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

    # ---- element by element ------------------------------------------------------------------------------------------

    def unary(self, x: Value, fn: str, *, alpha: float = 0.0, slope: Array | None = None) -> Rows:
        """An activation of the graph."""
        x, name, weight = self.rows(x), self.name(fn), None
        if slope is not None:
            x, slope = self.over(x, slope)
            weight = self.weight(f"{name}.slope", self.spread(x, slope))
        return replace(x, name=self.builder.activation(x.name, fn, alpha=alpha, slope=weight, name=name))

    def spread(self, x: Rows, constant: ArrayLike) -> NDArray[np.float64]:
        """A constant over the inner axes (of any shape that broadcasts to them), one number a column of x."""
        c = np.asarray(constant, np.float64)
        c = c.reshape((1,) * (len(x.shape.inner) - c.ndim) + c.shape)
        turned = c.transpose([*x.axes, *[a for a in range(c.ndim) if a not in x.axes]])
        return np.broadcast_to(turned.reshape(turned.shape[: len(x.axes)]), x.sizes).reshape(-1).copy()

    def over(self, x: Rows, constant: ArrayLike) -> tuple[Rows, Array]:
        """x and a constant over the inner axes, brought to one shape in which x has columns wherever they differ."""
        c = np.asarray(constant, np.float64)
        rank = len(x.shape.inner)
        c = c.reshape((1,) * (rank - c.ndim) + c.shape)
        x = self._one(x)
        inner = np.broadcast_shapes(x.shape.inner, c.shape)
        missing = [a for a in range(rank) if c.shape[a] > 1 and x.order[a] is None]
        x = replace(x, shape=replace(x.shape, inner=tuple(inner)))
        if missing:
            x = self.with_axes(x, sorted([*x.axes, *missing]))
        return x, c

    def scale(self, x: Rows, by: ArrayLike) -> Rows:
        """``x * by``, a constant over the inner axes."""
        x, c = self.over(x, by)
        width = self.builder.width(x.name)
        return self._scale_shift(x, self.spread(x, c), np.zeros(width))

    def shift(self, x: Rows, by: ArrayLike) -> Rows:
        """``x + by``, a constant over the inner axes."""
        x, c = self.over(x, by)
        width = self.builder.width(x.name)
        return self._scale_shift(x, np.ones(width), self.spread(x, c))

    def _scale_shift(self, x: Rows, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Rows:
        before = self.scaled.get(x.name)
        if before is not None:
            scale, shift, x = before.scale * scale, before.shift * scale + shift, replace(x, name=before.name)
        if (scale == 1).all() and (shift == 0).all():
            return x
        name = self.name("scale")
        made = self.builder.scale_shift(
            x.name, scale=self.weight(f"{name}.scale", scale), shift=self.weight(f"{name}.shift", shift), name=name
        )
        self.scaled[made] = Scaled(x.name, scale, shift)
        return replace(x, name=made)

    def constant(self, like: Rows, values: ArrayLike) -> Rows:
        """A constant over the inner axes as a value of the graph, of the shape of `like` and what it broadcasts to."""
        x, c = self.over(like, values)
        width = self.builder.width(x.name)
        return self._scale_shift(replace(x, name=self._base(x.name)), np.zeros(width), self.spread(x, c))

    def _base(self, name: str) -> str:
        return self.scaled[name].name if name in self.scaled else name

    def binary(self, a: Value, b: Value, fn: Literal["add", "sub", "mul", "div", "max", "min"]) -> Rows:
        """Two tensors element by element, with broadcasting."""
        x, y = self.together(self.rows(a), self.rows(b))
        if fn == "mul" and set(x.axes) - set(y.axes) and set(y.axes) - set(x.axes):
            made = self._outer(x, y)
        else:
            left, right, made = self._aligned(x, y)
            method = {"max": self.builder.maximum, "min": self.builder.minimum}.get(fn) or getattr(self.builder, fn)
            made = replace(made, name=method(left, right, name=self.name(fn)))
        self.terms[made.name] = Terms(fn, x, y, made)
        return made

    def _outer(self, x: Rows, y: Rows) -> Rows:
        """The product of two tensors each of which repeats where the other does not."""
        shared = [a for a in x.axes if a in y.axes]
        own = [[a for a in each.axes if a not in shared] for each in (x, y)]
        sizes = [math.prod(x.shape.inner[a] for a in axes) for axes in (shared, *own)]
        name = self.builder.matmul(
            self.in_order(x, [*shared, *own[0]]),
            self.in_order(y, [*shared, *own[1]]),
            outer=sizes[0],
            m=sizes[1],
            k=1,
            n=sizes[2],
            name=self.name("mul"),
        )
        return Rows.laid_out(name, x.shape, [*shared, *own[0], *own[1]])

    def together(self, x: Rows, y: Rows) -> tuple[Rows, Rows]:
        """Two tensors in the one shape that they broadcast to; nothing is repeated in columns yet."""
        left, right = batch_axes(x.shape, y.shape)
        try:
            inner = np.broadcast_shapes(left.inner, right.inner)
        except ValueError:
            raise ConversionError(f"its operands have the inner sizes {left.inner} and {right.inner}") from None
        made = []
        for each, shape in ((x, left), (y, right)):
            each = self._one(each)
            added = len(inner) - len(each.order)
            made.append(replace(each, shape=replace(shape, inner=tuple(inner)), order=(*[None] * added, *each.order)))
        return made[0], made[1]

    def _aligned(self, x: Rows, y: Rows) -> tuple[str, str, Rows]:
        """Both with the same columns (or one with a single one), and what lies as their result does."""
        mine, theirs = set(x.axes), set(y.axes)
        if not theirs:
            return x.name, y.name, x
        if not mine:
            return x.name, y.name, y
        if theirs <= mine:
            order = x.axes
        elif mine <= theirs:
            order = y.axes
        else:
            order = tuple(sorted(mine | theirs))
        return self.in_order(x, order), self.in_order(y, order), Rows.laid_out("", x.shape, order)

    # ---- along axes --------------------------------------------------------------------------------------------------

    def reduce(self, x: Value, fn: Literal["sum", "mean", "max"], axes: Iterable[int], *, keep: bool) -> Rows:
        """Sum, mean or greatest along inner axes, which stay with size 1 or go."""
        x, chosen = self.rows(x), sorted(set(axes))
        if fn == "sum" and x.name in self.terms and self.terms[x.name].kind == "mul":
            from fastmtr.convert.products import contract

            factors = self.terms[x.name].of(x)
            if factors is not None and any(all(f.order[c] is not None for f in factors) for c in chosen):
                made = contract(self, *factors, chosen)
                return made if keep else self.dropped(made, chosen)
        return self.reduce_columns(x, fn, chosen, keep=keep)

    def reduce_columns(self, x: Rows, fn: Literal["sum", "mean", "max"], chosen: Sequence[int], *, keep: bool) -> Rows:
        """As :meth:`reduce`, of the value as it is, whatever it was made of."""
        repeated = math.prod(x.shape.inner[a] for a in chosen if x.order[a] is None)
        places = sorted({p for a in chosen if (p := x.order[a]) is not None}, reverse=True)
        name, sizes = x.name, list(x.sizes)
        while places:
            last = places.pop(0)
            first = last
            while places and places[0] == first - 1:
                first = places.pop(0)
            outer, axis, inner = (
                math.prod(part) for part in (sizes[:first], sizes[first : last + 1], sizes[last + 1 :])
            )
            name = self.builder.reduce(name, fn, outer=outer, axis=axis, inner=inner, name=self.name(fn))
            del sizes[first : last + 1]
        if fn == "sum" and not sizes and x.name in self.masks:
            self.counts[name] = self.masks[x.name]
        left = [a for a in x.axes if a not in chosen]
        shape = x.shape
        for a in chosen:
            shape = shape.with_size(a, 1)
        made = Rows.laid_out(name, shape, left)
        if fn == "sum" and repeated > 1:
            made = self.scale(made, repeated)
        return made if keep else self.dropped(made, chosen)

    def dropped(self, x: Rows, axes: Sequence[int]) -> Rows:
        """Without these inner axes, whose size is 1."""
        for a in sorted(axes, reverse=True):
            x = replace(x, shape=x.shape.without(a), order=(*x.order[:a], *x.order[a + 1 :]))
        return x

    def softmax(self, x: Value, axis: int) -> Rows:
        """Along an inner axis."""
        x = self.rows(x)
        size = x.shape.inner[axis]
        if x.order[axis] is None:
            return self.constant(x, 1 / size)
        x = self._last(x, [axis])
        return replace(x, name=self.builder.softmax(x.name, size=size, name=self.name("softmax")))

    def _last(self, x: Rows, axes: Sequence[int]) -> Rows:
        """With these axes as the last of the columns, in that order."""
        wanted = [a for a in axes if x.shape.inner[a] > 1]
        return self.with_axes(x, [*[a for a in x.axes if a not in wanted], *wanted])

    def batch_norm(self, x: Value, axis: int, *, eps: float, **statistics: Array) -> Rows:
        """With the statistics of training (mean, var; scale and shift if any), one for each value along an axis."""
        x = self.rows(x)
        along = [-1 if a == axis else 1 for a in range(len(x.shape.inner))]
        x, _ = self.over(x, np.reshape(statistics["mean"], along))
        name = self.name("batch_norm")
        weights = {
            role: self.weight(f"{name}.{role}", self.spread(x, np.reshape(array, along)))
            for role, array in statistics.items()
        }
        return replace(x, name=self.builder.batch_norm(x.name, **weights, eps=eps, name=name))

    def layer_norm(self, x: Value, axes: Sequence[int], *, eps: float, **learned: Array) -> Rows:
        """Over these inner axes; ``scale`` and ``shift``, if any, have the shape of their sizes."""
        x = self._last(self.rows(x), axes)
        name = self.name("layer_norm")
        weights = {role: self.weight(f"{name}.{role}", np.ravel(array)) for role, array in learned.items()}
        size = math.prod(x.shape.inner[a] for a in axes)
        return replace(x, name=self.builder.layer_norm(x.name, **weights, eps=eps, size=size, name=name))

    def norm(self, x: Value, axes: Sequence[int], *, keep: bool) -> Rows:
        """The Euclidean length over these inner axes."""
        x = self.rows(x)
        made = self.unary(self.reduce(self.binary(x, x, "mul"), "sum", axes, keep=keep), "sqrt")
        self.norms[made.name] = (x, tuple(sorted(axes)))
        return made

    def l2_normalize(self, x: Value, axes: Sequence[int], *, eps: float) -> Rows:
        """Divided by the norm over these inner axes."""
        x = self._last(self.rows(x), axes)
        size = math.prod(x.shape.inner[a] for a in axes)
        return replace(x, name=self.builder.l2_normalize(x.name, eps=eps, size=size, name=self.name("l2_normalize")))


def _ascending(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers in pieces that ascend by one."""
    found: list[list[int]] = []
    for n in numbers:
        if found and found[-1][-1] + 1 == n:
            found[-1].append(int(n))
        else:
            found.append([int(n)])
    return found
