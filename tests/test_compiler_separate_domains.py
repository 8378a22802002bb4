"""What is computed apart for request and item, though it stands in one operator."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from cases import assert_same_outputs
from fastmtr.compiler import compile_graph
from fastmtr.compiler.dead_code import remove_dead_code
from fastmtr.compiler.separate_domains import separate_domains
from fastmtr.graph import Graph, GraphBuilder, Input
from random_graphs import random_graphs

USER, ITEM = Input("user", "request", "dense", 0, 4), Input("item", "item", "dense", 0, 4)
HERE = Input("here", "candidate", "dense", 0, 2)
INPUTS = (USER, ITEM, HERE, Input("one", "request", "dense", 4, 1))


def computed(graph: Graph) -> set[tuple[str, str, int]]:
    """Operator, domain and width of what computes something."""
    return {
        (n.op, graph.domain(n.output), graph.width(n.output)) for n in graph.nodes if n.op not in ("concat", "slice")
    }


@settings(max_examples=200, deadline=None)
@given(graph=random_graphs())
def test_outputs_are_kept(graph: Graph) -> None:
    assert_same_outputs(graph, separate_domains(graph), 1e-12)


def weight(g: GraphBuilder, name: str, *shape: int) -> str:
    return g.weight(name, np.random.default_rng(len(name)).normal(size=shape) / 2)


MIXED = ["user", "here", "item"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda g: g.activation(g.concat(MIXED), "relu"),
            {("activation", "request", 4), ("activation", "candidate", 2), ("activation", "item", 4)},
        ),
        (
            lambda g: g.activation(g.concat(MIXED), "prelu", slope=weight(g, "slope", 10)),
            {("activation", "request", 4), ("activation", "candidate", 2), ("activation", "item", 4)},
        ),
        # Columns of one domain that are not neighbours are one value.
        (
            lambda g: g.scale_shift(
                g.concat(["user", "item", "user"]), scale=weight(g, "scale", 12), shift=weight(g, "shift", 12)
            ),
            {("scale_shift", "request", 8), ("scale_shift", "item", 4)},
        ),
        (
            lambda g: g.mul(g.concat(["user", "item"]), g.concat(["user", "user"])),
            {("binary", "request", 4), ("binary", "candidate", 4)},
        ),
        # The single column of the user is read for each of the others.
        (
            lambda g: g.div(g.concat(MIXED), g.activation("one", "sigmoid")),
            {("activation", "request", 1), ("binary", "request", 4), ("binary", "candidate", 6)},
        ),
        (
            lambda g: g.softmax(g.concat(["user", "item"]), size=2),
            {("softmax", "request", 4), ("softmax", "item", 4)},
        ),
        # A run across domains cannot be computed apart.
        (lambda g: g.softmax(g.concat(["user", "item"])), {("softmax", "candidate", 8)}),
        (
            lambda g: g.softmax(g.concat(["user", "user", "item"]), size=6),
            {("softmax", "request", 6), ("softmax", "candidate", 6)},
        ),
        # Rows of tokens that go through one product.
        (
            lambda g: g.affine(g.concat(["user", "item"]), w=weight(g, "w", 3, 2), b=weight(g, "b", 3), steps=4),
            {("affine", "request", 6), ("affine", "item", 6)},
        ),
        (
            lambda g: g.layer_norm(g.concat(["user", "item"]), size=2, scale=weight(g, "scale", 2)),
            {("layer_norm", "request", 4), ("layer_norm", "item", 4)},
        ),
        (
            lambda g: g.reduce(g.concat(["user", "item"]), "max", outer=4, axis=2),
            {("reduce", "request", 2), ("reduce", "item", 2)},
        ),
    ],
)
def test_blocks_are_computed_by_domain(
    build: Callable[[GraphBuilder], str], expected: set[tuple[str, str, int]]
) -> None:
    g = GraphBuilder(INPUTS)
    value = build(g)
    for column in range(g.width(value)):
        g.output(f"column{column}", g.slice(value, column, 1))
    after = remove_dead_code(separate_domains(g.build()))
    assert computed(after) == expected
    assert_same_outputs(g.build(), after, 1e-12)


@pytest.mark.parametrize("fn", ["sum", "mean", "max"])
@pytest.mark.parametrize(("outer", "axis", "inner"), [(1, 10, 1), (1, 5, 2)])
def test_a_reduction_is_one_of_each_domain(fn: str, outer: int, axis: int, inner: int) -> None:
    g = GraphBuilder(INPUTS)
    value = g.reduce(g.concat(MIXED), fn, outer=outer, axis=axis, inner=inner)  # type: ignore[arg-type]
    for column in range(g.width(value)):
        g.output(f"column{column}", g.slice(value, column, 1))
    after = remove_dead_code(separate_domains(g.build()))
    kinds = computed(after)
    assert {("reduce", "request", inner), ("reduce", "item", inner)} < kinds
    assert (("reduce", "candidate", inner) in kinds) == (inner == 1)  # one block is its own sum
    assert_same_outputs(g.build(), after, 1e-7)


def test_a_reduction_of_rows_that_mix_domains_alike() -> None:
    g = GraphBuilder(INPUTS)
    rows = g.concat([g.slice(v, 2 * o, 2) for o in range(2) for v in ("user", "item")])
    g.output("click", g.reduce(g.reduce(rows, "sum", outer=2, axis=4), "max"))
    after = remove_dead_code(separate_domains(g.build()))
    assert {("reduce", "request", 2), ("reduce", "item", 2), ("affine", "candidate", 2)} < computed(after)
    assert_same_outputs(g.build(), after, 1e-12)


def test_rows_that_mix_domains_unlike_stay_together() -> None:
    g = GraphBuilder(INPUTS)
    rows = g.concat(["user", "item", "user", "here", g.slice("item", 0, 2)])
    g.output("click", g.reduce(g.reduce(rows, "sum", outer=2, axis=8), "max"))
    before = g.build()
    assert separate_domains(before).nodes == before.nodes


def test_an_inner_product_is_one_of_each_domain() -> None:
    g = GraphBuilder(INPUTS)
    g.output("click", g.dot(g.concat(["user", "item", "user"]), g.concat(["user", "item", "item"])))
    after = remove_dead_code(separate_domains(g.build()))
    assert computed(after) == {
        ("dot", "request", 1),
        ("dot", "item", 1),
        ("dot", "candidate", 1),
        ("affine", "candidate", 1),
    }
    assert_same_outputs(g.build(), after, 1e-12)


def test_a_sum_over_columns_of_a_sum_is_taken_of_each_term() -> None:
    g = GraphBuilder(INPUTS)
    product = g.mul("user", "item")
    g.output("click", g.reduce(g.sub(product, g.add("user", "item")), "sum"))
    after = remove_dead_code(separate_domains(g.build()))
    assert computed(after) == {
        ("binary", "candidate", 4),  # the product
        ("reduce", "candidate", 1),
        ("reduce", "request", 1),
        ("reduce", "item", 1),
        ("binary", "candidate", 1),
    }
    assert_same_outputs(g.build(), after, 1e-12)


def test_a_factorisation_machine_needs_little_of_each_candidate() -> None:
    """Rendle 2010: half of the squared sum of the fields minus the sum of their squares."""
    g = GraphBuilder(
        [Input(f"u{i}", "request", "dense", 8 * i, 8) for i in range(3)]
        + [Input(f"i{i}", "item", "dense", 8 * i, 8) for i in range(2)]
    )
    fields = g.concat([f"u{i}" for i in range(3)] + [f"i{i}" for i in range(2)])
    total = g.reduce(fields, "sum", axis=5, inner=8)
    squares = g.reduce(g.mul(fields, fields), "sum", axis=5, inner=8)
    g.output("click", g.reduce(g.sub(g.mul(total, total), squares), "sum"))
    compiled = compile_graph(g.build(), n_items=1000)
    candidate = [(s["op"], s["output"][2]) for s in compiled.plan["steps"] if s["domain"] == "candidate"]
    # The user's sum plus the item's, its squares, their sum, less what is known of user and item.
    assert [width for op, width in candidate if op != "gather"] == [8, 8, 1, 1, 1]
    assert_same_outputs(g.build(), compiled.graph, 1e-6)
