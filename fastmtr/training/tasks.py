"""From behaviour to labels: which rows of a log are samples, and what happened to each for every task.

Two shapes of log are understood. *wide*: one row an impression, with columns that say what the user did. *long*: one
row an action (user, item, action, time); a sample is then the first impression of an item by a user on a day, and its
labels are what that user did to that item within a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.features import values
from fastmtr.features.past import PastEvents
from fastmtr.schema import Schema, Task
from fastmtr.training.splits import Boundaries, day_of, times_of

__all__ = ["TaskLog", "TaskReport", "TaskRule", "TaskRules", "label_log"]

_SECONDS_A_DAY = 86_400


class TaskRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one task's label is made.

    Parameters
    ----------
    column : str, optional
        *wide*: the column that holds it. Default: the task's name.
    at_least : float, optional
        *wide*: the label is 1 where the column is at least so much, else 0.
    at_least_column : str, optional
        *wide*: the same against another column (watched to the end: play time at least the duration).
    log1p : bool
        A regression's label becomes log(1 + value).
    actions : tuple of str
        *long*: the actions that count. Default: the task's name. A regression counts them.
    """

    column: str | None = None
    at_least: float | None = None
    at_least_column: str | None = None
    log1p: bool = False
    actions: tuple[str, ...] = ()


class TaskRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[tasks]`` section of a configuration.

    Parameters
    ----------
    shape : {"wide", "long"}
    rules : dict of str to TaskRule
        By task; one that is left out has the default rule.
    action : str
        *long*: the column that names the action.
    impressions : tuple of str
        *long*: the actions that make a sample. Empty: any.
    window_days : float, optional
        *long*: an action counts within so many days of the sample. None: until the sample's part (train, valid, test)
        ends; actions after that never count, so that training does not see what came later.
    negatives : int
        *long*: items drawn for each sample, which the user never touched; every label is 0. For logs that do not record
        what was shown and ignored.
    popularity : float
        They are drawn with probability proportional to an item's number of events to this power.
    seed : int
    """

    shape: Literal["wide", "long"] = "wide"
    rules: dict[str, TaskRule] = {}
    action: str = "action"
    impressions: tuple[str, ...] = ()
    window_days: Annotated[float, msgspec.Meta(gt=0)] | None = None
    negatives: Annotated[int, msgspec.Meta(ge=0)] = 0
    popularity: float = 0.75
    seed: int = 0


@dataclass(frozen=True)
class TaskReport:
    """How samples were made.

    Attributes
    ----------
    shape : str
    events, samples, negatives : int
        Rows of the log, samples made of them, and samples drawn besides.
    rules : mapping of str to str
        Each task's rule in words.
    without_sample : mapping of str to int
        *long*: positive actions that no sample saw (bought without an impression, or after the window).
    """

    shape: str
    events: int
    samples: int
    negatives: int
    rules: Mapping[str, str]
    without_sample: Mapping[str, int]


@dataclass(frozen=True)
class TaskLog:
    """Samples and what is known of the past.

    Attributes
    ----------
    samples : pyarrow.Table
    labels : ndarray of float32, shape (n, tasks)
        NaN: not known.
    known_from : ndarray of int64, shape (n,)
        When a sample's labels were all known.
    drawn : ndarray of bool, shape (n,)
        True for a drawn negative, which says nothing of the past.
    positives : mapping of str to (pyarrow.Table, ndarray of int64)
        For each binary task a table and its rows in which the task happened.
    report : TaskReport
    """

    samples: pa.Table
    labels: NDArray[np.float32]
    known_from: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    positives: Mapping[str, tuple[pa.Table, NDArray[np.int64]]]
    report: TaskReport


def label_log(log: pa.Table, rules: TaskRules, *, schema: Schema, cuts: Boundaries) -> TaskLog:
    """Make samples and labels.

    Parameters
    ----------
    log : pyarrow.Table
        Cleaned: no null keys or timestamps.
    rules : TaskRules
    schema : Schema
        With a timestamp.
    cuts : Boundaries
        Of the split; the labels of a sample end where its part ends.

    Raises
    ------
    SchemaError
        A column is missing, or a binary label is neither 0 nor 1.
    ConfigError
        A rule is for no task of the schema.
    """
    names = [task.name for task in schema.tasks]
    for name in rules.rules:
        if name not in names:
            raise ConfigError(f"tasks.rules.{name}: no such task; the schema's tasks are {names}")
    assert schema.timestamp is not None
    return _label_wide(log, rules, schema) if rules.shape == "wide" else _label_long(log, rules, schema, cuts)


def _label_wide(log: pa.Table, rules: TaskRules, schema: Schema) -> TaskLog:
    columns, texts = [], {}
    for task in schema.tasks:
        label, texts[task.name] = _wide_label(log, rules.rules.get(task.name, TaskRule()), task)
        columns.append(label)
    labels = np.stack(columns, axis=1).astype(np.float32)
    positives = {
        t.name: (log, np.flatnonzero(labels[:, i] == 1)) for i, t in enumerate(schema.tasks) if t.kind == "binary"
    }
    return TaskLog(
        samples=log,
        labels=labels,
        known_from=times_of(log, schema),
        drawn=np.zeros(log.num_rows, bool),
        positives=positives,
        report=TaskReport("wide", log.num_rows, log.num_rows, 0, texts, {}),
    )


def _wide_label(log: pa.Table, rule: TaskRule, task: Task) -> tuple[NDArray[np.float64], str]:
    name = rule.column or task.name
    label, text = _numbers(log, name, task), name
    if rule.at_least_column is not None or rule.at_least is not None:
        other: Any = rule.at_least
        if rule.at_least_column is not None:
            other = _numbers(log, rule.at_least_column, task)
        known = ~(np.isnan(label) | np.isnan(other))
        label = np.where(known, label >= other, np.nan)
        text = f"{name} >= {rule.at_least_column or f'{rule.at_least:g}'}"
    if task.kind == "binary":
        if rule.log1p:
            raise ConfigError(f"tasks.rules.{task.name}.log1p belongs to a regression, and the task is binary")
        wrong = label[~(np.isnan(label) | (label == 0) | (label == 1))]
        if len(wrong):
            raise SchemaError(
                f"task {task.name!r} is binary, but {text} holds {wrong[0]:g} ({len(wrong)} such rows); "
                f"give tasks.rules.{task.name} an 'at_least'"
            )
    elif rule.log1p:
        if (label <= -1).any():
            raise SchemaError(f"task {task.name!r}: log1p needs values above -1, but {text} holds {np.nanmin(label):g}")
        label, text = np.log1p(label), f"log(1 + {text})"
    if np.isinf(label).any():
        raise SchemaError(f"task {task.name!r}: {text} holds an infinity; remove it with cleaning.ranges")
    return label, text


def _numbers(log: pa.Table, name: str, task: Task) -> NDArray[np.float64]:
    if name not in log.column_names:
        raise SchemaError(f"task {task.name!r} needs column {name!r}; the log has {log.column_names}")
    return values.number_column(log.column(name), name=name)


def _label_long(log: pa.Table, rules: TaskRules, schema: Schema, cuts: Boundaries) -> TaskLog:
    if rules.action not in log.column_names:
        raise SchemaError(
            f"the log has no column {rules.action!r} for the action (tasks.action); it has {log.column_names}"
        )
    _, actions = values.category_column(log.column(rules.action), name=rules.action, expected="str")
    users, items = (_codes(log, key) for key in (schema.user, schema.item))
    times = times_of(log, schema)
    # One number for the user and the item together.
    pairs = np.unique(users * (items.max() + 1) + items, return_inverse=True)[1]

    shown = (
        _matches(actions, rules.impressions, "tasks.impressions") if rules.impressions else np.ones(len(times), bool)
    )
    chosen = _first_of_day(pairs, times, shown, schema)
    part = np.clip(cuts.part_of(times[chosen]), 0, 2)
    ends = np.array([cuts.valid, cuts.test, cuts.end])[part]
    if rules.window_days is not None:
        window = round(rules.window_days * _SECONDS_A_DAY * values.TICKS_A_SECOND[schema.timestamp_unit])
        ends = np.minimum(ends - window, times[chosen]) + window

    columns, texts, positives, lost = [], {}, {}, {}
    for task in schema.tasks:
        rule = rules.rules.get(task.name, TaskRule())
        wanted = rule.actions or (task.name,)
        rows = np.flatnonzero(_matches(actions, wanted, f"tasks.rules.{task.name}.actions"))
        events = PastEvents(pairs[rows], times[rows], rows)
        before = events.before(times[chosen], pairs[chosen]).end
        until = events.before(ends, pairs[chosen]).end
        count = until - before
        columns.append((np.log1p(count) if rule.log1p else count) if task.kind == "regression" else count > 0)
        texts[task.name] = f"{' or '.join(wanted)} within {_window_text(rules)}"
        if task.kind == "binary":
            positives[task.name] = (log, rows)
            seen = np.zeros(len(rows) + 1, np.int64)
            np.add.at(seen, before, 1)
            np.add.at(seen, until, -1)
            lost[task.name] = int((np.cumsum(seen)[:-1] == 0).sum())
    labels = np.stack(columns, axis=1).astype(np.float32)
    samples, source, drawn = _with_negatives(log, chosen, users, items, pairs, rules, schema)
    labels = np.where(drawn[:, None], np.float32(0), labels[source])
    known = np.where(ends == np.iinfo(np.int64).max, times.max() + 1, ends)[source]
    return TaskLog(
        samples=samples,
        labels=labels,
        known_from=known,
        drawn=drawn,
        positives=positives,
        report=TaskReport("long", log.num_rows, len(chosen), int(drawn.sum()), texts, lost),
    )


def _first_of_day(
    pairs: NDArray[np.int64], times: NDArray[np.int64], shown: NDArray[np.bool_], schema: Schema
) -> NDArray[np.int64]:
    rows = np.flatnonzero(shown)
    rows = rows[np.lexsort((times[rows], pairs[rows]))]
    days = day_of(times[rows], schema)
    new = np.ones(len(rows), bool)
    new[1:] = (pairs[rows][1:] != pairs[rows][:-1]) | (days[1:] != days[:-1])
    firsts = rows[new]
    # In time order; the pair breaks ties, so that the order of the log's rows does not matter.
    result: NDArray[np.int64] = firsts[np.lexsort((pairs[firsts], times[firsts]))]
    return result


def _with_negatives(
    log: pa.Table,
    chosen: NDArray[np.int64],
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    pairs: NDArray[np.int64],
    rules: TaskRules,
    schema: Schema,
) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.bool_]]:
    """The samples followed by drawn negatives, the sample that each comes from, and which are drawn."""
    n = len(chosen)
    source = np.arange(n)
    samples = log.take(pa.array(chosen))
    if not rules.negatives or not n:
        return samples, source, np.zeros(n, bool)
    counts = np.bincount(items)
    share = np.cumsum(counts.astype(np.float64) ** rules.popularity)
    touched = np.unique(users * len(counts) + items)
    owners = np.repeat(source, rules.negatives)
    drawn = np.full(len(owners), -1)
    generator = np.random.default_rng(rules.seed)
    for _ in range(8):
        open_ = np.flatnonzero(drawn < 0)
        picks = np.searchsorted(share, generator.random(len(open_)) * share[-1], side="right")
        keys = users[chosen[owners[open_]]] * len(counts) + picks
        free = touched[np.minimum(np.searchsorted(touched, keys), len(touched) - 1)] != keys
        drawn[open_[free]] = picks[free]
    owners, drawn = owners[drawn >= 0], drawn[drawn >= 0]
    first_row = np.zeros(len(counts), np.int64)
    first_row[items[::-1]] = np.arange(len(items))[::-1]
    negative = samples.take(pa.array(owners))
    place = negative.column_names.index(schema.item)
    keys_of_items = log.column(schema.item).take(pa.array(first_row[drawn]))
    negative = negative.set_column(place, schema.item, keys_of_items)
    return (
        pa.concat_tables([samples, negative]),
        np.concatenate([source, owners]),
        np.repeat([False, True], [n, len(owners)]),
    )


def _matches(actions: pa.Array, wanted: tuple[str, ...], key: str) -> NDArray[np.bool_]:
    known = set(pc.unique(actions).to_pylist())
    absent = [name for name in wanted if name not in known]
    if absent:
        raise SchemaError(f"{key}: the log has no action {absent[0]!r}; it has {sorted(map(str, known))[:20]}")
    found: NDArray[np.bool_] = pc.is_in(actions, value_set=pa.array(wanted, actions.type)).to_numpy(
        zero_copy_only=False
    )
    return found


def _codes(log: pa.Table, key: str) -> NDArray[np.int64]:
    """A number for each key, ascending as the keys do, whatever the order of the rows."""
    _, array = values.category_column(log.column(key), name=key, expected=None)
    coded = array.dictionary_encode()
    rank = np.empty(len(coded.dictionary), np.int64)
    rank[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(rank))
    result: NDArray[np.int64] = rank[coded.indices.to_numpy(zero_copy_only=False)]
    return result


def _window_text(rules: TaskRules) -> str:
    return (
        "the sample's part"
        if rules.window_days is None
        else f"{rules.window_days:g} days, and within the sample's part"
    )
