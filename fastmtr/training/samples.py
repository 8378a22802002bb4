"""From tables to training samples: the whole data side in one call, :func:`prepare`."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastmtr.bundle import Catalogue, Seen
from fastmtr.errors import ConfigError, SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.features.columns import TickLists
from fastmtr.features.operators import readers
from fastmtr.features.past import HistoryRules, PastEvents, PastRates, Span
from fastmtr.features.quality import FeatureCheck
from fastmtr.features.target_encoding import TargetTable, fold_columns, folds_of
from fastmtr.features.values import TICKS_A_SECOND
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema
from fastmtr.tables import read_table
from fastmtr.training.cleaning import CleaningReport, CleaningRules, clean
from fastmtr.training.entities import Entities, make_entities
from fastmtr.training.splits import Boundaries, SplitRules, boundaries, day_start, times_of
from fastmtr.training.tasks import TaskLog, TaskReport, TaskRules, label_log

__all__ = ["HistoryRules", "Prepared", "PreparedReport", "Samples", "SplitReport", "prepare"]


_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Samples:
    """Model inputs and labels, one row a sample, in time order.

    Attributes
    ----------
    request : Packed
        User and context inputs, n rows.
    item_rows : ndarray of int64, shape (n,)
        The item's row of the catalogue.
    item_dense : ndarray of float32, shape (n, item dense width), optional
        The item's numbers as they were known then. None: those of the catalogue (see :meth:`items`).
    candidate : Packed, optional
        Inputs of entity ``candidate``, if the schema has any.
    user_rows : ndarray of int64, shape (n,)
        The user's row of :attr:`Prepared.users`.
    labels : ndarray of float32, shape (n, tasks)
        In the order of the schema; NaN where not known.
    timestamps : ndarray of int64, shape (n,)
        In the schema's unit.
    """

    request: Packed
    item_rows: NDArray[np.int64]
    item_dense: NDArray[np.float32] | None
    candidate: Packed | None
    user_rows: NDArray[np.int64]
    labels: NDArray[np.float32]
    timestamps: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """How many samples."""
        return len(self.item_rows)

    def items(self, catalogue: Packed, rows: NDArray[Any] | slice = slice(None)) -> Packed:
        """The item inputs of these samples, as they were known then.

        Parameters
        ----------
        catalogue : Packed
            ``prepared.catalogue.packed``.
        rows : ndarray or slice
            Which samples; all by default.
        """
        packed = catalogue.take(self.item_rows[rows])
        return packed if self.item_dense is None else Packed(packed.ids, self.item_dense[rows])


@dataclass(frozen=True)
class SplitReport:
    """One part of the split: its samples, users, items, first and last timestamp, and the mean label of each task."""

    part: str
    samples: int
    users: int
    items: int
    first: int | None
    last: int | None
    positives: Mapping[str, float]
    mean: Mapping[str, float]


@dataclass(frozen=True)
class PreparedReport:
    """How the samples came about."""

    cleaning: CleaningReport
    tasks: TaskReport
    splits: tuple[SplitReport, ...]
    users: int
    items: int
    before_training: int
    undescribed_users: int
    undescribed_items: int
    features: FeatureCheck


@dataclass(frozen=True)
class Prepared:
    """Everything that training, evaluation and the bundle need of the data.

    Attributes
    ----------
    schema : Schema
    pipeline : FeaturePipeline
        Fitted on the training samples.
    train, valid, test : Samples
    catalogue : Catalogue
        All items, as known when the test samples begin.
    users : Catalogue
        All users, likewise; the context features stand at their null value.
    seen : Seen
    report : PreparedReport
    """

    schema: Schema
    pipeline: FeaturePipeline
    train: Samples
    valid: Samples
    test: Samples
    catalogue: Catalogue
    users: Catalogue
    seen: Seen
    report: PreparedReport


def prepare(
    schema: Schema,
    log: Any,
    *,
    tasks: TaskRules,
    split: SplitRules,
    users: Any | None = None,
    items: Any | None = None,
    cleaning: CleaningRules | None = None,
    history: HistoryRules | None = None,
    item_label: str | None = None,
    progress: bool = False,
) -> Prepared:
    """Clean a log, make samples with labels, split them by time, and fit and apply the features.

    Nothing flows backwards in time. What the log makes (histories, past rates) is as of each training sample's day or
    moment (see :class:`~fastmtr.features.past.HistoryRules`), and as of the beginning of the validation and of the test
    samples for theirs; vocabularies and scales come from training samples.

    Parameters
    ----------
    schema : Schema
        With a timestamp.
    log, users, items : table
        Whatever :func:`fastmtr.tables.read_table` takes.
    tasks : TaskRules
    split : SplitRules
    cleaning : CleaningRules, optional
    history : HistoryRules, optional
    item_label : str, optional
        How an item is shown: names of columns of the items' table in braces.
    progress : bool
        Show what is being done.

    Raises
    ------
    SchemaError
        A column is missing or holds values of the wrong kind, or no training sample is left.
    ConfigError
        The rules contradict the schema or each other.
    """
    if schema.timestamp is None:
        raise ConfigError("the data are split by time, so the schema needs a 'timestamp' column; it names none")
    with _Stages(shown=progress) as stage:
        stage("reading")
        table = read_table(log)
        cuts = boundaries(split, schema)
        stage("cleaning")
        table, cleaned = clean(table, cleaning or CleaningRules(), schema=schema)
        table = table.filter(pa.array(times_of(table, schema) < cuts.end))
        stage("making labels")
        task_log = label_log(table, tasks, schema=schema, cuts=cuts)
        stage("users and items")
        people = make_entities("user", users, log=table, schema=schema, before=cuts.test)
        things = make_entities("item", items, log=table, schema=schema, before=cuts.test)
        builder = _Builder(schema, task_log, people, things, cuts, history or HistoryRules())
        stage("fitting features")
        builder.fit()
        stage("packing samples")
        train, valid, test = (builder.samples(part) for part in range(3))
        catalogue = Catalogue(_keys(things), builder.catalogue, _labels(item_label, things))
        known = Catalogue(_keys(people), builder.users(), None)
        report = PreparedReport(
            cleaning=cleaned,
            tasks=task_log.report,
            splits=tuple(_split_report(*each, schema) for each in zip(_PARTS, (train, valid, test), strict=True)),
            users=people.n_rows,
            items=things.n_rows,
            before_training=int((builder.part == -1).sum()),
            undescribed_users=people.n_rows - people.described if users is not None else 0,
            undescribed_items=things.n_rows - things.described if items is not None else 0,
            features=builder.check(2),
        )
        return Prepared(schema, builder.pipeline, train, valid, test, catalogue, known, builder.seen(), report)


class _Builder:
    """The steps of :func:`prepare` that share the coded log."""

    def __init__(
        self, schema: Schema, log: TaskLog, users: Entities, items: Entities, cuts: Boundaries, history: HistoryRules
    ) -> None:
        self.schema, self.log, self.cuts, self.history = schema, log, cuts, history
        self.entities = {"user": users, "item": items}
        self.rows = {name: each.rows_of(log.samples) for name, each in self.entities.items()}
        self.times = times_of(log.samples, schema)
        self.part = cuts.part_of(self.times)
        self.pipeline = FeaturePipeline(schema)
        self._histories: dict[str, PastEvents] = {}
        self._groups: dict[tuple[str, str | None], NDArray[np.int64]] = {}
        self._events: dict[tuple[str, str | None], PastEvents] = {}
        self._rates: dict[str, PastRates] = {}
        for feature in schema.features:
            if feature.from_log and feature.kind == "sequence":
                self._histories[feature.name] = self._index_history(feature)
            elif feature.from_log:
                self._rates[feature.name] = self._index_rates(feature)
        # What is not the same at any time: statistics of the past, and times since something.
        self._moving = {
            name: [
                f
                for f in schema.features
                if f.entity == name and f.kind != "sequence" and (f.from_log or schema.reads_clock(f))
            ]
            for name in self.entities
        }

    def _index_history(self, feature: Feature) -> PastEvents:
        assert feature.event is not None
        assert feature.of is not None
        table, rows = self.log.positives[feature.event]
        table = table.select([self.schema.user, self.schema.item, str(self.schema.timestamp)]).take(pa.array(rows))
        items = self.entities["item"].rows_of(table)
        # An item without a value of the feature leaves no trace.
        traceless = self.entities["item"].groups(self.schema.feature(feature.of).column)[items] < 0
        owners = np.where(traceless, -1, self.entities["user"].rows_of(table))
        return PastEvents(owners, times_of(table, self.schema), items)

    def _index_rates(self, feature: Feature) -> PastRates:
        key = (feature.entity, feature.of)
        if key not in self._events:
            entity = self.entities[feature.entity]
            groups = (
                np.arange(entity.n_rows)
                if feature.of is None
                else entity.groups(self.schema.feature(feature.of).column)
            )
            other = self.rows["item" if feature.entity == "user" else "user"]
            self._groups[key] = groups
            self._events[key] = PastEvents(groups[self.rows[feature.entity]], self.log.known_from, other)
        column = [task.name for task in self.schema.tasks].index(str(feature.event))
        outcomes = np.where(self.log.drawn, np.nan, self.log.labels[:, column])
        return PastRates(self._events[key], outcomes, strength=self.history.strength)

    def fit(self) -> None:
        """Fit the pipeline on the training samples, and encode what does not change with time."""
        chosen = self._chosen(0)
        if not len(chosen):
            raise SchemaError(
                f"no training sample: the log runs from {self.times.min()} to {self.times.max()} "
                f"({self.schema.timestamp}), and training ends before {self.cuts.valid}"
            )
        interactions = self._with_attributes(self.log.samples.take(pa.array(chosen)), chosen)
        cutoffs = self._cutoffs(chosen, 0)
        for entity, rows in self.rows.items():
            columns = self._moving_columns(entity, rows[chosen], cutoffs, ahead=self.times[chosen] - cutoffs)
            for name, column in columns.items():
                interactions = _with_column(interactions, name, column)
        for i, task in enumerate(self.schema.tasks):
            if any(f.kind == "target" and f.event == task.name for f in self.schema.features):
                interactions = _with_column(interactions, task.name, pa.array(self.log.labels[chosen, i]))
        tables = {name: entity.table for name, entity in self.entities.items()}
        self.pipeline.fit(users=tables["user"], items=tables["item"], interactions=interactions)
        self._fixed = {
            name: self.pipeline.transform_blocks(
                [
                    f
                    for f in self.schema.features
                    if f.entity == name and not f.from_log and f not in self._moving[name]
                ],
                entity.table,
            )
            for name, entity in self.entities.items()
        }
        self.catalogue = self._pack_items(np.arange(self.entities["item"].n_rows), None)

    def samples(self, part: int) -> Samples:
        """The samples of one part, in time order."""
        chosen = self._chosen(part)
        cutoffs = self._cutoffs(chosen, part)
        users, items = self.rows["user"][chosen], self.rows["item"][chosen]
        table = self.log.samples.take(pa.array(chosen))
        own = self._out_of_fold(table, chosen) if part == 0 else {}
        given = self.pipeline.transform_blocks(self.schema.of_entity("context", "candidate"), table)
        request = self._blocks("user", users, cutoffs) | given | own
        things = (any(self._moving["item"]) and part != 2) or any(f.name in own for f in self.schema.of_entity("item"))
        candidate = self.schema.of_entity("candidate")
        n = len(chosen)
        return Samples(
            request=self.pipeline.assemble("request", request, n_rows=n),
            item_rows=items,
            item_dense=self._pack_items(items, cutoffs, own).dense if things else None,
            candidate=self.pipeline.assemble("candidate", given | own, n_rows=n) if candidate else None,
            user_rows=users,
            labels=self.log.labels[chosen],
            timestamps=self.times[chosen],
        )

    def check(self, part: int) -> FeatureCheck:
        """The raw features of the samples of one part against those of the training samples."""
        chosen = self._chosen(part)
        cutoffs = self._cutoffs(chosen, part)
        table = self.log.samples.take(pa.array(chosen))
        for entity, rows in self.rows.items():
            of_samples = pa.array(rows[chosen])
            for feature in self.schema.of_entity("user" if entity == "user" else "item"):
                if feature.name in self.pipeline.statistics and not self.schema.is_from_log(feature):
                    for name in self.schema.columns_of(feature):
                        column = self.entities[entity].table.column(name)
                        table = _with_column(table, name, column.take(of_samples))
            columns = self._moving_columns(entity, rows[chosen], cutoffs, ahead=self.times[chosen] - cutoffs)
            for name, column in columns.items():
                table = _with_column(table, name, column)
        return self.pipeline.check(table)

    def users(self) -> Packed:
        """All users as of the beginning of the test samples."""
        rows = np.arange(self.entities["user"].n_rows)
        blocks = self._blocks("user", rows, np.full(len(rows), self.cuts.test))
        return self.pipeline.assemble("request", blocks, n_rows=len(rows))

    def seen(self) -> Seen:
        """The items that each user met before the test samples."""
        met = ~self.log.drawn & (self.times < self.cuts.test)
        n_users, n_items = (self.entities[name].n_rows for name in ("user", "item"))
        pairs = np.unique(self.rows["user"][met] * n_items + self.rows["item"][met])
        users, items = np.divmod(pairs, n_items)
        return Seen(np.searchsorted(users, np.arange(n_users + 1)), items)

    def _chosen(self, part: int) -> NDArray[np.int64]:
        rows = np.flatnonzero(self.part == part)
        order = np.lexsort((self.rows["item"][rows], self.rows["user"][rows], self.times[rows]))
        result: NDArray[np.int64] = rows[order]
        return result

    def _cutoffs(self, chosen: NDArray[np.int64], part: int) -> NDArray[np.int64]:
        """Up to when each sample may look."""
        if part > 0:
            return np.full(len(chosen), self.cuts.valid if part == 1 else self.cuts.test)
        times = self.times[chosen]
        return times if self.history.step == "event" else day_start(times, self.schema)

    def _pack_items(
        self, items: NDArray[np.int64], cutoffs: NDArray[np.int64] | None, own: Mapping[str, NDArray[Any]] | None = None
    ) -> Packed:
        cutoffs = np.full(len(items), self.cuts.test) if cutoffs is None else cutoffs
        return self.pipeline.assemble("item", self._blocks("item", items, cutoffs) | dict(own or {}), n_rows=len(items))

    def _blocks(self, entity: str, rows: NDArray[np.int64], cutoffs: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The encoded features of users or items as of a moment each."""
        blocks = {name: block[rows] for name, block in self._fixed[entity].items()}
        if self._moving[entity]:
            columns = self._moving_columns(entity, rows, cutoffs) | {str(self.schema.timestamp): pa.array(cutoffs)}
            blocks |= self.pipeline.transform_blocks(self._moving[entity], pa.table(columns))
        if entity == "user":
            blocks |= {name: self._history(name, rows, cutoffs) for name in self._histories}
        return blocks

    def _moving_columns(
        self, entity: str, rows: NDArray[np.int64], cutoffs: NDArray[np.int64], *, ahead: NDArray[np.int64] | int = 0
    ) -> dict[str, pa.Array]:
        """The raw columns of what is not the same at any time, as of a moment each.

        Points in time are moved by `ahead`, so that they are as far from a clock that runs ahead of the moment.
        """
        found: dict[str, pa.Array] = {f: pa.array(x) for f, x in self._statistics(entity, rows, cutoffs).items()}
        for feature in self._moving[entity]:
            if feature.from_log:
                continue
            if self.schema.is_from_log(feature):
                events = self._histories[str(feature.of)]
                times, known = events.last_times(events.before(cutoffs, rows), length=feature.length)
                offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(known.sum(axis=1))])
                column = pa.LargeListArray.from_arrays(offsets, times[known])
            else:
                column = self.entities[entity].table.column(feature.column).take(pa.array(rows))
            found[feature.column] = column if isinstance(ahead, int) else _moved(column, feature, self.schema, ahead)
        return found

    def _with_attributes(self, table: pa.Table, chosen: NDArray[np.int64]) -> pa.Table:
        """Samples with the categories of their users and items that are encoded by outcome."""
        for feature in self.schema.features:
            if feature.kind == "target" and feature.entity in self.entities:
                (name,) = self.schema.columns_of(feature)
                column = self.entities[feature.entity].table.column(name)
                table = _with_column(table, name, column.take(pa.array(self.rows[feature.entity][chosen])))
        return table

    def _out_of_fold(self, table: pa.Table, chosen: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What training samples are told of the outcomes of their categories."""
        table = self._with_attributes(table, chosen)
        found = {}
        for feature in self.schema.features:
            encoder = self.pipeline.encoder(feature.name) if feature.kind == "target" else None
            if isinstance(encoder, TargetTable):
                keys = [each.of_column(table.column(each.column)) for each in fold_columns(feature, self.schema)]
                columns = [each.of_column(table.column(each.column)) for each in readers(feature, self.schema)]
                found[feature.name] = encoder.encode_out_of_fold(columns, folds_of(keys, feature.folds))
        return found

    def _history(self, name: str, users: NDArray[np.int64], cutoffs: NDArray[np.int64]) -> NDArray[np.int32]:
        feature, events = self.schema.feature(name), self._histories[name]
        assert feature.of is not None
        # Row -1 of the ids is the padding.
        ids = np.append(self._fixed["item"][feature.of][:, 0], np.int32(0))
        history: NDArray[np.int32] = ids[events.last(events.before(cutoffs, users), length=feature.length)]
        return history

    def _statistics(
        self, entity: str, rows: NDArray[np.int64], cutoffs: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        found = {}
        spans: dict[tuple[str | None, float | None], Span] = {}
        for name, rates in self._rates.items():
            feature = self.schema.feature(name)
            if feature.entity != entity:
                continue
            owner, key = (entity, feature.of), (feature.of, feature.window)
            if key not in spans:
                spans[key] = self._events[owner].before(
                    cutoffs, self._groups[owner][rows], window=_window_ticks(feature, self.schema)
                )
            found[feature.column] = rates.at(spans[key], statistic=feature.statistic)
        return found


def _moved(column: pa.Array | pa.ChunkedArray, feature: Feature, schema: Schema, ahead: NDArray[np.int64]) -> pa.Array:
    """Points in time, or lists of them, that lie so many ticks later."""
    read = readers(feature, schema)[0].of_column(column)
    ticks, lists = (read.ticks, read) if isinstance(read, TickLists) else (read, None)
    later = ahead if lists is None else np.repeat(ahead, np.diff(lists.offsets))
    moved = pa.array(ticks.values + later, pa.int64(), mask=~ticks.valid)
    return moved if lists is None else pa.LargeListArray.from_arrays(lists.offsets, moved)


def _window_ticks(feature: Feature, schema: Schema) -> int | None:
    if feature.window is None:
        return None
    return min(round(feature.window * 3600 * TICKS_A_SECOND[schema.timestamp_unit]), np.iinfo(np.int64).max)


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _keys(entities: Entities) -> NDArray[Any]:
    keys = entities.keys.to_numpy(zero_copy_only=False)
    typed: NDArray[Any] = keys.astype(np.int64 if pa.types.is_integer(entities.keys.type) else object)
    return typed


def _labels(template: str | None, items: Entities) -> tuple[str, ...] | None:
    if template is None:
        return None
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    absent = [name for name in names if name not in items.table.column_names]
    if absent:
        raise ConfigError(
            f"item_label: the items' table has no column {absent[0]!r}; it has {items.table.column_names}"
        )
    columns = {name: ["?" if v is None else v for v in items.table.column(name).to_pylist()] for name in names}
    return tuple(template.format(**{name: columns[name][i] for name in names}) for i in range(items.n_rows))


def _split_report(part: str, samples: Samples, schema: Schema) -> SplitReport:
    known = ~np.isnan(samples.labels)
    sums = np.where(known, samples.labels, 0).sum(axis=0, dtype=np.float64)
    counts = known.sum(axis=0)
    names = [task.name for task in schema.tasks]
    return SplitReport(
        part=part,
        samples=samples.n_rows,
        users=len(np.unique(samples.user_rows)),
        items=len(np.unique(samples.item_rows)),
        first=int(samples.timestamps[0]) if samples.n_rows else None,
        last=int(samples.timestamps[-1]) if samples.n_rows else None,
        positives={name: float(sums[i]) for i, name in enumerate(names)},
        mean={name: float(sums[i] / counts[i]) if counts[i] else float("nan") for i, name in enumerate(names)},
    )


class _Stages:
    """Tells on the terminal what is being done, if asked."""

    def __init__(self, *, shown: bool) -> None:
        self._status: Any = None
        if shown:
            from rich.console import Console

            self._status = Console(stderr=True).status("preparing data")

    def __enter__(self) -> _Stages:
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, what: str) -> None:
        if self._status is not None:
            self._status.update(f"preparing data: {what}")

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
