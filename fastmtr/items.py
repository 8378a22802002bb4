"""The catalogue's items as a ranker's callers know them, keys, labels and retrieval index, and how they change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr import _native
from fastmtr.bundle import Bundle, Catalogue
from fastmtr.errors import SchemaError, StaleError
from fastmtr.keys import Keys, UnknownItems, check_unknown_items, unknown_items_error
from fastmtr.requests import item_lists, joined
from fastmtr.retrieval import RetrievalConfig, Retriever
from fastmtr.retrieval_device import DeviceSearch, device_search

__all__ = ["KnownItems", "LiveItems"]

_Answer = TypeVar("_Answer")


class KnownItems:
    """One version of the catalogue, in row order. A change makes another; but for its index none ever changes.

    Parameters
    ----------
    version : int
        The engine's.
    keys : Keys
    labels : list of str, optional
    next_number : int
        That the next text key gets in the engine; no number is given twice.
    bundle : Bundle

    Attributes
    ----------
    retriever : Retriever or None
        Made when it is first needed.
    on_device : DeviceSearch, str or None
        The same where the model is, or why there is no such search; made when it is first needed.
    """

    def __init__(self, version: int, keys: Keys, labels: list[str] | None, *, next_number: int, bundle: Bundle) -> None:
        self.version = version
        self.keys = keys
        self.labels = labels
        self.retriever: Retriever | None = None
        self.on_device: DeviceSearch | str | None = None
        self._next_number = next_number
        self._bundle = bundle

    @classmethod
    def of_bundle(cls, bundle: Bundle, numbers: NDArray[np.int64], *, version: int) -> KnownItems:
        """What a bundle was written with; `numbers` are the engine's keys."""
        keys = Keys(numbers, bundle.item_names)
        return cls(version, keys, bundle.labels, next_number=len(numbers), bundle=bundle)

    def __len__(self) -> int:
        return len(self.keys.keys)

    def label(self, item: int | str) -> str:
        """How an item is shown: its label, or its key where there are no labels."""
        row = self.keys.row(item)
        return self.labels[row] if self.labels is not None and row >= 0 else str(item)

    def candidates(
        self, items: Any, n_users: int, unknown_items: UnknownItems
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.uint64], Callable[[int], NDArray[Any]]]:
        """Keys for the engine, offsets, and each request's candidates as the caller knows them."""
        check_unknown_items(unknown_items)
        if items is None:
            offsets = np.arange(n_users + 1, dtype=np.uint64) * np.uint64(len(self))
            return None, offsets, lambda _: self.keys.all
        plain = isinstance(items, np.ndarray) and items.dtype == np.int64 and items.ndim == 1
        if plain and n_users == 1 and self.keys.names is None:
            keys = np.ascontiguousarray(items)
            return keys, np.array([0, len(keys)], np.uint64), lambda _: keys
        lists = item_lists(items, n_users)
        shown = [self.keys.as_keys(each) for each in lists]
        parts = [self.keys.to_engine(each, skip=unknown_items == "skip") for each in shown]
        return *joined(parts), lambda r: shown[r]

    @cached_property
    def _row_of_bundle_row(self) -> NDArray[np.int64]:
        names = self._bundle.item_names
        stored = self._bundle.catalogue
        assert stored is not None  # there are seen items, so there are items
        return self.keys.rows(stored.keys if names is None else np.array(names, dtype=object))

    def rows_seen(self, user: int) -> NDArray[np.int64]:
        """Rows of the items that the bundle's user of that row has met, as far as they are still there."""
        seen = self._bundle.seen
        assert seen is not None
        rows = seen.of(user)
        if self.version > 1:
            rows = self._row_of_bundle_row[rows]
        return rows[rows >= 0]

    # ---- the next version ----------------------------------------------------------------------------------------

    def numbers(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        """The engine's keys of items to add or replace.

        Raises
        ------
        SchemaError
            A key stands twice.
        """
        different, times = np.unique(keys, return_counts=True)
        if len(different) < len(keys):
            raise SchemaError(f"item {different.tolist()[times.argmax()]!r} stands twice; give each item once")
        if self.keys.names is None:
            return np.ascontiguousarray(keys, np.int64)
        known = self.keys.to_engine(keys, skip=True)
        new = known < 0
        known[new] = self._next_number + np.arange(new.sum())
        return known

    def with_items(
        self, keys: NDArray[Any], numbers: NDArray[np.int64], labels: Sequence[str] | None, *, version: int
    ) -> tuple[KnownItems, NDArray[np.int64], NDArray[np.int64]]:
        """The version with these items added or replaced, where each old row is then (-1: replaced), and their rows."""
        rows = self.keys.rows(keys)
        new = rows < 0
        moved = np.arange(len(self))
        moved[rows[~new]] = -1
        rows[new] = len(self) + np.arange(new.sum())
        if labels is None and self.labels is None:
            shown = None
        else:
            shown = [*(self.labels or map(str, self.keys.all)), *map(str, keys[new])]
            for row, label in zip(rows.tolist(), labels or (), strict=False):
                shown[row] = str(label)
        names = None if self.keys.names is None else keys[new].tolist()
        return self._next(self.keys.extended(numbers[new], names), shown, version), moved, rows

    def without(self, rows: NDArray[np.int64], *, version: int) -> tuple[KnownItems, NDArray[np.int64]]:
        """The version without these rows, and where each old row is then (-1: gone)."""
        keys, moved = self.keys.without(rows)
        shown = self.labels
        if shown is not None:
            shown = [shown[row] for row in np.flatnonzero(moved >= 0).tolist()]
        return self._next(keys, shown, version), moved

    def _next(self, keys: Keys, labels: list[str] | None, version: int) -> KnownItems:
        next_number = max(self._next_number, int(keys.keys.max(initial=-1)) + 1) if keys.names is not None else 0
        return KnownItems(version, keys, labels, next_number=next_number, bundle=self._bundle)


class LiveItems:
    """The items of a ranker, which change while threads score.

    Parameters
    ----------
    bundle : Bundle
    model : Model
        The bundle's, freshly loaded.
    retrieval : RetrievalConfig
    threads : int
        Of retrieval.

    Attributes
    ----------
    current : KnownItems
    """

    def __init__(self, bundle: Bundle, model: _native.Model, *, retrieval: RetrievalConfig, threads: int) -> None:
        self.current = KnownItems.of_bundle(bundle, model.keys(), version=model.catalogue_version)
        self._model = model
        self._retrieval, self._threads = retrieval, threads
        self._writer = threading.RLock()  # one change after the other

    def of_one_version(self, call: Callable[[KnownItems], _Answer]) -> _Answer:
        """``call(items)`` with the items of one version; once more where they have changed meanwhile."""
        while True:
            known = self.current
            try:
                return call(known)
            except StaleError:
                with self._writer:  # the change is on its way
                    if known is self.current:
                        raise

    def retriever(self, known: KnownItems) -> Retriever:
        """The index of a version; a StaleError if there is a later version, and this one never had an index."""
        if known.retriever is None:
            with self._writer:
                if known is not self.current:
                    raise StaleError("the items have changed since this call began")
                if known.retriever is None:
                    known.retriever = self._new_retriever()
        return known.retriever

    def search_on(self, device: str, known: KnownItems) -> DeviceSearch | str:
        """The search of a version on that device, or why there is none; StaleError as :meth:`retriever`."""
        if known.on_device is None:
            retriever = self.retriever(known)
            with self._writer:
                if known.on_device is None:
                    known.on_device = device_search(retriever, device)
        return known.on_device

    def _new_retriever(self) -> Retriever:
        return Retriever(self._model.item_output("item_vector"), config=self._retrieval, threads=self._threads)

    def upsert(self, given: Catalogue, *, labels: Sequence[str] | None) -> None:
        """Add or replace packed items; see :meth:`Ranker.upsert`."""
        labels = given.labels if labels is None else labels
        if labels is not None and len(labels) != len(given.keys):
            raise SchemaError(f"there are {len(labels)} labels for {len(given.keys)} items; give one for each")
        with self._writer:
            before = self.current
            keys = before.keys.as_keys(given.keys)
            numbers = before.numbers(keys)
            ids, dense = given.packed
            self._model.upsert(numbers, ids if ids.shape[1] else None, dense if dense.shape[1] else None)
            after, moved, rows = before.with_items(keys, numbers, labels, version=self._model.catalogue_version)
            self._change(after, moved, rows, numbers)

    def delete(self, items: ArrayLike, *, unknown_items: UnknownItems) -> int:
        """Take items out; see :meth:`Ranker.delete`."""
        check_unknown_items(unknown_items)
        with self._writer:
            before = self.current
            keys = before.keys.as_keys(items)
            rows = before.keys.rows(keys)
            if unknown_items == "error" and (rows < 0).any():
                raise unknown_items_error(np.unique(keys[rows < 0]).tolist())
            rows = np.unique(rows[rows >= 0])
            if len(rows):
                self._model.delete(before.keys.keys[rows])
                after, moved = before.without(rows, version=self._model.catalogue_version)
                self._change(after, moved, rows[:0], rows[:0])
        return len(rows)

    def _change(
        self, after: KnownItems, moved: NDArray[np.int64], rows: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> None:
        """Make a version current, with the retrieval index of the one before brought up to date."""
        before, self.current = self.current, after
        if before.retriever is None:
            return
        after.retriever = before.retriever.changed(moved, rows, self._model.item_output("item_vector", numbers))
        if after.retriever.is_worn:  # in use until the new one is ready
            after.retriever = self._new_retriever()
