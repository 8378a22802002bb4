"""Which item values are computed ahead of time and stored for each catalogue item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fastmtr.compiler.costs import CACHED_BYTES, work
from fastmtr.compiler.rewrite import Piece, pieces_of
from fastmtr.graph import Graph

__all__ = [
    "AUTO_MEMORY",
    "COLUMN_BYTES",
    "ITEM_PRECISIONS",
    "SCALE_BYTES",
    "ItemPrecision",
    "Storage",
    "choose_storage",
    "computed_for_candidates",
    "row_bytes",
    "stored_dtype",
    "stored_unit",
]

ItemPrecision = Literal["fp32", "fp16", "int8"]
ITEM_PRECISIONS: tuple[ItemPrecision, ...] = ("fp32", "fp16", "int8")

COLUMN_BYTES = {"i32": 4, "f32": 4, "f16": 2, "i8": 1}
"""Bytes of one column of a buffer, by dtype."""
SCALE_BYTES = 4
"""That a row of dtype i8 has besides."""

_DTYPES: dict[ItemPrecision, str] = {"fp32": "f32", "fp16": "f16", "int8": "i8"}

AUTO_MEMORY = 2 << 30

# Reading a stored row costs memory traffic; below so much saved work a byte, computing it again is quicker.
_MIN_SAVING_CACHED, _MIN_SAVING = 1.5, 8.0


@dataclass(frozen=True)
class Storage:
    """The choice, and why.

    Parameters
    ----------
    stored : frozenset of str
        Item values with a row for each catalogue item (besides the item inputs, which are always stored).
    refused : mapping of str to str
        Item values that candidates need and that are computed for each candidate instead, with the reason.
    precision : {"fp32", "fp16", "int8"}
        What the rows are kept in, but for those of item outputs, which stay fp32.
    """

    stored: frozenset[str]
    refused: Mapping[str, str]
    precision: ItemPrecision = "fp32"


def stored_unit(value: str, pieces: Mapping[str, tuple[Piece, ...]]) -> str:
    """What has to be stored so that ``value`` can be read by item: a slice comes with the value it is cut from."""
    made_of = pieces[value]
    return made_of[0].source if len(made_of) == 1 else value


def choose_storage(
    graph: Graph, *, n_items: int, item_memory: int | Literal["auto"] = "auto", item_precision: ItemPrecision = "fp32"
) -> Storage:
    """Store the item values that candidates read, by work saved a byte, as far as the memory allows.

    What is not stored is computed for each candidate from the item values before it, which are considered in turn.
    Item outputs are always stored, whatever the memory.

    Parameters
    ----------
    graph : Graph
    n_items : int
        Size of the catalogue; 0: not known, then memory is not counted.
    item_memory : int or "auto"
        Bytes; "auto" is 2 GiB whatever the machine, so that a compilation can be repeated elsewhere. It is a limit, not
        an aim: a value is stored only where reading it is quicker than computing it. (An MMoE of eight experts with 256
        units in their first layers takes 8 KiB an item: 2 GiB hold 250,000 items.)
    item_precision : {"fp32", "fp16", "int8"}
        What the rows are kept in; in fewer bytes, more is worth storing.
    """
    budget = AUTO_MEMORY if item_memory == "auto" else item_memory
    pieces = pieces_of(graph)
    required = {stored_unit(o.value, pieces) for o in graph.outputs if o.role == "item"}
    inputs = {i.name for i in graph.inputs}
    cones: dict[str, tuple[int, frozenset[str]]] = {}
    repeats = (n.output for n in graph.nodes if n.op == "repeat" and graph.domain(n.output) == "item")
    refused = dict.fromkeys(repeats, "what it repeats is fewer bytes to read")
    while True:
        read = _needed_by_candidates(graph, pieces, lambda unit: unit not in refused)[0]
        wanted = (read | required) - inputs
        size = {v: row_bytes(graph.width(v), "fp32" if v in required else item_precision) for v in wanted}
        cones |= {v: _cone(graph, v) for v in wanted - cones.keys()}
        total = sum(size.values()) * n_items
        least = _MIN_SAVING_CACHED if 0 < total <= CACHED_BYTES else _MIN_SAVING
        saved = {}
        for v in wanted:
            # To compute it, a candidate has to read the item's inputs instead, unless it does so anyway.
            instead = sum(4 * graph.width(name) for name in cones[v][1] - read)
            saved[v] = (cones[v][0] + least * instead) / size[v]
        free = sorted(wanted - required, key=lambda v: (saved[v], -size[v], v))
        if free and item_memory == 0:
            refused[free[0]] = "no memory was allowed for item values"
        elif free and saved[free[0]] < least:
            refused[free[0]] = f"reading {size[free[0]]} stored bytes would take longer than computing it"
        elif free and total > budget:
            refused[free[0]] = f"{size[free[0]] * n_items:,} bytes for {n_items:,} items exceed the memory allowed"
        else:
            return Storage(frozenset(wanted), {v: refused[v] for v in refused if v not in wanted}, item_precision)


def row_bytes(width: int, precision: ItemPrecision = "fp32") -> int:
    """Bytes of one item's row of a stored value."""
    dtype = stored_dtype(width, precision)
    return width * COLUMN_BYTES[dtype] + (SCALE_BYTES if dtype == "i8" else 0)


def stored_dtype(width: int, precision: ItemPrecision) -> str:
    """The plan's dtype for a table of so many columns: f32 where the precision would make its rows no shorter."""
    return "f32" if precision == "int8" and width * 3 <= SCALE_BYTES else _DTYPES[precision]


def computed_for_candidates(graph: Graph, storage: Storage) -> frozenset[str]:
    """Item values that are not stored, and so computed in the candidate phase."""
    pieces = pieces_of(graph)
    inputs = {i.name for i in graph.inputs}
    _, computed = _needed_by_candidates(graph, pieces, lambda unit: unit in storage.stored or unit in inputs)
    return frozenset(computed)


def _needed_by_candidates(
    graph: Graph, pieces: Mapping[str, tuple[Piece, ...]], is_read: Callable[[str], bool]
) -> tuple[set[str], set[str]]:
    """Item values that the candidate phase reads by item, and those that it computes from them."""
    nodes = {n.output: n for n in graph.nodes}
    read: set[str] = set()
    computed: set[str] = set()
    seen: set[str] = set()
    pending = [o.value for o in graph.outputs if o.role == "task"]
    while pending:
        value = pending.pop()
        if value in seen or graph.domain(value) == "request":
            continue
        seen.add(value)
        if graph.domain(value) == "item":
            unit = stored_unit(value, pieces)
            if is_read(unit):
                read.add(unit)
                continue
            computed.add(unit)
            value = unit
        if value in nodes:
            pending += nodes[value].inputs
    return read, computed


def _cone(graph: Graph, value: str) -> tuple[int, frozenset[str]]:
    """Work to compute an item value, and the inputs that it is computed from."""
    nodes = {n.output: n for n in graph.nodes}
    total, seen, pending = 0, set[str](), [value]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if (node := nodes.get(name)) is not None:
            widths = [graph.width(each) for each in node.inputs]
            shapes = {role: graph.weights[weight].shape for role, weight in node.weights.items()}
            total += work(node.op, widths, graph.width(name), shapes, node.attrs)
            pending += node.inputs
    return total, frozenset(seen - nodes.keys())
