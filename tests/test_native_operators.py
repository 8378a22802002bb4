"""Each operator of the engine against float64 NumPy, in each domain and on every instruction set there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ISAS, PlanMaker
from numpy.typing import NDArray

from fastmtr._native import Model, Session

RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(9, 3))
W32, B32 = RNG.normal(size=(5, 6)), RNG.normal(size=5)
GROUPED, SHARED = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 5, 6))
SLOPE, SCALE, SHIFT = RNG.uniform(0, 1, 6), RNG.normal(size=6), RNG.normal(size=6)


def _softmax(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _erf(x: NDArray[Any]) -> NDArray[Any]:
    return np.vectorize(math.erf)(x)


def _layer_norm(x: NDArray[Any], eps: float = 1e-5) -> NDArray[Any]:
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps)


def _bag(ids: NDArray[Any], mode: str) -> NDArray[Any]:
    rows = []
    for row in ids:
        real = TABLE[row[row != 0]]
        rows.append(np.zeros(3) if len(real) == 0 else getattr(np, mode)(real, axis=0))
    return np.array(rows)


X = [["x"], ["x", "y"]]
# name: (op, inputs, output width, attrs, weights, meaning)
OPERATORS: dict[str, tuple[str, list[str], int, dict[str, Any], dict[str, Any], Callable[..., Any]]] = {
    "copy": ("copy", ["x"], 6, {}, {}, lambda x: x),
    "affine": ("affine", ["x"], 5, {}, {"w": W32, "b": B32}, lambda x: x @ W32.T + B32),
    "affine of groups": (
        "affine",
        ["x"],
        10,
        {"groups": 2},
        {"w": GROUPED},
        lambda x: np.einsum("rgk,gnk->rgn", x.reshape(-1, 2, 3), GROUPED).reshape(-1, 10),
    ),
    "affine of groups that share x": (
        "affine",
        ["x"],
        10,
        {"groups": 2, "shared_x": True},
        {"w": SHARED},
        lambda x: np.einsum("rk,gnk->rgn", x, SHARED).reshape(-1, 10),
    ),
    "sum of addends": (
        "affine",
        ["x", "y"],
        6,
        {"has_x": False, "activation": "relu"},
        {"b": SHIFT},
        lambda x, y: np.maximum(x + y + SHIFT, 0),
    ),
    "relu": ("activation", ["x"], 6, {"activation": "relu"}, {}, lambda x: np.maximum(x, 0)),
    "none": ("activation", ["x"], 6, {"activation": "none"}, {}, lambda x: x),
    "leaky_relu": (
        "activation",
        ["x"],
        6,
        {"activation": "leaky_relu", "alpha": 0.2},
        {},
        lambda x: np.where(x > 0, x, 0.2 * x),
    ),
    "prelu": (
        "activation",
        ["x"],
        6,
        {"activation": "prelu"},
        {"slope": SLOPE},
        lambda x: np.where(x > 0, x, SLOPE * x),
    ),
    "elu": (
        "activation",
        ["x"],
        6,
        {"activation": "elu", "alpha": 0.7},
        {},
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
    ),
    "sigmoid": ("activation", ["x"], 6, {"activation": "sigmoid"}, {}, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": ("activation", ["x"], 6, {"activation": "tanh"}, {}, np.tanh),
    "silu": ("activation", ["x"], 6, {"activation": "silu"}, {}, lambda x: x / (1 + np.exp(-x))),
    "gelu": ("activation", ["x"], 6, {"activation": "gelu"}, {}, lambda x: x / 2 * (1 + _erf(x / math.sqrt(2)))),
    "gelu_tanh": (
        "activation",
        ["x"],
        6,
        {"activation": "gelu_tanh"},
        {},
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softplus": ("activation", ["x"], 6, {"activation": "softplus"}, {}, lambda x: np.logaddexp(x, 0)),
    "exp": ("activation", ["x"], 6, {"activation": "exp"}, {}, np.exp),
    "softmax": ("softmax", ["x"], 6, {"size": 3}, {}, lambda x: _softmax(x.reshape(-1, 2, 3)).reshape(-1, 6)),
    "mixture": ("mixture", ["gate", "x", "y"], 6, {}, {}, lambda g, x, y: g[:, :1] * x + g[:, 1:] * y),
    "add": ("binary", ["x", "y"], 6, {"fn": "add"}, {}, lambda x, y: x + y),
    "sub": ("binary", ["x", "one"], 6, {"fn": "sub"}, {}, lambda x, o: x - o),
    "mul": ("binary", ["one", "x"], 6, {"fn": "mul"}, {}, lambda o, x: o * x),
    "div": ("binary", ["x", "y"], 6, {"fn": "div"}, {}, lambda x, y: x / y),
    "max": ("binary", ["x", "y"], 6, {"fn": "max"}, {}, np.maximum),
    "min": ("binary", ["x", "one"], 6, {"fn": "min"}, {}, np.minimum),
    "scale_shift": ("scale_shift", ["x"], 6, {}, {"scale": SCALE, "shift": SHIFT}, lambda x: x * SCALE + SHIFT),
    "reduce sum": (
        "reduce",
        ["x"],
        2,
        {"fn": "sum", "outer": 1, "axis": 3, "inner": 2},
        {},
        lambda x: x.reshape(-1, 3, 2).sum(1),
    ),
    "reduce mean": (
        "reduce",
        ["x"],
        3,
        {"fn": "mean", "outer": 3, "axis": 2, "inner": 1},
        {},
        lambda x: x.reshape(-1, 3, 2).mean(2),
    ),
    "reduce max": (
        "reduce",
        ["x"],
        1,
        {"fn": "max", "outer": 1, "axis": 6, "inner": 1},
        {},
        lambda x: x.max(1, keepdims=True),
    ),
    "layer_norm": ("layer_norm", ["x"], 6, {"eps": 1e-5}, {}, _layer_norm),
    "layer_norm scaled": (
        "layer_norm",
        ["x"],
        6,
        {"eps": 1e-5},
        {"scale": SCALE, "shift": SHIFT},
        lambda x: _layer_norm(x) * SCALE + SHIFT,
    ),
    "l2_normalize": (
        "l2_normalize",
        ["x"],
        6,
        {"eps": 1e-6},
        {},
        lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    ),
    "dot": ("dot", ["x", "y"], 1, {}, {}, lambda x, y: (x * y).sum(1, keepdims=True)),
    "embedding": (
        "embedding",
        ["ids"],
        12,
        {"padding": 0},
        {"table": TABLE},
        lambda ids: (TABLE[ids] * (ids != 0)[:, :, None]).reshape(-1, 12),
    ),
    "embedding without padding": (
        "embedding",
        ["ids"],
        12,
        {"padding": None},
        {"table": TABLE},
        lambda ids: TABLE[ids].reshape(-1, 12),
    ),
    **{
        f"embedding_bag {mode}": (
            "embedding_bag",
            ["ids"],
            3,
            {"mode": mode, "padding": 0},
            {"table": TABLE},
            lambda ids, mode=mode: _bag(ids, mode),
        )
        for mode in ("sum", "mean", "max")
    },
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_in_each_domain(name: str, isa: str, tmp_path: Path) -> None:
    """As a request step, an item step whose value is stored and gathered, and a candidate step, in slices."""
    op, names, width, attrs, weights, meaning = OPERATORS[name]
    rng = np.random.default_rng(11)
    n = 23
    ids = rng.integers(0, 9, (n, 4)).astype(np.int32)
    ids[3] = 0
    dense = rng.normal(size=(n, 15)).astype(np.float32)
    columns = {"x": dense[:, :6], "y": dense[:, 6:12], "gate": dense[:, 12:14], "one": dense[:, 14:], "ids": ids}
    arguments = [columns[i] if i == "ids" else columns[i].astype(np.float64) for i in names]
    expected = meaning(*arguments)

    m = PlanMaker()
    for domain in ("request", "item", "candidate"):
        id_input = m.input(f"{domain} ids", domain, "ids", 4, rows=9, padding=0)
        x = m.input(f"{domain} dense", domain, "dense", 15)[0]
        places = {"x": [x, 0, 6], "y": [x, 6, 6], "gate": [x, 12, 2], "one": [x, 14, 1], "ids": id_input}
        wide = m.buffer(domain, width + 2, stored=domain == "item")
        output = [wide[0], 1, width]
        m.step(domain, op, domain, [places[i] for i in names], output, weights=weights, **attrs)
        if domain == "item":
            m.output("item", output, "item")
            output = m.step("gather", "gather", "candidate", [output], width)
        if domain == "request":
            m.output("request", output, "request")
        for i in range(width):
            m.output(f"{domain}.{i}", [output[0], output[1] + i, 1])
    keys = np.arange(n, dtype=np.int64)
    model = Model(str(m.write(tmp_path / "m", {"keys": keys, "ids": ids, "dense": dense})), isa=isa)
    session = Session(model, tile=7)
    close = {"rtol": 1e-5, "atol": 2e-6}
    np.testing.assert_allclose(model.item_output("item"), expected, **close)
    np.testing.assert_allclose(session.request_output("request", ids, dense), expected, **close)
    order = rng.permutation(n)
    scores, fused = session.score(
        ids[:2],
        dense[:2],
        np.array([0, n, 2 * n]),
        np.tile(keys[order], 2),
        candidate_ids=np.tile(ids, (2, 1)),
        candidate_dense=np.tile(dense, (2, 1)),
    )
    of_request, of_item, of_candidate = np.split(scores.reshape(2, n, 3 * width), 3, axis=2)
    for r in range(2):
        np.testing.assert_allclose(of_request[r], np.tile(expected[r], (n, 1)), **close)
        np.testing.assert_allclose(of_item[r], expected[order], **close)
        np.testing.assert_allclose(of_candidate[r], expected, **close)
    np.testing.assert_allclose(fused, scores.astype(np.float64).sum(axis=1), rtol=1e-5, atol=1e-4)


def test_ids_of_items_reach_candidates_through_gather(tmp_path: Path) -> None:
    m = PlanMaker()
    tags = m.input("tags", "item", "ids", 3, rows=9, padding=0)
    gathered = m.step("gather", "gather", "candidate", [[tags[0], 1, 2]], 2, dtype="i32")
    value = m.step("tags", "embedding_bag", "candidate", [gathered], 3, weights={"table": TABLE}, mode="sum", padding=0)
    m.output("sum", m.step("total", "reduce", "candidate", [value], 1, fn="sum", outer=1, axis=3, inner=1))
    ids = np.random.default_rng(0).integers(0, 9, (50, 3)).astype(np.int32)
    catalogue = {"keys": np.arange(50), "ids": ids, "dense": np.zeros((50, 0), dtype=np.float32)}
    model = Model(str(m.write(tmp_path / "m", catalogue)))
    expected = _bag(ids[:, 1:], "sum").sum(axis=1)
    scores, _ = Session(model).score(None, None, np.array([0, 50]), np.arange(50))
    np.testing.assert_allclose(scores[:, 0], expected, atol=1e-5)
    whole, _ = Session(model, tile=9).score(None, None, None, None)
    assert whole.tobytes() == scores.tobytes()
