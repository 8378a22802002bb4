"""The native engine executes compiled plans as the reference evaluates their graphs, on each instruction set."""

import json
from typing import Any

import numpy as np
import pytest
from handmade import ISAS

from cases import CASES, MODELS, model_graph
from fastmtr._native import Model, Session
from fastmtr.bundle import open_bundle
from fastmtr.graph import Domain, GraphBuilder, Input
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


@pytest.mark.parametrize("item_memory", ["auto", 0])
@pytest.mark.parametrize("embedding_precision", ["fp32", "fp16"])
@pytest.mark.parametrize("domain", ["request", "item", "candidate"])
def test_a_lookup_that_is_only_added_is_read_where_it_lies(
    domain: Domain, embedding_precision: Any, item_memory: Any
) -> None:
    rng = np.random.default_rng(0)
    ids = [Input(f"id{i}", domain, "ids", i, 1, rows=9) for i in range(3)]
    g = GraphBuilder([*ids, Input("x", "candidate", "dense", 0, 4)])
    tables = rng.normal(size=(3, 9, 200)).astype(np.float16)  # exact in either precision
    parts = [g.embedding(f"id{i}", g.weight(f"table{i}", table)) for i, table in enumerate(tables)]
    w = g.weight("w", rng.normal(size=(200, 4)))
    added = g.affine("x", w=w, addends=parts) if domain == "candidate" else g.affine(addends=parts)
    g.output("click", g.reduce(g.activation(added, "tanh"), "mean"))
    scene = Scene.of(g.build())
    with scene.bundle(item_memory=item_memory, embedding_precision=embedding_precision) as path:
        for isa in ISAS:
            scene.check_engine(path, isa=isa, tile=3)
        model = Model(path)
        scene.check_together(Session(model, tile=4), Session(model), [2, 1, 3] * 5)
        assert json.loads(model.describe())["workspace_floats_a_candidate"] < 3 * 200


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
