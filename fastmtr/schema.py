"""What a data set means: features, the entity each belongs to, and the tasks to predict.

A :class:`Schema` is frozen and JSON-serialisable; it is written once, used in training and saved in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, NoReturn, TypeVar

import msgspec

from fastmtr.errors import SchemaError

__all__ = ["Entity", "Feature", "FeatureKind", "Schema", "Task", "TaskKind"]

Entity = Literal["user", "context", "item", "candidate"]
FeatureKind = Literal["categorical", "numeric", "multi", "sequence", "text", "vector", "tfidf", "gaps", "target"]
TaskKind = Literal["binary", "regression"]
Scaling = Literal["none", "standard", "minmax", "robust", "log1p", "quantile", "normal"]
OutOfRange = Literal["keep", "clip", "null", "error"]
Pooling = Literal["mean", "sum", "max"]
Statistic = Literal["log_odds", "rate", "count"]
Derivation = Literal["hour", "weekday", "hour_of_week", "hour_cycle", "weekday_cycle", "year_cycle", "recency"]
Encoding = Literal["target", "count", "rate"]
TimeUnit = Literal["s", "ms", "us", "ns"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
# Ids are int32.
_Rows = Annotated[int, msgspec.Meta(ge=1, le=2**30)]
_PARTS = ("hour", "weekday", "hour_of_week")


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column that a model reads.

    Parameters
    ----------
    name : str
        The column's name, unique in the schema.
    entity : {"user", "context", "item", "candidate"}
        What the value is a function of. ``user`` and ``context`` are known once a request, ``item`` once a catalogue
        item, ``candidate`` (needs both, such as the position or the retrieval score) once a candidate of a request.
    kind : {"categorical", "numeric", "multi", "sequence", "text", "vector", "tfidf", "gaps", "target"}
        ``multi`` is a set of categories (a list column, or text split by ``separator``); ``sequence`` is the user's
        last items, newest first; ``text`` is split into words. These become embeddings, the others numbers: a
        ``vector`` is a list of ``dim`` numbers (a pretrained embedding), ``tfidf`` the words of a text as weights,
        ``gaps`` the time since each event of a sequence, ``target`` what is known of a category's outcomes.
    source : str, optional
        The raw column. None: the one of the feature's name.
    dim : int
        Width of the embedding, of a ``vector``, or of a ``tfidf`` (into so many columns its words are hashed).
    min_count : int
        Categories seen less often in the fitted data count as unseen.
    oov_rows : int
        Unseen categories are hashed into so many rows of their own.
    hash_rows : int, optional
        Hash the values into so many rows instead of keeping a vocabulary.
    hashes : int
        A ``categorical`` with ``hash_rows``: so many independent hashes, whose embeddings are added (Svenstrup et al.,
        2017), so that two values rarely share all of them.
    cross : tuple of str
        A ``categorical`` that is made of the values of these raw columns together; null where any of them is.
    buckets : int, optional
        A ``categorical`` that is made of a number: which of so many fitted quantiles it lies in.
    length : int
        Values kept of a ``multi``, ``sequence`` or ``text`` feature.
    keep : {"first", "last"}
        Which values are kept of a longer one, in their order.
    separator : str
        Splits a ``multi`` feature that is given as text.
    pooling : {"mean", "sum", "max"}
        How the embeddings of a ``multi``, ``sequence`` or ``text`` feature become one.
    scaling : {"none", "standard", "minmax", "robust", "log1p", "quantile", "normal"}
        Of a ``numeric`` feature; ``robust`` is by median and interquartile range, ``log1p`` (of the magnitude, keeping
        the sign) is standardised afterwards, ``quantile`` is the place among the fitted values from 0 to 1, ``normal``
        that place on the normal distribution. Values beyond the fitted range are clipped to it by ``minmax``,
        ``quantile`` and ``normal``; one that float32 cannot hold (an infinity included) counts as the end of the range.
    clip : pair of float, optional
        A ``numeric``: quantiles of the fitted values, such as 0.01 and 0.99, that values are clipped to before they are
        scaled. (0, 1) is the fitted range.
    indicator : bool
        A ``numeric``: a second number, 1 where it is null, else 0.
    nulls : {"fill", "error"}
        A null numeric becomes the fitted mean (``fill``) or raises (``error``); a null category has a row of its own,
        or raises.
    unseen : {"row", "error"}
        A category that the vocabulary does not have: a row of unseen ones, or it raises.
    out_of_range : {"keep", "clip", "null", "error"}
        A ``numeric`` beyond the fitted extremes: kept (but for what ``scaling`` and ``clip`` do), clipped to them,
        taken for null, or it raises.
    of : str, optional
        A ``sequence``: the categorical item feature whose values it holds; it shares that vocabulary and table.
        ``gaps``: the sequence whose events they belong to. A ``target``: the categorical feature that is encoded.
        A ``numeric`` with an ``event``: the categorical feature of the same entity whose past is counted (the author of
        a video, say). None: the entity's own key.
    event : str, optional
        Built from the log instead of a given column. A ``sequence``: the task whose positives are the user's history.
        A ``numeric``: the task whose past outcomes are counted. Both see strictly earlier events only. A ``target``:
        the task whose labels are averaged.
    statistic : {"log_odds", "rate", "count"}
        What a ``numeric`` with an ``event`` tells: the smoothed past rate of the task (for a regression its mean), the
        logarithm of that rate's odds, or the number of past events.
    window : float, optional
        Hours: a ``numeric`` with an ``event`` counts only events that are at most so old.
    derive : str, optional
        Taken from the schema's timestamp. A ``categorical`` context feature: "hour", "weekday" (0 is Monday) or
        "hour_of_week". A ``numeric`` context feature: "hour_cycle", "weekday_cycle" or "year_cycle", two numbers, the
        sine and cosine of the place in the day, week or year. A ``numeric`` of any entity: "recency", the seconds since
        the time in the column ``source``. None: a given column.
    ngrams : int
        A ``text`` or ``tfidf``: runs of up to so many words are kept beside the words.
    encoding : {"target", "count", "rate"}
        What a ``target`` tells of a category: the smoothed mean of the task ``event``, the logarithm of 1 + how often
        it occurs, or its share of all rows.
    folds : int
        A ``target``: training samples are dealt into so many folds, and each is told what the others say.
    strength : float
        A ``target``: how many samples of the overall mean smooth that of a category.
    lookup : bool
        A ``sequence`` that is given as keys of items: the values of the feature ``of`` are looked up in the catalogue
        (as it was when the pipeline was fitted).
    """

    name: str
    entity: Entity
    kind: FeatureKind
    source: str | None = None
    dim: _Positive = 16
    min_count: _Positive = 1
    oov_rows: _Rows = 1
    hash_rows: _Rows | None = None
    hashes: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    cross: tuple[str, ...] = ()
    buckets: Annotated[int, msgspec.Meta(ge=2)] | None = None
    length: _Positive = 20
    keep: Literal["first", "last"] = "first"
    separator: str = ","
    pooling: Pooling = "mean"
    scaling: Scaling = "standard"
    clip: tuple[float, float] | None = None
    indicator: bool = False
    nulls: Literal["fill", "error"] = "fill"
    unseen: Literal["row", "error"] = "row"
    out_of_range: OutOfRange = "keep"
    of: str | None = None
    event: str | None = None
    statistic: Statistic = "log_odds"
    window: Annotated[float, msgspec.Meta(gt=0)] | None = None
    derive: Derivation | None = None
    ngrams: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    encoding: Encoding = "target"
    folds: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 5
    strength: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    lookup: bool = False

    @property
    def from_log(self) -> bool:
        """Built from the behaviour log rather than read from a column."""
        return self.event is not None and self.kind != "target"

    @property
    def column(self) -> str:
        """The raw column that holds it."""
        return self.source or self.name

    @property
    def is_dense(self) -> bool:
        """Numbers that the model reads as they are, not ids of embeddings."""
        return self.kind in ("numeric", "vector", "tfidf", "gaps", "target")


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One behaviour to predict.

    Parameters
    ----------
    name : str
        Also the name of the label column in the samples.
    kind : {"binary", "regression"}
        A probability, or a value (rating, log watch time).
    depends_on : str, optional
        The task that must happen first (click before cart before buy). ESMM multiplies along this chain.
    weight : float
        Of the task's loss.
    """

    name: str
    kind: TaskKind = "binary"
    depends_on: str | None = None
    weight: float = 1.0


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Features and tasks of one model, with the columns that hold the user's and the item's key.

    Parameters
    ----------
    user, item : str
        The key columns.
    features : tuple of Feature
    tasks : tuple of Task
    timestamp : str, optional
        The column that says when, in whole ``timestamp_unit`` since 1970-01-01 UTC.
    timestamp_unit : {"s", "ms", "us", "ns"}
    utc_offset_hours : float
        Where a day begins: local time minus UTC.

    Raises
    ------
    SchemaError
        A name stands twice, a reference points nowhere, or the dependences of the tasks form a circle.
    """

    user: str
    item: str
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    timestamp: str | None = None
    timestamp_unit: TimeUnit = "s"
    utc_offset_hours: Annotated[float, msgspec.Meta(ge=-24, le=24)] = 0.0

    def __post_init__(self) -> None:
        _refuse_repeats("feature", [f.name for f in self.features])
        _refuse_repeats("task", [t.name for t in self.tasks])
        if not self.features:
            raise SchemaError("the schema has no feature; name at least one")
        if not self.tasks:
            raise SchemaError("the schema has no task; name at least one")
        for feature in self.features:
            self._check_feature(feature)
        for task in self.tasks:
            self.chain(task.name)

    def _check_feature(self, feature: Feature) -> None:
        def refuse(problem: str) -> NoReturn:
            raise SchemaError(f"feature {feature.name!r}: {problem}")

        if feature.derive is not None:
            kind = "categorical" if feature.derive in _PARTS else "numeric"
            if feature.kind != kind or (feature.entity != "context" and feature.derive != "recency"):
                of = "any entity" if feature.derive == "recency" else "entity 'context'"
                refuse(
                    f"'derive' = {feature.derive!r} belongs to a {kind} of {of}, not a {feature.kind} of "
                    f"{feature.entity!r}"
                )
            if feature.event is not None:
                refuse("it has both 'derive' and 'event'; choose one")
            if feature.derive == "recency" and feature.source is None:
                refuse("'derive' = 'recency' needs the column of the times as 'source'")
        if self.timestamp is None and (feature.derive is not None or feature.kind == "gaps"):
            what = "'gaps'" if feature.derive is None else f"'derive' = {feature.derive!r}"
            refuse(f"{what} needs the schema's 'timestamp' column")
        self._check_categories(feature, refuse)
        self._check_number(feature, refuse)
        if feature.window is not None and (feature.kind, feature.from_log) != ("numeric", True):
            refuse("'window' belongs to a numeric with an 'event'")
        if feature.ngrams > 1 and feature.kind not in ("text", "tfidf"):
            refuse(f"'ngrams' belong to kind 'text' or 'tfidf', not {feature.kind!r}")
        if feature.lookup and (feature.kind != "sequence" or feature.event is not None):
            refuse("'lookup' belongs to a sequence without an 'event', whose values are already those of the catalogue")
        if feature.event is not None and feature.event not in {t.name for t in self.tasks}:
            refuse(f"'event' must name a task (one of {[t.name for t in self.tasks]}), found {feature.event!r}")
        if feature.kind == "sequence":
            if feature.entity != "user":
                refuse(f"a sequence belongs to entity 'user', found {feature.entity!r}")
            self._check_of(feature, "item", optional=False)
            if feature.event is not None and self.task(feature.event).kind != "binary":
                refuse(f"a history holds the positives of a binary task; {feature.event!r} is a regression")
        elif feature.kind == "numeric" and feature.event is not None:
            if feature.entity not in ("user", "item"):
                refuse(f"a past statistic belongs to entity 'user' or 'item', found {feature.entity!r}")
            self._check_of(feature, feature.entity, optional=True)
            if feature.statistic == "log_odds" and self.task(feature.event).kind != "binary":
                refuse(f"log_odds need a binary task; {feature.event!r} is a regression, so choose statistic 'rate'")
        elif feature.kind == "gaps":
            if feature.event is not None:
                refuse("its events are those of the sequence that 'of' names; leave 'event' out")
            if feature.scaling == "log1p":
                refuse("the gaps are logarithms already, so 'log1p' would take one twice; choose 'standard'")
            self._check_of(feature, feature.entity, optional=False, kind="sequence")
        elif feature.kind == "target":
            if (feature.event is None) == (feature.encoding == "target"):
                refuse(f"encoding {feature.encoding!r} {'needs' if feature.event is None else 'reads no'} 'event'")
            if feature.scaling not in ("none", "standard"):
                refuse(f"its scaling must be 'none' or 'standard', found {feature.scaling!r}")
            self._check_of(feature, feature.entity, optional=False)
        elif feature.of is not None or feature.event is not None:
            refuse(
                "'of' and 'event' belong to kind 'sequence', 'gaps', 'target' or a 'numeric' with an event, not "
                f"{feature.kind!r}"
            )
        if feature.from_log and self.timestamp is None:
            refuse("an 'event' needs the schema's 'timestamp' column, which orders the log")

    def _check_categories(self, feature: Feature, refuse: Callable[[str], NoReturn]) -> None:
        made = [name for name in ("cross", "buckets", "derive") if getattr(feature, name)]
        if feature.kind == "categorical" and len(made) > 1:
            refuse(f"it has both {made[0]!r} and {made[1]!r}; choose one")
        for name in ("cross", "buckets"):
            if getattr(feature, name) and feature.kind != "categorical":
                refuse(f"{name!r} belongs to kind 'categorical', not {feature.kind!r}")
        if feature.cross and (len(set(feature.cross)) < 2 or len(set(feature.cross)) != len(feature.cross)):
            refuse(f"'cross' needs at least two different columns, found {list(feature.cross)}")
        if feature.cross and feature.source is not None:
            refuse("'cross' names its columns, so it has no 'source'")
        if feature.buckets and (feature.hash_rows is not None or feature.oov_rows > 1):
            refuse("'buckets' are numbered by their place, so they have neither 'hash_rows' nor 'oov_rows'")
        if feature.hashes > 1 and (feature.kind != "categorical" or feature.hash_rows is None):
            refuse("'hashes' belong to a categorical with 'hash_rows'")
        vocabulary = feature.kind in ("categorical", "multi", "text") and feature.hash_rows is None
        if not vocabulary and (feature.oov_rows > 1 or feature.unseen != "row"):
            name = "oov_rows" if feature.oov_rows > 1 else "unseen"
            refuse(f"{name!r} belongs to a categorical, multi or text with a vocabulary")
        if feature.nulls == "error" and feature.kind in ("multi", "sequence", "text"):
            refuse(f"a {feature.kind} leaves nulls out; 'nulls' = 'error' belongs to other kinds")
        if feature.keep != "first" and (feature.kind not in ("multi", "sequence", "text") or feature.event is not None):
            refuse("'keep' belongs to a multi, text, or sequence that is given; a history keeps the last events")

    def _check_number(self, feature: Feature, refuse: Callable[[str], NoReturn]) -> None:
        plain = feature.kind == "numeric" and feature.derive in (None, "recency")
        for name in ("clip", "indicator"):
            if getattr(feature, name) and not plain:
                refuse(f"{name!r} belongs to a numeric, not a {feature.derive or feature.kind}")
        if feature.out_of_range != "keep" and not plain:
            refuse(f"'out_of_range' belongs to a numeric, not a {feature.derive or feature.kind}")
        if feature.clip is not None and not 0 <= feature.clip[0] < feature.clip[1] <= 1:
            refuse(f"'clip' must be two quantiles, ascending, from 0 to 1; found {list(feature.clip)}")

    def _check_of(
        self, feature: Feature, entity: str, *, optional: bool, kind: Literal["categorical", "sequence"] = "categorical"
    ) -> None:
        if optional and feature.of is None:
            return
        choices = sorted(
            f.name
            for f in self.features
            if f.entity == entity and f.kind == kind and not (f.cross or f.buckets or f.hashes > 1)
        )
        if feature.of not in choices:
            raise SchemaError(
                f"feature {feature.name!r}: 'of' must name a {kind} {entity} feature (one of {choices}), "
                f"found {feature.of!r}"
            )

    def feature(self, name: str) -> Feature:
        """The feature of that name; SchemaError if there is none."""
        return _named("feature", name, self.features)

    def task(self, name: str) -> Task:
        """The task of that name; SchemaError if there is none."""
        return _named("task", name, self.tasks)

    def is_from_log(self, feature: Feature) -> bool:
        """Whether the log makes the feature, the gaps of a history from the log included."""
        return feature.from_log or (feature.kind == "gaps" and self.feature(str(feature.of)).from_log)

    def columns_of(self, feature: Feature) -> tuple[str, ...]:
        """The raw columns that a feature is made of, beside the schema's timestamp; none if that alone is it."""
        if feature.cross:
            return feature.cross
        if feature.kind == "target":
            return (self.feature(str(feature.of)).column,)
        return () if feature.derive not in (None, "recency") else (feature.column,)

    def reads_clock(self, feature: Feature) -> bool:
        """Whether a feature is made of the schema's timestamp, perhaps with another column."""
        return feature.derive is not None or feature.kind == "gaps"

    def of_entity(self, *entities: Entity) -> tuple[Feature, ...]:
        """The features of these entities, in schema order."""
        return tuple(f for f in self.features if f.entity in entities)

    def chain(self, task: str) -> tuple[Task, ...]:
        """The task and all it depends on, first cause first (click, cart, buy)."""
        chain: list[Task] = []
        name: str | None = task
        while name is not None:
            found = self.task(name)
            if found in chain:
                raise SchemaError(f"task {task!r} depends on itself: {' <- '.join(t.name for t in chain)} <- {name}")
            chain.append(found)
            name = found.depends_on
        return tuple(reversed(chain))

    def to_json(self) -> bytes:
        """UTF-8 JSON text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @classmethod
    def from_json(cls, text: bytes | str) -> Schema:
        """Read what :meth:`to_json` wrote; SchemaError names the place of whatever does not fit."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise SchemaError(f"schema: {error}") from error


_Named = TypeVar("_Named", Feature, Task)


def _named(what: str, name: str, among: tuple[_Named, ...]) -> _Named:
    for each in among:
        if each.name == name:
            return each
    raise SchemaError(f"no {what} is named {name!r}; there are {[each.name for each in among]}")


def _refuse_repeats(what: str, names: list[str]) -> None:
    for repeated in _repeats(names):
        raise SchemaError(f"{what} {repeated!r} stands twice in the schema")


def _repeats(names: list[str]) -> Iterator[str]:
    return (name for i, name in enumerate(names) if name in names[:i])
