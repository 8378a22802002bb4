"""The order of the passes, and the result of a compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.dead_code import merge_equal_nodes, remove_dead_code
from fastmtr.compiler.flatten import flatten
from fastmtr.compiler.fold_batch_norm import fold_batch_norm
from fastmtr.compiler.fold_embeddings import fold_embeddings
from fastmtr.compiler.fuse_activation import fuse_activation
from fastmtr.compiler.lowering import lower
from fastmtr.compiler.separate_domains import separate_domains
from fastmtr.compiler.simplify import simplify
from fastmtr.compiler.split_by_domain import ITEM_PART, split_by_domain
from fastmtr.compiler.stack_siblings import stack_siblings
from fastmtr.compiler.storage import ITEM_PRECISIONS, ItemPrecision, Storage, choose_storage
from fastmtr.errors import ConversionError
from fastmtr.graph import Domain, Graph

__all__ = ["PASSES", "Compiled", "compile_graph", "normal_fusion"]

PASSES: tuple[Callable[[Graph], Graph], ...] = (
    remove_dead_code,
    flatten,
    merge_equal_nodes,
    simplify,
    separate_domains,
    flatten,
    simplify,
    merge_equal_nodes,
    fold_batch_norm,
    fuse_activation,
    remove_dead_code,
    stack_siblings,
    flatten,
    remove_dead_code,
)
"""What is done to every graph before its products are split by domain."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled graph.

    Parameters
    ----------
    plan : dict
        ``plan.json`` of ``docs/bundle.md``.
    weights : dict of str to ndarray
        The tensors that the plan names.
    graph : Graph
        The rewritten graph that the plan was made from; it computes the same outputs.
    """

    plan: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    graph: Graph


def compile_graph(
    graph: Graph,
    *,
    fusion: Mapping[str, Any] | None = None,
    n_items: int = 0,
    item_memory: int | Literal["auto"] = "auto",
    item_precision: ItemPrecision = "fp32",
    fold_memory: int | Literal["auto"] = "auto",
) -> Compiled:
    """Factor a graph into what is done once a request, once an item and once a candidate.

    Parameters
    ----------
    graph : Graph
    fusion : mapping, optional
        How task scores become one: kind ("product" or "sum"), tasks, weights, offsets, each of which may be left out.
        None: the product of all tasks.
    n_items : int
        Size of the catalogue, which decides what fits in ``item_memory``. 0: not known.
    item_memory : int or "auto"
        Bytes for item values computed ahead of time; "auto" is 2 GiB, 0 stores nothing but the inputs (and the item
        outputs, which need it).
    item_precision : {"fp32", "fp16", "int8"}
        What those item values are kept in. fp16: a value is off by at most 2^-11 of itself (2^-25 where it is below
        2^-14), and values beyond 65504 are refused when a catalogue is built; int8: by at most 1/254 of the largest
        value of its row. Item outputs stay fp32.
    fold_memory : int or "auto"
        Bytes for tables in which the products of embeddings are looked up; "auto" is 16 MiB, 0 keeps the products.

    Returns
    -------
    Compiled

    Raises
    ------
    ConversionError
        A weight is not finite, an argument or the fusion does not fit.
    """
    for name, memory in (("item_memory", item_memory), ("fold_memory", fold_memory)):
        if memory != "auto" and memory < 0:
            raise ConversionError(f"{name} must be 'auto' or a number of bytes >= 0, found {memory!r}")
    if item_precision not in ITEM_PRECISIONS:
        raise ConversionError(f"item_precision must be one of {', '.join(ITEM_PRECISIONS)}, found {item_precision!r}")
    if n_items < 0:
        raise ConversionError(f"n_items must be >= 0, found {n_items}")
    for name, array in graph.weights.items():
        if not np.isfinite(array).all():
            raise ConversionError(f"weight {name!r} has values that are not finite (NaN or infinite)")
    fused = normal_fusion(fusion, graph.tasks)
    for each in PASSES:
        graph = each(graph)

    def choose(graph: Graph) -> Storage:
        return choose_storage(graph, n_items=n_items, item_memory=item_memory, item_precision=item_precision)

    split, storage = _split_and_store(graph, choose)
    folded = fold_embeddings(split, storage, memory=fold_memory)
    final = split
    if folded.graph is not split:
        final = remove_dead_code(flatten(folded.graph))
        again = choose(final)
        storage = replace(again, refused={**storage.refused, **again.refused})
    plan = lower(final, storage, fusion=fused, remarks=folded.remarks)
    named = {name for step in plan["steps"] for name in step["weights"].values()}
    return Compiled(plan, {name: final.weights[name] for name in sorted(named)}, final)


def _split_and_store(graph: Graph, choose: Callable[[Graph], Storage]) -> tuple[Graph, Storage]:
    """Split by domain, but leave together what is not worth storing apart."""
    keep: set[str] = set()
    request: tuple[Domain, ...] = ("request",)
    reasons: dict[str, str] = {}
    while True:
        split = stack_siblings(split_by_domain(graph, keep_item=keep), domains=request)
        split = remove_dead_code(flatten(remove_dead_code(split)))
        storage = choose(split)
        reasons |= storage.refused
        unstored = {v.removesuffix(ITEM_PART) for v in storage.refused if v.endswith(ITEM_PART)}
        if unstored <= keep:
            return split, replace(storage, refused=reasons)
        keep |= unstored


def normal_fusion(fusion: Mapping[str, Any] | None, tasks: Sequence[str]) -> dict[str, Any]:
    """A fusion with all its members, checked against the tasks.

    Raises
    ------
    ConversionError
        An unknown member, kind or task, a task named twice, or weights or offsets of another number than the tasks.
    """
    given = dict(fusion or {})
    unknown = given.keys() - {"kind", "tasks", "weights", "offsets"}
    if unknown:
        raise ConversionError(f"fusion has unknown members {sorted(unknown)}; it takes kind, tasks, weights, offsets")
    kind = given.get("kind", "product")
    if kind not in ("product", "sum"):
        raise ConversionError(f"fusion: kind must be 'product' or 'sum', found {kind!r}")
    names = list(given.get("tasks", tasks))
    for name in names:
        if name not in tasks or names.count(name) > 1:
            raise ConversionError(f"fusion: each task is named once and is one of {list(tasks)}, found {name!r}")
    numbers = {}
    for member, default in (("weights", 1.0), ("offsets", 0.0)):
        found = [float(v) for v in given.get(member, [default] * len(names))]
        if len(found) != len(names) or not np.isfinite(found).all():
            raise ConversionError(f"fusion: {member} must be {len(names)} finite numbers, one a task, found {found}")
        numbers[member] = found
    return {"kind": kind, "tasks": names, **numbers}
