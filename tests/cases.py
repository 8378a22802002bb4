"""One table of operator cases, and models in the shape of those people train.

Shared by the tests of reference, compiler and engine, and by ``bench``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import DOMAINS, Domain, Graph, GraphBuilder, Input, Packed
from fastmtr.operators import ACTIVATIONS, BINARY_FUNCTIONS
from fastmtr.reference import evaluate

__all__ = [
    "CASES",
    "DOMAINS",
    "MODELS",
    "OF_POSITIVE",
    "Case",
    "Weights",
    "assert_same_outputs",
    "fill",
    "model_graph",
    "task_scores",
]

OF_POSITIVE = ("log", "sqrt")


@dataclass(frozen=True)
class Case:
    """A graph of one operator over candidate inputs; its task outputs are the columns of the result."""

    name: str
    graph: Graph


class Weights:
    """Registers random weights in a builder.

    With ``grid``, they are multiples of it: sums and products of a few of them are exact in float32, so that weights
    combined by the compiler are, too.
    """

    def __init__(self, g: GraphBuilder, rng: np.random.Generator, *, grid: float = 0.0) -> None:
        self.g, self.rng, self.grid, self.count = g, rng, grid, 0

    def __call__(self, *shape: int, times: int = 1) -> str:
        """Of that shape, and so many times that side by side."""
        self.count += 1
        spread = np.sqrt(shape[-1]) if len(shape) > 1 else 1.0
        drawn = self.rng.normal(size=shape) / spread
        # (No zeros: weights of zeros alone make constants, which the compiler computes and rounds.)
        made = np.copysign(np.maximum(np.round(abs(drawn) / self.grid), 1), drawn) * self.grid if self.grid else drawn
        return self.g.weight(f"w{self.count}", np.concatenate([made] * times, axis=-1))

    def positive(self, *shape: int, times: int = 1) -> str:
        self.count += 1
        made = self.rng.uniform(0.2, 2, size=shape)
        return self.g.weight(f"w{self.count}", np.concatenate([made] * times, axis=-1))


def _case(name: str, widths: tuple[int, ...], build: Callable[..., str]) -> Case:
    inputs = []
    for i, width in enumerate(widths):
        inputs.append(Input(f"x{i}", "candidate", "dense", sum(widths[:i]), width))
    inputs.append(Input("ids", "candidate", "ids", 0, 4, rows=9, padding=0))
    g = GraphBuilder(inputs)
    value = build(g, Weights(g, np.random.default_rng(len(name))), *[i.name for i in inputs])
    for column in range(g.width(value)):
        g.output(f"column{column}", g.slice(value, column, 1))
    return Case(name, g.build())


def _make_cases() -> list[Case]:
    cases: list[Case] = []

    def case(name: str, widths: tuple[int, ...], build: Callable[..., str]) -> None:
        cases.append(_case(name, widths, build))

    for n, k in ((1, 1), (3, 5), (16, 16), (17, 33), (40, 7)):
        case(f"affine-{n}x{k}", (k,), lambda g, w, x, _, n=n, k=k: g.affine(x, w=w(n, k), b=w(n)))
    case("affine-no-bias", (6,), lambda g, w, x, _: g.affine(x, w=w(5, 6)))
    case("affine-addends", (6, 5, 5), lambda g, w, x, y, z, _: g.affine(x, w=w(5, 6), b=w(5), addends=[y, z]))
    case("affine-only-addends", (5, 5), lambda g, w, y, z, _: g.affine(addends=[y, z], activation="relu"))
    case("affine-groups", (12,), lambda g, w, x, _: g.affine(x, w=w(3, 5, 4), b=w(15), groups=3))
    case("affine-shared", (4,), lambda g, w, x, _: g.affine(x, w=w(3, 5, 4), b=w(15), groups=3, shared_x=True))
    for t, gr, n, k in ((1, 1, 3, 5), (3, 1, 1, 1), (2, 1, 17, 4), (5, 2, 3, 2)):
        shapes = {"steps": t, "groups": gr}
        name, width = f"affine-steps-{t}-{gr}x{n}x{k}", gr * n
        given = (t * gr * k, width, t * width)
        case(name, given, lambda g, w, x, y, z, _, s=shapes, n=n, k=k: _stepped(g, w, x, [y, z], s, n, k))
        case(f"{name}-alone", given, lambda g, w, x, y, z, _, s=shapes, n=n, k=k: _stepped(g, w, x, [], s, n, k))
    case("affine-steps-shared", (8,), lambda g, w, x, _: g.affine(x, w=w(3, 5, 4), groups=3, shared_x=True, steps=2))
    case("affine-steps-sum", (6, 3), lambda g, w, x, y, _: g.affine(addends=[x, y], b=w(3), steps=2, activation="tanh"))
    for fn in ACTIVATIONS:
        for n in (1, 19):
            case(f"activation-{fn}-{n}", (n,), lambda g, w, x, _, a=fn, n=n: _activated(g, w, x, a, n))
            case(f"affine-{fn}-{n}", (4,), lambda g, w, x, _, a=fn, n=n: _active(g, w, x, a, n))
    for size, n in ((1, 3), (4, 4), (3, 9), (17, 34)):
        case(f"softmax-{size}-{n}", (n,), lambda g, w, x, _, size=size: g.softmax(x, size=size))
    for e, d in ((1, 1), (3, 4), (8, 17)):
        case(f"mixture-{e}-{d}", (e, *[d] * e), lambda g, w, gate, *x: g.mixture(gate, x[:-1]))
    for fn in BINARY_FUNCTIONS:
        method = {"max": "maximum", "min": "minimum"}.get(fn, fn)
        for a, b in ((1, 1), (18, 18), (1, 18), (18, 1)):
            case(f"{fn}-{a}-{b}", (a, b), lambda g, w, x, y, _, m=method: getattr(g, m)(x, y))
    case("scale_shift", (18,), lambda g, w, x, _: g.scale_shift(x, scale=w(18), shift=w(18)))
    case("batch_norm", (18,), lambda g, w, x, _: g.batch_norm(x, mean=w(18), var=w.positive(18), scale=w(18)))
    for fn in ("sum", "mean", "max"):
        for o, a, i in ((1, 7, 1), (2, 3, 4), (3, 1, 5), (1, 4, 17), (1, 1, 1)):
            shape = {"outer": o, "axis": a, "inner": i}
            case(f"reduce-{fn}-{o}-{a}-{i}", (o * a * i,), lambda g, w, x, _, f=fn, s=shape: g.reduce(x, f, **s))
    for n in (1, 2, 21):
        case(f"layer_norm-{n}", (n,), lambda g, w, x, _, n=n: g.layer_norm(x, scale=w(n), shift=w(n)))
        case(f"layer_norm-plain-{n}", (n,), lambda g, w, x, _: g.layer_norm(x))
        case(f"l2_normalize-{n}", (n,), lambda g, w, x, _: g.l2_normalize(x))
        case(f"dot-{n}", (n, n), lambda g, w, x, y, _: g.dot(x, y))
    for count, size in ((1, 4), (5, 1), (3, 7), (2, 16)):
        case(
            f"layer_norm-{count}x{size}",
            (count * size,),
            lambda g, w, x, _, n=size: g.layer_norm(x, size=n, scale=w(n), shift=w(n)),
        )
        case(f"l2_normalize-{count}x{size}", (count * size,), lambda g, w, x, _, n=size: g.l2_normalize(x, size=n))
    for o, times, i in ((1, 1, 3), (1, 4, 5), (3, 2, 1), (2, 3, 17)):
        case(f"repeat-{o}-{times}-{i}", (o * i,), lambda g, w, x, _, t=times, o=o: g.repeat(x, t, outer=o))
    for o, a, b, i in ((1, 2, 3, 1), (1, 4, 5, 3), (2, 3, 2, 16), (3, 1, 4, 1), (1, 5, 1, 2)):
        shape = {"outer": o, "a": a, "b": b, "inner": i}
        case(f"transpose-{o}-{a}-{b}-{i}", (o * a * b * i,), lambda g, w, x, _, s=shape: g.transpose(x, **s))
    for o, m, k, n in ((1, 1, 1, 1), (1, 1, 5, 17), (3, 2, 4, 3), (1, 4, 16, 1), (2, 3, 1, 8)):
        for flip in (False, True):
            shape = {"outer": o, "m": m, "k": k, "n": n, "transpose_b": flip}
            name = f"matmul-{o}-{m}-{k}-{n}" + ("-transposed" if flip else "")
            case(name, (o * m * k, o * k * n), lambda g, w, x, y, _, s=shape: g.matmul(x, y, **s))
    case("present", (1,), lambda g, w, x, ids: g.present(ids))
    for size, value in ((1, -1e9), (3, 0.0), (17, 0.5)):
        case(f"mask-{size}", (4 * size,), lambda g, w, x, ids, v=value: g.mask(x, ids, value=v))
    for d, h in ((1, 1), (3, 5), (16, 8), (5, 17)):
        for kind in ("last", "all"):
            case(f"gru-{kind}-{d}x{h}", (4 * d,), lambda g, w, x, _, s=(d, h), o=kind: _gru(g, w, x, None, s, o))
            case(f"gru-{kind}-{d}x{h}-ids", (4 * d,), lambda g, w, x, ids, s=(d, h), o=kind: _gru(g, w, x, ids, s, o))
    case("gru-no-bias", (6,), lambda g, w, x, _: g.gru(x, steps=2, w_x=w(12, 3), w_h=w(12, 4)))
    for t, c, o, kernel, options in (
        (1, 1, 1, 1, {}),
        (5, 3, 4, 3, {}),
        (6, 2, 17, 3, {"padding": 1, "stride": 2}),
        (7, 4, 3, 2, {"dilation": 3, "padding": 2}),
        (2, 16, 5, 4, {"padding": 3, "stride": 3}),
    ):
        name = f"conv1d-{t}x{c}-{o}x{kernel}"
        case(
            name,
            (t * c,),
            lambda g, w, x, _, s=(o, c, kernel), t=t, a=options: g.conv1d(x, w=w(*s), b=w(s[0]), steps=t, **a),
        )
    case("conv1d-no-bias", (6,), lambda g, w, x, _: g.conv1d(x, w=w(4, 2, 2), steps=3))
    for d in (1, 5, 16):
        for pad in (None, 0):
            case(f"embedding-{d}-{pad}", (1,), lambda g, w, x, ids, d=d, p=pad: g.embedding(ids, w(9, d), padding=p))
            for mode in ("sum", "mean", "max"):
                given = {"mode": mode, "padding": pad}
                case(
                    f"embedding_bag-{mode}-{d}-{pad}",
                    (1,),
                    lambda g, w, x, ids, d=d, a=given: g.embedding_bag(ids, w(9, d), **a),
                )
    case("concat", (2, 1, 3), lambda g, w, x, y, z, _: g.concat([z, x, y, x]))
    return cases


def _slope(activation: str, n: int, w: Weights) -> dict[str, Any]:
    return {"alpha": 0.3, "slope": w(n) if activation == "prelu" else None}


def _activated(g: GraphBuilder, w: Weights, x: str, activation: str, n: int) -> str:
    if activation in OF_POSITIVE:
        x = g.activation(x, "abs")
    return g.activation(x, activation, **_slope(activation, n, w))


def _active(g: GraphBuilder, w: Weights, x: str, activation: str, n: int) -> str:
    if activation in OF_POSITIVE:
        return g.affine(g.activation(x, "abs"), w=w.positive(n, 4), b=w.positive(n), activation=activation)
    return g.affine(x, w=w(n, 4), b=w(n), activation=activation, **_slope(activation, n, w))


def _stepped(g: GraphBuilder, w: Weights, x: str, addends: list[str], shape: dict[str, int], n: int, k: int) -> str:
    weight = w(shape["groups"], n, k) if shape["groups"] > 1 else w(n, k)
    width = n * shape["groups"]
    return g.affine(x, w=weight, b=w(width), slope=w(width), addends=addends, activation="prelu", **shape)


def _gru(g: GraphBuilder, w: Weights, x: str, ids: str | None, shape: tuple[int, int], output: Any) -> str:
    d, h = shape
    weights = {"w_x": w(3 * h, d), "w_h": w(3 * h, h), "b_x": w(3 * h), "b_h": w(3 * h)}
    return g.gru(x, ids, steps=4, output=output, **weights)


CASES = {case.name: case for case in _make_cases()}


def fill(graph: Graph, *, n_items: int = 11, n_candidates: int = 7, seed: int = 0) -> dict[Domain, Packed]:
    """Random packed inputs: one request, a catalogue, and candidates; some ids are the padding."""
    rng = np.random.default_rng(seed)
    rows = {"request": 1, "item": n_items, "candidate": n_candidates}
    packed: dict[Domain, Packed] = {}
    for domain in DOMAINS:
        ids = np.zeros((rows[domain], graph.packed_width(domain, "ids")), np.int32)
        dense = rng.normal(size=(rows[domain], graph.packed_width(domain, "dense"))).astype(np.float32)
        for i in graph.inputs:
            if i.domain == domain and i.kind == "ids":
                drawn = rng.integers(0, _rows_of(graph, i), size=(rows[domain], i.width))
                if i.padding is not None:
                    # Some rows hold nothing but padding.
                    drawn[rng.random(drawn.shape) < rng.choice([0.4, 1], p=[0.9, 0.1], size=(len(drawn), 1))] = (
                        i.padding
                    )
                ids[:, i.offset : i.offset + i.width] = drawn
        packed[domain] = Packed(ids, dense)
    return packed


def assert_same_outputs(before: Graph, after: Graph, tolerance: float) -> None:
    """Both graphs give the same outputs for one random input, to ``tolerance`` times the largest of them (or 1)."""
    packed = fill(before, n_items=5, n_candidates=5)
    expected, found = evaluate(before, packed), evaluate(after, packed)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * (1 + abs(value).max()), err_msg=name)


def _rows_of(graph: Graph, i: Input) -> int:
    tables = [n.weights["table"] for n in graph.nodes if n.inputs[0] == i.name and "table" in n.weights]
    return min([i.rows or 2**31 - 1, *(graph.weights[t].shape[0] for t in tables)])


# ---- models ----------------------------------------------------------------------------------------------------------

MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "two_tower", "cross", "history")
Model = Literal["shared_bottom", "mmoe", "ple", "esmm", "two_tower", "cross", "history"]

MODEL_INPUTS = (
    Input("user_id", "request", "ids", 0, 1, rows=50),
    Input("history", "request", "ids", 1, 5, rows=40, padding=0),
    Input("age", "request", "dense", 0, 2),
    Input("item_id", "item", "ids", 0, 1, rows=40),
    Input("category", "item", "ids", 1, 1, rows=9),
    Input("price", "item", "dense", 0, 1),
)


class _Layers:
    def __init__(self, seed: int, batch_norm: bool) -> None:
        self.g = GraphBuilder(MODEL_INPUTS)
        self.w = Weights(self.g, np.random.default_rng(seed), grid=1 / 64)
        self.batch_norm = batch_norm
        g, w = self.g, self.w
        self.items = w(40, 16)
        bag, own = g.embedding_bag("history", self.items), g.embedding("item_id", self.items)
        self.user = g.concat([g.embedding("user_id", w(50, 16)), bag, "age"], name="user")
        self.item = g.concat([own, g.embedding("category", w(9, 8)), "price"], name="item")

    def linear(self, x: str, n: int, name: str) -> str:
        return self.g.affine(x, w=self.w(n, self.g.width(x)), b=self.w(n), name=name)

    def mlp(self, x: str, widths: tuple[int, ...], name: str) -> str:
        for i, n in enumerate(widths):
            x = self.linear(x, n, f"{name}.{i}")
            if self.batch_norm:
                x = self.g.batch_norm(x, scale=self.w(n), shift=self.w(n), mean=self.w(n), var=self.w.positive(n))
            x = self.g.activation(x, "relu")
        return x

    def interest(self) -> str:
        """What a history says: by attention to the item, by a GRU and by a convolution."""
        g, w = self.g, self.w
        keys, query = g.embedding("history", self.items, padding=0), g.embedding("item_id", self.items)
        hidden, out, dice = {"w": w(8, 64), "b": w(8)}, w(1, 8), {"mean": w(8), "var": w.positive(8), "alpha": w(1)}

        def score(x: str) -> str:
            y = g.linear(x, name="attention", **hidden)
            return g.linear(g.dice(y, **dice) if self.batch_norm else g.activation(y, "relu"), w=out)

        attended = g.target_attention(keys, query, "history", score=score, softmax=True)
        recurrent = {"w_x": w(18, 16), "w_h": w(18, 6), "b_x": w(18), "b_h": w(18)}
        state = g.gru(keys, "history", steps=5, name="gru", **recurrent)
        filtered = g.activation(g.conv1d(keys, w=w(6, 16, 3), b=w(6), steps=5, padding=1, name="conv"), "relu")
        return g.concat([attended, state, g.reduce(filtered, "max", axis=5, inner=6)])

    def gate(self, x: str, experts: list[str], name: str) -> str:
        return self.g.mixture(self.g.softmax(self.linear(x, len(experts), name)), experts)

    def tower(self, x: str, name: str) -> str:
        return self.g.activation(self.linear(self.mlp(x, (16,), name), 1, f"{name}.out"), "sigmoid")


def model_graph(kind: Model, *, tasks: int = 3, seed: int = 0, batch_norm: bool = False) -> Graph:
    """A small model of that architecture over ``MODEL_INPUTS``, built as a converter builds it."""
    m = _Layers(seed, batch_norm)
    g = m.g
    x = g.concat([m.user, m.item], name="x")
    if kind == "shared_bottom":
        bottom = m.mlp(x, (32, 16), "bottom")
        for t in range(tasks):
            g.output(f"task{t}", m.tower(bottom, f"tower{t}"))
    elif kind == "mmoe":
        experts = [m.mlp(x, (32, 16), f"expert{e}") for e in range(8)]
        for t in range(tasks):
            g.output(f"task{t}", m.tower(m.gate(x, experts, f"gate{t}"), f"tower{t}"))
    elif kind == "ple":
        level: list[str] = [x] * (tasks + 1)
        for depth in range(2):
            own = [[m.mlp(x, (32, 16), f"level{depth}.task{t}.{e}") for e in range(2)] for t, x in enumerate(level)]
            everyone = [expert for experts in own for expert in experts]
            mixed = [
                m.gate(level[t], [*own[t], *own[-1]] if t < tasks else everyone, f"level{depth}.gate{t}")
                for t in range(tasks + (depth == 0))
            ]
            level = mixed
        for t in range(tasks):
            g.output(f"task{t}", m.tower(level[t], f"tower{t}"))
    elif kind == "esmm":
        click, convert = m.tower(x, "click"), m.tower(x, "convert")
        g.output("click", click)
        g.output("buy", g.mul(click, convert))
    elif kind == "two_tower":
        user = g.l2_normalize(m.mlp(m.user, (32, 8), "user_tower"))
        item = g.l2_normalize(m.mlp(m.item, (32, 8), "item_tower"))
        g.output("click", g.activation(g.dot(user, item), "sigmoid"))
        g.output("user_vector", user, role="request")
        g.output("item_vector", item, role="item")
    elif kind == "history":
        g.output("click", m.tower(g.concat([m.interest(), x]), "click"))
    else:
        n = g.width(x)
        crossed = x
        for i in range(2):
            crossed = g.add(g.mul(x, m.linear(crossed, n, f"cross{i}")), crossed)
        g.output("click", m.tower(crossed, "deep"))
        g.output("popular", g.activation(m.linear(m.item, 1, "popular"), "sigmoid"))
        g.output("active", g.activation(m.linear(m.user, 1, "active"), "sigmoid"))
    return g.build()


def task_scores(outputs: Mapping[str, NDArray[Any]], graph: Graph) -> NDArray[Any]:
    """Task outputs side by side, shape (n, tasks)."""
    return np.concatenate([outputs[t] for t in graph.tasks], axis=1)
