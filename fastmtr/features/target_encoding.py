"""Categories as numbers: the mean outcome of a category, how often it occurs, and its share of the rows.

A training sample must not see its own outcome in its input, or the model learns to read the label there: a category
that occurs once would tell it outright. So the samples are dealt into folds, and a sample is given what the *other*
folds say of its category; at serving all of the data speak.

References
----------
Micci-Barreca, "A Preprocessing Scheme for High-Cardinality Categorical Attributes in Classification and Prediction
Problems", SIGKDD Explorations 3, 2001.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.features.accumulators import GroupTotals

__all__ = ["Encoding", "EncodingTables", "encoding_tables"]

Encoding = Literal["target", "count", "rate"]


class EncodingTables(NamedTuple):
    """What each row of a vocabulary becomes.

    Attributes
    ----------
    all : ndarray of float64, shape (rows,)
        By all of the data.
    without : ndarray of float64, shape (folds, rows)
        By all but one fold.
    counts : ndarray of int64, shape (rows,)
        How many samples each row has.
    """

    all: NDArray[np.float64]
    without: NDArray[np.float64]
    counts: NDArray[np.int64]


def encoding_tables(
    totals: GroupTotals, row_of_group: NDArray[np.int64], *, rows: int, folds: int, encoding: Encoding, strength: float
) -> EncodingTables:
    """Encode a vocabulary by its samples.

    With n samples of the row, s the sum of their outcomes, N samples of all rows and m their mean outcome, the encoding
    is ``(s + strength * m) / (n + strength)`` (``target``), ``log(1 + n)`` (``count``), or ``n / N`` (``rate``). Where
    a fold is left out, a ``count`` is scaled up to the size of all of the data.

    Parameters
    ----------
    totals : GroupTotals
    row_of_group : ndarray of int64, shape (groups of the totals,)
        The vocabulary's row of each.
    rows, folds : int
    encoding : {"target", "count", "rate"}
    strength : float
        How many samples of the mean outcome each row starts with.
    """
    counts, sums = np.zeros((folds, rows), np.int64), np.zeros((folds, rows))
    np.add.at(counts, (totals.folds, row_of_group), totals.counts)
    # Groups come in ascending order, so rows of several groups (the unseen ones) are summed in one order.
    np.add.at(sums, (totals.folds, row_of_group), totals.sums)
    every = counts.sum(axis=0)
    n = np.concatenate([every[None], every - counts])
    total = n.sum(axis=1, keepdims=True)
    if encoding == "count":
        values = np.log1p(n * np.divide(every.sum(), total, out=np.ones(total.shape), where=total > 0))
    elif encoding == "rate":
        values = n / np.maximum(total, 1)
    else:
        # Leaving a fold out is summing the others: a difference would keep a trace of what is taken away.
        s = np.stack([sums.sum(axis=0), *(np.delete(sums, fold, axis=0).sum(axis=0) for fold in range(folds))])
        mean = s.sum(axis=1, keepdims=True) / np.maximum(total, 1)
        values = (s + strength * mean) / (n + strength)
    return EncodingTables(values[0], values[1:], every)


def scaled(tables: EncodingTables, *, standard: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The tables in float32; with mean 0 and deviation 1 over the samples, if so asked."""
    shift, factor = 0.0, 1.0
    n: Any = tables.counts
    if standard and n.sum():
        shift = float((tables.all * n).sum() / n.sum())
        factor = float(np.sqrt(((tables.all - shift) ** 2 * n).sum() / n.sum())) or 1.0
    scale = [((each - shift) / factor).astype(np.float32) for each in (tables.all, tables.without)]
    return scale[0], scale[1]
