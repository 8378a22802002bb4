"""Tables by Numba: each column is read where Arrow keeps it, and written into the rows of the packed matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import numba_run as kernels
from fastmtr.features.categories import Texts
from fastmtr.features.numba_features import Step, Task, address, place, tasks_of
from fastmtr.features.numba_index import EMPTY, NO_KEY
from fastmtr.features.numba_kernels import HASH, STEP
from fastmtr.features.numba_run import compile_kernels
from fastmtr.graph import Input, Packed

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.features.pipeline import FeaturePipeline

__all__ = ["Index", "fill", "hash_integers", "hash_texts"]

# Rows that a thread takes at once.
_CHUNK = 1 << 14


class Index:
    """Where each value of a vocabulary stands in it: for look-ups of whole columns.

    Parameters
    ----------
    known : ndarray of int64, or Texts
    """

    def __init__(self, known: NDArray[np.int64] | Texts) -> None:
        n = len(known)
        buckets = n // 2 + 1  # of four places
        room = np.empty(8 * buckets + 8, np.uint64)
        self.places = room[-room.ctypes.data % 64 // 8 :][: 8 * buckets]  # each bucket a cache line
        self.places.reshape(buckets, 2, 4)[:] = [[NO_KEY], [EMPTY]]
        self._held: list[NDArray[Any]] = [self.places]
        self._step: Step = {"index": address(self.places), "buckets": buckets}
        step: Step = {"rows": n}
        if isinstance(known, Texts):
            data, offsets = np.ascontiguousarray(known.data), np.ascontiguousarray(known.offsets)
            self._held += [data, offsets]
            self._step |= {"known": address(data), "known_offsets": address(offsets)}
            step |= {"values": address(data), "limit": address(data) + len(data)}
            step |= {"offsets": address(offsets), "width": 8}
        else:
            numbers = np.ascontiguousarray(known, np.int64)
            self._held.append(numbers)
            step["values"] = address(numbers)
        compile_kernels()
        self.twice = int(kernels.fill_index(_steps([self._step | step])))

    def step(self) -> Step:
        """What a step needs to know of it."""
        return self._step


def fill(
    pipeline: FeaturePipeline, table: pa.Table, *, into: Packed, places: Mapping[str, Input], threads: int
) -> frozenset[str]:
    """Pack the features of a table.

    Parameters
    ----------
    pipeline : FeaturePipeline
    table : pyarrow.Table
    into : Packed
        Of as many rows; the columns of features that are not packed hold anything.
    places : mapping of feature to Input
    threads : int

    Returns
    -------
    frozenset of str
        The features that were packed; none where a value is refused: the arrays say which comes first.
    """
    tasks: list[Task] = []
    packed = set()
    try:
        for name, where in places.items() if table.num_rows else ():
            matrix = into.ids if where.kind == "ids" else into.dense
            out = matrix[:, where.offset : where.offset + where.width]
            found = tasks_of(pipeline, pipeline.schema.feature(name), table, out)
            if found is not None:
                packed.add(name)
                tasks += found
    except SchemaError:
        return frozenset()
    counts = _run(tasks, table.num_rows, threads).tolist()
    refused = any(
        (nulls and task.refuses_nulls) or (others and task.refuses_others)
        for task, (nulls, others) in zip(tasks, counts, strict=True)
    )
    return frozenset() if refused else frozenset(packed)


def _run(tasks: Sequence[Task], n: int, threads: int) -> NDArray[np.int64]:
    """Go through the steps for n rows; nulls and others of each."""
    array = _steps([task.step for task in tasks])
    room = max((task.scratch for task in tasks), default=0)
    compile_kernels()
    parts = [(begin, min(begin + _CHUNK, n)) for begin in range(0, n, _CHUNK)] if tasks else []

    def run(part: tuple[int, int]) -> NDArray[np.int64]:
        counts, scratch = np.zeros((len(tasks), 2), np.int64), np.empty(room // 8 + 1, np.int64)
        kernels.run(array, *part, counts, address(scratch))
        return counts

    if threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(run, parts))
    else:
        found = list(map(run, parts))
    return sum(found, np.zeros((len(tasks), 2), np.int64))


def _steps(steps: list[Step]) -> NDArray[Any]:
    array = np.zeros(len(steps), STEP)
    for i, step in enumerate(steps):
        for key, value in step.items():
            array[i][key] = value
    return array


# ---- hashes of whole columns -----------------------------------------------------------------------------------------


def hash_integers(numbers: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """What :func:`fastmtr.features.hashing.hash_integers` gives."""
    numbers, out = np.ascontiguousarray(numbers, np.int64), np.empty(len(numbers), np.uint64)
    _run([Task({"op": HASH, "values": address(numbers), "seed": seed} | place(out))], len(numbers), 1)
    return out


def hash_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.uint64]:
    """What :func:`fastmtr.features.hashing.hash_packed_bytes` gives."""
    data, offsets = np.ascontiguousarray(data, np.uint8), np.ascontiguousarray(offsets, np.int64)
    out = np.empty(len(offsets) - 1, np.uint64)
    step = {"op": HASH, "values": address(data), "limit": address(data) + len(data), "seed": seed}
    step |= {"offsets": address(offsets), "width": 8}
    _run([Task(step | place(out))], len(out), 1)
    return out
