"""How often each value of a column occurs: distinct whole numbers or texts, without Python objects.

Batches wait until as many distinct values are there as were merged already, so merging stays a small part of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmtr import _native

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["WAITING", "IntCounts", "Ints", "TextCounts", "sums_of_runs", "text_array", "total_weight"]

# So many distinct values wait at least before they are merged.
WAITING = 1 << 16

Ints = NDArray[np.int64]
Texts = tuple[NDArray[np.uint8], NDArray[np.int64]]


class _Counts:
    """Counts of distinct values; see :class:`IntCounts` and :class:`TextCounts`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Ints]] = []
        self._n_waiting = 0
        self._n_merged = 0

    def _add(self, values: Any, counts: Ints) -> None:
        """Note distinct values of one batch."""
        if not len(counts):
            return
        self._waiting.append((values, counts))
        self._n_waiting += len(counts)
        if self._n_waiting - self._n_merged > max(WAITING, self._n_merged):
            self._merged()

    def _merged(self) -> tuple[Any, Ints]:
        if len(self._waiting) != 1:
            self._waiting = [self._count_all([v for v, _ in self._waiting], [c for _, c in self._waiting])]
        self._n_merged = self._n_waiting = len(self._waiting[0][1])
        return self._waiting[0]

    def _count_all(self, values: list[Any], counts: list[Ints]) -> tuple[Any, Ints]:
        raise NotImplementedError

    @property
    def distinct(self) -> int:
        """How many different values there are."""
        return len(self._merged()[1])

    @property
    def at_most(self) -> int:
        """A bound of `distinct` that is known without merging."""
        return self._n_waiting

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return sum(int(counts.sum()) for _, counts in self._waiting)


class IntCounts(_Counts):
    """How often each whole number occurs."""

    def update(self, values: Ints, valid: NDArray[np.uint8] | None = None, weights: Ints | None = None) -> None:
        """Count a batch; what is not valid, or of weight 0, leaves no trace."""
        self._add(*_native.count_ints(np.ascontiguousarray(values), valid, weights))

    def merge(self, other: IntCounts) -> None:
        """Count what `other` counted, too."""
        self._add(*other._merged())

    def _count_all(self, values: list[Any], counts: list[Ints]) -> tuple[Any, Ints]:
        nothing = np.zeros(0, np.int64)
        return _native.count_ints(np.concatenate([nothing, *values]), weights=np.concatenate([nothing, *counts]))

    def ascending(self) -> tuple[Ints, Ints]:
        """The distinct values in ascending order, and the count of each."""
        values, counts = self._merged()
        order = np.argsort(values)
        return values[order], counts[order]

    def unordered(self) -> tuple[Ints, Ints]:
        """The distinct values in any order, and the count of each."""
        values, counts = self._merged()
        return values, counts

    def by_count(self, min_count: int = 1) -> tuple[Ints, Ints]:
        """The values that occur often enough, most frequent first, ties ascending; and the count of each."""
        values, counts = self.ascending()
        order = np.argsort(-counts, kind="stable")
        order = order[counts[order] >= min_count]
        return values[order], counts[order]


class TextCounts(_Counts):
    """How often each text occurs; texts are UTF-8 bytes side by side, and offsets (one more than texts)."""

    def update(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int32] | Ints,
        valid: NDArray[np.uint8] | None = None,
        weights: Ints | None = None,
    ) -> None:
        """Count a batch; what is not valid, or of weight 0, leaves no trace."""
        data, offsets, counts = _native.count_texts(data, offsets, valid, weights)
        self._add((data, offsets), counts)

    def merge(self, other: TextCounts) -> None:
        """Count what `other` counted, too."""
        self._add(*other._merged())

    def _count_all(self, values: list[Any], counts: list[Ints]) -> tuple[Any, Ints]:
        data = np.concatenate([np.zeros(0, np.uint8), *(data for data, _ in values)])
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for _, offsets in values)])
        weights = np.concatenate([np.zeros(0, np.int64), *counts])
        data, offsets, merged = _native.count_texts(data, np.cumsum(lengths), weights=weights)
        return (data, offsets), merged

    def by_count(self, min_count: int = 1) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """The texts that occur often enough, most frequent first, ties ascending by bytes: data, offsets, counts."""
        (data, offsets), counts = self._merged()
        if min_count > 1:
            kept = np.flatnonzero(counts >= min_count)
            (data, offsets), counts = _taken(data, offsets, kept), counts[kept]
        order = _native.order_texts(data, offsets, counts)
        return *_taken(data, offsets, order), counts[order]

    def unordered(self) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """All texts in any order: data, offsets, counts."""
        (data, offsets), counts = self._merged()
        return data, offsets, counts


# ---- small parts -----------------------------------------------------------------------------------------------------


def total_weight(n: int, weights: Ints | None) -> int:
    return n if weights is None else int(weights.sum())


def sums_of_runs(values: Ints, starts: NDArray[np.intp]) -> Ints:
    result: Ints = np.add.reduceat(values, starts) if len(starts) else np.zeros(0, np.int64)
    return result


def _binary(data: NDArray[np.uint8], offsets: Ints) -> pa.Array:
    """Texts as an Arrow array over the same memory."""
    import pyarrow as pa

    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def text_array(data: NDArray[np.uint8], offsets: Ints) -> pa.Array:
    """The same as text, which Arrow does not check to be valid UTF-8."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, _binary(data, offsets).buffers())


def _content(array: pa.Array) -> Texts:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if len(array) else None
    if ends is None or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    start, end = int(ends[0]), int(ends[-1])
    return np.frombuffer(data, np.uint8)[start:end], ends - start


def _taken(data: NDArray[np.uint8], offsets: Ints, places: NDArray[np.integer[Any]]) -> Texts:
    import pyarrow as pa

    return _content(_binary(data, offsets).take(pa.array(places)))
