"""What a plan does, where, and what it costs: the text and the picture behind ``fastmtr explain``."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastmtr.compiler.costs import Machine, flops, model_flops
from fastmtr.compiler.storage import COLUMN_BYTES, SCALE_BYTES
from fastmtr.graph import DOMAINS, Domain, Graph
from fastmtr.text_table import text_table

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Explanation", "StepCost", "explain"]

_MACHINE = Machine()
_PRODUCTS = ("affine", "conv1d", "gru")
_ONCE = {"request": "once a request", "item": "once an item, ahead of time", "candidate": "for every candidate"}
_HEADER = ("step", "operator", "width", "FLOPs", "gathers", "weights", "keeps")
_LEGEND = "Bytes: gathers = read from table rows, weights = read once a tile of rows, keeps = stored for each item."


@dataclass(frozen=True)
class StepCost:
    """One step of a plan, with what it costs for one row of its domain.

    Parameters
    ----------
    name, op, activation : str
        The activation is that of an affine or activation step, else "none".
    domain : {"request", "item", "candidate"}
    width : int
        Columns it writes.
    flops : int
    table_bytes : int
        Read from rows of tables: embeddings, and stored values of the catalogue's items.
    weight_bytes : int
        Of the dense weights, which are read once a tile of rows.
    stored_bytes : int
        Kept for each catalogue item.
    stored_dtype : str
        What they are kept in: f32, f16 or i8; "" where nothing is kept.
    remark : str
        Why it is in this domain.
    reads : tuple of int
        The steps whose results it reads.
    for_tasks : bool
        A task's score depends on it; other steps are for request and item outputs (retrieval) alone.
    """

    name: str
    op: str
    activation: str
    domain: Domain
    width: int
    flops: int
    table_bytes: int
    weight_bytes: int
    stored_bytes: int
    stored_dtype: str
    remark: str
    reads: tuple[int, ...]
    for_tasks: bool

    @property
    def title(self) -> str:
        """The operator with its activation."""
        return self.op if self.activation == "none" else f"{self.op} + {self.activation}"


@dataclass(frozen=True)
class Explanation:
    """The steps of a plan with their costs. ``print`` it, or write :meth:`to_html` to a file.

    Parameters
    ----------
    steps : tuple of StepCost
    n_items : int
        Size of the catalogue; 0: not known.
    input_bytes : int
        Of one item's packed inputs.
    model_flops : int, optional
        Of the tasks' scores of one candidate by the model as it was before it was compiled.
    """

    steps: tuple[StepCost, ...]
    n_items: int
    input_bytes: int
    model_flops: int | None = None

    def predict(self, candidates: int, *, machine: Machine = _MACHINE) -> list[float]:
        """Seconds that each step of a request of so many candidates takes in fp32, by the cost model.

        Steps of the item domain run ahead of time: 0.
        """
        relu = [s.activation == "relu" for s in self.steps]
        return [
            0.0
            if s.domain == "item"
            else machine.seconds(
                flops=s.flops,
                product=s.weight_bytes > 0 and s.op in _PRODUCTS,
                zeros=s.op == "affine" and bool(s.reads) and all(relu[i] for i in s.reads),
                weight_bytes=s.weight_bytes,
                table_bytes=s.table_bytes,
                rows=1 if s.domain == "request" else candidates,
            )
            for s in self.steps
        ]

    def flops(self, domain: Domain) -> int:
        """FLOPs for one row of the domain, of the steps that the tasks' scores depend on."""
        return sum(s.flops for s in self.steps if s.domain == domain and s.for_tasks)

    @property
    def stored_bytes(self) -> int:
        """Bytes kept for one catalogue item besides its inputs."""
        return sum(s.stored_bytes for s in self.steps)

    def summary(self) -> list[str]:
        """The totals, in a few sentences."""
        request, item, candidate = (self.flops(d) for d in DOMAINS)
        kept = self.stored_bytes + self.input_bytes
        catalogue = f"; {self.n_items * kept:,} for {self.n_items:,} items" if self.n_items else ""
        return [
            _LEGEND,
            f"FLOPs of the tasks' scores: {request:,} once a request, {item:,} once an item ahead of time, "
            f"{candidate:,} a candidate.",
            *self._without_factoring(candidate),
            f"Predicted for a request of 512 candidates in fp32, on one core such as the cost model was made on: "
            f"{1e6 * sum(self.predict(512)):.0f} us; fastmtr profile shows the measured time beside it.",
            f"Kept for each item: {self.stored_bytes:,} bytes of values{self._by_dtype()} and {self.input_bytes:,} of "
            f"inputs{catalogue}.",
        ]

    def _without_factoring(self, candidate: int) -> list[str]:
        if self.model_flops is None:
            return []
        times = f", {self.model_flops / candidate:.2f} times as many" if candidate else ""
        return [f"Without factoring, the model as it was: {self.model_flops:,} a candidate{times}."]

    def _by_dtype(self) -> str:
        found: dict[str, int] = {}
        for s in self.steps:
            if s.stored_dtype:
                found[s.stored_dtype] = found.get(s.stored_dtype, 0) + s.stored_bytes
        if set(found) <= {"f32"}:
            return ""
        return f" ({', '.join(f'{n:,} in {dtype}' for dtype, n in sorted(found.items()))})"

    def rows(self, domain: Domain) -> list[tuple[str, ...]]:
        """The table of one domain as text, without its header."""
        return [
            (
                name if len(steps) == 1 else f"{name} x {len(steps)}",
                title,
                str(sum(s.width for s in steps)),
                *(f"{sum(n):,}" if any(n) else "" for n in zip(*map(_numbers, steps), strict=True)),
            )
            for (name, title), steps in self._by_name(domain).items()
        ]

    def _by_name(self, domain: Domain) -> dict[tuple[str, str], list[StepCost]]:
        """Copies and gathers into one value stand together."""
        found: dict[tuple[str, str], list[StepCost]] = {}
        for s in self.steps:
            if s.domain == domain:
                found.setdefault((s.name, s.title), []).append(s)
        return found

    def remarks(self, domain: Domain) -> list[str]:
        """Why steps are in this domain; steps with one reason together."""
        because: dict[str, list[str]] = {}
        for s in self.steps:
            if s.domain == domain and s.remark:
                because.setdefault(s.remark, []).append(s.name)
        return [f"{', '.join(names)}: {remark}" for remark, names in because.items()]

    def __str__(self) -> str:
        lines = []
        for domain in DOMAINS:
            rows = self.rows(domain)
            if rows:
                lines += [f"{domain}: {_ONCE[domain]}", *text_table([_HEADER, *rows], left=range(2))]
                lines += [*(f"  * {remark}" for remark in self.remarks(domain)), ""]
        return "\n".join([*lines, *self.summary()])

    def __rich__(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = []
        for domain in DOMAINS:
            rows = self.rows(domain)
            if not rows:
                continue
            table = Table(box=box.SIMPLE_HEAD, title=f"{domain}: {_ONCE[domain]}", title_justify="left")
            for i, title in enumerate(_HEADER):
                table.add_column(title, justify="left" if i < 2 else "right", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            parts.append(table)
            parts += [Padding(Text(f"* {remark}"), (0, 2)) for remark in self.remarks(domain)]
        return Group(*parts, Text(), *map(Text, self.summary()))

    def to_html(self) -> str:
        """A page with the diagram and the tables; it loads nothing from elsewhere."""
        parts = [_PAGE_HEAD, *(f"<p>{html.escape(line)}</p>" for line in self.summary()), _diagram(self.steps)]
        for domain in DOMAINS:
            rows = self.rows(domain)
            if not rows:
                continue
            parts.append(f"<h2>{domain}: {_ONCE[domain]}</h2><table><tr>")
            parts += [f"<th>{title}</th>" for title in _HEADER]
            parts.append("</tr>")
            for row in rows:
                parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
            parts.append("</table>")
            parts += [f"<p>{html.escape(remark)}</p>" for remark in self.remarks(domain)]
        return "\n".join([*parts, "</body></html>", ""])


def explain(
    plan: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    n_items: int = 0,
    item_sizes: Mapping[str, int] = MappingProxyType({}),
    graph: Graph | None = None,
) -> Explanation:
    """Cost and reason of every step of a plan.

    Parameters
    ----------
    plan : mapping
        ``plan.json``.
    shapes : mapping of str to shape
        Of the weights that the plan names.
    n_items : int
        Size of the catalogue.
    item_sizes : mapping of str to int
        Bytes of an element of these weights; 4 of all others.
    graph : Graph, optional
        The model before it was compiled, to compare with; only the shapes of its weights are read.
    """
    buffers = plan["buffers"]
    writers: dict[int, list[tuple[int, int, int]]] = {}

    def sources(operands: Iterable[Sequence[int]]) -> tuple[int, ...]:
        found = set[int]()
        for buffer, offset, width in operands:
            found |= {i for i, o, w in writers.get(buffer, ()) if o < offset + width and offset < o + w}
        return tuple(sorted(found))

    reads = []
    for index, step in enumerate(plan["steps"]):
        reads.append(sources(step["inputs"]))
        buffer, offset, width = step["output"]
        writers.setdefault(buffer, []).append((index, offset, width))
    for_tasks = set(sources(o["operand"] for o in plan["outputs"] if o["role"] == "task"))
    for index in reversed(range(len(reads))):
        if index in for_tasks:
            for_tasks.update(reads[index])
    steps = [
        _cost(step, buffers, shapes, item_sizes, reads[index], index in for_tasks)
        for index, step in enumerate(plan["steps"])
    ]
    input_bytes = sum(4 * i["width"] for i in plan["inputs"] if i["domain"] == "item")
    return Explanation(tuple(steps), n_items, input_bytes, None if graph is None else model_flops(graph))


def _cost(
    step: Mapping[str, Any],
    buffers: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Sequence[int]],
    item_sizes: Mapping[str, int],
    reads: tuple[int, ...],
    for_tasks: bool,
) -> StepCost:
    op, domain = step["op"], step["domain"]
    widths = [width for _, _, width in step["inputs"]]
    output, offset, width = step["output"]
    kept = buffers[output]
    own = {role: tuple(shapes[name]) for role, name in step["weights"].items()}
    table_bytes = 0
    if "table" in own:
        scale_and_shift = 2 * SCALE_BYTES if "table_scale" in own else 0
        table_bytes = widths[0] * (item_sizes.get(step["weights"]["table"], 4) * own["table"][1] + scale_and_shift)
    if domain == "candidate":
        table_bytes += sum(_row_bytes(buffers[b], w) for b, _, w in step["inputs"] if buffers[b]["domain"] == "item")
    return StepCost(
        name=step["name"],
        op=op,
        activation=step["attrs"].get("activation", "none"),
        domain=domain,
        width=width,
        flops=flops(op, widths, width, own, step["attrs"]),
        table_bytes=table_bytes,
        weight_bytes=sum(4 * math.prod(shape) for role, shape in own.items() if not role.startswith("table")),
        stored_bytes=_row_bytes(kept, width, with_scale=offset == 0) if kept["stored"] else 0,
        stored_dtype=kept["dtype"] if kept["stored"] else "",
        remark=step.get("remark", ""),
        reads=reads,
        for_tasks=for_tasks,
    )


def _row_bytes(buffer: Mapping[str, Any], width: int, *, with_scale: bool = True) -> int:
    """Of so many columns of an item's row."""
    scale = SCALE_BYTES if buffer["dtype"] == "i8" and with_scale else 0
    return width * COLUMN_BYTES[buffer["dtype"]] + scale


def _numbers(s: StepCost) -> tuple[int, ...]:
    return s.flops, s.table_bytes, s.weight_bytes, s.stored_bytes


# ---- the diagram -----------------------------------------------------------------------------------------------------

_PAGE_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fastmtr plan</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #1d2733; }
table { border-collapse: collapse; margin-bottom: 2em; }
th, td { padding: 2px 10px; text-align: left; border-bottom: 1px solid #d8dee6; }
td:nth-child(n+3) { text-align: right; }
svg text { font: 12px system-ui, sans-serif; }
</style></head><body>
<h1>What is computed, where, and what it costs</h1>"""

_BOX_WIDTH, _BOX_HEIGHT, _LANE, _GAP, _TOP = 230, 34, 290, 20, 40
_COLOURS = {"request": "#dcebfa", "item": "#e3f4e0", "candidate": "#fbe9d7"}


def _diagram(steps: Sequence[StepCost]) -> str:
    """A lane a domain; each step stands below what it reads."""
    free = dict.fromkeys(DOMAINS, 0)
    level: list[int] = []
    for s in steps:
        level.append(max([free[s.domain], *(level[i] + 1 for i in s.reads)]))
        free[s.domain] = level[-1] + 1
    height = _TOP + (max(level, default=0) + 1) * (_BOX_HEIGHT + _GAP)
    parts = [f'<svg width="{3 * _LANE}" height="{height}" role="img" aria-label="steps of the plan by domain">']
    for lane, domain in enumerate(DOMAINS):
        parts.append(f'<text x="{lane * _LANE + 10}" y="20" font-weight="bold">{domain}: {_ONCE[domain]}</text>')
    corner = [
        (DOMAINS.index(s.domain) * _LANE + 10, _TOP + y * (_BOX_HEIGHT + _GAP))
        for s, y in zip(steps, level, strict=True)
    ]
    for s, (x, y) in zip(steps, corner, strict=True):
        for i in s.reads:
            x0, y0 = corner[i][0] + _BOX_WIDTH // 2, corner[i][1] + _BOX_HEIGHT
            x1, middle = x + _BOX_WIDTH // 2, (y0 + y) // 2
            parts.append(
                f'<path d="M {x0} {y0} C {x0} {middle}, {x1} {middle}, {x1} {y}" fill="none" stroke="#8795a5"/>'
            )
    for s, (x, y) in zip(steps, corner, strict=True):
        title = f"{s.title}, {s.flops:,} FLOPs, {s.width} columns. {s.remark}".strip()
        name = s.name if len(s.name) <= 30 else s.name[:29] + "…"
        parts.append(
            f'<g><title>{html.escape(title)}</title><rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" '
            f'rx="5" fill="{_COLOURS[s.domain]}" stroke="#8795a5"/>'
            f'<text x="{x + 8}" y="{y + 15}">{html.escape(name)}</text>'
            f'<text x="{x + 8}" y="{y + 29}" fill="#5b6b7c">{html.escape(s.title)} → {s.width}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])
