"""Quality of predictions: one function a kind of task, one for ranked lists, and an interval for the AUC.

Where scikit-learn has a metric, it computes it. A metric that is not defined (an AUC without both classes) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastmtr.errors import SchemaError

__all__ = [
    "auc_interval",
    "best_f1_threshold",
    "binary_metrics",
    "expected_calibration_error",
    "grouped_auc",
    "regression_metrics",
    "retrieval_metrics",
    "roc_auc",
]

Float = NDArray[np.float64]


def binary_metrics(
    y: ArrayLike, p: ArrayLike, *, groups: ArrayLike | None = None, threshold: float | Literal["f1"] = "f1"
) -> dict[str, float]:
    """Metrics of one binary task.

    Parameters
    ----------
    y : array of shape (n,)
        Labels 0 and 1.
    p : array of shape (n,)
        Probabilities.
    groups : array of shape (n,), optional
        The user of each row, for the grouped AUC.
    threshold : float or "f1"
        From where on a row counts as positive. "f1" takes the threshold with the highest F1 *on these rows*: choose it
        on validation rows with :func:`best_f1_threshold` and give it here, or accuracy and F1 flatter the model.

    Returns
    -------
    dict
        ``n``, ``base_rate``, ``auc``, ``gauc`` (with groups), ``log_loss``, ``ece``, ``threshold``, ``accuracy``,
        ``precision``, ``recall``, ``f1``.
    """
    y, p = _labels(y), _column("p", p)
    _same_length(y=y, p=p)
    at = best_f1_threshold(y, p) if threshold == "f1" else float(threshold)
    if not y.size:
        names = ("base_rate", "auc", "gauc", "log_loss", "ece", "accuracy", "precision", "recall", "f1")
        return {"n": 0.0, "threshold": at} | {n: np.nan for n in names if n != "gauc" or groups is not None}
    positive = p >= at
    found = {"n": float(y.size), "base_rate": float(y.mean()), "auc": roc_auc(y, p)}
    if groups is not None:
        found["gauc"] = grouped_auc(y, p, groups=groups)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, positive, average="binary", zero_division=0.0)
    return found | {
        "log_loss": float(sk.log_loss(y, p, labels=[0, 1])),
        "ece": expected_calibration_error(y, p),
        "threshold": at,
        "accuracy": float(sk.accuracy_score(y, positive)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def regression_metrics(y: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """``n``, ``mse``, ``rmse``, ``mae`` and ``r2`` of predictions ``p`` of values ``y``, both of shape (n,)."""
    y, p = _column("y", y), _column("p", p)
    _same_length(y=y, p=p)
    if not y.size:
        return {"n": 0.0, "mse": np.nan, "rmse": np.nan, "mae": np.nan, "r2": np.nan}
    mse = float(sk.mean_squared_error(y, p))
    return {
        "n": float(y.size),
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(sk.mean_absolute_error(y, p)),
        "r2": float(sk.r2_score(y, p)) if y.size > 1 else np.nan,
    }


def retrieval_metrics(
    ranked: ArrayLike, relevant: Sequence[NDArray[Any]], *, ks: Sequence[int] = (10, 50, 100)
) -> dict[str, float]:
    """Recall, NDCG and hit rate of ranked lists, averaged over the users who have a relevant item.

    Parameters
    ----------
    ranked : array of int, shape (users, length)
        Item rows, best first; -1 where the list has ended.
    relevant : sequence of arrays, one a user
        The item rows that are right. A user without any is left out.
    ks : sequence of int
        Cut-offs.

    Returns
    -------
    dict
        ``users`` and, for each k, ``recall@k`` (share of the relevant items among the first k), ``ndcg@k`` (gains 1,
        log2 discount) and ``hit@k`` (1 if any).
    """
    lists = np.asarray(ranked)
    if lists.ndim != 2 or len(lists) != len(relevant):
        raise SchemaError(f"ranked must be [users, length] with {len(relevant)} users, found shape {lists.shape}")
    sets = [np.unique(each) for each in relevant]
    counts = np.array([each.size for each in sets])
    hits = np.zeros(lists.shape, bool)
    for row, (ranking, right) in enumerate(zip(lists, sets, strict=True)):
        hits[row] = np.isin(ranking, right) & (ranking >= 0)
    hits, counts = hits[counts > 0], counts[counts > 0]
    found = {"users": float(counts.size)}
    discount = 1.0 / np.log2(np.arange(2, max([2, *ks]) + 2))
    for k in ks:
        if not counts.size:
            found |= {f"recall@{k}": np.nan, f"ndcg@{k}": np.nan, f"hit@{k}": np.nan}
            continue
        first = hits[:, :k]
        ideal = np.cumsum(discount)[np.minimum(counts, k) - 1]
        found[f"recall@{k}"] = float((first.sum(axis=1) / counts).mean())
        found[f"ndcg@{k}"] = float((first @ discount[: first.shape[1]] / ideal).mean())
        found[f"hit@{k}"] = float(first.any(axis=1).mean())
    return found


def roc_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve; NaN when only one class is there."""
    y = _labels(y)
    return float(sk.roc_auc_score(y, _column("p", p))) if 0 < y.sum() < y.size else np.nan


def grouped_auc(y: ArrayLike, p: ArrayLike, *, groups: ArrayLike) -> float:
    """The AUC within each group (user) that has both classes, averaged with the groups' numbers of rows as weights.

    References
    ----------
    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018.
    """
    y, p = _labels(y), _column("p", p)
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    _same_length(y=y, p=p, groups=of)
    if not y.size:
        return np.nan
    order = np.lexsort((p, of))
    y, p, of = y[order], p[order], of[order]
    # Ranks within each group; rows that tie share the mean of their ranks.
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
    size = np.diff(np.r_[starts, of.size])
    tie_starts = np.flatnonzero(np.r_[True, (of[1:] != of[:-1]) | (p[1:] != p[:-1])])
    tie_size = np.diff(np.r_[tie_starts, of.size])
    middle = np.repeat(tie_starts + (tie_size + 1) / 2, tie_size)
    ranks = middle - np.repeat(starts, size)
    positives = np.add.reduceat(y, starts)
    negatives = size - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return np.nan
    wins = np.add.reduceat(ranks * y, starts) - positives * (positives + 1) / 2
    auc = wins[both] / (positives[both] * negatives[both])
    return float(np.average(auc, weights=size[both]))


def expected_calibration_error(y: ArrayLike, p: ArrayLike, *, bins: int = 15) -> float:
    """Mean distance between predicted and observed rate over ``bins`` bins of equal numbers of rows, by probability.

    References
    ----------
    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015 (here with bins of equal
    mass).
    """
    y, p = _labels(y), _column("p", p)
    if not y.size:
        return np.nan
    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, min(bins, y.size))
    return float(sum(abs(p[part].sum() - y[part].sum()) for part in parts) / y.size)


def best_f1_threshold(y: ArrayLike, p: ArrayLike) -> float:
    """The threshold with the highest F1 on these rows (0.5 when there is no positive)."""
    y, p = _labels(y), _column("p", p)
    if not y.any():
        return 0.5
    precision, recall, thresholds = sk.precision_recall_curve(y, p)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return float(thresholds[np.argmax(f1[:-1])])


def auc_interval(
    y: ArrayLike,
    p: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """A bootstrap percentile interval of the AUC.

    Parameters
    ----------
    groups : array of shape (n,), optional
        Whole groups (users) are resampled, because rows of one user are not independent; without it, rows are.

    Returns
    -------
    low, high : float
        NaN when only one class is there.
    """
    y, p = _labels(y), _column("p", p)
    if not 0 < y.sum() < y.size:
        return np.nan, np.nan
    of = np.arange(y.size) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _same_length(y=y, p=p, groups=of)
    order = np.argsort(p, kind="stable")
    y, p, of = y[order], p[order], of[order]
    ties = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])
    rng = np.random.default_rng(seed)
    n = int(of.max()) + 1
    found = np.empty(resamples)
    for i in range(resamples):
        weight = np.bincount(rng.integers(n, size=n), minlength=n)[of].astype(float)
        positive = np.add.reduceat(weight * y, ties)
        negative = np.add.reduceat(weight * (1 - y), ties)
        wins = (positive * (np.cumsum(negative) - negative / 2)).sum()
        pairs = positive.sum() * negative.sum()
        found[i] = wins / pairs if pairs > 0 else np.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _column(name: str, values: ArrayLike) -> Float:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise SchemaError(f"{name} must have one dimension, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise SchemaError(f"{name} has values that are not finite; leave those rows out")
    return array


def _labels(values: ArrayLike) -> Float:
    array = _column("y", values)
    if not np.isin(array, (0.0, 1.0)).all():
        raise SchemaError(
            f"labels of a binary task must be 0 or 1, found {np.setdiff1d(array, (0.0, 1.0))[:3].tolist()}"
        )
    return array


def _same_length(**arrays: NDArray[Any]) -> None:
    if len({a.shape for a in arrays.values()}) != 1:
        raise SchemaError(f"lengths differ: {', '.join(f'{name} {a.shape[0]}' for name, a in arrays.items())}")
