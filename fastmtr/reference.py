"""What every operator means, in plain NumPy: the measure that compiler, kernels and converted models are held to.

Written for clarity and independent of the native code; float64 unless asked otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import Domain, Graph, Input, Packed

__all__ = ["apply", "evaluate", "evaluate_plan", "evaluate_values", "fuse"]

Array = NDArray[Any]


def evaluate(graph: Graph, packed: Mapping[Domain, Packed], *, dtype: DTypeLike = np.float64) -> dict[str, Array]:
    """The outputs of a graph for N candidates.

    Parameters
    ----------
    graph : Graph
    packed : mapping of domain to Packed
        The inputs of each domain that the graph has inputs of: N rows, or 1 row that stands for all.
    dtype : dtype
        The type that everything is computed in.

    Returns
    -------
    dict of str to ndarray
        Each output by name. A task: shape (N, 1); other outputs: (rows of their domain, width).

    Raises
    ------
    SchemaError
        Packed inputs are missing, too narrow, of differing lengths, or an id is out of range.
    """
    values = evaluate_values(graph, packed, dtype=dtype)
    n = max((p.n_rows for p in packed.values()), default=1)
    outputs = {}
    for o in graph.outputs:
        value = values[o.value]
        outputs[o.name] = np.broadcast_to(value, (n, 1)).copy() if o.role == "task" else value
    return outputs


def evaluate_values(
    graph: Graph, packed: Mapping[Domain, Packed], *, dtype: DTypeLike = np.float64
) -> dict[str, Array]:
    """Every value of the graph by name, inputs too; otherwise as :func:`evaluate`."""
    rows = {p.n_rows for p in packed.values() if p.n_rows != 1}
    if len(rows) > 1:
        raise SchemaError(f"packed inputs must have N rows or 1, found {sorted(rows)} rows")
    values: dict[str, Array] = {i.name: _columns(i, packed, np.dtype(dtype)) for i in graph.inputs}
    weights = {name: array.astype(dtype) for name, array in graph.weights.items()}
    for node in graph.nodes:
        named = {role: weights[name] for role, name in node.weights.items()}
        try:
            values[node.output] = apply(node.op, [values[name] for name in node.inputs], named, node.attr)
        except IndexError as error:
            raise SchemaError(f"node {node.output!r} ({node.op}): an id is out of range: {error}") from error
    return values


def fuse(scores: ArrayLike, fusion: Mapping[str, Any], *, tasks: Sequence[str] | None = None) -> Array:
    """One score a candidate, as ``docs/bundle.md`` says.

    Parameters
    ----------
    scores : array, shape (N, T)
    fusion : mapping
        The plan's ``fusion``: kind, tasks, weights, offsets.
    tasks : sequence of str, optional
        The tasks that the columns of ``scores`` are. None: those of the fusion, in its order.

    Returns
    -------
    ndarray, shape (N,)
    """
    names = list(fusion["tasks"] if tasks is None else tasks)
    p = np.asarray(scores)[:, [names.index(t) for t in fusion["tasks"]]]
    weights = np.asarray(fusion["weights"], dtype=p.dtype)
    if fusion["kind"] == "sum":
        return np.asarray((p * weights).sum(axis=1))
    offsets = np.asarray(fusion["offsets"], dtype=p.dtype)
    return np.asarray(np.exp((np.log(np.maximum(p + offsets, 1e-12)) * weights).sum(axis=1)))


# ---- operators -------------------------------------------------------------------------------------------------------


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


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _activate(x: Array, fn: str, alpha: float, slope: Array | None) -> Array:
    with np.errstate(over="ignore", under="ignore"):
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
    raise ConversionError(f"the reference has no activation {fn!r}")


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)))


def _embedding(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return _lookup(inputs[0], weights["table"], attr("padding"))[0].reshape(len(inputs[0]), -1)


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
    addends = list(inputs)
    total: Array | None = None
    if "w" in weights:
        x = addends.pop(0)
        groups = attr("groups")
        w = weights["w"].reshape(groups, *weights["w"].shape[-2:])
        k = w.shape[2]
        parts = [(x if attr("shared_x") else x[:, g * k : (g + 1) * k]) @ w[g].T for g in range(groups)]
        total = np.concatenate(parts, axis=1)
    if "b" in weights:
        total = weights["b"][None] if total is None else total + weights["b"]
    for addend in addends:
        total = addend if total is None else total + addend
    assert total is not None
    return _activate(total, attr("activation"), attr("alpha"), weights.get("slope"))


def _softmax(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = inputs[0].reshape(len(inputs[0]), -1, attr("size"))
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
    x = inputs[0].reshape(-1, attr("outer"), attr("axis"), attr("inner"))
    return np.asarray(_REDUCTIONS[attr("fn")](x, axis=2).reshape(len(x), -1))


def _scale_shift(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return np.asarray(inputs[0] * weights.get("scale", 1) + weights.get("shift", 0))


def _layer_norm(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    x = inputs[0] - inputs[0].mean(axis=1, keepdims=True)
    normal = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + attr("eps"))
    return _scale_shift([normal.astype(x.dtype)], weights, attr)


def _batch_norm(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    normal = (inputs[0] - weights["mean"]) / np.sqrt(weights["var"] + attr("eps"))
    return _scale_shift([normal.astype(inputs[0].dtype)], weights, attr)


def _l2_normalize(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    norm = np.sqrt((inputs[0] * inputs[0]).sum(axis=1, keepdims=True))
    return np.asarray(inputs[0] / np.maximum(norm, attr("eps")), dtype=inputs[0].dtype)


def _dot(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return np.asarray((inputs[0] * inputs[1]).sum(axis=1, keepdims=True))


def _concat(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    n = max(len(x) for x in inputs)
    return np.concatenate([np.broadcast_to(x, (n, x.shape[1])) for x in inputs], axis=1)


def _slice(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return inputs[0][:, attr("offset") : attr("offset") + attr("width")]


def _activation(inputs: Sequence[Array], weights: Mapping[str, Array], attr: Callable[[str], Any]) -> Array:
    return _activate(inputs[0], attr("activation"), attr("alpha"), weights.get("slope"))


_FUNCTIONS: Mapping[str, Callable[[Sequence[Array], Mapping[str, Array], Callable[[str], Any]], Array]] = {
    "activation": _activation,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "binary": _binary,
    "concat": _concat,
    "dot": _dot,
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    "l2_normalize": _l2_normalize,
    "layer_norm": _layer_norm,
    "mixture": _mixture,
    "reduce": _reduce,
    "scale_shift": _scale_shift,
    "slice": _slice,
    "softmax": _softmax,
}


def _columns(i: Input, packed: Mapping[Domain, Packed], dtype: np.dtype[Any]) -> Array:
    if i.domain not in packed:
        raise SchemaError(f"input {i.name!r} needs packed inputs of the domain {i.domain}; found {sorted(packed)}")
    matrix: Array = getattr(packed[i.domain], i.kind)
    if matrix.shape[1] < i.offset + i.width:
        raise SchemaError(
            f"input {i.name!r} is columns {i.offset} to {i.offset + i.width} of the {i.domain} {i.kind}, "
            f"but there are {matrix.shape[1]}"
        )
    columns = matrix[:, i.offset : i.offset + i.width]
    if i.kind == "dense":
        return columns.astype(dtype)
    if columns.size and (columns.min() < 0 or (i.rows is not None and columns.max() >= i.rows)):
        raise SchemaError(
            f"input {i.name!r}: ids must be 0 to {(i.rows or 2**31) - 1}, found {columns.min()} to {columns.max()}"
        )
    return columns


# ---- plans -----------------------------------------------------------------------------------------------------------


def evaluate_plan(
    plan: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float32]],
    packed: Mapping[Domain, Packed],
    *,
    rows: ArrayLike,
    dtype: DTypeLike = np.float64,
) -> dict[str, Array]:
    """Execute a compiled plan: the request phase, the item phase over a catalogue, the candidate phase.

    Parameters
    ----------
    plan : mapping
        ``plan.json``.
    weights : mapping of str to ndarray
    packed : mapping of domain to Packed
        One row of ``request``; the whole catalogue as ``item``; one row a candidate as ``candidate`` (where there are
        such inputs).
    rows : array of int, shape (N,)
        The catalogue rows that are the candidates.
    dtype : dtype

    Returns
    -------
    dict of str to ndarray
        Tasks (N, 1), request outputs (1, width), item outputs (catalogue, width), and "" the fused score (N,).

    Raises
    ------
    ConversionError
        A step breaks a rule of ``docs/bundle.md``: it reads what nothing wrote, or what its domain cannot reach.
    """
    candidates = np.asarray(rows, dtype=np.int64)
    n_rows = {"request": 1, "item": packed["item"].n_rows if "item" in packed else 0, "candidate": len(candidates)}
    runner = _PlanRunner(plan, {k: v.astype(dtype) for k, v in weights.items()}, n_rows, candidates, np.dtype(dtype))
    for i in plan["inputs"]:
        columns = _columns(Input(**{k: v for k, v in i.items() if k != "buffer"}), packed, np.dtype(dtype))
        runner.write([i["buffer"], 0, i["width"]], columns)
    for step in plan["steps"]:
        runner.run(step)
    outputs = {}
    for o in plan["outputs"]:
        value = runner.read(o["operand"])
        outputs[o["name"]] = np.broadcast_to(value, (len(candidates), 1)).copy() if o["role"] == "task" else value
        domain = plan["buffers"][o["operand"][0]]["domain"]
        if domain not in {"task": ("request", "candidate"), "request": ("request",), "item": ("item",)}[o["role"]]:
            raise ConversionError(f"output {o['name']!r} ({o['role']}) is in a {domain} buffer")
    tasks = [o["name"] for o in plan["outputs"] if o["role"] == "task"]
    if tasks:
        scores = np.concatenate([outputs[t] for t in tasks], axis=1)
        outputs[""] = fuse(scores, plan["fusion"], tasks=tasks)
    return outputs


class _PlanRunner:
    """Buffers of a plan in execution, with the rules on who may read what."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        weights: Mapping[str, Array],
        n_rows: Mapping[str, int],
        candidates: NDArray[np.int64],
        dtype: np.dtype[Any],
    ) -> None:
        self.weights, self.candidates = weights, candidates
        self.buffers = plan["buffers"]
        self.data = [
            np.zeros((n_rows[b["domain"]], b["width"]), dtype if b["dtype"] == "f32" else np.int32)
            for b in self.buffers
        ]
        self.written = [np.zeros(b["width"], dtype=bool) for b in self.buffers]

    def read(self, operand: Sequence[int]) -> Array:
        buffer, offset, width = operand
        if not self.written[buffer][offset : offset + width].all() or offset + width > self.buffers[buffer]["width"]:
            raise ConversionError(f"operand {list(operand)} of {self.buffers[buffer]['name']!r} is not written yet")
        return self.data[buffer][:, offset : offset + width]

    def write(self, operand: Sequence[int], value: Array) -> None:
        buffer, offset, width = operand
        if self.written[buffer][offset : offset + width].any():
            raise ConversionError(f"operand {list(operand)} of {self.buffers[buffer]['name']!r} is written twice")
        if value.shape[1] != width:
            raise ConversionError(f"operand {list(operand)} is given {value.shape[1]} columns")
        self.data[buffer][:, offset : offset + width] = value
        self.written[buffer][offset : offset + width] = True

    def run(self, step: Mapping[str, Any]) -> None:
        domain, op = step["domain"], step["op"]
        if self.buffers[step["output"][0]]["domain"] != domain:
            raise ConversionError(f"step {step['name']!r}: its output is not in a {domain} buffer")
        inputs = []
        for position, operand in enumerate(step["inputs"]):
            value, buffer = self.read(operand), self.buffers[operand[0]]
            reached = buffer["domain"] == domain or (domain == "candidate" and buffer["domain"] == "request")
            if domain == "candidate" and buffer["domain"] == "item" and buffer["stored"]:
                reached = op == "gather" or (op == "affine" and position >= ("w" in step["weights"]))
                value = value[self.candidates]
            if not reached:
                raise ConversionError(f"step {step['name']!r} ({domain}) cannot read {buffer['name']!r}")
            inputs.append(value)
        if op in ("gather", "copy"):
            result = inputs[0]
        else:
            named = {role: self.weights[name] for role, name in step["weights"].items()}
            result = apply(op, inputs, named, step["attrs"].__getitem__)
        self.write(step["output"], result)
