"""What fitting counts and sums, batch by batch.

Everything here is a function of the multiset of the values alone: batches may come in any order and of any size,
accumulators of parts of the data may be merged, and the results have the same bits. So sums are kept exactly (as whole
numbers) and rounded once, and ties are ordered by value. Memory is one batch and the distinct values, twice while they
are merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr import _native
from fastmtr.errors import SchemaError
from fastmtr.features.counts import (
    WAITING,
    IntCounts,
    Ints,
    TextCounts,
    sums_of_runs,
    total_weight,
)
from fastmtr.features.values import ValueType

__all__ = [
    "CategoryCounts",
    "DocumentCounts",
    "GroupSums",
    "GroupTotals",
    "Moments",
    "NumberSummary",
]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class CategoryCounts:
    """How often each category of a column occurs, and how often none does.

    Parameters
    ----------
    name : str
        The column's, for messages.

    Attributes
    ----------
    type : {"int", "str"} or None
        None: no value so far, only nulls.
    rows, nulls : int
        Of all batches, each row as often as its weight says.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.type: ValueType | None = None
        self.rows = self.nulls = 0
        self._ints, self._texts = IntCounts(), TextCounts()

    def update_ints(self, values: Ints, valid: NDArray[np.uint8] | None = None, weights: Ints | None = None) -> None:
        """Count a batch of whole numbers.

        Parameters
        ----------
        values : ndarray of int64, shape (n,)
        valid : ndarray of uint8, shape (n,), optional
            0 where the value is null.
        weights : ndarray of int64, shape (n,), optional
            How often each row counts; 1 by default.

        Raises
        ------
        SchemaError
            Earlier batches held text.
        """
        if self._note(len(values), valid, weights):
            self._becomes("int")
            self._ints.update(values, valid, weights)

    def update_texts(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int32] | Ints,
        valid: NDArray[np.uint8] | None = None,
        weights: Ints | None = None,
    ) -> None:
        """Count a batch of texts: text i is ``data[offsets[i]:offsets[i + 1]]``; else as :meth:`update_ints`."""
        if self._note(len(offsets) - 1, valid, weights):
            self._becomes("str")
            self._texts.update(data, offsets, valid, weights)

    def merge(self, other: CategoryCounts) -> None:
        """Count what `other` counted, too."""
        if other.type is not None:
            self._becomes(other.type)
        self.rows += other.rows
        self.nulls += other.nulls
        self._ints.merge(other._ints)
        self._texts.merge(other._texts)

    @property
    def distinct(self) -> int:
        """How many different categories there are."""
        return self._texts.distinct if self.type == "str" else self._ints.distinct

    def unordered_ints(self) -> tuple[Ints, Ints]:
        """All values and their counts, in any order."""
        return self._ints.unordered()

    def unordered_texts(self) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """All texts (bytes, offsets) and their counts, in any order."""
        return self._texts.unordered()

    def ints(self, min_count: int = 1) -> tuple[Ints, Ints]:
        """Values and counts, most frequent first, ties ascending."""
        return self._ints.by_count(min_count)

    def texts(self, min_count: int = 1) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """Bytes, offsets and counts, most frequent first, ties ascending by their bytes."""
        return self._texts.by_count(min_count)

    def _note(self, n: int, valid: NDArray[np.uint8] | None, weights: Ints | None) -> bool:
        """Count rows and nulls; whether there is a value."""
        rows = total_weight(n, weights)
        self.rows += rows
        if valid is None:
            return n > 0
        present = valid.view(bool)
        n_present = int(np.count_nonzero(present))
        self.nulls += rows - total_weight(n_present, None if weights is None else weights[present])
        return n_present > 0

    def _becomes(self, kind: ValueType) -> None:
        if self.type not in (None, kind):
            words = {"int": "whole numbers", "str": "text"}
            raise SchemaError(
                f"column {self.name!r} should hold one type of values, found {words[str(self.type)]} in some rows and "
                f"{words[kind]} in others"
            )
        self.type = kind


# ---- numbers ---------------------------------------------------------------------------------------------------------

# A double is m * 2 ** (e - _UNIT), m a whole number of 53 bits with sign and e >= 0.
_UNIT = 1126
_LIMB = 27
_LIMB_MASK = (1 << _LIMB) - 1
# So many rows of weight 1 can be summed in limbs before an int64 overflows.
_MOST_ROWS = 1 << (63 - _LIMB - 1)


class Moments:
    """The exact sum of numbers and of their squares.

    The sums are whole multiples of the smallest double (of its square), so they are exact whatever the order
    (Kulisch's long accumulator); mean and variance are correctly rounded from them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._squares = 0

    def update(self, values: NDArray[np.float64], counts: Ints | None = None) -> None:
        """Add finite numbers, each as often as its count says; quickest when they are ascending."""
        n = total_weight(len(values), counts)
        if n >= _MOST_ROWS:
            raise SchemaError(f"one batch stands for {n} rows; at most {_MOST_ROWS - 1} can be summed at once")
        if not n:
            return
        self.count += n
        whole, exponent = _as_integers(values)
        starts = np.flatnonzero(np.diff(exponent, prepend=-1))
        shifts = exponent[starts].tolist()
        high, low = whole >> _LIMB, whole & _LIMB_MASK
        times = np.ones(1, np.int64) if counts is None else counts

        def summed(limb: Ints) -> list[int]:
            sums: list[int] = np.add.reduceat(limb * times, starts).tolist()
            return sums

        for shift, a, b in zip(shifts, summed(high), summed(low), strict=True):
            self._sum += ((a << _LIMB) + b) << shift
        # (a L + b)^2 = a^2 L^2 + 2 a b L + b^2, each product in two limbs so that the sums fit.
        for product, extra in ((high * high, 2 * _LIMB), (high * low, _LIMB + 1), (low * low, 0)):
            for shift, a, b in zip(shifts, summed(product >> _LIMB), summed(product & _LIMB_MASK), strict=True):
                self._squares += ((a << _LIMB) + b) << (2 * shift + extra)

    def merge(self, other: Moments) -> None:
        """Add what `other` added, too."""
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares

    @property
    def mean(self) -> float:
        """Correctly rounded; 0 of nothing."""
        return self._sum / (self.count << _UNIT) if self.count else 0.0

    @property
    def variance(self) -> float:
        """Of the population (divided by the count), correctly rounded; 0 of nothing."""
        if not self.count:
            return 0.0
        return (self.count * self._squares - self._sum**2) / (self.count**2 << 2 * _UNIT)

    @property
    def deviation(self) -> float:
        """The square root of the variance."""
        return math.sqrt(self.variance)


class NumberSummary:
    """Count, sums, range and distribution of the numbers of a column.

    Parameters
    ----------
    transform : callable, optional
        An ascending function of float64 (the signed logarithm, say) whose values are summed, too.
    exact : int
        Up to so many distinct numbers the distribution is exact. Beyond, it is a histogram over the floats' upper bits
        (as HdrHistogram; DDSketch of Masson, Rim and Lee, 2019, makes the same promise): a number is taken for one
        that is nearer to zero by less than 2**-10 of it, the extremes and whole numbers up to 2048 excepted. Which of
        the two depends on the data only, not on their order.

    Attributes
    ----------
    rows, nulls, beyond : int
        All rows, those that are null (NaN), and those that float32 cannot hold, infinities included; each row as often
        as its weight says. The latter two are part of nothing below.
    low, high : float
        The extremes; 0 of nothing.
    moments : Moments
    transformed : Moments or None
        Of the values of `transform`.
    """

    def __init__(
        self,
        *,
        transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
        exact: int = 1 << 18,
    ) -> None:
        self.rows = self.nulls = self.beyond = 0
        self.low = self.high = 0.0
        self.moments = Moments()
        self.transformed = None if transform is None else Moments()
        self._transform, self._limit = transform, exact
        self._keys = IntCounts()
        self._is_exact = True

    def update(self, values: NDArray[np.float64], weights: Ints | None = None) -> None:
        """Add a batch; NaN is null.

        Parameters
        ----------
        values : ndarray of float64, shape (n,)
        weights : ndarray of int64, shape (n,), optional
            How often each row counts; 1 by default. A row of weight 0 leaves no trace.
        """
        held = np.abs(values) <= FLOAT32_MAX
        rows = total_weight(len(values), weights)
        self.rows += rows
        if not held.all():
            absent = np.isnan(values)
            nulls = total_weight(int(absent.sum()), None if weights is None else weights[absent])
            self.nulls += nulls
            self.beyond += rows - nulls - total_weight(int(held.sum()), None if weights is None else weights[held])
        # + 0.0 makes one zero of two.
        keys, counts = _native.count_ints((values + 0.0).view(np.int64), held.view(np.uint8), weights)
        if len(keys):
            self._take(keys.view(np.float64), counts)

    def _take(self, numbers: NDArray[np.float64], counts: Ints) -> None:
        order = np.argsort(numbers)
        numbers, counts = numbers[order], counts[order]
        self._widen(float(numbers[0]), float(numbers[-1]))
        self.moments.update(numbers, counts)
        if self._transform is not None and self.transformed is not None:
            self.transformed.update(self._transform(numbers), counts)
        self._keys.update(numbers.view(np.int64) if self._is_exact else _bins(numbers), weights=counts)
        self._coarsen()

    def _widen(self, low: float, high: float) -> None:
        """To be called before the moments change."""
        empty = not self.moments.count
        self.low = low if empty else min(self.low, low)
        self.high = high if empty else max(self.high, high)

    def _coarsen(self, *, force: bool = False) -> None:
        if self._is_exact and (force or (self._keys.at_most > self._limit and self._keys.distinct > self._limit)):
            keys, counts = self._keys.ascending()
            self._keys, self._is_exact = IntCounts(), False
            self._keys.update(_bins(keys.view(np.float64)), weights=counts)

    def merge(self, other: NumberSummary) -> None:
        """Add what `other` added, too; both were made with the same parameters."""
        if other.moments.count:
            self._widen(other.low, other.high)
        self.rows += other.rows
        self.nulls += other.nulls
        self.beyond += other.beyond
        self.moments.merge(other.moments)
        if self.transformed is not None and other.transformed is not None:
            self.transformed.merge(other.transformed)
        self._coarsen(force=not other._is_exact)
        keys, counts = other._keys.ascending()
        self._keys.update(keys if self._is_exact == other._is_exact else _bins(keys.view(np.float64)), weights=counts)
        self._coarsen()

    @property
    def exact(self) -> bool:
        """Whether the distribution is exact."""
        return self._is_exact

    def distribution(self) -> tuple[NDArray[np.float64], Ints]:
        """Distinct numbers, ascending, and the count of each; see `exact` for what they are when there are many."""
        keys, counts = self._keys.ascending()
        numbers = keys.view(np.float64) if self._is_exact else _of_bins(keys)
        order = np.argsort(numbers)
        numbers, counts = numbers[order], counts[order]
        if len(numbers):
            # The extremes are known exactly; what stands for a bin may lie beyond them.
            numbers = np.clip(numbers, self.low, self.high)
            numbers[0], numbers[-1] = self.low, self.high
        return numbers, counts

    def quantiles(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """The smallest number such that at least this share of the rows is not above it; NaN of nothing."""
        numbers, counts = self.distribution()
        if not len(numbers):
            return np.full(len(levels), np.nan)
        upper = np.cumsum(counts)
        place = np.searchsorted(upper, np.asarray(levels) * upper[-1], side="left")
        result: NDArray[np.float64] = numbers[np.minimum(place, len(numbers) - 1)]
        return result


# A bin keeps ten bits behind a double's leading one: 2 ** 42 doubles each.
_BIN_SHIFT = 42


def _bins(numbers: NDArray[np.float64]) -> Ints:
    """Which bin each number falls in: those of positive numbers are positive, both zeros share one with the tiniest."""
    sizes = np.abs(numbers).view(np.int64) >> _BIN_SHIFT
    return np.where(numbers < 0, -sizes, sizes)


def _of_bins(bins: Ints) -> NDArray[np.float64]:
    """The number of each bin that is nearest to zero."""
    sizes = (np.abs(bins) << _BIN_SHIFT).view(np.float64)
    return np.where(bins < 0, -sizes, sizes)


def _as_integers(values: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Finite doubles as whole numbers times powers of two, see `_UNIT`."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(fraction, 53).astype(np.int64), exponent.astype(np.int64) + (_UNIT - 53)


# ---- documents and groups --------------------------------------------------------------------------------------------


class DocumentCounts:
    """In how many documents each column of a hashed bag of words occurs (document frequencies for TF-IDF).

    Parameters
    ----------
    dim : int
        Columns.

    Attributes
    ----------
    documents : int
        How many there were, each as often as its weight says.
    counts : ndarray of int64, shape (dim,)
    """

    def __init__(self, dim: int) -> None:
        self.documents = 0
        self.counts = np.zeros(dim, np.int64)

    def update(self, columns: Ints, offsets: Ints, weights: Ints | None = None) -> None:
        """Count a batch of documents.

        Parameters
        ----------
        columns : ndarray of int64, shape (m,)
            Of each word of all documents; a column may stand in a document more than once.
        offsets : ndarray of int64, shape (documents + 1,)
            Where the words of each document begin.
        weights : ndarray of int64, shape (documents,), optional
        """
        n = len(offsets) - 1
        self.documents += total_weight(n, weights)
        dim = len(self.counts)
        pairs = np.unique(np.repeat(np.arange(n), np.diff(offsets)) * dim + columns)
        if weights is None:
            self.counts += np.bincount(pairs % dim, minlength=dim)
        else:
            np.add.at(self.counts, pairs % dim, weights[pairs // dim])

    def merge(self, other: DocumentCounts) -> None:
        """Count what `other` counted, too."""
        self.documents += other.documents
        self.counts += other.counts


class GroupTotals(NamedTuple):
    """The rows of :class:`GroupSums`, ascending by group and fold.

    Attributes
    ----------
    groups, folds, counts : ndarray of int64, shape (g,)
    sums : ndarray of float64, shape (g,)
    """

    groups: Ints
    folds: Ints
    counts: Ints
    sums: NDArray[np.float64]


class GroupSums:
    """Count and sum of an outcome by group and fold, for encodings of targets.

    The sums are kept as whole numbers, one a group, fold and binary exponent, and added up in one order at the end;
    outcomes 0 and 1 share one exponent.
    """

    def __init__(self) -> None:
        self._waiting: list[Ints] = []
        self._n_waiting = self._n_merged = 0

    def update(
        self,
        groups: Ints,
        outcomes: NDArray[np.float64],
        *,
        folds: Ints | None = None,
        weights: Ints | None = None,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        groups : ndarray of int64, shape (n,)
            Any whole numbers: rows of a vocabulary, keys, hashes.
        outcomes : ndarray of float64, shape (n,)
            NaN: not known, left out.
        folds : ndarray of int64, shape (n,), optional
            Which part of the data each row belongs to; 0 by default.
        weights : ndarray of int64, shape (n,), optional
            How often each row counts; 1 by default.

        Raises
        ------
        SchemaError
            An outcome is infinite.
        """
        if np.isinf(outcomes).any():
            raise SchemaError("an outcome is infinite; outcomes that are summed must be finite, or NaN where not known")
        folds = np.zeros(len(groups), np.int64) if folds is None else folds
        weights = np.ones(len(groups), np.int64) if weights is None else weights
        kept = ~np.isnan(outcomes) & (weights > 0)
        # A zero takes the exponent of one, so that outcomes 0 and 1 make one row and not two.
        whole, exponent = _as_integers(outcomes[kept])
        exponent[whole == 0] = _UNIT - 52
        times = weights[kept]
        high, low = (whole >> _LIMB) * times, (whole & _LIMB_MASK) * times
        self._add(np.stack([groups[kept], folds[kept], exponent, times, high, low]))

    def merge(self, other: GroupSums) -> None:
        """Add what `other` added, too."""
        self._add(other._merged())

    def _add(self, rows: Ints) -> None:
        if not rows.shape[1]:
            return
        rows = _sum_alike(rows)
        self._waiting.append(rows)
        self._n_waiting += rows.shape[1]
        if self._n_waiting - self._n_merged > max(WAITING, self._n_merged):
            self._merged()

    def _merged(self) -> Ints:
        self._waiting = [_sum_alike(np.concatenate([np.zeros((6, 0), np.int64), *self._waiting], axis=1))]
        self._n_waiting = self._n_merged = self._waiting[0].shape[1]
        return self._waiting[0]

    def totals(self) -> GroupTotals:
        """Counts and sums so far."""
        groups, folds, exponent, times, high, low = self._merged()
        starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1) | np.diff(folds, prepend=0))
        parts = np.ldexp(high * 2.0**_LIMB + low, (exponent - _UNIT).astype(np.int32))
        sums = np.add.reduceat(parts, starts) if len(starts) else np.zeros(0)
        return GroupTotals(groups[starts], folds[starts], sums_of_runs(times, starts), sums)


def _sum_alike(rows: Ints) -> Ints:
    """Rows (group, fold, exponent, count, limbs) sorted, those with the first three alike added up."""
    rows = rows[:, np.lexsort(rows[2::-1])]
    changes = (np.diff(rows[:3], axis=1) != 0).any(axis=0)
    starts = np.flatnonzero(np.append(True, changes)) if rows.shape[1] else np.zeros(0, np.int64)
    return np.concatenate([rows[:3, starts], np.stack([sums_of_runs(row, starts) for row in rows[3:]])])
