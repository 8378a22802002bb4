"""What a lower precision costs: the same model twice, on the same samples and users."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmtr.errors import SchemaError

if TYPE_CHECKING:
    from fastmtr.evaluation.report import Table
    from fastmtr.ranker import Ranker
    from fastmtr.training.samples import Samples

__all__ = ["PrecisionCost", "TaskCost", "compare_precision"]


@dataclass(frozen=True)
class TaskCost:
    """One task's quality before and after.

    Attributes
    ----------
    task : str
    metric : {"auc", "rmse"}
        The latter of regression tasks.
    before, after : float
        NaN where the samples have one label alone.
    largest_difference : float
        Of a score of any sample.
    """

    task: str
    metric: str
    before: float
    after: float
    largest_difference: float


@dataclass(frozen=True)
class PrecisionCost:
    """What changed between two rankers of one model. ``print`` its :meth:`table`.

    Attributes
    ----------
    samples : int
        That the tasks were judged on.
    tasks : tuple of TaskCost
        Empty without samples.
    k, users : int
    overlap : float or None
        The mean share of the first ``k`` items of the whole catalogue that stay among them, over so many known users.
        None where the bundle has no users or items of its own, or the model needs inputs of each candidate.
    memory : (int, int)
        Bytes that the engine holds or maps, before and after.
    """

    samples: int
    tasks: tuple[TaskCost, ...]
    k: int
    users: int
    overlap: float | None
    memory: tuple[int, int]

    def table(self) -> Table:
        """One row a task, the rest as its note."""
        from fastmtr.evaluation.report import Table, show

        rows = []
        for t in self.tasks:
            change, largest = f"{t.after - t.before:+.5f}", show(t.largest_difference, 5)
            rows.append([t.task, t.metric, show(t.before, 4), show(t.after, 4), change, largest])
        columns = ["task", "metric", "before", "after", "change", "largest difference of a score"]
        return Table("quality", f"What the precision costs, on {self.samples:,} samples", columns, rows, str(self))

    def __str__(self) -> str:
        before, after = (n / 2**20 for n in self.memory)
        text = f"Memory: {before:,.1f} MiB before, {after:,.1f} MiB after."
        if self.overlap is None:
            return text
        return f"{text} Of the first {self.k} of the catalogue {self.overlap:.1%} stay ({self.users:,} users)."


def compare_precision(
    before: Ranker, after: Ranker, *, samples: Samples | None = None, k: int = 10, most_users: int = 200, seed: int = 0
) -> PrecisionCost:
    """Compare two rankers of the same model, the second with a lower precision of its bundle or of its loading.

    Parameters
    ----------
    before, after : Ranker
        With the same tasks and items.
    samples : Samples, optional
        With labels, packed by these bundles' feature pipeline; item inputs are those of the catalogue.
    k : int
        Of the lists that are compared.
    most_users : int
        Known users to rank the whole catalogue for, drawn by ``seed``.

    Raises
    ------
    SchemaError
        The rankers differ in tasks or items.
    """
    if before.schema.tasks != after.schema.tasks or not np.array_equal(before.items, after.items):
        raise SchemaError("the rankers differ in tasks or items; expected one model in two precisions")
    tasks = () if samples is None else _task_costs(before, after, samples)
    overlap, users = _overlap(before, after, k, most_users, seed)
    memory = sum(before.memory_usage.values()), sum(after.memory_usage.values())
    return PrecisionCost(0 if samples is None else samples.n_rows, tasks, k, users, overlap, memory)


def _task_costs(before: Ranker, after: Ranker, samples: Samples) -> tuple[TaskCost, ...]:
    from fastmtr.evaluation.evaluate import evaluate  # needs scikit-learn, which a plain installation has not

    of_today = dataclasses.replace(samples, item_dense=None)
    scores = [ranker.predict(of_today, items=ranker.items) for ranker in (before, after)]
    schema = before.schema
    differences = abs(scores[1] - scores[0]).max(axis=0, initial=0)
    largest = dict(zip((t.name for t in schema.tasks), differences.tolist(), strict=True))
    found = []
    for one, other in zip(*(evaluate(s, of_today, schema=schema) for s in scores), strict=True):
        metric = "rmse" if one.kind == "regression" else "auc"
        found.append(TaskCost(one.task, metric, one.metrics[metric], other.metrics[metric], largest[one.task]))
    return tuple(found)


def _overlap(before: Ranker, after: Ranker, k: int, most_users: int, seed: int) -> tuple[float | None, int]:
    needs_candidates = any(i["domain"] == "candidate" for i in before.bundle.plan["inputs"])
    n = min(most_users, len(before.users))
    if n == 0 or before.n_items == 0 or needs_candidates:
        return None, 0
    users = np.random.default_rng(seed).choice(before.users, size=n, replace=False).tolist()
    lists = [ranker.rank(users, None, k=k) for ranker in (before, after)]
    shares = [len(np.intersect1d(a.items, b.items)) / len(a.items) for a, b in zip(*lists, strict=True)]
    return float(np.mean(shares)), n
