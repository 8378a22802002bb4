"""Constants, identities and pairs of nodes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from cases import assert_same_outputs
from fastmtr.compiler.dead_code import remove_dead_code
from fastmtr.compiler.simplify import simplify
from fastmtr.graph import Graph, GraphBuilder, Input
from random_graphs import random_graphs

INPUTS = (
    Input("user", "request", "dense", 0, 4),
    Input("item", "item", "dense", 0, 4),
    Input("one", "item", "dense", 4, 1),
    Input("ids", "request", "ids", 0, 1, rows=5),
    Input("history", "request", "ids", 1, 3, rows=5, padding=0),
)
Build = Callable[[GraphBuilder], str]


@settings(max_examples=150, deadline=None)
@given(graph=random_graphs())
def test_outputs_are_kept(graph: Graph) -> None:
    assert_same_outputs(graph, simplify(graph), 1e-5)


def graphs(build: Build) -> tuple[Graph, Graph]:
    """A graph whose tasks are the columns of a value, before and after."""
    g = GraphBuilder(INPUTS)
    value = build(g)
    for column in range(g.width(value)):
        g.output(f"column{column}", g.slice(value, column, 1))
    before = g.build()
    after = remove_dead_code(simplify(before))
    assert_same_outputs(before, after, 1e-6)
    return before, after


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op != "slice"]


def drawn(g: GraphBuilder, *shape: int) -> str:
    name = f"w{len(g._weights)}"
    return g.weight(name, np.random.default_rng(len(name) + len(g._weights)).uniform(0.5, 2, size=shape))


def constant(g: GraphBuilder, x: str = "user") -> str:
    """Numbers as a converter writes them: a value times zero, plus the numbers."""
    n = g.width(x)
    return g.scale_shift(x, scale=g.weight(f"zero{len(g._weights)}", np.zeros(n)), shift=drawn(g, n))


def plus(g: GraphBuilder, x: str, by: float) -> str:
    n = g.width(x)
    one = g.weight(f"one{len(g._weights)}", np.ones(n))
    return g.scale_shift(x, scale=one, shift=g.weight(f"by{len(g._weights)}", np.full(n, by)))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        # Computed now: what depends on constants alone, whatever it is.
        (lambda g: g.activation(constant(g), "exp"), ["scale_shift"]),
        (lambda g: g.softmax(g.concat([constant(g), constant(g, "item")])), ["affine"]),
        (lambda g: g.softmax("user", size=1), ["scale_shift"]),
        (lambda g: g.affine("user", w=g.weight("w", np.zeros((3, 4))), b=drawn(g, 3), activation="tanh"), ["affine"]),
        (lambda g: g.mixture(g.softmax("one"), ["user"]), []),
        # Arithmetic with constants.
        (lambda g: g.add("item", constant(g)), ["scale_shift"]),
        (lambda g: g.sub(constant(g), "item"), ["scale_shift"]),
        (lambda g: g.sub("item", constant(g)), ["scale_shift"]),
        (lambda g: g.mul(constant(g, "one"), "item"), ["scale_shift"]),
        (lambda g: g.div("item", constant(g)), ["scale_shift"]),
        (lambda g: g.mul(constant(g), "one"), ["affine"]),
        (lambda g: g.sub(constant(g), "one"), ["affine"]),
        # Not a scale of the other.
        (lambda g: g.div(constant(g), g.activation("item", "exp")), ["scale_shift", "activation", "binary"]),
        (lambda g: g.minimum(constant(g), "item"), ["scale_shift", "binary"]),
        # Identities.
        (lambda g: plus(g, "user", 0), []),
        (lambda g: plus(g, "user", 1), ["scale_shift"]),
        (lambda g: g.activation("user", "none"), []),
        (lambda g: g.activation(g.activation("user", "sigmoid"), "relu"), ["activation"]),
        (lambda g: g.activation(g.activation("user", "tanh"), "relu"), ["activation", "activation"]),
        (lambda g: g.reduce("user", "mean", outer=2, axis=1, inner=2), []),
        (lambda g: g.affine(addends=["user"]), []),
        (lambda g: g.affine(addends=["user", "user"]), ["affine"]),
        (lambda g: g.affine(addends=["user"], activation="relu"), ["affine"]),
        (lambda g: g.repeat("user", 1), []),
        (lambda g: g.transpose("user", a=1, b=4), []),
        (lambda g: g.transpose("user", a=2, b=2), ["transpose"]),
        # Pairs.
        (lambda g: plus(g, plus(g, "user", 1), 2), ["scale_shift"]),
        (lambda g: g.reduce(g.mul("user", "item"), "sum"), ["dot"]),
        (lambda g: g.reduce(g.mul("one", "item"), "sum"), ["binary", "reduce"]),
        (lambda g: g.reduce(g.mul("user", "item"), "max"), ["binary", "reduce"]),
        (lambda g: _sum_and_greatest(g, plus(g, g.mul("user", "item"), 0)), ["binary", "reduce", "reduce", "binary"]),
        (lambda g: g.embedding_bag("ids", drawn(g, 5, 2), mode="max", padding=0), ["embedding"]),
        (lambda g: g.embedding_bag("history", drawn(g, 5, 2)), ["embedding_bag"]),
    ],
)
def test_less_is_left(build: Build, left: list[str]) -> None:
    _, after = graphs(build)
    assert ops(after) == left


def _sum_and_greatest(g: GraphBuilder, x: str) -> str:
    return g.add(g.reduce(x, "sum"), g.reduce(x, "max"))


def test_relu_written_as_a_maximum() -> None:
    def build(g: GraphBuilder) -> str:
        zero = g.weight("zero", np.zeros(4))
        return g.maximum("item", g.scale_shift("user", scale=zero, shift=zero))

    assert ops(graphs(build)[1]) == ["activation"]


def test_a_division_by_zero_stays() -> None:
    g = GraphBuilder(INPUTS)
    zero = g.weight("zero", np.zeros(4))
    g.output("click", g.reduce(g.div("item", g.scale_shift("item", scale=zero, shift=zero)), "max"))
    assert ops(simplify(g.build())) == ["scale_shift", "binary", "reduce"]


@pytest.mark.parametrize(
    ("inner", "outer", "products"),
    [
        (6, 3, 1),
        (3, 5, 1),  # more than the inner one alone
        (1, 4, 2),  # a narrow waist is fewer operations than the product of both
    ],
)
def test_an_affine_of_an_affine(inner: int, outer: int, products: int) -> None:
    def build(g: GraphBuilder) -> str:
        hidden = g.affine("user", w=drawn(g, inner, 4), b=drawn(g, inner))
        return g.affine(hidden, w=drawn(g, outer, inner), addends=[g.affine("item", w=drawn(g, outer, 4))])

    assert ops(graphs(build)[1]).count("affine") == products + 1 or products == 1
    before, after = graphs(
        lambda g: g.affine(
            g.affine("user", w=drawn(g, inner, 4), b=drawn(g, inner)), w=drawn(g, outer, inner), b=drawn(g, outer)
        )
    )
    assert ops(before).count("affine") == 2
    assert ops(after).count("affine") == products


def test_an_affine_of_steps_of_an_affine_of_steps() -> None:
    def build(g: GraphBuilder) -> str:
        hidden = g.affine("user", w=drawn(g, 3, 2), b=drawn(g, 3), steps=2)
        return g.affine(hidden, w=drawn(g, 2, 3), b=drawn(g, 2), activation="tanh", steps=2)

    _, after = graphs(build)
    assert ops(after) == ["affine"]


@pytest.mark.parametrize(
    "build",
    [
        # The user's product would be one of candidates.
        lambda g: g.affine(g.affine("user", w=drawn(g, 6, 4)), w=drawn(g, 4, 6), addends=["item"]),
        lambda g: g.affine(g.affine("user", w=drawn(g, 6, 4), activation="relu"), w=drawn(g, 3, 6)),
        lambda g: g.affine(g.affine("user", w=drawn(g, 6, 4)), w=drawn(g, 2, 3, 3), groups=2),
        # Others read the inner value.
        lambda g: g.add(*_both(g)),
    ],
)
def test_affines_that_stay_two(build: Build) -> None:
    before, after = graphs(build)
    assert [(n.op, n.inputs) for n in after.nodes] == [(n.op, n.inputs) for n in before.nodes]


def _both(g: GraphBuilder) -> tuple[str, str]:
    hidden = g.affine("user", w=drawn(g, 4, 4))
    return hidden, g.affine(hidden, w=drawn(g, 4, 4))
