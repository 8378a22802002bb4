"""Metrics against values worked out by hand or by the plainest possible loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fastmtr.errors import SchemaError
from fastmtr.evaluation.metrics import (
    auc_interval,
    best_f1_threshold,
    binary_metrics,
    expected_calibration_error,
    grouped_auc,
    regression_metrics,
    retrieval_metrics,
    roc_auc,
)


def test_binary_metrics_by_hand() -> None:
    y = [0, 0, 1, 1, 1]
    p = [0.1, 0.6, 0.4, 0.7, 0.9]
    found = binary_metrics(y, p, threshold=0.5)
    assert found["n"] == 5
    assert found["base_rate"] == pytest.approx(0.6)
    assert found["auc"] == pytest.approx(5 / 6)  # of 6 pairs only (0.4, 0.6) is in the wrong order
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.7, 0.9]).mean())
    assert found["threshold"] == 0.5
    assert "gauc" not in found


def test_the_best_threshold_has_the_highest_f1() -> None:
    y = np.array([0, 0, 1, 1, 1])
    p = np.array([0.1, 0.6, 0.4, 0.7, 0.9])
    assert best_f1_threshold(y, p) == 0.4  # F1 6/7, the highest of all cuts
    assert binary_metrics(y, p)["f1"] == pytest.approx(6 / 7)
    assert best_f1_threshold([0, 0], [0.2, 0.9]) == 0.5


def test_the_grouped_auc_weighs_users_by_their_rows() -> None:
    y = [1, 0, 1, 0, 0, 1, 1]
    p = [0.9, 0.1, 0.2, 0.2, 0.9, 0.5, 0.6]
    users = [7, 7, 3, 3, 3, 5, 5]
    # user 7: 1.0 of 2 rows; user 3: a tie and a loss, 0.25 of 3 rows; user 5 has one class and does not count
    assert grouped_auc(y, p, groups=users) == pytest.approx((2 * 1.0 + 3 * 0.25) / 5)
    assert math.isnan(grouped_auc([1, 1], [0.1, 0.2], groups=[0, 0]))
    assert math.isnan(grouped_auc([], [], groups=[]))


def test_the_grouped_auc_agrees_with_a_loop_over_users() -> None:
    rng = np.random.default_rng(0)
    y, users = rng.integers(0, 2, 600), rng.integers(0, 70, 600) * 13
    p = rng.integers(0, 8, 600) / 8  # many ties
    total = weight = 0.0
    for user in np.unique(users):
        mine = users == user
        if 0 < y[mine].sum() < mine.sum():
            total += mine.sum() * roc_auc_score(y[mine], p[mine])
            weight += mine.sum()
    assert grouped_auc(y, p, groups=users) == pytest.approx(total / weight)


def test_calibration_error_by_hand() -> None:
    y = [0, 1, 0, 1]
    p = [0.1, 0.2, 0.7, 0.9]
    # two bins: |0.3 - 1| and |1.6 - 1| of four rows
    assert expected_calibration_error(y, p, bins=2) == pytest.approx((0.7 + 0.6) / 4)
    assert expected_calibration_error([1, 0], [1.0, 0.0]) == 0.0


def test_one_class_has_no_auc() -> None:
    found = binary_metrics([0, 0, 0], [0.1, 0.5, 0.2], groups=[1, 1, 2], threshold=0.5)
    assert math.isnan(found["auc"])
    assert math.isnan(found["gauc"])
    assert found["f1"] == 0.0
    assert all(math.isnan(v) for v in auc_interval([1, 1], [0.5, 0.6]))
    assert math.isnan(roc_auc([], []))


def test_no_rows_give_nan_not_an_error() -> None:
    assert math.isnan(binary_metrics([], [], groups=[], threshold=0.5)["log_loss"])
    assert math.isnan(regression_metrics([], [])["mse"])


def test_regression_metrics_by_hand() -> None:
    found = regression_metrics([1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    assert found["mse"] == pytest.approx(4 / 3)
    assert found["rmse"] == pytest.approx((4 / 3) ** 0.5)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["r2"] == pytest.approx(1 - 4 / 2)


def test_retrieval_metrics_by_hand() -> None:
    ranked = [[4, 2, 9], [1, -1, -1], [5, 6, 7]]
    relevant = [np.array([2, 8]), np.array([1]), np.array([], np.int64)]
    found = retrieval_metrics(ranked, relevant, ks=(1, 2, 10))
    assert found["users"] == 2
    assert found["recall@1"] == pytest.approx((0 + 1) / 2)
    assert found["recall@2"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["hit@1"] == pytest.approx(1 / 2)
    assert found["hit@10"] == 1.0
    gain = 1 / math.log2(3)
    assert found["ndcg@2"] == pytest.approx((gain / (1 + gain) + 1) / 2)
    assert found["ndcg@10"] == found["ndcg@2"]


def test_the_end_of_a_list_is_not_an_item() -> None:
    found = retrieval_metrics([[-1, -1]], [np.array([-1, 3])], ks=(2,))
    assert found["recall@2"] == 0.0
    assert math.isnan(retrieval_metrics([[1]], [np.array([], np.int64)], ks=(1,))["ndcg@1"])


def test_the_interval_holds_the_auc_and_is_wider_for_whole_users() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(60), 20)
    taste = rng.normal(size=60)[users]
    y = (taste + rng.normal(size=users.size) > 0).astype(int)
    p = 1 / (1 + np.exp(-taste))
    low, high = auc_interval(y, p)
    wide_low, wide_high = auc_interval(y, p, groups=users)
    assert wide_low < low < roc_auc(y, p) < high < wide_high
    assert auc_interval(y, p, groups=users) == (wide_low, wide_high), "the same seed, the same interval"


def test_a_resample_is_the_auc_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 2, 40), rng.integers(0, 5, 40) / 5
    draws = np.random.default_rng(0).integers(40, size=40)
    low, high = auc_interval(y, p, groups=np.arange(40), resamples=1, seed=0)
    assert low == high == pytest.approx(roc_auc_score(y[draws], p[draws]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_metrics([0, 2], [0.1, 0.2]), "must be 0 or 1, found \\[2.0\\]"),
        (lambda: binary_metrics([0, 1], [0.1]), "lengths differ: y 2, p 1"),
        (lambda: roc_auc([0, 1], [0.1, np.nan]), "not finite"),
        (lambda: regression_metrics([[1.0]], [1.0]), "one dimension"),
        (lambda: retrieval_metrics([[1]], [], ks=(1,)), "with 0 users"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        call()
