"""Whether new rows look like the ones that the features were fitted on: nulls, unseen values, ranges, drift.

Fitting keeps a few numbers a feature (:class:`CategoryStatistics`, :class:`NumberStatistics`); :func:`compare` sets
those of other rows against them. Everything is a count, so it does not depend on the order of the rows.

The population stability index of two distributions over the same bins, with shares p (fitted) and q (new), is the sum
of ``(q - p) * ln(q / p)`` (Siddiqi, Credit Risk Scorecards, 2006: below 0.1 stable, from 0.25 on another population).
Here half a row is added to each bin, so that an empty one stays finite. By chance alone the index is about
``(1 / n + 1 / m)`` times a chi-squared of bins - 1 degrees of freedom, for n fitted and m new values (Yurdakul,
Statistical Properties of the Population Stability Index, 2018); one that chance exceeds in more than 1 of 100 cases is
no drift, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features.accumulators import NumberSummary

if TYPE_CHECKING:
    from fastmtr.evaluation.report import Table

__all__ = [
    "CategoryStatistics",
    "ColumnCheck",
    "FeatureCheck",
    "Limits",
    "NumberStatistics",
    "Statistics",
    "category_statistics",
    "check_counts",
    "compare",
    "number_statistics",
    "read_statistics",
    "stability_index",
]

# Bins of a distribution: the most frequent categories, or the deciles.
TOP = 20
_DECILES = np.arange(1, 10) / 10
# Of the standard normal distribution: one-sided 1 %, and what a rate must be beyond.
_Z_INDEX = 2.3263478740408408
_Z_RATE = 3.0
# Fewer values than these are no rise, whatever their share.
_FEW = 5
# Names in a sentence.
_NAMES = 6

Verdict = Literal["ok", "watch", "drift"]


class CategoryStatistics(msgspec.Struct, frozen=True, kw_only=True, tag="category"):
    """What was counted of the categories of a feature.

    Parameters
    ----------
    rows : int
        Each as often as its weight says.
    nulls : int
        Rows without a value (of many-valued features: rows with none).
    values : int
        Not null; more than rows where there are many in a row.
    unseen : int
        Values that have no row of their own.
    bins : list of int
        Values of each of the first rows of the vocabulary, and of all others; of hashed ones, of equal ranges of rows.
    """

    rows: int
    nulls: int
    values: int
    unseen: int
    bins: list[int]


class NumberStatistics(msgspec.Struct, frozen=True, kw_only=True, tag="number"):
    """What was counted of the numbers of a feature.

    Parameters
    ----------
    rows, nulls : int
    outside : int
        Numbers that float32 cannot hold, infinities included (these are in no bin); of new rows, also those beyond the
        fitted extremes.
    low, high, mean, deviation : float
        0 of nothing.
    edges : list of float
        The deciles without repeats; a number that equals one belongs to the bin above.
    bins : list of int
        Numbers of each of the bins between them; one more than edges.
    """

    rows: int
    nulls: int
    outside: int
    low: float
    high: float
    mean: float
    deviation: float
    edges: list[float]
    bins: list[int]


Statistics = CategoryStatistics | NumberStatistics


def category_statistics(
    *, rows: int, nulls: int, unseen: int, by_row: NDArray[np.int64], hashed: bool
) -> CategoryStatistics:
    """Summarise counted categories.

    Parameters
    ----------
    rows, nulls, unseen : int
        See :class:`CategoryStatistics`.
    by_row : ndarray of int64, shape (vocabulary or hash rows,)
        How often each occurred.
    hashed : bool
        Whether rows near to each other mean nothing, so that bins are ranges of them.
    """
    if hashed:
        bins = [int(part.sum()) for part in np.array_split(by_row, min(TOP, max(len(by_row), 1)))]
    else:
        bins = [*by_row[:TOP].tolist(), int(by_row[TOP:].sum())]
    return CategoryStatistics(rows=rows, nulls=nulls, values=int(by_row.sum()) + unseen, unseen=unseen, bins=bins)


def number_statistics(summary: NumberSummary, fitted: NumberStatistics | None = None) -> NumberStatistics:
    """Summarise counted numbers: between their own deciles, or as the fitted ones were."""
    numbers, counts = summary.distribution()
    outside = summary.beyond
    if fitted is not None:
        edges = fitted.edges
        outside += int(counts[(numbers < fitted.low) | (numbers > fitted.high)].sum())
    else:
        edges = np.unique(summary.quantiles(_DECILES)).tolist() if len(numbers) else []
    bins = np.zeros(len(edges) + 1, np.int64)
    np.add.at(bins, np.searchsorted(np.asarray(edges, np.float64), numbers, side="right"), counts)
    return NumberStatistics(
        rows=summary.rows,
        nulls=summary.nulls,
        outside=outside,
        low=summary.low,
        high=summary.high,
        mean=summary.moments.mean,
        deviation=summary.moments.deviation,
        edges=edges,
        bins=bins.tolist(),
    )


def read_statistics(plain: Any) -> dict[str, Statistics]:
    """The ``statistics`` of a saved state by feature; SchemaError if they were altered."""
    try:
        found = msgspec.convert(plain, dict[str, Statistics])
    except msgspec.ValidationError as error:
        raise SchemaError(f"the saved statistics of the features are damaged: {error}") from error
    for name, each in found.items():
        counts = [each.rows, each.nulls, *each.bins]
        if isinstance(each, NumberStatistics):
            counts.append(each.outside)
            finite = np.isfinite([each.low, each.high, each.mean, each.deviation, *each.edges]).all()
            fits = len(each.bins) == len(each.edges) + 1 and bool((np.diff(each.edges) > 0).all() and finite)
        else:
            counts.append(each.unseen)
            fits = 0 < len(each.bins) <= TOP + 1 and each.unseen + sum(each.bins) == each.values
        if not fits or min(counts) < 0:
            raise SchemaError(f"the saved statistics of feature {name!r} are damaged: {each}")
    return found


# ---- comparing -------------------------------------------------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on a column is not as it was. Each also must be more than chance explains, and 5 values at least.

    Parameters
    ----------
    nulls, unseen : float
        By how much the share of nulls, or of unseen values, may rise.
    out_of_range : float
        The share of numbers outside of the fitted range.
    watch, drift : float
        The stability index.
    """

    nulls: float = 0.05
    unseen: float = 0.05
    out_of_range: float = 0.01
    watch: float = 0.1
    drift: float = 0.25


class ColumnCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of new rows, set against the fitted ones. Shares are of rows (nulls) or of values (all others).

    Attributes
    ----------
    name : str
    kind : {"category", "number"}
    rows : int
    nulls, fitted_nulls : float
    unseen, fitted_unseen : float, optional
        None: numbers, or not counted.
    out_of_range : float, optional
        Beyond the fitted extremes; None: categories, or not counted.
    index, chance : float, optional
        The stability index, and what it stays below by chance in 99 of 100 cases. None: there are no values to compare.
    labels : list of str
        Of the bins.
    fitted, found : list of float
        Shares of the bins.
    verdict : {"ok", "watch", "drift"}
    reasons : list of str
        Why it is not "ok".
    """

    name: str
    kind: Literal["category", "number"]
    rows: int
    nulls: float
    fitted_nulls: float
    unseen: float | None = None
    fitted_unseen: float | None = None
    out_of_range: float | None = None
    index: float | None = None
    chance: float | None = None
    labels: list[str] = []
    fitted: list[float] = []
    found: list[float] = []
    verdict: Verdict = "ok"
    reasons: list[str] = []


class FeatureCheck(msgspec.Struct, frozen=True, kw_only=True):
    """New rows, set against those that the features were fitted on.

    Attributes
    ----------
    columns : list of ColumnCheck
        In the order of the schema.
    absent : list of str
        Features that the new rows have no column for.
    """

    columns: list[ColumnCheck]
    absent: list[str] = []

    @property
    def ok(self) -> bool:
        """Whether every column is as it was."""
        return not self.absent and all(column.verdict == "ok" for column in self.columns)

    @property
    def verdict(self) -> str:
        """In one sentence."""
        parts = []
        for what, words in (("drift", "not as they were fitted"), ("watch", "to be watched")):
            names = [column.name for column in self.worst if column.verdict == what]
            if names:
                shown = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
                parts.append(f"{len(names)} of {len(self.columns)} features are {words}: {shown}")
        if self.absent:
            parts.append(f"no column for {', '.join(self.absent)}")
        return "; ".join(parts) or f"all {len(self.columns)} features are as they were fitted"

    @property
    def worst(self) -> list[ColumnCheck]:
        """The columns, the worst first."""
        rank = {"drift": 0, "watch": 1, "ok": 2}
        return sorted(self.columns, key=lambda c: (rank[c.verdict], -(c.index or 0.0)))

    def without_bins(self, *, most: int) -> FeatureCheck:
        """The same with the shares of the bins of the `most` worst columns only."""
        kept = {column.name for column in self.worst[:most]}
        bare = [
            c if c.name in kept else msgspec.structs.replace(c, labels=[], fitted=[], found=[]) for c in self.columns
        ]
        return FeatureCheck(columns=bare, absent=self.absent)

    def table(self, *, title: str = "Features", most: int | None = None) -> Table:
        """Numbers of each column, the worst first; at most so many."""
        from fastmtr.evaluation.report import Table, show

        rows = [
            [
                c.name,
                "; ".join(c.reasons) or "ok",
                f"{c.rows:,}",
                _both(c.nulls, c.fitted_nulls),
                "-" if c.unseen is None or c.fitted_unseen is None else _both(c.unseen, c.fitted_unseen),
                "-" if c.out_of_range is None else f"{c.out_of_range:.2%}",
                show(c.index, 3),
                show(c.chance, 3),
            ]
            for c in self.worst[:most]
        ]
        columns = [
            "feature",
            "verdict",
            "rows",
            "nulls (fitted)",
            "unseen (fitted)",
            "out of range",
            "PSI",
            "by chance",
        ]
        note = (
            f"{self.verdict[0].upper()}{self.verdict[1:]}. PSI: population stability index against the fitted rows; by "
            "chance it stays below the last column in 99 of 100 cases. Nulls are shares of rows, all others of values."
        )
        return Table("features", title, columns, rows, note, text=2)

    def __str__(self) -> str:
        return str(self.table())


def compare(
    fitted: Mapping[str, Statistics],
    found: Mapping[str, Statistics],
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    limits: Limits | None = None,
) -> FeatureCheck:
    """Set statistics of new rows against the fitted ones.

    Parameters
    ----------
    fitted : mapping of feature to Statistics
    found : mapping of feature to Statistics
        Numbers are counted between the fitted edges.
    labels : mapping of feature to sequence of str, optional
        What the bins of categories are called.
    limits : Limits, optional
    """
    limits = limits or Limits()
    named = labels or {}
    columns = [
        _compared(name, fitted[name], each, named.get(name, ()), limits)
        for name, each in found.items()
        if name in fitted
    ]
    return FeatureCheck(columns=columns, absent=[name for name in fitted if name not in found])


def check_counts(
    fitted: Mapping[str, Statistics],
    counts: Mapping[str, Mapping[str, Mapping[str, int]]],
    *,
    limits: Limits | None = None,
) -> FeatureCheck:
    """The same of what an engine counted while it served; it keeps no distribution, so there is no stability index.

    Parameters
    ----------
    fitted : mapping of feature to Statistics
    counts : mapping of domain to mapping of feature to mapping
        ``rows``, ``nulls`` and ``values``, and where they are counted ``unseen`` and ``beyond`` (out of range), as
        ``fmtr_features_counts`` gives them. A feature without rows is left out.
    limits : Limits, optional
    """
    columns = []
    for name, mine in ((name, each) for features in counts.values() for name, each in features.items()):
        old = fitted.get(name)
        if old is None or not mine["rows"]:
            continue
        unusual = mine.get("unseen" if isinstance(old, CategoryStatistics) else "beyond")
        found = _Counted(mine["rows"], mine["nulls"], mine["values"], unusual)
        columns.append(_judged(name, old, found, limits or Limits()))
    return FeatureCheck(columns=columns)


def stability_index(fitted: Sequence[int], found: Sequence[int]) -> tuple[float, float]:
    """The population stability index of two lists of counts, and what it stays below by chance in 99 of 100 cases."""
    p, q = _smoothed(fitted), _smoothed(found)
    index = float(((q - p) * np.log(q / p)).sum())
    freedom = len(p) - 1
    if not freedom or not sum(fitted) or not sum(found):
        return index, 0.0
    # The quantile of chi-squared by Wilson and Hilferty (1931).
    part = 2 / (9 * freedom)
    quantile = freedom * (1 - part + _Z_INDEX * math.sqrt(part)) ** 3
    return index, quantile * (1 / sum(fitted) + 1 / sum(found))


def _smoothed(counts: Sequence[int]) -> NDArray[np.float64]:
    shares = np.asarray(counts, np.float64) + 0.5
    result: NDArray[np.float64] = shares / shares.sum()
    return result


class _Counted(NamedTuple):
    """Of one feature; unusual values are the unseen ones, or those out of range. None: nobody counted them."""

    rows: int
    nulls: int
    values: int
    unusual: int | None


def _counted(each: Statistics) -> _Counted:
    if isinstance(each, CategoryStatistics):
        return _Counted(each.rows, each.nulls, each.values, each.unseen)
    return _Counted(each.rows, each.nulls, each.rows - each.nulls, each.outside)


def _compared(name: str, old: Statistics, new: Statistics, labels: Sequence[str], limits: Limits) -> ColumnCheck:
    if isinstance(old, NumberStatistics) and isinstance(new, NumberStatistics) and old.edges == new.edges:
        before, after = old.bins, new.bins
        labels = _ranges(old.edges)
    elif isinstance(old, CategoryStatistics) and isinstance(new, CategoryStatistics) and len(old.bins) == len(new.bins):
        before, after = [*old.bins, old.unseen], [*new.bins, new.unseen]
        labels = [*(labels or map(str, range(len(old.bins)))), "unseen"]
    else:
        raise SchemaError(f"feature {name!r}: the new rows were counted in other bins than the fitted ones")
    check = _judged(name, old, _counted(new), limits)
    if not sum(before) or not sum(after):
        return check
    index, chance = stability_index(before, after)
    moved = index >= limits.watch and index > chance
    return msgspec.structs.replace(
        check,
        index=index,
        chance=chance,
        labels=list(labels),
        fitted=(np.array(before) / sum(before)).tolist(),
        found=(np.array(after) / sum(after)).tolist(),
        verdict="drift"
        if check.verdict == "drift" or (moved and index >= limits.drift)
        else "watch"
        if moved
        else "ok",
        reasons=[*check.reasons, f"another distribution (PSI {index:.2f})"] if moved else check.reasons,
    )


def _judged(name: str, old: Statistics, found: _Counted, limits: Limits) -> ColumnCheck:
    """All but the distribution."""
    fitted = _counted(old)
    is_category = isinstance(old, CategoryStatistics)
    reasons = []
    if _rises((found.nulls, found.rows), (fitted.nulls, fitted.rows), limits.nulls):
        reasons.append("more nulls")
    limit = limits.unseen if is_category else limits.out_of_range
    unusual = fitted_unusual = None
    if found.unusual is not None and fitted.unusual is not None:
        if _rises((found.unusual, found.values), (fitted.unusual, fitted.values), limit):
            reasons.append("more unseen values" if is_category else "out of range")
        unusual, fitted_unusual = _share(found.unusual, found.values), _share(fitted.unusual, fitted.values)
    return ColumnCheck(
        name=name,
        kind="category" if is_category else "number",
        rows=found.rows,
        nulls=_share(found.nulls, found.rows),
        fitted_nulls=_share(fitted.nulls, fitted.rows),
        unseen=unusual if is_category else None,
        fitted_unseen=fitted_unusual if is_category else None,
        out_of_range=None if is_category else unusual,
        verdict="drift" if reasons else "ok",
        reasons=reasons,
    )


def _rises(new: tuple[int, int], old: tuple[int, int], limit: float) -> bool:
    """Whether a share (count, of) has risen by more than a limit, and by more than chance explains."""
    rise = _share(*new) - _share(*old)
    if rise <= limit or new[0] < _FEW:
        return False
    if not old[1]:
        return True
    pooled = (new[0] + old[0]) / (new[1] + old[1])
    return rise > _Z_RATE * math.sqrt(pooled * (1 - pooled) * (1 / new[1] + 1 / old[1]))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _both(new: float, old: float) -> str:
    return f"{new:.2%} ({old:.2%})"


def _ranges(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["all"]
    names = [f"{edge:.4g}" for edge in edges]
    return [f"below {names[0]}", *(f"{a} to {b}" for a, b in pairwise(names)), f"from {names[-1]}"]
