"""Layers made of several operators, against the same written in torch or by loops."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmtr.graph import GraphBuilder, Input, Packed
from fastmtr.reference import evaluate_values

N = 5


class Rows:
    """A builder over three dense inputs and ids, and random values for them."""

    def __init__(self, *widths: int, ids: int = 1) -> None:
        rng = np.random.default_rng(0)
        self.x = [rng.normal(size=(N, w)).astype(np.float32) for w in widths]
        self.ids = rng.integers(0, 3, size=(N, ids)).astype(np.int32)
        self.ids[1] = 0
        inputs = [Input(f"x{i}", "candidate", "dense", sum(widths[:i]), w) for i, w in enumerate(widths)]
        self.g = GraphBuilder([*inputs, Input("ids", "candidate", "ids", 0, ids)])
        self.rng = rng

    def weight(self, name: str, *shape: int, positive: bool = False) -> NDArray[np.float64]:
        drawn = self.rng.uniform(0.3, 1, size=shape) if positive else self.rng.normal(size=shape)
        self.g.weight(name, drawn)
        return drawn.astype(np.float32).astype(np.float64)

    def tensors(self) -> list[torch.Tensor]:
        return [torch.tensor(x, dtype=torch.float64) for x in self.x]

    def value(self, name: str) -> NDArray[np.float64]:
        self.g.output("click", self.g.reduce(name, "sum"))
        packed = {"candidate": Packed(self.ids, np.concatenate(self.x, axis=1))}
        found: NDArray[np.float64] = evaluate_values(self.g.build(), packed)[name]
        return found


def assert_close(found: NDArray[Any], expected: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12, atol=1e-13)


def test_linear_takes_the_last_axis() -> None:
    r = Rows(12)
    w, b = r.weight("w", 5, 4), r.weight("b", 5)
    expected = torch.nn.functional.linear(r.tensors()[0].reshape(N, 3, 4), torch.tensor(w), torch.tensor(b))
    assert_close(r.value(r.g.linear("x0", w="w", b="b", activation="relu")), expected.relu().reshape(N, 15))


def test_cross() -> None:
    for version, shapes in ((1, {"w": (1, 4)}), (2, {"w": (4, 4)}), (2, {"w": (2, 4), "u": (4, 2)})):
        r = Rows(4, 4)
        weights = {role: r.weight(role, *shape) for role, shape in shapes.items()}
        b = r.weight("b", 4)
        x0, x = (v.astype(np.float64) for v in r.x)
        product = x @ weights["w"].T
        second = product @ weights.get("u", np.eye(4)).T if version == 2 else None
        expected = x0 * product + b + x if second is None else x0 * (second + b) + x
        assert_close(r.value(r.g.cross("x0", "x1", b="b", version=version, **{k: k for k in weights})), expected)


@pytest.mark.parametrize("summed", [True, False])
def test_fm_is_the_sum_over_pairs(summed: bool) -> None:
    r = Rows(3, 6, 3)
    fields = np.concatenate(r.x, axis=1).astype(np.float64).reshape(N, 4, 3)
    pairs = sum(fields[:, i] * fields[:, j] for i, j in combinations(range(4), 2))
    assert_close(
        r.value(r.g.fm(["x0", "x1", "x2"], size=3, summed=summed)), pairs.sum(1, keepdims=True) if summed else pairs
    )


def test_fm_sums_each_domain_apart() -> None:
    inputs = [
        Input("u1", "request", "dense", 0, 4),
        Input("i", "item", "dense", 0, 4),
        Input("u2", "request", "dense", 4, 2),
    ]
    g = GraphBuilder(inputs)
    g.output("click", g.fm(["u1", "i", "u2"], size=2))
    graph = g.build()
    reduced = [graph.domain(n.output) for n in graph.nodes if n.op == "reduce"]
    assert reduced == ["request", "request", "item", "item", "candidate"]


class Dice(torch.nn.Module):
    def __init__(self, r: Rows, n: int, alpha: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(n, eps=1e-8, affine=False, dtype=torch.float64).eval()
        self.norm.running_mean = torch.tensor(r.weight("mean", n))
        self.norm.running_var = torch.tensor(r.weight("var", n, positive=True))
        # (Of few bits, so that the 1 - alpha of the graph's weights is exact.)
        r.g.weight("alpha", np.arange(1, alpha + 1) / 8)
        self.alpha = torch.arange(1, alpha + 1, dtype=torch.float64) / 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape))
        return self.alpha * (1 - p) * x + p * x


@pytest.mark.parametrize("alpha", [1, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_dice(steps: int, alpha: int) -> None:
    r = Rows(4 * steps)
    expected = Dice(r, 4, alpha)(r.tensors()[0].reshape(N, steps, 4)).reshape(N, -1)
    assert_close(r.value(r.g.dice("x0", mean="mean", var="var", alpha="alpha")), expected)


def test_dice_without_alpha_scales_by_p() -> None:
    r = Rows(4)
    mean, var = r.weight("mean", 4), r.weight("var", 4, positive=True)
    scale, shift = r.weight("scale", 4), r.weight("shift", 4)
    found = r.value(r.g.dice("x0", mean="mean", var="var", scale="scale", shift="shift", eps=0.1))
    x = r.x[0].astype(np.float64)
    assert_close(found, x / (1 + np.exp(-((x - mean) / np.sqrt(var + 0.1) * scale + shift))))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_target_attention_is_that_of_din(softmax: bool, masked: bool) -> None:
    n, steps, hidden = 3, 4, 6
    r = Rows(steps * n, n, ids=steps)
    w1, b1 = r.weight("w1", hidden, 4 * n), r.weight("b1", hidden)
    w2 = r.weight("w2", 1, hidden)
    dice = Dice(r, hidden, 1)

    keys, query = r.tensors()
    keys, queries = keys.reshape(N, steps, n), query[:, None].expand(N, steps, n)
    x = torch.cat([queries, keys, queries - keys, queries * keys], dim=-1)
    weights = (dice(x @ torch.tensor(w1).T + torch.tensor(b1)) @ torch.tensor(w2).T)[..., 0]
    padded = torch.tensor(r.ids == 0)
    if masked:
        weights = weights.masked_fill(padded, -1e9 if softmax else 0)
    if softmax:
        weights = weights.softmax(dim=1)
    expected = (weights[:, None] @ keys)[:, 0]

    def score(x: str) -> str:
        hidden = r.g.dice(r.g.linear(x, w="w1", b="b1"), mean="mean", var="var", alpha="alpha")
        return r.g.linear(hidden, w="w2")

    found = r.g.target_attention("x0", "x1", "ids" if masked else None, score=score, softmax=softmax)
    assert_close(r.value(found), expected)


def test_product() -> None:
    r = Rows(1, 1, 1)
    assert_close(
        r.value(r.g.product(["x0", "x1", "x2"], name="all")), np.prod([x.astype(np.float64) for x in r.x], axis=0)
    )


def test_names_are_those_given() -> None:
    r = Rows(4, 4)
    for role, shape in {"w": (4, 4), "v": (4,), "p": (4,)}.items():
        r.weight(role, *shape, positive=True)
    g = r.g
    assert g.linear("x0", w="w", name="linear") == "linear"
    assert g.cross("x0", "x1", w="w", name="cross") == "cross"
    assert g.fm(["x0", "x1"], size=2, name="fm") == "fm"
    assert g.dice("x0", mean="v", var="p", alpha="v", name="dice") == "dice"
    assert g.target_attention("x0", "x1", score=lambda x: g.slice(x, 0, 1), name="attention") == "attention"
