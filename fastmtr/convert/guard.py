"""What is strange about a converted model: each warning names what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.graph import Domain, Graph, Packed

__all__ = ["ModelWarning", "suspicions"]

_SAME = 1e-7
_LEAST_EACH = 5
"""Examples of each label that there must be before an input can be said to reproduce it."""


class ModelWarning(UserWarning):
    """Something about a converted model is strange."""


def suspicions(
    graph: Graph,
    *,
    sample: Mapping[Domain, Packed] | None = None,
    scores: Mapping[str, NDArray[Any]] | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
) -> tuple[str, ...]:
    """What a user should look at before the model is served.

    Parameters
    ----------
    graph : Graph
    sample : mapping of domain to Packed, optional
        N rows.
    scores : mapping of output to ndarray of shape (N, 1), optional
        What the model gives for the sample.
    labels : mapping of task to array of shape (N,), optional
        The sample's labels.
    """
    found = [*_untrained(graph), *_blind(graph)]
    if scores is not None:
        found += _outputs(graph, scores)
    if sample is not None and labels is not None:
        found += _leaks(graph, sample, labels)
    return tuple(found)


def _untrained(graph: Graph) -> Iterator[str]:
    """Parts that training changes without gradients, or with every step, as they were before it."""
    seen = set()
    for node in graph.nodes:
        named = {role: graph.weights[name] for role, name in node.weights.items()}
        if node.op == "batch_norm" and not named["mean"].any() and (named["var"] == 1).all():
            yield (
                f"batch norm {node.output!r} has mean 0 and variance 1 exactly, as before training: were its running "
                "statistics saved with the model?"
            )
        table = named.get("table")
        if table is None or node.weights["table"] in seen:
            continue
        seen.add(node.weights["table"])
        padding = node.attr("padding")
        rows = table if padding is None else np.delete(table, padding, axis=0)
        if len(rows) > 1 and (rows == rows[0]).all():
            yield (
                f"embedding {node.weights['table']!r} has the same values in all {len(rows)} rows: it tells nothing of "
                f"{node.inputs[0]!r}, as if it had not been trained or loaded"
            )


def _blind(graph: Graph) -> Iterator[str]:
    for o in graph.outputs:
        if o.role == "task" and graph.domain(o.value) == "request":
            yield f"task {o.name!r} reads nothing of the items: it is the same for all candidates of a request"


def _outputs(graph: Graph, scores: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    columns = {task: np.ravel(scores[task]) for task in graph.tasks if np.isfinite(scores[task]).all()}
    constant = set()
    for task, values in columns.items():
        if len(values) > 1 and np.ptp(values) <= _SAME:
            constant.add(task)
            yield f"task {task!r} is {values[0]:.6g} for every row of the sample"
    for a, b in combinations(columns, 2):
        if not {a, b} & constant and np.allclose(columns[a], columns[b], rtol=0, atol=_SAME):
            yield f"tasks {a!r} and {b!r} are the same for every row of the sample"


def _leaks(graph: Graph, sample: Mapping[Domain, Packed], labels: Mapping[str, ArrayLike]) -> Iterator[str]:
    for task, given in labels.items():
        label = np.asarray(given)
        kinds, counts = np.unique(label, return_counts=True)
        if len(kinds) != 2 or counts.min() < _LEAST_EACH:
            continue
        for i in graph.inputs:
            block = getattr(sample[i.domain], i.kind)[:, i.offset : i.offset + i.width]
            for column in range(i.width):
                if _reproduces(block[:, column], label == kinds[1]):
                    where = f"input {i.name!r}" + (f" (column {column})" if i.width > 1 else "")
                    yield (
                        f"{where} alone tells the label of task {task!r} for every row of the sample: is it known "
                        "before the outcome?"
                    )
                    break


def _reproduces(values: NDArray[Any], positive: NDArray[np.bool_]) -> bool:
    """The label follows from the value: by a threshold, or because each of a few values has one label."""
    low, high = values[~positive], values[positive]
    if low.max() < high.min() or high.max() < low.min():
        return True
    known, inverse = np.unique(values, return_inverse=True)
    if 2 * len(known) > len(values):
        return False
    shares = np.bincount(inverse, weights=positive) / np.bincount(inverse)
    return bool(((shares == 0) | (shares == 1)).all())
