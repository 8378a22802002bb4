"""An activation, or a sum, right after an affine becomes part of it."""

from __future__ import annotations

from dataclasses import replace

from fastmtr.compiler.rewrite import Editor, one_step, uses
from fastmtr.graph import Graph, Node

__all__ = ["fuse_activation"]


def fuse_activation(graph: Graph) -> Graph:
    """``activation(affine(x))`` and ``affine(x) + y`` become one affine where nobody else reads the inner value.

    The result's bits are those of the separate nodes: an affine adds its addends after product and bias.
    """
    while (fused := _fuse_one_round(graph)) is not None:
        graph = fused
    return graph


def _fuse_one_round(graph: Graph) -> Graph | None:
    used = uses(graph)
    nodes = {n.output: n for n in graph.nodes}
    editor = Editor(graph)
    gone: set[str] = set()
    for node in graph.nodes:
        inner, fused = _fuse(graph, node, nodes, editor)
        if fused is None or inner is None or used[inner] > 1 or inner in gone:
            continue
        gone |= {inner, node.output}
        editor.nodes.append(fused)
    if not gone:
        return None
    editor.nodes += [n for n in graph.nodes if n.output not in gone]
    return _in_order(editor, graph)


def _in_order(editor: Editor, graph: Graph) -> Graph:
    position = {n.output: i for i, n in enumerate(graph.nodes)}
    editor.nodes.sort(key=lambda n: position[n.output])
    return editor.graph()


def _fuse(graph: Graph, node: Node, nodes: dict[str, Node], editor: Editor) -> tuple[str | None, Node | None]:
    """The inner value and the one node in place of two, where ``node`` can take an affine in."""
    if node.op == "activation":
        inner = nodes.get(node.inputs[0])
        if inner is not None and _is_linear(inner):
            attrs = {**inner.attrs, "activation": node.attr("activation"), "alpha": node.attr("alpha")}
            weights = dict(inner.weights)
            if "slope" in node.weights:
                slope = one_step(graph.weights[node.weights["slope"]], inner.attr("steps"))
                if slope is None:
                    return None, None
                weights["slope"] = editor.weight(node.weights["slope"], slope)
            return inner.output, replace(inner, output=node.output, attrs=attrs, weights=weights)
    if node.op == "binary" and node.attr("fn") == "add":
        a, b = node.inputs
        for mine, other in ((a, b), (b, a)):
            inner = nodes.get(mine)
            fits = graph.width(other) == graph.width(mine) and other != mine
            # An addend of a wider domain would move the product into it: W x of a request, plus an item value.
            same = inner is not None and graph.domain(mine) == graph.domain(node.output)
            if inner is not None and _is_linear(inner) and fits and same:
                return inner.output, replace(inner, output=node.output, inputs=(*inner.inputs, other))
    return None, None


def _is_linear(node: Node) -> bool:
    return node.op == "affine" and node.attr("activation") == "none"
