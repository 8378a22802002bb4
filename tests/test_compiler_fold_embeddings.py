"""Embeddings whose products are looked up."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from cases import assert_same_outputs
from fastmtr.compiler import compile_graph, explain
from fastmtr.compiler.dead_code import remove_dead_code
from fastmtr.compiler.fold_embeddings import Folded, fold_embeddings
from fastmtr.compiler.storage import Storage
from fastmtr.graph import Domain, Graph, GraphBuilder, Input
from random_graphs import random_graphs

NOTHING_STORED = Storage(frozenset(), {})


def model(
    domain: Domain, *, op: str = "embedding", d: int = 32, n: int = 4, rows: int = 7, lookups: int = 1, **attrs: Any
) -> Graph:
    """An affine over an embedding in that domain, columns of it, and a number."""
    rng = np.random.default_rng(0)
    g = GraphBuilder(
        [Input("ids", domain, "ids", 0, lookups, rows=rows, padding=0), Input("dense", domain, "dense", 0, 1)]
    )
    table = g.weight("table", rng.normal(size=(rows, d)))
    e = getattr(g, op)("ids", table, name="e", **attrs)
    x = g.concat([e, "dense", g.slice(e, d // 2, 2)])
    w = g.weight("w", rng.normal(size=(n, g.width(x))))
    g.output("click", g.reduce(g.affine(x, w=w, b=g.weight("b", rng.normal(size=n)), name="head"), "sum"))
    return g.build()


def folded(graph: Graph, **arguments: Any) -> tuple[Graph, Folded]:
    found = fold_embeddings(graph, arguments.pop("storage", NOTHING_STORED), **arguments)
    return remove_dead_code(found.graph), found


@settings(max_examples=100, deadline=None)
@given(graph=random_graphs())
def test_outputs_are_kept(graph: Graph) -> None:
    assert_same_outputs(graph, fold_embeddings(graph, NOTHING_STORED).graph, 1e-12)


@pytest.mark.parametrize("domain", ["request", "item", "candidate"])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"op": "embedding_bag", "mode": "sum", "lookups": 3, "n": 2, "d": 60},
        {"op": "embedding_bag", "mode": "mean", "lookups": 3, "n": 2, "d": 60},
    ],
)
def test_a_product_becomes_a_lookup(domain: Domain, padding: int | None, arguments: dict[str, Any]) -> None:
    before = model(domain, padding=padding, **arguments)
    after, found = folded(before)
    op = arguments.get("op", "embedding")
    assert [n.op for n in after.nodes] == [op, "affine", "reduce"]
    assert after.nodes[0].attr("padding") == padding
    assert after.nodes[1].inputs == ("dense", after.nodes[0].output)
    assert "e: folded" in found.remarks["head"]
    assert_same_outputs(before, after, 1e-6)


def test_each_id_of_a_history_is_looked_up_for_its_own_step() -> None:
    rng = np.random.default_rng(0)
    g = GraphBuilder(
        [Input("ids", "request", "ids", 0, 3, rows=5, padding=0), Input("dense", "request", "dense", 0, 6)]
    )
    e = g.embedding("ids", g.weight("table", rng.normal(size=(5, 8))), padding=0, name="e")
    rows = g.concat([part for step in range(3) for part in (g.slice(e, 8 * step, 8), g.slice("dense", 2 * step, 2))])
    w = g.weight("w", rng.normal(size=(4, 10)))
    g.output("click", g.reduce(g.affine(rows, w=w, b=g.weight("b", rng.normal(size=4)), steps=3, name="head"), "sum"))
    after, found = folded(g.build())
    assert [n.op for n in after.nodes] == ["embedding", "affine", "reduce"]
    assert after.width(after.nodes[0].output) == 3 * 4
    assert after.nodes[1].inputs == ("dense", after.nodes[0].output)
    assert "e: folded" in found.remarks["head"]
    assert_same_outputs(g.build(), after, 1e-6)


def test_nothing_may_be_left_of_the_product() -> None:
    g = GraphBuilder([Input("ids", "request", "ids", 0, 1, rows=3)])
    e = g.embedding("ids", g.weight("table", np.arange(24).reshape(3, 8)))
    g.output("click", g.affine(e, w=g.weight("w", np.ones((1, 8))), b=g.weight("b", [1.0]), activation="relu"))
    after, _ = folded(g.build())
    assert [(n.op, n.attrs.get("has_x")) for n in after.nodes] == [("embedding", None), ("affine", False)]
    assert_same_outputs(g.build(), after, 1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"op": "embedding_bag", "mode": "max"},
        {"lookups": 2},  # each id has weights of its own
    ],
)
def test_what_is_not_one_linear_lookup_stays(arguments: dict[str, Any]) -> None:
    before = model("request", **arguments)
    assert folded(before)[1] == Folded(before, {})


def test_a_lookup_that_takes_longer_than_the_product_is_not_made() -> None:
    before = model("candidate", d=4)
    after, found = folded(before)
    assert [n.op for n in after.nodes] == [n.op for n in before.nodes]
    assert "quicker" in found.remarks["head"]
    # For one request alone the weights have to be fetched, so there it is worth it.
    assert "e: folded" in folded(model("request", d=4))[1].remarks["head"]
    # Many look-ups of wide rows are not.
    many = model("request", op="embedding_bag", mode="sum", lookups=100, n=64)
    assert "quicker" in folded(many)[1].remarks["head"]


def test_a_lookup_that_others_need_is_not_saved() -> None:
    g = GraphBuilder([Input("ids", "candidate", "ids", 0, 1, rows=7), Input("dense", "candidate", "dense", 0, 1)])
    rng = np.random.default_rng(0)
    e = g.embedding("ids", g.weight("table", rng.normal(size=(7, 16))), name="e")
    w = g.weight("w", rng.normal(size=(4, 17)))
    g.output("click", g.reduce(g.affine(g.concat([e, "dense"]), w=w, name="head"), "sum"))
    assert "e: folded" in folded(g.build())[1].remarks["head"]
    g.output("like", g.reduce(e, "sum"))
    assert "quicker" in folded(g.build())[1].remarks["head"]


def test_groups_stay() -> None:
    g = GraphBuilder([Input("ids", "request", "ids", 0, 1, rows=7), Input("dense", "request", "dense", 0, 16)])
    rng = np.random.default_rng(0)
    e = g.embedding("ids", g.weight("table", rng.normal(size=(7, 16))))
    w = g.weight("w", rng.normal(size=(2, 4, 16)))
    g.output("click", g.reduce(g.affine(g.concat([e, "dense"]), w=w, groups=2), "sum"))
    before = g.build()
    assert folded(before)[1] == Folded(before, {})


def test_stored_item_values_are_not_folded() -> None:
    before = model("item")
    assert folded(before, storage=Storage(frozenset({"head"}), {}))[1] == Folded(before, {})


def test_memory_goes_to_what_saves_most_for_a_byte() -> None:
    rng = np.random.default_rng(0)
    rows = {"large": 50, "small": 5, "candidate": 60}
    domains: dict[str, Domain] = {"large": "request", "small": "request", "candidate": "candidate"}
    inputs = [Input(name, domains[name], "ids", i, 1, rows=n) for i, (name, n) in enumerate(rows.items())]
    g = GraphBuilder(inputs)
    for name, n in rows.items():
        e = g.embedding(name, g.weight(f"table.{name}", rng.normal(size=(n, 32))), name=f"e.{name}")
        hidden = g.affine(e, w=g.weight(f"w.{name}", rng.normal(size=(4, 32))), name=f"head.{name}")
        g.output(f"task.{name}", g.reduce(hidden, "sum"))
    size = {name: 4 * 4 * n for name, n in rows.items()}
    all_three = sum(size.values())
    for memory, expected in (
        (all_three, {"large", "small", "candidate"}),
        (all_three - 1, {"small", "candidate"}),
        (size["candidate"] + size["small"] - 1, {"candidate"}),
        (size["candidate"] - 1, {"small", "large"}),
        (0, set()),
    ):
        after, found = folded(g.build(), memory=memory)
        tables = {w: after.weights[w].nbytes for n in after.nodes for w in n.weights.values() if ".table" in w}
        assert sum(tables.values()) <= memory
        assert {name for name in rows if ": folded" in found.remarks[f"head.{name}"]} == expected
        assert all("allowed" in found.remarks[f"head.{name}"] for name in rows.keys() - expected)
        assert_same_outputs(g.build(), after, 1e-6)


def test_explain_tells_what_was_folded() -> None:
    compiled = compile_graph(model("request"))
    found = explain(compiled.plan, {name: w.shape for name, w in compiled.weights.items()})
    assert "e: folded, their products are looked up in tables of 112 bytes" in str(found)
    assert {s.op for s in found.steps} == {"embedding", "affine", "reduce"}
    kept = compile_graph(model("request"), fold_memory=0)
    assert "more than is allowed" in str(explain(kept.plan, {name: w.shape for name, w in kept.weights.items()}))
