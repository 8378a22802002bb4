"""``W [u; i; c] + b`` becomes ``(W_u u + b) + W_i i + W_c c``.

So the user's part is computed once a request, and the item's part once an item.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.rewrite import Editor, Piece, canonical, pieces_of
from fastmtr.graph import Domain, Graph, Node

__all__ = ["ITEM_PART", "REQUEST_PART", "split_by_domain"]

REQUEST_PART, ITEM_PART = "@request", "@item"


def split_by_domain(graph: Graph, *, keep_item: Collection[str] = ()) -> Graph:
    """Split each affine whose input mixes domains into one affine a domain, and their sum.

    The input is seen through concat and slice. The parts are named after the node with ``@request`` and ``@item``; the
    bias goes with the first of them. The order of the sum changes (request, item, candidate, each along K), so results
    may differ in the last bits.

    Parameters
    ----------
    graph : Graph
    keep_item : collection of str
        Nodes whose item columns stay with the candidate's, because their item part is not worth storing.
    """
    pieces = pieces_of(graph)
    widths = {name: graph.width(name) for name in pieces}
    editor = Editor(graph)
    editor.know(pieces)
    for node in graph.nodes:
        if node.op == "affine" and "w" in node.weights and graph.domain(node.output) == "candidate":
            columns = _columns_by_domain(graph, pieces[node.inputs[0]], node.output in keep_item)
            whole_groups = node.attr("groups") == 1 or node.attr("shared_x") or len(columns) == 1
            if set(columns) != {"candidate"} and whole_groups:
                _split(graph, node, editor, pieces[node.inputs[0]], columns, widths)
                continue
        editor.nodes.append(node)
    return editor.graph()


def _columns_by_domain(graph: Graph, x: tuple[Piece, ...], keep_item: bool) -> dict[Domain, list[tuple[Piece, int]]]:
    """Pieces of each domain with their first column in x; in the order request, item, candidate."""
    found: dict[Domain, list[tuple[Piece, int]]] = {"request": [], "item": [], "candidate": []}
    start = 0
    for p in x:
        domain = graph.domain(p.source)
        found["candidate" if keep_item and domain == "item" else domain].append((p, start))
        start += p.width
    return {domain: parts for domain, parts in found.items() if parts}


def _split(
    graph: Graph,
    node: Node,
    editor: Editor,
    x: tuple[Piece, ...],
    columns: Mapping[Domain, list[tuple[Piece, int]]],
    widths: Mapping[str, int],
) -> None:
    w = canonical(graph.weights[node.weights["w"]])
    linear = {**node.attrs, "activation": "none", "alpha": 0.0}
    bias = {"b": node.weights["b"]} if "b" in node.weights else {}
    partial: list[str] = []
    last: Node | None = None
    for domain, parts in columns.items():
        part_of_w = w
        if len(columns) > 1:
            part_of_w = w[:, :, np.concatenate([np.arange(start, start + p.width) for p, start in parts])]
        value = editor.join([p for p, _ in parts], widths, name=f"{node.output}.x@{domain}")
        name = f"{node.output}@{domain}"
        weights = {"w": editor.weight(f"{node.output}.w@{domain}", _plain(part_of_w)), **bias}
        bias = {}
        if domain == "candidate":
            slope = {role: name for role, name in node.weights.items() if role == "slope"}
            last = replace(node, inputs=(value, *partial, *node.inputs[1:]), weights={**weights, **slope})
        else:
            partial.append(editor.fresh(name))
            editor.nodes.append(Node("affine", (value,), partial[-1], weights, linear))
    if last is None:
        slope = {role: name for role, name in node.weights.items() if role == "slope"}
        attrs = {**node.attrs, "groups": 1, "shared_x": False, "has_x": False}
        last = Node("affine", (*partial, *node.inputs[1:]), node.output, slope, attrs)
    editor.nodes.append(last)


def _plain(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the axis of a single group."""
    return w[0] if len(w) == 1 else w
