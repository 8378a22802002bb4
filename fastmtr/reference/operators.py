"""The operators in plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import ConversionError

__all__ = ["Array", "apply"]

Array = NDArray[Any]


def apply(op: str, inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    """One operator on matrices whose row counts are N or 1 (a single row stands for all).

    Parameters
    ----------
    op : str
    inputs : sequence of ndarray, shape (N or 1, width)
    weights : mapping of role to ndarray
    attr : callable
        Gives the attribute of that name.

    Returns
    -------
    ndarray, shape (N or 1, width)
    """
    if op not in _FUNCTIONS:
        raise ConversionError(f"the reference has no operator {op!r}")
    return _FUNCTIONS[op](inputs, weights, attr)


# Klambauer et al., "Self-Normalizing Neural Networks" (2017).
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _activate(x: Array, fn: str, alpha: float, slope: Array | None) -> Array:
    # The logarithm of 0 is -inf; logarithm and root of less are NaN.
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        y = _activation_functions(x, fn, alpha, slope)
    return np.asarray(y, dtype=x.dtype)


def _activation_functions(x: Array, fn: str, alpha: float, slope: Array | None) -> Any:
    match fn:
        case "none":
            return x
        case "relu":
            return np.maximum(x, 0)
        case "leaky_relu":
            return np.where(x > 0, x, alpha * x)
        case "prelu":
            assert slope is not None
            return np.where(x > 0, x, slope * x)
        case "elu":
            return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
        case "sigmoid":
            return _sigmoid(x)
        case "tanh":
            return np.tanh(x)
        case "silu":
            return x * _sigmoid(x)
        case "gelu":
            return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "softplus":
            return np.logaddexp(x, 0)
        case "exp":
            return np.exp(x)
        case "selu":
            return _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0)))
        case "mish":
            return x * np.tanh(np.logaddexp(x, 0))
        case "relu6":
            return np.minimum(np.maximum(x, 0), 6)
        case "hard_sigmoid":
            return np.minimum(np.maximum(x + 3, 0), 6) / 6
        case "hard_swish":
            return x * np.minimum(np.maximum(x + 3, 0), 6) / 6
        case "softsign":
            return x / (1 + np.abs(x))
        case "log":
            return np.log(x)
        case "sqrt":
            return np.sqrt(x)
        case "abs":
            return np.abs(x)
    raise ConversionError(f"the reference has no activation {fn!r}")


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)))


def _embedding(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    n, ids = inputs[0].shape
    return _lookup(inputs[0], weights["table"], attr("padding"))[0].reshape(n, ids * weights["table"].shape[1])


def _embedding_bag(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    rows, there = _lookup(inputs[0], weights["table"], attr("padding"))
    count = np.maximum(there.sum(axis=1, dtype=rows.dtype), 1)
    if attr("mode") == "max":
        best = np.where(there, rows, -np.inf).max(axis=1)
        return np.asarray(np.where(there.any(axis=1), best, 0), dtype=rows.dtype)
    total = rows.sum(axis=1)
    return np.asarray(total if attr("mode") == "sum" else total / count)


def _lookup(ids: Array, table: Array, padding: int | None) -> tuple[Array, NDArray[np.bool_]]:
    """Rows [N, L, D], zero for padding, and where they are not padding [N, L, 1]."""
    if ids.size and ids.min() < 0:
        raise IndexError(f"{ids.min()} is negative")
    there = np.ones((*ids.shape, 1), dtype=bool) if padding is None else (ids != padding)[..., None]
    return np.where(there, table[ids], 0).astype(table.dtype), there


def _affine(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    addends, steps = list(inputs), attr("steps")
    total: Array | None = None
    if "w" in weights:
        x = addends.pop(0)
        groups = attr("groups")
        w = weights["w"].reshape(groups, *weights["w"].shape[-2:])
        k = w.shape[2]
        x = x.reshape(len(x), steps, x.shape[1] // steps)
        parts = [(x if attr("shared_x") else x[:, :, g * k : (g + 1) * k]) @ w[g].T for g in range(groups)]
        total = np.concatenate(parts, axis=2)
        total = total.reshape(len(x), steps * total.shape[2])
    width = max(v.shape[-1] for v in ([] if total is None else [total]) + addends)

    def for_each_step(v: Array) -> Array:
        return np.tile(v, steps) if v.shape[-1] < width else v

    if "b" in weights:
        b = for_each_step(weights["b"])
        total = b[None] if total is None else total + b
    for addend in map(for_each_step, addends):
        total = addend if total is None else total + addend
    assert total is not None
    slope = for_each_step(weights["slope"]) if "slope" in weights else None
    return _activate(total, attr("activation"), attr("alpha"), slope)


def _runs(x: Array, size: int) -> Array:
    """[N, width] as [N, width / size, size]."""
    return x.reshape(len(x), x.shape[1] // size, size)


def _softmax(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = _runs(inputs[0], attr("size"))
    e = np.exp(x - x.max(axis=2, keepdims=True))
    return np.asarray((e / e.sum(axis=2, keepdims=True)).reshape(inputs[0].shape))


def _mixture(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    gate, *experts = inputs
    total = gate[:, :1] * experts[0]
    for e, expert in enumerate(experts[1:], start=1):
        total = total + gate[:, e : e + 1] * expert
    return np.asarray(total)


_BINARY: Mapping[str, Callable[[Array, Array], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}
_REDUCTIONS: Mapping[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max}


def _binary(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_BINARY[attr("fn")](inputs[0], inputs[1]))


def _reduce(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    outer, inner = attr("outer"), attr("inner")
    x = inputs[0].reshape(len(inputs[0]), outer, attr("axis"), inner)
    return np.asarray(_REDUCTIONS[attr("fn")](x, axis=2).reshape(len(x), outer * inner))


def _scale_shift(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return np.asarray(inputs[0] * weights.get("scale", 1) + weights.get("shift", 0))


def _layer_norm(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = _runs(inputs[0], attr("size") or inputs[0].shape[1])
    x = x - x.mean(axis=2, keepdims=True)
    normal = x / np.sqrt((x * x).mean(axis=2, keepdims=True) + attr("eps"))
    return _scale_shift([normal.astype(x.dtype)], weights, attr).reshape(inputs[0].shape)


def _batch_norm(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    normal = (inputs[0] - weights["mean"]) / np.sqrt(weights["var"] + attr("eps"))
    return _scale_shift([normal.astype(inputs[0].dtype)], weights, attr)


def _l2_normalize(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = _runs(inputs[0], attr("size") or inputs[0].shape[1])
    norm = np.sqrt((x * x).sum(axis=2, keepdims=True))
    return np.asarray(x / np.maximum(norm, attr("eps")), dtype=x.dtype).reshape(inputs[0].shape)


def _dot(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return np.asarray((inputs[0] * inputs[1]).sum(axis=1, keepdims=True))


def _concat(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    n = np.broadcast_shapes(*((len(x),) for x in inputs))[0]
    return np.concatenate([np.broadcast_to(x, (n, x.shape[1])) for x in inputs], axis=1)


def _slice(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return inputs[0][:, attr("offset") : attr("offset") + attr("width")]


def _repeat(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = inputs[0].reshape(len(inputs[0]), attr("outer"), 1, inputs[0].shape[1] // attr("outer"))
    return np.repeat(x, attr("times"), axis=2).reshape(len(x), inputs[0].shape[1] * attr("times"))


def _transpose(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = inputs[0].reshape(len(inputs[0]), attr("outer"), attr("a"), attr("b"), attr("inner"))
    return x.swapaxes(2, 3).reshape(inputs[0].shape)


def _matmul(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    outer, m, k, n = attr("outer"), attr("m"), attr("k"), attr("n")
    a = inputs[0].reshape(len(inputs[0]), outer, m, k)
    b = inputs[1].reshape(len(inputs[1]), outer, *((n, k) if attr("transpose_b") else (k, n)))
    product = a @ (b.swapaxes(2, 3) if attr("transpose_b") else b)
    return np.asarray(product.reshape(len(product), outer * m * n))


def _present(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return np.asarray(inputs[0] != attr("padding"), dtype=np.float64)


def _mask(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x, ids = inputs
    blocks = x.reshape(len(x), ids.shape[1], x.shape[1] // ids.shape[1])
    masked = np.where((ids == attr("padding"))[:, :, None], x.dtype.type(attr("value")), blocks)
    return masked.reshape(len(masked), x.shape[1])


def _gru(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    """Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), in torch's form."""
    steps, hidden = attr("steps"), attr("hidden")
    x = _runs(inputs[0], inputs[0].shape[1] // steps)
    there = inputs[1] != attr("padding") if len(inputs) > 1 else np.ones((1, steps), dtype=bool)
    state = np.zeros((*np.broadcast_shapes((len(x),), (len(there),)), hidden), dtype=x.dtype)
    states = []
    for t in range(steps):
        of_x = x[:, t] @ weights["w_x"].T + weights.get("b_x", 0)
        of_h = state @ weights["w_h"].T + weights.get("b_h", 0)
        r, z = (_sigmoid(of_x[:, at : at + hidden] + of_h[:, at : at + hidden]) for at in (0, hidden))
        new = np.tanh(of_x[:, 2 * hidden :] + r * of_h[:, 2 * hidden :])
        state = np.where(there[:, t, None], (1 - z) * new + z * state, state)
        states.append(np.where(there[:, t, None], state, 0))
    return np.asarray(state if attr("output") == "last" else np.concatenate(states, axis=1), dtype=x.dtype)


def _conv1d(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    steps, stride, dilation, zeros = attr("steps"), attr("stride"), attr("dilation"), attr("padding")
    w = weights["w"]
    x = np.pad(_runs(inputs[0], inputs[0].shape[1] // steps), ((0, 0), (zeros, zeros), (0, 0)))
    last = steps + 2 * zeros - dilation * (w.shape[2] - 1)
    y = sum(x[:, at * dilation : at * dilation + last : stride] @ w[:, :, at].T for at in range(w.shape[2]))
    y = np.asarray(y + weights.get("b", 0), dtype=x.dtype)
    return y.reshape(len(x), y.shape[1] * y.shape[2])


def _activation(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return _activate(inputs[0], attr("activation"), attr("alpha"), weights.get("slope"))


_FUNCTIONS: Mapping[str, Callable[[Sequence[Array], Mapping[str, Array], Callable[[str], Any]], Array]] = {
    "activation": _activation,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "binary": _binary,
    "concat": _concat,
    "conv1d": _conv1d,
    "dot": _dot,
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    "gru": _gru,
    "l2_normalize": _l2_normalize,
    "layer_norm": _layer_norm,
    "mask": _mask,
    "matmul": _matmul,
    "mixture": _mixture,
    "present": _present,
    "reduce": _reduce,
    "repeat": _repeat,
    "scale_shift": _scale_shift,
    "slice": _slice,
    "softmax": _softmax,
    "transpose": _transpose,
}
