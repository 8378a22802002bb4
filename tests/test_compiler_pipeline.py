"""Compilation as a whole: the plan computes what the graph computes, and is factored as promised."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, MODELS, fill, model_graph
from fastmtr.compiler import Compiled, compile_graph
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, GraphBuilder, Input
from fastmtr.reference import evaluate, evaluate_plan, fuse
from random_graphs import EXACT, random_graphs

MEMORIES = ("auto", 0, 40)


def assert_plan_is_graph(graph: Graph, compiled: Compiled, tolerance: float) -> None:
    packed = fill(graph)
    n_items = packed["item"].n_rows
    rows = np.random.default_rng(1).integers(0, n_items, packed["candidate"].n_rows)
    found = evaluate_plan(compiled.plan, compiled.weights, packed, rows=rows)
    of_rows = evaluate(graph, {**packed, "item": packed["item"].take(rows)})
    of_items = evaluate(
        graph, {"request": packed["request"], "item": packed["item"], "candidate": packed["candidate"].take([0])}
    )
    for o in graph.outputs:
        expected = (of_items if o.role == "item" else of_rows)[o.name]
        limit = tolerance * (1 + abs(expected).max())
        np.testing.assert_allclose(found[o.name], expected, rtol=0, atol=limit, err_msg=o.name)
    if graph.tasks:
        scores = np.concatenate([found[t] for t in graph.tasks], axis=1)
        np.testing.assert_array_equal(found[""], fuse(scores, compiled.plan["fusion"]))


@pytest.mark.parametrize("item_memory", MEMORIES)
@settings(max_examples=120, deadline=None)
@given(graph=random_graphs(grow=EXACT), n_items=st.sampled_from([0, 11, 10**9]))
def test_plan_computes_what_the_graph_does(item_memory: Any, graph: Graph, n_items: int) -> None:
    # What is computed from a softmax over one column is a constant, rounded to float32.
    constants = any(n.op == "softmax" and n.attr("size") == 1 for n in graph.nodes)
    compiled = compile_graph(graph, n_items=n_items, item_memory=item_memory)
    assert_plan_is_graph(graph, compiled, 1e-5 if constants else 1e-11)


@pytest.mark.parametrize("name", CASES)
def test_each_operator_compiles(name: str) -> None:
    assert_plan_is_graph(CASES[name].graph, compile_graph(CASES[name].graph), 1e-6)


@pytest.mark.parametrize("item_memory", MEMORIES)
@pytest.mark.parametrize("kind", MODELS)
def test_models_compile(kind: Any, item_memory: Any) -> None:
    graph = model_graph(kind)
    assert_plan_is_graph(graph, compile_graph(graph, n_items=11, item_memory=item_memory, fold_memory=0), 1e-12)
    assert_plan_is_graph(graph, compile_graph(graph, n_items=11, item_memory=item_memory), 1e-6)
    graph = model_graph(kind, batch_norm=True)
    assert_plan_is_graph(graph, compile_graph(graph, n_items=11, item_memory=item_memory), 1e-5)


def steps(compiled: Compiled, domain: str) -> list[dict[str, Any]]:
    return [s for s in compiled.plan["steps"] if s["domain"] == domain]


def test_mmoe_is_factored_as_promised() -> None:
    compiled = compile_graph(model_graph("mmoe", batch_norm=True), n_items=1000)
    plan = compiled.plan
    candidate = steps(compiled, "candidate")
    # Sums of stored and request parts for experts and gates; grouped second layers; one softmax; a mixture a task.
    assert Counter(s["op"] for s in candidate) == {"affine": 5, "softmax": 1, "mixture": 3}
    sums = [s for s in candidate if s["op"] == "affine" and not s["attrs"]["has_x"]]
    assert {s["output"][2] for s in sums} == {8 * 32, 3 * 8}
    for s in sums:
        assert [plan["buffers"][b]["domain"] for b, _, _ in s["inputs"]] == ["request", "item"]
    grouped = [s["attrs"]["groups"] for s in candidate if s["op"] == "affine" and s["attrs"]["has_x"]]
    assert grouped == [8, 3, 3]
    assert next(s for s in candidate if s["op"] == "softmax")["attrs"]["size"] == 8
    # One product for the request's part of experts and gates; nothing is copied for a candidate.
    assert [s["output"][2] for s in steps(compiled, "request") if s["op"] == "affine"] == [8 * 32 + 3 * 8]
    stored = [b for b in plan["buffers"] if b["domain"] == "item" and b["stored"] and b["dtype"] == "f32"]
    assert sum(b["width"] for b in stored) == 8 * 32 + 3 * 8 + 1  # and the price


def test_ple_experts_are_stacked_and_grouped() -> None:
    candidate = steps(compile_graph(model_graph("ple"), n_items=1000), "candidate")
    groups = sorted(s["attrs"]["groups"] for s in candidate if s["op"] == "affine" and s["attrs"]["has_x"])
    assert groups[-3:] == [4, 8, 8]  # second level, first layers; second layers of both levels
    assert "copy" not in {s["op"] for s in candidate}


def test_no_memory_stores_inputs_and_outputs_alone() -> None:
    compiled = compile_graph(model_graph("mmoe"), n_items=1000, item_memory=0)
    stored = {b["name"] for b in compiled.plan["buffers"] if b["domain"] == "item" and b["stored"]}
    assert stored == {"item_id", "category", "price"}
    assert not steps(compiled, "item")
    assert all("memory" in s["remark"] for s in steps(compiled, "candidate") if s["op"] == "embedding")


def test_memory_is_given_to_what_saves_most() -> None:
    graph = model_graph("mmoe")
    widths = []
    for memory in (0, 300 * 1000, 1200 * 1000):
        plan = compile_graph(graph, n_items=1000, item_memory=memory).plan
        stored = [b for b in plan["buffers"] if b["domain"] == "item" and b["stored"] and b["dtype"] == "f32"]
        widths.append(sum(b["width"] for b in stored) - 1)
        assert 4 * widths[-1] * 1000 <= memory
    assert widths[0] == 0
    assert widths[0] < widths[1] < widths[2]


def test_two_tower_scores_from_stored_vectors() -> None:
    compiled = compile_graph(model_graph("two_tower"), n_items=1000, item_memory=0)
    assert [s["op"] for s in steps(compiled, "candidate")] == ["gather", "dot", "activation"]


def test_item_values_that_candidates_read_side_by_side_are_one_gather() -> None:
    compiled = compile_graph(model_graph("cross"), n_items=1000)
    gathers = [s for s in steps(compiled, "candidate") if s["op"] == "gather"]
    assert sorted(s["output"][2] for s in gathers) == [1, 1, 24]  # the price, a task of the item alone, two embeddings


@pytest.mark.parametrize("item_memory", MEMORIES)
def test_a_history_is_factored_as_promised(item_memory: Any) -> None:
    compiled = compile_graph(model_graph("history"), n_items=11, item_memory=item_memory, fold_memory=0)
    # What depends on the user alone is done once a request; the attention multiplies nothing but query times key.
    assert {s["op"] for s in steps(compiled, "request")} >= {"gru", "conv1d"}
    assert not {s["op"] for s in steps(compiled, "candidate")} & {"gru", "conv1d"}
    product = next(s for s in steps(compiled, "candidate") if s["attrs"].get("steps") == 5)
    assert [operand[2] for operand in product["inputs"]] == [
        5 * 16,
        5 * 8,
        8,
    ]  # q * k; then W k, and W q for every step
    domains = [compiled.plan["buffers"][b]["domain"] for b, _, _ in product["inputs"]]
    assert domains == ["candidate", "request", "item" if item_memory == "auto" else "candidate"]


@pytest.mark.parametrize(
    ("case", "version"),
    [
        ("affine-3x5", 1),
        ("layer_norm-2", 1),
        ("softmax-4-4", 1),
        ("activation-gelu-1", 1),
        ("activation-mish-1", 2),
        ("affine-mish-1", 2),
        ("affine-steps-5-2x3x2", 2),
        ("layer_norm-3x7", 2),
        ("l2_normalize-3x7", 2),
        ("gru-last-3x5", 2),
    ],
)
def test_a_plan_has_the_first_version_that_knows_all_its_members(case: str, version: int) -> None:
    plan = compile_graph(CASES[case].graph).plan
    assert plan["plan_version"] == version
    if version == 1:
        assert not any("steps" in s["attrs"] or (s["op"] != "softmax" and "size" in s["attrs"]) for s in plan["steps"])


@pytest.mark.parametrize(("precision", "version"), [("fp32", 1), ("fp16", 2), ("int8", 2)])
def test_stored_values_in_fewer_bits_are_of_version_2(precision: Any, version: int) -> None:
    plan = compile_graph(model_graph("mmoe"), n_items=11, item_precision=precision).plan
    assert plan["plan_version"] == version


def test_tasks_of_one_domain_still_score_candidates() -> None:
    plan = compile_graph(model_graph("cross")).plan
    domain = {o["name"]: plan["buffers"][o["operand"][0]]["domain"] for o in plan["outputs"]}
    assert domain == {"click": "candidate", "popular": "candidate", "active": "request"}


def test_compilation_is_deterministic() -> None:
    one, two = (compile_graph(model_graph("ple"), n_items=50) for _ in range(2))
    assert one.plan == two.plan
    assert list(one.weights) == list(two.weights)


def test_weights_of_graph_and_plan_fit_in_one_file() -> None:
    graph = model_graph("mmoe", batch_norm=True)
    compiled = compile_graph(graph)
    for name in graph.weights.keys() & compiled.weights.keys():
        np.testing.assert_array_equal(graph.weights[name], compiled.weights[name])


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"kind": "max"}, "product"),
        ({"tasks": ["nothing"]}, "nothing"),
        ({"tasks": ["click", "click"]}, "once"),
        ({"weights": [1.0]}, "2 finite numbers"),
        ({"offsets": [0.0, float("nan")]}, "finite"),
        ({"wieghts": []}, "wieghts"),
    ],
)
def test_a_wrong_fusion_is_refused(fusion: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        compile_graph(model_graph("esmm"), fusion=fusion)


def test_weights_that_are_not_finite_are_refused() -> None:
    graph = model_graph("esmm")
    broken = dict(graph.weights)
    broken["w5"] = np.full_like(broken["w5"], np.inf)
    with pytest.raises(ConversionError, match="w5"):
        compile_graph(Graph(graph.inputs, graph.nodes, graph.outputs, broken))


@pytest.mark.parametrize("arguments", [{"n_items": -1}, {"item_memory": -5}, {"fold_memory": -5}])
def test_wrong_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="-"):
        compile_graph(model_graph("esmm"), **arguments)


def test_an_id_input_without_rows_gets_those_of_its_smallest_table() -> None:
    g = GraphBuilder(
        [Input("a", "request", "ids", 0, 1), Input("b", "item", "ids", 0, 2), Input("c", "item", "ids", 2, 1)]
    )
    x = g.embedding("a", g.weight("t7", np.ones((7, 1))))
    y = g.embedding("a", g.weight("t5", np.ones((5, 1))))
    z = g.reduce(g.embedding_bag("b", g.weight("t9", np.ones((9, 2)))), "sum")
    g.output("click", g.add(g.add(x, y), z))
    rows = {i["name"]: i["rows"] for i in compile_graph(g.build()).plan["inputs"]}
    assert rows == {"a": 5, "b": 9, "c": 2**31 - 1}
