"""The product of an embedding becomes an embedding: ``W (row of E)`` is a row of ``E W'``, a table made beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from fastmtr.compiler.costs import CACHED_BYTES, product_work, row_work
from fastmtr.compiler.linear import Expansion, Values, expand_affine, steps_of
from fastmtr.compiler.rewrite import Editor, listed
from fastmtr.compiler.storage import Storage, computed_for_candidates
from fastmtr.graph import Graph, Node

__all__ = ["AUTO_FOLD_MEMORY", "Folded", "fold_embeddings"]

AUTO_FOLD_MEMORY = CACHED_BYTES

# So many candidates are assumed in a request when work of the one is weighed against work of the other.
_CANDIDATES = 512


@dataclass(frozen=True)
class Folded:
    """The graph, and what to say about it.

    Parameters
    ----------
    graph : Graph
    remarks : mapping of str to str
        For values of the graph: what was folded, and why not where not.
    """

    graph: Graph
    remarks: Mapping[str, str]


def fold_embeddings(graph: Graph, storage: Storage, *, memory: int | Literal["auto"] = "auto") -> Folded:
    """Replace columns of products that are rows of embedding tables by look-ups in tables of products.

    An affine that reads an ``embedding`` of one id, a pooled one (``embedding_bag`` with sum or mean), or one of as
    many ids as it has steps, gets an ``embedding`` of its own width as addend and loses those columns. That is done
    where it saves time, most for a byte first, until the memory is used up; never for item values that are stored,
    since their time is not a request's. The tables are computed in float64 and rounded once, so results may differ by
    2^-24 of what each look-up contributes.

    Parameters
    ----------
    graph : Graph
        Split by domain.
    storage : Storage
        Which of its item values are stored.
    memory : int or "auto"
        Bytes for the tables of products. "auto" is 16 MiB: more would not stay in the caches, where rows are read
        quickly enough to be of use.
    """
    values = Values(graph, graph.weights)
    for node in graph.nodes:
        values.add(node, width=graph.width(node.output))
    products = _products(graph, storage, values)
    readers = _readers(graph, values)
    choices = [
        c
        for node, found in products.values()
        for c in _choices(node, found, values, readers, once=graph.domain(node.output) == "request")
    ]
    taken, remarks = _take(choices, AUTO_FOLD_MEMORY if memory == "auto" else memory)
    if not taken:
        return Folded(graph, remarks)
    editor = Editor(graph)
    editor.know(values.pieces)
    for node in graph.nodes:
        if node.output in taken:
            node = _fold(node, products[node.output][1], taken[node.output], editor, values)
        editor.nodes.append(node)
    return Folded(editor.graph(), remarks)


def _products(graph: Graph, storage: Storage, values: Values) -> dict[str, tuple[Node, Expansion]]:
    """The affines, with their terms, whose time is a request's."""
    for_candidates = computed_for_candidates(graph, storage)
    found = {}
    for node in graph.nodes:
        if node.op != "affine" or "w" not in node.weights:
            continue
        if graph.domain(node.output) == "item" and node.output not in for_candidates:
            continue
        terms = expand_affine(node, values, wanted=lambda *_: False)
        if terms is not None and len(terms.w) == 1:
            found[node.output] = (node, terms)
    return found


class _Choice(NamedTuple):
    """One embedding in the input of one affine."""

    affine: str
    source: str
    terms: dict[int, int]  # which of the product's, and where in a table's row its columns begin
    saved: float  # work of a request
    size: int


def _take(choices: Sequence[_Choice], memory: int) -> tuple[dict[str, list[_Choice]], dict[str, str]]:
    """What is folded, by affine, and remarks on it."""
    taken: dict[str, list[_Choice]] = {}
    slower: dict[str, list[_Choice]] = {}
    larger: dict[str, list[_Choice]] = {}
    for c in sorted(choices, key=lambda c: (-c.saved / c.size, c.affine, c.source)):
        if c.saved <= 0:
            kind = slower
        elif c.size > memory:
            kind = larger
        else:
            memory -= c.size
            kind = taken
        kind.setdefault(c.affine, []).append(c)
    remarks: dict[str, str] = {}
    for kind, text in (
        (taken, "{names}: folded, their products are looked up in tables of {size:,} bytes"),
        (slower, "{names}: not folded, a product is computed quicker than it is looked up"),
        (larger, "{names}: not folded, tables of their products would take {size:,} bytes, more than is allowed"),
    ):
        for affine, which in kind.items():
            names, size = listed(sorted(c.source for c in which)), sum(c.size for c in which)
            before = f"{remarks[affine]}; " if affine in remarks else ""
            remarks[affine] = before + text.format(names=names, size=size)
    return taken, remarks


def _choices(
    node: Node, found: Expansion, values: Values, readers: Mapping[str, Collection[str]], *, once: bool
) -> list[_Choice]:
    n, steps = len(found.w[0][0]), steps_of(node)
    terms: dict[str, dict[int, int]] = {}
    for i, p in enumerate(found.pieces[0][0]):
        if (first := _first_column(found, i, values)) is not None:
            terms.setdefault(p.source, {})[i] = first
    choices = []
    for source, which in terms.items():
        embedding = values.nodes[source]
        rows, d = values.weights[embedding.weights["table"]].shape
        lookups = values.widths[embedding.inputs[0]]
        columns = sum(found.w[0][i].shape[1] for i in which)
        size = 4 * rows * n
        # What was looked up is written, and read as an addend.
        cost = lookups * row_work(4 * n, size) + (lookups if lookups == steps else 1) * row_work(8 * n, 0)
        saved = steps * product_work(n, columns, once=once) - cost
        if readers[source] == {node.output} and len(which) == sum(p.source == source for p in found.pieces[0][0]):
            saved += lookups * row_work(4 * d, 4 * rows * d)
        choices.append(_Choice(node.output, source, which, saved * (1 if once else _CANDIDATES), size))
    return choices


def _first_column(found: Expansion, term: int, values: Values) -> int | None:
    """Where in a table's row the columns of a term begin; None: they are not columns of one linear look-up a step."""
    pieces = [step[0][term] for step in found.pieces]
    embedding = values.nodes.get(pieces[0].source)
    if embedding is None or "table" not in embedding.weights or embedding.attrs.get("mode") == "max":
        return None
    d = values.weights[embedding.weights["table"]].shape[1]
    first = pieces[0].offset
    if values.widths[pieces[0].source] == d:
        same = all(p == pieces[0] for p in pieces)
    else:
        same = values.widths[embedding.inputs[0]] == len(pieces) and all(
            p == (pieces[0].source, step * d + first, pieces[0].width) for step, p in enumerate(pieces)
        )
    return first if same else None


def _readers(graph: Graph, values: Values) -> dict[str, set[str]]:
    """The nodes and outputs that read each value, seen through concat and slice."""
    found: dict[str, set[str]] = {}
    for reader, names in [
        *((n.output, n.inputs) for n in graph.nodes if n.op not in ("concat", "slice")),
        *((f"output {o.name}", (o.value,)) for o in graph.outputs),
    ]:
        for p in (p for name in names for p in values.pieces[name]):
            found.setdefault(p.source, set()).add(reader)
    return found


def _fold(node: Node, found: Expansion, choices: Sequence[_Choice], editor: Editor, values: Values) -> Node:
    """The affine with look-ups in place of some of its terms; the editor gets their nodes."""
    addends = []
    for c in choices:
        embedding = values.nodes[c.source]
        table = values.weights[embedding.weights["table"]].astype(np.float64)
        products = np.zeros((len(table), len(found.w[0][0])))
        for i, first in c.terms.items():
            w = found.w[0][i]
            products += table[:, first : first + w.shape[1]] @ w.T
        name = editor.fresh(f"{node.output}*{c.source}")
        weights = {"table": editor.weight(f"{name}.table", products)}
        editor.nodes.append(replace(embedding, output=name, weights=weights))
        addends.append(name)
    gone = {i for c in choices for i in c.terms}
    left = [i for i in range(len(found.w[0])) if i not in gone]
    addends += node.inputs[1:]
    weights = {role: name for role, name in node.weights.items() if role != "w"}
    attrs = {**node.attrs, "groups": 1, "shared_x": False}
    if not left:
        return Node("affine", tuple(addends), node.output, weights, {**attrs, "has_x": False})
    made_of = [step[0][i] for step in found.pieces for i in left]
    x = values.join(made_of, editor, name=f"{node.output}.x")
    weights["w"] = editor.weight(f"{node.output}.w", np.concatenate([found.w[0][i] for i in left], axis=1))
    return Node("affine", (x, *addends), node.output, weights, attrs)
