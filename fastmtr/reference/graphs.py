"""Evaluating a graph, and fusing its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastmtr.errors import SchemaError
from fastmtr.graph import Domain, Graph, Input, Packed
from fastmtr.reference.operators import Array, apply

__all__ = ["columns_of", "evaluate", "evaluate_values", "fuse"]


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
    n = _rows(packed)
    outputs = {}
    for o in graph.outputs:
        value = values[o.value]
        outputs[o.name] = np.broadcast_to(value, (n, 1)).copy() if o.role == "task" else value
    return outputs


def evaluate_values(
    graph: Graph, packed: Mapping[Domain, Packed], *, dtype: DTypeLike = np.float64
) -> dict[str, Array]:
    """Every value of the graph by name, inputs too; otherwise as :func:`evaluate`."""
    _rows(packed)
    values: dict[str, Array] = {i.name: columns_of(i, packed, np.dtype(dtype)) for i in graph.inputs}
    weights = {name: array.astype(dtype) for name, array in graph.weights.items()}
    for node in graph.nodes:
        named = {role: weights[name] for role, name in node.weights.items()}
        try:
            computed = apply(node.op, [values[name] for name in node.inputs], named, node.attr)
        except IndexError as error:
            raise SchemaError(f"node {node.output!r} ({node.op}): an id is out of range: {error}") from error
        values[node.output] = computed.astype(dtype, copy=False)
    return values


def _rows(packed: Mapping[Domain, Packed]) -> int:
    """N, where inputs have N rows or 1."""
    rows = {p.n_rows for p in packed.values()} - {1}
    if len(rows) > 1:
        raise SchemaError(f"packed inputs must have N rows or 1, found {sorted(rows)} rows")
    return rows.pop() if rows else 1


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


def columns_of(i: Input, packed: Mapping[Domain, Packed], dtype: np.dtype[Any]) -> Array:
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
