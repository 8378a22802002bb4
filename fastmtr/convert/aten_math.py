"""Operators of PyTorch that work element by element or along dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from fastmtr.convert import lookups
from fastmtr.convert.aten import Call, Operand, handles, is_value, numpy
from fastmtr.convert.products import weighted
from fastmtr.convert.tensors import Value
from fastmtr.convert.values import Raw, Rows
from fastmtr.errors import ConversionError

__all__: list[str] = []


# ---- one operand -----------------------------------------------------------------------------------------------------

for _name, _fn in {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "mish": "mish",
    "selu": "selu",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "softsign": "softsign",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "abs": "abs",
}.items():
    handles(_name)(lambda c, x, fn=_fn: c.t.unary(x, fn))


@handles("leaky_relu")
def _leaky_relu(c: Call, x: Value, slope: float = 0.01) -> Rows:
    return c.t.unary(x, "leaky_relu", alpha=slope)


@handles("elu")
def _elu(c: Call, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Rows:
    if scale != 1 or input_scale != 1:
        raise ConversionError(f"an elu scaled by {scale} and {input_scale} has no counterpart")
    return c.t.unary(x, "elu", alpha=alpha)


@handles("gelu")
def _gelu(c: Call, x: Value, *, approximate: str = "none") -> Rows:
    return c.t.unary(x, "gelu" if approximate == "none" else "gelu_tanh")


@handles("softplus")
def _softplus(c: Call, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Rows:
    return c.t.scale(c.t.unary(c.t.scale(c.t.rows(x), beta), "softplus"), 1 / beta)


@handles("prelu", "_prelu_kernel")
def _prelu(c: Call, x: Value, slope: torch.Tensor) -> Rows:
    x = c.t.rows(x)
    slopes = numpy(slope).reshape(-1)
    if len(slopes) > 1:
        axis = x.shape.axis(1)
        slopes = slopes.reshape([-1 if a == axis else 1 for a in range(len(x.shape.inner))])
    return c.t.unary(x, "prelu", slope=slopes)


@handles("glu")
def _glu(c: Call, x: Value, dim: int = -1) -> Rows:
    axis = x.shape.axis(dim)
    half = x.shape.inner[axis] // 2
    gate = c.t.unary(c.t.slice(x, axis, half, half), "sigmoid")
    return c.t.binary(c.t.slice(x, axis, 0, half), gate, "mul")


@handles("neg", "negative")
def _neg(c: Call, x: Value) -> Rows:
    return c.t.scale(c.t.rows(x), -1)


@handles("square")
def _square(c: Call, x: Value) -> Rows:
    return c.t.binary(x, x, "mul")


@handles("rsqrt")
def _rsqrt(c: Call, x: Value) -> Rows:
    return _divided(c, 1.0, c.t.unary(x, "sqrt"))


@handles("reciprocal")
def _reciprocal(c: Call, x: Value) -> Rows:
    return _divided(c, 1.0, x)


@handles("log1p")
def _log1p(c: Call, x: Value) -> Rows:
    return c.t.unary(c.t.shift(c.t.rows(x), 1), "log")


@handles("expm1")
def _expm1(c: Call, x: Value) -> Rows:
    return c.t.shift(c.t.unary(x, "exp"), -1)


@handles("log_sigmoid", "logsigmoid")
def _log_sigmoid(c: Call, x: Value) -> Rows:
    return c.t.scale(c.t.unary(c.t.scale(c.t.rows(x), -1), "softplus"), -1)


@handles("pow")
def _pow(c: Call, x: Operand, exponent: Operand) -> Rows:
    if not isinstance(x, Rows | Raw) or is_value(exponent):
        raise ConversionError("a computed exponent has no counterpart")
    power = float(exponent)  # type: ignore[arg-type]
    rows = c.t.rows(x)
    whole = int(power)
    if power == whole and 1 <= whole <= 8:
        made = rows
        for _ in range(whole - 1):
            made = c.t.binary(made, rows, "mul")
        return made
    if power in (0.5, -0.5):
        return c.t.unary(rows, "sqrt") if power > 0 else _rsqrt(c, rows)
    if power in (-1.0, -2.0):
        return _divided(c, 1.0, rows if power == -1 else c.t.binary(rows, rows, "mul"))
    raise ConversionError(f"the power {power} has no counterpart; powers 1 to 8, 0.5, -0.5, -1 and -2 have")


# ---- two operands ----------------------------------------------------------------------------------------------------


@handles("add")
def _add(c: Call, a: Operand, b: Operand, *, alpha: float = 1) -> Value:
    x, y, swapped = c.pair(a, b)
    if isinstance(x, Raw) and c.whole and alpha == 1 and not is_value(y):
        added = c.array(y, x.shape)
        if np.broadcast_shapes(added.shape, x.shape.inner) == x.shape.inner:  # maybe rows further down in a table
            before = 0 if x.offsets is None else x.offsets
            return replace(x, offsets=np.broadcast_to(before + added.astype(np.int64), x.shape.inner))
    rows = c.t.rows(x)
    if is_value(y):
        return c.t.binary(rows, y if alpha == 1 else c.t.scale(c.t.rows(y), alpha), "add")  # type: ignore[arg-type]
    if swapped:
        return c.t.shift(c.t.scale(rows, alpha), c.array(y, x.shape))
    return c.t.shift(rows, alpha * c.array(y, x.shape))


@handles("sub", "subtract")
def _sub(c: Call, a: Operand, b: Operand, *, alpha: float = 1) -> Value:
    if is_value(a) and is_value(b) and alpha == 1:
        return c.t.binary(a, b, "sub")  # type: ignore[arg-type]
    return _add(c, a, b, alpha=-alpha)


@handles("rsub")
def _rsub(c: Call, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _sub(c, b, a, alpha=alpha)


@handles("mul", "multiply")
def _mul(c: Call, a: Operand, b: Operand) -> Rows:
    x, y, _ = c.pair(a, b)
    if is_value(y):
        return c.t.binary(x, y, "mul")  # type: ignore[arg-type]
    return c.t.scale(c.t.rows(x), c.array(y, x.shape))


@handles("div", "divide", "true_divide")
def _div(c: Call, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Rows:
    if rounding_mode is not None:
        raise ConversionError(f"a division rounded by {rounding_mode!r} jumps, so it has no counterpart")
    return _divided(c, a, b)


def _divided(c: Call, a: Operand, b: Operand) -> Rows:
    x, y, swapped = c.pair(a, b)
    if isinstance(y, Rows | Raw):
        return _quotient(c, x, y) or c.t.binary(x, y, "div")
    if not swapped:
        return c.t.scale(c.t.rows(x), 1 / c.array(y, x.shape))
    rows = c.t.rows(x)
    return c.t.binary(c.t.constant(rows, c.array(y, x.shape)), rows, "div")


def _quotient(c: Call, x: Value, y: Value) -> Rows | None:
    """A mean of embeddings, or ``x / max(norm of x, eps)`` as torch's ``normalize`` writes it; None for another one."""
    if not isinstance(x, Rows) or not isinstance(y, Rows):
        return None
    mean = lookups.averaged(c.t, x, y)
    if mean is not None or y.name not in c.t.bounded:
        return mean
    length, eps = c.t.bounded[y.name]
    source, axes = c.t.norms.get(length, (None, ()))
    if source is None or (source.name, source.shape, source.order) != (x.name, x.shape, x.order) or eps <= 0:
        return None
    _, divisor = c.t.together(x, y)
    along = {a for a, place in enumerate(divisor.order) if place is None}
    return c.t.l2_normalize(x, axes, eps=eps) if set(axes) <= along else None


@handles("maximum", "max.other")
def _maximum(c: Call, a: Operand, b: Operand) -> Rows:
    return _extreme(c, a, b, "max")


@handles("minimum", "min.other")
def _minimum(c: Call, a: Operand, b: Operand) -> Rows:
    return _extreme(c, a, b, "min")


def _extreme(c: Call, a: Operand, b: Operand, fn: Literal["max", "min"]) -> Rows:
    x, y, _ = c.pair(a, b)
    if is_value(y):
        return c.t.binary(x, y, fn)  # type: ignore[arg-type]
    rows, bound = c.t.rows(x), c.array(y, x.shape)
    if fn == "max" and not np.any(bound):
        return c.t.unary(rows, "relu")
    made = c.t.binary(rows, c.t.constant(rows, bound), fn)
    if fn == "max" and np.size(bound) == 1:
        c.t.bounded[made.name] = (rows.name, float(np.reshape(bound, ())))
    return made


@handles("clamp", "clip", "clamp_min")
def _clamp(c: Call, x: Value, low: Operand | None = None, high: Operand | None = None) -> Rows:
    made = c.t.rows(x)
    if low is not None and not _is(low, -math.inf):
        made = _extreme(c, made, low, "max")
    if high is not None and not _is(high, math.inf):
        made = _extreme(c, made, high, "min")
    return made


def _is(x: Operand, value: float) -> bool:
    return isinstance(x, float | int) and x == value


handles("clamp_max")(lambda c, x, high: _clamp(c, x, None, high))
handles("hardtanh")(lambda c, x, low=-1.0, high=1.0: _clamp(c, x, low, high))


# ---- comparisons -----------------------------------------------------------------------------------------------------


def _compares(kind: lookups.Comparison, mirrored: lookups.Comparison) -> Callable[..., Any]:
    def handler(c: Call, a: Operand, b: Operand) -> Rows | torch.Tensor:
        x, y, swapped = c.pair(a, b)
        other = y if isinstance(y, Rows | Raw) else c.array(y, x.shape)
        found = lookups.compare(c.t, x, mirrored if swapped else kind, other, whole=c.whole, boolean=c.boolean)
        return torch.full((1,) * x.shape.rank, found) if isinstance(found, bool) else found

    return handler


_MIRRORED: dict[lookups.Comparison, lookups.Comparison] = {
    "eq": "eq",
    "ne": "ne",
    "lt": "gt",
    "le": "ge",
    "gt": "lt",
    "ge": "le",
}
for _kind, _mirrored in _MIRRORED.items():
    handles(_kind)(_compares(_kind, _mirrored))


@handles("logical_not", "bitwise_not")
def _not(c: Call, mask: Rows) -> Rows:
    return lookups.negate(c.t, mask)


@handles("logical_and", "bitwise_and", "__and__")
def _and(c: Call, a: Operand, b: Operand) -> Rows:
    x, y, _ = c.pair(a, b)
    mask = c.t.rows(x)
    return lookups.both(c.t, mask, y) if isinstance(y, Rows) else c.t.scale(mask, c.array(y, x.shape))


@handles("logical_or", "bitwise_or", "__or__")
def _or(c: Call, a: Operand, b: Operand) -> Rows:
    x, y, _ = c.pair(a, b)
    mask = c.t.rows(x)
    if isinstance(y, Rows):
        return lookups.either(c.t, mask, y)
    return lookups.negate(c.t, c.t.scale(lookups.negate(c.t, mask), 1 - c.array(y, x.shape)))


@handles("where")
def _where(c: Call, mask: Operand, a: Operand, b: Operand) -> Value:
    if isinstance(mask, torch.Tensor):
        return _where_constant(c, mask, a, b)
    assert isinstance(mask, Rows)
    one, other = (x if isinstance(x, Rows | Raw) else c.array(x, mask.shape) for x in (a, b))
    return lookups.where(c.t, mask, one, other)


def _where_constant(c: Call, mask: torch.Tensor, a: Operand, b: Operand) -> Value:
    for chosen, x in ((bool(mask.all()), a), (not mask.any(), b)):
        if chosen and isinstance(x, Rows | Raw):
            return x
    parts = [
        _mul(c, x, m) if isinstance(x, Rows | Raw) else m * x for x, m in ((a, mask.double()), (b, 1 - mask.double()))
    ]
    return _add(c, *parts)


@handles("masked_fill")
def _masked_fill(c: Call, x: Operand, mask: Operand, value: Operand) -> Value:
    filled = float(value)  # type: ignore[arg-type]
    if isinstance(mask, torch.Tensor):
        m = mask.double()
        kept = _mul(c, x, 1 - m)
        return _add(c, kept, m * max(filled, lookups.MINUS_INFINITY))
    assert isinstance(mask, Rows)
    given = x if isinstance(x, Rows | Raw) else c.array(x, mask.shape)
    return lookups.where(c.t, lookups.negate(c.t, mask), given, np.asarray(filled))


# ---- along dimensions ------------------------------------------------------------------------------------------------


def _axes(x: Value, dims: int | Sequence[int] | None) -> list[int]:
    given = range(x.shape.rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [x.shape.axis(d) for d in given]


@handles("sum", "nansum")
def _sum(c: Call, x: Value, dims: int | Sequence[int] | None = None, keep: bool = False, **kwargs: Any) -> Rows:
    return c.t.reduce(x, "sum", _axes(x, dims), keep=keep)


@handles("mean")
def _mean(c: Call, x: Value, dims: int | Sequence[int] | None = None, keep: bool = False, **kwargs: Any) -> Rows:
    return c.t.reduce(x, "mean", _axes(x, dims), keep=keep)


@handles("amax")
def _amax(c: Call, x: Value, dims: int | Sequence[int] | None = None, keep: bool = False) -> Rows:
    return c.t.reduce(x, "max", _axes(x, dims), keep=keep)


@handles("amin")
def _amin(c: Call, x: Value, dims: int | Sequence[int] | None = None, keep: bool = False) -> Rows:
    return _neg(c, c.t.reduce(_neg(c, x), "max", _axes(x, dims), keep=keep))


@handles("max.dim")
def _max(c: Call, x: Value, dim: int, keep: bool = False) -> tuple[Rows, None]:
    return _amax(c, x, dim, keep), None


@handles("min.dim")
def _min(c: Call, x: Value, dim: int, keep: bool = False) -> tuple[Rows, None]:
    return _amin(c, x, dim, keep), None


@handles("prod.dim_int")
def _prod(c: Call, x: Value, dim: int, keep: bool = False, **kwargs: Any) -> Value:
    axis = x.shape.axis(dim)
    made: Value = c.t.slice(x, axis, 0, 1)
    for i in range(1, x.shape.inner[axis]):
        made = c.t.binary(made, c.t.slice(x, axis, i, 1), "mul")
    return made if keep else c.t.squeeze(made, axis)


@handles("var.correction", "var.dim")
def _var(
    c: Call,
    x: Value,
    dims: int | Sequence[int] | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Rows:
    axes = _axes(x, dims)
    away = c.t.binary(x, c.t.reduce(x, "mean", axes, keep=True), "sub")
    n = math.prod(x.shape.inner[a] for a in axes)
    less = float(unbiased) if correction is None else correction
    squares = c.t.reduce(c.t.binary(away, away, "mul"), "mean", axes, keep=keepdim)
    return c.t.scale(squares, n / (n - less))


@handles("std.correction", "std.dim")
def _std(c: Call, x: Value, *args: Any, **kwargs: Any) -> Rows:
    return c.t.unary(_var(c, x, *args, **kwargs), "sqrt")


@handles("cumsum")
def _cumsum(c: Call, x: Value, dim: int, **kwargs: Any) -> Rows:
    axis = x.shape.axis(dim)
    labels = [f"a{i}" for i in range(len(x.shape.inner))]
    out = [*labels[:axis], "out", *labels[axis + 1 :]]
    size = x.shape.inner[axis]
    return weighted(c.t, c.t.rows(x), labels, np.tri(size), ["out", labels[axis]], out, shape=x.shape, name="cumsum")


@handles("softmax", "_softmax")
def _softmax(c: Call, x: Value, dim: int, *args: Any, **kwargs: Any) -> Rows:
    return c.t.softmax(x, x.shape.axis(dim))


@handles("log_softmax", "_log_softmax")
def _log_softmax(c: Call, x: Value, dim: int, *args: Any, **kwargs: Any) -> Rows:
    return c.t.binary(x, _logsumexp(c, x, [dim], True), "sub")


@handles("logsumexp")
def _logsumexp(c: Call, x: Value, dims: Sequence[int], keep: bool = False) -> Rows:
    axes = _axes(x, dims)
    most = c.t.reduce(x, "max", axes, keep=True)
    total = c.t.reduce(c.t.unary(c.t.binary(x, most, "sub"), "exp"), "sum", axes, keep=True)
    made = c.t.binary(most, c.t.unary(total, "log"), "add")
    return made if keep else c.t.dropped(made, axes)


@handles("linalg_vector_norm", "norm.ScalarOpt_dim")
def _norm(
    c: Call, x: Value, order: float = 2, dims: int | Sequence[int] | None = None, keep: bool = False, **kwargs: Any
) -> Rows:
    axes = _axes(x, dims)
    if order == 2:
        return c.t.norm(x, axes, keep=keep)
    if order == 1:
        return c.t.reduce(c.t.unary(x, "abs"), "sum", axes, keep=keep)
    raise ConversionError(f"a norm of order {order} has no counterpart; orders 1 and 2 have")
