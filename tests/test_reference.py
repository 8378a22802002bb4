"""The reference against numbers worked out by hand or by plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from cases import CASES, fill, model_graph
from fastmtr.compiler import compile_graph
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import GraphBuilder, Input, Packed
from fastmtr.operators import ACTIVATIONS, OPS
from fastmtr.reference import apply, evaluate, evaluate_plan, fuse


def run(op: str, *inputs: Any, weights: dict[str, Any] | None = None, **attrs: Any) -> list[Any]:
    at = OPS[op].ids_at
    arrays = [np.atleast_2d(np.asarray(x, np.int32 if i == at else np.float64)) for i, x in enumerate(inputs)]
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
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "hard_sigmoid": lambda x: min(max(x / 6 + 0.5, 0.0), 1.0),
    "hard_swish": lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
    "softsign": lambda x: x / (1 + abs(x)),
    "log": lambda x: math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan),
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "abs": abs,
}


@pytest.mark.parametrize("fn", ACTIVATIONS)
def test_activations(fn: str) -> None:
    x = [-30.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 2.0, 30.0]
    weights = {"slope": [0.7] * len(x)} if fn == "prelu" else {}
    found = run("activation", x, activation=fn, alpha=0.3, weights=weights)
    np.testing.assert_allclose(found, [[SCALAR[fn](v) for v in x]], rtol=1e-12, atol=1e-14)


def test_activations_do_not_overflow() -> None:
    for fn in ("sigmoid", "silu", "softplus", "tanh", "gelu", "gelu_tanh", "elu", "selu", "mish", "softsign"):
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


def test_affine_of_steps() -> None:
    w, b = [[1, 2], [3, 4]], [0.5, 0]
    assert run("affine", [1, 10, 100, 0], weights={"w": w, "b": b}, steps=2) == [[21.5, 43, 100.5, 300]]
    added = run("affine", [1, 10, 100, 0], [1, 2], [0, 0, 0, 9], weights={"w": w}, steps=2)
    assert added == [[22, 45, 101, 311]]
    grouped = run("affine", [1, 10, 100, 1000], weights={"w": [[[1]], [[2]]]}, groups=2, steps=2)
    assert grouped == [[1, 20, 100, 2000]]
    slopes = run("affine", [-1, -1, 1, -1], weights={"slope": [2, 3]}, activation="prelu", has_x=False, steps=2)
    assert slopes == [[-2, -3, 1, -3]]


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


def test_norms_of_runs() -> None:
    found = run("layer_norm", [1, 3, 10, 20], eps=1e-12, size=2, weights={"scale": [2, 2], "shift": [1, 1]})
    np.testing.assert_allclose(found, [[-1, 3, -1, 3]])
    np.testing.assert_allclose(run("l2_normalize", [3, 4, 0, 5], size=2), [[0.6, 0.8, 0, 1]])


def test_rearranging() -> None:
    assert run("repeat", [1, 2, 3, 4], times=2) == [[1, 2, 3, 4, 1, 2, 3, 4]]
    assert run("repeat", [1, 2, 3, 4], times=2, outer=2) == [[1, 2, 1, 2, 3, 4, 3, 4]]
    assert run("transpose", [1, 2, 3, 4, 5, 6], a=2, b=3) == [[1, 4, 2, 5, 3, 6]]
    assert run("transpose", list(range(8)), outer=2, a=2, b=1, inner=2) == [list(range(8))]
    assert run("transpose", list(range(8)), a=2, b=2, inner=2) == [[0, 1, 4, 5, 2, 3, 6, 7]]


def test_matmul() -> None:
    assert run("matmul", [1, 2, 3, 4], [[1, 10], [0, 1]], m=2, k=2, n=1) == [[21, 43], [2, 4]]
    assert run("matmul", [1, 2, 3, 4], [1, 2, 3, 4], outer=2, m=1, k=2, n=1) == [[5, 25]]
    assert run("matmul", [1, 2], [1, 2, 10, 20], m=1, k=2, n=2) == [[21, 42]]
    assert run("matmul", [1, 2], [1, 2, 10, 20], m=1, k=2, n=2, transpose_b=True) == [[5, 50]]


def test_padding() -> None:
    ids = [[3, 0], [0, 0]]
    assert run("present", ids) == [[1, 0], [0, 0]]
    assert run("present", ids, padding=3) == [[0, 1], [1, 1]]
    assert run("mask", [1, 2, 3, 4], ids, value=-9.0) == [[1, 2, -9, -9], [-9, -9, -9, -9]]


def test_concat_repeats_a_single_row() -> None:
    assert run("concat", [7], [[1, 2], [3, 4]]) == [[7, 1, 2], [7, 3, 4]]
    assert run("slice", [1, 2, 3, 4], offset=1, width=2) == [[2, 3]]


TORCH_ACTIVATIONS = {
    "selu": F.selu,
    "mish": F.mish,
    "relu6": F.relu6,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "softsign": F.softsign,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "silu": F.silu,
    "gelu": F.gelu,
}


@pytest.mark.parametrize("fn", TORCH_ACTIVATIONS)
def test_activations_are_those_of_torch(fn: str) -> None:
    x = np.array([-math.inf, -50, -3.5, -3, -1, -1e-3, 0, 1e-3, 0.5, 2.5, 3, 6, 7, 40, math.inf])
    expected = TORCH_ACTIVATIONS[fn](torch.tensor(x)).numpy()
    finite = np.isfinite(x) | np.isin(fn, ["relu6", "log", "sqrt", "abs", "hard_sigmoid"])
    found = np.array(run("activation", x, activation=fn))[0]
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_gru_is_that_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.GRU(3, 5, batch_first=True, bias=bias, dtype=torch.float64)
    weights = {"w_x": layer.weight_ih_l0, "w_h": layer.weight_hh_l0}
    weights |= {"b_x": layer.bias_ih_l0, "b_h": layer.bias_hh_l0} if bias else {}
    arrays = {role: w.detach().numpy() for role, w in weights.items()}
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        states, last = layer(x)
    flat = x.reshape(6, 12).numpy()
    found = run("gru", flat, weights=arrays, steps=4, hidden=5, output="all")
    np.testing.assert_allclose(found, states.reshape(6, 20), atol=1e-14)
    np.testing.assert_allclose(run("gru", flat, weights=arrays, steps=4, hidden=5), last[0], atol=1e-14)

    # Padding at the end: torch's packed sequences; anywhere else: as if the step were not there.
    lengths = [4, 1, 3, 2, 4, 1]
    ids = np.array([[7] * n + [0] * (4 - n) for n in lengths])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        states, last = layer(packed)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
    padded = {"steps": 4, "hidden": 5, "padding": 0}
    found = run("gru", flat, ids, weights=arrays, output="all", **padded)
    np.testing.assert_allclose(found, states.reshape(6, 20), atol=1e-14)
    np.testing.assert_allclose(run("gru", flat, ids, weights=arrays, **padded), last[0], atol=1e-14)
    gap = run("gru", flat[:, :9], [[5, 0, 5]] * 6, weights=arrays, steps=3, hidden=5, padding=0)
    without = run("gru", np.delete(flat[:, :9], [3, 4, 5], axis=1), weights=arrays, steps=2, hidden=5)
    np.testing.assert_allclose(gap, without, atol=1e-14)
    assert not np.any(run("gru", flat, np.zeros((6, 4)), weights=arrays, **padded))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": 2}, {"dilation": 2, "padding": 1}, {"stride": 3, "padding": 1, "dilation": 3}],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv1d_is_that_of_torch(options: dict[str, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(3, 4, kernel_size=3, bias=bias, dtype=torch.float64, **options)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    weights = {"w": layer.weight.detach().numpy()} | ({"b": layer.bias.detach().numpy()} if bias else {})
    with torch.no_grad():
        expected = layer(x).swapaxes(1, 2).reshape(5, -1)
    found = run("conv1d", x.swapaxes(1, 2).reshape(5, -1), weights=weights, steps=8, **options)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_no_rows() -> None:
    for name, case in CASES.items():
        packed = fill(case.graph, n_items=1, n_candidates=0)
        for task, value in evaluate(case.graph, {"candidate": packed["candidate"]}).items():
            assert value.shape == (0, 1), (name, task)


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
