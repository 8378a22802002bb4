"""What is constant, or changes nothing, or is two steps where one would do, is written more simply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.compiler.linear import Values, steps_of
from fastmtr.compiler.rewrite import Editor, uses
from fastmtr.graph import Graph, Node, join_domains
from fastmtr.reference import apply

__all__ = ["simplify"]

_F64 = NDArray[np.float64]

# Activations whose results relu leaves as they are.
_NOT_NEGATIVE = ("relu", "sigmoid", "exp", "softplus", "relu6", "hard_sigmoid", "sqrt", "abs")


def simplify(graph: Graph) -> Graph:
    """Fold constants, leave out identities, and join pairs of nodes.

    * A value that does not depend on its inputs (scaled by zeros; a softmax over one column; whatever is computed from
      such values alone) is computed now. Arithmetic with it becomes a ``scale_shift`` of the other value.
    * Left out: scales of one, activations that change nothing, reductions of one, sums of one.
    * One instead of two: a scale of a scale; ``sum(a * b)``, an inner product; a pooled embedding of one id; an affine
      of an affine without activation, where that takes no more operations.

    The new numbers are computed in float64 and rounded to float32 once, so results may differ by a few 2^-24 of the sum
    of the absolute values of their terms.
    """
    return _Simplifier(graph).run()


class _Simplifier:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.editor = Editor(graph)
        self.values = Values(graph, self.editor.weights)
        self.used = uses(graph)
        self.instead: dict[str, str] = {}
        self.constants: dict[str, _F64] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            width = self.graph.width(node.output)
            node = replace(node, inputs=tuple(self.instead.get(name, name) for name in node.inputs))
            constant = self._constant(node, width)
            if constant is not None:
                self.constants[node.output] = constant
                node = self._of_constant(node, constant)
            else:
                for rule in _RULES:
                    node = rule(self, node, width)
                same = self._identity(node, width)
                if same is not None:
                    self.instead[node.output] = same
                    self.used[same] += self.used[node.output] - 1
                    continue
            self.editor.nodes.append(node)
            self.values.add(node, width=width)
        self.editor.outputs = [replace(o, value=self.instead.get(o.value, o.value)) for o in self.graph.outputs]
        return self.editor.graph()

    def _vector(self, node: Node, role: str) -> _F64:
        return self.editor.weights[node.weights[role]].astype(np.float64)

    def _made_by(self, value: str, op: str) -> Node | None:
        node = self.values.nodes.get(value)
        return node if node is not None and node.op == op else None

    # ---- constants ----

    def _constant(self, node: Node, width: int) -> _F64 | None:
        """The value, where it is the same whatever the inputs are."""
        if node.op == "softmax" and node.attr("size") == 1:
            return np.ones(width)
        if node.op == "scale_shift" and not self._vector(node, "scale").any():
            return self._vector(node, "shift")
        if node.op == "affine" and "w" in node.weights and not self._vector(node, "w").any():
            known = [np.zeros(self.values.widths[node.inputs[0]]), *map(self.constants.get, node.inputs[1:])]
        else:
            known = [self.constants.get(name) for name in node.inputs]
        inputs = [c[None] for c in known if c is not None]
        if len(inputs) < len(known):
            return None
        weights = {role: self._vector(node, role) for role in node.weights}
        computed = np.asarray(apply(node.op, inputs, weights, node.attr)[0], np.float64)
        return computed if np.isfinite(computed).all() else None

    def _of_constant(self, node: Node, constant: _F64) -> Node:
        """A node that gives the constant, in a domain that the value may have."""
        if node.op in ("scale_shift", "concat", "slice"):
            return node  # a place, not a computation
        base, n = node.inputs[0], len(constant)
        while base in self.constants:
            base = self.values.nodes[base].inputs[0]
        shift = self.editor.weight(f"{node.output}.shift", constant)
        if self.values.widths[base] == n:
            scale = self.editor.weight(f"{node.output}.scale", np.zeros(n))
            return Node("scale_shift", (base,), node.output, {"scale": scale, "shift": shift})
        w = self.editor.weight(f"{node.output}.w", np.zeros((n, self.values.widths[base])))
        return Node("affine", (base,), node.output, {"w": w, "b": shift})

    def _arithmetic(self, node: Node, width: int) -> Node:
        """``a`` and a constant, added, multiplied, ..., as a scale and a shift of a."""
        if node.op != "binary":
            return node
        a, b = node.inputs
        swapped = b not in self.constants
        x, known = (b, self.constants.get(a)) if swapped else (a, self.constants[b])
        made = None if known is None else _scale_and_shift(node.attr("fn"), known, swapped)
        if known is not None and node.attr("fn") == "max" and not known.any() and self.values.widths[x] == width:
            return Node("activation", (x,), node.output, {}, {"activation": "relu"})
        if made is None:
            return node
        scale, shift = (np.broadcast_to(v, width) for v in made)
        b = self.editor.weight(f"{node.output}.shift", shift)
        if self.values.widths[x] == width:
            scales = self.editor.weight(f"{node.output}.scale", scale)
            return Node("scale_shift", (x,), node.output, {"scale": scales, "shift": b})
        w = self.editor.weight(f"{node.output}.w", scale[:, None])
        return Node("affine", (x,), node.output, {"w": w, "b": b})

    # ---- identities ----

    def _identity(self, node: Node, width: int) -> str | None:
        """The input that the value equals."""
        x = node.inputs[0]
        match node.op:
            case "scale_shift":
                same = (self._vector(node, "scale") == 1).all() and not self._vector(node, "shift").any()
            case "activation":
                same = node.attr("activation") == "none" or (
                    node.attr("activation") == "relu" and self._not_negative(x)
                )
            case "reduce":
                same = node.attr("axis") == 1
            case "affine":
                same = not node.weights and len(node.inputs) == 1 and node.attr("activation") == "none"
                same = same and self.values.widths[x] == width
            case "repeat":
                same = node.attr("times") == 1
            case "transpose":
                same = 1 in (node.attr("a"), node.attr("b"))
            case "mixture":
                x = node.inputs[-1]
                same = len(node.inputs) == 2 and (self.constants.get(node.inputs[0], np.zeros(1)) == 1).all()
            case _:
                same = False
        return x if same else None

    def _not_negative(self, value: str) -> bool:
        node = self.values.nodes.get(value)
        return node is not None and node.attrs.get("activation") in _NOT_NEGATIVE

    # ---- pairs ----

    def _scale_of_scale(self, node: Node, width: int) -> Node:
        inner = self._made_by(node.inputs[0], "scale_shift")
        if node.op != "scale_shift" or inner is None:
            return node
        scale, shift = self._vector(node, "scale"), self._vector(node, "shift")
        weights = {
            "scale": self.editor.weight(f"{node.output}.scale", self._vector(inner, "scale") * scale),
            "shift": self.editor.weight(f"{node.output}.shift", self._vector(inner, "shift") * scale + shift),
        }
        return Node("scale_shift", inner.inputs, node.output, weights)

    def _inner_product(self, node: Node, width: int) -> Node:
        inner = self._made_by(node.inputs[0], "binary")
        if inner is None or node.op != "reduce" or node.attr("fn") != "sum" or width != 1:
            return node
        equal = self.values.widths[inner.inputs[0]] == self.values.widths[inner.inputs[1]]
        if inner.attr("fn") != "mul" or not equal or self.used[inner.output] > 1:
            return node
        return Node("dot", inner.inputs, node.output)

    def _bag_of_one(self, node: Node, width: int) -> Node:
        if node.op != "embedding_bag" or self.values.widths[node.inputs[0]] > 1:
            return node
        return Node("embedding", node.inputs, node.output, node.weights, {"padding": node.attr("padding")})

    def _affine_of_affine(self, node: Node, width: int) -> Node:
        inner = self._made_by(node.inputs[0], "affine")
        if inner is None or node.op != "affine" or "w" not in node.weights or not _is_plain(inner):
            return node
        if self.used[inner.output] > 1 or not _is_one_group(node) or steps_of(node) != steps_of(inner):
            return node
        # Where its addends are of another domain, the inner product is computed less often than the outer.
        if self.values.domains[inner.output] != join_domains(self.values.domains[name] for name in node.inputs):
            return node
        outer_w, inner_w = (self.editor.weights[n.weights["w"]].astype(np.float64) for n in (node, inner))
        outer_w, inner_w = (w.reshape(-1, w.shape[-1]) for w in (outer_w, inner_w))
        if outer_w.shape[0] * inner_w.shape[1] > inner_w.size + outer_w.size:
            return node
        weights = {**node.weights, "w": self.editor.weight(f"{node.output}.w", outer_w @ inner_w)}
        if "b" in inner.weights:
            bias = outer_w @ self._vector(inner, "b") + self.values.of(node, "b", 0, len(outer_w))
            weights["b"] = self.editor.weight(f"{node.output}.b", bias)
        attrs = {**node.attrs, "groups": 1, "shared_x": False}
        return replace(node, inputs=(*inner.inputs, *node.inputs[1:]), weights=weights, attrs=attrs)


_RULES: tuple[Callable[[_Simplifier, Node, int], Node], ...] = (
    _Simplifier._arithmetic,
    _Simplifier._bag_of_one,
    _Simplifier._inner_product,
    _Simplifier._affine_of_affine,
    _Simplifier._scale_of_scale,
)


def _scale_and_shift(fn: str, constant: _F64, swapped: bool) -> tuple[float | _F64, float | _F64] | None:
    """``x fn constant``, or ``constant fn x`` if they are swapped, as a factor and a summand of x."""
    match fn:
        case "add":
            return 1.0, constant
        case "sub":
            return (-1.0, constant) if swapped else (1.0, -constant)
        case "mul":
            return constant, 0.0
        case "div" if not swapped and (np.abs(constant) > np.finfo(np.float32).tiny).all():
            return 1 / constant, 0.0
    return None


def _is_one_group(node: Node) -> bool:
    return bool(node.attr("groups") == 1 or node.attr("shared_x"))


def _is_plain(node: Node) -> bool:
    """A product of one group and a bias, nothing else."""
    return "w" in node.weights and len(node.inputs) == 1 and node.attr("activation") == "none" and _is_one_group(node)
