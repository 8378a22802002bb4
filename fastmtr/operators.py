"""The operators of a :class:`~fastmtr.graph.Graph`: their inputs, attributes, weights, and what width follows.

What they compute is written in ``docs/bundle.md``. An operator is added here, in :mod:`fastmtr.reference`, in the
kernels and as a row of ``tests/cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

__all__ = ["ACTIVATIONS", "BINARY_FUNCTIONS", "OPS", "REDUCTIONS", "Op", "OpContext"]

ACTIVATIONS = (
    "none",
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "exp",
)
BINARY_FUNCTIONS = ("add", "sub", "mul", "div", "max", "min")
REDUCTIONS = ("sum", "mean", "max")


class OpContext(NamedTuple):
    """What the width of a node follows from."""

    op: Op
    attrs: Mapping[str, Any]
    widths: list[int]
    shapes: dict[str, tuple[int, ...]]
    rows: int | None
    refuse: Callable[[str], NoReturn]

    def attr(self, name: str) -> Any:
        return self.attrs.get(name, self.op.attrs[name])

    def whole(self, name: str, least: int = 1) -> int:
        value = self.attr(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"attribute {name!r} must be a whole number >= {least}, found {value!r}")
        return value

    def number(self, name: str, *, positive: bool = False) -> float:
        value = self.attr(name)
        real = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        if not real or (positive and value <= 0):
            self.refuse(f"attribute {name!r} must be a {'positive' if positive else 'finite'} number, found {value!r}")
        return float(value)

    def choice(self, name: str, among: Sequence[str]) -> str:
        value = self.attr(name)
        if value not in among:
            self.refuse(f"attribute {name!r} must be one of {', '.join(among)}, found {value!r}")
        return str(value)

    def vector(self, role: str, n: int) -> None:
        """The weight, where given, has n numbers."""
        shape = self.shapes.get(role)
        if shape is not None and shape != (n,):
            self.refuse(f"weight {role!r} must have the shape ({n},), found {shape}")

    def activation(self, n: int) -> None:
        fn = self.choice("activation", ACTIVATIONS)
        self.number("alpha")
        self.vector("slope", n)
        if (fn == "prelu") != ("slope" in self.shapes):
            self.refuse(f"weight 'slope' belongs to prelu and prelu needs it; activation is {fn}")


class Op(NamedTuple):
    """What a node of this operator may have."""

    arity: tuple[int, int | None]
    width: Callable[[OpContext], int]
    attrs: dict[str, Any] = {}  # noqa: RUF012 - read only
    weights: dict[str, bool] = {}  # noqa: RUF012 - role -> must be there
    reads_ids: bool = False


def _table(c: OpContext) -> tuple[int, int]:
    shape = c.shapes["table"]
    if len(shape) != 2 or 0 in shape:
        c.refuse(f"weight 'table' must be a matrix with at least one row and column, found shape {shape}")
    padding = c.attr("padding")
    if padding is not None and not (type(padding) is int and 0 <= padding < shape[0]):
        c.refuse(f"attribute 'padding' must be null or a row of the table (0 to {shape[0] - 1}), found {padding!r}")
    if c.rows is not None and c.rows > shape[0]:
        c.refuse(f"its ids may be up to {c.rows - 1}, but its table has {shape[0]} rows")
    return shape[0], shape[1]


def _embedding(c: OpContext) -> int:
    return c.widths[0] * _table(c)[1]


def _embedding_bag(c: OpContext) -> int:
    c.choice("mode", REDUCTIONS)
    return _table(c)[1]


def _affine(c: OpContext) -> int:
    groups = c.whole("groups")
    for name in ("has_x", "shared_x"):
        if not isinstance(c.attr(name), bool):
            c.refuse(f"attribute {name!r} must be true or false, found {c.attr(name)!r}")
    has_x, shared_x = c.attr("has_x"), c.attr("shared_x")
    if has_x != ("w" in c.shapes):
        c.refuse("weight 'w' belongs to x: give both or neither (attribute 'has_x')")
    addends = c.widths[1:] if has_x else c.widths
    if has_x:
        shape = c.shapes["w"]
        if 0 in shape or (len(shape), groups) not in ((2, 1), (3, groups)) or (len(shape) == 3 and shape[0] != groups):
            also = " or [n, k]" if groups == 1 else ""
            c.refuse(f"weight 'w' must have the shape [{groups}, n, k]{also}, found {shape}")
        n, k = shape[-2:]
        expected = k if shared_x else groups * k
        if c.widths[0] != expected:
            c.refuse(f"x has {c.widths[0]} columns, but its weight {shape} takes {expected}")
        width = groups * n
    else:
        if groups != 1 or shared_x:
            c.refuse("'groups' and 'shared_x' have no meaning without x")
        width = c.widths[0]
    for i, addend in enumerate(addends):
        if addend != width:
            c.refuse(f"addend {i} has {addend} columns, but {width} are expected")
    c.vector("b", width)
    c.activation(width)
    return width


def _activation(c: OpContext) -> int:
    c.activation(c.widths[0])
    return c.widths[0]


def _softmax(c: OpContext) -> int:
    size = c.whole("size")
    if c.widths[0] % size:
        c.refuse(f"its input has {c.widths[0]} columns, which is not a multiple of size {size}")
    return c.widths[0]


def _mixture(c: OpContext) -> int:
    gate, *experts = c.widths
    if gate != len(experts):
        c.refuse(f"the gate has {gate} columns, but there are {len(experts)} experts")
    if len(set(experts)) != 1:
        c.refuse(f"experts must have one width, found {experts}")
    return experts[0]


def _binary(c: OpContext) -> int:
    c.choice("fn", BINARY_FUNCTIONS)
    a, b = c.widths
    if a != b and 1 not in (a, b):
        c.refuse(f"its inputs have {a} and {b} columns; they must be equal, or one of them 1")
    return max(a, b)


def _scale_shift(c: OpContext) -> int:
    c.vector("scale", c.widths[0])
    c.vector("shift", c.widths[0])
    return c.widths[0]


def _layer_norm(c: OpContext) -> int:
    c.number("eps", positive=True)
    return _scale_shift(c)


def _batch_norm(c: OpContext) -> int:
    c.vector("mean", c.widths[0])
    c.vector("var", c.widths[0])
    return _layer_norm(c)


def _l2_normalize(c: OpContext) -> int:
    c.number("eps", positive=True)
    return c.widths[0]


def _reduce(c: OpContext) -> int:
    c.choice("fn", REDUCTIONS)
    outer, axis, inner = c.whole("outer"), c.whole("axis"), c.whole("inner")
    if outer * axis * inner != c.widths[0]:
        c.refuse(f"its input has {c.widths[0]} columns, but outer * axis * inner is {outer * axis * inner}")
    return outer * inner


def _dot(c: OpContext) -> int:
    a, b = c.widths
    if a != b:
        c.refuse(f"its inputs have {a} and {b} columns; they must be equal")
    return 1


def _concat(c: OpContext) -> int:
    return sum(c.widths)


def _slice(c: OpContext) -> int:
    offset, width = c.whole("offset", 0), c.whole("width")
    if offset + width > c.widths[0]:
        c.refuse(f"columns {offset} to {offset + width} do not exist, its input has {c.widths[0]}")
    return width


_ACTIVATION_ATTRS: dict[str, Any] = {"activation": "none", "alpha": 0.0}
_TABLE = {"table": True}
OPS: Mapping[str, Op] = {
    "embedding": Op((1, 1), _embedding, {"padding": None}, _TABLE, reads_ids=True),
    "embedding_bag": Op((1, 1), _embedding_bag, {"mode": "mean", "padding": 0}, _TABLE, reads_ids=True),
    "affine": Op(
        (1, None),
        _affine,
        {"groups": 1, "shared_x": False, "has_x": True, **_ACTIVATION_ATTRS},
        {"w": False, "b": False, "slope": False},
    ),
    "activation": Op((1, 1), _activation, _ACTIVATION_ATTRS, {"slope": False}),
    "softmax": Op((1, 1), _softmax, {"size": None}),
    "mixture": Op((2, None), _mixture),
    "binary": Op((2, 2), _binary, {"fn": None}),
    "scale_shift": Op((1, 1), _scale_shift, {}, {"scale": True, "shift": True}),
    "reduce": Op((1, 1), _reduce, {"fn": None, "outer": 1, "axis": None, "inner": 1}),
    "layer_norm": Op((1, 1), _layer_norm, {"eps": 1e-5}, {"scale": False, "shift": False}),
    "batch_norm": Op((1, 1), _batch_norm, {"eps": 1e-5}, {"scale": False, "shift": False, "mean": True, "var": True}),
    "l2_normalize": Op((1, 1), _l2_normalize, {"eps": 1e-12}),
    "dot": Op((2, 2), _dot),
    "concat": Op((1, None), _concat),
    "slice": Op((1, 1), _slice, {"offset": 0, "width": None}),
}
