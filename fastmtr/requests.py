"""Users, candidates and raw features on their way to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.bundle import Bundle, Catalogue
from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.features.quality import FeatureCheck, Limits, check_counts
from fastmtr.graph import Domain, Packed
from fastmtr.keys import Keys
from fastmtr.results import User

__all__ = ["RequestPacker", "Requests", "candidate_inputs", "is_many", "item_lists", "joined"]

# Up to so many rows the engine is done before a table is made.
_FEW_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Requests:
    """Users, packed for the engine.

    Attributes
    ----------
    users : sequence of User
        As they were given.
    known : list of bool
        False for a key that the bundle does not have.
    rows : list of int
        Of the bundle's users, -1 where a user is none of them.
    packed : Packed
        One row a user.
    """

    users: Sequence[User]
    known: list[bool]
    rows: list[int]
    packed: Packed

    def __iter__(self) -> Iterator[tuple[User, bool]]:
        """Each user, and whether it is known."""
        return zip(self.users, self.known, strict=True)


class RequestPacker:
    """Makes request and candidate inputs with what a bundle knows of users and features.

    Attributes
    ----------
    users : Keys or None
        The bundle's users.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.schema = bundle.schema
        self.users: Keys | None = None
        stored = bundle.users
        if stored is not None:
            self.users = Keys(stored.keys, bundle.user_names)
            self._ids = np.ascontiguousarray(stored.packed.ids)
            self._dense = np.ascontiguousarray(stored.packed.dense)
        state = bundle.pipeline_state
        self._pipeline = None if state is None else FeaturePipeline.from_state(bundle.schema, *state)
        if self._pipeline is not None:
            _ = self._pipeline.native  # made now, not with the first request
        self._reads_key = any(f.column == bundle.schema.user for f in bundle.schema.features)
        self._candidate_names = (self._pipeline or FeaturePipeline(bundle.schema)).raw_columns("candidate")
        self._inputs = bundle.plan["inputs"]

    def pack(self, user: Any, context: Mapping[str, Any] | None) -> Requests:
        """One user, a list or array of them, or Packed request inputs, with the context of this call."""
        if not is_many(user):
            row, packed = self._one(user, context)
            return Requests((user,), [row >= 0 or isinstance(user, Mapping)], [row], packed)
        if isinstance(user, Packed):
            n = user.n_rows
            inputs = Packed(np.ascontiguousarray(user.ids, np.int32), np.ascontiguousarray(user.dense, np.float32))
            return Requests(range(n), [True] * n, [-1] * n, inputs)
        users: Sequence[User] = list(user)
        if not users:
            return Requests(users, [], [], self._empty("request"))
        rows, parts = zip(*(self._one(each, context) for each in users), strict=True)
        joined = Packed(np.concatenate([p.ids for p in parts]), np.concatenate([p.dense for p in parts]))
        known = [row >= 0 or isinstance(each, Mapping) for row, each in zip(rows, users, strict=True)]
        return Requests(users, known, list(rows), joined)

    def _one(self, user: Any, context: Mapping[str, Any] | None) -> tuple[int, Packed]:
        """The row in the users' table (-1 if it has none) and the packed inputs."""
        if isinstance(user, Mapping):
            return -1, self._need_pipeline().transform_row("request", {**user, **(context or {})})
        row = -1 if self.users is None else self.users.row(user)
        if row >= 0:
            stored = Packed(self._ids[row : row + 1], self._dense[row : row + 1])
            if not context:
                return row, stored
            return row, self._need_pipeline().transform_row("request", context, base=stored)
        raw = {} if context is None else dict(context)
        if self._reads_key:
            raw[self.schema.user] = user
        return -1, self._need_pipeline().transform_row("request", raw)

    def candidates(self, given: Mapping[str, ArrayLike] | None, *, n: int) -> Packed | None:
        """Inputs of ``n`` candidates from raw candidate features; None if the model has none."""
        wanted = self._candidate_names
        if not wanted:
            if given:
                raise SchemaError(f"the schema has no candidate features, found candidates = {sorted(given)}")
            return None
        columns = {name: _column(column) for name, column in (given or {}).items()}
        for name in wanted:
            if name not in columns:
                raise SchemaError(
                    f"the model needs the candidate features {list(wanted)}; give {name!r} in candidates="
                )
            shape = columns[name].shape
            if shape[:1] != (n,):
                raise SchemaError(f"candidates[{name!r}] must have one value for each of {n} candidates, found {shape}")
        pipeline = self._need_pipeline()
        raw = {name: columns[name] for name in wanted}
        if (n > _FEW_ROWS or any(column.dtype.kind in "mM" for column in raw.values())) and find_spec("pyarrow"):
            from fastmtr.tables import read_table

            return pipeline.transform("candidate", read_table(raw))
        lists = {name: column.tolist() for name, column in raw.items()}
        return Packed(*pipeline.native.encode_columns("candidate", lists, n))

    def items(self, given: Any) -> Catalogue:
        """Items for the catalogue: a table, a list of mappings of raw features, or a Catalogue, which is packed."""
        if isinstance(given, Catalogue):
            ids, dense = np.ascontiguousarray(given.packed.ids), np.ascontiguousarray(given.packed.dense)
            return given._replace(packed=Packed(ids, dense))
        pipeline, key = self._need_pipeline(), self.schema.item
        if isinstance(given, list | tuple):
            wanted = {key, *pipeline.raw_columns("item")}
            for i, row in enumerate(given):
                if not isinstance(row, Mapping):
                    raise SchemaError(f"items[{i}] is a {type(row).__name__}, expected a mapping of raw features")
                if absent := sorted(wanted - row.keys()):
                    raise SchemaError(f"items[{i}] has no {absent[0]!r}; give null where a feature is not known")
            rows = [pipeline.transform_row("item", row) for row in given] or [self._empty("item")]
            packed = Packed(np.concatenate([r.ids for r in rows]), np.concatenate([r.dense for r in rows]))
            return Catalogue(_keys_of([row[key] for row in given]), packed)
        from fastmtr.tables import read_table

        table = read_table(given)
        if key not in table.column_names:
            raise SchemaError(f"the table has no column {key!r} for the items' keys; it has {table.column_names}")
        features = [f for f in pipeline.features("item") if not f.from_log or f.column in table.column_names]
        blocks = pipeline.transform_blocks(features, table)
        packed = pipeline.assemble("item", blocks, n_rows=table.num_rows)
        return Catalogue(_keys_of(table.column(key).to_pylist()), packed)

    def _empty(self, domain: Domain) -> Packed:
        width = {"ids": 0, "dense": 0}
        for each in self._inputs:
            if each["domain"] == domain:
                width[each["kind"]] += each["width"]
        return Packed(np.empty((0, width["ids"]), np.int32), np.empty((0, width["dense"]), np.float32))

    def feature_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """What was counted of raw values so far, by domain and feature."""
        counts = self._need_pipeline().native.counts()
        return msgspec.json.decode(counts, type=dict[str, dict[str, dict[str, int]]])

    def check_features(self, limits: Limits | None) -> FeatureCheck:
        """The same against the rows that the features were fitted on."""
        return check_counts(self._need_pipeline().statistics, self.feature_counts(), limits=limits)

    def _need_pipeline(self) -> FeaturePipeline:
        if self._pipeline is None:
            raise SchemaError(
                "this bundle has no feature pipeline, so it knows only the users and items that are stored in it; "
                "an unknown user, raw features or a context need one"
            )
        return self._pipeline


def _column(given: ArrayLike) -> NDArray[Any]:
    """One value a candidate; lists (vectors, many-valued features) stand in an array of objects."""
    nested = isinstance(given, list | tuple) and any(isinstance(each, list | tuple | np.ndarray) for each in given)
    array = None if nested else np.asarray(given)
    if array is not None and array.ndim < 2:
        return array
    rows = list(given if array is None else array)  # type: ignore[arg-type]
    column = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        column[i] = row
    return column


def is_many(user: Any) -> bool:
    """A list of users (or of lists of items), not one."""
    return isinstance(user, list | tuple | np.ndarray)


def _keys_of(keys: list[Any]) -> NDArray[Any]:
    if None in keys:
        raise SchemaError(f"item {keys.index(None)} of those given has null in place of a key")
    return np.array(keys)


def candidate_inputs(packed: Packed | None) -> dict[str, Any]:
    """The engine's arguments; a matrix without columns is None."""
    names = ("candidate_ids", "candidate_dense")
    if packed is None:
        return dict.fromkeys(names)
    return {n: np.ascontiguousarray(m) if m.shape[1] else None for n, m in zip(names, packed, strict=True)}


def joined(parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The lists of many requests one after the other, and where each begins."""
    offsets = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return (np.concatenate(parts) if parts else np.empty(0, np.int64)), offsets


def item_lists(items: Any, n_users: int) -> list[Any]:
    """One list of items for each user."""
    if not is_many(items):
        items = np.asarray(items)
    if isinstance(items, np.ndarray) and items.ndim == 0:
        raise SchemaError(f"items must be an array of keys, or one array for each user, found {items[()]!r}")
    typed = isinstance(items, np.ndarray) and items.dtype != object
    nested = items.ndim == 2 if typed else any(map(is_many, items))
    if not nested:
        return [items] * n_users
    if len(items) != n_users:
        raise SchemaError(
            f"there are {len(items)} lists of items for {n_users} user(s); give one for each, or one array for all"
        )
    return list(items)
