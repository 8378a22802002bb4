"""Tables of quality: thresholds, unknown labels, whole-catalogue lists, and comparison over seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from small_world import SCHEMA, small_prepared

from fastmtr.errors import SchemaError
from fastmtr.evaluation.baselines import item_times_user_mean, popular_items
from fastmtr.evaluation.evaluate import (
    choose_thresholds,
    compare_with_single_task,
    evaluate,
    mean_interval,
    rank_catalogue,
    relevant_items,
    retrieval_quality,
)
from fastmtr.evaluation.metrics import best_f1_threshold, grouped_auc, roc_auc
from fastmtr.models import ModelConfig
from fastmtr.training.trainer import TrainerConfig


def test_each_task_is_measured_with_the_threshold_of_the_validation_samples() -> None:
    prepared = small_prepared()
    valid, test = prepared.valid, prepared.test
    thresholds = choose_thresholds(item_times_user_mean(prepared, valid), valid, schema=SCHEMA)
    assert set(thresholds) == {"click", "buy"}
    scores = item_times_user_mean(prepared, test)
    click, buy, watch = evaluate(scores, test, schema=SCHEMA, thresholds=thresholds, intervals=True)
    assert [click.task, buy.task, watch.task] == ["click", "buy", "watch"]
    assert click.metrics["threshold"] == thresholds["click"]
    assert thresholds["click"] == best_f1_threshold(valid.labels[:, 0], item_times_user_mean(prepared, valid)[:, 0])
    assert click.metrics["auc"] == roc_auc(test.labels[:, 0], scores[:, 0])
    assert click.metrics["gauc"] == grouped_auc(test.labels[:, 0], scores[:, 0], groups=test.user_rows)
    low, high = click.auc_interval
    assert low < click.metrics["auc"] < high
    assert watch.kind == "regression"
    assert watch.auc_interval is None
    assert watch.metrics["n"] == (~np.isnan(test.labels[:, 2])).sum()


def test_a_task_without_scores_is_left_out() -> None:
    test = small_prepared().test
    scores = np.full(test.labels.shape, 0.5)
    scores[:, 1] = np.nan
    assert [q.task for q in evaluate(scores, test, schema=SCHEMA)] == ["click", "watch"]


def test_unknown_labels_do_not_count() -> None:
    test = small_prepared().test
    labels = test.labels.copy()
    labels[::2, 0] = np.nan
    scores = np.random.default_rng(0).random(labels.shape)
    click = evaluate(scores, dataclasses.replace(test, labels=labels), schema=SCHEMA)[0]
    assert click.metrics["auc"] == roc_auc(test.labels[1::2, 0], scores[1::2, 0])


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(SchemaError, match="shape \\[samples, tasks\\]"):
        evaluate(np.zeros((3, 2)), small_prepared().test, schema=SCHEMA)


def test_relevant_items_are_each_users_positives() -> None:
    test = small_prepared().test
    users, items = relevant_items(test, schema=SCHEMA, task="click")
    assert list(users) == sorted(set(test.user_rows[test.labels[:, 0] == 1]))
    for user, mine in zip(users, items, strict=True):
        expected = test.item_rows[(test.user_rows == user) & (test.labels[:, 0] == 1)]
        assert sorted(mine) == sorted(expected)


def test_lists_of_the_whole_catalogue() -> None:
    table = np.array([[0.1, 0.9, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1]])
    users = np.array([1, 0, 1])
    found = rank_catalogue(lambda rows: table[rows], users, k=3, block=2)
    np.testing.assert_array_equal(found, [[0, 1, 2], [1, 2, 3], [0, 1, 2]])
    seen = {0: np.array([1, 3]), 1: np.array([], np.int64)}
    found = rank_catalogue(lambda rows: table[rows], users, k=5, exclude=seen.__getitem__)
    np.testing.assert_array_equal(found, [[0, 1, 2, 3, -1], [2, 0, -1, -1, -1], [0, 1, 2, 3, -1]])


def test_several_ways_to_rank_are_measured_side_by_side() -> None:
    prepared = small_prepared()
    users, relevant = relevant_items(prepared.test, schema=SCHEMA, task="click")
    popular = np.tile(popular_items(prepared, task="click")[:20], (len(users), 1))
    oracle = np.full((len(users), 20), -1)
    for i, items in enumerate(relevant):
        mine = np.unique(items)[:20]
        oracle[i, : len(mine)] = mine
    found = retrieval_quality({"popularity": popular, "oracle": oracle}, relevant, ks=(20,))
    assert found["oracle"] == {"users": len(users), "recall@20": 1.0, "ndcg@20": 1.0, "hit@20": 1.0}
    assert 0 < found["popularity"]["ndcg@20"] < 1


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.4])
    mean, (low, high) = mean_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean == pytest.approx(0.25)
    assert (low, high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("kind", ["shared_bottom", "esmm"])
def test_multi_task_and_single_task_are_compared_seed_by_seed(kind: str) -> None:
    config = ModelConfig(type=kind, bottom=(8,), tower=(4,))
    trained: list[str] = []
    found = compare_with_single_task(
        small_prepared(),
        config,
        trainer=TrainerConfig(epochs=1, batch_size=256, learning_rate=1e-2),
        seeds=(0, 1),
        metrics=("auc",),
        on_model=trained.append,
    )
    assert len(trained) == 2 * (1 + 3)
    assert ("click, buy (seed 0)" in trained) == (kind == "esmm")
    assert [(d.task, d.metric) for d in found.differences] == [("click", "auc"), ("buy", "auc"), ("watch", "rmse")]
    for d in found.differences:
        assert len(d.multi) == len(d.single) == 2
        assert d.mean == pytest.approx(np.mean(np.subtract(d.multi, d.single)))
        assert d.interval[0] <= d.mean <= d.interval[1]


def test_a_comparison_needs_two_seeds() -> None:
    with pytest.raises(SchemaError, match="at least two seeds"):
        compare_with_single_task(small_prepared(), ModelConfig(), seeds=(1,))
