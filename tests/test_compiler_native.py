"""The native engine executes compiled plans as the reference evaluates their graphs, on each instruction set."""

import json
from typing import Any

import pytest
from handmade import ISAS

from cases import CASES, MODELS, model_graph
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
    with scene.bundle() as path:
        model = Model(path)
        scene.check_together(Session(model, tile=4), Session(model), counts)


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
