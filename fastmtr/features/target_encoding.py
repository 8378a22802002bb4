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

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.features.accumulators import GroupSums, GroupTotals
from fastmtr.features.categories import MISSING, UNSEEN, Categories
from fastmtr.features.columns import Reader, Ticks
from fastmtr.features.operators import damaged, readers
from fastmtr.schema import Encoding, Feature, Schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EncodingTables", "ObservedOutcomes", "TargetTable", "encoding_tables", "fold_columns", "folds_of", "scaled"]


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


class TargetTable(msgspec.Struct, frozen=True, kw_only=True):
    """One number for each category.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    categories : Categories
        Of the feature that is encoded.
    encoding : {"target", "count", "rate"}
    table : ndarray of float32, shape (rows of the categories,)
    without : ndarray of float32, shape (folds, rows of the categories), optional
        For training samples: by all but one fold. None: the operator was saved and read, and has forgotten them.
    """

    name: str
    categories: Categories
    encoding: Encoding
    table: Any
    without: Any = None
    width: int = 1

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The number of each row, shape (n, 1)."""
        result: NDArray[np.float32] = self.table[self._ids(columns)][:, None]
        return result

    def encode_out_of_fold(self, columns: Sequence[Any], folds: NDArray[np.int64]) -> NDArray[np.float32]:
        """The number of each training sample by the samples of the other folds, shape (n, 1).

        Parameters
        ----------
        columns : sequence of one column
        folds : ndarray of int64, shape (n,)
            The samples' own, see :func:`folds_of`.
        """
        if self.without is None:
            raise SchemaError(
                f"feature {self.name!r} was read from a file, which does not keep what encodes training samples; fit "
                "the pipeline again"
            )
        result: NDArray[np.float32] = self.without[folds, self._ids(columns)][:, None]
        return result

    def null(self) -> NDArray[np.float32]:
        """What null is encoded as."""
        result: NDArray[np.float32] = self.table[MISSING : MISSING + 1]
        return result

    def _ids(self, columns: Sequence[Any]) -> NDArray[np.int32]:
        (column,) = columns
        return self.categories.encode(column)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head, arrays = self.categories.state()
        return head | {"encoding": self.encoding}, arrays | {"table": self.table[:, None]}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> TargetTable:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        of = msgspec.structs.replace(schema.feature(str(feature.of)), name=feature.name)
        categories, table = Categories.from_state(of, head, arrays), arrays.get("table")
        if head.get("encoding") != feature.encoding or table is None:
            raise SchemaError(damaged(feature.name, head))
        if table.shape != (categories.rows, 1) or table.dtype != np.float32 or not np.isfinite(table).all():
            raise SchemaError(
                f"{damaged(feature.name, head)}: {categories.rows} rows have a table of {table.dtype} {table.shape}"
            )
        return cls(name=feature.name, categories=categories, encoding=feature.encoding, table=table[:, 0])


class ObservedOutcomes:
    """The outcomes of each category and fold so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature = feature
        labels = () if feature.event is None else (Reader(feature.event, "numbers"),)
        self.reads = (*readers(feature, schema), *fold_columns(feature, schema), *labels)
        self._n_keys = len(fold_columns(feature, schema))
        # The groups of a text are its hash, as the vocabulary is not known yet; null is a group of its own.
        self._present, self._null = GroupSums(), GroupSums()

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        column, keys = columns[0], columns[1 : 1 + self._n_keys]
        folds = folds_of(keys, self.feature.folds)
        outcomes = columns[-1] if self.feature.event is not None else np.zeros(len(folds))
        kind, array = values.category_column(column, name=self.reads[0].column, expected=None)
        known = array.is_valid().to_numpy(zero_copy_only=False)
        groups = _numbered(array, kind)
        for sums, rows in ((self._present, known), (self._null, ~known)):
            sums.update(
                np.where(known, groups, 0)[rows],
                outcomes[rows],
                folds=folds[rows],
                weights=None if weights is None else weights[rows],
            )

    def fit(self, encoders: Mapping[str, Any]) -> TargetTable:
        """What they teach."""
        categories: Categories = encoders[str(self.feature.of)]
        present, null = self._present.totals(), self._null.totals()
        rows = np.concatenate([_rows(categories, present.groups), np.full(len(null.groups), MISSING, np.int64)])
        tables = encoding_tables(
            GroupTotals(*(np.concatenate(pair) for pair in zip(present, null, strict=True))),
            rows,
            rows=categories.rows,
            folds=self.feature.folds,
            encoding=self.feature.encoding,
            strength=self.feature.strength,
        )
        table, without = scaled(tables, standard=self.feature.scaling == "standard")
        return TargetTable(
            name=self.feature.name,
            categories=categories,
            encoding=self.feature.encoding,
            table=table,
            without=without,
        )


def fold_columns(feature: Feature, schema: Schema) -> tuple[Reader, ...]:
    """What deals a sample into a fold: all samples of a user are in one, so that the user does not vouch for itself.

    Where the category is the user's, that would leave nothing to learn of it, and each sample is dealt by itself.
    """
    if feature.entity != "user":
        return (Reader(schema.user, "categories"),)
    times = () if schema.timestamp is None else (Reader(schema.timestamp, "ticks", schema.timestamp_unit),)
    return Reader(schema.user, "categories"), Reader(schema.item, "categories"), *times


def folds_of(keys: Sequence[pa.Array | Ticks], folds: int) -> NDArray[np.int64]:
    """The fold of each row, by a stable hash of what :func:`fold_columns` reads."""
    mixed: Any = np.uint64(0)
    for column in keys:
        if isinstance(column, Ticks):
            numbered = column.values
        else:
            kind, array = values.category_column(column, name="key", expected=None)
            numbered = _numbered(array, kind)
        mixed = hashing.hash_integers(numbered ^ mixed.view(np.int64))
    result: NDArray[np.int64] = (mixed % np.uint64(folds)).astype(np.int64)
    return result


def _numbered(array: pa.Array, kind: values.ValueType) -> NDArray[np.int64]:
    """A number for each category: a whole number itself, a text's hash; of null anything."""
    if kind == "int":
        numbers: NDArray[np.int64] = array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers
    hashes: NDArray[np.int64] = hashing.hash_packed_bytes(*values.text_bytes(array)).view(np.int64)
    return hashes


def _rows(categories: Categories, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each group."""
    import pyarrow as pa

    if categories.type != "str":
        return categories.encode(pa.array(groups)).astype(np.int64)
    hashes = groups.view(np.uint64)
    if categories.hash_rows is not None:
        return (hashes % np.uint64(categories.hash_rows)).astype(np.int64) + categories.first_row
    known = _numbered(categories.known.array, "str") if len(categories.known) else np.zeros(0, np.int64)
    order = np.argsort(known)
    place = np.searchsorted(known, groups, sorter=order)
    place = order[np.minimum(place, len(order) - 1)] if len(order) else place
    found = known[place] == groups if len(order) else np.zeros(len(groups), bool)
    unseen = (hashes % np.uint64(categories.oov_rows)).astype(np.int64) + UNSEEN
    return np.where(found, place + categories.first_row, unseen)
