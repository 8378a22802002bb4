"""Encodings by outcome: against plain loops, and that a sample's own outcome does not leak into its input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmtr.features.accumulators import GroupSums
from fastmtr.features.target_encoding import Encoding, EncodingTables, encoding_tables, scaled

SAMPLE = st.tuples(st.integers(0, 5), st.integers(0, 2), st.sampled_from([0.0, 1.0, -2.5, 1e-9, math.nan]))
FOLDS = 3


def _tables(samples: list[tuple[int, int, float]], encoding: Encoding, rows: int = 6) -> EncodingTables:
    sums = GroupSums()
    groups, folds = (np.array([s[i] for s in samples], np.int64) for i in (0, 1))
    sums.update(groups * 7, np.array([s[2] for s in samples], np.float64), folds=folds)
    totals = sums.totals()
    return encoding_tables(totals, totals.groups // 7, rows=rows, folds=FOLDS, encoding=encoding, strength=2.0)


@given(st.lists(SAMPLE, max_size=30), st.sampled_from(["target", "count", "rate"]))
def test_each_fold_is_told_what_the_others_say(samples: list[tuple[int, int, float]], encoding: Encoding) -> None:
    found = _tables(samples, encoding)
    known = [sample for sample in samples if not math.isnan(sample[2])]
    for fold in (None, *range(FOLDS)):
        seen = [sample for sample in known if sample[1] != fold]
        mean = sum(y for _, _, y in seen) / max(len(seen), 1)
        for row in range(6):
            own = [y for r, _, y in seen if r == row]
            if encoding == "target":
                expected = (sum(own) + 2 * mean) / (len(own) + 2)
            elif encoding == "count":
                expected = math.log1p(len(own) * len(known) / max(len(seen), 1))
            else:
                expected = len(own) / max(len(seen), 1)
            value = found.all[row] if fold is None else found.without[fold, row]
            assert value == pytest.approx(expected, abs=1e-12)
    assert found.counts.tolist() == [sum(r == row for r, _, _ in known) for row in range(6)]


def test_a_fold_does_not_see_its_own_outcomes_at_all() -> None:
    rng = np.random.default_rng(0)
    samples = [(int(r), int(f), float(y)) for r, f, y in zip(*rng.integers(0, [[6], [3], [2]], (3, 200)), strict=True)]
    before = _tables(samples, "target").without
    for fold in range(FOLDS):
        after = _tables([(r, f, 1 - y if f == fold else y) for r, f, y in samples], "target").without
        assert after[fold].tobytes() == before[fold].tobytes()
        assert all((after[other] != before[other]).all() for other in range(FOLDS) if other != fold)


def test_noise_does_not_leak_out_of_fold_and_does_in_fold() -> None:
    """Labels are coins, and each category has a few samples: nothing can be learned, unless a label tells itself."""
    rng = np.random.default_rng(0)
    n, rows = 20_000, 8_000
    row, fold, label = rng.integers(0, rows, n), rng.integers(0, FOLDS, n), rng.integers(0, 2, n).astype(float)
    sums = GroupSums()
    sums.update(row, label, folds=fold)
    totals = sums.totals()
    tables = encoding_tables(totals, totals.groups, rows=rows, folds=FOLDS, encoding="target", strength=1.0)
    assert np.corrcoef(tables.all[row], label)[0, 1] > 0.5
    assert abs(np.corrcoef(tables.without[fold, row], label)[0, 1]) < 0.03


def test_scaled_encodings_have_mean_zero_and_deviation_one_over_the_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [(int(r), int(f), float(y)) for r, f, y in zip(*rng.integers(0, [[6], [3], [5]], (3, 200)), strict=True)]
    tables = _tables(samples, "target")
    plain, plain_without = scaled(tables, standard=False)
    assert plain.tobytes() == tables.all.astype(np.float32).tobytes()
    assert plain_without.dtype == np.float32
    values = scaled(tables, standard=True)[0][[row for row, _, _ in samples]].astype(float)
    assert values.mean() == pytest.approx(0, abs=1e-6)
    assert values.std() == pytest.approx(1, abs=1e-6)
    nothing = scaled(_tables([], "target"), standard=True)
    assert not nothing[0].any()
