"""From graph to plan: every value gets its place in a buffer, every node becomes a step of a phase.

A concat costs nothing where it can be avoided: what is concatenated is written side by side in the first place. A slice
is an operand. An item value that is not stored is computed in the candidate phase from item values that are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any

from fastmtr.compiler.rewrite import Piece, listed, pieces_of
from fastmtr.compiler.split_by_domain import ITEM_PART
from fastmtr.compiler.storage import Storage, stored_dtype, stored_unit
from fastmtr.graph import DOMAINS, Domain, Graph, Input, Node
from fastmtr.operators import NEW_ATTRS, OPS, plan_version

__all__ = ["lower"]

Operand = list[int]


def lower(
    graph: Graph, storage: Storage, *, fusion: Mapping[str, Any], remarks: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The plan of a graph whose concats are flat and that has no batch norm.

    Parameters
    ----------
    graph : Graph
    storage : Storage
        Which item values have a row for each catalogue item.
    fusion : mapping
        In the form of ``docs/bundle.md``.
    remarks : mapping of str to str
        For ``explain``, what else there is to say about a value.

    Returns
    -------
    dict
        ``plan.json``.
    """
    return _Lowering(graph, storage, remarks).plan(fusion)


class _Lowering:
    def __init__(self, graph: Graph, storage: Storage, remarks: Mapping[str, str]) -> None:
        self.graph, self.storage, self.remarks = graph, storage, remarks
        self.pieces = pieces_of(graph)
        self.nodes = {n.output: n for n in graph.nodes}
        self.buffers: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.place: dict[tuple[str, Domain], Operand] = {}  # of inputs, computed and gathered values, and whole concats
        self.computed: set[tuple[str, Domain]] = set()
        self.gathered: set[str] = set()
        self.concats: list[tuple[str, Domain]] = []
        self.moves: dict[tuple[str, Domain], list[tuple[Operand, Piece]]] = {}  # what a concat cannot avoid
        self._seen: set[tuple[str, Domain]] = set()
        self._done: set[tuple[int, int]] = set()  # (buffer, offset) of gathers and moves in the plan already

    def plan(self, fusion: Mapping[str, Any]) -> dict[str, Any]:
        inputs = [self._input(i) for i in self.graph.inputs]
        for o in self.graph.outputs:
            if o.role == "item":
                self._need(o.value, "item")
        for unit in sorted(self.storage.stored):
            self._need(unit, "item")
        for o in self.graph.outputs:
            if o.role != "item":
                self._need(o.value, "candidate" if o.role == "task" else "request")
        self._place_neighbours()
        for phase in DOMAINS:
            self._place_concats(phase)
        for node in self.graph.nodes:
            for phase in DOMAINS:
                if (node.output, phase) in self.computed:
                    self._step(node, phase)
        for unit in sorted(self.storage.stored):
            self._read(unit, "item")
        outputs: list[dict[str, Any]] = []
        for o in self.graph.outputs:
            operand = self._read(o.value, "candidate" if o.role == "task" else o.role)
            outputs.append({"name": o.name, "role": o.role, "operand": operand})
        self._encode_tables({i["buffer"] for i in inputs} | {o["operand"][0] for o in outputs if o["role"] == "item"})
        # The first that has all that the plan uses: so engines read what they can, and refuse the rest clearly.
        versions = [plan_version(s["op"], s["attrs"]) for s in self.steps]
        versions += [2 if b["dtype"] in ("f16", "i8") else 1 for b in self.buffers]
        return {
            "plan_version": max(versions, default=1),
            "inputs": inputs,
            "buffers": self.buffers,
            "steps": self.steps,
            "outputs": outputs,
            "fusion": dict(fusion),
        }

    def _encode_tables(self, plain: set[int]) -> None:
        """Give stored item buffers the dtype that was chosen, except ``plain`` ones."""
        for index, buffer in enumerate(self.buffers):
            if buffer["domain"] == "item" and buffer["stored"] and index not in plain:
                buffer["dtype"] = stored_dtype(buffer["width"], self.storage.precision)

    # ---- what has to be there ----

    def _stored(self, value: str) -> bool:
        """Candidates can reach the item value by row."""
        unit = stored_unit(value, self.pieces)
        return unit in self.storage.stored or unit not in self.nodes

    def _need(self, value: str, phase: Domain, *, as_addend: bool = False) -> None:
        """Note what has to be computed, gathered or laid side by side so that ``phase`` can read the value."""
        if (value, phase) in self._seen:
            return
        made_of = self.pieces[value]
        domain = self.graph.domain(value)
        if phase == "candidate" and domain == "request":
            self._need(value, "request")
        elif phase == "candidate" and domain == "item" and self._stored(value):
            self._need(value, "item")
            if as_addend:
                return  # read in place; the value itself is not needed in the candidate phase
            self.gathered.add(value)
        elif len(made_of) > 1:
            self.concats.append((value, phase))
            for p in made_of:
                self._need_source(p.source, phase)
        else:
            self._need_source(made_of[0].source, phase)
        self._seen.add((value, phase))

    def _need_source(self, source: str, phase: Domain) -> None:
        domain = self.graph.domain(source)
        if phase == "candidate" and (domain == "request" or (domain == "item" and self._stored(source))):
            self._need(source, domain)
            return
        node = self.nodes.get(source)
        if node is None or (source, phase) in self.computed:
            return
        self.computed.add((source, phase))
        for position, name in enumerate(node.inputs):
            self._need(name, phase, as_addend=_is_addend(node, position))

    # ---- where it is ----

    def _input(self, i: Input) -> dict[str, Any]:
        dtype = "i32" if i.kind == "ids" else "f32"
        buffer = self._buffer(i.name, i.domain, i.width, stored=True, dtype=dtype)
        self.place[i.name, i.domain] = [buffer, 0, i.width]
        rows = i.rows
        if i.kind == "ids" and rows is None:
            tables = [n.weights["table"] for n in self.graph.nodes if "table" in n.weights and n.inputs[0] == i.name]
            rows = min((self.graph.weights[t].shape[0] for t in tables), default=2**31 - 1)
        made = {"name": i.name, "domain": i.domain, "kind": i.kind, "offset": i.offset, "width": i.width}
        return {**made, "rows": rows, "padding": i.padding, "buffer": buffer}

    def _buffer(self, name: str, domain: Domain, width: int, *, stored: bool, dtype: str = "f32") -> int:
        self.buffers.append({"name": name, "domain": domain, "dtype": dtype, "width": width, "stored": stored})
        return len(self.buffers) - 1

    def _place_neighbours(self) -> None:
        """Stored values that candidates read side by side share a table, so that one gather brings them all."""
        for value, phase in self.concats:
            if phase != "candidate":
                continue
            run: list[str] = []
            for p in (*self.pieces[value], None):
                if p is not None and self._may_neighbour(p) and p.source not in run:
                    run.append(p.source)
                    continue
                if len(run) > 1:
                    widths = [self.graph.width(source) for source in run]
                    buffer = self._buffer(f"{value}@item", "item", sum(widths), stored=True)
                    for source, offset in zip(run, accumulate(widths, initial=0), strict=False):
                        self.place[source, "item"] = [buffer, offset, self.graph.width(source)]
                run = []

    def _may_neighbour(self, piece: Piece) -> bool:
        source = piece.source
        whole = piece.width == self.graph.width(source)
        computed = (source, "item") in self.computed and (source, "item") not in self.place
        return whole and computed and source in self.storage.stored

    def _place_concats(self, phase: Domain) -> None:
        """Widest first: a concat within a wider one is then a part of its buffer."""
        mine = [value for value, where in self.concats if where == phase]
        for value in sorted(mine, key=lambda v: -self.graph.width(v)):
            if self._is_side_by_side(value, phase):
                continue
            stored = phase == "item" and value in self.storage.stored
            name = value if phase == self.graph.domain(value) else f"{value}@{phase}"
            buffer = self._buffer(name, phase, self.graph.width(value), stored=stored)
            moves: list[tuple[Operand, Piece]] = []
            offset = 0
            for p in self.pieces[value]:
                operand = [buffer, offset, p.width]
                if self._can_place(p, phase, stored):
                    self.place[p.source, phase] = operand
                else:
                    moves.append((operand, p))
                offset += p.width
            self.place[value, phase] = [buffer, 0, self.graph.width(value)]
            self.moves[value, phase] = moves

    def _can_place(self, piece: Piece, phase: Domain, stored: bool) -> bool:
        """The step that makes the value can write it right here."""
        source = piece.source
        whole = piece.offset == 0 and piece.width == self.graph.width(source)
        if not whole or (source, phase) in self.place:
            return False
        if phase == "candidate" and source in self.gathered:
            return True
        hidden = phase == "item" and source in self.storage.stored and not stored
        return (source, phase) in self.computed and not hidden

    def _is_side_by_side(self, value: str, phase: Domain) -> bool:
        """The pieces are neighbours in a buffer already; then the value is those columns."""
        operands = []
        for p in self.pieces[value]:
            at = self.place.get((p.source, phase))
            if at is None:
                return False
            operands.append([at[0], at[1] + p.offset, p.width])
        for before, after in pairwise(operands):
            if before[0] != after[0] or before[1] + before[2] != after[1]:
                return False
        buffer = self.buffers[operands[0][0]]
        if phase == "item" and value in self.storage.stored and not buffer["stored"]:
            return False
        self.place[value, phase] = [operands[0][0], operands[0][1], self.graph.width(value)]
        self.moves[value, phase] = []
        return True

    # ---- steps ----

    def _step(self, node: Node, phase: Domain) -> None:
        inputs = [
            self._read(name, phase, as_addend=_is_addend(node, position)) for position, name in enumerate(node.inputs)
        ]
        step = {
            "op": node.op,
            "domain": phase,
            "name": node.output,
            "inputs": inputs,
            "output": self._output(node.output, phase),
            "weights": dict(node.weights),
            "attrs": _written_attrs(node),
        }
        remark = "; ".join(filter(None, (self._remark(node, phase), self.remarks.get(node.output))))
        self.steps.append({**step, "remark": remark} if remark else step)

    def _output(self, value: str, phase: Domain) -> Operand:
        if (value, phase) not in self.place:
            width = self.graph.width(value)
            name = value if phase == self.graph.domain(value) else f"{value}@{phase}"
            stored = phase == "item" and value in self.storage.stored
            self.place[value, phase] = [self._buffer(name, phase, width, stored=stored), 0, width]
        return self.place[value, phase]

    def _read(self, value: str, phase: Domain, *, as_addend: bool = False) -> Operand:
        """Where ``phase`` finds the value; steps that bring it there are added."""
        domain = self.graph.domain(value)
        made_of = self.pieces[value]
        if phase == "candidate" and domain == "request":
            return self._read(value, "request")
        if phase == "candidate" and domain == "item" and self._stored(value):
            return self._read(value, "item") if as_addend else self._gather(value)
        if len(made_of) > 1:
            self._fill(value, phase)
            return self.place[value, phase]
        buffer, offset, _ = self.place[made_of[0].source, phase]
        return [buffer, offset + made_of[0].offset, made_of[0].width]

    def _gather(self, value: str) -> Operand:
        if (value, "candidate") not in self.place:
            width = self.graph.width(value)
            dtype = "i32" if self.graph.kind(value) == "ids" else "f32"
            buffer = self._buffer(f"{value}@candidate", "candidate", width, stored=False, dtype=dtype)
            self.place[value, "candidate"] = [buffer, 0, width]
        output = self.place[value, "candidate"]
        if (output[0], output[1]) not in self._done:
            self._done.add((output[0], output[1]))
            self._move("gather", "candidate", value, self._read(value, "item"), output)
        return output

    def _fill(self, value: str, phase: Domain) -> None:
        """Copy or gather into a concat what was not written there in the first place."""
        pending: list[tuple[str, Operand, Operand]] = []
        for p, offset in zip(self.pieces[value], _offsets(self.pieces[value]), strict=True):
            # A gathered value that has its place in this concat may not have been read by itself yet.
            at = self.place.get((p.source, phase))
            here = self.place[value, phase]
            if phase == "candidate" and p.source in self.gathered and at == [here[0], here[1] + offset, p.width]:
                pending.append(("gather", self._read(p.source, "item"), at))
        for output, p in self.moves[value, phase]:
            source = self.graph.domain(p.source)
            if phase == "candidate" and source == "item" and self._stored(p.source):
                op, at = "gather", self._read(p.source, "item")
            elif phase == "candidate" and source == "request":
                op, at = "copy", self._read(p.source, "request")
            else:
                op, at = "copy", self.place[p.source, phase]
            pending.append((op, [at[0], at[1] + p.offset, p.width], output))
        new = [each for each in pending if tuple(each[2][:2]) not in self._done]
        self._done.update((output[0], output[1]) for _, _, output in new)
        for op, at, output in _joined(sorted(new, key=lambda each: each[2])):
            self._move(op, phase, value, at, output)

    def _move(self, op: str, phase: Domain, name: str, at: Operand, output: Operand) -> None:
        step = {"op": op, "domain": phase, "name": name, "inputs": [at], "output": output, "weights": {}, "attrs": {}}
        self.steps.append(step)

    def _remark(self, node: Node, phase: Domain) -> str:
        """Why a step of the candidate phase is in it."""
        if phase != "candidate":
            return ""
        if self.graph.domain(node.output) == "item":
            reason = self.storage.refused.get(node.output, "needed to compute one that is not stored")
            return f"item value, not stored: {reason}"
        if node.op == "affine" and "w" not in node.weights:
            return "split: sum of the request's part and the item's"
        if node.op == "affine":
            return self._why_not_split(node)
        domains = {name: self.graph.domain(name) for name in node.inputs}
        kind = "a rearrangement" if node.op in ("repeat", "transpose") else "not linear"
        if set(domains.values()) == {"candidate"}:
            return f"{kind}, of candidate values ({listed(list(domains))})"
        return f"{kind}: reads {listed([f'{name} ({domain})' for name, domain in domains.items()])}"

    def _why_not_split(self, node: Node) -> str:
        by_domain: dict[Domain, list[str]] = {"request": [], "item": [], "candidate": []}
        for p in self.pieces[node.inputs[0]]:
            of_domain = by_domain[self.graph.domain(p.source)]
            if p.source not in of_domain:
                of_domain.append(p.source)
        why = []
        if by_domain["candidate"]:
            why.append(f"not split: its input has candidate values ({listed(by_domain['candidate'])})")
        if by_domain["request"]:
            why.append("not split: its groups read different columns of a mixed input")
        elif by_domain["item"]:
            reason = self.storage.refused.get(node.output + ITEM_PART, "no item memory")
            why.append(f"item part not stored: {reason}")
        return "; ".join(why)


def _written_attrs(node: Node) -> dict[str, Any]:
    """All attributes, but for those that came later and have their default: older engines do not know them."""
    defaults = OPS[node.op].attrs
    attrs = {name: node.attr(name) for name in sorted(defaults)}
    return {k: v for k, v in attrs.items() if (node.op, k) not in NEW_ATTRS or v != defaults[k]}


def _is_addend(node: Node, position: int) -> bool:
    return node.op == "affine" and position >= ("w" in node.weights)


def _offsets(pieces: Sequence[Piece]) -> list[int]:
    return [sum(p.width for p in pieces[:i]) for i in range(len(pieces))]


def _joined(moves: Sequence[tuple[str, Operand, Operand]]) -> list[tuple[str, Operand, Operand]]:
    """Moves of neighbouring columns to neighbouring columns as one. (From one buffer all moves are of one kind.)"""
    joined: list[tuple[str, Operand, Operand]] = []
    for op, at, to in moves:
        if joined:
            _, last_at, last_to = joined[-1]
            if all(a[0] == b[0] and a[1] + a[2] == b[1] for a, b in ((last_at, at), (last_to, to))):
                both = at[2] + last_at[2]
                joined[-1] = (op, [*last_at[:2], both], [*last_to[:2], both])
                continue
        joined.append((op, at, to))
    return joined
