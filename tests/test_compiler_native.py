"""The native engine executes compiled plans as the reference evaluates their graphs, on each instruction set."""

import json
from typing import Any

import numpy as np
import pytest
from handmade import ISAS

from cases import CASES, MODELS, fill, model_graph
from fastmtr._native import Model, Session
from fastmtr.bundle import open_bundle
from scenes import Scene


@pytest.mark.parametrize("name", CASES)
def test_each_operator(name: str) -> None:
    scene = Scene.of(CASES[name].graph)
    with scene.bundle() as path:
        for isa in ISAS:
            scene.check_engine(path, isa=isa, tile=3)
        assert_costs_are_those_of_the_compiler(path)


@pytest.mark.parametrize("name", CASES)
def test_requests_that_share_tiles_have_the_bits_of_each_alone(name: str) -> None:
    scene = Scene.of(CASES[name].graph)
    counts = [2, 0, 1, 3, 1, 0, 5, 2, 1] * 3  # more requests than a block has
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    packed = [fill(scene.graph, n_candidates=n, seed=i) for i, n in enumerate(counts)]
    ids, dense, candidate_ids, candidate_dense = (
        np.concatenate([getattr(p[domain], kind) for p in packed])
        for domain in ("request", "candidate")
        for kind in ("ids", "dense")
    )
    items = np.random.default_rng(0).choice(scene.keys, offsets[-1])
    with scene.bundle() as path:
        model = Model(path)
        together = Session(model, tile=4).score(
            ids, dense, offsets, items, candidate_ids=candidate_ids, candidate_dense=candidate_dense
        )
        alone = Session(model)
        for r, n in enumerate(counts):
            of = slice(int(offsets[r]), int(offsets[r]) + n)
            found = alone.score(
                ids[r : r + 1],
                dense[r : r + 1],
                np.array([0, n], np.uint64),
                items[of],
                candidate_ids=candidate_ids[of],
                candidate_dense=candidate_dense[of],
            )
            for a, b in zip(found, together, strict=True):
                np.testing.assert_array_equal(a, b[of])


def assert_costs_are_those_of_the_compiler(path: str) -> None:
    expected = open_bundle(path).explain()
    found = json.loads(Model(path).explain())["steps"]
    columns = ("name", "flops", "table_bytes", "weight_bytes", "for_tasks")
    assert [tuple(s[c] for c in columns) for s in found] == [
        tuple(getattr(s, c) for c in columns) for s in expected.steps
    ]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("item_memory", ["auto", 0])
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: Any, item_memory: Any, batch_norm: bool) -> None:
    scene = Scene.of(model_graph(kind, batch_norm=batch_norm))
    with scene.bundle(item_memory=item_memory) as path:
        for isa in ISAS:
            scene.check_engine(path, isa=isa)
