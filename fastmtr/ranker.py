"""The facade that services call: load a bundle, then score, rank and recommend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr import _native
from fastmtr.bundle import Bundle, open_bundle
from fastmtr.engine import Call, Engine
from fastmtr.errors import ConfigError, SchemaError
from fastmtr.graph import Packed
from fastmtr.items import KnownItems, LiveItems
from fastmtr.keys import UnknownItems
from fastmtr.precision import SAFETY, ErrorWidth, Precision
from fastmtr.profile import Profile
from fastmtr.requests import RequestPacker, Requests, candidate_inputs, is_many, item_lists
from fastmtr.results import Ranking, Scores, User
from fastmtr.retrieval import RetrievalConfig, Retriever

if TYPE_CHECKING:
    from fastmtr.features.quality import FeatureCheck, Limits
    from fastmtr.training.samples import Samples

__all__ = ["Ranker", "Ranking", "Scores", "User", "Users"]

Users: TypeAlias = list[Any] | tuple[Any, ...] | NDArray[Any]
Items: TypeAlias = ArrayLike | Sequence[ArrayLike] | None

_NO_ROWS = np.empty(0, np.int64)
_CALIBRATION_USERS, _CALIBRATION_ITEMS = 32, 512


class Ranker:
    """Scores, ranks and recommends from one bundle. Make it with :meth:`load`.

    A ranker may be shared by threads: the model is immutable, and each thread has a session of its own.

    What happens when something is not there:

    * An unknown user is scored as an unseen one without a history; the result says ``known_user=False``.
    * An unknown item is a SchemaError that lists it, or with ``unknown_items="skip"`` has NaN scores and is not ranked.
    * Fewer than ``k`` candidates give a shorter result; no candidates an empty one.

    Attributes
    ----------
    bundle : Bundle
    tasks : tuple of str
        The order of a result's ``values``.
    """

    def __init__(
        self, bundle: Bundle, model: _native.Model, *, threads: int = 1, retrieval: RetrievalConfig | None = None
    ) -> None:
        self.bundle = bundle
        self.schema = bundle.schema
        self.threads = threads
        self._model = model
        described = msgspec.json.decode(model.describe())
        self.tasks: tuple[str, ...] = tuple(described["tasks"])
        self._description: dict[str, Any] = described
        self._fused_tasks: list[str] = list(bundle.plan["fusion"]["tasks"])
        self._lock = threading.Lock()
        self._error_width: ErrorWidth | None = None
        self._items = LiveItems(
            bundle, model, retrieval=_stored_retrieval(bundle) if retrieval is None else retrieval, threads=threads
        )
        self._packer = RequestPacker(bundle)
        self._engine = Engine(model, self._packer, tasks=self.tasks, fused_tasks=self._fused_tasks, threads=threads)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int = 1,
        isa: str | None = None,
        precision: Precision = "fp32",
        verify: bool | None = None,
        retrieval: RetrievalConfig | None = None,
    ) -> Ranker:
        """Open a bundle and load it into the engine.

        Parameters
        ----------
        path : str or Path
            The bundle's directory.
        device : {"cpu", "cuda", "auto"}
            ``"cuda"``: an NVIDIA GPU, for which fastmtr must have been built (see the README); ``"auto"``: the GPU
            where there is one to use, else the CPU.
        threads : int
            That one call may use. A service that runs many requests at once wants 1.
        isa : str, optional
            An instruction set in place of the best this CPU has.
        precision : {"fp32", "fp16", "int8", "tf32", "bf16"}
            ``"fp16"`` stores the weights of all products in half precision (11 bits of each number remain), which is
            half the memory, and quicker where one row waits for many weights. ``"int8"`` rounds weights (once, for each
            output) and activations (for each candidate, as they come) to 8 bits in the layers where that is quicker.
            With either, scores are no longer those of the trained model, but near. A GPU has no ``"int8"``; its
            ``"tf32"``, ``"fp16"`` and ``"bf16"`` compute the products of candidates with tensor cores, from factors of
            11, 11 and 8 bits with sums in fp32.
        verify : bool, optional
            Check all checksums; None does so for bundles below 256 MB.
        retrieval : RetrievalConfig, optional
            In place of the bundle's.

        Raises
        ------
        BundleError
            The bundle is missing, damaged, or of another version.
        BackendError
            The device or instruction set is not available, or does not have that precision.
        """
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, found {threads}")
        if precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, found {precision!r}")
        bundle = open_bundle(path, verify=verify)
        model = _native.Model(str(bundle.path), isa=isa, precision=precision, device=device)
        return cls(bundle, model, threads=threads, retrieval=retrieval)

    def __repr__(self) -> str:
        by = self.isa if self.device == "cpu" else self.device
        return f"Ranker({str(self.bundle.path)!r}, {self.n_items} items, tasks {', '.join(self.tasks)}, {by})"

    # ---- what a user debugs with -------------------------------------------------------------------------------------

    @property
    def n_items(self) -> int:
        """Items of the catalogue."""
        return self._model.n_items

    @property
    def device(self) -> str:
        """What computes: ``"cpu"`` or ``"cuda"``."""
        return str(self._description["device"]["name"])

    @property
    def isa(self) -> str:
        """The instruction set that the engine uses; on a GPU, for what is computed of items when they come."""
        return str(self._description["isa"])

    @property
    def precision(self) -> str:
        """As it was loaded: the form of all weights (fp16), or what the products of candidates are computed in."""
        return str(self._description["precision"])

    @property
    def memory_usage(self) -> dict[str, int]:
        """Bytes, by what they hold, as the engine tells."""
        return dict(msgspec.json.decode(self._model.describe())["memory"])

    @property
    def items(self) -> NDArray[Any]:
        """The catalogue's keys in row order, int64 (or str)."""
        return self._items.current.keys.all

    @property
    def users(self) -> NDArray[Any]:
        """The known users' keys, int64 (or str)."""
        users = self._packer.users
        return _NO_ROWS if users is None else users.all

    def label(self, item: int | str) -> str:
        """How an item is shown: its label, or its key where the bundle has no labels."""
        return self._items.current.label(item)

    # ---- scoring -----------------------------------------------------------------------------------------------------

    @overload
    def score(
        self,
        user: User,
        items: Items,
        *,
        context: Mapping[str, Any] | None = ...,
        candidates: Mapping[str, ArrayLike] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        unknown_items: UnknownItems = ...,
    ) -> Scores: ...

    @overload
    def score(
        self,
        user: Users,
        items: Items,
        *,
        context: Mapping[str, Any] | None = ...,
        candidates: Mapping[str, ArrayLike] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        unknown_items: UnknownItems = ...,
    ) -> list[Scores]: ...

    def score(
        self,
        user: User | Users,
        items: Items,
        *,
        context: Mapping[str, Any] | None = None,
        candidates: Mapping[str, ArrayLike] | None = None,
        fusion_weights: Mapping[str, float] | None = None,
        unknown_items: UnknownItems = "error",
    ) -> Scores | list[Scores]:
        """Score candidates for all tasks.

        Parameters
        ----------
        user : key, mapping of raw features, or a list of these
            A list is many requests in one call. :class:`~fastmtr.graph.Packed` request inputs are many requests, too.
        items : array of keys, or None
            None: the whole catalogue. For many users one array serves all, a list of arrays has one for each.
        context : mapping, optional
            Raw context features, of all requests of this call; null where not given.
        candidates : mapping of feature to array, optional
            Raw values of the schema's ``candidate`` features, one for each candidate of all requests in order.
        fusion_weights : mapping of task to float, optional
            In place of the bundle's, in this call; a task that is not named gets 0.
        unknown_items : {"error", "skip"}

        Returns
        -------
        Scores, or a list of Scores for a list of users

        Raises
        ------
        SchemaError
            An unknown item, a feature of the wrong kind, or candidate features that do not fit.
        """
        requests = self._packer.pack(user, context)

        def score(known: KnownItems) -> list[Scores]:
            return self._engine.score(
                Call.of_items(
                    known,
                    requests,
                    items,
                    candidates=candidates,
                    fusion_weights=fusion_weights,
                    unknown_items=unknown_items,
                )
            )

        found = self._items.of_one_version(score)
        return found if is_many(user) else found[0]

    @overload
    def rank(
        self,
        user: User,
        items: Items,
        *,
        k: int,
        context: Mapping[str, Any] | None = ...,
        candidates: Mapping[str, ArrayLike] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        unknown_items: UnknownItems = ...,
        certified: bool = ...,
    ) -> Ranking: ...

    @overload
    def rank(
        self,
        user: Users,
        items: Items,
        *,
        k: int,
        context: Mapping[str, Any] | None = ...,
        candidates: Mapping[str, ArrayLike] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        unknown_items: UnknownItems = ...,
        certified: bool = ...,
    ) -> list[Ranking]: ...

    def rank(
        self,
        user: User | Users,
        items: Items,
        *,
        k: int,
        context: Mapping[str, Any] | None = None,
        candidates: Mapping[str, ArrayLike] | None = None,
        fusion_weights: Mapping[str, float] | None = None,
        unknown_items: UnknownItems = "error",
        certified: bool = False,
    ) -> Ranking | list[Ranking]:
        """The k candidates with the highest fused scores, best first; ties by position.

        Parameters
        ----------
        user, items, context, candidates, fusion_weights, unknown_items
            As in :meth:`score`.
        k : int
        certified : bool
            Give the list and the scores of fp32 at precision int8: candidates near the end of the list are scored
            again in fp32. Other precisions keep no fp32 weights to do so with: a BackendError or ValueError.
            :mod:`fastmtr.precision` says what this takes for granted; the errors it needs are measured by
            :meth:`calibrate`, at the first call at the latest. A result's ``rescored`` counts those candidates.

        Returns
        -------
        Ranking, or a list of Ranking for a list of users
            Shorter than k where there are fewer candidates.

        Raises
        ------
        ConfigError
            ``certified`` without a calibration, from a bundle that has no users to calibrate with.
        """
        _check_k(k)
        requests = self._packer.pack(user, context)

        def rank(known: KnownItems) -> list[Ranking]:
            call = Call.of_items(
                known,
                requests,
                items,
                candidates=candidates,
                fusion_weights=fusion_weights,
                unknown_items=unknown_items,
            )
            return self._engine.rank(call, k=k, errors=self._errors() if certified else None)

        found = self._items.of_one_version(rank)
        return found if is_many(user) else found[0]

    @overload
    def recommend(
        self,
        user: User,
        *,
        k: int,
        retrieve: int | None = ...,
        exclude: Literal["seen"] | ArrayLike | None = ...,
        context: Mapping[str, Any] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        certified: bool = ...,
        timings: dict[str, float] | None = ...,
    ) -> Ranking: ...

    @overload
    def recommend(
        self,
        user: Users,
        *,
        k: int,
        retrieve: int | None = ...,
        exclude: Literal["seen"] | ArrayLike | None = ...,
        context: Mapping[str, Any] | None = ...,
        fusion_weights: Mapping[str, float] | None = ...,
        certified: bool = ...,
        timings: dict[str, float] | None = ...,
    ) -> list[Ranking]: ...

    def recommend(
        self,
        user: User | Users,
        *,
        k: int,
        retrieve: int | None = 500,
        exclude: Literal["seen"] | ArrayLike | None = None,
        context: Mapping[str, Any] | None = None,
        fusion_weights: Mapping[str, float] | None = None,
        certified: bool = False,
        timings: dict[str, float] | None = None,
    ) -> Ranking | list[Ranking]:
        """Retrieve candidates from the catalogue, then rank them.

        Parameters
        ----------
        user : key, mapping of raw features, or a list of these
        k : int
        retrieve : int or None
            Candidates that retrieval hands to ranking. None: no retrieval, the whole catalogue is ranked.
        exclude : "seen" or array of keys, optional
            Items not to recommend: those that the user had in training, or these (for many users one array for all, or
            a list of arrays); keys that the catalogue does not have are passed over.
        context, fusion_weights
            As in :meth:`score`.
        certified
            As in :meth:`rank`, among the retrieved candidates.
        timings : dict, optional
            Receives the seconds of the stages: ``features``, ``retrieval`` and ``ranking``.

        Returns
        -------
        Ranking, or a list of Ranking for a list of users

        Raises
        ------
        SchemaError
            The model has no retrieval head, or needs candidate features: give those to :meth:`rank`.
        """
        _check_k(k)
        if retrieve is not None and retrieve < 1:
            raise ConfigError(f"retrieve must be at least 1, or None to rank the whole catalogue, found {retrieve}")
        began = perf_counter()
        requests = self._packer.pack(user, context)
        packed = perf_counter()

        def recommend(known: KnownItems) -> list[Ranking]:
            errors = self._errors() if certified else None
            start = perf_counter()
            excluded = self._excluded(known, exclude, requests)
            rank = None
            if self.device != "cpu" and retrieve is not None and not certified:
                rank = self._retrieve_on_device(known, requests, excluded, fusion_weights, k=k, retrieve=retrieve)
            if rank is None:
                rows = self._retrieve(known, requests.packed, retrieve, excluded)
                call = Call.of_rows(known, requests, rows, fusion_weights=fusion_weights)
                rank = partial(self._engine.rank, call, k=k, errors=errors)
            retrieved = perf_counter()
            found = rank()
            if timings is not None:
                timings["features"], timings["retrieval"] = packed - began, retrieved - start
                timings["ranking"] = perf_counter() - retrieved
            return found

        found = self._items.of_one_version(recommend)
        return found if is_many(user) else found[0]

    def feature_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """What the features of raw values were like since the bundle was loaded.

        Returns
        -------
        dict of domain to dict of feature to dict
            ``rows``, ``nulls``, ``values`` (of lists and texts each element), ``unseen`` ones of categories, and scaled
            numbers ``beyond`` the fitted range. A row over a stored one counts for what it names.
        """
        return self._packer.feature_counts()

    def check_features(self, *, limits: Limits | None = None) -> FeatureCheck:
        """:meth:`feature_counts` against the rows that the features were fitted on.

        As :meth:`fastmtr.features.FeaturePipeline.check`, without the distributions, which are not counted.
        """
        return self._packer.check_features(limits)

    def profile(
        self,
        user: User | Users,
        items: Items,
        *,
        k: int = 0,
        repeats: int = 20,
        context: Mapping[str, Any] | None = None,
        candidates: Mapping[str, ArrayLike] | None = None,
    ) -> Profile:
        """Where the engine's time of :meth:`rank`, or with ``k=0`` of :meth:`score`, goes, step by step.

        Other calls read no clock and pay nothing for this.

        Parameters
        ----------
        user, items, context, candidates
            As in :meth:`score`.
        k : int
        repeats : int
            The call runs once untimed and then so often.
        """
        requests = self._packer.pack(user, context)

        def profile(known: KnownItems) -> str:
            call = Call.of_items(known, requests, items, candidates=candidates)
            found: str = self._engine.run(self._engine.session.profile, call, k=k, repeats=repeats)
            return found

        return Profile.from_json(self._items.of_one_version(profile), explanation=self.bundle.explain())

    def predict(self, samples: Samples, *, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of evaluation samples, each a request with one candidate.

        Parameters
        ----------
        samples : Samples
            Packed by this bundle's feature pipeline.
        items : array of int64
            The key of each catalogue row that ``samples.item_rows`` counts.

        Returns
        -------
        array of float32, shape (samples, tasks)
            Tasks in the order of the schema.
        """
        if samples.item_dense is not None:
            raise SchemaError("these samples have item inputs of their own time, which differ from the catalogue's")
        n = len(samples.item_rows)
        offsets = np.arange(n + 1, dtype=np.uint64)
        values, _ = self._engine.session.score(
            np.ascontiguousarray(samples.request.ids),
            np.ascontiguousarray(samples.request.dense),
            offsets,
            np.ascontiguousarray(items[samples.item_rows]),
            **candidate_inputs(samples.candidate),
        )
        return values[:, [self.tasks.index(task.name) for task in self.schema.tasks]]

    # ---- changes of the catalogue ------------------------------------------------------------------------------------

    def upsert(self, items: Any, *, labels: Sequence[str] | None = None) -> None:
        """Add items to the catalogue, and replace those whose keys are there, while other threads go on.

        Only what depends on these items is computed. A call that runs meanwhile sees the items as they were before or
        after, never some of each; so do the retrieval index, labels, and what users have seen. A replaced item keeps
        its row, new ones come last. The bundle on disk stays as it is.

        Parameters
        ----------
        items : table, list of mappings, or Catalogue
            Raw features with the schema's key column; a feature that comes from the log (past rates) may be left out
            and then counts as null. A :class:`~fastmtr.bundle.Catalogue` is packed already.
        labels : sequence of str, optional
            How the items are shown; None: replaced ones as before, new ones by their key.

        Raises
        ------
        SchemaError
            A key stands twice or is of the wrong kind, a feature is missing or of the wrong kind. Nothing has changed.
        """
        self._items.upsert(self._packer.items(items), labels=labels)

    def delete(self, items: ArrayLike, *, unknown_items: UnknownItems = "error") -> int:
        """Take items out of the catalogue while other threads go on; those after them move up.

        Parameters
        ----------
        items : array of keys
        unknown_items : {"error", "skip"}
            What a key does that the catalogue does not have.

        Returns
        -------
        int
            How many were taken out.
        """
        return self._items.delete(items, unknown_items=unknown_items)

    # ---- certified ranking -------------------------------------------------------------------------------------------

    def calibrate(
        self,
        user: Users | None = None,
        items: Items = None,
        *,
        context: Mapping[str, Any] | None = None,
        candidates: Mapping[str, ArrayLike] | None = None,
        safety: float = SAFETY,
    ) -> ErrorWidth:
        """Measure how far scores of this precision are from fp32; ``certified`` ranking then relies on it.

        Best done once after loading, with requests and candidates like those that will come.

        Parameters
        ----------
        user : list of users, optional
            As in :meth:`score`; None: some of the bundle's users.
        items, context, candidates
            As in :meth:`score`; ``items=None`` takes a random part of the catalogue.
        safety : float
            What the largest error is multiplied with, at least 1.

        Raises
        ------
        ConfigError
            There are no users to measure with, or the safety is below 1.
        """
        if not safety >= 1:
            raise ConfigError(f"safety must be at least 1, found {safety}")
        if user is None:
            n = len(self.users)
            user = self.users[np.linspace(0, n - 1, _CALIBRATION_USERS, dtype=int)] if n else []
        requests = self._packer.pack(user, context)
        if not requests.users:
            raise ConfigError(
                "certified ranking relies on measured errors, and this bundle has no users to measure them with: call "
                "calibrate(users, items) with some requests first"
            )

        def measure(known: KnownItems) -> ErrorWidth:
            chosen = items
            if items is None:
                chosen = known.keys.all[np.random.default_rng(0).permutation(len(known))[:_CALIBRATION_ITEMS]]
            call = Call.of_items(known, requests, chosen, candidates=candidates, pinned=items is None)
            engine = self._engine
            return ErrorWidth.measure(
                lambda weights: engine.run(engine.session.precision_errors, replace(call, fusion_weights=weights)),
                tasks=self._fused_tasks,
                safety=safety,
            )

        self._error_width = self._items.of_one_version(measure)
        return self._error_width

    def _errors(self) -> ErrorWidth:
        with self._lock:
            if self._error_width is None and self.precision == "fp32":
                self._error_width = ErrorWidth(0.0, dict.fromkeys(self._fused_tasks, 0.0), 0)
            return self._error_width if self._error_width is not None else self.calibrate()

    # ---- retrieval ---------------------------------------------------------------------------------------------------

    @property
    def retriever(self) -> Retriever:
        """The index over the catalogue's item vectors; made at the first use.

        Raises
        ------
        SchemaError
            The model has no retrieval head.
        """
        self._need_head()
        return self._items.of_one_version(self._items.retriever)

    @property
    def item_vectors(self) -> NDArray[np.float32]:
        """The retrieval head's vectors of the catalogue in row order, shape (items, dim)."""
        self._need_head()
        return self._model.item_output("item_vector")

    def user_vectors(self, user: User | Users, *, context: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """The retrieval head's vectors of one or many users, shape (users, dim)."""
        self._need_head()
        return self._engine.user_vectors(self._packer.pack(user, context).packed)

    @property
    def has_retrieval(self) -> bool:
        """The model has a retrieval head, which :meth:`recommend` needs (unless ``retrieve=None``)."""
        return {"user_vector", "item_vector"} <= {each["name"] for each in self.bundle.plan["outputs"]}

    def _need_head(self) -> None:
        if not self.has_retrieval:
            raise SchemaError(
                "the model of this bundle has no retrieval head; rank the whole catalogue (retrieve=None, or --all), "
                "or train it with [model.two_tower]"
            )

    def _retrieve(
        self, known: KnownItems, packed: Packed, retrieve: int | None, excluded: list[NDArray[np.int64]]
    ) -> list[NDArray[np.int64]]:
        """Catalogue rows for each request."""
        if retrieve is None:
            every = np.arange(len(known))
            return [np.setdiff1d(every, rows, assume_unique=False) if len(rows) else every for rows in excluded]
        self._need_head()
        found, _ = self._items.retriever(known).search(self._engine.user_vectors(packed), k=retrieve, exclude=excluded)
        return [rows[rows >= 0] for rows in found]

    def _retrieve_on_device(
        self,
        known: KnownItems,
        requests: Requests,
        excluded: list[NDArray[np.int64]],
        fusion_weights: Mapping[str, float] | None,
        *,
        k: int,
        retrieve: int,
    ) -> Callable[[], list[Ranking]] | None:
        """What ranks the candidates that were found: vectors, search, scores and lists stay in the device's memory.

        None where this device has no such search; the CPU then retrieves.
        """
        self._need_head()
        search = self._items.search_on(self.device, known)
        retrieve = min(retrieve, len(known))
        spare = max((len(rows) for rows in excluded), default=0)
        if isinstance(search, str) or not len(known) or not search.reaches(min(retrieve + spare, len(known))):
            return None
        vectors = self._engine.session.request_output_on_device("user_vector", *requests.packed)
        rows = search.search(vectors, k=retrieve, exclude=excluded)
        offsets = np.arange(len(requests.users) + 1, dtype=np.uint64) * np.uint64(retrieve)
        call = Call(known, requests, None, offsets, lambda _: known.keys.all, fusion_weights=fusion_weights)
        return partial(self._engine.rank_on_device, call, rows, k=k)

    def _excluded(self, known: KnownItems, exclude: Any, requests: Requests) -> list[NDArray[np.int64]]:
        if exclude is None:
            return [_NO_ROWS] * len(requests.users)
        if isinstance(exclude, str):
            if exclude != "seen":
                raise ConfigError(f"exclude must be 'seen', an array of item keys, or None, found {exclude!r}")
            if self.bundle.seen is None:
                raise SchemaError("this bundle does not know what its users have seen; pass the items' keys as exclude")
            return [_NO_ROWS if user < 0 else known.rows_seen(user) for user in requests.rows]
        found = [known.keys.rows(each) for each in item_lists(exclude, len(requests.users))]
        return [rows[rows >= 0] for rows in found]


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, found {k}")


def _stored_retrieval(bundle: Bundle) -> RetrievalConfig:
    stored = bundle.metadata.get("retrieval")
    return RetrievalConfig() if stored is None else msgspec.convert(stored, RetrievalConfig)
