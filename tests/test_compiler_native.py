"""The native engine executes compiled plans as the reference evaluates their graphs."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_graphs import FIRST, random_graphs

from cases import CASES, MODELS, fill, model_graph, task_scores
from fastmtr import _native
from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.compiler import compile_graph
from fastmtr.errors import BundleError
from fastmtr.graph import Graph
from fastmtr.reference import evaluate, fuse
from fastmtr.schema import Feature, Schema, Task

MEMORIES = ("auto", 0)


def schema_of(graph: Graph) -> Schema:
    features = (Feature(name="any", entity="user", kind="numeric"),)
    return Schema(user="user", item="item", features=features, tasks=tuple(Task(name=t) for t in graph.tasks))


def assert_native_is_reference(
    graph: Graph, *, item_memory: Any = "auto", tile: int = 0, tolerance: float = 1e-4
) -> None:
    packed = fill(graph, n_items=11, n_candidates=7)
    keys = np.arange(11, dtype=np.int64) * 7 - 5
    fusion = {"kind": "sum", "weights": list(np.linspace(0.5, 1, len(graph.tasks)))}
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_bundle(
                Path(folder) / "bundle",
                schema=schema_of(graph),
                graph=graph,
                catalogue=Catalogue(keys, packed["item"]),
                fusion=fusion,
                item_memory=item_memory,
            )
        except BundleError as error:  # until the engine executes plans of version 2
            if "plan_version is 2" not in str(error):
                raise
            pytest.skip("the engine does not execute plans of version 2")
        model = _native.Model(str(path))
        session = _native.Session(model, tile=tile)
        rows = np.random.default_rng(0).integers(0, 11, 7)
        inputs = packed["request"].ids, packed["request"].dense
        scores, fused = session.score(
            *inputs,
            np.array([0, 7], np.int64),
            keys[rows],
            candidate_ids=packed["candidate"].ids,
            candidate_dense=packed["candidate"].dense,
        )
        of_rows = evaluate(graph, {**packed, "item": packed["item"].take(rows)})
        expected = task_scores(of_rows, graph)
        assert_close(scores, expected, tolerance)
        assert_close(fused, fuse(scores.astype(np.float64), {**fusion, "tasks": graph.tasks}), 1e-5)
        of_items = evaluate(graph, {**packed, "candidate": packed["candidate"].take([0])})
        for o in graph.outputs:
            if o.role == "item":
                assert_close(model.item_output(o.name), of_items[o.name], tolerance)
            if o.role == "request":
                assert_close(session.request_output(o.name, *inputs), of_items[o.name], tolerance)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * (1 + abs(expected).max()))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(graph=random_graphs(grow=FIRST), item_memory=st.sampled_from(MEMORIES), tile=st.sampled_from([0, 1, 3]))
def test_random_graphs(graph: Graph, item_memory: Any, tile: int) -> None:
    assume(compile_graph(graph).plan["plan_version"] == 1)  # until the engine executes plans of version 2
    assert_native_is_reference(graph, item_memory=item_memory, tile=tile)


@pytest.mark.parametrize("name", CASES)
def test_each_operator(name: str) -> None:
    assert_native_is_reference(CASES[name].graph, tolerance=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("item_memory", MEMORIES)
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: Any, item_memory: Any, batch_norm: bool) -> None:
    graph = model_graph(kind, batch_norm=batch_norm)
    assert_native_is_reference(graph, item_memory=item_memory, tolerance=1e-5)
