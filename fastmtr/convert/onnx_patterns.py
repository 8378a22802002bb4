"""Several nodes of an ONNX model that stand for one operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = ["gelus"]

Constant = Callable[[str], NDArray[np.generic] | None]


def gelus(nodes: Sequence[onnx.NodeProto], constant: Constant) -> list[onnx.NodeProto]:
    """With a Gelu in place of ``0.5 x (1 + erf(x / sqrt(2)))``, as exporters write it before opset 20.

    Parameters
    ----------
    nodes : sequence of NodeProto
    constant : callable
        The number that a value is, if it is known beforehand.

    Returns
    -------
    list of NodeProto
        The nodes that the Gelu does without are still there.
    """
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def number(name: str) -> float | None:
        found = constant(name)
        return float(found.reshape(())) if found is not None and found.size == 1 else None

    def factors(name: str) -> tuple[float, list[str]]:
        """A value as a number times other values."""
        known, node = number(name), makers.get(name)
        if known is not None:
            return known, []
        if node is not None and node.op_type == "Mul":
            (a, left), (b, right) = (factors(each) for each in node.input)
            return a * b, left + right
        if node is not None and node.op_type == "Div" and (divisor := number(node.input[1])):
            a, left = factors(node.input[0])
            return a / divisor, left
        return 1.0, [name]

    replaced: dict[str, onnx.NodeProto] = {}
    for erf in nodes:
        if erf.op_type != "Erf":
            continue
        scale, inside = factors(erf.input[0])
        if len(inside) != 1 or not math.isclose(scale, math.sqrt(0.5), rel_tol=1e-5):
            continue
        for add in readers.get(erf.output[0], []):
            if add.op_type != "Add" or [number(n) for n in add.input if n != erf.output[0]] != [1.0]:
                continue
            products = [node for node in readers.get(add.output[0], []) if node.op_type == "Mul"]
            while products:
                node = products.pop()
                half, parts = factors(node.output[0])
                if half == 0.5 and sorted(parts) == sorted([inside[0], add.output[0]]):
                    replaced[node.output[0]] = helper.make_node("Gelu", inside, list(node.output), name=node.name)
                else:
                    products += [n for n in readers.get(node.output[0], []) if n.op_type == "Mul"]
    return [replaced.get(node.output[0], node) for node in nodes]
