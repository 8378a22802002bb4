"""Fixed scales and shifts (batch norm in inference, ``scale_shift``) disappear into the weights beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.linear import Values, expand_affine
from fastmtr.compiler.rewrite import Editor, one_step, pieces_of, plain, uses
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, Node

__all__ = ["fold_batch_norm"]

_F64 = NDArray[np.float64]


def fold_batch_norm(graph: Graph) -> Graph:
    """Remove every ``batch_norm``, and every ``scale_shift`` that stands beside a product.

    After a linear affine or a convolution it scales rows of the weight, where it is the same for each step. Before an
    affine it scales columns (seen through concat and slice). A batch norm that stands elsewhere becomes a
    ``scale_shift``. Folded weights are computed in float64 and rounded to float32 once, so results may differ by that
    rounding.
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
        scaled = None
        if before is not None and _is_plain(before) and used[before.output] == 1:
            scaled = _scaled(before, node.output, scale, shift, editor)
        if before is not None and scaled is not None:
            nodes[node.output] = scaled
            del nodes[before.output]
        elif node.op == "batch_norm":
            weights = {
                "scale": editor.weight(f"{node.output}.scale", scale),
                "shift": editor.weight(f"{node.output}.shift", shift),
            }
            nodes[node.output] = Node("scale_shift", node.inputs, node.output, weights)
    editor.nodes = list(nodes.values())
    return editor.graph()


def _scaled(product: Node, output: str, scale: _F64, shift: _F64, editor: Editor) -> Node | None:
    """The product with the rows of its weight scaled; None where that is not the same for all of its steps."""
    w = editor.weights[product.weights["w"]].astype(np.float64)
    rows = w.shape[0] if product.op == "conv1d" else w.size // w.shape[-1]
    one_scale, one_shift = (one_step(v, len(v) // rows) for v in (scale, shift))
    if one_scale is None or one_shift is None:
        return None
    bias = editor.weights[product.weights["b"]] if "b" in product.weights else np.zeros(rows)
    weights = {
        "w": editor.weight(f"{output}.w", (w.reshape(rows, -1) * one_scale[:, None]).reshape(w.shape)),
        "b": editor.weight(f"{output}.b", bias * one_scale + one_shift),
    }
    return replace(product, output=output, weights=weights)


def _is_plain(node: Node) -> bool:
    """A product and a bias, nothing else."""
    if node.op == "conv1d":
        return True
    return node.op == "affine" and "w" in node.weights and len(node.inputs) == 1 and node.attr("activation") == "none"


def _fold_into_following(graph: Graph) -> Graph:
    editor = Editor(graph)
    values = Values(graph, editor.weights)
    editor.know(pieces_of(graph))
    scaled = {n.output for n in graph.nodes if n.op == "scale_shift"}
    for node in graph.nodes:
        values.add(node, width=graph.width(node.output))
        if (
            node.op == "affine"
            and "w" in node.weights
            and any(p.source in scaled for p in values.pieces[node.inputs[0]])
        ):
            node = _without_scales(node, editor, values, scaled)
        editor.nodes.append(node)
    return editor.graph()


def _without_scales(node: Node, editor: Editor, values: Values, scaled: Collection[str]) -> Node:
    found = expand_affine(node, values, wanted=lambda p, _: p.source in scaled)
    if found is None or len({sum(w.shape[1] for w in parts) for parts in found.w}) > 1:
        return node
    w = np.stack([np.concatenate(parts, axis=1) for parts in found.w])
    bias = values.of(node, "b", 0, len(found.constant)) + found.constant
    weights = {"w": editor.weight(f"{node.output}.w", plain(w)), "b": editor.weight(f"{node.output}.b", bias)}
    made_of = [p for step in found.pieces for group in step for p in group]
    x = values.join(made_of, editor, name=f"{node.output}.x")
    attrs = {**node.attrs, "groups": len(w), "shared_x": False}
    return replace(node, inputs=(x, *node.inputs[1:]), weights={**node.weights, **weights}, attrs=attrs)
