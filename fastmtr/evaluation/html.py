"""A report as one HTML page that loads nothing from elsewhere: tables, and plots where matplotlib is installed.

Everything that comes from data, names of tasks and items included, is escaped.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmtr.evaluation.report import Latency, Report, Table, latency_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastmtr.features.quality import ColumnCheck, FeatureCheck

__all__ = ["render", "render_check", "write_html"]

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6b7c; --line: #d8dee6; --strong: #eef4fb; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .8rem; border-bottom: 2px solid var(--line); padding-bottom: .3rem; }
.lead, .note { color: var(--soft); }
.note { font-size: .85rem; margin: .3rem 0 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 1rem; font-size: .87rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
.text { text-align: left; }
tr.strong td { background: var(--strong); font-weight: 600; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
iframe { width: 100%; height: 40rem; border: 1px solid var(--line); }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.facts div { background: var(--strong); border-radius: .5rem; padding: .6rem 1rem; }
.facts b { display: block; font-size: 1.3rem; }
"""


def write_html(
    path: str | os.PathLike[str],
    report: Report,
    *,
    latency: Sequence[Latency] = (),
    latency_note: str = "",
    rankings: Sequence[Table] = (),
    extra: Sequence[Table] = (),
    explain: str | None = None,
) -> None:
    """Write the page; parameters are those of :func:`render`."""
    page = render(report, latency=latency, latency_note=latency_note, rankings=rankings, extra=extra, explain=explain)
    Path(path).write_text(page, encoding="utf-8")


def render(
    report: Report,
    *,
    latency: Sequence[Latency] = (),
    latency_note: str = "",
    rankings: Sequence[Table] = (),
    extra: Sequence[Table] = (),
    explain: str | None = None,
) -> str:
    """The page as text.

    Parameters
    ----------
    report : Report
    latency : sequence of Latency
        Stages of one request, measured now.
    latency_note : str
        How they were measured.
    rankings : sequence of Table
        Lists of a few users.
    extra : sequence of Table
        More tables for the section on retrieval.
    explain : str, optional
        The page of ``Explanation.to_html()``.
    """
    sections: dict[str, list[str]] = {"data": [], "quality": [], "effects": [], "retrieval": [], "features": []}
    for table in [*report.tables(), *extra]:
        sections[table.section].append(_table(table))
    parts = [
        *_begin(report.title, f"{report.model}; {report.parameters:,} parameters"),
        _facts(report, latency),
        "<h2>Data</h2>",
        *sections["data"],
        "<h2>Quality</h2>",
        *sections["quality"],
        *_plots(report),
    ]
    if sections["effects"]:
        parts += ["<h2>Learning together or alone</h2>", *_plot(_effects, report), *sections["effects"]]
    if sections["retrieval"]:
        parts += ["<h2>Retrieval</h2>", *sections["retrieval"]]
    if report.features is not None:
        parts += ["<h2>Features</h2>", *_check_plots(report.features), *sections["features"]]
    if latency:
        table = latency_table(latency, title="One request", note=latency_note)
        parts += ["<h2>Latency</h2>", *_plot(_latency, latency), _table(table)]
    if rankings:
        parts += ["<h2>Lists</h2>", *map(_table, rankings)]
    if explain is not None:
        parts += [
            "<h2>What the engine does, and why</h2>",
            f'<iframe sandbox title="steps of the compiled plan" srcdoc="{escape(explain)}"></iframe>',
        ]
    return "\n".join([*parts, "</body></html>", ""])


def render_check(check: FeatureCheck, *, title: str = "Features") -> str:
    """A page on whether new rows look like the fitted ones."""
    parts = [*_begin(title, check.verdict), *_check_plots(check), _table(check.table())]
    return "\n".join([*parts, "</body></html>", ""])


def _begin(title: str, lead: str) -> list[str]:
    return [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>',
    ]


def _facts(report: Report, latency: Sequence[Latency]) -> str:
    facts = [
        (f"{q.metrics['auc']:.3f}", f"AUC {q.task}")
        for q in report.quality[report.main]
        if q.metrics.get("auc") is not None
    ]
    if report.engine_difference is not None:
        what = f"engine against torch, worst of {report.engine_rows:,} samples"
        facts.append((f"{report.engine_difference:.1e}", what))
    total = next((each for each in latency if each.stage == "total"), None)
    if total is not None:
        facts.append((f"{total.p50 / 1000:.2f} ms", "one request, median"))
    boxes = (f"<div><b>{escape(number)}</b>{escape(what)}</div>" for number, what in facts)
    return f'<div class="facts">{"".join(boxes)}</div>'


def _table(table: Table) -> str:
    lefts = ["class='text'" if i < table.text else "" for i in range(len(table.columns))]
    head = "".join(f"<th {left}>{escape(name)}</th>" for left, name in zip(lefts, table.columns, strict=True))
    lines = []
    for i, row in enumerate(table.rows):
        cells = "".join(f"<td {left}>{escape(cell)}</td>" for left, cell in zip(lefts, row, strict=True))
        lines.append(("<tr class='strong'>" if i == table.strong else "<tr>") + cells + "</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    caption = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="wide"><table>{caption}<tr>{head}</tr>' + "".join(lines) + f"</table></div>{note}"


# ---- plots -----------------------------------------------------------------------------------------------------------

_COLOURS = ("#2563a8", "#d1682b", "#3a8f5c", "#9a4aa8", "#b8962e", "#4aa3a8", "#a84a5b", "#6b7280")
_VERDICTS = {"ok": _COLOURS[0], "watch": _COLOURS[4], "drift": _COLOURS[1]}
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastmtr",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8795a5",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # Names of tasks are shown as they are, whatever signs they have.
    "text.parse_math": False,
}


def _plots(report: Report) -> list[str]:
    parts = []
    if report.curves:
        parts += _plot(_roc_and_calibration, report)
    if len(report.epochs) > 1:
        parts += _plot(_training, report)
    if len(report.correlation.tasks) > 1:
        parts += _plot(_correlations, report)
    return parts


def _plot(draw: Callable[[Any, Any], str], data: Any) -> list[str]:
    """An image drawn by `draw(figure, data)`, which returns its description; nothing without matplotlib."""
    if find_spec("matplotlib") is None:
        return ["<p class='note'>A plot is left out here: matplotlib is not installed.</p>"]
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):
        figure = Figure(figsize=(10.5, 4), layout="constrained")
        words = draw(figure, data)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # As an image, its styles and ids stay apart from those of the page.
    code = base64.b64encode(file.getvalue()).decode()
    return [f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{code}">']


def _roc_and_calibration(figure: Figure, report: Report) -> str:
    left, right = figure.subplots(1, 2)
    for colour, (task, curve) in zip(_cycle(len(report.curves)), report.curves.items(), strict=True):
        left.plot(curve.false_positive, curve.true_positive, color=colour, label=_short(task))
        observed = [value or float("nan") for value in curve.observed]
        right.plot(curve.predicted, observed, color=colour, marker="o", markersize=3, label=_short(task))
    left.plot([0, 1], [0, 1], color="#8795a5", linestyle=":", linewidth=1)
    left.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    left.legend(loc="lower right")
    values = [v for c in report.curves.values() for v in (*c.predicted, *c.observed) if v > 0]
    low = min(values, default=1e-3) / 1.5
    right.plot([low, 1], [low, 1], color="#8795a5", linestyle=":", linewidth=1)
    right.set(
        title="Calibration (bins of equal size)",
        xlabel="predicted probability",
        ylabel="observed rate",
        xscale="log",
        yscale="log",
        xlim=(low, 1),
        ylim=(low, 1),
    )
    for axis in (right.xaxis, right.yaxis):
        # The usual labels of a logarithmic axis are mathematical text, which is off.
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    return "ROC and calibration curves of each task"


def _training(figure: Figure, report: Report) -> str:
    left, right = figure.subplots(1, 2)
    at = [e.epoch for e in report.epochs]
    left.plot(at, [_nan(e.loss) for e in report.epochs], color=_COLOURS[0], marker="o", markersize=3)
    left.set(title="Training loss, all tasks and retrieval", xlabel="epoch")
    tasks = list(report.epochs[0].valid)
    for colour, task in zip(_cycle(len(tasks)), tasks, strict=True):
        values = [_nan(e.valid[task]) for e in report.epochs]
        right.plot(at, values, color=colour, marker="o", markersize=3, label=_short(task))
    for axes in (left, right):
        axes.axvline(report.best_epoch, color="#8795a5", linestyle=":", linewidth=1)
        axes.set_xticks(at)
    right.set(title="AUC on the validation samples (dotted: the epoch that is kept)", xlabel="epoch")
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return "training loss and validation AUC by epoch"


def _correlations(figure: Figure, report: Report) -> str:
    axes = figure.subplots(1, 2)
    image: Any = None
    found = report.correlation
    for ax, what, rows in zip(axes, ("labels", "scores"), (found.labels, found.scores), strict=True):
        matrix = np.array([[_nan(v) for v in row] for row in rows])
        image = _matrix(ax, f"Correlation of {what}", matrix, found.tasks)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return "correlations between the tasks' labels and between their scores"


def _matrix(ax: Axes, title: str, matrix: Any, names: Sequence[str]) -> Any:
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    for (i, j), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.6 else "black"
        ax.text(j, i, "-" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    short = [_short(name) for name in names]
    ax.set_xticks(range(len(names)), short, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), short)
    ax.set_title(title)
    ax.spines[:].set_visible(False)
    return image


def _effects(figure: Figure, report: Report) -> str:
    chosen = [e for e in report.effects if e.metric in ("auc", "rmse")]
    ax = figure.subplots()
    at = np.arange(len(chosen))[::-1]
    ax.axvline(0, color="#8795a5", linewidth=1)
    middle = np.array([e.mean for e in chosen])
    ends = np.array([[e.mean - e.low for e in chosen], [e.high - e.mean for e in chosen]])
    ax.errorbar(middle, at, xerr=ends, fmt="o", color=_COLOURS[0], capsize=4)
    ax.set_yticks(at, [_short(f"{e.task} ({e.metric})") for e in chosen])
    ax.set_ylim(-0.7, len(chosen) - 0.3)
    ax.set(title="Multi-task minus single-task, with 95 % intervals", xlabel="difference (AUC: right is better)")
    return "difference between multi-task and single-task models"


def _latency(figure: Figure, latency: Sequence[Latency]) -> str:
    stages = [each for each in latency if each.stage != "total"]
    figure.set_figheight(1.9)
    ax = figure.subplots()
    for y, name in enumerate(("p99", "p50")):
        start = 0.0
        for colour, each in zip(_cycle(len(stages)), stages, strict=True):
            width = getattr(each, name)
            ax.barh(y, width, left=start, color=colour, label=each.stage if y == 0 else None)
            start += width
    ax.set_yticks([0, 1], ["p99", "p50"])
    ax.set(title="Stages of one request (percentiles of each stage, added up)", xlabel="µs")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return "time of each stage of one request"


# More bars than these are not read.
_MOST_INDICES = 20
_MOST_DISTRIBUTIONS = 12


def _indices(figure: Figure, check: FeatureCheck) -> str:
    compared = sorted((c for c in check.columns if c.index is not None), key=lambda c: -(c.index or 0.0))
    shown = compared[:_MOST_INDICES]
    figure.set_figheight(1.4 + 0.22 * len(shown))
    ax = figure.subplots()
    at = np.arange(len(shown))[::-1]
    colours = [_VERDICTS[c.verdict] for c in shown]
    ax.barh(at, [_nan(c.index) for c in shown], color=colours, height=0.7)
    ax.scatter([_nan(c.chance) for c in shown], at, marker="|", color="#1d2733", s=60, label="by chance at most (99 %)")
    ax.set_yticks(at, [_short(c.name) for c in shown])
    ax.set_ylim(-0.7, max(len(shown), 1) - 0.3)
    ax.set_xlim(left=0)
    more = f" (the first {len(shown)} of {len(compared)})" if len(shown) < len(compared) else ""
    ax.set(title=f"Population stability index of each feature{more}", xlabel="PSI against the fitted rows")
    ax.legend(loc="lower right")
    return "population stability index of each feature"


def _check_plots(check: FeatureCheck) -> list[str]:
    shown = [column for column in check.worst if column.labels][:_MOST_DISTRIBUTIONS]
    return [*_plot(_indices, check), *_plot(_distributions, shown)] if shown else []


def _distributions(figure: Figure, shown: Sequence[ColumnCheck]) -> str:
    across = 3
    down = -(-len(shown) // across)
    figure.set_figheight(2.9 * down)
    for ax, column in zip(figure.subplots(down, across, squeeze=False).flat, shown, strict=False):
        at = np.arange(len(column.labels))
        ax.bar(at - 0.2, column.fitted, width=0.4, color="#8795a5", label="fitted")
        ax.bar(at + 0.2, column.found, width=0.4, color=_VERDICTS[column.verdict], label="found")
        # Long lists of labels are thinned out, always with the last.
        step = -(-len(at) // 11)
        ticks = [*range(0, len(at) - step, step), len(at) - 1]
        ax.set_xticks(ticks, [_short(column.labels[i]) for i in ticks], rotation=40, ha="right", fontsize=7)
        ax.set_title(f"{_short(column.name)}  ({_nan(column.index):.3f})", fontsize=10)
        ax.margins(y=0.3)  # room for the legend
        ax.legend(fontsize=7, loc="upper right", ncols=2)
    for ax in figure.axes[len(shown) :]:
        ax.set_visible(False)
    return "shares of the bins of each feature, fitted and found"


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
