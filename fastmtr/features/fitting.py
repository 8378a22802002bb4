"""Learning from tables of any size: one pass over each, batch by batch.

The interactions are read first: they teach the features that are taken from them, and how often each user and item
occurs, which is what the rows of the other two tables weigh. What is learned of a user's or an item's column and of the
interactions (labels, times) has that column joined first. Memory is one batch and what is counted (the distinct
values of each feature, and of the keys; see :mod:`fastmtr.features.accumulators`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import values
from fastmtr.features.accumulators import CategoryCounts, NumberSummary
from fastmtr.features.batches import Source, open_source, read_batches
from fastmtr.features.categories import MISSING, Categories, Texts, split_lists
from fastmtr.features.counts import text_array
from fastmtr.features.kinds import is_operator, observer_of, unlearned
from fastmtr.features.made_categories import Cross, ObservedBuckets, ObservedCross
from fastmtr.features.operators import Observer
from fastmtr.features.quality import (
    TOP,
    CategoryStatistics,
    FeatureCheck,
    Limits,
    NumberStatistics,
    Statistics,
    category_statistics,
    compare,
    number_statistics,
)
from fastmtr.features.scales import Scale, signed_log1p
from fastmtr.features.streaming import rows_progress
from fastmtr.features.text import ObservedDocuments
from fastmtr.features.times import ObservedCycle, ObservedGaps, ObservedRecency
from fastmtr.features.vectors import ObservedVectors
from fastmtr.schema import Feature

if TYPE_CHECKING:
    from fastmtr.features.pipeline import Encoder, FeaturePipeline

__all__ = ["Observed", "check_source", "fit_encoders", "observe", "observer"]


class ObservedNumbers:
    """The numbers of one feature so far."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.summary = NumberSummary(transform=signed_log1p if feature.scaling == "log1p" else None)

    def observe(self, column: pa.Array | pa.ChunkedArray, weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        self.summary.update(values.number_column(column, name=self.feature.name), weights)

    def fit(self, encoders: Mapping[str, Any]) -> Scale:
        """The scale that they teach."""
        return Scale.fit(self.feature, self.summary)

    def statistics(self, encoder: Encoder, fitted: Statistics | None) -> NumberStatistics:
        """What is told of them."""
        return number_statistics(self.summary, fitted if isinstance(fitted, NumberStatistics) else None)


class ObservedCategories:
    """The categories of one feature so far, those of lists and texts included."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.counts = CategoryCounts(feature.column)
        self.rows = self.nulls = 0

    def observe(self, column: pa.Array | pa.ChunkedArray, weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        if self.feature.kind == "categorical":
            count_column(self.counts, column, weights)
            self.rows, self.nulls = self.counts.rows, self.counts.nulls
            return
        of_rows = np.ones(len(column), np.int64) if weights is None else weights
        parts, parents, take = split_lists(self.feature, column, None)
        # A text that stands in many rows was split once.
        of_lists = of_rows if take is None else np.bincount(take[take >= 0], of_rows[take >= 0]).astype(np.int64)
        valid = count_column(self.counts, parts, of_lists[parents])
        present = np.bincount(parents if valid is None else parents[valid], minlength=len(of_lists)) > 0
        if take is not None:
            present = np.append(present, False)[take]
        self.rows += int(of_rows.sum())
        self.nulls += int(of_rows[~present].sum())

    def fit(self, encoders: Mapping[str, Any]) -> Categories:
        """The vocabulary that they teach."""
        return Categories.fit(self.feature, self.counts)

    def statistics(self, encoder: Encoder, fitted: Statistics | None) -> CategoryStatistics:
        """What is told of them."""
        assert isinstance(encoder, Categories)
        return statistics_of(encoder, self.counts, rows=self.rows, nulls=self.nulls, taught=fitted is None)


def statistics_of(
    categories: Categories, counted: CategoryCounts, *, rows: int, nulls: int, taught: bool
) -> CategoryStatistics:
    """What is told of the values that were counted; `taught` if they are those that taught the categories."""
    distinct, counts = distinct_values(counted)
    hashed = categories.hash_rows is not None
    first = categories.first_row
    n = categories.rows - first
    if taught and not hashed:
        # The vocabulary is the most frequent ones, in that order.
        ordered = np.sort(counts)[::-1]
        by_row, unseen = ordered[:n], int(ordered[n:].sum())
    else:
        # What a rule refuses is counted here all the same.
        ids = msgspec.structs.replace(categories, unseen="row").encode(distinct)
        known = ids >= first
        # Of hashed values ranges of rows are told, of which there are few however many rows there are.
        rows_known = ids[known] - first
        places = np.searchsorted(_ranges(n), rows_known, side="right") - 1 if hashed else rows_known
        by_row = np.bincount(places, counts[known], minlength=min(n, TOP) if hashed else n).astype(np.int64)
        unseen = int(counts[(ids > MISSING) & ~known].sum())
    return category_statistics(rows=rows, nulls=nulls, unseen=unseen, by_row=by_row, hashed=hashed)


def count_column(
    counts: CategoryCounts, column: pa.Array | pa.ChunkedArray, weights: NDArray[np.int64] | None
) -> NDArray[np.bool_] | None:
    """Count the values of a column; which of them are not null (None: all)."""
    array = values.combined(column)
    is_text = values.is_text(array.type)
    if not is_text:
        _, array = values.category_column(array, name=counts.name, expected=None)
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    flags = None if valid is None else valid.view(np.uint8)
    if is_text:
        counts.update_texts(*values.text_buffers(array), flags, weights)
    else:
        counts.update_ints(array.fill_null(0).to_numpy(zero_copy_only=False), flags, weights)
    return valid


def distinct_values(counts: CategoryCounts) -> tuple[pa.Array, NDArray[np.int64]]:
    """Distinct values in any order, and how often each occurs."""
    if counts.type == "str":
        data, offsets, times = counts.unordered_texts()
        return text_array(data, offsets), times
    numbers, times = counts.unordered_ints()
    return pa.array(numbers), times


Observed = ObservedNumbers | ObservedCategories
# Of which one number a row is told.
_SUMMED = (ObservedBuckets, ObservedCycle, ObservedDocuments, ObservedGaps, ObservedRecency, ObservedVectors)
_OWN = {"user": "users", "item": "items"}


def observer(feature: Feature) -> Observed:
    """Nothing yet of a feature that a vocabulary or a scale makes."""
    return ObservedNumbers(feature) if feature.kind == "numeric" else ObservedCategories(feature)


class _Join:
    """Columns of users or items beside the interactions with them, for what is learned from both."""

    def __init__(self, source: Source, key: str, columns: Sequence[str]) -> None:
        self.key = key
        table = pa.concat_tables(read_batches(source, columns=sorted({key, *columns})), promote_options="permissive")
        self._kind, self._keys = values.category_column(table.column(key), name=key, expected=None)
        self._columns = {name: table.column(name) for name in columns}
        twice = len(self._keys) - self._keys.null_count - len(pc.unique(self._keys.drop_null()))
        if twice:
            raise SchemaError(
                f"{twice} keys in column {key!r} of the users or items stand twice, so {list(columns)} cannot be "
                "joined to the interactions"
            )

    def add(self, table: pa.Table) -> pa.Table:
        """The table with the columns; null where its key is null or not known."""
        _, keys = values.category_column(table.column(self.key), name=self.key, expected=self._kind)
        place = pc.index_in(keys, value_set=self._keys.cast(keys.type), skip_nulls=True)
        for name, column in self._columns.items():
            table = table.append_column(name, column.take(place))
        return table


class _Keys:
    """How often each key occurs in the interactions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts = CategoryCounts(name)
        self._table: tuple[pa.Array, NDArray[np.int64]] | None = None

    def observe(self, column: pa.ChunkedArray) -> None:
        count_column(self._counts, column, None)

    def weights(self, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """Of rows with these keys; a key that does not occur, and no key, weighs nothing."""
        _, array = values.category_column(column, name=self.name, expected=self._counts.type)
        if self._table is None:
            self._table = distinct_values(self._counts)
        known, counts = self._table
        place = pc.index_in(array, value_set=known.cast(array.type)).fill_null(-1).to_numpy(zero_copy_only=False)
        result: NDArray[np.int64] = np.append(counts, 0)[place]
        return result


def fit_encoders(
    pipeline: FeaturePipeline, *, users: Any, items: Any, interactions: Any, threads: int, progress: bool
) -> tuple[dict[str, Encoder], dict[str, Statistics]]:
    """What :meth:`FeaturePipeline.fit` learns: the encoders and statistics of all features but sequences."""
    schema = pipeline.schema
    sources = {
        name: open_source(each)
        for name, each in {"users": users, "items": items, "interactions": interactions}.items()
        if each is not None
    }
    operators = {f.name: found for f in schema.features if (found := observer_of(f, schema)) is not None}
    unwatched = {
        f.name: nothing
        for f in schema.features
        if (nothing := unlearned(f, schema)) is not None and not _sources_of(f, operators[f.name], sources)
    }
    operators = {name: each for name, each in operators.items() if name not in unwatched}
    plain = [f for f in schema.features if f.kind != "sequence" and not is_operator(f)]
    vocabularies = {f.name: observer(f) for f in plain}
    observed: dict[str, Observed | Observer] = {**vocabularies, **operators}
    taught_by: dict[str, list[Feature]] = {name: [] for name in ("interactions", "users", "items")}
    for name, each in observed.items():
        feature = schema.feature(name)
        taught_by[_teacher(pipeline, feature, each, sources)].append(feature)

    keys: dict[str, _Keys] = {}
    if "interactions" in sources:
        given = sources["interactions"].names
        for name, key in {"users": schema.user, "items": schema.item}.items():
            if name in sources and key in given and key in sources[name].names:
                keys[name] = _Keys(key)
    with _pool(threads) as pool:
        for name, features in taught_by.items():
            if name not in sources or not (features or (name == "interactions" and keys)):
                continue
            columns = {schema.user, schema.item, str(schema.timestamp)}
            columns |= {column for f in features for column in pipeline.columns_read(f)}
            columns |= {reader.column for f in features if f.name in operators for reader in operators[f.name].reads}
            mine = {f.name: observed[f.name] for f in features}
            joins = _joins(pipeline, features, operators, sources) if name == "interactions" else []
            with rows_progress(f"learning from {name}", sources[name].n_rows, shown=progress) as advance:
                for rows in read_batches(sources[name], columns=sorted(columns)):
                    table = reduce(lambda joined, join: join.add(joined), joins, rows)
                    if name == "interactions":
                        for counter in keys.values():
                            counter.observe(table.column(counter.name))
                    weights = keys[name].weights(table.column(keys[name].name)) if name in keys else None
                    observe(pipeline, table, mine, weights=weights, pool=pool)
                    advance(table.num_rows)
        encoders = _fitted(vocabularies, {}, pool)
        # Operators are learned last: they may need the vocabulary of another feature.
        encoders |= _fitted(operators, encoders, pool)
        encoders |= unwatched
        statistics = _statistics(observed, encoders, {}, pool)
    return {f.name: encoders[f.name] for f in schema.features if f.name in encoders}, statistics


def _joins(
    pipeline: FeaturePipeline,
    features: Sequence[Feature],
    operators: Mapping[str, Observer],
    sources: Mapping[str, Source],
) -> list[_Join]:
    """What is to be joined to the interactions, as their own columns do not have it."""
    wanted: dict[str, dict[str, None]] = {}
    for feature in features:
        for reader in operators[feature.name].reads if feature.name in operators else ():
            if reader.column not in sources["interactions"].names:
                wanted.setdefault(_OWN[feature.entity], {})[reader.column] = None
    keys = {"users": pipeline.schema.user, "items": pipeline.schema.item}
    return [_Join(sources[name], keys[name], list(columns)) for name, columns in wanted.items()]


class _Pool(Protocol):
    """Calls a function for each of some values, perhaps several at once; the results are in their order."""

    def map(self, function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]: ...


class _Caller:
    """The caller's thread alone."""

    def map(self, function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
        return map(function, values)


@contextmanager
def _pool(threads: int) -> Iterator[_Pool]:
    if threads == 1:
        yield _Caller()
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool


def _fitted(
    observed: Mapping[str, Observed | Observer], encoders: Mapping[str, Encoder], pool: _Pool
) -> dict[str, Encoder]:
    return dict(zip(observed, pool.map(lambda each: each.fit(encoders), observed.values()), strict=True))


def _statistics(
    observed: Mapping[str, Observed | Observer],
    encoders: Mapping[str, Encoder],
    fitted: Mapping[str, Statistics],
    pool: _Pool,
) -> dict[str, Statistics]:
    """Of all features but encodings by outcome and attributes, whose columns are those of other features."""

    def one(name: str) -> Statistics | None:
        each, before = observed[name], fitted.get(name)
        if isinstance(each, ObservedCross):
            cross = encoders[name]
            assert isinstance(cross, Cross)
            return statistics_of(cross.categories, each.counts, rows=each.rows, nulls=each.nulls, taught=before is None)
        if isinstance(each, _SUMMED):
            return number_statistics(each.summary, before if isinstance(before, NumberStatistics) else None)
        if isinstance(each, ObservedNumbers | ObservedCategories):
            return each.statistics(encoders[name], before)
        return None

    found = zip(observed, pool.map(one, observed), strict=True)
    return {name: statistics for name, statistics in found if statistics is not None}


def check_source(
    pipeline: FeaturePipeline, source: Any, *, limits: Limits | None, threads: int, progress: bool
) -> FeatureCheck:
    """What :meth:`FeaturePipeline.check` does."""
    if not pipeline.statistics:
        raise SchemaError(
            "there are no statistics of the rows that these features were fitted on: they were saved by an earlier "
            "release; fit them again"
        )
    opened = open_source(source)
    given = [
        feature
        for feature in pipeline.schema.features
        if feature.name in pipeline.statistics and pipeline.has_column(feature, opened.names)
    ]
    observed = {f.name: observer_of(f, pipeline.schema) or observer(f) for f in given}
    columns = sorted({*(column for f in given for column in pipeline.columns_read(f)), str(pipeline.schema.timestamp)})
    encoders = {name: pipeline.encoder(name) for name in observed}
    with _pool(threads) as pool:
        with rows_progress("checking features", opened.n_rows, shown=progress) as advance:
            for table in read_batches(opened, columns=columns):
                observe(pipeline, table, observed, pool=pool)
                advance(table.num_rows)
        found = _statistics(observed, encoders, pipeline.statistics, pool)
    # What the log makes is not in a table of raw rows.
    expected = {
        name: each
        for name, each in pipeline.statistics.items()
        if name in found or not pipeline.schema.is_from_log(pipeline.schema.feature(name))
    }
    labels = {name: _labels(each) for name, each in encoders.items() if isinstance(each, Categories)}
    return compare(expected, found, labels=labels, limits=limits)


def _labels(categories: Categories) -> list[str]:
    """What the bins of :func:`category_statistics` are called."""
    if categories.hash_rows is None:
        known = categories.known
        top = known.tolist(TOP) if isinstance(known, Texts) else known[:TOP]
        return [*map(str, top), "others"]
    edges = _ranges(categories.hash_rows) + categories.first_row
    return [f"rows {low} to {high - 1}" for low, high in pairwise(edges.tolist())]


def _ranges(rows: int) -> NDArray[np.int64]:
    """Where each of a few equal ranges of rows begins, and the end of the last."""
    parts = min(TOP, rows)
    sizes = np.full(parts, rows // parts)
    sizes[: rows % parts] += 1
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def observe(
    pipeline: FeaturePipeline,
    table: pa.Table,
    observed: Mapping[str, Observed | Observer],
    *,
    weights: NDArray[np.int64] | None = None,
    pool: _Pool,
) -> None:
    """Add the rows of a table to what was observed of some features; all of them have a column there."""

    def one(name: str) -> None:
        each = observed[name]
        if isinstance(each, ObservedNumbers | ObservedCategories):
            each.observe(pipeline.column(pipeline.schema.feature(name), table), weights)
        else:
            each.observe([reader.of_column(table.column(reader.column)) for reader in each.reads], weights)

    for _ in pool.map(one, observed):
        pass


def _sources_of(feature: Feature, observed: Observer, sources: Mapping[str, Source]) -> list[str]:
    """Where all columns of an operator stand: what is looked up in the catalogue, labels in the interactions."""
    wanted = {reader.column for reader in observed.reads}
    places = ("items",) if feature.lookup else (_OWN.get(feature.entity, ""), "interactions")
    return [name for name in places if name in sources and wanted <= set(sources[name].names)]


def _teacher(
    pipeline: FeaturePipeline, feature: Feature, observed: Observed | Observer, sources: Mapping[str, Source]
) -> str:
    """The source that a feature is learnt from."""
    own = _OWN.get(feature.entity, "")
    if not isinstance(observed, ObservedNumbers | ObservedCategories):
        if found := _sources_of(feature, observed, sources):
            return found[0]
        wanted = {reader.column for reader in observed.reads}
        names = {name: set(each.names) for name, each in sources.items()}
        seen = {name: list(each.names) for name, each in sources.items()}
        learned = f"feature {feature.name!r} is learned from {sorted(wanted)}"
        if feature.lookup or own == "":
            raise SchemaError(f"{learned} in {'the items' if feature.lookup else 'the interactions'}; there are {seen}")
        key = pipeline.schema.user if own == "users" else pipeline.schema.item
        both = (names.get(own, set()), names.get("interactions", set()))
        if key in both[0] & both[1] and wanted <= both[0] | both[1]:
            return "interactions"
        raise SchemaError(f"{learned} in the interactions, with the {own} joined by {key!r}; there are {seen}")
    if own in sources and feature.column in sources[own].names and not feature.from_log:
        return own
    if "interactions" in sources and pipeline.has_column(feature, sources["interactions"].names):
        return "interactions"
    seen = {name: list(each.names) for name, each in sources.items()}
    raise SchemaError(f"feature {feature.name!r} of entity {feature.entity!r} has no column; the tables have {seen}")
