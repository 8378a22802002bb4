"""Many small products side by side become few large ones: the experts, gates and towers of a multi-task model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fastmtr.compiler.rewrite import Editor, Piece, canonical, pieces_of, plain
from fastmtr.graph import Domain, Graph, Node

__all__ = ["stack_siblings"]


def stack_siblings(graph: Graph, *, domains: Collection[Domain] = ("request", "candidate")) -> Graph:
    """Merge products and softmaxes that stand side by side.

    * Affines of one input with one activation become an affine with all their outputs (the first layers of experts; the
      logits of gates).
    * Affines of one shape over different inputs become one with ``groups`` (second layers of experts; towers), where
      their inputs are neighbouring columns already or can be written side by side.
    * Softmaxes over neighbouring columns become one.

    Each output element is computed as before, term by term, so no bit changes. Item values are not stacked by default:
    they are stored one by one, as memory allows. Affines of several steps stay as they are: their outputs would not be
    side by side.
    """
    graph = _ungroup_shared(graph, domains)
    while True:
        for stack in (_stack_same_input, _group_same_shape, _merge_softmaxes):
            stacked = stack(graph, domains)
            if stacked is not None:
                graph = stacked
                break
        else:
            return graph


def _ungroup_shared(graph: Graph, domains: Collection[Domain]) -> Graph:
    """Groups that read the same columns are one group with all their outputs."""
    editor = Editor(graph)
    for node in graph.nodes:
        if node.attrs.get("shared_x") and graph.domain(node.output) in domains:
            w = graph.weights[node.weights["w"]]
            weights = {**node.weights, "w": editor.weight(f"{node.output}.w", w.reshape(-1, w.shape[-1]))}
            node = replace(node, weights=weights, attrs={**node.attrs, "groups": 1, "shared_x": False})
        editor.nodes.append(node)
    return editor.graph()


def _stack_same_input(graph: Graph, domains: Collection[Domain]) -> Graph | None:
    def key(node: Node) -> Hashable:
        if len(node.inputs) != 1 or node.attr("groups") != 1 or node.attr("steps") != 1:
            return None
        return (node.inputs[0], node.attr("activation"), node.attr("alpha"))

    softmax_size = {n.inputs[0]: n.attr("size") for n in graph.nodes if n.op == "softmax"}
    for siblings in _families(graph, domains, key):
        # Gates of one size become neighbours, so that their softmaxes can be one.
        ordered = sorted(siblings, key=lambda n: softmax_size.get(n.output, 0))
        editor = Editor(graph)
        w = np.concatenate([canonical(graph.weights[n.weights["w"]]) for n in ordered], axis=1)
        attrs = dict(ordered[0].attrs)
        return _replace_family(graph, editor, ordered, ordered[0].inputs[0], w, attrs)
    return None


def _group_same_shape(graph: Graph, domains: Collection[Domain]) -> Graph | None:
    depth = _depths(graph)
    pieces = pieces_of(graph)
    widths = {name: graph.width(name) for name in pieces}

    def key(node: Node) -> Hashable:
        # Of equal depth, so that no member waits for another.
        if len(node.inputs) != 1 or node.attr("shared_x") or node.attr("steps") != 1:
            return None
        shape = canonical(graph.weights[node.weights["w"]]).shape[1:]
        return (shape, node.attr("activation"), node.attr("alpha"), graph.domain(node.output), depth[node.output])

    for family in _families(graph, domains, key):
        for members in _side_by_side(graph, family, pieces, widths):
            editor = Editor(graph)
            editor.know(pieces)
            made_of = [p for n in members for p in pieces[n.inputs[0]]]
            x = editor.join(made_of, widths, name=f"{_family_name(members)}.x")
            w = np.concatenate([canonical(graph.weights[n.weights["w"]]) for n in members])
            attrs = {**members[0].attrs, "groups": len(w), "shared_x": False}
            return _replace_family(graph, editor, members, x, w, attrs)
    return None


def _side_by_side(
    graph: Graph, family: Sequence[Node], pieces: dict[str, tuple[Piece, ...]], widths: dict[str, int]
) -> Iterable[list[Node]]:
    """Members whose inputs are, or can be laid, side by side without a copy: largest sets first."""
    input_of = {n.output: pieces[n.inputs[0]] for n in family if len(pieces[n.inputs[0]]) == 1}
    single = [n for n in family if n.output in input_of]

    # Neighbouring columns of one value.
    places = [(input_of[n.output][0], n) for n in single]
    found = _runs(places, lambda a, b: a.source == b.source and a.offset + a.width == b.offset)

    # Neighbours in a concat that is there already.
    whole = {n.output: p.source for p, n in places if p.width == widths[p.source]}
    in_concat: set[str] = set()
    for concat in (n.output for n in graph.nodes if n.op == "concat"):
        position = {p.source: at for at, p in enumerate(pieces[concat]) if p.width == widths[p.source]}
        in_concat.update(p.source for p in pieces[concat])
        ranks = [(position[whole[n.output]], n) for n in single if whole.get(n.output) in position]
        found += _runs(ranks, lambda a, b: a + 1 == b)

    # Values that can be written side by side, since nothing else says where they are.
    free: dict[str, Node] = {}
    inputs = {i.name for i in graph.inputs}
    for n in single:
        source = whole.get(n.output)
        if source is not None and source not in inputs | in_concat and graph.domain(source) == graph.domain(n.output):
            free.setdefault(source, n)
    found.append(list(free.values()))
    return sorted((members for members in found if len(members) > 1), key=len, reverse=True)


_Place = TypeVar("_Place", Piece, int)


def _runs(places: Iterable[tuple[_Place, Node]], follows: Callable[[_Place, _Place], bool]) -> list[list[Node]]:
    """Nodes in the order of their places, as runs in which each follows the one before."""
    runs: list[list[Node]] = []
    last: _Place | None = None
    for place, node in sorted(places, key=lambda each: each[0]):
        if last is not None and follows(last, place):
            runs[-1].append(node)
        else:
            runs.append([node])
        last = place
    return runs


def _families(graph: Graph, domains: Collection[Domain], key: Callable[[Node], Hashable]) -> list[list[Node]]:
    """Affines with a product that have the same key (None: no family), where there are several; widest first."""
    families: defaultdict[Hashable, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "affine" and "w" in node.weights and graph.domain(node.output) in domains:
            found = key(node)
            if found is not None:
                families[found].append(node)
    several = [family for family in families.values() if len(family) > 1]
    return sorted(several, key=lambda family: -sum(graph.width(n.output) for n in family))


def _family_name(members: Sequence[Node]) -> str:
    return f"{members[0].output}+{len(members) - 1}"


def _replace_family(
    graph: Graph, editor: Editor, members: Sequence[Node], x: str, w: np.ndarray, attrs: dict[str, object]
) -> Graph:
    """One affine in place of the members, each of which becomes a slice of it."""
    name = editor.fresh(_family_name(members))
    weights = {"w": editor.weight(f"{name}.w", plain(w))}
    for role in ("b", "slope"):
        if any(role in n.weights for n in members):
            parts = [
                graph.weights[n.weights[role]] if role in n.weights else np.zeros(graph.width(n.output), np.float32)
                for n in members
            ]
            weights[role] = editor.weight(f"{name}.{role}", np.concatenate(parts))
    first, offset = {n.output: n for n in members}, 0
    slices: dict[str, Node] = {}
    for member in members:
        width = graph.width(member.output)
        slices[member.output] = Node("slice", (name,), member.output, {}, {"offset": offset, "width": width})
        offset += width
    stacked = Node("affine", (x,), name, weights, attrs)
    placed = False
    for node in graph.nodes:
        if node.output in first:
            if not placed:
                editor.nodes.append(stacked)
                placed = True
            editor.nodes.append(slices[node.output])
        else:
            editor.nodes.append(node)
    return editor.graph()


def _merge_softmaxes(graph: Graph, domains: Collection[Domain]) -> Graph | None:
    pieces = pieces_of(graph)
    widths = {name: graph.width(name) for name in pieces}
    families: defaultdict[Hashable, list[tuple[Piece, Node]]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "softmax" and graph.domain(node.output) in domains and len(pieces[node.inputs[0]]) == 1:
            piece = pieces[node.inputs[0]][0]
            families[(piece.source, node.attr("size"))].append((piece, node))
    for family in families.values():
        family.sort(key=lambda each: each[0])
        run = [family[0]]
        for piece, node in family[1:]:
            if run[-1][0].offset + run[-1][0].width == piece.offset:
                run.append((piece, node))
            elif len(run) > 1:
                break
            else:
                run = [(piece, node)]
        if len(run) > 1:
            return _merge_softmax_run(graph, run, pieces, widths)
    return None


def _merge_softmax_run(
    graph: Graph, run: list[tuple[Piece, Node]], pieces: dict[str, tuple[Piece, ...]], widths: dict[str, int]
) -> Graph:
    editor = Editor(graph)
    editor.know(pieces)
    x = editor.join([piece for piece, _ in run], widths, name=f"{run[0][1].output}.x")
    name = editor.fresh(_family_name([node for _, node in run]))
    merged = {node.output: start for (_, node), start in zip(run, _starts([p.width for p, _ in run]), strict=True)}
    editor.nodes.append(replace(run[0][1], inputs=(x,), output=name))
    for node in graph.nodes:
        if node.output in merged:
            attrs = {"offset": merged[node.output], "width": graph.width(node.output)}
            editor.nodes.append(Node("slice", (name,), node.output, {}, attrs))
        else:
            editor.nodes.append(node)
    return editor.graph()


def _starts(widths: Sequence[int]) -> list[int]:
    return [sum(widths[:i]) for i in range(len(widths))]


def _depths(graph: Graph) -> dict[str, int]:
    """The longest way from an input, counted in nodes that compute something."""
    depth = {i.name: 0 for i in graph.inputs}
    for node in graph.nodes:
        below = max(depth[name] for name in node.inputs)
        depth[node.output] = below + (node.op not in ("concat", "slice"))
    return depth
