"""Fixed scales and shifts (batch norm in inference, ``scale_shift``) disappear into the weights beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.rewrite import Editor, Piece, canonical, cut, pieces_of, uses
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, Node

__all__ = ["fold_batch_norm"]

_F64 = NDArray[np.float64]


def fold_batch_norm(graph: Graph) -> Graph:
    """Remove every ``batch_norm``, and every ``scale_shift`` that stands before or after an affine.

    After a linear affine it scales rows of the weight, before one it scales columns (seen through concat and slice); a
    batch norm that stands elsewhere becomes a ``scale_shift``. Folded weights are computed in float64 and rounded to
    float32 once, so results may differ by that rounding.
    """
    return _fold_into_following(_fold_into_preceding(graph))


def _factors(node: Node, weights: Mapping[str, NDArray[np.float32]], width: int) -> tuple[_F64, _F64]:
    given = {role: weights[name].astype(np.float64) for role, name in node.weights.items()}
    scale, shift = given.get("scale", np.ones(width)), given.get("shift", np.zeros(width))
    if node.op == "scale_shift":
        return scale, shift
    variance = given["var"] + node.attr("eps")
    if not (variance > 0).all():
        raise ConversionError(f"node {node.output!r} (batch_norm): var + eps must be positive, found {variance.min()}")
    scale = scale / np.sqrt(variance)
    return scale, shift - given["mean"] * scale


def _fold_into_preceding(graph: Graph) -> Graph:
    used = uses(graph)
    nodes: dict[str, Node] = {}  # as rewritten so far
    editor = Editor(graph)
    for node in graph.nodes:
        nodes[node.output] = node
        if node.op not in ("batch_norm", "scale_shift"):
            continue
        scale, shift = _factors(node, editor.weights, graph.width(node.output))
        before = nodes.get(node.inputs[0])
        if before is not None and _is_plain(before) and used[before.output] == 1:
            w = canonical(editor.weights[before.weights["w"]]).astype(np.float64)
            bias = editor.weights[before.weights["b"]] if "b" in before.weights else np.zeros(len(scale))
            weights = {
                "w": editor.weight(f"{node.output}.w", w * scale.reshape(w.shape[0], w.shape[1], 1)),
                "b": editor.weight(f"{node.output}.b", bias * scale + shift),
            }
            nodes[node.output] = replace(before, output=node.output, weights=weights)
            del nodes[before.output]
        elif node.op == "batch_norm":
            weights = {
                "scale": editor.weight(f"{node.output}.scale", scale),
                "shift": editor.weight(f"{node.output}.shift", shift),
            }
            nodes[node.output] = Node("scale_shift", node.inputs, node.output, weights)
    editor.nodes = list(nodes.values())
    return editor.graph()


def _is_plain(node: Node) -> bool:
    """A product and a bias, nothing else."""
    return node.op == "affine" and "w" in node.weights and len(node.inputs) == 1 and node.attr("activation") == "none"


def _fold_into_following(graph: Graph) -> Graph:
    pieces = pieces_of(graph)
    widths = {name: graph.width(name) for name in pieces}
    scalers = {n.output: n for n in graph.nodes if n.op == "scale_shift"}
    editor = Editor(graph)
    editor.know(pieces)
    for node in graph.nodes:
        scaled = "w" in node.weights and any(p.source in scalers for p in pieces[node.inputs[0]])
        editor.nodes.append(_fold_scale(graph, node, editor, pieces, widths, scalers) if scaled else node)
    return editor.graph()


def _fold_scale(
    graph: Graph,
    node: Node,
    editor: Editor,
    pieces: Mapping[str, tuple[Piece, ...]],
    widths: Mapping[str, int],
    scalers: Mapping[str, Node],
) -> Node:
    w = canonical(graph.weights[node.weights["w"]]).astype(np.float64)
    groups, n, k = w.shape
    made_of, scale, shift = [], [], []
    for p in pieces[node.inputs[0]]:
        for source, s, t in _unscale(p, graph, pieces, scalers, np.ones(p.width), np.zeros(p.width)):
            made_of.append(source)
            scale.append(s)
            shift.append(t)
    by_group = (1, 1, k) if node.attr("shared_x") else (groups, 1, k)
    s, t = (np.concatenate(v).reshape(by_group) for v in (scale, shift))
    bias = graph.weights[node.weights["b"]] if "b" in node.weights else np.zeros(groups * n)
    weights = {
        **node.weights,
        "w": editor.weight(f"{node.output}.w", w * s),
        "b": editor.weight(f"{node.output}.b", bias + (w * t).sum(axis=2).reshape(-1)),
    }
    x = editor.join(made_of, widths, name=f"{node.output}.x")
    return replace(node, inputs=(x, *node.inputs[1:]), weights=weights)


def _unscale(
    piece: Piece,
    graph: Graph,
    pieces: Mapping[str, tuple[Piece, ...]],
    scalers: Mapping[str, Node],
    scale: _F64,
    shift: _F64,
) -> list[tuple[Piece, _F64, _F64]]:
    """``scale * piece + shift`` as pieces that no ``scale_shift`` made."""
    node = scalers.get(piece.source)
    if node is None:
        return [(piece, scale, shift)]
    here = slice(piece.offset, piece.offset + piece.width)
    own_scale, own_shift = (v[here] for v in _factors(node, graph.weights, graph.width(node.output)))
    shift = shift + scale * own_shift
    scale = scale * own_scale
    found, start = [], 0
    for p in cut(pieces[node.inputs[0]], piece.offset, piece.width):
        columns = slice(start, start + p.width)
        found += _unscale(p, graph, pieces, scalers, scale[columns], shift[columns])
        start += p.width
    return found
