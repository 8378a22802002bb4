"""Log to ranked list on real data: every kind of model, trained a little, compiled, and held against torch."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_world import cut

from fastmtr import _native
from fastmtr.bundle import write_bundle
from fastmtr.convert import convert
from fastmtr.datasets import kuairand
from fastmtr.models import ModelConfig, MultiTaskModel, TwoTowerConfig, build_model
from fastmtr.reference import fuse
from fastmtr.schema import Schema
from fastmtr.training.samples import Prepared
from fastmtr.training.trainer import TrainerConfig, predict, to_rows, train

CONFIGS = {
    "shared_bottom": ModelConfig(type="shared_bottom", bottom=(48, 32), tower=(16,)),
    "mmoe": ModelConfig(type="mmoe", experts=4, expert=(32, 16), tower=(8,), batch_norm=True, dropout=0.1),
    "ple": ModelConfig(type="ple", shared_experts=1, task_experts=1, levels=2, expert=(24, 16), tower=(8,)),
    "esmm": ModelConfig(type="esmm", tower=(32, 16)),
}
FUSION = {"kind": "product", "tasks": ["click", "like"], "weights": [1.0, 0.25], "offsets": [0.0, 0.01]}
K = 20


def schema() -> Schema:
    """The packaged schema; following, and commenting, depend on a click, so that ESMM has chains."""
    given = kuairand().config.schema
    tasks = tuple(
        msgspec.structs.replace(t, depends_on="click") if t.name in ("follow", "comment") else t for t in given.tasks
    )
    return msgspec.structs.replace(given, tasks=tasks)


@lru_cache(maxsize=1)
def prepared() -> Prepared:
    """All test samples, and an eighth of the training samples: how good a model is, is not the question here."""
    data = kuairand().prepare()
    return dataclasses.replace(data, train=cut(data.train, np.arange(0, data.train.n_rows, 8)))


@lru_cache(maxsize=4)
def trained(name: str) -> MultiTaskModel:
    """A model after one short epoch."""
    config = msgspec.structs.replace(CONFIGS[name], two_tower=TwoTowerConfig(dim=16, hidden=(24,)))
    model = build_model(config, prepared().pipeline.inputs, schema=schema())
    train(model, prepared(), config=TrainerConfig(epochs=1, batch_size=512), progress=False)
    return model


def load(name: str, path: Path, *, item_memory: int | str = "auto") -> _native.Model:
    """The engine's model of the compiled bundle."""
    bundle = write_bundle(
        path / "bundle",
        schema=schema(),
        graph=convert(trained(name)).graph,
        catalogue=prepared().catalogue,
        fusion=FUSION,
        item_memory=item_memory,
    )
    return _native.Model(bundle)


@pytest.mark.parametrize(("name", "item_memory"), [(n, m) for n in sorted(CONFIGS) for m in ("auto", 0)])
def test_the_engine_gives_torchs_probabilities(name: str, item_memory: int | str, tmp_path: Path) -> None:
    session = _native.Session(load(name, tmp_path, item_memory=item_memory))
    data, test = prepared(), prepared().test
    assert test.item_dense is None, "test samples see the catalogue that the bundle holds"
    scores, _ = session.score(
        test.request.ids,
        test.request.dense,
        np.arange(test.n_rows + 1),
        data.catalogue.keys[test.item_rows],
    )
    expected = predict(trained(name), test, catalogue=data.catalogue.packed)
    assert scores.shape == (test.n_rows, len(schema().tasks))
    assert scores.std(axis=0).min() > 0, "the scores say something"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_engine_gives_torchs_lists_and_vectors(name: str, tmp_path: Path) -> None:
    native = load(name, tmp_path)
    session, model, data = _native.Session(native), trained(name), prepared()
    requests = data.users.packed.take(np.arange(0, data.users.packed.n_rows, 1000))
    positions, fused, scores, counts = session.rank(requests.ids, requests.dense, None, None, k=K)
    assert (counts == K).all()
    items = to_rows(data.catalogue.packed)
    for r in range(requests.n_rows):
        with torch.inference_mode():
            found = model.probabilities(to_rows(requests.take([r])), items)
        p = torch.stack(list(found.values()), dim=1).double().numpy()
        expected = fuse(p, FUSION, tasks=list(found))
        best = np.argsort(-expected, kind="stable")[:K]
        # The same list; neighbours whose scores float32 cannot tell apart may stand in either order.
        np.testing.assert_allclose(expected[positions[r]], expected[best], rtol=2e-5)
        np.testing.assert_allclose(fused[r], expected[positions[r]], rtol=1e-4)
        np.testing.assert_allclose(scores[r], p[positions[r]], rtol=0, atol=1e-5)
        assert (np.diff(fused[r]) <= 0).all()
    with torch.inference_mode():
        users, vectors = model.user_vector(to_rows(requests)).numpy(), model.item_vector(items).numpy()
    found = session.request_output("user_vector", requests.ids, requests.dense)
    np.testing.assert_allclose(found, users, rtol=0, atol=1e-5)
    np.testing.assert_allclose(native.item_output("item_vector"), vectors, rtol=0, atol=1e-5)
