"""What operators cost, in floating-point operations and table look-ups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fastmtr.compiler.dead_code import remove_dead_code
from fastmtr.graph import Graph

__all__ = [
    "CACHED_BYTES",
    "LOOKUP_WORK",
    "Machine",
    "flops",
    "lookups",
    "model_flops",
    "product_work",
    "row_work",
    "work",
]

# One random 64-byte row of a table that does not fit the caches takes about as long as so many FLOPs of dense product
# (45 M rows a second against 91 GFLOP/s on one Zen 3 core).
LOOKUP_WORK = 1000

# A table that fits the shared cache is read several times as fast: 60 GB/s, against 7 GB/s for rows at random. Against
# products with the widest vectors (180 GFLOP/s), for which a byte is dearest, that is so many FLOPs a byte.
CACHED_BYTES = 16 << 20
_CACHED_BYTE_WORK, _BYTE_WORK = 3.0, 26.0


class Machine(NamedTuple):
    """Rates of one core, from which times are predicted. The defaults were measured on a Zen 4 core with AVX-512.

    Parameters
    ----------
    product_flops : float
        FLOP/s of dense products of many rows.
    zeros_gain : float
        So much quicker are products of what a ReLU gave, half of it zeros.
    other_flops : float
        FLOP/s of everything else, which passes over columns one operator after the other.
    cached_bytes, random_bytes : float
        Bytes a second of weights read in order out of the shared cache, and of table rows at random out of memory.
    step_seconds : float
        To begin a step on a tile of rows.
    tile_rows : int
        Candidates a tile.
    """

    product_flops: float = 108e9
    zeros_gain: float = 1.38
    other_flops: float = 12e9
    cached_bytes: float = 90e9
    random_bytes: float = 12e9
    step_seconds: float = 40e-9
    tile_rows: int = 32

    def seconds(
        self, *, flops: float, product: bool, zeros: bool, weight_bytes: float, table_bytes: float, rows: int
    ) -> float:
        """Of a step on so many rows; ``flops`` and ``table_bytes`` are of one, ``zeros``: x is what a ReLU gave."""
        tiles = -(-rows // self.tile_rows)
        rate = self.product_flops * (self.zeros_gain if zeros else 1.0) if product else self.other_flops
        computing = rows * flops / rate
        reading = tiles * weight_bytes / self.cached_bytes
        return max(computing, reading) + rows * table_bytes / self.random_bytes + tiles * self.step_seconds


_ACTIVATION_FLOPS = {
    **{"none": 0, "relu": 1, "leaky_relu": 2, "prelu": 2, "relu6": 2, "hard_sigmoid": 4, "hard_swish": 5},
    **{"softsign": 3, "sqrt": 1, "abs": 1},
}
_TRANSCENDENTAL_FLOPS = 12


def flops(
    op: str, widths: Sequence[int], width: int, shapes: Mapping[str, tuple[int, ...]], attrs: Mapping[str, Any]
) -> int:
    """Floating-point operations for one row.

    Parameters
    ----------
    op : str
    widths : sequence of int
        Of the inputs.
    width : int
        Of the output.
    shapes : mapping of role to shape
        Of the weights.
    attrs : mapping
        The node's attributes.
    """
    match op:
        case "affine":
            product = 2 * width * shapes["w"][-1] if "w" in shapes else 0
            addends = len(widths) - ("w" in shapes)
            return product + width * (addends + ("b" in shapes)) + _activation(width, attrs)
        case "activation":
            return _activation(width, attrs)
        case "softmax":
            return (_TRANSCENDENTAL_FLOPS + 3) * width
        case "mixture":
            return 2 * width * (len(widths) - 1)
        case "binary":
            return width
        case "scale_shift" | "batch_norm":
            return 2 * width
        case "reduce":
            return widths[0]
        case "layer_norm":
            return 7 * width
        case "l2_normalize":
            return 3 * width
        case "dot":
            return 2 * widths[0]
        case "embedding_bag":
            return widths[0] * width
        case "matmul":
            return 2 * width * int(attrs["k"])
        case "gru":
            hidden, size = shapes["w_h"][1], shapes["w_x"][1]
            return int(attrs["steps"]) * hidden * (6 * (size + hidden) + 3 * (_TRANSCENDENTAL_FLOPS + 3))
        case "conv1d":
            return 2 * width * math.prod(shapes["w"][1:]) + width * ("b" in shapes)
    return 0  # embedding, gather, copy, concat, slice, repeat, transpose, present, mask only move numbers


def model_flops(graph: Graph) -> int:
    """Floating-point operations of the tasks' scores of one candidate, every node as it stands."""
    tasks = tuple(o for o in graph.outputs if o.role == "task")
    return sum(
        flops(
            node.op,
            [graph.width(name) for name in node.inputs],
            graph.width(node.output),
            {role: graph.weights[name].shape for role, name in node.weights.items()},
            node.attrs,
        )
        for node in remove_dead_code(replace(graph, outputs=tasks)).nodes
    )


def _activation(width: int, attrs: Mapping[str, Any]) -> int:
    return width * _ACTIVATION_FLOPS.get(attrs.get("activation", "none"), _TRANSCENDENTAL_FLOPS)


def lookups(op: str, widths: Sequence[int]) -> int:
    """Table rows read for one row."""
    return widths[0] if op in ("embedding", "embedding_bag") else 0


def work(
    op: str, widths: Sequence[int], width: int, shapes: Mapping[str, tuple[int, ...]], attrs: Mapping[str, Any]
) -> int:
    """FLOPs, with look-ups counted as the FLOPs they take as long as."""
    return flops(op, widths, width, shapes, attrs) + LOOKUP_WORK * lookups(op, widths)


def row_work(row_bytes: int, table_bytes: int) -> float:
    """Reading one row of a table, as the FLOPs that take as long."""
    if table_bytes <= CACHED_BYTES:
        return _CACHED_BYTE_WORK * row_bytes
    return LOOKUP_WORK + _BYTE_WORK * row_bytes


def product_work(n: int, k: int, *, once: bool) -> float:
    """A product of k columns by n, for one of many rows or for one row alone, which waits for its weights."""
    return n * k * (2 + (4 * _CACHED_BYTE_WORK if once else 0))
