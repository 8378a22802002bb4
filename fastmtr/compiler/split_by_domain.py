"""``W [u; i; c] + b`` becomes ``(W_u u + b) + W_i i + W_c c``.

So the user's part is computed once a request, and the item's part once an item.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.linear import Expansion, Values, Wanted, expand_affine, is_sum, summed_pieces
from fastmtr.compiler.rewrite import Editor, Piece, pieces_of, plain
from fastmtr.graph import DOMAINS, Domain, Graph, Node

__all__ = ["ITEM_PART", "split_by_domain"]

ITEM_PART = "@item"


def split_by_domain(graph: Graph, *, keep_item: Collection[str] = ()) -> Graph:
    """Split each affine whose input mixes domains into one affine a domain, and their sum.

    The input is seen through concat and slice, and through sums, differences, scales, repetitions and transpositions
    where that leaves fewer columns to multiply for each candidate: ``W [q; k; q - k; q * k]`` is ``(W1 + W3) q +
    (W2 - W3) k + W4 (q * k)``. What all steps of an affine read alike is multiplied once. Groups are split where each
    has as many columns of a domain as the others.

    The parts are named after the node with ``@request`` and ``@item``; the bias goes with the first of them. The order
    of the sum changes (request, item, candidate), and weights may be combined (see :mod:`fastmtr.compiler.linear`), so
    results may differ in the last bits.

    Parameters
    ----------
    graph : Graph
    keep_item : collection of str
        Nodes whose item columns stay with the candidate's, because their item part is not worth storing.
    """
    editor = Editor(graph)
    values = Values(graph, editor.weights)
    editor.know(pieces_of(graph))
    for node in graph.nodes:
        if node.op == "affine" and "w" in node.weights and graph.domain(node.output) == "candidate":
            made = _split(node, editor, values, node.output in keep_item)
        else:
            made = node
        editor.nodes.append(made)
        values.add(made, width=graph.width(node.output))
    return editor.graph()


class _Part(NamedTuple):
    """The terms of one domain.

    Parameters
    ----------
    domain : {"request", "item", "candidate"}
    alike : bool
        Every step reads the same.
    pieces : list of list of list of Piece
        For each step (one where they are alike) and each group.
    w : ndarray, shape (groups, n, k)
    """

    domain: Domain
    alike: bool
    pieces: list[list[list[Piece]]]
    w: NDArray[np.float64]


def _split(node: Node, editor: Editor, values: Values, keep_item: bool) -> Node:
    """The node that is left, which reads the parts that the editor got."""

    def domain_of(p: Piece) -> Domain:
        domain = values.domains[p.source]
        return "candidate" if keep_item and domain == "item" else domain

    found = expand_affine(node, values, wanted=_leaves_less(values, domain_of))
    parts = None if found is None else _parts(found, domain_of)
    if found is None or not parts or all(part.alike for part in parts):
        return node
    own = [part for part in parts if part.domain == "candidate" and not part.alike]
    if own == parts and not found.changed:
        return node

    bias = {"b": node.weights["b"]} if "b" in node.weights else {}
    if found.constant.any():
        bias["b"] = editor.weight(f"{node.output}.b", values.of(node, "b", 0, len(found.constant)) + found.constant)
    addends = []
    for part in (part for part in parts if part not in own):
        addends.append(_partial(node, part, editor, values, bias))
        bias = {}
    addends += node.inputs[1:]
    slope = {role: name for role, name in node.weights.items() if role == "slope"}
    if not own:
        attrs = {**node.attrs, "groups": 1, "shared_x": False, "has_x": False}
        return Node("affine", tuple(addends), node.output, slope, attrs)
    x, weights, attrs = _product(node, own[0], editor, values)
    return Node("affine", (x, *addends), node.output, {**weights, **bias, **slope}, {**node.attrs, **attrs})


def _leaves_less(values: Values, domain_of: Callable[[Piece], Domain]) -> Wanted:
    """Sums whose terms have fewer columns of candidates than they have themselves, not counting those there already.

    And repetitions, since what several steps read alike is multiplied once.
    """

    def columns(p: Piece, there: Collection[Piece], known: dict[Piece, int]) -> int:
        if domain_of(p) != "candidate" or p in there:
            return 0
        if not is_sum(values.nodes.get(p.source)):
            return p.width
        if p not in known:
            known[p] = min(p.width, sum(columns(q, there, known) for q in summed_pieces(p, values)))
        return known[p]

    def wanted(p: Piece, there: Collection[Piece]) -> bool:
        if values.nodes[p.source].op == "repeat":
            return len(summed_pieces(p, values)) == 1
        return domain_of(p) == "candidate" and columns(p, set(there) - {p}, {}) < p.width

    return wanted


def _parts(found: Expansion, domain_of: Callable[[Piece], Domain]) -> list[_Part] | None:
    """The terms by domain; None where steps or groups have no common pattern."""
    first, several = found.pieces[0], len(found.pieces) > 1
    kinds = [
        [(domain_of(p), several and all(step[g][i] == p for step in found.pieces)) for i, p in enumerate(group)]
        for g, group in enumerate(first)
    ]
    for step in found.pieces:
        if [[domain_of(p) for p in group] for group in step] != [[domain for domain, _ in group] for group in kinds]:
            return None
    parts = []
    for domain in DOMAINS:
        for alike in (True, False):
            chosen = [[i for i, kind in enumerate(group) if kind == (domain, alike)] for group in kinds]
            if not any(chosen):
                continue
            widths = {sum(found.w[g][i].shape[1] for i in which) for g, which in enumerate(chosen)}
            if len(widths) > 1:
                return None
            w = np.stack([np.concatenate([found.w[g][i] for i in which], axis=1) for g, which in enumerate(chosen)])
            steps = found.pieces[:1] if alike else found.pieces
            pieces = [[[step[g][i] for i in which] for g, which in enumerate(chosen)] for step in steps]
            if all(group == step[0] for step in pieces for group in step):  # all groups read the same columns
                pieces, w = [step[:1] for step in pieces], w.reshape(1, -1, w.shape[2])
            parts.append(_Part(domain, alike, pieces, w))
    return parts


def _partial(node: Node, part: _Part, editor: Editor, values: Values, bias: dict[str, str]) -> str:
    """A product of its own, to be added."""
    x, weights, attrs = _product(node, part, editor, values)
    name = editor.fresh(f"{node.output}@{part.domain}")
    linear = {**node.attrs, "activation": "none", "alpha": 0.0, **attrs}
    made = Node("affine", (x,), name, {**weights, **bias}, linear)
    editor.nodes.append(made)
    values.add(made, width=len(part.pieces) * part.w.shape[0] * part.w.shape[1])
    return name


def _product(node: Node, part: _Part, editor: Editor, values: Values) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The x, the weight and the attributes of a part."""
    made_of = [p for step in part.pieces for group in step for p in group]
    x = values.join(made_of, editor, name=f"{node.output}.x@{part.domain}")
    weights = {"w": editor.weight(f"{node.output}.w@{part.domain}", plain(part.w))}
    steps = {"steps": 1} if part.alike else {}
    return x, weights, {"groups": len(part.w), "shared_x": False, **steps}
