"""Training: it learns, stops, repeats itself, keeps its best weights, and says what is wrong."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest
import torch
from small_world import SCHEMA, cut, small_prepared

from fastmtr.errors import ConfigError, FastMTRError, SchemaError
from fastmtr.evaluation.metrics import grouped_auc, roc_auc
from fastmtr.models import ModelConfig, MultiTaskModel, TwoTowerConfig, build_model
from fastmtr.training.samples import Prepared, Samples
from fastmtr.training.trainer import EpochRecord, TrainerConfig, _Retrieval, _Tensors, predict, train

CONFIGS = {
    "shared_bottom": ModelConfig(type="shared_bottom", bottom=(16,), tower=(8,)),
    "mmoe": ModelConfig(type="mmoe", experts=2, expert=(16,), tower=(8,)),
    "ple": ModelConfig(type="ple", shared_experts=1, task_experts=1, levels=2, expert=(16,), tower=(8,)),
    "esmm": ModelConfig(type="esmm", tower=(16, 8)),
}
QUICK = TrainerConfig(epochs=6, batch_size=64, learning_rate=1e-2, seed=3)


def build(name: str = "mmoe", **changes: object) -> MultiTaskModel:
    # From tiny embeddings the match of group and topic would take more epochs than a quick test has.
    config = msgspec.structs.replace(CONFIGS[name], **{"embedding_std": 0.3, **changes})
    return build_model(config, small_prepared().pipeline.inputs, schema=SCHEMA)


def scores(model: MultiTaskModel, samples: Samples | None = None) -> np.ndarray:
    prepared = small_prepared()
    return predict(model, prepared.test if samples is None else samples, catalogue=prepared.catalogue.packed)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_model_learns(name: str) -> None:
    prepared = small_prepared()
    model = build(name)
    result = train(model, prepared, config=QUICK, progress=False)
    found, labels = scores(model), prepared.test.labels
    assert found.shape == labels.shape
    assert roc_auc(labels[:, 0], found[:, 0]) > 0.75
    assert roc_auc(labels[:, 1], found[:, 1]) > 0.7
    known = ~np.isnan(labels[:, 2])
    assert np.corrcoef(labels[known, 2], found[known, 2])[0, 1] > 0.8
    assert result.best.score == max(r.score for r in result.history)
    assert not model.training


def test_two_trainings_give_the_same_bits() -> None:
    config = msgspec.structs.replace(QUICK, epochs=2, weighting="uncertainty", embedding_decay=1e-3)
    trained = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what was drawn before has no influence
        model = build(dropout=0.2, two_tower=TwoTowerConfig(dim=4, hidden=(8,)))
        train(model, small_prepared(), config=config, progress=False)
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    other = build(dropout=0.2, two_tower=TwoTowerConfig(dim=4, hidden=(8,)))
    train(other, small_prepared(), config=msgspec.structs.replace(config, seed=4), progress=False)
    assert not all(torch.equal(trained[0][name], other.state_dict()[name]) for name in trained[0])


def test_training_leaves_the_callers_state_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    train(build(dropout=0.2), small_prepared(), config=msgspec.structs.replace(QUICK, epochs=1), progress=False)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_it_stops_early_and_keeps_the_best_weights() -> None:
    records: list[EpochRecord] = []
    weights: list[dict[str, torch.Tensor]] = []
    model = build()

    def remember(record: EpochRecord) -> None:
        records.append(record)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    config = TrainerConfig(epochs=60, batch_size=64, learning_rate=3e-2, patience=2)
    result = train(model, small_prepared(), config=config, progress=False, on_epoch=remember)
    assert result.history == tuple(records)
    assert result.stopped_early
    assert len(records) == result.best_epoch + 2
    assert all(torch.equal(tensor, weights[result.best_epoch - 1][name]) for name, tensor in model.state_dict().items())


def test_the_score_is_the_weighted_mean_of_what_is_measured() -> None:
    result = train(build(), small_prepared(), config=msgspec.structs.replace(QUICK, epochs=1), progress=False)
    record = result.history[0]
    assert list(record.valid) == ["click", "buy", "watch"]
    weighted = record.valid["click"] + record.valid["buy"] + 0.2 * record.valid["watch"]
    assert record.score == pytest.approx(weighted / 2.2)
    assert set(record.task_losses) == {"click", "buy", "watch"}
    assert record.retrieval_loss is None


def test_without_validation_the_last_epoch_is_kept() -> None:
    prepared = small_prepared()
    nothing = cut(prepared.valid, np.arange(0))
    result = train(build(), dataclasses.replace(prepared, valid=nothing), config=QUICK, progress=False)
    assert result.best_epoch == QUICK.epochs
    assert not result.stopped_early
    assert math.isnan(result.best.score)


def test_fewer_tasks_than_the_samples_have() -> None:
    prepared = small_prepared()
    config = msgspec.structs.replace(CONFIGS["shared_bottom"], embedding_std=0.3)
    model = build_model(config, prepared.pipeline.inputs, schema=SCHEMA, tasks=["watch", "click"])
    train(model, prepared, config=QUICK, progress=False)
    found = scores(model)
    assert found.shape[1] == 2
    assert roc_auc(prepared.test.labels[:, 0], found[:, 1]) > 0.75


@pytest.mark.parametrize("name", ["mmoe", "esmm"])
def test_it_starts_from_the_base_rates(name: str) -> None:
    prepared = small_prepared()
    model = build(name, embedding_std=1e-6)
    config = msgspec.structs.replace(QUICK, epochs=1, learning_rate=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    train(model, prepared, config=config, progress=False)
    rates = np.nanmean(prepared.train.labels, axis=0)
    np.testing.assert_allclose(scores(model)[0], rates, rtol=1e-3)


def test_the_retrieval_head_learns_the_match() -> None:
    prepared = small_prepared()
    model = build(two_tower=TwoTowerConfig(dim=8, hidden=(16,), task="click", weight=1.0))
    result = train(model, prepared, config=msgspec.structs.replace(QUICK, epochs=10, patience=10), progress=False)
    losses = [r.retrieval_loss for r in result.history]
    assert losses[-1] < losses[0]
    with torch.no_grad():
        tensors = [torch.from_numpy(a) for a in (*prepared.users.packed, *prepared.catalogue.packed)]
        similarity = model.user_vector((tensors[0], tensors[1])) @ model.item_vector((tensors[2], tensors[3])).T
    test = prepared.test
    found = similarity.numpy()[test.user_rows, test.item_rows]
    # A softmax over items ranks within a user; it says nothing of who clicks more.
    assert grouped_auc(test.labels[:, 0], found, groups=test.user_rows) > 0.7


def test_embedding_decay_shrinks_the_embeddings() -> None:
    def size(decay: float) -> float:
        model = build()
        config = msgspec.structs.replace(QUICK, epochs=2, embedding_decay=decay)
        train(model, small_prepared(), config=config, progress=False)
        return sum(p.detach().square().sum().item() for p in model.inputs.tables.parameters())

    assert size(1e-2) < 0.5 * size(0.0)


def test_a_great_epsilon_keeps_embeddings_near_their_start() -> None:
    def moved(epsilon: float) -> float:
        model, start = build(), build()
        config = msgspec.structs.replace(QUICK, epochs=2, embedding_epsilon=epsilon)
        train(model, small_prepared(), config=config, progress=False)
        pairs = zip(model.inputs.tables.parameters(), start.inputs.tables.parameters(), strict=True)
        return sum((a - b).detach().square().sum().item() for a, b in pairs)

    assert 0 < moved(1.0) < 0.1 * moved(1e-8)


def test_a_last_batch_of_one_row_does_no_harm_with_batch_norm() -> None:
    prepared = small_prepared()
    few = dataclasses.replace(prepared, train=cut(prepared.train, np.arange(65)))
    model = build(batch_norm=True, two_tower=TwoTowerConfig(dim=4))
    train(model, few, config=msgspec.structs.replace(QUICK, batch_size=32, epochs=1), progress=False)


def test_predictions_do_not_depend_on_the_batch() -> None:
    model = build()
    catalogue = small_prepared().catalogue.packed
    whole = scores(model)
    pieces = predict(model, small_prepared().test, catalogue=catalogue, batch_size=7)
    np.testing.assert_allclose(whole, pieces, rtol=0, atol=1e-6)
    assert scores(model, cut(small_prepared().test, np.arange(0))).shape == (0, 3)


def test_what_cannot_be_trained_is_refused() -> None:
    prepared = small_prepared()
    with pytest.raises(SchemaError, match="no training sample"):
        train(build(), dataclasses.replace(prepared, train=cut(prepared.train, np.arange(0))), progress=False)
    with pytest.raises(ConfigError, match=r"two_tower.task must be a binary task of the model, one of .*found 'watch'"):
        train(build(two_tower=TwoTowerConfig(task="watch")), prepared, progress=False)
    negatives = cut(prepared.train, np.flatnonzero(prepared.train.labels[:, 1] == 0))
    with pytest.raises(SchemaError, match="positives of 'buy', but the training samples have none"):
        train(
            build(two_tower=TwoTowerConfig(task="buy")), dataclasses.replace(prepared, train=negatives), progress=False
        )
    assert prepared.train.item_dense is not None
    wild = dataclasses.replace(prepared.train, item_dense=np.full_like(prepared.train.item_dense, np.inf))
    with pytest.raises(FastMTRError, match=r"the loss became .* in epoch 1; lower learning_rate"):
        train(build(), dataclasses.replace(prepared, train=wild), config=QUICK, progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"epochs": 0}, "epochs must be at least 1"), ({"learning_rate": 0.0}, "learning_rate must be")],
)
def test_the_configuration_is_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**wrong)


def test_the_progress_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    train(build(), small_prepared(), config=msgspec.structs.replace(QUICK, epochs=1), progress=True)
    assert capsys.readouterr().out == ""


def test_prepared_is_what_the_tests_think() -> None:
    prepared: Prepared = small_prepared()
    assert prepared.train.candidate is not None
    assert np.isnan(prepared.train.labels[:, 2]).any()


def test_retrieval_batches_are_of_one_day_and_know_their_shares() -> None:
    prepared = small_prepared()
    model = build(two_tower=TwoTowerConfig(task="buy"))
    retrieval = _Retrieval(
        model, prepared, _Tensors(prepared.train, prepared.catalogue.packed, device=torch.device("cpu"))
    )
    train_samples = prepared.train
    bought = np.flatnonzero(train_samples.labels[:, 1] == 1)
    days = train_samples.timestamps // 86_400
    batches = retrieval.batches(20, np.random.default_rng(0))
    assert len(batches) == 20
    given = [b.numpy() for b in batches if b is not None]
    assert all(len(np.unique(days[rows])) == 1 for rows in given)
    rows = np.concatenate(given)
    assert len(np.unique(rows)) == len(rows) > 0.8 * len(bought)
    assert np.isin(rows, bought).all()
    for row in rows[:20]:
        of_day = bought[days[bought] == days[row]]
        share = (train_samples.item_rows[of_day] == train_samples.item_rows[row]).mean()
        assert retrieval.log_q[row].item() == pytest.approx(math.log(share), abs=1e-5)
