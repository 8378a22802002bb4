"""What the passes share: seeing through concat and slice, and editing a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import Graph, Input, Node, Output

__all__ = ["Editor", "Piece", "canonical", "cut", "listed", "node_pieces", "one_step", "pieces_of", "plain", "uses"]


class Piece(NamedTuple):
    """Columns ``offset .. offset + width`` of a value that is neither a concat nor a slice."""

    source: str
    offset: int
    width: int


def pieces_of(graph: Graph) -> dict[str, tuple[Piece, ...]]:
    """Each value as the shortest row of pieces that it is, side by side."""
    pieces: dict[str, tuple[Piece, ...]] = {i.name: (Piece(i.name, 0, i.width),) for i in graph.inputs}
    for node in graph.nodes:
        pieces[node.output] = node_pieces(node, graph.width(node.output), pieces)
    return pieces


def node_pieces(node: Node, width: int, pieces: Mapping[str, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """The pieces of a node's value, from those of its inputs."""
    if node.op == "concat":
        return _merge(p for name in node.inputs for p in pieces[name])
    if node.op == "slice":
        return cut(pieces[node.inputs[0]], node.attr("offset"), node.attr("width"))
    return (Piece(node.output, 0, width),)


def cut(pieces: Sequence[Piece], offset: int, width: int) -> tuple[Piece, ...]:
    """Columns ``offset .. offset + width`` of what the pieces are together."""
    found, start = [], 0
    for p in pieces:
        low, high = max(offset, start), min(offset + width, start + p.width)
        if low < high:
            found.append(Piece(p.source, p.offset + low - start, high - low))
        start += p.width
    return _merge(found)


def _merge(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    merged: list[Piece] = []
    for p in pieces:
        if merged and merged[-1].source == p.source and merged[-1].offset + merged[-1].width == p.offset:
            p = Piece(p.source, merged[-1].offset, merged.pop().width + p.width)
        merged.append(p)
    return tuple(merged)


def uses(graph: Graph) -> Counter[str]:
    """How often each value is read, by nodes and as an output."""
    return Counter([name for node in graph.nodes for name in node.inputs] + [o.value for o in graph.outputs])


def canonical(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """An affine weight as [groups, n, k]."""
    return weight[None] if weight.ndim == 2 else weight


def plain(weight: NDArray[Any]) -> NDArray[Any]:
    """An affine weight [groups, n, k] without the axis of a single group."""
    return weight[0] if len(weight) == 1 else weight


def listed(names: Sequence[str]) -> str:
    """Names for a remark: the first few, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def one_step(vector: NDArray[Any], steps: int) -> NDArray[Any] | None:
    """The numbers of one step of a vector for so many steps; None where the steps differ."""
    rows = vector.reshape(steps, -1)
    return rows[0] if (rows == rows[0]).all() else None


class Editor:
    """A graph in the course of being rewritten.

    Nodes may be put in any order; :meth:`graph` sorts them, keeping the given order wherever it can.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs: tuple[Input, ...] = graph.inputs
        self.nodes: list[Node] = []
        self.outputs: list[Output] = list(graph.outputs)
        self.weights: dict[str, NDArray[np.float32]] = dict(graph.weights)
        self._taken = {i.name for i in graph.inputs} | {n.output for n in graph.nodes}
        self._joined: dict[tuple[Piece, ...], str] = {}

    def know(self, pieces: Mapping[str, tuple[Piece, ...]]) -> None:
        """Let :meth:`join` use these values, which the pass keeps."""
        for value, made_of in pieces.items():
            self._joined.setdefault(made_of, value)

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Register a weight under that name or one like it, and return the name.

        A name is never given to other numbers than it had: a bundle keeps weights from before and after compilation
        in one file.
        """
        made = np.ascontiguousarray(array, dtype=np.float32)
        chosen, number = name, 1
        while chosen in self.weights:
            if self.weights[chosen].shape == made.shape and np.array_equal(self.weights[chosen], made):
                return chosen
            number += 1
            chosen = f"{name}~{number}"
        self.weights[chosen] = made
        return chosen

    def fresh(self, name: str) -> str:
        """That name or one like it, for a new value."""
        chosen, number = name, 1
        while chosen in self._taken:
            number += 1
            chosen = f"{name}~{number}"
        self._taken.add(chosen)
        return chosen

    def free(self, name: str) -> None:
        """The value of that name goes, so that another may have the name."""
        self._taken.discard(name)

    def join(self, pieces: Sequence[Piece], widths: Mapping[str, int], *, name: str) -> str:
        """A value that is these pieces side by side: an existing one where there is one, else a new slice or concat."""
        wanted = _merge(pieces)
        if wanted in self._joined:
            return self._joined[wanted]
        parts = [self._part(p, widths) for p in wanted]
        if len(parts) == 1:
            value = parts[0]
        else:
            value = self.fresh(name)
            self.nodes.append(Node("concat", tuple(parts), value))
        self._joined[wanted] = value
        return value

    def _part(self, piece: Piece, widths: Mapping[str, int]) -> str:
        if piece.offset == 0 and piece.width == widths[piece.source]:
            return piece.source
        if (piece,) not in self._joined:
            value = self.fresh(f"{piece.source}[{piece.offset}:{piece.offset + piece.width}]")
            attrs = {"offset": piece.offset, "width": piece.width}
            self.nodes.append(Node("slice", (piece.source,), value, {}, attrs))
            self._joined[(piece,)] = value
        return self._joined[(piece,)]

    def graph(self) -> Graph:
        """The graph as it is now, without weights that nobody reads."""
        named = {name for node in self.nodes for name in node.weights.values()}
        weights = {name: array for name, array in self.weights.items() if name in named}
        return Graph(self.inputs, tuple(_sorted(self.nodes)), tuple(self.outputs), weights)


def _sorted(nodes: Sequence[Node]) -> list[Node]:
    by_output = {n.output: n for n in nodes}
    done: set[str] = set()
    ordered: list[Node] = []
    for first in nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            missing = [by_output[i] for i in node.inputs if i in by_output and i not in done]
            if node.output in done:
                stack.pop()
            elif missing:
                stack.append(missing[0])
            else:
                done.add(node.output)
                ordered.append(stack.pop())
    return ordered
