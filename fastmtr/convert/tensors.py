"""Operations on tensors of a source model as nodes of a graph: what the converters of all sources have in common.

A :class:`Tensors` wraps a :class:`~fastmtr.graph.GraphBuilder`. Its methods take and give the values of
:mod:`fastmtr.convert.values`, and constants (NumPy arrays). Views are in :mod:`fastmtr.convert.layout`, sums of
products in :mod:`fastmtr.convert.products`, comparisons and lookups in :mod:`fastmtr.convert.lookups`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.convert.layout import Array, Column, Layout, Value
from fastmtr.convert.values import Rows, batch_axes
from fastmtr.errors import ConversionError
from fastmtr.graph import Input

__all__ = ["Array", "Column", "Mask", "Scaled", "Tensors", "Terms", "Value"]


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


class Tensors(Layout):
    """Builds a graph from operations on tensors; parameters and attributes of :class:`~fastmtr.convert.layout.Layout`.

    It remembers what some values were made of, so that what is written in several operators becomes the one that it is.
    """

    def __init__(self, inputs: Sequence[Input], columns: Sequence[Column], *, ids: Iterable[int] = ()) -> None:
        super().__init__(inputs, columns, ids=ids)
        self.masks: dict[str, Mask] = {}
        self.scaled: dict[str, Scaled] = {}
        self.terms: dict[str, Terms] = {}
        self.embedded: dict[tuple[str, str], str] = {}
        self.present: dict[tuple[str, int], str] = {}
        self.counts: dict[str, Mask] = {}
        self.bags: dict[str, tuple[Mask, str]] = {}
        self.row_sums: dict[str, tuple[str, str]] = {}
        self.flags: set[str] = set()
        self.bounded: dict[str, tuple[str, float]] = {}
        self.norms: dict[str, tuple[Rows, tuple[int, ...]]] = {}

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
        looked_up = next((key for key, value in self.embedded.items() if value == x.name), None)
        if fn == "sum" and looked_up is not None and chosen == [x.axes[-1]]:
            self.row_sums[name] = looked_up
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
        size = self._run(x, axes)
        return replace(x, name=self.builder.layer_norm(x.name, **weights, eps=eps, size=size, name=name))

    def _run(self, x: Rows, axes: Sequence[int]) -> int | None:
        """How many columns these axes are; None for all of x."""
        size = math.prod(x.shape.inner[a] for a in axes)
        return None if size == self.builder.width(x.name) else size

    def norm(self, x: Value, axes: Sequence[int], *, keep: bool) -> Rows:
        """The Euclidean length over these inner axes."""
        x = self.rows(x)
        made = self.unary(self.reduce(self.binary(x, x, "mul"), "sum", axes, keep=keep), "sqrt")
        self.norms[made.name] = (x, tuple(sorted(axes)))
        return made

    def l2_normalize(self, x: Value, axes: Sequence[int], *, eps: float) -> Rows:
        """Divided by the norm over these inner axes."""
        x = self._last(self.rows(x), axes)
        name = self.name("l2_normalize")
        return replace(x, name=self.builder.l2_normalize(x.name, eps=eps, size=self._run(x, axes), name=name))
