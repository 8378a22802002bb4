"""What a training found, as plain data: saved in the bundle, shown in a terminal, and as a page by :mod:`.html`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.features.quality import FeatureCheck
from fastmtr.text_table import text_table

if TYPE_CHECKING:
    from rich.console import Console

    from fastmtr.evaluation.evaluate import Comparison, TaskQuality
    from fastmtr.schema import Schema
    from fastmtr.training.samples import Prepared, Samples
    from fastmtr.training.trainer import TrainResult

__all__ = [
    "Correlation",
    "Curve",
    "Effect",
    "Epoch",
    "Latency",
    "Quality",
    "Report",
    "Split",
    "Table",
    "latency_table",
    "make_report",
    "quality_tables",
    "wide_console",
]

# A curve is drawn, not integrated: more points are not seen.
_POINTS = 100
_BINS = 15

# Of the features, so many are shown: those that differ most.
_FEATURES = 12
_FEATURES_TITLE = "Features of the test samples against the training samples"

Number = float | None


class Quality(msgspec.Struct, frozen=True):
    """Metrics of one task; None where a metric is not defined."""

    task: str
    kind: str
    metrics: dict[str, Number]
    auc_interval: tuple[Number, Number] | None = None


class Curve(msgspec.Struct, frozen=True):
    """ROC and calibration of one binary task on the test samples, and its threshold-free base rate."""

    false_positive: list[float]
    true_positive: list[float]
    predicted: list[float]
    observed: list[float]


class Epoch(msgspec.Struct, frozen=True):
    """One pass over the training samples; ``valid`` is the AUC (R2 of a regression) by task."""

    epoch: int
    loss: Number
    valid: dict[str, Number]
    score: Number
    seconds: float


class Split(msgspec.Struct, frozen=True):
    """One part of the data; ``mean`` is the mean label by task."""

    part: str
    samples: int
    users: int
    items: int
    mean: dict[str, Number]


class Correlation(msgspec.Struct, frozen=True):
    """Pearson correlations between the tasks' labels, and between their scores, on the test samples."""

    tasks: list[str]
    labels: list[list[Number]]
    scores: list[list[Number]]


class Effect(msgspec.Struct, frozen=True):
    """Multi-task minus single-task over seeds: the mean difference and its interval."""

    task: str
    metric: str
    multi: float
    single: float
    mean: float
    low: float
    high: float


class Latency(msgspec.Struct, frozen=True):
    """Time of one stage in microseconds over so many calls."""

    stage: str
    calls: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, stage: str, seconds: Sequence[float]) -> Latency:
        """Percentiles of measured times."""
        p50, p90, p99 = (float(each) for each in np.percentile(np.asarray(seconds) * 1e6, [50, 90, 99]))
        return cls(stage, len(seconds), p50, p90, p99)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured when a bundle was made.

    Attributes
    ----------
    title : str
        The name of the configuration.
    model : str
        In words.
    parameters : int
    main : str
        The key of ``quality`` that is the bundle's own model.
    cleaning : list of (rule, removed, kept)
    rules : dict of task to str
        How each label is made, in words.
    splits : list of Split
    quality : dict of str to list of Quality
        By model, baselines included, on the test samples.
    curves : dict of task to Curve
    correlation : Correlation
    epochs : list of Epoch
    best_epoch : int
    retrieval : dict of str to dict of str to float
        Metrics of retrieval over the whole catalogue, by method.
    retrieval_task : str, optional
        Whose positives are to be found.
    effects : list of Effect
        Empty unless the comparison was asked for.
    seeds : int
        Of that comparison.
    engine_rows, engine_difference
        So many test samples were scored by the engine and by torch; the greatest difference of any score.
    features : FeatureCheck, optional
        The raw features of the test samples against those of the training samples.
    """

    title: str
    model: str
    parameters: int
    main: str
    cleaning: list[tuple[str, int, int]]
    rules: dict[str, str]
    splits: list[Split]
    quality: dict[str, list[Quality]]
    curves: dict[str, Curve]
    correlation: Correlation
    epochs: list[Epoch]
    best_epoch: int
    retrieval: dict[str, dict[str, Number]] = {}
    retrieval_task: str | None = None
    effects: list[Effect] = []
    seeds: int = 0
    engine_rows: int = 0
    engine_difference: Number = None
    features: FeatureCheck | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries, as ``write_bundle`` takes them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Report:
        """Read what :meth:`to_json` gave; msgspec.ValidationError if it is something else."""
        return msgspec.convert(dict(plain), cls)

    def tables(self) -> list[Table]:
        """All that is told in numbers."""
        found = [_cleaning_table(self), _split_table(self), *quality_tables(self.quality, main=self.main)]
        if self.retrieval:
            found.append(_retrieval_table(self))
        if self.effects:
            found.append(_effect_table(self))
        if self.features is not None:
            found.append(self.features.table(title=_FEATURES_TITLE, most=_FEATURES))
        return found


class Table(msgspec.Struct, frozen=True):
    """Rows and columns; the ``text`` first columns are left-aligned, the row ``strong`` is the one to look at."""

    section: Literal["data", "quality", "effects", "retrieval", "latency", "lists", "features"]
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    strong: int | None = None
    text: int = 1

    def __str__(self) -> str:
        lines = text_table([self.columns, *self.rows], left=range(self.text))
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        table.caption, table.caption_justify = Text(self.note, style="dim") if self.note else None, "left"
        for i, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if i < self.text else "right")
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if i == self.strong else None)
        return table


def wide_console(*, stderr: bool = False) -> Console:
    """A console for tables: as wide as the terminal, or 120 columns where the output is no terminal."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def make_report(
    *,
    title: str,
    model: str,
    parameters: int,
    main: str,
    prepared: Prepared,
    training: TrainResult,
    scores: NDArray[np.float32],
    quality: Mapping[str, Sequence[TaskQuality]],
    retrieval: Mapping[str, Mapping[str, float]] | None = None,
    retrieval_task: str | None = None,
    comparison: Comparison | None = None,
) -> Report:
    """Gather a report.

    Parameters
    ----------
    scores : array of float32, shape (test samples, tasks)
        Of the main model on ``prepared.test``.
    quality : mapping of model name to the result of :func:`fastmtr.evaluation.evaluate.evaluate`
        ``main`` is one of them.
    """
    data = prepared.report
    return Report(
        title=title,
        model=model,
        parameters=parameters,
        main=main,
        cleaning=[(step.rule, step.removed, step.kept) for step in data.cleaning.steps],
        rules=dict(data.tasks.rules),
        splits=[
            Split(each.part, each.samples, each.users, each.items, {t: _number(v) for t, v in each.mean.items()})
            for each in data.splits
        ],
        quality={
            name: [Quality(t.task, t.kind, _numbers(t.metrics), _interval(t.auc_interval)) for t in tasks]
            for name, tasks in quality.items()
        },
        curves=_curves(scores, prepared.test, prepared.schema),
        correlation=_correlation(scores, prepared.test, prepared.schema),
        epochs=[
            Epoch(e.epoch, _number(e.loss), _numbers(e.valid), _number(e.score), e.seconds) for e in training.history
        ],
        best_epoch=training.best_epoch,
        retrieval={name: _numbers(metrics) for name, metrics in (retrieval or {}).items()},
        retrieval_task=retrieval_task,
        effects=[] if comparison is None else _effects(comparison),
        seeds=0 if comparison is None else len(comparison.seeds),
        features=data.features.without_bins(most=_FEATURES),
    )


def _curves(scores: NDArray[np.float32], samples: Samples, schema: Schema) -> dict[str, Curve]:
    from sklearn.metrics import roc_curve

    found = {}
    for i, task in enumerate(schema.tasks):
        known = ~np.isnan(samples.labels[:, i])
        y, p = samples.labels[known, i], scores[known, i].astype(np.float64)
        if task.kind != "binary" or not 0 < y.sum() < len(y):
            continue
        x, t, _ = roc_curve(y, p)
        at = np.linspace(0, 1, _POINTS)
        # So many that a bin has some positives, else a rare task's bins are mostly empty.
        n_bins = int(np.clip(y.sum() // 10, 1, min(_BINS, len(p))))
        bins = np.array_split(np.argsort(p, kind="stable"), n_bins)
        found[task.name] = Curve(
            at.round(4).tolist(),
            np.interp(at, x, t).round(4).tolist(),
            [float(p[rows].mean()) for rows in bins],
            [float(y[rows].mean()) for rows in bins],
        )
    return found


def _correlation(scores: NDArray[np.float32], samples: Samples, schema: Schema) -> Correlation:
    def between(columns: NDArray[np.float32]) -> list[list[Number]]:
        known = columns[~np.isnan(columns).any(axis=1)].astype(np.float64)
        if len(known) < 2:
            return [[None] * columns.shape[1]] * columns.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = np.atleast_2d(np.corrcoef(known, rowvar=False))
        return [[_number(each) for each in row] for row in matrix.tolist()]

    return Correlation([t.name for t in schema.tasks], between(samples.labels), between(scores))


def _effects(comparison: Comparison) -> list[Effect]:
    return [
        Effect(d.task, d.metric, float(np.mean(d.multi)), float(np.mean(d.single)), d.mean, *d.interval)
        for d in comparison.differences
        if all(map(math.isfinite, (d.mean, *d.interval)))
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def _cleaning_table(report: Report) -> Table:
    rows = [[rule, f"{removed:,}", f"{kept:,}"] for rule, removed, kept in report.cleaning]
    return Table("data", "Cleaning", ["rule", "rows removed", "rows kept"], rows)


def _split_table(report: Report) -> Table:
    tasks = list(report.rules)
    rows = [
        [s.part, f"{s.samples:,}", f"{s.users:,}", f"{s.items:,}", *(show(s.mean.get(t), 4) for t in tasks)]
        for s in report.splits
    ]
    note = "Mean label: " + "; ".join(f"{task} = {rule}" for task, rule in report.rules.items())
    return Table("data", "Samples, split by time", ["part", "samples", "users", "items", *tasks], rows, note)


_BINARY = ("auc", "gauc", "log_loss", "ece", "f1", "precision", "recall", "accuracy")
_QUALITY_NOTE = (
    "AUC: 95 % bootstrap interval over users. F1, precision, recall and accuracy are at the threshold with the best F1 "
    "on the validation samples."
)
_REGRESSION = ("rmse", "mae", "r2")


def quality_tables(quality: Mapping[str, Sequence[Quality | TaskQuality]], *, main: str) -> list[Table]:
    """A table a task, one row a model; ``main`` is the model to look at."""
    found = []
    for i, own in enumerate(quality[main]):
        names = [n for n in (_BINARY if own.kind == "binary" else _REGRESSION) if n in own.metrics]
        rows = []
        for model, tasks in quality.items():
            one = next((q for q in tasks if q.task == own.task), None)
            if one is None:
                continue
            cells = [show(one.metrics.get(name), 4) for name in names]
            if one.auc_interval is not None and "auc" in names:
                low, high = one.auc_interval
                cells[names.index("auc")] += f" [{show(low, 3)}, {show(high, 3)}]"
            rows.append([model, *cells])
        base = own.metrics.get("base_rate")
        title = f"{own.task} on the test samples{'' if base is None else f' (base rate {show(base, 4)})'}"
        note = _QUALITY_NOTE if i == len(quality[main]) - 1 else ""
        found.append(Table("quality", title, ["model", *names], rows, note, strong=list(quality).index(main)))
    return found


_RETRIEVAL_NOTE = (
    "Only what the platform chose to show can count here. Retrieval learns what is shown and clicked; ranking orders "
    "by what happens once an item is shown, and so brings up items that were hardly shown. How good ranking is among "
    "shown items is judged above (auc, gauc)."
)


def _retrieval_table(report: Report) -> Table:
    found = report.retrieval
    cuts = [int(name.removeprefix("recall@")) for name in next(iter(found.values())) if name.startswith("recall@")]
    rows = [
        [f"{k}", method, *(show(metrics.get(f"{name}@{k}"), 4) for name in ("recall", "ndcg", "hit"))]
        for k in cuts
        for method, metrics in found.items()
    ]
    users = next(iter(found.values())).get("users") or 0
    title = (
        f"The first k of the whole catalogue: items with a {report.retrieval_task} in the test samples, not met before "
        f"({users:,.0f} users)"
    )
    return Table("retrieval", title, ["k", "method", "recall@k", "ndcg@k", "hit rate@k"], rows, _RETRIEVAL_NOTE, text=2)


def _effect_table(report: Report) -> Table:
    rows = [
        [
            e.task,
            e.metric,
            show(e.multi, 4),
            show(e.single, 4),
            f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]",
            _verdict(e),
        ]
        for e in report.effects
    ]
    note = f"{report.seeds} seeds; mean difference and 95 % interval (Student's t, paired by seed)."
    columns = ["task", "metric", "multi-task", "single-task", "difference", "multi-task is"]
    return Table("effects", "One model for all tasks against one model a task", columns, rows, note)


def latency_table(latencies: Sequence[Latency], *, title: str, note: str = "") -> Table:
    """Stages and their percentiles."""
    rows = [
        [each.stage, *(f"{value:,.0f}" for value in (each.p50, each.p90, each.p99)), f"{each.calls:,}"]
        for each in latencies
    ]
    return Table("latency", title, ["stage", "p50 µs", "p90 µs", "p99 µs", "calls"], rows, note)


def _verdict(effect: Effect) -> str:
    if effect.low <= 0.0 <= effect.high:
        return "not resolved"
    better = effect.mean < 0 if effect.metric in ("log_loss", "rmse", "ece", "mae", "mse") else effect.mean > 0
    return "better" if better else "worse"


def show(value: Number, digits: int) -> str:
    """The number, or a dash where it is not defined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _number(value: float) -> Number:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Mapping[str, float]) -> dict[str, Number]:
    return {name: _number(value) for name, value in values.items()}


def _interval(values: tuple[float, float] | None) -> tuple[Number, Number] | None:
    return None if values is None else (_number(values[0]), _number(values[1]))
