"""Categories that are made: of several columns together, and of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.features.accumulators import CategoryCounts, NumberSummary
from fastmtr.features.categories import MISSING, Categories, hashed_column
from fastmtr.features.operators import damaged, readers, refuse_nulls
from fastmtr.features.scales import saved_vector
from fastmtr.schema import Feature, Schema

__all__ = ["FIRST_BUCKET", "Buckets", "Cross", "ObservedBuckets", "ObservedCross"]


class Cross(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of several values together: of the hash of their hashes, which is null where any of them is.

    Parameters
    ----------
    categories : Categories
        Of the hashes, as whole numbers.
    columns : tuple of str
    types : tuple of {"int", "str"} or None
        Of each column; None: the fitted data held nulls only.
    """

    categories: Categories
    columns: tuple[str, ...]
    types: tuple[values.ValueType | None, ...]

    @property
    def rows(self) -> int:
        """Rows of the table of embeddings."""
        return self.categories.rows

    @property
    def width(self) -> int:
        """Ids of each row."""
        return self.categories.hashes

    def encode(self, columns: Sequence[Any]) -> NDArray[np.int32]:
        """The ids of each row, shape (n, width)."""
        hashes, valid = _crossed(self.columns, columns, self.types)
        refuse_nulls(self.categories.name, self.categories.nulls, valid)
        if self.categories.hash_rows is None:
            found = self.categories.encode_integers(_joint(hashes), valid)
        else:
            found = np.empty((len(valid), self.width), np.int32)
            for seed in range(self.width):
                of_seed = hashing.cross_hashes(hashes, seed=seed) % np.uint64(self.categories.hash_rows)
                found[:, seed] = of_seed.astype(np.int32) + np.int32(self.categories.first_row)
        found[~valid] = MISSING
        return found

    def null(self) -> NDArray[np.int32]:
        """Nothing of it is known."""
        return np.full(self.width, MISSING, np.int32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head, arrays = self.categories.state()
        return head | {"types": list(self.types)}, arrays

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Cross:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        types = head.get("types")
        if not isinstance(types, list) or len(types) != len(feature.cross) or not set(types) <= {"int", "str", None}:
            raise SchemaError(damaged(feature.name, head))
        categories = Categories.from_state(feature, head, arrays)
        return cls(categories=categories, columns=feature.cross, types=tuple(types))


class ObservedCross:
    """The values of several columns together so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature, self.reads = feature, readers(feature, schema)
        self.counts = CategoryCounts(feature.name)
        self.rows = self.nulls = 0
        self._types: list[values.ValueType | None] = [None] * len(self.reads)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        for i, column in enumerate(columns):
            kind, array = values.category_column(column, name=self.reads[i].column, expected=self._types[i])
            self._types[i] = kind if array.null_count < len(array) else self._types[i]
        hashes, valid = _crossed(self.feature.cross, columns, self._types)
        self.counts.update_ints(_joint(hashes), valid.view(np.uint8), weights)
        of_rows = np.ones(len(valid), np.int64) if weights is None else weights
        self.rows += int(of_rows.sum())
        self.nulls += int(of_rows[~valid].sum())

    def fit(self, encoders: Mapping[str, Any]) -> Cross:
        """What they teach."""
        categories = Categories.fit(self.feature, self.counts)
        return Cross(categories=categories, columns=self.feature.cross, types=tuple(self._types))


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of numbers: in which part of the fitted values each lies; null has a row of its own.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    bounds : ndarray of float64
        Ascending; bucket b, whose id is 2 + b, holds ``bounds[b - 1] <= x < bounds[b]``.
    nulls : {"fill", "error"}
    """

    name: str
    bounds: Any
    nulls: Literal["fill", "error"] = "fill"
    width: int = 1

    @property
    def rows(self) -> int:
        """Rows of the table of embeddings."""
        return FIRST_BUCKET + len(self.bounds) + 1

    def encode(self, columns: Sequence[Any]) -> NDArray[np.int32]:
        """The id of each number, shape (n, 1)."""
        numbers: NDArray[np.float64]
        (numbers,) = columns
        known = ~np.isnan(numbers)
        refuse_nulls(self.name, self.nulls, known)
        found = np.searchsorted(self.bounds, numbers, side="right").astype(np.int32) + np.int32(FIRST_BUCKET)
        return np.where(known, found, np.int32(MISSING))[:, None]

    def null(self) -> NDArray[np.int32]:
        """The row of nulls."""
        return np.array([MISSING], np.int32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        return {"nulls": self.nulls}, {"bounds": np.asarray(self.bounds, np.float64)}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Buckets:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        bounds = saved_vector(feature.name, arrays, "bounds", np.float64)
        if not np.isfinite(bounds).all() or not (np.diff(bounds) > 0).all() or head.get("nulls") != feature.nulls:
            raise SchemaError(f"{damaged(feature.name, head)}: its bounds do not ascend")
        return cls(name=feature.name, bounds=bounds, nulls=feature.nulls)


# Row 1 is that of unseen values, which numbers do not have: the rows are those of any vocabulary.
FIRST_BUCKET = 2


class ObservedBuckets:
    """The numbers of a feature so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature, self.reads = feature, readers(feature, schema)
        self.summary = NumberSummary()

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        self.summary.update(columns[0], weights)

    def fit(self, encoders: Mapping[str, Any]) -> Buckets:
        """Bounds at equal shares of the values; where many values are equal there are fewer buckets."""
        assert self.feature.buckets is not None
        bounds = np.zeros(0)
        if self.summary.moments.count:
            levels = np.arange(1, self.feature.buckets) / self.feature.buckets
            bounds = np.unique(self.summary.quantiles(levels))
            # Nothing is below the least value: where it takes a whole share, what is above it begins the next bucket.
            distinct, _ = self.summary.distribution()
            bounds = np.unique(
                [*bounds[bounds > self.summary.low], *(distinct[1:2] if bounds[0] <= distinct[0] else ())]
            )
        return Buckets(name=self.feature.name, bounds=bounds, nulls=self.feature.nulls)


def _crossed(
    names: Sequence[str], columns: Sequence[Any], types: Sequence[values.ValueType | None]
) -> tuple[list[NDArray[np.uint64]], NDArray[np.bool_]]:
    """The hash of each value of each column, and the rows of which no value is null."""
    hashes = []
    valid = np.ones(len(columns[0]), bool)
    for name, column, kind in zip(names, columns, types, strict=True):
        _, array = values.category_column(column, name=name, expected=kind)
        valid &= array.is_valid().to_numpy(zero_copy_only=False)
        hashes.append(hashed_column(array.fill_null("" if values.is_text(array.type) else 0)))
    return hashes, valid


def _joint(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    joint: NDArray[np.int64] = hashing.cross_hashes(hashes).view(np.int64)
    return joint
