"""One table of operator cases, models in the shape of those people train, and random graphs.

Shared by the tests of reference, compiler and engine, and by ``bench``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastmtr.graph import Domain, Graph, GraphBuilder, Input, Packed
from fastmtr.operators import ACTIVATIONS, BINARY_FUNCTIONS
from fastmtr.reference import evaluate

__all__ = [
    "CASES",
    "MODELS",
    "Case",
    "assert_same_outputs",
    "fill",
    "model_graph",
    "random_graph",
    "random_graphs",
    "task_scores",
]

DOMAINS: tuple[Domain, ...] = ("request", "item", "candidate")
_OF_POSITIVE = ("log", "sqrt")


@dataclass(frozen=True)
class Case:
    """A graph of one operator over candidate inputs; its task outputs are the columns of the result."""

    name: str
    graph: Graph


class _Weights:
    """Registers random weights in a builder.

    With ``grid``, they are multiples of it: sums and products of a few of them are exact in float32, so that weights
    combined by the compiler are, too.
    """

    def __init__(self, g: GraphBuilder, rng: np.random.Generator, *, grid: float = 0.0) -> None:
        self.g, self.rng, self.grid, self.count = g, rng, grid, 0

    def __call__(self, *shape: int) -> str:
        self.count += 1
        spread = np.sqrt(shape[-1]) if len(shape) > 1 else 1.0
        drawn = self.rng.normal(size=shape) / spread
        return self.g.weight(f"w{self.count}", np.round(drawn / self.grid) * self.grid if self.grid else drawn)

    def positive(self, *shape: int) -> str:
        self.count += 1
        return self.g.weight(f"w{self.count}", self.rng.uniform(0.2, 2, size=shape))


def _case(name: str, widths: tuple[int, ...], build: Callable[..., str]) -> Case:
    inputs = []
    for i, width in enumerate(widths):
        inputs.append(Input(f"x{i}", "candidate", "dense", sum(widths[:i]), width))
    inputs.append(Input("ids", "candidate", "ids", 0, 4, rows=9, padding=0))
    g = GraphBuilder(inputs)
    value = build(g, _Weights(g, np.random.default_rng(len(name))), *[i.name for i in inputs])
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


def _slope(activation: str, n: int, w: _Weights) -> dict[str, Any]:
    return {"alpha": 0.3, "slope": w(n) if activation == "prelu" else None}


def _activated(g: GraphBuilder, w: _Weights, x: str, activation: str, n: int) -> str:
    if activation in _OF_POSITIVE:
        x = g.activation(x, "abs")
    return g.activation(x, activation, **_slope(activation, n, w))


def _active(g: GraphBuilder, w: _Weights, x: str, activation: str, n: int) -> str:
    if activation in _OF_POSITIVE:
        return g.affine(g.activation(x, "abs"), w=w.positive(n, 4), b=w.positive(n), activation=activation)
    return g.affine(x, w=w(n, 4), b=w(n), activation=activation, **_slope(activation, n, w))


def _stepped(g: GraphBuilder, w: _Weights, x: str, addends: list[str], shape: dict[str, int], n: int, k: int) -> str:
    weight = w(shape["groups"], n, k) if shape["groups"] > 1 else w(n, k)
    width = n * shape["groups"]
    return g.affine(x, w=weight, b=w(width), slope=w(width), addends=addends, activation="prelu", **shape)


def _gru(g: GraphBuilder, w: _Weights, x: str, ids: str | None, shape: tuple[int, int], output: Any) -> str:
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

MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "two_tower", "cross")
Model = Literal["shared_bottom", "mmoe", "ple", "esmm", "two_tower", "cross"]

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
        self.w = _Weights(self.g, np.random.default_rng(seed))
        self.batch_norm = batch_norm
        g, w = self.g, self.w
        items = w(40, 16)
        self.user = g.concat([g.embedding("user_id", w(50, 16)), g.embedding_bag("history", items), "age"], name="user")
        self.item = g.concat([g.embedding("item_id", items), g.embedding("category", w(9, 8)), "price"], name="item")

    def linear(self, x: str, n: int, name: str) -> str:
        return self.g.affine(x, w=self.w(n, self.g.width(x)), b=self.w(n), name=name)

    def mlp(self, x: str, widths: tuple[int, ...], name: str) -> str:
        for i, n in enumerate(widths):
            x = self.linear(x, n, f"{name}.{i}")
            if self.batch_norm:
                x = self.g.batch_norm(x, scale=self.w(n), shift=self.w(n), mean=self.w(n), var=self.w.positive(n))
            x = self.g.activation(x, "relu")
        return x

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
    else:
        n = g.width(x)
        crossed = x
        for i in range(2):
            crossed = g.add(g.mul(x, m.linear(crossed, n, f"cross{i}")), crossed)
        g.output("click", m.tower(crossed, "deep"))
        g.output("popular", g.activation(m.linear(m.item, 1, "popular"), "sigmoid"))
        g.output("active", g.activation(m.linear(m.user, 1, "active"), "sigmoid"))
    return g.build()


# ---- random graphs ---------------------------------------------------------------------------------------------------

_BOUNDED = ("tanh", "sigmoid")


class _Grower:
    """Adds random nodes; values stay of moderate size, so that a comparison to 1e-10 means something."""

    def __init__(self, rng: random.Random, inputs: list[Input]) -> None:
        self.random = rng
        self.g = GraphBuilder(inputs)
        self.w = _Weights(self.g, np.random.default_rng(rng.getrandbits(32)), grid=1 / 16)
        self.inputs = inputs
        self.values: list[str] = [i.name for i in inputs if i.kind == "dense"]

    def pick(self, width: int | None = None) -> str:
        fitting = [v for v in self.values if width is None or self.g.width(v) == width]
        if not fitting:
            x = self.pick()
            return self.keep(self.g.affine(x, w=self.w(width or 1, self.g.width(x))))
        # Prefer late values, so that graphs grow deep.
        return fitting[-1 - min(self.random.randint(0, 5), len(fitting) - 1)]

    def mixed(self) -> str:
        """A late value, or values of any age and domain side by side."""
        if self.coin():
            return self.pick()
        return self.g.concat([self.random.choice(self.values) for _ in range(self.random.randint(2, 4))])

    def coin(self) -> bool:
        return self.random.random() < 0.5

    def keep(self, value: str) -> str:
        self.values.append(value)
        return value

    def bounded(self, x: str) -> str:
        return self.g.activation(x, self.random.choice(_BOUNDED))

    def positive(self, x: str) -> str:
        """Not below a half."""
        n = self.g.width(x)
        self.w.count += 1
        half = self.g.weight(f"half{self.w.count}", np.full(n, 0.5))
        one = self.g.weight(f"one{self.w.count}", np.ones(n))
        return self.g.scale_shift(self.g.activation(x, "sigmoid"), scale=one, shift=half)

    def width(self) -> int:
        return int(self.random.choice([1, 1, 2, 3, 4, 7]))

    def divisor(self, n: int) -> int:
        return self.random.choice([d for d in range(1, n + 1) if n % d == 0])

    def multiple(self, n: int) -> str:
        """A value whose width is a multiple of n."""
        fitting = [v for v in self.values if self.g.width(v) % n == 0]
        return self.random.choice(fitting) if fitting and self.coin() else self.pick(n * self.random.randint(1, 3))

    def ids(self) -> Input | None:
        ids = [i for i in self.inputs if i.kind == "ids"]
        return self.random.choice(ids) if ids else None

    def embedding(self) -> None:
        i = self.ids()
        if i is None:
            return
        table = self.w((i.rows or 6) + self.random.randint(0, 2), self.width())
        if self.coin():
            self.keep(self.g.embedding(i.name, table, padding=self.random.choice([None, i.padding])))
        else:
            mode = self.random.choice(["sum", "mean", "max"])
            self.keep(self.g.embedding_bag(i.name, table, mode=mode, padding=self.random.choice([None, 0])))

    def concat(self) -> None:
        self.keep(self.g.concat([self.pick() for _ in range(self.random.randint(1, 4))]))

    def slice(self) -> None:
        x = self.pick()
        offset = self.random.randint(0, self.g.width(x) - 1)
        self.keep(self.g.slice(x, offset, self.random.randint(1, self.g.width(x) - offset)))

    def _activation(self, n: int) -> dict[str, Any]:
        fn = self.random.choice([a for a in ACTIVATIONS if a not in ("exp", *_OF_POSITIVE)])
        return {"activation": fn, "alpha": 0.25, "slope": self.w(n) if fn == "prelu" else None}

    def affine(self) -> None:
        x = self.mixed()
        k, groups, shared = self.g.width(x), 1, self.coin()
        if self.coin():
            groups = self.random.choice([d for d in (1, 2, 3) if shared or k % d == 0])
        n = self.width()
        w = self.w(groups, n, k if shared else k // groups) if groups > 1 else self.w(n, k)
        addends = [self.pick(n * groups) for _ in range(self.random.choice([0, 0, 1, 2]))]
        bias = self.w(n * groups) if self.coin() else None
        act = self._activation(n * groups)
        self.keep(self.g.affine(x, w=w, b=bias, addends=addends, groups=groups, shared_x=shared and groups > 1, **act))

    def addends(self) -> None:
        x = self.pick()
        n = self.g.width(x)
        self.keep(self.g.affine(addends=[x, self.pick(n)], b=self.w(n), **self._activation(n)))

    def experts(self) -> None:
        """Siblings: experts over one input, gates, mixtures and towers."""
        x = self.mixed()
        e, d, act = self.random.randint(1, 3), self.width(), self.random.choice(["relu", "tanh"])
        hidden = [self.g.affine(x, w=self.w(d, self.g.width(x)), b=self.w(d), activation=act) for _ in range(e)]
        if self.coin():
            n = self.width()
            hidden = [self.g.affine(h, w=self.w(n, d), b=self.w(n), activation=act) for h in hidden]
        towers = []
        for _ in range(self.random.randint(1, 3)):
            gate = self.g.softmax(self.g.affine(x, w=self.w(e, self.g.width(x))))
            towers.append(self.g.mixture(gate, hidden))
        n = self.width()
        for t in towers:
            self.keep(self.g.affine(t, w=self.w(n, self.g.width(t)), b=self.w(n), activation="sigmoid"))

    def activation(self) -> None:
        x = self.pick()
        fn = self.random.choice(ACTIVATIONS)
        if fn == "exp":
            x = self.bounded(x)
        if fn in _OF_POSITIVE:
            x = self.positive(x)
        slope = self.w(self.g.width(x)) if fn == "prelu" else None
        self.keep(self.g.activation(x, fn, alpha=0.25, slope=slope))

    def softmax(self) -> None:
        x = self.pick()
        n = self.g.width(x)
        self.keep(self.g.softmax(x, size=self.divisor(n)))

    def binary(self) -> None:
        a = self.pick()
        b = self.random.choice([self.pick(self.g.width(a)), self.pick(1)])
        fn = self.random.choice(["add", "sub", "mul", "div", "maximum", "minimum"])
        if fn == "mul":
            a, b = self.bounded(a), self.bounded(b)
        if fn == "div":
            b = self.positive(b)
        self.keep(getattr(self.g, fn)(a, b))

    def scale_shift(self) -> None:
        x = self.pick()
        n = self.g.width(x)
        self.keep(self.g.scale_shift(x, scale=self.w(n), shift=self.w(n)))

    def batch_norm(self) -> None:
        x = self.pick()
        n = self.g.width(x)
        learned = {"scale": self.w(n), "shift": self.w(n)} if self.coin() else {}
        self.keep(self.g.batch_norm(x, mean=self.w(n), var=self.w.positive(n), **learned))

    def reduce(self) -> None:
        x = self.pick()
        n = self.g.width(x)
        axis = self.divisor(n)
        outer = self.divisor(n // axis)
        fn = self.random.choice(["sum", _mean(axis), "max"])
        self.keep(self.g.reduce(x, fn, outer=outer, axis=axis, inner=n // axis // outer))

    def layer_norm(self) -> None:
        x = self.mixed()
        n = self.divisor(self.g.width(x)) if self.coin() else self.g.width(x)
        learned = {"scale": self.w(n), "shift": self.w(n)} if self.coin() else {}
        self.keep(self.g.layer_norm(x, size=n, eps=0.1, **learned))

    def l2_normalize(self) -> None:
        x = self.pick()
        self.keep(self.g.l2_normalize(x, size=self.random.choice([None, self.divisor(self.g.width(x))]), eps=0.3))

    def dot(self) -> None:
        a = self.pick()
        self.keep(self.g.dot(self.bounded(a), self.bounded(self.pick(self.g.width(a)))))

    def repeat(self) -> None:
        x = self.pick()
        self.keep(self.g.repeat(x, self.random.randint(1, 3), outer=self.divisor(self.g.width(x))))

    def transpose(self) -> None:
        x = self.mixed()
        a = self.divisor(self.g.width(x))
        b = self.divisor(self.g.width(x) // a)
        inner = self.divisor(self.g.width(x) // a // b)
        self.keep(self.g.transpose(x, a=a, b=b, inner=inner, outer=self.g.width(x) // a // b // inner))

    def matmul(self) -> None:
        o, m, k, n = (self.random.choice([1, 1, 2, 3]) for _ in range(4))
        a, b = self.bounded(self.pick(o * m * k)), self.bounded(self.pick(o * k * n))
        self.keep(self.g.matmul(a, b, outer=o, m=m, k=k, n=n, transpose_b=self.coin()))

    def present(self) -> None:
        i = self.ids()
        if i is not None:
            self.keep(self.g.present(i.name, padding=i.padding or self.random.randint(0, 3)))

    def mask(self) -> None:
        i = self.ids()
        if i is not None:
            x, value = self.multiple(i.width), self.random.choice([0.0, 0.0, -2.5])
            self.keep(self.g.mask(x, i.name, padding=i.padding or self.random.randint(0, 3), value=value))

    def gru(self) -> None:
        i = self.ids()
        if i is not None and self.coin():
            x, steps = self.multiple(i.width), i.width
        else:
            i, x = None, self.mixed()
            steps = self.divisor(self.g.width(x))
        h = self.width()
        biases = {"b_x": self.w(3 * h), "b_h": self.w(3 * h)} if self.coin() else {}
        weights = {"w_x": self.w(3 * h, self.g.width(x) // steps), "w_h": self.w(3 * h, h), **biases}
        output = self.random.choice(["last", "all"])
        self.keep(self.g.gru(x, i and i.name, steps=steps, output=output, **weights))

    def conv1d(self) -> None:
        x = self.mixed()
        steps = self.divisor(self.g.width(x))
        kernel, stride, dilation = (self.random.randint(1, 3) for _ in range(3))
        least = max(0, dilation * (kernel - 1) + 1 - steps + 1) // 2
        options = {"padding": self.random.randint(least, least + 2), "stride": stride, "dilation": dilation}
        n = self.width()
        w, b = self.w(n, self.g.width(x) // steps, kernel), self.w(n) if self.coin() else None
        self.keep(self.g.conv1d(x, w=w, b=b, steps=steps, **options))

    def stepped(self) -> None:
        """An affine over several rows side by side."""
        x = self.mixed()
        steps = self.divisor(self.g.width(x))
        k, n = self.g.width(x) // steps, self.width()
        groups = self.random.choice([d for d in (1, 2, 3) if k % d == 0])
        w = self.w(groups, n, k // groups) if groups > 1 else self.w(n, k)
        one = n * groups
        addends = [self.pick(one * self.random.choice([1, steps])) for _ in range(self.random.choice([0, 0, 1, 2]))]
        bias = self.w(one) if self.coin() else None
        self.keep(self.g.affine(x, w=w, b=bias, addends=addends, groups=groups, steps=steps, **self._activation(one)))

    def cross(self) -> None:
        x0 = self.bounded(self.mixed())
        x = self.bounded(self.pick(self.g.width(x0)))
        n, kind = self.g.width(x0), self.random.randint(1, 3)
        if kind == 1:
            self.keep(self.g.cross(x0, x, w=self.w(1, n), b=self.w(n), version=1))
        elif kind == 2:
            self.keep(self.g.cross(x0, x, w=self.w(n, n), b=self.w(n)))
        else:
            self.keep(self.g.cross(x0, x, w=self.w(2, n), u=self.w(n, 2)))

    def fm(self) -> None:
        size = self.width()
        fields = [self.bounded(self.multiple(size)) for _ in range(self.random.randint(1, 3))]
        self.keep(self.g.fm(fields, size=size, summed=self.coin()))

    def dice(self) -> None:
        x = self.pick()
        n = self.divisor(self.g.width(x))
        alpha = self.random.choice([None, self.w(n), self.w(1)])
        self.keep(self.g.dice(x, mean=self.w(n), var=self.w.positive(n), alpha=alpha))

    def attention(self) -> None:
        i, n = self.ids(), self.random.choice([1, 2, 3])
        steps = i.width if i is not None else self.random.randint(1, 3)
        hidden, softmax = self.width(), self.coin()
        w, b, out = self.w(hidden, 4 * n), self.w(hidden), self.w(1, hidden)
        self.keep(
            self.g.target_attention(
                self.bounded(self.pick(steps * n)),
                self.bounded(self.pick(n)),
                None if i is None or self.coin() else i.name,
                score=lambda x: self.g.linear(self.g.linear(x, w=w, b=b, activation="sigmoid"), w=out),
                softmax=softmax,
            )
        )

    def product(self) -> None:
        self.keep(self.g.product([self.bounded(self.pick(1)) for _ in range(self.random.randint(2, 3))]))


def _mean(n: int) -> Literal["mean", "sum"]:
    """The mean where a share of it, by which the compiler may weigh parts, is exact in float32; else the sum."""
    return "mean" if n & (n - 1) == 0 else "sum"


_GROW = (
    *("embedding", "concat", "slice", "affine", "affine", "addends", "experts", "activation", "softmax", "binary"),
    *("scale_shift", "batch_norm", "reduce", "layer_norm", "l2_normalize", "dot", "repeat", "transpose", "matmul"),
    *("present", "mask", "gru", "conv1d", "stepped", "stepped", "cross", "fm", "dice", "attention", "product"),
)
FIRST = _GROW[:16]  # until the engine executes plans of version 2
EXACT = tuple(name for name in _GROW if name not in ("scale_shift", "batch_norm", "dice"))


@st.composite
def random_graphs(draw: Any, *, grow: tuple[str, ...] = _GROW, most: int = 16) -> Graph:
    """Graphs of all operators, domains and widths; outputs of every role where the graph has such values.

    Hypothesis chooses the size, so that a failing graph is made small; the rest follows from a seed, because structures
    drawn piece by piece turn out too plain.
    """
    return random_graph(draw(st.integers(0, 2**32 - 1)), size=draw(st.integers(1, most)), grow=grow)


def random_graph(seed: int, *, size: int, grow: tuple[str, ...] = _GROW) -> Graph:
    """The graph of that seed; ``grow`` are the kinds of nodes."""
    rng = random.Random(seed)
    inputs: list[Input] = []
    offsets: dict[tuple[str, str], int] = {}
    wanted: list[tuple[Domain, Literal["ids", "dense"]]] = [("request", "dense"), ("item", "dense")]
    wanted += [(rng.choice(DOMAINS), rng.choice(["dense", "ids"])) for _ in range(rng.randint(0, 5))]
    for i, (domain, kind) in enumerate(wanted):
        if i < 2 and rng.random() < 0.1:
            continue
        width = rng.choice([1, 1, 2, 3, 5])
        offset = offsets.get((domain, kind), 0)
        offsets[domain, kind] = offset + width
        ids = {"rows": rng.choice([None, 4, 6]), "padding": rng.choice([None, 0])}
        inputs.append(Input(f"in{i}", domain, kind, offset, width, **(ids if kind == "ids" else {})))
    if not any(i.kind == "dense" for i in inputs):
        inputs.append(Input("dense", "candidate", "dense", offsets.get(("candidate", "dense"), 0), 2))
    grower = _Grower(rng, inputs)
    for _ in range(size):
        getattr(grower, rng.choice(grow))()
    g = grower.g
    g.output("whole", g.reduce(grower.values[-1], _mean(g.width(grower.values[-1]))))
    probe = g.build()
    for number, value in enumerate(reversed(grower.values[-6:])):
        domain = probe.domain(value)
        if domain != "candidate" and rng.random() < 0.5:
            g.output(f"vector{number}", value, role=domain)
        elif g.width(value) == 1:
            g.output(f"task{number}", value)
    return g.build()


def task_scores(outputs: Mapping[str, NDArray[Any]], graph: Graph) -> NDArray[Any]:
    """Task outputs side by side, shape (n, tasks)."""
    return np.concatenate([outputs[t] for t in graph.tasks], axis=1)
