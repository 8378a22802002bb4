"""Building a graph node by node: one method an operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.errors import ConversionError
from fastmtr.graph.structure import Domain, Graph, Input, Node, Output, Role, check_outputs, define, input_values

__all__ = ["OperatorBuilder"]


class OperatorBuilder:
    """What :class:`~fastmtr.graph.GraphBuilder` has for each operator."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)
        self._nodes: list[Node] = []
        self._outputs: list[Output] = []
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._values = input_values(self._inputs)

    def width(self, value: str) -> int:
        """Columns of a value made so far."""
        if value not in self._values:
            raise ConversionError(f"the graph has no value {value!r}")
        return self._values[value].width

    def domain(self, value: str) -> Domain:
        """The domain of a value made so far."""
        if value not in self._values:
            raise ConversionError(f"the graph has no value {value!r}")
        return self._values[value].domain

    def weight(self, name: str, array: ArrayLike) -> str:
        """Register a weight (converted to float32) and return its name."""
        if name in self._weights:
            raise ConversionError(f"a weight {name!r} is there already")
        made = np.ascontiguousarray(np.asarray(array), dtype=np.float32).reshape(np.shape(array))
        if not np.isfinite(made).all():
            raise ConversionError(f"weight {name!r} has values that are not finite (NaN or infinite)")
        self._weights[name] = made
        return name

    def array(self, weight: str) -> NDArray[np.float32]:
        """The numbers of a registered weight."""
        if weight not in self._weights:
            raise ConversionError(f"no weight {weight!r} is registered")
        return self._weights[weight]

    def embedding(self, x: str, table: str, *, padding: int | None = None, name: str | None = None) -> str:
        """Rows of ``table`` [V, D] side by side, one for each id of ``x``; zeros for the padding id."""
        return self._add("embedding", [x], {"table": table}, {"padding": padding}, name)

    def embedding_bag(
        self,
        x: str,
        table: str,
        *,
        mode: Literal["sum", "mean", "max"] = "mean",
        padding: int | None = 0,
        name: str | None = None,
    ) -> str:
        """Rows of ``table`` pooled over the ids of ``x`` that are not padding, width D; none left gives zeros."""
        return self._add("embedding_bag", [x], {"table": table}, {"mode": mode, "padding": padding}, name)

    def concat(self, values: Sequence[str], *, name: str | None = None) -> str:
        """Values side by side."""
        return self._add("concat", values, {}, {}, name)

    def slice(self, x: str, offset: int, width: int, *, name: str | None = None) -> str:
        """Columns ``offset .. offset + width``."""
        return self._add("slice", [x], {}, {"offset": offset, "width": width}, name)

    def affine(
        self,
        x: str | None = None,
        *,
        w: str | None = None,
        b: str | None = None,
        addends: Sequence[str] = (),
        groups: int = 1,
        shared_x: bool = False,
        steps: int = 1,
        activation: str = "none",
        alpha: float = 0.0,
        slope: str | None = None,
        name: str | None = None,
    ) -> str:
        """``activation(W x + b + sum of addends)``.

        With groups, each has its own ``w`` [n, k] and its own columns of x (``shared_x``: all of them). With steps, x
        is so many rows side by side, each of which goes through the same affine; an addend may be of one step's width
        and then stands for each.
        """
        attrs: dict[str, Any] = {"groups": groups, "shared_x": shared_x, "has_x": x is not None, "steps": steps}
        attrs |= {"activation": activation, "alpha": alpha}
        weights = {"w": w, "b": b, "slope": slope}
        return self._add("affine", [*([] if x is None else [x]), *addends], weights, attrs, name)

    def activation(
        self, x: str, fn: str, *, alpha: float = 0.0, slope: str | None = None, name: str | None = None
    ) -> str:
        """One of :data:`ACTIVATIONS`, element by element."""
        return self._add("activation", [x], {"slope": slope}, {"activation": fn, "alpha": alpha}, name)

    def softmax(self, x: str, *, size: int | None = None, name: str | None = None) -> str:
        """Softmax over each run of ``size`` columns (None: over all)."""
        return self._add("softmax", [x], {}, {"size": self.width(x) if size is None else size}, name)

    def mixture(self, gate: str, experts: Sequence[str], *, name: str | None = None) -> str:
        """``sum over e of gate[e] * experts[e]``."""
        return self._add("mixture", [gate, *experts], {}, {}, name)

    def add(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a + b``; an input of width 1 stands for every column (so in the five functions after this one)."""
        return self._add("binary", [a, b], {}, {"fn": "add"}, name)

    def sub(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a - b``."""
        return self._add("binary", [a, b], {}, {"fn": "sub"}, name)

    def mul(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a * b``."""
        return self._add("binary", [a, b], {}, {"fn": "mul"}, name)

    def div(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a / b``."""
        return self._add("binary", [a, b], {}, {"fn": "div"}, name)

    def maximum(self, a: str, b: str, *, name: str | None = None) -> str:
        """The greater of a and b."""
        return self._add("binary", [a, b], {}, {"fn": "max"}, name)

    def minimum(self, a: str, b: str, *, name: str | None = None) -> str:
        """The smaller of a and b."""
        return self._add("binary", [a, b], {}, {"fn": "min"}, name)

    def batch_norm(
        self,
        x: str,
        *,
        mean: str,
        var: str,
        scale: str | None = None,
        shift: str | None = None,
        eps: float = 1e-5,
        name: str | None = None,
    ) -> str:
        """``(x - mean) / sqrt(var + eps) * scale + shift`` with the statistics of training."""
        weights = {"scale": scale, "shift": shift, "mean": mean, "var": var}
        return self._add("batch_norm", [x], weights, {"eps": eps}, name)

    def scale_shift(self, x: str, *, scale: str, shift: str, name: str | None = None) -> str:
        """``x * scale + shift``, a number a column."""
        return self._add("scale_shift", [x], {"scale": scale, "shift": shift}, {}, name)

    def reduce(
        self,
        x: str,
        fn: Literal["sum", "mean", "max"],
        *,
        axis: int | None = None,
        outer: int = 1,
        inner: int = 1,
        name: str | None = None,
    ) -> str:
        """Seen as [outer, axis, inner], reduce ``axis`` (None: all columns over outer * inner)."""
        length = self.width(x) // max(outer * inner, 1) if axis is None else axis
        return self._add("reduce", [x], {}, {"fn": fn, "outer": outer, "axis": length, "inner": inner}, name)

    def layer_norm(
        self,
        x: str,
        *,
        size: int | None = None,
        scale: str | None = None,
        shift: str | None = None,
        eps: float = 1e-5,
        name: str | None = None,
    ) -> str:
        """Normalise each run of ``size`` columns (None: all) to mean 0, (biased) variance 1; then scale and shift."""
        return self._add("layer_norm", [x], {"scale": scale, "shift": shift}, {"eps": eps, "size": size}, name)

    def l2_normalize(self, x: str, *, size: int | None = None, eps: float = 1e-12, name: str | None = None) -> str:
        """``x / max(norm of x, eps)`` for each run of ``size`` columns (None: all)."""
        return self._add("l2_normalize", [x], {}, {"eps": eps, "size": size}, name)

    def dot(self, a: str, b: str, *, name: str | None = None) -> str:
        """The inner product, one column."""
        return self._add("dot", [a, b], {}, {}, name)

    def repeat(self, x: str, times: int, *, outer: int = 1, name: str | None = None) -> str:
        """``[outer, n]`` becomes ``[outer, times, n]``: each block of n columns several times."""
        return self._add("repeat", [x], {}, {"times": times, "outer": outer}, name)

    def transpose(self, x: str, *, a: int, b: int, outer: int = 1, inner: int = 1, name: str | None = None) -> str:
        """``[outer, a, b, inner]`` becomes ``[outer, b, a, inner]``."""
        return self._add("transpose", [x], {}, {"outer": outer, "a": a, "b": b, "inner": inner}, name)

    def matmul(
        self,
        a: str,
        b: str,
        *,
        m: int,
        k: int,
        n: int,
        outer: int = 1,
        transpose_b: bool = False,
        name: str | None = None,
    ) -> str:
        """``a [outer, m, k] @ b [outer, k, n]`` (``transpose_b``: b is [outer, n, k]), a row's own two matrices."""
        attrs = {"outer": outer, "m": m, "k": k, "n": n, "transpose_b": transpose_b}
        return self._add("matmul", [a, b], {}, attrs, name)

    def present(self, ids: str, *, padding: int = 0, name: str | None = None) -> str:
        """1 for each id that is not the padding, else 0."""
        return self._add("present", [ids], {}, {"padding": padding}, name)

    def mask(self, x: str, ids: str, *, padding: int = 0, value: float = 0.0, name: str | None = None) -> str:
        """x, seen as one block of columns an id, with ``value`` in the blocks whose id is the padding."""
        return self._add("mask", [x, ids], {}, {"padding": padding, "value": value}, name)

    def gru(
        self,
        x: str,
        ids: str | None = None,
        *,
        steps: int,
        w_x: str,
        w_h: str,
        b_x: str | None = None,
        b_h: str | None = None,
        padding: int = 0,
        output: Literal["last", "all"] = "last",
        name: str | None = None,
    ) -> str:
        """A gated recurrent unit over x [steps, n], as ``torch.nn.GRU`` computes it, from a state of zeros.

        ``w_x`` [3 hidden, n] and ``w_h`` [3 hidden, hidden] hold the gates r, z, n in this order. A step whose id is
        the padding leaves the state as it is. The output is the last state, or the state after each step
        [steps, hidden], with zeros at padded steps.
        """
        attrs: dict[str, Any] = {"steps": steps, "hidden": self._array_of(w_h).shape[-1], "output": output}
        attrs["padding"] = None if ids is None else padding
        weights = {"w_x": w_x, "w_h": w_h, "b_x": b_x, "b_h": b_h}
        return self._add("gru", [x] if ids is None else [x, ids], weights, attrs, name)

    def conv1d(
        self,
        x: str,
        *,
        w: str,
        b: str | None = None,
        steps: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        name: str | None = None,
    ) -> str:
        """Cross-correlation over x [steps, channels] with ``w`` [outputs, channels, kernel]; zeros beyond both ends."""
        attrs = {"steps": steps, "stride": stride, "padding": padding, "dilation": dilation}
        return self._add("conv1d", [x], {"w": w, "b": b}, attrs, name)

    def output(self, name: str, value: str, *, role: Role = "task") -> None:
        """Make a value an output."""
        made = Output(name, value, role)
        check_outputs([*self._outputs, made], self._values)
        self._outputs.append(made)

    def build(self) -> Graph:
        """The graph so far."""
        return Graph(self._inputs, tuple(self._nodes), tuple(self._outputs), self._weights)

    def _add(
        self,
        op: str,
        inputs: Sequence[str],
        weights: Mapping[str, str | None],
        attrs: Mapping[str, Any],
        name: str | None,
    ) -> str:
        output = name if name is not None else self._fresh(op)
        given = {role: weight for role, weight in weights.items() if weight is not None}
        node = Node(op, tuple(inputs), output, given, dict(attrs))
        define(node, self._values, self._weights, self._inputs)
        self._nodes.append(node)
        return output

    def _array_of(self, weight: str) -> NDArray[np.float32]:
        """A weight with one axis or more."""
        if weight not in self._weights:
            raise ConversionError(f"the graph has no weight {weight!r}")
        array = self._weights[weight]
        if not array.shape:
            raise ConversionError(f"weight {weight!r} must have one axis or more, found a single number")
        return array

    def _fresh(self, op: str) -> str:
        number = len(self._nodes)
        while (name := f"{op}_{number}") in self._values:
            number += 1
        return name
