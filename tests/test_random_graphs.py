"""Random graphs: as they are, compiled, and executed by the engine they score the same, to the rounding of float32."""

from typing import Any

import numpy as np
import pytest
from handmade import ISAS
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import fill
from error_bounds import error_bounds
from fastmtr._native import Model, Session
from fastmtr.compiler import compile_graph
from fastmtr.graph import Graph
from fastmtr.operators import ACTIVATIONS, OPS
from fastmtr.reference import evaluate, evaluate_plan
from random_graphs import random_graph, random_graphs
from scenes import N_ITEMS, Scene

MEMORIES = ("auto", 0)

# ---- the bound and the generator themselves --------------------------------------------------------------------------


def test_the_generator_reaches_everything() -> None:
    graphs = [random_graph(seed, size=16) for seed in range(150)]
    nodes = [(n, g) for g in graphs for n in g.nodes]
    assert {(n.op, g.domain(n.output)) for n, g in nodes} >= {
        (op, domain) for op in OPS for domain in ("request", "item", "candidate")
    }
    assert {n.attrs["activation"] for n, _ in nodes if "activation" in n.attrs} == set(ACTIVATIONS)
    assert {g.domain(o.value) for g in graphs for o in g.outputs if o.role == "task"} == {
        "request",
        "item",
        "candidate",
    }
    mixtures = {len(n.inputs) for n, _ in nodes if n.op == "mixture"}
    assert 2 in mixtures, "a gate of one expert"
    assert {1, 2} <= {n.attrs["steps"] for n, _ in nodes if n.op == "gru"}
    padded = [
        (fill(g)[i.domain].ids[:, i.offset : i.offset + i.width] == i.padding).all(axis=1).any()
        for g in graphs
        for i in g.inputs
        if i.padding is not None and i.width > 1
    ]
    assert any(padded), "a row of nothing but padding"


def test_the_bound_is_of_use() -> None:
    """Float32 in another order stays within it; and it is not so wide that it says nothing."""
    worst, shares = [], []
    for seed in range(60):
        graph = random_graph(seed, size=12)
        packed = fill(graph, n_items=7)
        single, double = evaluate(graph, packed, dtype=np.float32), evaluate(graph, packed)
        for name, bound in error_bounds(graph, packed).items():
            error = abs(single[name] - double[name])
            assert (error <= bound).all(), (seed, name)
            if bound.max() > 0:
                worst.append(bound.max() / (1 + abs(double[name]).max()))
                shares.append(error.max() / bound.max())
    assert np.median(worst) < 1e-5
    assert np.quantile(worst, 0.95) < 1e-3
    assert np.quantile(shares, 0.95) > 1e-3


# ---- the compiler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item_memory", MEMORIES)
@settings(max_examples=60, deadline=None)
@given(graph=random_graphs(), n=st.sampled_from([0, 1, 7]))
def test_compiled(item_memory: Any, graph: Graph, n: int) -> None:
    scene = Scene.of(graph, n=n)
    compiled = compile_graph(graph, n_items=N_ITEMS, item_memory=item_memory)
    found = evaluate_plan(compiled.plan, compiled.weights, scene.packed, rows=scene.rows)
    for o in graph.outputs:
        scene.check(o.name, o.role, found[o.name])


# ---- the engine ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    graph=random_graphs(),
    item_memory=st.sampled_from(MEMORIES),
    tile=st.sampled_from([0, 1, 3]),
    n=st.sampled_from([0, 1, 7]),
)
def test_executed(graph: Graph, item_memory: Any, tile: int, n: int) -> None:
    scene = Scene.of(graph, n=n)
    with scene.bundle(item_memory=item_memory) as path:
        for isa in ISAS:
            scene.check_engine(path, isa=isa, tile=tile)


@settings(deadline=None, max_examples=40)
@given(graph=random_graphs(), item_memory=st.sampled_from(MEMORIES), seed=st.integers(0, 99))
def test_bits_depend_on_nothing_else(graph: Graph, item_memory: Any, seed: int) -> None:
    """Number and order of candidates, tile and threads leave every bit as it is, on each instruction set."""
    n = 37
    scene = Scene.of(graph, n=n, seed=seed)
    order = np.random.default_rng(seed).permutation(n)
    with scene.bundle(item_memory=item_memory) as path:
        for isa in ISAS:
            model = Model(path, isa=isa)
            expected, _ = scene.score(Session(model))
            for tile in (1, 2, 5, 16):
                session = Session(model, tile=tile, threads=1 + tile % 2)
                for chosen in (slice(None), order, order[:9], order[:1], slice(0, 0)):
                    found, _ = scene.score(session, chosen)
                    assert found.tobytes() == np.ascontiguousarray(expected[chosen]).tobytes(), (isa, tile)
