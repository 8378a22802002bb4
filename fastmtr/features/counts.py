"""How often each value of a column occurs: distinct whole numbers or texts, without Python objects.

Batches wait until as many distinct values are there as were merged already, so merging stays a small part of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "WAITING",
    "CountKernels",
    "IntCounts",
    "Ints",
    "TextCounts",
    "count_ints",
    "count_texts",
    "sums_of_runs",
    "take_texts",
    "text_array",
    "total_weight",
]

# So many distinct values wait at least before they are merged.
WAITING = 1 << 16

Ints = NDArray[np.int64]
Texts = tuple[NDArray[np.uint8], NDArray[np.int64]]


class CountKernels(Protocol):
    """Functions that count the values of one batch; this module's own are the reference."""

    def count_ints(self, values: Ints, weights: Ints | None) -> tuple[Ints, Ints]: ...

    def count_texts(
        self, data: NDArray[np.uint8], offsets: Ints, weights: Ints | None
    ) -> tuple[NDArray[np.uint8], Ints, Ints]: ...


def count_ints(values: Ints, weights: Ints | None) -> tuple[Ints, Ints]:
    """The distinct values (in any order) and how often each occurs, or the sum of its weights."""
    if weights is None:
        return np.unique(values, return_counts=True)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = _run_starts(ordered)
    return ordered[starts], sums_of_runs(weights[order], starts)


def count_texts(data: NDArray[np.uint8], offsets: Ints, weights: Ints | None) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """The distinct texts (in any order, as bytes and offsets) and how often each occurs, or the sum of its weights."""
    coded = _binary(data, offsets).dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    counts = np.zeros(len(coded.dictionary), np.int64)
    if weights is None:
        counts += np.bincount(codes, minlength=len(counts))
    else:
        np.add.at(counts, codes, weights)
    return *_content(coded.dictionary), counts


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
    """How often each whole number occurs.

    Parameters
    ----------
    kernels : CountKernels, optional
        What counts a batch; this module's NumPy functions by default.
    """

    def __init__(self, kernels: CountKernels | None = None) -> None:
        super().__init__()
        self._count = count_ints if kernels is None else kernels.count_ints

    def update(self, values: Ints, weights: Ints | None = None) -> None:
        """Count a batch; values of weight 0 leave no trace."""
        if weights is not None:
            values, weights = values[weights > 0], weights[weights > 0]
        self._add(*self._count(values, weights))

    def merge(self, other: IntCounts) -> None:
        """Count what `other` counted, too."""
        self._add(*other._merged())

    def _count_all(self, values: list[Any], counts: list[Ints]) -> tuple[Any, Ints]:
        every = np.concatenate([np.zeros(0, np.int64), *values])
        return self._count(every, np.concatenate([np.zeros(0, np.int64), *counts]))

    def ascending(self) -> tuple[Ints, Ints]:
        """The distinct values in ascending order, and the count of each."""
        values, counts = self._merged()
        order = np.argsort(values)
        return values[order], counts[order]

    def by_count(self, min_count: int = 1) -> tuple[Ints, Ints]:
        """The values that occur often enough, most frequent first, ties ascending; and the count of each."""
        values, counts = self.ascending()
        order = np.argsort(-counts, kind="stable")
        order = order[counts[order] >= min_count]
        return values[order], counts[order]


class TextCounts(_Counts):
    """How often each text occurs; texts are UTF-8 bytes side by side, and offsets (one more than texts).

    Parameters
    ----------
    kernels : CountKernels, optional
    """

    def __init__(self, kernels: CountKernels | None = None) -> None:
        super().__init__()
        self._count = count_texts if kernels is None else kernels.count_texts

    def update(self, data: NDArray[np.uint8], offsets: Ints, weights: Ints | None = None) -> None:
        """Count a batch; texts of weight 0 leave no trace."""
        if weights is not None and not (weights > 0).all():
            data, offsets = take_texts(data, offsets, np.flatnonzero(weights > 0))
            weights = weights[weights > 0]
        *texts, counts = self._count(data, offsets, weights)
        self._add(tuple(texts), counts)

    def merge(self, other: TextCounts) -> None:
        """Count what `other` counted, too."""
        self._add(*other._merged())

    def _count_all(self, values: list[Any], counts: list[Ints]) -> tuple[Any, Ints]:
        data = np.concatenate([np.zeros(0, np.uint8), *(data for data, _ in values)])
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for _, offsets in values)])
        *texts, merged = self._count(data, np.cumsum(lengths), np.concatenate([np.zeros(0, np.int64), *counts]))
        return tuple(texts), merged

    def by_count(self, min_count: int = 1) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """The texts that occur often enough, most frequent first, ties ascending by bytes: data, offsets, counts."""
        import pyarrow.compute as pc

        (data, offsets), counts = self._merged()
        ascending = pc.sort_indices(_binary(data, offsets)).to_numpy().astype(np.int64)
        order = ascending[np.argsort(-counts[ascending], kind="stable")]
        order = order[counts[order] >= min_count]
        return *take_texts(data, offsets, order), counts[order]


# ---- small parts -----------------------------------------------------------------------------------------------------


def total_weight(n: int, weights: Ints | None) -> int:
    return n if weights is None else int(weights.sum())


def _run_starts(ordered: Ints) -> NDArray[np.intp]:
    if not len(ordered):
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


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


def take_texts(data: NDArray[np.uint8], offsets: Ints, places: NDArray[np.integer[Any]]) -> Texts:
    import pyarrow as pa

    return _content(_binary(data, offsets).take(pa.array(places)))
