"""Words and TF-IDF against Python's own text functions and scikit-learn."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from fastmtr.features import array_text
from fastmtr.features.unicode_tables import code_points

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(alphabet="aB _1,'ÄßİΣ\u0301\u200d\U0001f600𝔸١")


@pytest.mark.skipif(
    unicodedata.unidata_version != "14.0.0", reason=f"this Python has Unicode {unicodedata.unidata_version}, not 14"
)
def test_the_tables_are_those_of_unicode_14() -> None:
    chars = [chr(i) for i in range(0x110000)]
    lower, word = code_points()
    # One code point each: only the capital I with a dot would become two.
    assert (lower == np.array([ord(c.lower()[0]) for c in chars], np.uint32)).all()
    assert [hex(i) for i, c in enumerate(chars) if len(c.lower()) > 1] == ["0x130"]
    assert (word == np.array([c.isalnum() or c == "_" for c in chars])).all()
    assert (word == np.array([re.match(r"\w", c) is not None for c in chars])).all()


def packed(texts: list[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    encoded = [b"nothing" if text is None else text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets, np.array([text is not None for text in texts], bool)


def expected(text: str | None, ngrams: int) -> list[str]:
    lower, word = code_points()
    lowered = [chr(lower[ord(c)]) for c in text or ""]
    found = "".join(c if word[ord(c)] else "\n" for c in lowered).split("\n")
    found = [each for each in found if each]
    return [" ".join(found[i : i + n]) for i in range(len(found)) for n in range(1, ngrams + 1) if i + n <= len(found)]


@given(st.lists(TEXTS | st.none(), max_size=6), st.integers(1, 3), st.integers(0, 2))
@example(["", None, " ", "İstanbul"], 2, 0)
@example(["last", "first"], 2, 0)
def test_words_are_those_of_plain_python(texts: list[str | None], ngrams: int, skipped: int) -> None:
    data, offsets, valid = packed(texts)
    # A slice of a longer column.
    offsets, valid, texts = offsets[min(skipped, len(texts)) :], valid[skipped:], texts[skipped:]
    grams, bounds, rows = array_text.words(data, offsets, valid, ngrams=ngrams, table=code_points())
    found = [grams[a:b].tobytes().decode() for a, b in pairwise(bounds)]
    assert [found[a:b] for a, b in pairwise(rows)] == [expected(t, ngrams) for t in texts]
    assert len(found) == rows[-1]


def test_every_code_point_survives_decoding_and_encoding() -> None:
    points = np.array([i for i in range(0x110000) if not 0xD800 <= i < 0xE000], np.uint32)
    data = np.frombuffer("".join(map(chr, points)).encode(), np.uint8)
    found, starts = array_text._decoded(data)
    assert (found == points).all()
    out = np.zeros_like(data)
    sizes = np.diff(np.append(starts, len(data)))
    array_text._encode(found, sizes, starts, out)
    assert (out == data).all()


@given(st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=6), st.integers(0, 5))
def test_tfidf_is_that_of_scikit_learn(rows: list[list[int]], seed: int) -> None:
    counts = np.stack([np.bincount(row, minlength=8) for row in rows])
    theirs = TfidfTransformer().fit(counts)
    out = np.full((len(rows), 16), np.nan, np.float32)[:, ::2]
    columns = np.array([c for row in rows for c in np.random.default_rng(seed).permutation(row)], np.int64)
    array_text.tfidf(columns, np.cumsum([0, *map(len, rows)]), theirs.idf_, out)
    np.testing.assert_allclose(out, theirs.transform(counts).toarray(), rtol=1e-6)
    # The same additions in the same order.
    for row, found in zip(counts, out, strict=True):
        weights, total = row.astype(np.float64) * theirs.idf_, 0.0
        for weight in weights:
            total += weight * weight
        exact = weights / np.sqrt(total) if total > 0 else weights * 0
        assert found.tobytes() == exact.astype(np.float32).tobytes()
