"""A concat of concats and slices becomes one concat; a slice is cut from what was computed, not from a concat."""

from __future__ import annotations

from dataclasses import replace

from fastmtr.compiler.rewrite import Editor, pieces_of
from fastmtr.graph import Graph

__all__ = ["flatten"]


def flatten(graph: Graph) -> Graph:
    """Rewrite every concat and slice in its shortest form, equal ones as one value."""
    pieces = pieces_of(graph)
    widths = {name: graph.width(name) for name in pieces}
    editor = Editor(graph)
    instead: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("concat", "slice"):
            editor.free(node.output)
            instead[node.output] = editor.join(pieces[node.output], widths, name=node.output)
        else:
            inputs = tuple(instead.get(name, name) for name in node.inputs)
            editor.nodes.append(replace(node, inputs=inputs))
    editor.outputs = [replace(o, value=instead.get(o.value, o.value)) for o in graph.outputs]
    return editor.graph()
