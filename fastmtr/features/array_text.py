"""Text, column by column: words, n-grams and TF-IDF rows from UTF-8 bytes, without a Python object for each.

What a letter is, and what its lower case is, stand in one table (Unicode 14), so that a text has the same words on any
machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmtr.features.unicode_tables import CodePoints

__all__ = ["tfidf", "words"]


def words(data: Any, offsets: Any, valid: Any | None, *, ngrams: int, table: CodePoints) -> tuple[Any, Any, Any]:
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
    points, starts = _decoded(data)
    points = table.lower[points]
    inside = table.word[points]
    if valid is not None and not bool(valid.all()):
        inside = inside & valid[np.searchsorted(offsets[1:], starts, side="right")]

    # A word begins where the character before it is of no word, or of another text.
    new_text = np.zeros(len(data) + 1, bool)
    new_text[offsets] = True
    begins = inside & new_text[starts]
    begins[1:] |= inside[1:] & ~inside[:-1]
    begins[:1] = inside[:1]
    kept = np.flatnonzero(inside)
    points, begins = points[kept], begins[kept]
    word = np.cumsum(begins.astype(np.int64)) - 1
    firsts = np.flatnonzero(begins)
    n_words = len(firsts)
    row_of_word = np.searchsorted(offsets[1:], starts[kept[firsts]], side="right")

    # All words in one buffer with a space after each, so that an n-gram is a range of it.
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    ends = np.cumsum(sizes)
    places = ends - sizes + word
    joined = np.full((int(ends[-1]) if len(ends) else 0) + n_words, ord(" "), np.uint8)
    _encode(points, sizes, places, joined)
    begin = places[firsts]
    end = np.concatenate([begin[1:], np.full(min(n_words, 1), len(joined), np.int64)]) - 1

    size = np.arange(ngrams)
    last = np.arange(n_words)[:, None] + size
    fits = last < n_words
    last = np.where(fits, last, 0)
    if n_words:
        fits = fits & (row_of_word[last] == row_of_word[:, None])
    counts = np.zeros(n_words + 1, np.int64)
    counts[1:] = np.cumsum(fits.sum(axis=1))
    begin = (begin[:, None] + 0 * size)[fits]
    end = end[last[fits]]
    # The n-grams of a text are those of its words.
    rows = counts[np.searchsorted(row_of_word, np.arange(len(offsets)), side="left")]
    return *_gathered(joined, begin, end), rows


def _decoded(data: Any) -> tuple[Any, Any]:
    """The code points of valid UTF-8, and the byte at which each begins."""
    starts = np.flatnonzero((data & 0xC0) != 0x80)
    points = data[starts].astype(np.uint32)
    # Few characters have more than one byte; those are put together.
    longer = np.flatnonzero(points >= 0xC0)
    lead = points[longer]
    more = 1 + (lead >= 0xE0).astype(np.int64) + (lead >= 0xF0)
    found = lead & (0x3F >> more).astype(np.uint32)
    for k in range(1, 4):
        at = np.where(more >= k, starts[longer] + k, 0)
        found = np.where(more >= k, found << 6 | data[at].astype(np.uint32) & 0x3F, found)
    points[longer] = found
    return points, starts


def _encode(points: Any, sizes: Any, places: Any, out: Any) -> None:
    """Write code points as UTF-8, each from its place on."""
    out[places] = points.astype(np.uint8)
    for size, mark in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        of_size = np.flatnonzero(sizes == size)
        chosen, at = points[of_size], places[of_size]
        out[at] = (mark | chosen >> (6 * (size - 1))).astype(np.uint8)
        for k in range(1, size):
            out[at + k] = (0x80 | chosen >> (6 * (size - 1 - k)) & 0x3F).astype(np.uint8)


def _gathered(data: Any, begin: Any, end: Any) -> tuple[Any, Any]:
    """Ranges of bytes (none is empty), one after the other, with their offsets."""
    offsets = np.zeros(len(begin) + 1, np.int64)
    offsets[1:] = np.cumsum(end - begin)
    # From each byte to the next it is one step, and from range to range a jump.
    steps = np.ones(int(offsets[-1]), np.int64)
    steps[offsets[1:-1]] = begin[1:] - end[:-1] + 1
    steps[:1] = begin[:1]
    return data[np.cumsum(steps)], offsets


def tfidf(columns: Any, rows: Any, idf: Any, out: Any) -> None:
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
    row = np.searchsorted(rows[1:], np.arange(len(columns)), side="right")
    keys, counts = np.unique(row * dim + columns, return_counts=True)
    row, column = keys // dim, keys % dim
    weights = counts.astype(np.float64) * idf[column]
    squares = weights * weights
    # One column after the other, as the native code adds them.
    first = np.searchsorted(row, np.arange(len(rows)), side="left")
    n_terms = first[1:] - first[:-1]
    total = np.zeros(len(rows) - 1, np.float64)
    for k in range(int(n_terms.max())):
        has = np.flatnonzero(n_terms > k)
        total[has] += squares[first[:-1][has] + k]
    length = np.sqrt(total)[row]
    out[row, column] = np.where(length > 0, weights / np.where(length > 0, length, 1.0), 0.0).astype(np.float32)
