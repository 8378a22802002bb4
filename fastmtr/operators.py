"""The operators of a :class:`~fastmtr.graph.Graph`: their inputs, attributes, weights, and what width follows.

What they compute is written in ``docs/bundle.md``. An operator is added here, in :mod:`fastmtr.reference`, in the
kernels and as a row of ``tests/cases.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

__all__ = ["ACTIVATIONS", "BINARY_FUNCTIONS", "NEW_ATTRS", "OPS", "REDUCTIONS", "Op", "OpContext", "plan_version"]

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
    "selu",
    "mish",
    "relu6",
    "hard_sigmoid",
    "hard_swish",
    "softsign",
    "log",
    "sqrt",
    "abs",
)
BINARY_FUNCTIONS = ("add", "sub", "mul", "div", "max", "min")
REDUCTIONS = ("sum", "mean", "max")
GRU_OUTPUTS = ("last", "all")


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

    def flag(self, name: str) -> bool:
        value = self.attr(name)
        if not isinstance(value, bool):
            self.refuse(f"attribute {name!r} must be true or false, found {value!r}")
        return value

    def vector(self, role: str, n: int) -> None:
        """The weight, where given, has n numbers."""
        self.shape(role, (n,))

    def shape(self, role: str, expected: tuple[int, ...]) -> None:
        """The weight, where given, has that shape."""
        found = self.shapes.get(role)
        if found is not None and found != expected:
            self.refuse(f"weight {role!r} must have the shape {expected}, found {found}")

    def columns(self, position: int, expected: int, meaning: str) -> None:
        """An input is as wide as its attributes say."""
        if self.widths[position] != expected:
            self.refuse(f"input {position} has {self.widths[position]} columns, but {meaning} is {expected}")

    def part(self, count: int, meaning: str) -> int:
        """Columns of each of so many equal parts of the first input."""
        if self.widths[0] % count:
            self.refuse(f"its input has {self.widths[0]} columns, which is not a multiple of {meaning} {count}")
        return self.widths[0] // count

    def padding_id(self) -> None:
        value = self.attr("padding")
        if type(value) is not int or not 0 <= value < 2**31:
            self.refuse(f"attribute 'padding' must be an id (a whole number from 0), found {value!r}")

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
    ids_at: int | None = None  # which input holds ids


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
    groups, steps = c.whole("groups"), c.whole("steps")
    has_x, shared_x = c.flag("has_x"), c.flag("shared_x")
    if has_x != ("w" in c.shapes):
        c.refuse("weight 'w' belongs to x: give both or neither (attribute 'has_x')")
    addends = c.widths[1:] if has_x else c.widths
    if has_x:
        shape = c.shapes["w"]
        if 0 in shape or (len(shape), groups) not in ((2, 1), (3, groups)) or (len(shape) == 3 and shape[0] != groups):
            also = " or [n, k]" if groups == 1 else ""
            c.refuse(f"weight 'w' must have the shape [{groups}, n, k]{also}, found {shape}")
        n, k = shape[-2:]
        expected = (k if shared_x else groups * k) * steps
        if c.widths[0] != expected:
            times = f" {steps} times" if steps > 1 else ""
            c.refuse(f"x has {c.widths[0]} columns, but its weight {shape} takes {expected // steps}{times}")
        one = groups * n
    else:
        if groups != 1 or shared_x:
            c.refuse("'groups' and 'shared_x' have no meaning without x")
        if max(addends) % steps:
            c.refuse(f"its widest addend has {max(addends)} columns, which is not a multiple of steps {steps}")
        one = max(addends) // steps
    for i, addend in enumerate(addends):
        if addend not in (one, one * steps):
            also = f", or {one * steps} for all steps together" if steps > 1 else ""
            c.refuse(f"addend {i} has {addend} columns, but {one} are expected{also}")
    c.vector("b", one)
    c.activation(one)
    return one * steps


def _activation(c: OpContext) -> int:
    c.activation(c.widths[0])
    return c.widths[0]


def _softmax(c: OpContext) -> int:
    c.part(c.whole("size"), "size")
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
    return _scaled(c, c.widths[0])


def _scaled(c: OpContext, n: int) -> int:
    c.vector("scale", n)
    c.vector("shift", n)
    return c.widths[0]


def _run(c: OpContext) -> int:
    """How many columns are normalised together."""
    if c.attr("size") is None:
        return c.widths[0]
    size = c.whole("size")
    c.part(size, "size")
    return size


def _layer_norm(c: OpContext) -> int:
    c.number("eps", positive=True)
    return _scaled(c, _run(c))


def _batch_norm(c: OpContext) -> int:
    c.number("eps", positive=True)
    c.vector("mean", c.widths[0])
    c.vector("var", c.widths[0])
    return _scaled(c, c.widths[0])


def _l2_normalize(c: OpContext) -> int:
    c.number("eps", positive=True)
    _run(c)
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


def _repeat(c: OpContext) -> int:
    c.part(c.whole("outer"), "outer")
    return c.widths[0] * c.whole("times")


def _transpose(c: OpContext) -> int:
    c.columns(0, math.prod(c.whole(name) for name in ("outer", "a", "b", "inner")), "outer * a * b * inner")
    return c.widths[0]


def _matmul(c: OpContext) -> int:
    outer, m, k, n = (c.whole(name) for name in ("outer", "m", "k", "n"))
    c.flag("transpose_b")
    c.columns(0, outer * m * k, "outer * m * k")
    c.columns(1, outer * k * n, "outer * k * n")
    return outer * m * n


def _present(c: OpContext) -> int:
    c.padding_id()
    return c.widths[0]


def _mask(c: OpContext) -> int:
    c.padding_id()
    c.number("value")
    c.part(c.widths[1], "the number of ids")
    return c.widths[0]


def _gru(c: OpContext) -> int:
    steps, hidden = c.whole("steps"), c.whole("hidden")
    size = c.part(steps, "steps")
    c.shape("w_x", (3 * hidden, size))
    c.shape("w_h", (3 * hidden, hidden))
    c.vector("b_x", 3 * hidden)
    c.vector("b_h", 3 * hidden)
    if len(c.widths) > 1:
        c.columns(1, steps, "steps")
        c.padding_id()
    elif c.attr("padding") is not None:
        c.refuse(f"attribute 'padding' has no meaning without ids; it must be null, found {c.attr('padding')!r}")
    return hidden if c.choice("output", GRU_OUTPUTS) == "last" else steps * hidden


def _conv1d(c: OpContext) -> int:
    steps, padding = c.whole("steps"), c.whole("padding", 0)
    shape, channels = c.shapes["w"], c.part(steps, "steps")
    if len(shape) != 3 or 0 in shape or shape[1] != channels:
        c.refuse(f"weight 'w' must have the shape [outputs, {channels}, kernel], found {shape}")
    c.vector("b", shape[0])
    reach = c.whole("dilation") * (shape[2] - 1) + 1
    if reach > steps + 2 * padding:
        c.refuse(f"its kernel reaches over {reach} steps, but there are {steps} and {2 * padding} of padding")
    return ((steps + 2 * padding - reach) // c.whole("stride") + 1) * shape[0]


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
    "embedding": Op((1, 1), _embedding, {"padding": None}, _TABLE, ids_at=0),
    "embedding_bag": Op((1, 1), _embedding_bag, {"mode": "mean", "padding": 0}, _TABLE, ids_at=0),
    "affine": Op(
        (1, None),
        _affine,
        {"groups": 1, "shared_x": False, "has_x": True, "steps": 1, **_ACTIVATION_ATTRS},
        {"w": False, "b": False, "slope": False},
    ),
    "activation": Op((1, 1), _activation, _ACTIVATION_ATTRS, {"slope": False}),
    "softmax": Op((1, 1), _softmax, {"size": None}),
    "mixture": Op((2, None), _mixture),
    "binary": Op((2, 2), _binary, {"fn": None}),
    "scale_shift": Op((1, 1), _scale_shift, {}, {"scale": True, "shift": True}),
    "reduce": Op((1, 1), _reduce, {"fn": None, "outer": 1, "axis": None, "inner": 1}),
    "layer_norm": Op((1, 1), _layer_norm, {"eps": 1e-5, "size": None}, {"scale": False, "shift": False}),
    "batch_norm": Op((1, 1), _batch_norm, {"eps": 1e-5}, {"scale": False, "shift": False, "mean": True, "var": True}),
    "l2_normalize": Op((1, 1), _l2_normalize, {"eps": 1e-12, "size": None}),
    "dot": Op((2, 2), _dot),
    "repeat": Op((1, 1), _repeat, {"times": None, "outer": 1}),
    "transpose": Op((1, 1), _transpose, {"outer": 1, "a": None, "b": None, "inner": 1}),
    "matmul": Op((2, 2), _matmul, {"outer": 1, "m": None, "k": None, "n": None, "transpose_b": False}),
    "present": Op((1, 1), _present, {"padding": 0}, ids_at=0),
    "mask": Op((2, 2), _mask, {"padding": 0, "value": 0.0}, ids_at=1),
    "gru": Op(
        (1, 2),
        _gru,
        {"steps": None, "hidden": None, "padding": None, "output": "last"},
        {"w_x": True, "w_h": True, "b_x": False, "b_h": False},
        ids_at=1,
    ),
    "conv1d": Op(
        (1, 1),
        _conv1d,
        {"steps": None, "stride": 1, "padding": 0, "dilation": 1},
        {"w": True, "b": False},
    ),
    "concat": Op((1, None), _concat),
    "slice": Op((1, 1), _slice, {"offset": 0, "width": None}),
}

_NEW_ACTIVATIONS = frozenset(("selu", "mish", "relu6", "hard_sigmoid", "hard_swish", "softsign", "log", "sqrt", "abs"))
_NEW_OPS = frozenset(("repeat", "transpose", "matmul", "present", "mask", "gru", "conv1d"))
NEW_ATTRS = frozenset((("affine", "steps"), ("layer_norm", "size"), ("l2_normalize", "size")))
"""Attributes of operators that were there without them: plans leave them out where they say nothing."""


def plan_version(op: str, attrs: Mapping[str, Any]) -> int:
    """The first version of ``plan.json`` whose engines know this step.

    Parameters
    ----------
    op : str
    attrs : mapping
        Those that the plan has: ``steps`` and ``size`` of operators that were there without them are left out where
        they say nothing.
    """
    new = op in _NEW_OPS or attrs.get("activation") in _NEW_ACTIVATIONS or any((op, a) in NEW_ATTRS for a in attrs)
    return 2 if new else 1
