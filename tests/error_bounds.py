"""How far a graph's outputs, computed in float32, may be from the float64 reference.

Running error analysis: each value is carried with a bound of the difference between what float32 makes of it and what
it is, and every operator says what becomes of the bounds of its inputs and what its own rounding adds. The compiler may
do sums in another order, apart for each domain, or with weights multiplied together beforehand; so a sum also knows the
sum of the absolute values of all its terms, seen through sums of sums, and their number: whatever the order, n terms
make an error of at most ``gamma(n)`` times that (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
sections 3.1 and 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import Domain, Graph, Node, Packed
from fastmtr.reference import apply, evaluate_values

__all__ = ["error_bounds", "gamma"]

Array = NDArray[np.float64]

UNIT = 2.0**-24
TINY = 2.0**-126  # what is lost below the normal numbers
# A weight is rounded anew each time that passes combine it: scales before and after, split, look-up. Bias, division by
# a count and the sum over three domains are operations, too.
EXTRA = 10
# Errors of the engine's functions, relative to the result (csrc/cpu/vec_math.h: below 3 ulp; products of them and x
# below 6, and an ulp is at most two units), and of gelu relative to x.
FUNCTION, GELU = 12 * UNIT, 1.5e-7

# How much faster than its argument a function that is not monotone may grow.
SLOPES = {"silu": 1.1, "mish": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "hard_swish": 1.5, "abs": 1.0}
PIECEWISE_LINEAR = ("relu", "relu6", "abs", "leaky_relu", "prelu")  # one rounding, and one of alpha


def gamma(n: Any) -> Any:
    """The relative error of n roundings."""
    return n * UNIT / (1 - n * UNIT)


@dataclass(frozen=True)
class Near:
    """A value of float32, as it ought to be, and how far from that it may be.

    Parameters
    ----------
    value : ndarray
    error : ndarray
    terms : ndarray
        The sum of the absolute values of the terms that the value is a weighted sum of.
    count : ndarray
        How many.
    """

    value: Array
    error: Array
    terms: Array
    count: Array

    @classmethod
    def computed(cls, value: Array, error: Array) -> Near:
        """The result of something that is not a sum."""
        return cls(value, error + TINY, np.abs(value) + error, np.ones_like(value))

    def map(self, change: Callable[[Array], Array]) -> Near:
        """The same rearrangement of all four."""
        return Near(*(change(v) for v in (self.value, self.error, self.terms, self.count)))

    def rounded(self, n: int = 1) -> Near:
        """With the error of n operations, and no longer seen as a sum."""
        return Near.computed(self.value, self.error + gamma(n) * (np.abs(self.value) + self.error))

    def __add__(self, other: Near) -> Near:
        return _sum(
            self.value + other.value, self.error + other.error, self.terms + other.terms, self.count + other.count
        )

    def __sub__(self, other: Near) -> Near:
        return self + Near(-other.value, other.error, other.terms, other.count)

    def __mul__(self, other: Near) -> Near:
        error = np.abs(self.value) * other.error + self.error * np.abs(other.value) + self.error * other.error
        return Near.computed(self.value * other.value, error).rounded()

    def __truediv__(self, other: Near) -> Near:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.value / other.value
            error = (self.error + np.abs(value) * other.error) / np.maximum(np.abs(other.value) - other.error, 0)
        return Near.computed(value, error).rounded()

    def sum(self, axis: int, *, divisor: int = 1) -> Near:
        total = [v.sum(axis=axis, keepdims=True) for v in (self.value, self.error, self.terms)]
        return _sum(*(v / divisor for v in total), self.count.sum(axis=axis, keepdims=True))

    def max(self, axis: int) -> Near:
        return Near.computed(self.value.max(axis=axis, keepdims=True), self.error.max(axis=axis, keepdims=True))

    def scaled(self, scale: Array) -> Near:
        """Times weights."""
        size = np.abs(scale)
        return _sum(self.value * scale, self.error * size, self.terms * size, self.count + 0 * size)

    def product(self, w: Array) -> Near:
        """``x @ w.T`` of the last axis."""
        size = np.abs(w).T
        used = np.ones_like(size)
        return _sum(self.value @ w.T, self.error @ size, self.terms @ size, self.count @ used)

    def function(self, f: Callable[[Array], Array], *, slope: Any = None, own: Any = FUNCTION) -> Near:
        """A function of each element: monotone, or no steeper than ``slope``; ``own`` is its own relative error."""
        with np.errstate(all="ignore"):
            value = f(self.value)
            if slope is None:
                low, high = f(self.value - self.error), f(self.value + self.error)
                error = np.maximum(np.abs(high - value), np.abs(value - low))
            else:
                error = self.error * slope
        return Near.computed(value, error + own * (np.abs(value) + error))


def _sum(value: Array, error: Array, terms: Array, count: Array) -> Near:
    """A sum: what its inputs bring, and its own rounding."""
    return Near(value, error + gamma(count + EXTRA) * (terms + error) + TINY, terms, count)


def _exact(value: Array) -> Near:
    return Near(value, np.zeros_like(value), np.abs(value), np.ones_like(value))


def error_bounds(graph: Graph, packed: Mapping[Domain, Packed]) -> dict[str, Array]:
    """For each output of :func:`fastmtr.reference.evaluate`, how far float32 may be from it.

    Parameters
    ----------
    graph : Graph
    packed : mapping of domain to Packed

    Returns
    -------
    dict of str to ndarray
        Of the shapes of the outputs.
    """
    known = evaluate_values(graph, packed)
    near: dict[str, Near] = {}
    for i in graph.inputs:
        near[i.name] = _exact(known[i.name].astype(np.float64))
    for node in graph.nodes:
        inputs = [near[name] for name in node.inputs]
        weights = {role: graph.weights[name].astype(np.float64) for role, name in node.weights.items()}
        near[node.output] = made = _bound(node, inputs, [known[name] for name in node.inputs], weights)
        np.testing.assert_allclose(
            made.value, known[node.output], rtol=1e-9, atol=1e-9 * (1 + made.terms.max(initial=0))
        )
    n = np.broadcast_shapes(*((p.n_rows,) for p in packed.values()))[0]
    bounds = {}
    for o in graph.outputs:
        error = near[o.value].error
        bounds[o.name] = np.broadcast_to(error, (n, 1)) if o.role == "task" else error
    return bounds


def _bound(node: Node, x: list[Near], raw: list[Any], weights: Mapping[str, Array]) -> Near:
    """One operator; ``raw`` are the values of the inputs, for ids."""
    attr = node.attr
    match node.op:
        case "embedding":
            return _exact(apply(node.op, raw, weights, attr))
        case "embedding_bag":
            return _bag(raw[0], weights["table"], attr("mode"), attr("padding"))
        case "present":
            return _exact(apply(node.op, raw, weights, attr))
        case "concat":
            rows = np.broadcast_shapes(*((len(v.value),) for v in x))[0]
            parts = [v.map(lambda a: np.broadcast_to(a, (rows, a.shape[1]))) for v in x]
            return Near(*(np.concatenate(columns, axis=1) for columns in zip(*map(_fields, parts), strict=True)))
        case "slice" | "repeat" | "transpose":
            return x[0].map(lambda a: apply(node.op, [a], {}, attr))
        case "mask":
            masked = x[0].map(
                lambda a: apply(node.op, [a, raw[1]], {}, lambda name: 0 if name == "value" else attr(name))
            )
            value = apply(node.op, [x[0].value, raw[1]], {}, attr)
            return Near(value, masked.error, np.maximum(masked.terms, np.abs(value)), np.maximum(masked.count, 1))
        case "affine":
            return _affine(node, x, weights)
        case "activation":
            return _activation(x[0], attr("activation"), attr("alpha"), weights.get("slope"))
        case "softmax":
            return _flat(_softmax(_runs(x[0], attr("size"))))
        case "mixture":
            gate, *experts = x
            total = gate.map(lambda a: a[:, :1]) * experts[0]
            for e, expert in enumerate(experts[1:], start=1):
                total = total + gate.map(lambda a, e=e: a[:, e : e + 1]) * expert
            return total
        case "binary":
            return _binary(attr("fn"), *x)
        case "scale_shift":
            return x[0].scaled(weights["scale"]) + _exact(weights["shift"][None])
        case "batch_norm":
            scale = weights.get("scale", 1) / np.sqrt(weights["var"] + attr("eps"))
            return x[0].scaled(scale) + _exact((weights.get("shift", 0) - weights["mean"] * scale)[None])
        case "reduce":
            outer, axis, inner = attr("outer"), attr("axis"), attr("inner")
            v = x[0].map(lambda a: a.reshape(len(a), outer, axis, inner))
            fn = attr("fn")
            return _flat(v.max(2) if fn == "max" else v.sum(2, divisor=axis if fn == "mean" else 1))
        case "layer_norm":
            return _layer_norm(node, x[0], weights)
        case "l2_normalize":
            v = _runs(x[0], attr("size") or x[0].value.shape[1])
            norm = (v * v).sum(2).function(lambda a: np.sqrt(np.maximum(a, 0)))
            return _flat(v / norm.function(lambda a: np.maximum(a, attr("eps")), own=UNIT))
        case "dot":
            return (x[0] * x[1]).sum(1)
        case "matmul":
            return _matmul(node, *x)
        case "gru":
            return _gru(node, x[0], raw[1] if len(raw) > 1 else None, weights)
        case "conv1d":
            return _conv1d(node, x[0], weights)
    raise NotImplementedError(node.op)


def _fields(near: Near) -> tuple[Array, Array, Array, Array]:
    return near.value, near.error, near.terms, near.count


def _runs(x: Near, size: int) -> Near:
    return x.map(lambda a: a.reshape(len(a), a.shape[1] // size, size))


def _flat(x: Near) -> Near:
    return x.map(lambda a: a.reshape(len(a), int(np.prod(a.shape[1:]))))


def _bag(ids: NDArray[Any], table: Array, mode: str, padding: int | None) -> Near:
    there = np.ones((*ids.shape, 1)) if padding is None else (ids != padding)[..., None] * 1.0
    rows = _exact(table[ids] * there)
    if mode == "max":
        best = np.where(there > 0, table[ids], -np.inf).max(axis=1)
        return _exact(np.where(there.any(axis=1), best, 0))
    total = rows.sum(1).map(lambda a: a[:, 0])
    if mode == "sum":
        return total
    return total.scaled(1 / np.maximum(there.sum(axis=1), 1))


def _affine(node: Node, x: list[Near], weights: Mapping[str, Array]) -> Near:
    addends, steps = list(x), node.attr("steps")
    parts: list[Near] = []
    if "w" in weights:
        w = weights["w"].reshape(node.attr("groups"), *weights["w"].shape[-2:])
        v = _runs(addends[0], addends[0].value.shape[1] // steps)
        addends = addends[1:]
        k = w.shape[2]
        columns = [
            v if node.attr("shared_x") else v.map(lambda a, g=g: a[:, :, g * k : (g + 1) * k]) for g in range(len(w))
        ]
        products = [c.product(own) for c, own in zip(columns, w, strict=True)]
        parts.append(_flat(Near(*(np.concatenate(c, axis=2) for c in zip(*map(_fields, products), strict=True)))))
    if "b" in weights:
        parts.append(_exact(weights["b"][None]))
    width = max(p.value.shape[1] for p in parts + addends)

    def for_each_step(a: Array) -> Array:
        return np.tile(a, steps) if a.shape[-1] < width else a

    total, *others = [p.map(for_each_step) for p in parts + addends]
    for other in others:
        total = total + other
    slope = weights.get("slope")
    return _activation(
        total, node.attr("activation"), node.attr("alpha"), None if slope is None else for_each_step(slope)
    )


def _activation(x: Near, fn: str, alpha: float, slope: Array | None) -> Near:
    if fn == "none":
        return x

    def f(a: Array) -> Array:
        attrs = {"activation": fn, "alpha": alpha}
        return apply("activation", [a], {} if slope is None else {"slope": slope}, attrs.__getitem__)

    own = 2 * UNIT if fn in PIECEWISE_LINEAR else FUNCTION
    steepest: Any = SLOPES.get(fn)
    if fn in ("leaky_relu", "prelu"):
        steepest = np.maximum(1, np.abs(alpha if slope is None else slope))
    made = x.function(f, slope=steepest, own=own)
    if fn in ("gelu", "gelu_tanh"):
        return Near.computed(made.value, made.error + GELU * np.maximum(1, np.abs(x.value) + x.error))
    return made


def _softmax(x: Near) -> Near:
    """An error of an argument is a factor of its exponential; shifting all by the same number changes nothing."""
    below = x.value.max(axis=2, keepdims=True) - x.value
    value = np.exp(-below)
    value /= value.sum(axis=2, keepdims=True)
    moved = x.error + UNIT * (below + 2 * x.error.max(axis=2, keepdims=True))
    total = (value * np.expm1(moved)).sum(axis=2, keepdims=True)
    factor = np.exp(moved) / np.maximum(1 - total, 0)
    return Near.computed(value, value * (factor * (1 + gamma(x.value.shape[2] + EXTRA)) - 1))


def _binary(fn: str, a: Near, b: Near) -> Near:
    match fn:
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            return a * b
        case "div":
            return a / b
    value = np.maximum(a.value, b.value) if fn == "max" else np.minimum(a.value, b.value)
    return Near.computed(value, np.maximum(a.error, b.error))


def _layer_norm(node: Node, x: Near, weights: Mapping[str, Array]) -> Near:
    size = node.attr("size") or x.value.shape[1]
    v = _runs(x, size)
    d = (v - v.sum(2, divisor=size)).rounded()
    variance = (d * d).sum(2, divisor=size)
    normal = d / variance.function(lambda a: np.sqrt(np.maximum(a, 0) + node.attr("eps")))
    scaled = normal.scaled(weights.get("scale", np.ones(size))) + _exact(
        weights.get("shift", np.zeros(size))[None, None]
    )
    return _flat(scaled)


def _matmul(node: Node, a: Near, b: Near) -> Near:
    outer, m, k, n = (node.attr(name) for name in ("outer", "m", "k", "n"))
    left = a.map(lambda v: v.reshape(len(v), outer, m, k, 1))
    if node.attr("transpose_b"):
        right = b.map(lambda v: v.reshape(len(v), outer, 1, n, k).swapaxes(3, 4))
    else:
        right = b.map(lambda v: v.reshape(len(v), outer, 1, k, n))
    return _flat((left * right).sum(3))


def _gru(node: Node, x: Near, ids: NDArray[Any] | None, weights: Mapping[str, Array]) -> Near:
    steps, hidden = node.attr("steps"), node.attr("hidden")
    v = _runs(x, x.value.shape[1] // steps)
    there = np.ones((1, steps), dtype=bool) if ids is None else ids != node.attr("padding")
    rows = np.broadcast_shapes((len(x.value),), (len(there),))[0]
    state, states = _exact(np.zeros((rows, hidden))), []
    bias = {role: _exact(weights.get(role, np.zeros(3 * hidden))[None]) for role in ("b_x", "b_h")}
    one = _exact(np.ones((1, 1)))
    for t in range(steps):
        of_x = v.map(lambda a, t=t: a[:, t]).product(weights["w_x"]) + bias["b_x"]
        of_h = state.product(weights["w_h"]) + bias["b_h"]
        gates = [(_part(of_x, i, hidden), _part(of_h, i, hidden)) for i in range(3)]
        r, z = (_activation(a + b, "sigmoid", 0, None) for a, b in gates[:2])
        new = _activation(gates[2][0] + r * gates[2][1], "tanh", 0, None)
        moved = ((one - z).rounded() * new + z * state).rounded()
        kept = zip(_fields(moved), _fields(state), strict=True)
        state = Near(*(np.where(there[:, t, None], a, b) for a, b in kept))
        states.append(state.map(lambda a, t=t: np.where(there[:, t, None], a, 0)))
    if node.attr("output") == "last":
        return state
    return Near(*(np.concatenate(c, axis=1) for c in zip(*map(_fields, states), strict=True)))


def _part(x: Near, i: int, n: int) -> Near:
    return x.map(lambda a: a[:, i * n : (i + 1) * n])


def _conv1d(node: Node, x: Near, weights: Mapping[str, Array]) -> Near:
    steps, stride, dilation, zeros = (node.attr(name) for name in ("steps", "stride", "dilation", "padding"))
    w = weights["w"]
    v = _runs(x, x.value.shape[1] // steps).map(lambda a: np.pad(a, ((0, 0), (zeros, zeros), (0, 0))))
    last = steps + 2 * zeros - dilation * (w.shape[2] - 1)
    total = None
    for at in range(w.shape[2]):
        part = v.map(lambda a, at=at: a[:, at * dilation : at * dilation + last : stride]).product(w[:, :, at])
        total = part if total is None else total + part
    assert total is not None
    return _flat(total + _exact(weights.get("b", np.zeros(len(w)))[None, None]))
