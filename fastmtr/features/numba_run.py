"""The one function that goes through steps of every kind, for a part of the rows: compiled once, kept by Numba."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba
import numpy as np
from numba import types

from fastmtr.features import numba_kernels as kernels
from fastmtr.features import numba_lists, numba_text, numba_times
from fastmtr.features.numba_index import BLOCK, ROWS, SCRATCH, fill_places
from fastmtr.features.numba_kernels import (
    CLOCK_PART,
    CYCLE,
    GAPS,
    GATHER,
    LIST,
    SINCE,
    STEP,
    TEXT_LIST,
    TFIDF,
    VECTOR,
    WORDS,
)
from fastmtr.features.numba_memory import entry, load_i64

__all__ = ["compile_kernels", "fill_index", "run"]


def _sources() -> int:
    """A number of the text of all kernels, at least 1."""
    content = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("numba_*.py")))
    return 1 + int.from_bytes(hashlib.sha256(content).digest()[:7], "little")


def _made(sources: int):  # type: ignore[no-untyped-def]
    """What Numba keeps under its code and `sources`: it notices changes of this file only, not of the others."""

    @entry
    def run(steps, begin, end, counts, scratch):  # type: ignore[no-untyped-def]
        """Go through the steps for the rows from `begin` to `end`.

        Parameters
        ----------
        steps : ndarray of STEP, shape (s,)
        begin, end : int
        counts : ndarray of int64, shape (s, 2)
            Nulls, and values that were unseen or out of range, are added.
        scratch : int
            The address of memory for one thread, as much as the steps need.
        """
        if sources == 0:  # never: Numba keeps code under the values that it closes over
            return
        block = np.empty((SCRATCH, BLOCK), np.uint64)
        x, y, null = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.bool_)
        for low in range(begin, end, ROWS):
            high = min(low + ROWS, end)
            for s in range(len(steps)):
                step = steps[s]
                op, a, b = step.op, low, high
                if step.elements != 0:
                    a, b = load_i64(step.elements + 8 * a), load_i64(step.elements + 8 * b)
                if op < GATHER:
                    kernels.run(step, a, b, counts[s], block, x, y, null)
                elif op == GATHER:
                    numba_lists.gather(step, a, b)
                elif op == LIST:
                    numba_lists.lists(step, a, b, scratch)
                elif op == VECTOR:
                    numba_lists.vectors(step, a, b, counts[s], x, null)
                elif op == TEXT_LIST:
                    numba_text.text_lists(step, a, b, counts[s], scratch)
                elif op == WORDS:
                    numba_text.words(step, a, b, counts[s], scratch)
                elif op == TFIDF:
                    numba_text.tfidf(step, a, b, counts[s], scratch)
                elif op == CLOCK_PART:
                    numba_times.clock_parts(step, a, b)
                elif op == CYCLE:
                    numba_times.cycles(step, a, b, counts[s])
                elif op == SINCE:
                    numba_times.since(step, a, b)
                elif op == GAPS:
                    numba_times.gaps(step, a, b)

    @entry
    def fill_index(steps):  # type: ignore[no-untyped-def]
        """Fill the index of each step, whose `rows` are values; how many of these stand twice."""
        twice = np.int64(sources == 0)
        block = np.empty((SCRATCH, BLOCK), np.uint64)
        for s in range(len(steps)):
            twice += fill_places(steps[s], steps[s].rows, block)
        return twice

    return run, fill_index


run, fill_index = _made(_sources())


def compile_kernels() -> None:
    """Compile what goes through rows, or take it from Numba's cache."""
    steps = numba.from_dtype(STEP)[::1]
    if not run.signatures:
        run.compile((steps, types.int64, types.int64, types.int64[:, ::1], types.int64))
    if not fill_index.signatures:
        fill_index.compile((steps,))
