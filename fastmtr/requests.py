"""Users and raw features on their way to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastmtr.bundle import Bundle
from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Domain, Packed
from fastmtr.keys import Keys
from fastmtr.results import User

__all__ = ["RequestPacker", "Requests", "is_many"]


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
        self._reads_key = any(f.name == bundle.schema.user for f in bundle.schema.features)
        self._candidate_names = [f.name for f in bundle.schema.of_entity("candidate")]
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
        columns = {name: np.asarray(column) for name, column in (given or {}).items()}
        for name in wanted:
            if name not in columns:
                raise SchemaError(f"the model needs the candidate features {wanted}; give {name!r} in candidates=")
            shape = columns[name].shape
            if shape[:1] != (n,):
                raise SchemaError(f"candidates[{name!r}] must have one value for each of {n} candidates, found {shape}")
        pipeline = self._need_pipeline()
        if find_spec("pyarrow") is not None:
            from fastmtr.tables import read_table

            return pipeline.transform("candidate", read_table({name: columns[name] for name in wanted}))
        rows = [pipeline.transform_row("candidate", {name: columns[name][i] for name in columns}) for i in range(n)]
        if not rows:
            return self._empty("candidate")
        return Packed(np.concatenate([row.ids for row in rows]), np.concatenate([row.dense for row in rows]))

    def _empty(self, domain: Domain) -> Packed:
        width = {"ids": 0, "dense": 0}
        for each in self._inputs:
            if each["domain"] == domain:
                width[each["kind"]] += each["width"]
        return Packed(np.empty((0, width["ids"]), np.int32), np.empty((0, width["dense"]), np.float32))

    def _need_pipeline(self) -> FeaturePipeline:
        if self._pipeline is None:
            raise SchemaError(
                "this bundle has no feature pipeline, so it knows only the users that are stored in it; "
                "an unknown user, raw features or a context need one"
            )
        return self._pipeline


def is_many(user: Any) -> bool:
    """A list of users (or of lists of items), not one."""
    return isinstance(user, list | tuple | np.ndarray)
