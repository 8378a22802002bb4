"""Baselines against a plain recount."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_world import small_prepared

from fastmtr.errors import SchemaError
from fastmtr.evaluation.baselines import item_times_user_mean, logistic_regression, popular_items, popularity
from fastmtr.evaluation.metrics import roc_auc


def recount(rows: np.ndarray, labels: np.ndarray, row: int, *, smoothing: float) -> float:
    mine = labels[(rows == row) & ~np.isnan(labels)]
    return float((mine.sum() + smoothing * np.nanmean(labels)) / (mine.size + smoothing))


def test_popularity_is_the_smoothed_mean_of_the_item() -> None:
    prepared = small_prepared()
    found = popularity(prepared, prepared.test, smoothing=7.0)
    assert found.dtype == np.float32
    assert found.shape == prepared.test.labels.shape
    for i in (0, 5, 100):
        for task in range(3):
            expected = recount(
                prepared.train.item_rows, prepared.train.labels[:, task], prepared.test.item_rows[i], smoothing=7.0
            )
            assert found[i, task] == pytest.approx(expected, rel=1e-5)


def test_item_times_user_mean() -> None:
    prepared = small_prepared()
    train, test = prepared.train, prepared.test
    found = item_times_user_mean(prepared, test)
    for task in (0, 2):
        labels = train.labels[:, task]
        item = recount(train.item_rows, labels, test.item_rows[3], smoothing=20.0)
        user = recount(train.user_rows, labels, test.user_rows[3], smoothing=20.0)
        overall = float(np.nanmean(labels))
        expected = item * user / overall if task == 0 else item + user - overall
        assert found[3, task] == pytest.approx(expected, rel=1e-4)


def test_what_training_has_not_seen_gets_the_overall_mean() -> None:
    prepared = small_prepared()
    unknown = dataclasses.replace(
        prepared.test,
        item_rows=np.full(prepared.test.n_rows, prepared.catalogue.packed.n_rows + 5),
        user_rows=np.full(prepared.test.n_rows, -1),
    )
    overall = np.nanmean(prepared.train.labels, axis=0)
    for baseline in (popularity, item_times_user_mean):
        np.testing.assert_allclose(baseline(prepared, unknown)[0], overall, rtol=1e-5)


def test_logistic_regression_learns_more_than_popularity() -> None:
    prepared = small_prepared()
    found = logistic_regression(prepared, prepared.test, c=1.0)
    labels = prepared.test.labels
    assert roc_auc(labels[:, 0], found[:, 0]) > roc_auc(labels[:, 0], popularity(prepared, prepared.test)[:, 0])
    assert ((found[:, :2] >= 0) & (found[:, :2] <= 1)).all()
    known = ~np.isnan(labels[:, 2])
    assert np.isfinite(found).all()
    assert np.corrcoef(found[known, 2], labels[known, 2])[0, 1] > 0.1


def test_logistic_regression_needs_both_classes() -> None:
    prepared = small_prepared()
    labels = prepared.train.labels.copy()
    labels[:, 1] = 0
    with pytest.raises(SchemaError, match="task 'buy' has only one class"):
        logistic_regression(
            dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, labels=labels)), prepared.test
        )


def test_popular_items_come_in_the_order_of_their_positives() -> None:
    prepared = small_prepared()
    order = popular_items(prepared, task="click")
    clicked = prepared.train.item_rows[prepared.train.labels[:, 0] == 1]
    counts = np.bincount(clicked, minlength=len(order))[order]
    assert sorted(order) == list(range(prepared.catalogue.packed.n_rows))
    assert (np.diff(counts) <= 0).all()
    assert all(a < b for a, b, same in zip(order, order[1:], np.diff(counts) == 0, strict=False) if same)
