"""The operators of PyTorch that have a counterpart in a graph: the table that the converter looks into.

A handler takes a :class:`Call` and the operator's arguments: values of the graph where they depend on the model's
inputs, torch tensors where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastmtr.convert.tensors import Array, Tensors, Value
from fastmtr.convert.values import Raw, Rows, Shape
from fastmtr.errors import ConversionError

__all__ = ["HANDLERS", "Call", "Operand", "handles", "is_value", "numpy", "same_for_all"]

Operand: TypeAlias = "Rows | Raw | torch.Tensor | float | int"

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

HANDLERS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[_Handler], _Handler]:
    """Decorate the handler of these operators (``linear`` for ``aten::linear``)."""

    def add(handler: _Handler) -> _Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return add


def is_value(x: Any) -> bool:
    """It depends on the model's inputs."""
    return isinstance(x, Rows | Raw)


class Call:
    """One operator of the source being converted.

    Attributes
    ----------
    t : Tensors
    rows : int
        The size of the batch that the model was traced with.
    dtype : torch.dtype
        Of the result.
    whole, boolean : bool
        All operands that are tensors hold whole numbers; or truth values.
    weight_name : str
        Of the first parameter among the operands, "" without one.
    """

    def __init__(
        self, t: Tensors, *, rows: int, dtype: torch.dtype, whole: bool, boolean: bool, weight_name: str
    ) -> None:
        self.t, self.rows, self.dtype, self.weight_name = t, rows, dtype, weight_name
        self.whole, self.boolean = whole, boolean

    def sizes(self, sizes: Sequence[int], total: int) -> list[int]:
        """Sizes of a tensor of so many elements, without a -1."""
        known = int(np.prod([s for s in sizes if s != -1]))
        return [total // max(known, 1) if s == -1 else int(s) for s in sizes]

    def array(self, constant: Operand, shape: Shape) -> Array:
        """A constant as an array that broadcasts to the inner axes of a tensor of that shape.

        Raises
        ------
        ConversionError
            It has a number of its own for each row of the batch.
        """
        if not isinstance(constant, torch.Tensor):
            return np.asarray(constant, np.float64)
        c = numpy(constant)
        if c.ndim > shape.rank:
            raise ConversionError(f"a constant of shape {c.shape} meets values of shape {shape.full(self.rows)}")
        at = c.ndim - shape.rank + shape.batch_dim
        if at < 0:
            return c
        joined = [shape.inner[a] for a in shape.joined]
        if c.shape[at] == 1:
            return c.reshape((*c.shape[:at], *[1] * len(joined), *c.shape[at + 1 :]))
        joined.insert(shape.led, self.rows)
        c = c.reshape((*c.shape[:at], *joined, *c.shape[at + 1 :]))
        return same_for_all(c, at + shape.led)

    def pair(self, a: Operand, b: Operand) -> tuple[Value, Operand, bool]:
        """A value and the other operand, brought to one rank; whether they changed places."""
        swapped = not is_value(a)
        x, y = (b, a) if swapped else (a, b)
        assert isinstance(x, Rows | Raw)
        if isinstance(y, torch.Tensor):
            while x.shape.rank < y.dim():
                x = self.t.unsqueeze(x, 0)
        return x, y, swapped


def numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A constant in double precision (whole numbers and booleans as they are)."""
    made = tensor.detach().cpu()
    return np.asarray((made.double() if made.is_floating_point() else made).numpy())


def same_for_all(constant: NDArray[Any], axis: int) -> NDArray[Any]:
    """A constant without its axis for the batch; ConversionError if its rows differ."""
    first: NDArray[Any] = np.take(constant, 0, axis=axis)
    if not (constant == np.expand_dims(first, axis)).all():
        raise ConversionError("a constant differs from row to row of the batch")
    return first
