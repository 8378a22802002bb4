"""Leave out what no output needs, and compute equal things once."""

from __future__ import annotations

import json
from dataclasses import replace

from fastmtr.compiler.rewrite import Editor
from fastmtr.graph import Graph

__all__ = ["merge_equal_nodes", "remove_dead_code"]


def remove_dead_code(graph: Graph) -> Graph:
    """Nodes and weights that no output depends on go. Inputs stay: they say where their columns are packed."""
    needed = {o.value for o in graph.outputs}
    editor = Editor(graph)
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            editor.nodes.append(node)
    editor.nodes.reverse()
    return editor.graph()


def merge_equal_nodes(graph: Graph) -> Graph:
    """Of nodes with the same operator, inputs, weights and attributes only the first stays."""
    editor = Editor(graph)
    instead: dict[str, str] = {}
    first: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(instead.get(name, name) for name in node.inputs)
        attrs = {name: node.attr(name) for name in sorted({**node.attrs})}
        key = json.dumps([node.op, inputs, sorted(node.weights.items()), attrs])
        if key in first:
            instead[node.output] = first[key]
        else:
            first[key] = node.output
            editor.nodes.append(replace(node, inputs=inputs))
    editor.outputs = [replace(o, value=instead.get(o.value, o.value)) for o in graph.outputs]
    return editor.graph()
