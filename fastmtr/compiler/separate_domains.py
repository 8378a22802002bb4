"""What is done block by block, or summed over blocks, is done for the blocks of each domain apart.

``relu([u; i])`` is ``[relu(u); relu(i)]``, and a sum over fields is the sum over the user's plus that over the item's:
so one is computed once a request and the other once an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.linear import Values, is_sum, runs
from fastmtr.compiler.rewrite import Editor, Piece, cut, pieces_of
from fastmtr.graph import Domain, Graph, Node

__all__ = ["separate_domains"]

_CODES: Mapping[Domain, int] = {"request": 1, "item": 2, "candidate": 4}
_PER_COLUMN = ("activation", "scale_shift", "batch_norm")  # their weights have a number for each column
_Indices = NDArray[np.intp]


def separate_domains(graph: Graph) -> Graph:
    """Compute apart what depends on the request alone and on the item alone.

    * Operators that treat equal blocks of columns alike (activations, arithmetic of equal widths, softmax and
      normalisation of runs, the steps of an affine, the outer axis of a reduction): each domain's blocks by themselves.
    * Reductions and inner products over blocks of several domains: each domain's part by itself, then the sum (or the
      greatest) of the parts.
    * Sums over columns of a sum whose terms are of several domains: the sum of each term, then their sum.

    All exact in real arithmetic. The order of a sum changes, and the parts of a mean are weighted by factors rounded to
    float32, so results may differ by a few 2^-24 of the sum of the absolute values.
    """
    return _Separation(graph).run()


class _Blocks(NamedTuple):
    """How an operator treats blocks of columns.

    Parameters
    ----------
    number : int
    widths : tuple of int or None
        Columns of a block of each input; None: every block reads the whole input.
    output : int
        Columns of a block of the result.
    counted : str or None
        The attribute that says how many blocks there are.
    """

    number: int
    widths: tuple[int | None, ...]
    output: int
    counted: str | None = None


def _blocks(node: Node, widths: Sequence[int], width: int) -> _Blocks | None:
    """None: the operator has no blocks, or one alone."""
    match node.op:
        case op if op in _PER_COLUMN:
            return _Blocks(width, (1,), 1)
        case "binary":
            return _Blocks(width, tuple(1 if w == width else None for w in widths), 1)
        case "softmax" | "layer_norm" | "l2_normalize":
            size = node.attrs.get("size") or width
            return _Blocks(width // size, (size,), size)
        case "reduce":
            outer = node.attr("outer")
            return _Blocks(outer, (widths[0] // outer,), width // outer, "outer")
        case "affine" if "w" in node.weights and len(node.inputs) == 1:
            steps = node.attrs.get("steps", 1)
            return _Blocks(steps, (widths[0] // steps,), width // steps, "steps")
    return None


class _Separation:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.editor = Editor(graph)
        self.editor.know(pieces_of(graph))
        self.values = Values(graph, self.editor.weights)
        self.instead: dict[str, str] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            node = replace(node, inputs=tuple(self.instead.get(name, name) for name in node.inputs))
            width = self.graph.width(node.output)
            made = self._separated(node, width) if self.graph.domain(node.output) == "candidate" else None
            if made is None:
                self._add(node, width)
            else:
                self.instead[node.output] = made
        self.editor.outputs = [replace(o, value=self.instead.get(o.value, o.value)) for o in self.graph.outputs]
        return self.editor.graph()

    def _add(self, node: Node, width: int) -> str:
        self.editor.nodes.append(node)
        self.values.add(node, width=width)
        return node.output

    def _new(self, node: Node, name: str, width: int) -> str:
        return self._add(replace(node, output=self.editor.fresh(name)), width)

    def _separated(self, node: Node, width: int) -> str | None:
        """The value in place of a node's, if it is computed in parts."""
        widths = [self.values.widths[name] for name in node.inputs]
        blocks = _blocks(node, widths, width)
        if blocks is not None:
            by_domain = self._block_domains(node, blocks)
            if len(by_domain) > 1:
                return self._by_block(node, blocks, by_domain)
        if node.op == "dot":
            return self._dot(node)
        if node.op == "reduce":
            return self._reduced(node, width)
        return None

    # ---- blocks that stay side by side ----

    def _codes(self, value: str) -> NDArray[np.uint8]:
        """The domain of each column, as a bit."""
        pieces = self.values.pieces[value]
        return np.repeat(
            np.array([_CODES[self.values.domains[p.source]] for p in pieces], np.uint8), [p.width for p in pieces]
        )

    def _block_domains(self, node: Node, blocks: _Blocks) -> dict[Domain, _Indices]:
        """Which blocks are of which domain."""
        codes = np.zeros(blocks.number, np.uint8)
        for name, w in zip(node.inputs, blocks.widths, strict=True):
            own = self._codes(name)
            codes |= np.bitwise_or.reduce(own.reshape((1, -1) if w is None else (blocks.number, w)), axis=1)
        return _by_code(codes)

    def _by_block(self, node: Node, blocks: _Blocks, by_domain: Mapping[Domain, _Indices]) -> str:
        made_of: list[tuple[int, Piece]] = []
        for domain, which in by_domain.items():
            inputs = [
                name if w is None else self._take(name, which, w, f"{node.output}.x@{domain}")
                for name, w in zip(node.inputs, blocks.widths, strict=True)
            ]
            weights = dict(node.weights)
            if node.op in _PER_COLUMN:
                for role, name in node.weights.items():
                    weights[role] = self.editor.weight(f"{name}@{domain}", self.editor.weights[name][which])
            attrs = {**node.attrs, **({blocks.counted: len(which)} if blocks.counted else {})}
            part = replace(node, inputs=tuple(inputs), weights=weights, attrs=attrs)
            value = self._new(part, f"{node.output}@{domain}", len(which) * blocks.output)
            made_of += [(int(b), Piece(value, at * blocks.output, blocks.output)) for at, b in enumerate(which)]
        self.editor.free(node.output)
        return self.values.join([p for _, p in sorted(made_of)], self.editor, name=node.output)

    def _take(self, value: str, which: _Indices, width: int, name: str) -> str:
        """Those blocks of a value, side by side."""
        pieces = self.values.pieces[value]
        made_of = [p for run in runs(which) for p in cut(pieces, int(run[0]) * width, len(run) * width)]
        return self.values.join(made_of, self.editor, name=name)

    # ---- blocks that are summed ----

    def _dot(self, node: Node) -> str | None:
        by_domain = _by_code(np.bitwise_or.reduce([self._codes(name) for name in node.inputs]))
        if len(by_domain) == 1:
            return None
        parts = []
        for domain, which in by_domain.items():
            inputs = tuple(self._take(name, which, 1, f"{node.output}.x@{domain}") for name in node.inputs)
            parts.append(self._new(replace(node, inputs=inputs), f"{node.output}@{domain}", 1))
        return self._sum(node, parts, 1)

    def _sum(self, node: Node, parts: Sequence[str], width: int) -> str:
        return self._add(Node("affine", tuple(parts), node.output, {}, {"has_x": False}), width)

    def _reduced(self, node: Node, width: int) -> str | None:
        outer, axis, inner = (int(node.attr(name)) for name in ("outer", "axis", "inner"))
        codes = self._codes(node.inputs[0]).reshape(outer, axis, inner)
        rows = [_by_code(row) for row in np.bitwise_or.reduce(codes, axis=2)]
        if len(rows[0]) > 1 and all(_counts(row) == _counts(rows[0]) for row in rows):
            return self._reduced_by_domain(node, rows, axis, inner, width)
        if node.attr("fn") != "max":
            return self._reduced_by_term(node, width)
        return None

    def _reduced_by_domain(
        self, node: Node, rows: Sequence[Mapping[Domain, _Indices]], axis: int, inner: int, width: int
    ) -> str:
        parts = []
        for domain, count in _counts(rows[0]).items():
            which = np.concatenate([o * axis + row[domain] for o, row in enumerate(rows)])
            part = self._take(node.inputs[0], which, inner, f"{node.output}.x@{domain}")
            if count > 1:
                made = replace(node, inputs=(part,), attrs={**node.attrs, "axis": count})
                part = self._new(made, f"{node.output}@{domain}", width)
            if node.attr("fn") == "mean":
                share = np.full(width, count / axis)
                scale = self.editor.weight(f"{node.output}.share@{domain}", share)
                none = self.editor.weight(f"{node.output}.none", np.zeros(width))
                scaled = Node("scale_shift", (part,), "", {"scale": scale, "shift": none})
                part = self._new(scaled, f"{node.output}@{domain}", width)
            parts.append(part)
        if node.attr("fn") != "max":
            return self._sum(node, parts, width)
        while len(parts) > 2:
            greater = Node("binary", (parts[0], parts[1]), "", {}, {"fn": "max"})
            parts[:2] = [self._new(greater, f"{node.output}@max", width)]
        return self._add(Node("binary", tuple(parts), node.output, {}, {"fn": "max"}), width)

    # ---- sums of sums ----

    def _reduced_by_term(self, node: Node, width: int) -> str | None:
        """A sum over columns of a sum of values as the sum of theirs, if some are not the candidate's."""
        if not self._has_simple_term(node.inputs[0]):
            return None
        inner = self.values.nodes[node.inputs[0]]
        parts = []
        for name in inner.inputs:
            part = replace(node, inputs=(name,), output=self.editor.fresh(f"{node.output}.{name}"))
            made = None
            if self.values.domains[name] == "candidate":
                made = self._separated(part, width)
            parts.append(self._add(part, width) if made is None else made)
        return self._add(replace(inner, inputs=tuple(parts), output=node.output), width)

    def _has_simple_term(self, value: str) -> bool:
        """It is a sum of values as wide, one of them, or of theirs, not of the candidate."""
        node = self.values.nodes.get(value)
        if node is None or node.op not in ("binary", "affine") or not is_sum(node) or node.weights:
            return False
        if any(self.values.widths[name] != self.values.widths[value] for name in node.inputs):
            return False
        return any(self.values.domains[n] != "candidate" or self._has_simple_term(n) for n in node.inputs)


def _by_code(codes: NDArray[np.uint8]) -> dict[Domain, _Indices]:
    """Where the codes are of which domain; what mixes domains is the candidate's."""
    found: dict[Domain, _Indices] = {
        "request": np.flatnonzero(codes == _CODES["request"]),
        "item": np.flatnonzero(codes == _CODES["item"]),
    }
    found["candidate"] = np.setdiff1d(np.arange(len(codes)), np.concatenate(list(found.values())))
    return {domain: which for domain, which in found.items() if len(which)}


def _counts(row: Mapping[Domain, _Indices]) -> dict[Domain, int]:
    return {domain: len(which) for domain, which in row.items()}
