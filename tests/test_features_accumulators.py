"""fastmtr.features.accumulators: any order, any chunks, the same bits; and what the results are."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from fastmtr.errors import SchemaError
from fastmtr.features import accumulators
from fastmtr.features import counts as counting
from fastmtr.features.accumulators import (
    CategoryCounts,
    DocumentCounts,
    GroupSums,
    Moments,
    NumberSummary,
)

TINY = 5e-324
ADVERSARIAL = [0.0, -0.0, TINY, -TINY, 2.3e-308, 1.0, -1.0, 0.1, 1e16, 1.0000000000000002, -3.4e38, 3.4e38, 1e-30]


def packed(texts):
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpacked(data, offsets):
    return [data[a:b].tobytes() for a, b in pairwise(offsets)]


def chunks(n, rng, pieces=5):
    """Shuffled row numbers in pieces, one of them empty."""
    cuts = np.sort(rng.integers(0, n + 1, pieces - 1))
    return [*np.split(rng.permutation(n), cuts), np.zeros(0, np.int64)]


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_ints_most_frequent_first_ties_ascending():
    counts = CategoryCounts("c")
    values = np.array([5, -(2**63), 5, 2**63 - 1, 7, 7, 0, -1])
    counts.update_ints(values, np.array([1, 1, 1, 1, 1, 1, 0, 1], np.uint8))
    found, times = counts.ints()
    assert found.tolist() == [5, 7, -(2**63), -1, 2**63 - 1]
    assert times.tolist() == [2, 2, 1, 1, 1]
    assert counts.ints(min_count=2)[0].tolist() == [5, 7]
    assert (counts.type, counts.rows, counts.nulls, counts.distinct) == ("int", 8, 1, 5)


def test_texts_are_ordered_by_their_bytes():
    counts = CategoryCounts("c")
    texts = ["é", "z", "", "z", "a\0", "a", "\U0001f600", "gone"]
    counts.update_texts(*packed(texts), np.array([1] * 7 + [0], np.uint8))
    data, offsets, times = counts.texts()
    expected = sorted({t.encode() for t in texts[:7]} - {b"z"})
    assert unpacked(data, offsets) == [b"z", *expected]
    assert times.tolist() == [2, 1, 1, 1, 1, 1]
    assert (counts.type, counts.nulls, counts.distinct) == ("str", 1, 6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_counts_do_not_depend_on_order_or_chunks(monkeypatch, kind, weighted):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(counting, "WAITING", 40)  # merges many times
    n = 3000
    numbers = rng.zipf(1.3, n) % 500 - 250
    valid = (rng.random(n) > 0.1).astype(np.uint8)
    weights = rng.integers(0, 4, n) if weighted else None

    def fed(counts, rows):
        w = None if weights is None else weights[rows]
        if kind == "int":
            counts.update_ints(numbers[rows], valid[rows], w)
        else:
            counts.update_texts(*packed([f"value {v}" for v in numbers[rows]]), valid[rows], w)
        return counts

    def result(counts):
        got = counts.ints(2) if kind == "int" else counts.texts(2)
        return [part.tobytes() for part in got], counts.rows, counts.nulls, counts.type

    expected = Counter()
    for v, ok, w in zip(numbers.tolist(), valid, np.ones(n, int) if weights is None else weights, strict=True):
        if ok:
            expected[v] += int(w)
    whole = fed(CategoryCounts("c"), np.arange(n))
    *_, times = whole.ints(1) if kind == "int" else whole.texts(1)
    assert sorted(times.tolist()) == sorted(c for c in expected.values() if c)
    for seed in range(5):
        order = np.random.default_rng(seed)
        pieces = chunks(n, order)
        one = CategoryCounts("c")
        for piece in pieces:
            fed(one, piece)
        merged = CategoryCounts("c")
        for piece in pieces:
            merged.merge(fed(CategoryCounts("c"), piece))
        assert result(one) == result(merged) == result(whole)


def test_one_column_one_type():
    counts = CategoryCounts("city")
    counts.update_ints(np.zeros(3, np.int64), np.zeros(3, np.uint8))
    assert (counts.type, counts.nulls) == (None, 3)
    counts.update_texts(*packed(["a"]))
    with pytest.raises(SchemaError, match=r"'city' should hold one type of values, found text .* whole numbers in"):
        counts.update_ints(np.array([1]))
    other = CategoryCounts("city")
    other.update_ints(np.array([1]))
    with pytest.raises(SchemaError, match="found whole numbers in some rows and text"):
        other.merge(counts)


def test_nothing_was_counted():
    counts = CategoryCounts("c")
    assert [len(part) for part in counts.ints()] == [0, 0]
    assert [len(part) for part in counts.texts()] == [0, 1, 0]
    counts.update_ints(np.array([3]), weights=np.array([0]))
    assert (counts.type, counts.distinct, counts.rows) == ("int", 0, 0)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_moments_are_correctly_rounded(seed):
    rng = np.random.default_rng(seed)
    wild = np.ldexp(rng.standard_normal(60), rng.integers(-1000, 127, 60))
    values = np.concatenate([ADVERSARIAL, wild, rng.standard_normal(40)])
    counts = rng.integers(1, 2**28, len(values))
    moments = Moments()
    for half in (slice(0, 50), slice(50, None)):
        moments.update(values[half], counts[half])
    n = int(counts.sum())
    exact = [Fraction(v) for v in values.tolist()]
    mean = sum(v * c for v, c in zip(exact, counts.tolist(), strict=True)) / n
    variance = sum((v - mean) ** 2 * c for v, c in zip(exact, counts.tolist(), strict=True)) / n
    assert moments.mean == float(mean)
    assert moments.variance == float(variance)
    assert moments.deviation == math.sqrt(variance)


def test_moments_of_nothing_and_of_too_much():
    moments = Moments()
    moments.update(np.zeros(0))
    assert (moments.count, moments.mean, moments.variance) == (0, 0.0, 0.0)
    with pytest.raises(SchemaError, match="one batch stands for"):
        moments.update(np.ones(1), np.array([2**40]))


def summary_of(values, weights=None, **options):
    summary = NumberSummary(**options)
    summary.update(np.asarray(values, np.float64), weights)
    return summary


def bits(summary):
    numbers, counts = summary.distribution()
    return (
        (summary.rows, summary.nulls, summary.beyond, summary.low, summary.high, summary.exact),
        (summary.moments.mean, summary.moments.variance, summary.transformed and summary.transformed.mean),
        (numbers.tobytes(), counts.tobytes()),
    )


@pytest.mark.parametrize("exact", [1 << 18, 300])
def test_summaries_do_not_depend_on_order_or_chunks(monkeypatch, exact):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(counting, "WAITING", 64)
    values = np.concatenate(
        [rng.standard_normal(800) * 1e3, rng.integers(0, 50, 300), ADVERSARIAL, [np.nan, np.inf, -np.inf, 1e300] * 3]
    )
    weights = rng.integers(0, 3, len(values))
    options = {"exact": exact, "transform": np.arcsinh}
    whole = summary_of(values, weights, **options)
    assert whole.exact == (exact > 1000)
    assert bits(whole) == bits(summary_of(np.repeat(values, weights), **options))
    for seed in range(5):
        one, merged = NumberSummary(**options), NumberSummary(**options)
        for rows in chunks(len(values), np.random.default_rng(seed)):
            one.update(values[rows], weights[rows])
            merged.merge(summary_of(values[rows], weights[rows], **options))
        assert bits(one) == bits(merged) == bits(whole)


def test_what_a_summary_knows():
    summary = summary_of([3, 1, np.nan, 2, np.inf, -1e300, 3, -0.0])
    assert (summary.rows, summary.nulls, summary.beyond) == (8, 1, 2)
    assert (summary.low, summary.high, summary.moments.mean) == (0.0, 3.0, 1.8)
    assert not np.signbit(summary.low)
    numbers, counts = summary.distribution()
    assert numbers.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [1, 1, 1, 2]
    assert summary.quantiles(np.array([0, 0.2, 0.21, 0.5, 1])).tolist() == [0, 0, 1, 2, 3]
    assert np.isnan(summary_of([np.nan]).quantiles(np.array([0.5]))).all()


def test_the_histogram_keeps_its_promise():
    rng = np.random.default_rng(4)
    values = np.concatenate(
        [np.exp(rng.standard_normal(40_000) * 5), -np.exp(rng.standard_normal(20_000)), np.zeros(99)]
    )
    summary = summary_of(values, exact=1000)
    assert not summary.exact
    assert len(summary.distribution()[0]) < 40_000
    levels = np.linspace(0, 1, 101)
    true = np.sort(values)[np.maximum(np.ceil(levels * len(values)).astype(int) - 1, 0)]
    found = summary.quantiles(levels)
    assert (np.abs(found) <= np.abs(true)).all()
    assert (np.abs(found - true) <= np.abs(true) * 2.0**-10).all()
    assert (found[0], found[-1]) == (values.min(), values.max())
    assert (np.diff(summary.distribution()[0]) > 0).all()
    whole = summary_of(np.arange(-2048.0, 2049), exact=10)
    assert whole.distribution()[0].tolist() == list(range(-2048, 2049))
    tiny = summary_of([TINY, -TINY, 0.0, 2.0, 3.0], exact=2)
    assert tiny.distribution()[0].tolist() == [-TINY, 2.0, 3.0]


# ---- documents and groups --------------------------------------------------------------------------------------------


def test_document_counts():
    rng = np.random.default_rng(5)
    documents = [rng.integers(0, 7, rng.integers(0, 6)) for _ in range(200)]
    weights = rng.integers(0, 3, 200)
    expected = np.zeros(7, np.int64)
    for words, weight in zip(documents, weights, strict=True):
        expected[np.unique(words)] += weight

    def fed(counts, rows):
        lengths = [len(documents[i]) for i in rows]
        words = np.concatenate([np.zeros(0, np.int64), *(documents[i] for i in rows)])
        counts.update(words, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), weights[rows])
        return counts

    one, merged = DocumentCounts(7), DocumentCounts(7)
    for rows in chunks(200, rng):
        fed(one, rows)
        merged.merge(fed(DocumentCounts(7), rows))
    for counts in (one, merged):
        assert counts.counts.tolist() == expected.tolist()
        assert counts.documents == weights.sum()
    plain = DocumentCounts(3)
    plain.update(np.array([2, 2, 0]), np.array([0, 2, 2, 3]))
    assert (plain.counts.tolist(), plain.documents) == ([1, 0, 1], 3)


@pytest.mark.parametrize("binary", [True, False])
def test_group_sums(monkeypatch, binary):
    monkeypatch.setattr(accumulators, "WAITING", 50)
    rng = np.random.default_rng(6)
    n = 2000
    groups = rng.choice([-(2**63), -1, 0, 7, 2**63 - 1], n)
    folds = rng.integers(0, 3, n)
    outcomes = (
        rng.integers(0, 2, n).astype(float) if binary else rng.standard_normal(n) * 10.0 ** rng.integers(-9, 9, n)
    )
    outcomes[rng.random(n) < 0.1] = np.nan
    weights = rng.integers(0, 3, n)
    counts, sums = Counter(), Counter()
    for g, f, y, w in zip(groups.tolist(), folds.tolist(), outcomes.tolist(), weights.tolist(), strict=True):
        if not math.isnan(y) and w:
            counts[g, f] += w
            sums[g, f] += Fraction(y) * w
    one, merged, whole = GroupSums(), GroupSums(), GroupSums()
    whole.update(groups, outcomes, folds=folds, weights=weights)
    for rows in chunks(n, rng):
        part = GroupSums()
        for each in (one, part):
            each.update(groups[rows], outcomes[rows], folds=folds[rows], weights=weights[rows])
        merged.merge(part)
    found = whole.totals()
    assert list(zip(found.groups.tolist(), found.folds.tolist(), strict=True)) == sorted(counts)
    assert found.counts.tolist() == [counts[key] for key in sorted(counts)]
    expected = np.array([float(sums[key]) for key in sorted(counts)])
    assert found.sums.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    if binary:
        assert found.sums.tolist() == expected.tolist()
    for other in (one, merged):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, other.totals(), strict=True))


def test_group_sums_of_nothing_and_of_infinity():
    sums = GroupSums()
    sums.update(np.array([1]), np.array([np.nan]))
    assert [len(part) for part in sums.totals()] == [0, 0, 0, 0]
    with pytest.raises(SchemaError, match="an outcome is infinite"):
        sums.update(np.array([1]), np.array([np.inf]))
