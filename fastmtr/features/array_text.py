"""Text, column by column: words, n-grams and TF-IDF rows from UTF-8 bytes, without a Python object for each.

Every function works on NumPy arrays, and on arrays of a namespace with NumPy's functions that is given as ``xp``. What
a letter is, and what its lower case is, stand in one table (Unicode 14), so that a text has the same words on any
machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmtr.features.unicode_tables import CodePoints

__all__ = ["tfidf", "words"]


def words(
    data: Any, offsets: Any, valid: Any | None, *, ngrams: int, table: CodePoints, xp: Any = np
) -> tuple[Any, Any, Any]:
    """The n-grams of the words of each text: of all that begin at its first word, then its second, the shortest first.

    A word is a run of word characters of the text in lower case; the words of an n-gram are joined by one space.

    Parameters
    ----------
    data : ndarray of uint8
        Valid UTF-8.
    offsets : ndarray of int64, shape (n + 1,)
        Text i is ``data[offsets[i]:offsets[i + 1]]``.
    valid : ndarray of bool, shape (n,), optional
        A text that is not valid has no words.
    ngrams : int
        The most words of an n-gram.
    table : CodePoints

    Returns
    -------
    data : ndarray of uint8
    offsets : ndarray of int64, shape (m + 1,)
        The n-grams, one after the other.
    rows : ndarray of int64, shape (n + 1,)
        Where those of each text begin.
    """
    data = data[int(offsets[0]) : int(offsets[-1])]
    offsets = offsets - offsets[0]
    points, starts = _decoded(data, xp)
    points = table.lower[points]
    inside = table.word[points]
    if valid is not None and not bool(valid.all()):
        inside = inside & valid[xp.searchsorted(offsets[1:], starts, side="right")]

    # A word begins where the character before it is of no word, or of another text.
    new_text = xp.zeros(len(data) + 1, bool)
    new_text[offsets] = True
    begins = inside & new_text[starts]
    begins[1:] |= inside[1:] & ~inside[:-1]
    begins[:1] = inside[:1]
    kept = xp.flatnonzero(inside)
    points, begins = points[kept], begins[kept]
    word = xp.cumsum(begins.astype(np.int64)) - 1
    firsts = xp.flatnonzero(begins)
    n_words = len(firsts)
    row_of_word = xp.searchsorted(offsets[1:], starts[kept[firsts]], side="right")

    # All words in one buffer with a space after each, so that an n-gram is a range of it.
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    ends = xp.cumsum(sizes)
    places = ends - sizes + word
    joined = xp.full((int(ends[-1]) if len(ends) else 0) + n_words, ord(" "), np.uint8)
    _encode(points, sizes, places, joined, xp)
    begin = places[firsts]
    end = xp.concatenate([begin[1:], xp.full(min(n_words, 1), len(joined), np.int64)]) - 1

    size = xp.arange(ngrams)
    last = xp.arange(n_words)[:, None] + size
    fits = last < n_words
    last = xp.where(fits, last, 0)
    if n_words:
        fits = fits & (row_of_word[last] == row_of_word[:, None])
    counts = xp.zeros(n_words + 1, np.int64)
    counts[1:] = xp.cumsum(fits.sum(axis=1))
    begin = (begin[:, None] + 0 * size)[fits]
    end = end[last[fits]]
    # The n-grams of a text are those of its words.
    rows = counts[xp.searchsorted(row_of_word, xp.arange(len(offsets)), side="left")]
    return *_gathered(joined, begin, end, xp), rows


def _decoded(data: Any, xp: Any) -> tuple[Any, Any]:
    """The code points of valid UTF-8, and the byte at which each begins."""
    starts = xp.flatnonzero((data & 0xC0) != 0x80)
    points = data[starts].astype(np.uint32)
    # Few characters have more than one byte; those are put together.
    longer = xp.flatnonzero(points >= 0xC0)
    lead = points[longer]
    more = 1 + (lead >= 0xE0).astype(np.int64) + (lead >= 0xF0)
    found = lead & (0x3F >> more).astype(np.uint32)
    for k in range(1, 4):
        at = xp.where(more >= k, starts[longer] + k, 0)
        found = xp.where(more >= k, found << 6 | data[at].astype(np.uint32) & 0x3F, found)
    points[longer] = found
    return points, starts


def _encode(points: Any, sizes: Any, places: Any, out: Any, xp: Any) -> None:
    """Write code points as UTF-8, each from its place on."""
    out[places] = points.astype(np.uint8)
    for size, mark in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        of_size = xp.flatnonzero(sizes == size)
        chosen, at = points[of_size], places[of_size]
        out[at] = (mark | chosen >> (6 * (size - 1))).astype(np.uint8)
        for k in range(1, size):
            out[at + k] = (0x80 | chosen >> (6 * (size - 1 - k)) & 0x3F).astype(np.uint8)


def _gathered(data: Any, begin: Any, end: Any, xp: Any) -> tuple[Any, Any]:
    """Ranges of bytes (none is empty), one after the other, with their offsets."""
    offsets = xp.zeros(len(begin) + 1, np.int64)
    offsets[1:] = xp.cumsum(end - begin)
    # From each byte to the next it is one step, and from range to range a jump.
    steps = xp.ones(int(offsets[-1]), np.int64)
    steps[offsets[1:-1]] = begin[1:] - end[:-1] + 1
    steps[:1] = begin[:1]
    return data[xp.cumsum(steps)], offsets


def tfidf(columns: Any, rows: Any, idf: Any, out: Any, *, xp: Any = np) -> None:
    """Term frequency times inverse document frequency, each row of Euclidean length one.

    Parameters
    ----------
    columns : ndarray of int64, shape (m,)
        The column of each term.
    rows : ndarray of int64, shape (n + 1,)
        Where the terms of each row begin.
    idf : ndarray of float64, shape (dim,)
    out : ndarray of float32, shape (n, dim)
        Written; a row without terms is zeros.
    """
    dim = len(idf)
    out[...] = 0
    if not len(columns):
        return
    row = xp.searchsorted(rows[1:], xp.arange(len(columns)), side="right")
    keys, counts = xp.unique(row * dim + columns, return_counts=True)
    row, column = keys // dim, keys % dim
    weights = counts.astype(np.float64) * idf[column]
    squares = weights * weights
    # One column after the other, as the native code adds them.
    first = xp.searchsorted(row, xp.arange(len(rows)), side="left")
    n_terms = first[1:] - first[:-1]
    total = xp.zeros(len(rows) - 1, np.float64)
    for k in range(int(n_terms.max())):
        has = xp.flatnonzero(n_terms > k)
        total[has] += squares[first[:-1][has] + k]
    length = xp.sqrt(total)[row]
    out[row, column] = xp.where(length > 0, weights / xp.where(length > 0, length, 1.0), 0.0).astype(np.float32)
