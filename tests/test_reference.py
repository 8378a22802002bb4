"""The reference against numbers worked out by hand or by plain loops."""

import math
from typing import Any

import numpy as np
import pytest

from cases import CASES, fill, model_graph
from fastmtr.compiler import compile_graph
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import GraphBuilder, Input, Packed
from fastmtr.operators import ACTIVATIONS, OPS
from fastmtr.reference import apply, evaluate, evaluate_plan, fuse


def run(op: str, *inputs: Any, weights: dict[str, Any] | None = None, **attrs: Any) -> list[Any]:
    dtype = np.int32 if op.startswith("embedding") else np.float64
    arrays = [np.atleast_2d(np.asarray(x, dtype=dtype)) for x in inputs]
    named = {role: np.asarray(w, dtype=np.float64) for role, w in (weights or {}).items()}
    result: list[Any] = apply(op, arrays, named, {**OPS[op].attrs, **attrs}.__getitem__).tolist()
    return result


SCALAR = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.3 * x,
    "prelu": lambda x: x if x > 0 else 0.7 * x,
    "elu": lambda x: x if x > 0 else 0.3 * (math.exp(x) - 1),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "exp": math.exp,
}


@pytest.mark.parametrize("fn", ACTIVATIONS)
def test_activations(fn: str) -> None:
    x = [-30.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 2.0, 30.0]
    weights = {"slope": [0.7] * len(x)} if fn == "prelu" else {}
    found = run("activation", x, activation=fn, alpha=0.3, weights=weights)
    np.testing.assert_allclose(found, [[SCALAR[fn](v) for v in x]], rtol=1e-12, atol=1e-14)


def test_activations_do_not_overflow() -> None:
    for fn in ("sigmoid", "silu", "softplus", "tanh", "gelu", "gelu_tanh", "elu"):
        found = run("activation", [-1e4, 1e4], activation=fn, alpha=1.0)
        assert np.isfinite(found).all(), fn


def test_affine() -> None:
    w, b = [[1, 2], [3, 4], [5, 6]], [0.5, 0, -100]
    assert run("affine", [1, 10], weights={"w": w, "b": b}, activation="relu") == [[21.5, 43, 0]]
    assert run("affine", [1, 10], [1, 1, 1], [[1, 2, 3], [0, 0, 0]], weights={"w": w}) == [[23, 46, 69], [22, 44, 66]]
    assert run("affine", [1, 2], [3, 4], weights={"b": [10, 20]}, has_x=False) == [[14, 26]]


def test_grouped_affine() -> None:
    w = [[[1, 2]], [[3, 4]]]
    assert run("affine", [1, 10, 100, 1000], weights={"w": w}, groups=2) == [[21, 4300]]
    assert run("affine", [1, 10], weights={"w": w}, groups=2, shared_x=True) == [[21, 43]]


def test_embedding() -> None:
    table = {"table": [[9, 9], [1, 2], [3, 4]]}
    ids = [[1, 0, 2], [0, 0, 0]]
    assert run("embedding", ids, weights=table) == [[1, 2, 9, 9, 3, 4], [9, 9, 9, 9, 9, 9]]
    assert run("embedding", ids, weights=table, padding=0) == [[1, 2, 0, 0, 3, 4], [0] * 6]
    assert run("embedding_bag", ids, weights=table, mode="sum") == [[4, 6], [0, 0]]
    assert run("embedding_bag", ids, weights=table, mode="mean") == [[2, 3], [0, 0]]
    assert run("embedding_bag", ids, weights=table, mode="mean", padding=None) == [[13 / 3, 5], [9, 9]]
    assert run("embedding_bag", ids, weights={"table": [[0, 0], [-1, -2], [-3, 4]]}, mode="max") == [[-1, 4], [0, 0]]


def test_softmax_and_mixture() -> None:
    found = run("softmax", [0, math.log(3), 1000, 1000], size=2)
    np.testing.assert_allclose(found, [[0.25, 0.75, 0.5, 0.5]])
    assert run("mixture", [2, 3], [1, 10], [100, 1000]) == [[302, 3020]]


def test_binary() -> None:
    for fn, expected in {
        "add": [5, 6],
        "sub": [1, 2],
        "mul": [6, 8],
        "div": [1.5, 2],
        "max": [3, 4],
        "min": [2, 2],
    }.items():
        assert run("binary", [3, 4], [2], fn=fn) == [expected]


def test_reduce() -> None:
    x = [1, 2, 3, 4, 5, 6, 7, 8]
    assert run("reduce", x, fn="sum", outer=2, axis=2, inner=2) == [[4, 6, 12, 14]]
    assert run("reduce", x, fn="mean", outer=1, axis=8, inner=1) == [[4.5]]
    assert run("reduce", x, fn="max", outer=1, axis=4, inner=2) == [[7, 8]]


def test_norms() -> None:
    np.testing.assert_allclose(
        run("layer_norm", [1, 3], eps=1e-12, weights={"scale": [2, 2], "shift": [1, 1]}), [[-1, 3]]
    )
    np.testing.assert_allclose(
        run("batch_norm", [1, 3], eps=0.0, weights={"mean": [1, 1], "var": [4, 4], "scale": [2, 2]}), [[0, 2]]
    )
    assert run("l2_normalize", [[3, 4], [0, 0]]) == [[0.6, 0.8], [0, 0]]
    assert run("dot", [1, 2, 3], [4, 5, 6]) == [[32]]


def test_concat_repeats_a_single_row() -> None:
    assert run("concat", [7], [[1, 2], [3, 4]]) == [[7, 1, 2], [7, 3, 4]]
    assert run("slice", [1, 2, 3, 4], offset=1, width=2) == [[2, 3]]


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_near(name: str) -> None:
    graph = CASES[name].graph
    packed = fill(graph, n_items=7)
    single, double = evaluate(graph, packed, dtype=np.float32), evaluate(graph, packed)
    for task in graph.tasks:
        assert single[task].dtype == np.float32
        np.testing.assert_allclose(single[task], double[task], rtol=1e-3, atol=1e-5)


def test_one_row_stands_for_all() -> None:
    graph = model_graph("mmoe")
    packed = fill(graph, n_items=7)
    repeated = {**packed, "request": packed["request"].take(np.zeros(7, int))}
    one, all_rows = evaluate(graph, packed), evaluate(graph, repeated)
    for name, value in one.items():
        assert value.shape == (7, 1)
        np.testing.assert_allclose(value, all_rows[name], rtol=1e-13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("item"), "item"),
        (lambda p: p.update(item=p["item"].take([0, 1, 2])), "N rows or 1"),
        (lambda p: p.update(item=Packed(p["item"].ids[:, :1], p["item"].dense)), "columns 1 to 2"),
        (lambda p: p["item"].ids.fill(1000), "ids must be"),
        (lambda p: p["item"].ids.fill(-1), "ids must be"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    graph = model_graph("esmm")
    packed = fill(graph, n_items=7)
    change(packed)
    with pytest.raises(SchemaError, match=message):
        evaluate(graph, packed)


def test_an_id_beyond_a_table_is_refused() -> None:
    g = GraphBuilder([Input("ids", "item", "ids", 0, 1)])
    g.output("click", g.embedding("ids", g.weight("t", np.ones((3, 1)))))
    for wrong in (3, -1):
        packed = Packed(np.array([[wrong]], np.int32), np.zeros((1, 0), np.float32))
        with pytest.raises(SchemaError, match="id"):
            evaluate(g.build(), {"item": packed})


def test_fusion() -> None:
    scores = np.array([[0.5, 0.25], [1.0, 0.0], [0.5, np.nan]])
    total = {"kind": "sum", "tasks": ["a", "b"], "weights": [2.0, 1.0], "offsets": [0.0, 0.0]}
    np.testing.assert_array_equal(fuse(scores, total), [1.25, 2.0, np.nan])
    product = {"kind": "product", "tasks": ["b", "a"], "weights": [0.5, 1.0], "offsets": [0.0, 0.0]}
    np.testing.assert_allclose(fuse(scores, product, tasks=["a", "b"]), [0.25, 1e-6, np.nan])
    shifted = {**product, "offsets": [0.75, 0.5]}
    np.testing.assert_allclose(fuse(scores, shifted, tasks=["a", "b"]), [1.0, math.sqrt(0.75) * 1.5, np.nan])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: plan["steps"].pop(0),
        lambda plan: plan["steps"].append(plan["steps"][-1]),
        lambda plan: plan["steps"][-1]["output"].__setitem__(2, 7),
        lambda plan: [b.update(stored=False) for b in plan["buffers"] if b["domain"] == "item"],
        lambda plan: [s.update(domain="item") for s in plan["steps"] if s["domain"] == "candidate"],
        lambda plan: plan["outputs"][0].update(role="item"),
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(spoil: Any) -> None:
    graph = model_graph("esmm")
    compiled = compile_graph(graph, n_items=11)
    spoil(compiled.plan)
    with pytest.raises(ConversionError):
        evaluate_plan(compiled.plan, compiled.weights, fill(graph), rows=[0, 1, 2, 3, 4, 5, 6])
