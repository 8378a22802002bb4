"""Random graphs of all operators, domains and widths."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from cases import DOMAINS, OF_POSITIVE, Weights
from fastmtr.graph import Domain, Graph, GraphBuilder, Input
from fastmtr.operators import ACTIVATIONS

__all__ = ["EXACT", "random_graph", "random_graphs"]

_BOUNDED = ("tanh", "sigmoid")


class _Grower:
    """Adds random nodes; values stay of moderate size, so that a comparison to 1e-10 means something."""

    def __init__(self, rng: random.Random, inputs: list[Input]) -> None:
        self.random = rng
        self.g = GraphBuilder(inputs)
        self.w = Weights(self.g, np.random.default_rng(rng.getrandbits(32)), grid=1 / 16)
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
        fn = self.random.choice([a for a in ACTIVATIONS if a not in ("exp", *OF_POSITIVE)])
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
        if fn in OF_POSITIVE:
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
        times = self.divisor(n) if self.coin() else 1  # alike for so many steps
        n //= times
        learned = {"scale": self.w(n, times=times), "shift": self.w(n, times=times)} if self.coin() else {}
        self.keep(self.g.batch_norm(x, mean=self.w(n, times=times), var=self.w.positive(n, times=times), **learned))

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
