"""Values as weighted sums of other values, which lets a product move to where its inputs come from.

``W [a - b; s * c]`` is ``W1 a - W1 b + (W2 s) c``: the same in real arithmetic. Weights are combined in float64 and
rounded to float32 once, so an element of the product moves by at most 2^-24 of the sum of its terms' absolute values,
and not at all where the weights are only cut, moved or negated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.rewrite import Editor, Piece, canonical, cut, node_pieces
from fastmtr.graph import Domain, Graph, Node, join_domains

__all__ = ["Expansion", "Term", "Values", "Wanted", "expand_affine", "is_sum", "steps_of", "summed_pieces"]

_F64 = NDArray[np.float64]
_Columns = NDArray[np.intp]


class Values:
    """What a pass knows of the values that it has passed or made.

    Parameters
    ----------
    graph : Graph
        Its inputs are known at once.
    weights : mapping of str to ndarray
        Those of the graph in the course of being rewritten.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: dict[str, Node] = {}
        self.pieces: dict[str, tuple[Piece, ...]] = {i.name: (Piece(i.name, 0, i.width),) for i in graph.inputs}
        self.widths = {i.name: i.width for i in graph.inputs}
        self.domains: dict[str, Domain] = {i.name: i.domain for i in graph.inputs}
        self.order = {i.name: at for at, i in enumerate(graph.inputs)}

    def add(self, node: Node, *, width: int) -> None:
        """A node whose inputs are known."""
        self.nodes[node.output] = node
        self.order.setdefault(node.output, len(self.order))
        self.widths[node.output] = width
        self.domains[node.output] = join_domains(self.domains[name] for name in node.inputs)
        self.pieces[node.output] = node_pieces(node, width, self.pieces)

    def join(self, pieces: Sequence[Piece], editor: Editor, *, name: str) -> str:
        """:meth:`Editor.join`, whose value is known from then on."""
        value = editor.join(pieces, self.widths, name=name)
        if value not in self.pieces:
            self.widths[value] = sum(p.width for p in pieces)
            self.pieces[value] = cut(pieces, 0, self.widths[value])
            self.domains[value] = join_domains(self.domains[p.source] for p in pieces)
            self.order[value] = len(self.order)
        return value

    def of(self, node: Node, role: str, otherwise: float, n: int) -> _F64:
        """A vector of a node in float64, or n times a number where the node has none."""
        name = node.weights.get(role)
        return np.full(n, otherwise) if name is None else self.weights[name].astype(np.float64)


class _Summand(NamedTuple):
    value: str
    columns: _Columns  # of value, one for each column of the sum
    factor: float | _F64


def is_sum(node: Node | None) -> bool:
    """The node's columns are weighted sums of columns of its inputs, few for each."""
    if node is None:
        return False
    if node.op == "binary":
        return node.attr("fn") in ("add", "sub")
    if node.op == "affine":
        return "w" not in node.weights and node.attr("activation") == "none"
    return node.op in ("scale_shift", "repeat", "transpose")


def _summands(node: Node, columns: _Columns, values: Values) -> tuple[list[_Summand], _F64]:
    """What these columns of the node are the sum of, and what is added to it."""
    zero = np.zeros(len(columns))
    signs: tuple[float, ...]
    widths = [values.widths[name] for name in node.inputs]
    match node.op:
        case "scale_shift":
            scale = values.of(node, "scale", 1, widths[0])[columns]
            return [_Summand(node.inputs[0], columns, scale)], values.of(node, "shift", 0, widths[0])[columns]
        case "repeat":
            times, inner = node.attr("times"), widths[0] // node.attr("outer")
            return [_Summand(node.inputs[0], columns // (times * inner) * inner + columns % inner, 1.0)], zero
        case "transpose":
            a, b, inner = node.attr("a"), node.attr("b"), node.attr("inner")
            outer, in_b, in_a, at = np.unravel_index(columns, (widths[0] // (a * b * inner), b, a, inner))
            return [_Summand(node.inputs[0], ((outer * a + in_a) * b + in_b) * inner + at, 1.0)], zero
        case "binary":
            signs = (1.0, 1.0 if node.attr("fn") == "add" else -1.0)
        case _:
            signs = (1.0,) * len(widths)
            if "b" in node.weights:
                shift = values.of(node, "b", 0, 0)
                zero = shift[columns % len(shift)]
    # An input of fewer columns stands for each of several: a scalar, or an addend of every step.
    return [_Summand(v, columns % n, s) for v, n, s in zip(node.inputs, widths, signs, strict=True)], zero


class Term(NamedTuple):
    """``w @ piece``, where w is [n, the piece's width]."""

    piece: Piece
    w: _F64


Wanted = Callable[[Piece, Collection[Piece]], bool]
"""Whether to replace columns of a sum by what they are the sum of, where these pieces are terms as well."""


def _expand(x: Sequence[Piece], w: _F64, values: Values, wanted: Wanted) -> tuple[list[Term], _F64, bool]:
    """``w @ x`` as terms of different pieces and a constant, and whether that differs from what was given.

    The value computed last is replaced first, so that each is replaced once, however often it is read.
    """
    terms: dict[Piece, _F64] = {}
    start = 0
    for p in x:
        part = w[:, start : start + p.width]
        terms[p] = terms[p] + part if p in terms else part
        start += p.width
    changed = len(terms) < len(x)
    constant = np.zeros(len(w))
    settled: set[Piece] = set()
    while open_pieces := [p for p in terms if p not in settled]:
        latest = max(open_pieces, key=lambda p: (values.order[p.source], p.offset, p.width))
        node = values.nodes.get(latest.source)
        if node is None or not is_sum(node) or not wanted(latest, terms.keys()):
            settled.add(latest)
            continue
        changed = True
        rows, shift = _summands(node, np.arange(latest.offset, latest.offset + latest.width), values)
        constant = constant + terms[latest] @ shift
        replaced: dict[Piece, _F64] = {}
        for p, known in terms.items():
            new = [t for s in rows for t in _columns_as_terms(s, known, values)] if p == latest else [Term(p, known)]
            for piece, part in new:
                replaced[piece] = replaced[piece] + part if piece in replaced else part
        terms = replaced
    return [Term(p, part) for p, part in terms.items()], constant, changed


def runs(columns: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Ascending columns in parts without gaps."""
    return np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)


def _columns_as_terms(summand: _Summand, w: _F64, values: Values) -> list[Term]:
    columns, first, inverse = np.unique(summand.columns, return_index=True, return_inverse=True)
    weighted = w * summand.factor
    if len(columns) < len(summand.columns):
        total = np.zeros((len(w), len(columns)))
        np.add.at(total.T, inverse, weighted.T)
    else:
        total = weighted[:, first]
    terms = []
    at = 0
    for run in runs(columns):
        for p in cut(values.pieces[summand.value], int(run[0]), len(run)):
            terms.append(Term(p, total[:, at : at + p.width]))
            at += p.width
    return terms


def summed_pieces(p: Piece, values: Values) -> list[Piece]:
    """The pieces that columns of a sum are the sum of."""
    rows, _ = _summands(values.nodes[p.source], np.arange(p.offset, p.offset + p.width), values)
    return [t.piece for s in rows for t in _columns_as_terms(s, np.empty((0, p.width)), values)]


def steps_of(node: Node) -> int:
    """How many rows side by side go through the affine."""
    return int(node.attrs.get("steps", 1))


@dataclass(frozen=True)
class Expansion:
    """The product of an affine as terms.

    Parameters
    ----------
    pieces : list of list of list of Piece
        For each step and each group, the pieces of its terms.
    w : list of list of ndarray
        For each group, the weight [n, width] of each of the terms; the same for each step.
    constant : ndarray, shape (groups * n,)
        To be added to the bias.
    changed : bool
        The terms are not the pieces of x as they are.
    """

    pieces: list[list[list[Piece]]]
    w: list[list[_F64]]
    constant: _F64
    changed: bool


def expand_affine(node: Node, values: Values, *, wanted: Wanted) -> Expansion | None:
    """Expand the product of an affine through the sums that ``wanted`` says yes to; equal pieces become one.

    Groups that share x are seen as one. None: its steps differ in more than what they read.
    """
    w = canonical(values.weights[node.weights["w"]]).astype(np.float64)
    if node.attr("shared_x"):
        w = w.reshape(1, -1, w.shape[2])
    groups, _, k = w.shape
    x = values.pieces[node.inputs[0]]
    found: Expansion | None = None
    for step in range(steps_of(node)):
        rows = [_expand(cut(x, (step * groups + g) * k, k), w[g], values, wanted) for g in range(groups)]
        pieces = [[t.piece for t in terms] for terms, _, _ in rows]
        parts = [[t.w for t in terms] for terms, _, _ in rows]
        constant = np.concatenate([c for _, c, _ in rows])
        if found is None:
            found = Expansion([pieces], parts, constant, any(changed for _, _, changed in rows))
        elif _equal(found.w, parts) and np.array_equal(found.constant, constant):
            found.pieces.append(pieces)
        else:
            return None
    return found


def _equal(a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> bool:
    return all(
        len(mine) == len(other) and all(np.array_equal(v, w) for v, w in zip(mine, other, strict=True))
        for mine, other in zip(a, b, strict=True)
    )
