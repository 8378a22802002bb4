"""What a ranker asks of the native engine: calls over one version of the items, and their answers as results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr import _native
from fastmtr.errors import SchemaError
from fastmtr.fusion import fusion_weights as weights_of
from fastmtr.graph import Packed
from fastmtr.items import KnownItems
from fastmtr.keys import UnknownItems, unknown_items_error
from fastmtr.precision import ErrorWidth
from fastmtr.requests import RequestPacker, Requests, candidate_inputs, joined
from fastmtr.results import Ranking, Scores

__all__ = ["Call", "Engine"]


@dataclass(frozen=True, slots=True)
class Call:
    """Requests with their candidates.

    Attributes
    ----------
    known : KnownItems
    requests : Requests
    keys : array of int64, or None
        The engine's keys of all candidates, request after request; None: each request has the whole catalogue.
    offsets : array of uint64, shape (requests + 1,)
        Where each request's candidates begin.
    items_of : callable
        The candidates of a request as the caller knows them.
    candidates, fusion_weights, unknown_items
        As in :meth:`fastmtr.Ranker.score`.
    pinned : bool
        The keys are those of this version: with later items the engine raises a StaleError. So it does for the whole
        catalogue.
    """

    known: KnownItems
    requests: Requests
    keys: NDArray[np.int64] | None
    offsets: NDArray[np.uint64]
    items_of: Callable[[int], NDArray[Any]]
    candidates: Mapping[str, ArrayLike] | None = None
    fusion_weights: Mapping[str, float] | None = None
    unknown_items: UnknownItems = "error"
    pinned: bool = False

    @classmethod
    def of_items(
        cls,
        known: KnownItems,
        requests: Requests,
        items: Any,
        *,
        candidates: Mapping[str, ArrayLike] | None = None,
        fusion_weights: Mapping[str, float] | None = None,
        unknown_items: UnknownItems = "error",
        pinned: bool = False,
    ) -> Call:
        """With candidates as the caller gives them."""
        chosen = known.candidates(items, len(requests.users), unknown_items)
        return cls(known, requests, *chosen, candidates, fusion_weights, unknown_items, pinned)

    @classmethod
    def of_rows(
        cls,
        known: KnownItems,
        requests: Requests,
        rows: Sequence[NDArray[np.int64]],
        *,
        fusion_weights: Mapping[str, float] | None,
    ) -> Call:
        """With the catalogue's rows of each request."""
        flat, offsets = joined(rows)
        items = known.keys.all
        keys = known.keys.keys[flat]
        return cls(known, requests, keys, offsets, lambda r: items[rows[r]], fusion_weights=fusion_weights, pinned=True)


class Engine:
    """A loaded model, with a session for each thread that asks.

    Parameters
    ----------
    model : Model
    packer : RequestPacker
    tasks, fused_tasks : sequence of str
        The columns of scores, and those that are fused.
    threads : int
        That one call may use.
    """

    def __init__(
        self,
        model: _native.Model,
        packer: RequestPacker,
        *,
        tasks: tuple[str, ...],
        fused_tasks: list[str],
        threads: int,
    ) -> None:
        self._model = model
        self._packer = packer
        self._tasks, self._fused_tasks = tasks, fused_tasks
        self._threads = threads
        self._sessions = threading.local()

    @property
    def session(self) -> _native.Session:
        """This thread's."""
        try:
            session: _native.Session = self._sessions.session
        except AttributeError:
            session = self._sessions.session = _native.Session(self._model, threads=self._threads)
        return session

    def run(self, method: Callable[..., Any], call: Call, **options: float) -> Any:
        """A method of the session that takes requests and candidates."""
        keys = call.keys
        try:
            return method(
                *call.requests.packed,
                call.offsets,
                keys,
                **options,
                **candidate_inputs(self._packer.candidates(call.candidates, n=int(call.offsets[-1]))),
                skip_unknown=call.unknown_items == "skip",
                catalogue_version=call.known.version if call.pinned or keys is None else 0,
                fusion_weights=self._weights(call.fusion_weights),
            )
        except SchemaError as error:
            if call.unknown_items == "skip" or keys is None:
                raise
            unknown = np.unique(keys[call.known.keys.rows_of_keys(keys) < 0])
            if not len(unknown):
                raise
            raise unknown_items_error(unknown.tolist()) from error

    def score(self, call: Call) -> list[Scores]:
        """All candidates of each request."""
        values, fused = self.run(self.session.score, call)
        found = []
        for r, (user, known_user) in enumerate(call.requests):
            own = slice(int(call.offsets[r]), int(call.offsets[r + 1]))
            items = call.items_of(r)
            found.append(Scores(user, known_user, items, fused[own], values[own], self._tasks, call.known.label))
        return found

    def rank(self, call: Call, *, k: int, errors: ErrorWidth | None = None) -> list[Ranking]:
        """The k best of each request; with `errors` the certified ones."""
        if errors is None:
            return self._rankings(call, self.run(self.session.rank, call, k=k))
        *answer, rescored = self.run(
            self.session.rank_certified, call, k=k, width=errors.width(call.fusion_weights), safety=errors.safety
        )
        return self._rankings(call, answer, rescored.tolist())

    def rank_on_device(self, call: Call, rows: Any, *, k: int) -> list[Ranking]:
        """The k best of each request among rows of the catalogue, which lie in the device's memory; no call's keys."""
        _, *answer = self.session.rank_device_items(
            *call.requests.packed,
            call.offsets,
            rows,
            k=k,
            rows=True,
            **candidate_inputs(self._packer.candidates(None, n=int(call.offsets[-1]))),
            fusion_weights=self._weights(call.fusion_weights),
            catalogue_version=call.known.version,
        )
        return self._rankings(call, answer)

    def _rankings(self, call: Call, answer: Sequence[Any], rescored: Sequence[int] | None = None) -> list[Ranking]:
        positions, fused, values, counts = answer
        found = []
        for r, (user, known_user) in enumerate(call.requests):
            n = int(counts[r])
            found.append(
                Ranking(
                    user,
                    known_user,
                    call.items_of(r)[positions[r, :n]],
                    fused[r, :n],
                    values[r, :n],
                    self._tasks,
                    call.known.label,
                    rescored=None if rescored is None else rescored[r],
                )
            )
        return found

    def user_vectors(self, packed: Packed) -> NDArray[np.float32]:
        """The retrieval head's vectors of requests."""
        return self.session.request_output("user_vector", *packed)

    def _weights(self, given: Mapping[str, float] | None) -> NDArray[np.float32] | None:
        return None if given is None else weights_of(given, tasks=self._fused_tasks)
