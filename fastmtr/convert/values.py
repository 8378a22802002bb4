"""What a value of a source model is in a graph, while it is converted.

A tensor of the source has a dimension that counts rows, the *batch*, and inner ones; a graph has rows of columns only.
:class:`Rows` says how a tensor's inner dimensions lie in the columns of a graph's value. Permuting dimensions,
inserting and repeating them changes this description alone: columns move only where an operator needs them in order.
:class:`Raw` is an input that no operator has read yet, so that it may still become ids or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import ConversionError

__all__ = ["Raw", "Rows", "Shape", "batch_axes", "split_blocks"]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a tensor: inner ones, and where the batch stands.

    Parameters
    ----------
    inner : tuple of int
        Sizes without the batch.
    batch : int
        How many inner dimensions stand before the batch.
    led, merged : int
        How many right before and after the batch have become one dimension with it: [B, 5, 4] seen as [5 B, 4] has
        inner (5, 4), batch 0, merged 1; [5, B, 4] seen so has inner (5, 4), batch 1, led 1.
    """

    inner: tuple[int, ...]
    batch: int = 0
    merged: int = 0
    led: int = 0

    @property
    def rank(self) -> int:
        """Dimensions of the tensor."""
        return len(self.inner) - self.merged - self.led + 1

    @property
    def batch_dim(self) -> int:
        """The dimension of the tensor that the batch is, or is part of."""
        return self.batch - self.led

    @property
    def joined(self) -> range:
        """The inner axes that are one dimension with the batch."""
        return range(self.batch - self.led, self.batch + self.merged)

    def full(self, rows: int) -> tuple[int, ...]:
        """The tensor's sizes for so many rows."""
        start, end = self.joined.start, self.joined.stop
        return (*self.inner[:start], rows * math.prod(self.inner[start:end]), *self.inner[end:])

    def axis(self, dim: int) -> int:
        """The inner axis that a dimension of the tensor is; ConversionError for the batch itself."""
        at = dim + self.rank if dim < 0 else dim
        if at == self.batch_dim:
            raise ConversionError("it works across the rows of the batch, so a row's result would depend on the others")
        return at if at < self.batch_dim else at - 1 + len(self.joined)

    def insert(self, dim: int, size: int) -> tuple[Shape, int]:
        """With one more dimension, and its inner axis."""
        at = dim + self.rank + 1 if dim < 0 else dim
        before = at <= self.batch_dim
        axis = at if before else at - 1 + len(self.joined)
        inner = (*self.inner[:axis], size, *self.inner[axis:])
        return replace(self, inner=inner, batch=self.batch + before), axis

    def without(self, axis: int) -> Shape:
        """With one inner axis less."""
        inner = (*self.inner[:axis], *self.inner[axis + 1 :])
        before, joined = axis < self.batch, axis in self.joined
        return Shape(inner, self.batch - before, self.merged - (joined and not before), self.led - (joined and before))

    def with_size(self, axis: int, size: int) -> Shape:
        """With another size of one inner axis."""
        return replace(self, inner=(*self.inner[:axis], size, *self.inner[axis + 1 :]))

    def permuted(self, dims: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
        """With the tensor's dimensions in that order, and the inner axes in their new order."""
        axes: list[int] = []
        batch = 0
        for d in dims:
            if d % self.rank == self.batch_dim:
                batch = len(axes) + self.led
                axes += self.joined
            else:
                axes.append(self.axis(d))
        return replace(self, inner=tuple(self.inner[a] for a in axes), batch=batch), tuple(axes)

    def reshaped(self, sizes: Sequence[int], rows: int) -> Shape:
        """Of a reshape to these sizes (without -1), where each row keeps what it has."""
        before = math.prod(self.inner[: self.batch])
        after = math.prod(self.inner) // max(before, 1)
        for j, size in enumerate(sizes):
            led, rest = divmod(before, math.prod(sizes[:j]))
            many, more = divmod(size, rows * max(led, 1))
            if not rest and not more and many and math.prod(sizes[j:]) == rows * led * after:
                joined = [n for n in (led, many) if n > 1]
                inner = (*sizes[:j], *joined, *sizes[j + 1 :])
                return Shape(inner, j + (led > 1), int(many > 1), int(led > 1))
        raise ConversionError(
            f"it reshapes {list(self.full(rows))} to {list(sizes)} ({rows} rows), which mixes values of different rows"
        )


@dataclass(frozen=True)
class Rows:
    """A tensor as columns of a graph's value.

    Parameters
    ----------
    name : str
        The graph's value; "" for one that is several values side by side (`parts`).
    shape : Shape
    sizes : tuple of int
        The dimensions of the columns, in row-major order, each above 1.
    order : tuple of (int or None)
        For each inner axis, which of `sizes` it is; None: one value stands for all along this axis.
    parts : tuple of Rows
        Joined along `axis`, not yet one value.
    axis : int
    """

    name: str
    shape: Shape
    sizes: tuple[int, ...]
    order: tuple[int | None, ...]
    parts: tuple[Rows, ...] = ()
    axis: int = 0

    @classmethod
    def packed(cls, name: str, shape: Shape) -> Rows:
        """The inner axes lie in the columns in their own order."""
        return cls.laid_out(name, shape, range(len(shape.inner)))

    @classmethod
    def laid_out(cls, name: str, shape: Shape, axes: Sequence[int]) -> Rows:
        """These inner axes lie in the columns in this order; the others repeat."""
        real = [a for a in axes if shape.inner[a] > 1]
        order = tuple(real.index(a) if a in real else None for a in range(len(shape.inner)))
        return cls(name, shape, tuple(shape.inner[a] for a in real), order)

    @property
    def axes(self) -> tuple[int, ...]:
        """The inner axes that have columns, in the order in which they lie."""
        by_place = {place: axis for axis, place in enumerate(self.order) if place is not None}
        return tuple(by_place[place] for place in range(len(self.sizes)))

    def reshaped(self, shape: Shape) -> Rows | None:
        """The same columns in another shape; None where they have to move first."""
        if self.parts:
            return self._parts_reshaped(shape)
        sizes: list[list[int]] = [[] for _ in self.sizes]
        places: list[int | tuple[int, int] | None] = []
        old, new = self.shape.inner, shape.inner
        for these, those in split_blocks(old, new):
            real = [a for a in these if old[a] > 1]
            held = [self.order[a] for a in real]
            if all(place is None for place in held):
                places += [None] * len(those)
                continue
            steady = [place for place in held if place is not None]
            if len(steady) != len(held) or steady != list(range(steady[0], steady[0] + len(steady))):
                return None
            for place in steady[1:]:
                sizes[place] = []
            block = sizes[steady[0]]
            for a in those:
                if new[a] > 1:
                    places.append((steady[0], len(block)))
                    block.append(new[a])
                else:
                    places.append(None)
        starts = np.cumsum([0, *[len(block) for block in sizes]])
        order = tuple(p if p is None or isinstance(p, int) else int(starts[p[0]]) + p[1] for p in places)
        return Rows(self.name, shape, tuple(s for block in sizes for s in block), order)

    def _parts_reshaped(self, shape: Shape) -> Rows | None:
        """Where only the batch merges with an axis or parts from it, the parts do the same."""
        if shape.inner != self.shape.inner or shape.batch != self.shape.batch:
            return None
        parts = tuple(replace(p, shape=replace(p.shape, merged=shape.merged, led=shape.led)) for p in self.parts)
        return replace(self, shape=shape, parts=parts)


@dataclass(frozen=True)
class Raw:
    """Columns of the model's inputs that no operator has read yet.

    Parameters
    ----------
    columns : ndarray of int, shape `shape.inner`
        Numbers of columns, counted through all inputs.
    shape : Shape
    offsets : ndarray of int, same shape, optional
        Added to each id.
    """

    columns: NDArray[np.int64]
    shape: Shape
    offsets: NDArray[np.int64] | None = None


def split_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes of one size in the smallest blocks that hold the same numbers, in order."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        these: list[int] = []
        those: list[int] = []
        left = right = 1
        while True:
            if left == right and (these or those):
                break
            if (left <= right and i < len(old)) or j >= len(new):
                left *= old[i]
                these.append(i)
                i += 1
            else:
                right *= new[j]
                those.append(j)
                j += 1
        blocks.append((these, those))
    return blocks


def batch_axes(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """Two shapes brought to one rank by dimensions of size 1 in front, as broadcasting does."""
    rank = max(a.rank, b.rank)
    lifted = []
    for shape in (a, b):
        while shape.rank < rank:
            shape, _ = shape.insert(0, 1)
        lifted.append(shape)
    left, right = lifted
    if (left.batch, left.merged, left.led) != (right.batch, right.merged, right.led):
        raise ConversionError(
            "its operands have their rows in different dimensions, so each row would meet all other rows"
        )
    return left, right
