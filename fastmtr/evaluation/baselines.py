"""What a model must beat: each function gives scores for samples from the training samples alone.

All return a float32 array of shape (samples, tasks of the schema), like a model's predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.graph import Input, Packed

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from fastmtr.training.samples import Prepared, Samples

__all__ = ["item_times_user_mean", "logistic_regression", "popular_items", "popularity"]

Float32 = NDArray[np.float32]


def popularity(prepared: Prepared, samples: Samples, *, smoothing: float = 20.0) -> Float32:
    """The item's mean label in training, drawn towards the overall mean by ``smoothing`` imagined rows of it."""
    means, _ = _smoothed_means(prepared.train.item_rows, prepared.train.labels, smoothing=smoothing)
    return _look_up(means, samples.item_rows).astype(np.float32)


def item_times_user_mean(prepared: Prepared, samples: Samples, *, smoothing: float = 20.0) -> Float32:
    """Smoothed item mean times smoothed user mean over the overall mean; a sum instead, for regression tasks.

    The usual floor of recommendation data: it knows popular items and active users, and nothing of their match.
    """
    train = prepared.train
    items, overall = _smoothed_means(train.item_rows, train.labels, smoothing=smoothing)
    users, _ = _smoothed_means(train.user_rows, train.labels, smoothing=smoothing)
    item, user = _look_up(items, samples.item_rows), _look_up(users, samples.user_rows)
    binary = np.array([t.kind == "binary" for t in prepared.schema.tasks])
    product = np.clip(item * user / np.maximum(overall, 1e-12), 0.0, 1.0)
    return np.where(binary, product, item + user - overall).astype(np.float32)


def logistic_regression(prepared: Prepared, samples: Samples, *, c: float = 0.1, max_iter: int = 100) -> Float32:
    """A linear model on the same inputs: one-hot ids (their mean, for histories) and numbers.

    Parameters
    ----------
    c : float
        Inverse strength of the L2 penalty, as in scikit-learn.
    max_iter : int
        Of the solver.

    Raises
    ------
    SchemaError
        A binary task has only one class in training.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    x, wanted = _design(prepared, prepared.train), _design(prepared, samples)
    found = np.empty((wanted.shape[0], len(prepared.schema.tasks)), np.float32)
    for i, task in enumerate(prepared.schema.tasks):
        known = ~np.isnan(prepared.train.labels[:, i])
        y = prepared.train.labels[known, i]
        if task.kind == "regression":
            found[:, i] = Ridge(alpha=1 / c).fit(x[known], y).predict(wanted)
            continue
        if np.unique(y).size < 2:
            raise SchemaError(f"task {task.name!r} has only one class in training; a logistic regression needs both")
        fitted = LogisticRegression(C=c, solver="newton-cg", max_iter=max_iter, tol=1e-3).fit(x[known], y)
        found[:, i] = fitted.predict_proba(wanted)[:, 1]
    return found


def popular_items(prepared: Prepared, *, task: str) -> NDArray[np.int64]:
    """All item rows, the one with most positives of ``task`` in training first; ties by row."""
    column = [t.name for t in prepared.schema.tasks].index(prepared.schema.task(task).name)
    positive = prepared.train.labels[:, column] == 1.0
    counts = np.bincount(prepared.train.item_rows[positive], minlength=prepared.catalogue.packed.n_rows)
    return np.argsort(-counts, kind="stable").astype(np.int64)


def _smoothed_means(
    rows: NDArray[np.int64], labels: Float32, *, smoothing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean label by row, with the overall mean as one more last row; and the overall mean. NaN labels do not count."""
    known = ~np.isnan(labels)
    values = np.where(known, labels, 0.0)
    overall = values.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    n = int(rows.max(initial=-1)) + 1
    seen = rows >= 0
    total = np.stack([np.bincount(rows[seen], weights=v[seen], minlength=n) for v in values.T], axis=1)
    count = np.stack([np.bincount(rows[seen], weights=k[seen], minlength=n) for k in known.T], axis=1)
    means = (total + smoothing * overall) / (count + smoothing)
    return np.concatenate([means, overall[None]]), overall


def _look_up(means: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The means of these rows; the overall mean (the last row) of those that training does not have."""
    last = len(means) - 1
    inside: NDArray[np.float64] = means[np.where((rows >= 0) & (rows < last), rows, last)]
    return inside


def _design(prepared: Prepared, samples: Samples) -> csr_matrix:
    """The inputs of samples as one sparse matrix."""
    from scipy import sparse

    packed: dict[str, Packed | None] = {
        "request": samples.request,
        "item": samples.items(prepared.catalogue.packed),
        "candidate": samples.candidate,
    }
    blocks = []
    for each in prepared.pipeline.inputs:
        inputs = packed[each.domain]
        if inputs is None:
            raise SchemaError(f"the samples have no candidate features, but input {each.name!r} needs them")
        blocks.append(_block(each, inputs))
    return sparse.hstack(blocks, format="csr")


def _block(each: Input, inputs: Packed) -> csr_matrix:
    from scipy import sparse

    columns = slice(each.offset, each.offset + each.width)
    if each.kind == "dense":
        return sparse.csr_matrix(inputs.dense[:, columns])
    ids = inputs.ids[:, columns]
    present = np.ones(ids.shape, bool) if each.padding is None else ids != each.padding
    count = np.maximum(present.sum(axis=1), 1)
    row, column = np.nonzero(present)
    shape = (len(ids), each.rows or int(ids.max(initial=0)) + 1)
    return sparse.csr_matrix((1.0 / count[row], (row, ids[row, column])), shape=shape)
