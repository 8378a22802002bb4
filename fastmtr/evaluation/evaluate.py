"""Tables of quality: all tasks of one model, the retrieval and the lists, and several models over several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.evaluation.metrics import (
    auc_interval,
    best_f1_threshold,
    binary_metrics,
    regression_metrics,
    retrieval_metrics,
)
from fastmtr.schema import Schema

if TYPE_CHECKING:
    from fastmtr.models import ModelConfig
    from fastmtr.training.samples import Prepared, Samples
    from fastmtr.training.trainer import TrainerConfig

__all__ = [
    "Comparison",
    "Difference",
    "TaskQuality",
    "choose_thresholds",
    "compare_with_single_task",
    "evaluate",
    "mean_interval",
    "rank_catalogue",
    "relevant_items",
    "retrieval_quality",
]


@dataclass(frozen=True)
class TaskQuality:
    """The quality of one task.

    Attributes
    ----------
    task, kind : str
    metrics : dict of str to float
        See :func:`~fastmtr.evaluation.metrics.binary_metrics` and ``regression_metrics``.
    auc_interval : (float, float) or None
        95 % bootstrap interval over users; None for regression, or when it was not asked for.
    """

    task: str
    kind: str
    metrics: dict[str, float]
    auc_interval: tuple[float, float] | None = None


def choose_thresholds(scores: NDArray[Any], samples: Samples, *, schema: Schema) -> dict[str, float]:
    """The threshold with the highest F1 for each binary task, on validation samples.

    Parameters
    ----------
    scores : ndarray of shape (samples, tasks of the schema)
    """
    _check_shape(scores, samples, schema)
    found = {}
    for i, task in enumerate(schema.tasks):
        known = ~np.isnan(samples.labels[:, i])
        if task.kind == "binary":
            found[task.name] = best_f1_threshold(samples.labels[known, i], scores[known, i])
    return found


def evaluate(
    scores: NDArray[Any],
    samples: Samples,
    *,
    schema: Schema,
    thresholds: Mapping[str, float] | None = None,
    intervals: bool = False,
) -> list[TaskQuality]:
    """The quality of scores, task by task.

    Parameters
    ----------
    scores : ndarray of shape (samples, tasks of the schema)
        A column of NaN is a task that the model does not predict; it is left out.
    samples : Samples
        Rows with an unknown (NaN) label do not count for that task.
    thresholds : mapping of task to float, optional
        From :func:`choose_thresholds` on validation samples; 0.5 for a task that is not in it.
    intervals : bool
        Add a bootstrap interval to each AUC.
    """
    _check_shape(scores, samples, schema)
    found = []
    for i, task in enumerate(schema.tasks):
        if np.isnan(scores[:, i]).all() and len(scores):
            continue
        known = ~np.isnan(samples.labels[:, i])
        y, p, users = samples.labels[known, i], scores[known, i], samples.user_rows[known]
        if task.kind == "regression":
            found.append(TaskQuality(task.name, task.kind, regression_metrics(y, p)))
            continue
        metrics = binary_metrics(y, p, groups=users, threshold=(thresholds or {}).get(task.name, 0.5))
        interval = auc_interval(y, p, groups=users) if intervals else None
        found.append(TaskQuality(task.name, task.kind, metrics, interval))
    return found


def relevant_items(samples: Samples, *, schema: Schema, task: str) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Users with at least one positive of ``task`` among ``samples``, and the item rows of each one's positives."""
    column = [t.name for t in schema.tasks].index(schema.task(task).name)
    positive = (samples.labels[:, column] == 1.0) & (samples.user_rows >= 0)
    users, items = samples.user_rows[positive], samples.item_rows[positive]
    order = np.argsort(users, kind="stable")
    found, starts = np.unique(users[order], return_index=True)
    return found.astype(np.int64), np.split(items[order], starts[1:]) if found.size else []


def rank_catalogue(
    scores: Callable[[NDArray[np.int64]], NDArray[Any]],
    users: NDArray[np.int64],
    *,
    k: int,
    exclude: Callable[[int], NDArray[np.int64]] | None = None,
    block: int = 512,
) -> NDArray[np.int64]:
    """The k best items of the whole catalogue for each user, by exact search.

    Parameters
    ----------
    scores : callable
        Takes user rows ``[b]``, gives scores ``[b, items]``.
    users : ndarray of int64
        User rows.
    exclude : callable, optional
        Takes a user row, gives item rows that may not be in that user's list.

    Returns
    -------
    ndarray of int64, shape (users, k)
        Item rows, best first, ties by row; -1 where fewer are left.
    """
    found = np.full((users.size, k), -1, np.int64)
    for start in range(0, users.size, block):
        part = users[start : start + block]
        table = np.array(scores(part), dtype=np.float64)
        if exclude is not None:
            for i, user in enumerate(part):
                table[i, exclude(int(user))] = -np.inf
        order = np.argsort(-table, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(table, order, axis=1)
        found[start : start + block, : order.shape[1]] = np.where(np.isfinite(best), order, -1)
    return found


def retrieval_quality(
    lists: Mapping[str, NDArray[np.int64]],
    relevant: Sequence[NDArray[np.int64]],
    *,
    ks: Sequence[int] = (10, 50, 100),
) -> dict[str, dict[str, float]]:
    """Metrics of several ways to rank for the same users, by name (``{"two tower": ..., "popularity": ...}``)."""
    return {name: retrieval_metrics(ranked, relevant, ks=ks) for name, ranked in lists.items()}


@dataclass(frozen=True)
class Difference:
    """Multi-task against single-task on one task and metric, over seeds.

    Attributes
    ----------
    multi, single : tuple of float
        One value a seed.
    mean : float
        Of the paired differences, multi minus single.
    interval : (float, float)
        Student's t interval of that mean.
    """

    task: str
    metric: str
    multi: tuple[float, ...]
    single: tuple[float, ...]
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """The differences of all tasks and metrics; ``confidence`` belongs to their intervals."""

    seeds: tuple[int, ...]
    confidence: float
    differences: tuple[Difference, ...] = field(default_factory=tuple)


def compare_with_single_task(
    prepared: Prepared,
    config: ModelConfig,
    *,
    trainer: TrainerConfig | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    metrics: Sequence[str] = ("auc", "gauc", "log_loss"),
    confidence: float = 0.95,
    on_model: Callable[[str], None] | None = None,
) -> Comparison:
    """Train one multi-task model and one model of the same kind for each task alone, with each seed; compare on test.

    The single-task models have the same configuration and inputs, and the whole model is theirs: it is a comparison of
    one model for all tasks against as many models as tasks.

    Parameters
    ----------
    metrics : sequence of str
        Of binary tasks; regression tasks are compared by ``rmse``.
    on_model : callable, optional
        Called with a word on each model that is trained.
    """
    import msgspec

    from fastmtr.models import build_model
    from fastmtr.training.trainer import TrainerConfig, predict, train

    if len(seeds) < 2:
        raise SchemaError(f"an interval needs at least two seeds, found {list(seeds)}")
    base = trainer or TrainerConfig()
    names = [t.name for t in prepared.schema.tasks]
    plain = msgspec.structs.replace(config, two_tower=None)

    def run(tasks: Sequence[str], seed: int) -> NDArray[np.float32]:
        """Scores of the test samples, NaN for tasks that the model does not have."""
        if on_model is not None:
            on_model(f"{', '.join(tasks)} (seed {seed})")
        model = build_model(plain, prepared.pipeline.inputs, schema=prepared.schema, tasks=tasks, seed=seed)
        train(model, prepared, config=msgspec.structs.replace(base, seed=seed), progress=False)
        scores = np.full((prepared.test.n_rows, len(names)), np.nan, np.float32)
        scores[:, [names.index(t) for t in tasks]] = predict(model, prepared.test, catalogue=prepared.catalogue.packed)
        return scores

    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for seed in seeds:
        together = run(names, seed)
        alone = np.stack(
            [run(_with_causes(t, config, prepared.schema), seed)[:, names.index(t)] for t in names], axis=1
        )
        both = [evaluate(s, prepared.test, schema=prepared.schema) for s in (together, alone)]
        for multi, single in zip(*both, strict=True):
            for metric in metrics if multi.kind == "binary" else ("rmse",):
                pair = found.setdefault((multi.task, metric), ([], []))
                pair[0].append(multi.metrics[metric])
                pair[1].append(single.metrics[metric])
    differences = []
    for (task, metric), (multi_values, single_values) in found.items():
        mean, interval = mean_interval(np.subtract(multi_values, single_values), confidence=confidence)
        differences.append(Difference(task, metric, tuple(multi_values), tuple(single_values), mean, interval))
    return Comparison(tuple(seeds), confidence, tuple(differences))


def mean_interval(values: NDArray[Any], *, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The mean of at least two values and Student's t interval of it."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, (mean - half, mean + half)


def _with_causes(task: str, config: ModelConfig, schema: Schema) -> list[str]:
    """The task alone; for ESMM with those it depends on, without which it has no meaning."""
    return [t.name for t in schema.chain(task)] if config.type == "esmm" else [task]


def _check_shape(scores: NDArray[Any], samples: Samples, schema: Schema) -> None:
    expected = (samples.n_rows, len(schema.tasks))
    if scores.shape != expected:
        raise SchemaError(f"scores must have the shape [samples, tasks] {expected}, found {scores.shape}")
