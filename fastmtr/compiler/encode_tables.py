"""Tables of embeddings in fewer bits: which ones, and a plan that reads them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.pipeline import Compiled, compile_graph
from fastmtr.encodings import EMBEDDING_PRECISIONS, EmbeddingPrecision, EncodedTable, encode_table
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph

__all__ = ["compile_encoded", "encode_tables"]


def compile_encoded(
    graph: Graph,
    *,
    embedding_precision: EmbeddingPrecision,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Compile a graph into a plan that reads encoded tables.

    Parameters
    ----------
    graph : Graph
    embedding_precision : {"fp32", "fp16", "int8", "int4"}
    track : callable
        As of :func:`encode_tables`.
    **options
        As of :func:`~fastmtr.compiler.compile_graph`.

    Returns
    -------
    dict
        The plan.
    dict of str to ndarray
        The tensors of plan and graph. Tables in fewer bits stand for those of the same name in the graph, which are
        what they say: see :func:`~fastmtr.encodings.decoded_weights`.
    """
    compiled = compile_graph(graph, **options)
    encoded: dict[str, EncodedTable] = {}
    if embedding_precision != "fp32":
        names = _looked_up(compiled.plan) & graph.weights.keys()  # others would lose digits for nothing
        graph, encoded = encode_tables(graph, embedding_precision, names=names, track=track)
        compiled = compile_graph(graph, **options)
    kept = {name: table for name, table in encoded.items() if _is_unchanged(name, compiled, graph)}
    return compiled.plan, {**graph.weights, **compiled.weights, **_name_encoded(compiled.plan, kept)}


def _is_unchanged(name: str, compiled: Compiled, graph: Graph) -> bool:
    """No pass made another table of that name."""
    return compiled.weights.get(name) is graph.weights[name]


def _looked_up(plan: Mapping[str, Any]) -> set[str]:
    """The tables that the look-ups of a plan read."""
    return {step["weights"]["table"] for step in plan["steps"] if "table" in step["weights"]}


def encode_tables(
    graph: Graph,
    precision: EmbeddingPrecision,
    *,
    names: Container[str] | None = None,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[Graph, dict[str, EncodedTable]]:
    """Encode the tables of a graph.

    Parameters
    ----------
    graph : Graph
    precision : {"fp32", "fp16", "int8", "int4"}
        At most so many bits a number; see :func:`encode_table`.
    names : container of str, optional
        Of the tables to encode, where not all.
    track : callable
        Passes on the names of the tables, and may show how far it is.

    Returns
    -------
    Graph
        With what the encoded tables say, so that its reference evaluation is exact.
    dict of str to EncodedTable
        By name of the weight. A weight that is more than a table of embeddings is left as it is.

    Raises
    ------
    ConversionError
        An unknown precision, or a table with a number that is not finite.
    """
    if precision not in EMBEDDING_PRECISIONS:
        known = ", ".join(EMBEDDING_PRECISIONS)
        raise ConversionError(f"embedding_precision must be one of {known}, found {precision!r}")
    if precision == "fp32":
        return graph, {}
    roles = {(role, name) for node in graph.nodes for role, name in node.weights.items()}
    others = {name for role, name in roles if role != "table"}
    encoded: dict[str, EncodedTable] = {}
    tables = {name for role, name in roles if role == "table" and name not in others}
    for name in track(sorted(name for name in tables if names is None or name in names)):
        if not np.isfinite(graph.weights[name]).all():
            raise ConversionError(f"weight {name!r} has values that are not finite (NaN or infinite)")
        made = encode_table(graph.weights[name], precision)
        if made is not None:
            encoded[name] = made
    weights = {**graph.weights, **{name: table.decode() for name, table in encoded.items()}}
    return Graph(graph.inputs, graph.nodes, graph.outputs, weights), encoded


def _name_encoded(plan: dict[str, Any], encoded: Mapping[str, EncodedTable]) -> dict[str, NDArray[Any]]:
    """Make the look-ups of a plan read encoded tables.

    Parameters
    ----------
    plan : dict
        Whose steps get the weights ``table_scale`` and ``table_shift`` and the attribute ``bits``; it is then of
        version 2.
    encoded : mapping of str to EncodedTable
        By the name that the plan has for the table in fp32.

    Returns
    -------
    dict of str to ndarray
        The tensors that take the place of those of these names in fp32, and their scales and shifts.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for step in plan["steps"]:
        name = step["weights"].get("table")
        if name not in encoded:
            continue
        made = encoded[name]
        tensors[name] = made.table
        plan["plan_version"] = max(plan["plan_version"], 2)
        if made.scale is not None and made.shift is not None:
            step["weights"] |= {"table_scale": f"{name}:scale", "table_shift": f"{name}:shift"}
            step["attrs"]["bits"] = made.bits
            tensors |= {f"{name}:scale": made.scale, f"{name}:shift": made.shift}
    return tensors
