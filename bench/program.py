"""A graph as a short list of library calls, which the peers run: it becomes an ONNX model and a torch function.

This is what an expert would write by hand for a general runtime: embedding tables merged into one gather, column slices
that cost nothing where a layer allows it, the request's part of a first layer as the bias of its matrix product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import Domain, Graph, Node, Packed

__all__ = ["Call", "Feed", "Program", "lower"]


class Feed(NamedTuple):
    """An input of the program: columns of a packed matrix, plus ``shift`` (the start of each id's table)."""

    name: str
    domain: Domain
    columns: NDArray[np.int64]
    shift: NDArray[np.int32] | None  # None: dense

    def values(self, packed: Packed) -> NDArray[Any]:
        """The input's value for these rows."""
        if self.shift is None:
            return np.ascontiguousarray(packed.dense[:, self.columns])
        return np.ascontiguousarray(packed.ids[:, self.columns] + self.shift)


@dataclass(frozen=True)
class Call:
    """``output = op(inputs; constants, attrs)``.

    =========== =============================================================================================
    gather      ids [n, F] -> [n, F * D]; constant ``table``
    bag_mean    ids [n, L] -> [n, D]; ``table``, attr ``padding``
    concat      columns side by side
    columns     attrs ``offset``, ``width``
    gemm        x [, c] -> x w + c, ``w`` [K, N]; c is an input or the constant ``b``, one row stands for all
    bmm         x [G, n, K] -> [G, n, N]; ``w`` [G, K, N], ``b`` [G, 1, N]
    group       [n, G * D] -> [G, n, D]; attr ``groups``
    ungroup     [G, n, D] -> [n, G * D]
    group_range groups ``start .. stop`` of [G, n, D]
    add, mul    with broadcasting
    softmax     over runs of ``size`` columns; attr ``runs``
    mix         gate [n, E], experts [n, E * D] -> [n, D]; attr ``experts``
    mix_groups  gate [n, E], experts [E, n, D] -> [n, D]
    relu, ...   activations, element by element
    =========== =============================================================================================
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Calls in order. ``repeated``: the request's inputs have a row for each candidate, else one row."""

    feeds: tuple[Feed, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    repeated: bool

    def values(self, request: Packed, items: Packed) -> dict[str, NDArray[Any]]:
        """All inputs for one request (one row) and its candidates."""
        if self.repeated and request.n_rows == 1:
            request = request.take(np.zeros(items.n_rows, np.int64))
        return {f.name: f.values(request if f.domain == "request" else items) for f in self.feeds}


class _Part(NamedTuple):
    """Columns of a tensor; ``groups`` 0: a flat tensor [n, total], else a grouped one [G, n, total / G]."""

    tensor: str
    offset: int
    width: int
    total: int
    groups: int = 0


_Parts = tuple[_Part, ...]
ACTIVATIONS = ("relu", "sigmoid", "tanh", "softplus", "exp")


def lower(graph: Graph, *, repeated: bool, stacked: bool) -> Program:
    """Turn a graph of the benchmark's models into a program.

    Parameters
    ----------
    graph : Graph
        Of request and item inputs. Hand-split: a graph whose layers the compiler split by domain, ``repeated=False``.
    repeated : bool
        The request's inputs come with a row for each candidate.
    stacked : bool
        Layers of sibling experts run as one batched product; else one product each.

    Raises
    ------
    ValueError
        The graph has an operator that these models do not need.
    """
    return _Lowering(graph, repeated=repeated, stacked=stacked).program()


class _Lowering:
    def __init__(self, graph: Graph, *, repeated: bool, stacked: bool) -> None:
        self.graph, self.repeated, self.stacked = graph, repeated, stacked
        self.made = {node.output: node for node in graph.nodes}
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses.update(output.value for output in graph.outputs)
        self.values: dict[str, _Parts] = {}
        self.feeds: list[Feed] = []
        self.calls: list[Call] = []
        self.known: dict[tuple[Any, ...], str] = {}
        self.tables, self.table_start = self._merge_tables()
        self._gather_fields()

    def program(self) -> Program:
        outputs = [self.flat(self.value(o.value)) for o in self.graph.outputs if o.role == "task"]
        return Program(tuple(self.feeds), tuple(self.calls), tuple(outputs), self.repeated)

    # ---- inputs and embeddings ----

    def _merge_tables(self) -> tuple[dict[int, NDArray[np.float32]], dict[str, int]]:
        """All tables of one width under one another, and where each begins."""
        names = {n.weights["table"] for n in self.graph.nodes if n.op in ("embedding", "embedding_bag")}
        by_width: dict[int, list[str]] = {}
        for name in sorted(names):
            by_width.setdefault(self.graph.weights[name].shape[1], []).append(name)
        start: dict[str, int] = {}
        for same in by_width.values():
            row = 0
            for name in same:
                start[name] = row
                row += self.graph.weights[name].shape[0]
        return {d: np.concatenate([self.graph.weights[n] for n in same]) for d, same in by_width.items()}, start

    def _ids(self, value: str) -> tuple[Domain, int, int]:
        i = next(i for i in self.graph.inputs if i.name == value)
        return i.domain, i.offset, i.width

    def _gather_fields(self) -> None:
        """One gather a domain for all its single categoricals; one input a domain for its numbers."""
        for domain in ("request", "item"):
            fields = [n for n in self.graph.nodes if n.op == "embedding" and self._ids(n.inputs[0])[0] == domain]
            for dim in sorted({self.graph.weights[n.weights["table"]].shape[1] for n in fields}):
                self._gather(domain, [n for n in fields if self.graph.weights[n.weights["table"]].shape[1] == dim], dim)
            dense = [i for i in self.graph.inputs if i.domain == domain and i.kind == "dense"]
            total, at = sum(i.width for i in dense), 0
            columns = np.concatenate(
                [np.arange(i.offset, i.offset + i.width) for i in dense] or [np.zeros(0, np.int64)]
            )
            if total:
                self.feeds.append(Feed(f"{domain}_dense", domain, columns, None))
            for i in dense:
                self.values[i.name] = (_Part(f"{domain}_dense", at, i.width, total),)
                at += i.width
        if any(i.domain == "candidate" for i in self.graph.inputs):
            raise ValueError("the benchmark's programs take request and item inputs, not candidate inputs")

    def _gather(self, domain: Domain, nodes: Sequence[Node], dim: int) -> None:
        if any(n.attr("padding") is not None for n in nodes):
            raise ValueError("the benchmark's programs have no embedding with padding; use embedding_bag")
        placed = [(self._ids(n.inputs[0]), self.table_start[n.weights["table"]]) for n in nodes]
        columns = np.concatenate([np.arange(offset, offset + width) for (_, offset, width), _ in placed])
        shift = np.concatenate([np.full(width, start, np.int32) for (_, _, width), start in placed])
        name, total, at = f"{domain}_fields_{dim}", len(columns) * dim, 0
        self.feeds.append(Feed(name, domain, columns, shift))
        tensor = self.call("gather", [name], table=self.tables[dim])
        for n in nodes:
            width = self.graph.width(n.output)
            self.values[n.output] = (_Part(tensor, at, width, total),)
            at += width

    # ---- values ----

    def value(self, name: str) -> _Parts:
        """The value's parts; its calls are added when it is first asked for."""
        if name not in self.values:
            node = self.made[name]
            handler: Callable[[Node], _Parts] | None = getattr(self, f"_{node.op}", None)
            if handler is None:
                raise ValueError(f"the benchmark's programs have no operator {node.op!r} (node {name!r})")
            self.values[name] = handler(node)
        return self.values[name]

    def call(self, op: str, inputs: Sequence[str], *, attrs: dict[str, Any] | None = None, **constants: Any) -> str:
        """Add a call, unless the same one is there already."""
        key = (op, *inputs, *sorted((attrs or {}).items()), *(id(c) for c in constants.values()))
        if key not in self.known:
            output = f"{op}_{len(self.calls)}"
            self.calls.append(Call(op, tuple(inputs), output, constants, attrs or {}))
            self.known[key] = output
        return self.known[key]

    def flat(self, parts: _Parts) -> str:
        """One tensor [n, width] of exactly these columns."""
        tensors = []
        for p in parts:
            tensor, offset, total = p.tensor, p.offset, p.total
            if p.groups:
                each = p.total // p.groups
                if p.offset % each or p.width % each:
                    raise ValueError("columns across groups")
                start, stop = p.offset // each, (p.offset + p.width) // each
                if (start, stop) != (0, p.groups):
                    tensor = self.call("group_range", [tensor], attrs={"start": start, "stop": stop})
                tensor, offset, total = self.call("ungroup", [tensor]), 0, p.width
            if (offset, p.width) != (0, total):
                tensor = self.call("columns", [tensor], attrs={"offset": offset, "width": p.width})
            tensors.append(tensor)
        return tensors[0] if len(tensors) == 1 else self.call("concat", tensors)

    def grouped(self, parts: _Parts, groups: int) -> str:
        """One tensor [groups, n, width / groups] of these columns."""
        if len(parts) == 1 and parts[0].groups:
            p = parts[0]
            each = p.total // p.groups
            if p.width == groups * each and p.offset % each == 0:
                start = p.offset // each
                if p.groups == groups:
                    return p.tensor
                return self.call("group_range", [p.tensor], attrs={"start": start, "stop": start + groups})
        return self.call("group", [self.flat(parts)], attrs={"groups": groups})

    # ---- operators ----

    def _concat(self, node: Node) -> _Parts:
        return _join(p for name in node.inputs for p in self.value(name))

    def _slice(self, node: Node) -> _Parts:
        return _columns(self.value(node.inputs[0]), node.attr("offset"), node.attr("width"))

    def _embedding_bag(self, node: Node) -> _Parts:
        domain, offset, width = self._ids(node.inputs[0])
        if node.attr("mode") != "mean" or node.attr("padding") is None:
            raise ValueError("the benchmark's programs pool by mean, with padding")
        start, dim = self.table_start[node.weights["table"]], self.graph.width(node.output)
        feed = Feed(node.inputs[0], domain, np.arange(offset, offset + width), np.full(width, start, np.int32))
        if all(f.name != feed.name for f in self.feeds):
            self.feeds.append(feed)
        padding = start + node.attr("padding")
        return self.whole(self.call("bag_mean", [feed.name], attrs={"padding": padding}, table=self.tables[dim]), dim)

    def whole(self, tensor: str, width: int, groups: int = 0) -> _Parts:
        return (_Part(tensor, 0, width, width, groups),)

    def _affine(self, node: Node) -> _Parts:
        addends = list(node.inputs[1:] if node.attr("has_x") else node.inputs)
        bias = self.graph.weights[node.weights["b"]] if "b" in node.weights else None
        product: Node | None = node if node.attr("has_x") else None
        if product is None:
            # The sum of a candidate's product and the request's part: that part becomes the product's bias.
            product = next((self.made[a] for a in addends if self._is_plain_product(a)), None)
            if product is not None:
                addends.remove(product.output)
                if "b" in product.weights:
                    own = self.graph.weights[product.weights["b"]]
                    bias = own if bias is None else bias + own
        if product is None:
            parts = self._sum([self.value(a) for a in addends], bias)
        else:
            parts = self._product(product, addends, bias)
        return self._activate(parts, node)

    def _is_plain_product(self, name: str) -> bool:
        node = self.made.get(name)
        return (
            node is not None
            and node.op == "affine"
            and node.attr("has_x")
            and len(node.inputs) == 1
            and node.attr("activation") == "none"
            and self.uses[name] == 1
            and self.graph.domain(name) != "request"
        )

    def _product(self, node: Node, addends: Sequence[str], bias: NDArray[np.float32] | None) -> _Parts:
        w = self.graph.weights[node.weights["w"]]
        w = w[None] if w.ndim == 2 else w
        groups, n, k = w.shape
        x = self.value(node.inputs[0])
        added = [self.value(a) for a in addends]
        if groups == 1 or (node.attr("shared_x") and self.stacked):
            return self._gemm(x, w.reshape(groups * n, k), added, bias)
        if self.stacked:
            rows = np.zeros((groups, 1, n), np.float32) if bias is None else bias.reshape(groups, 1, n)
            made = self.call("bmm", [self.grouped(x, groups)], w=np.ascontiguousarray(w.transpose(0, 2, 1)), b=rows)
            for a in added:
                made = self.call("add", [made, self.grouped(a, groups)])
            return self.whole(made, groups * n, groups)
        parts: list[_Part] = []
        for g in range(groups):
            own = x if node.attr("shared_x") else _columns(x, g * k, k)
            b = None if bias is None else bias[g * n : (g + 1) * n]
            parts += self._gemm(own, w[g], [_columns(a, g * n, n) for a in added], b)
        return tuple(parts)

    def _gemm(
        self, x: _Parts, w: NDArray[np.float32], addends: Sequence[_Parts], bias: NDArray[np.float32] | None
    ) -> _Parts:
        matrix = np.ascontiguousarray(w.T)
        if not addends:
            b = np.zeros(w.shape[0], np.float32) if bias is None else bias
            return self.whole(self.call("gemm", [self.flat(x)], w=matrix, b=b), w.shape[0])
        c = self.flat(self._sum(addends, bias))
        return self.whole(self.call("gemm", [self.flat(x), c], w=matrix), w.shape[0])

    def _sum(self, values: Sequence[_Parts], bias: NDArray[np.float32] | None) -> _Parts:
        width = sum(p.width for p in values[0])
        total = self.flat(values[0])
        for v in values[1:]:
            total = self.call("add", [total, self.flat(v)])
        if bias is not None:
            total = self.call("add", [total], b=bias)
        return values[0] if total == values[0][0].tensor else self.whole(total, width)

    def _activation(self, node: Node) -> _Parts:
        return self._activate(self.value(node.inputs[0]), node)

    def _activate(self, parts: _Parts, node: Node) -> _Parts:
        fn = node.attr("activation")
        if fn == "none":
            return parts
        if fn not in ACTIVATIONS:
            raise ValueError(f"the benchmark's programs have no activation {fn!r} (node {node.output!r})")
        done: list[_Part] = []
        for p in parts:
            if (p.offset, p.width) == (0, p.total):
                done.append(p._replace(tensor=self.call(fn, [p.tensor])))
            else:
                done += self.whole(self.call(fn, [self.flat((p,))]), p.width)
        return tuple(done)

    def _softmax(self, node: Node) -> _Parts:
        x = self.value(node.inputs[0])
        width, size = sum(p.width for p in x), node.attr("size")
        attrs = {"size": size, "runs": width // size}
        return self.whole(self.call("softmax", [self.flat(x)], attrs=attrs), width)

    def _mixture(self, node: Node) -> _Parts:
        gate, *experts = (self.value(name) for name in node.inputs)
        width = self.graph.width(node.output)
        together = _join(p for e in experts for p in e)
        if any(p.groups for p in together):
            made = self.call("mix_groups", [self.flat(gate), self.grouped(together, len(experts))])
        else:
            made = self.call("mix", [self.flat(gate), self.flat(together)], attrs={"experts": len(experts)})
        return self.whole(made, width)

    def _binary(self, node: Node) -> _Parts:
        if node.attr("fn") not in ("add", "mul"):
            raise ValueError(f"the benchmark's programs have no binary {node.attr('fn')!r} (node {node.output!r})")
        a, b = (self.flat(self.value(name)) for name in node.inputs)
        return self.whole(self.call(node.attr("fn"), [a, b]), self.graph.width(node.output))


def _join(parts: Iterable[_Part]) -> _Parts:
    """Neighbouring columns of one tensor become one part."""
    joined: list[_Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.tensor == part.tensor and last.offset + last.width == part.offset:
            joined[-1] = last._replace(width=last.width + part.width)
        else:
            joined.append(part)
    return tuple(joined)


def _columns(parts: _Parts, offset: int, width: int) -> _Parts:
    """Columns ``offset .. offset + width`` of the parts together."""
    found: list[_Part] = []
    at = 0
    for p in parts:
        low, high = max(offset, at), min(offset + width, at + p.width)
        if low < high:
            found.append(p._replace(offset=p.offset + low - at, width=high - low))
        at += p.width
    return tuple(found)
