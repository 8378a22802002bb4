"""Each pass, on random graphs of all operators: the same outputs as before."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from cases import MODELS, assert_same_outputs, model_graph
from fastmtr.compiler.dead_code import merge_equal_nodes, remove_dead_code
from fastmtr.compiler.flatten import flatten
from fastmtr.compiler.fold_batch_norm import fold_batch_norm
from fastmtr.compiler.fuse_activation import fuse_activation
from fastmtr.compiler.separate_domains import separate_domains
from fastmtr.compiler.split_by_domain import split_by_domain
from fastmtr.compiler.stack_siblings import stack_siblings
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, GraphBuilder, Input
from random_graphs import EXACT, random_graphs

PASSES = (
    remove_dead_code,
    merge_equal_nodes,
    flatten,
    fuse_activation,
    stack_siblings,
    split_by_domain,
)


@pytest.mark.parametrize("one_pass", PASSES)
@settings(max_examples=60, deadline=None)
@given(graph=random_graphs())
def test_a_pass_keeps_every_output(one_pass: Callable[[Graph], Graph], graph: Graph) -> None:
    assert_same_outputs(graph, one_pass(graph), 1e-12)


@settings(max_examples=200, deadline=None)
@given(graph=random_graphs())
def test_separated_domains_keep_every_output(graph: Graph) -> None:
    assert_same_outputs(graph, separate_domains(graph), 1e-6)  # the parts of a mean have factors rounded to float32


@settings(max_examples=100, deadline=None)
@given(graph=random_graphs())
def test_folded_scales_keep_every_output_to_float32(graph: Graph) -> None:
    assert_same_outputs(graph, fold_batch_norm(graph), 1e-5)


@settings(max_examples=40, deadline=None)
@given(graph=random_graphs(grow=EXACT))
def test_passes_after_one_another_keep_every_output(graph: Graph) -> None:
    after = graph
    for one_pass in (*PASSES, fold_batch_norm, *PASSES):
        after = one_pass(after)
    assert_same_outputs(graph, after, 1e-11)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("one_pass", [*PASSES, fold_batch_norm])
def test_a_pass_keeps_the_outputs_of_models(one_pass: Callable[[Graph], Graph], kind: str) -> None:
    graph = model_graph(kind, batch_norm=True)
    assert_same_outputs(graph, one_pass(graph), 1e-6 if one_pass is fold_batch_norm else 1e-12)


# ---- what a pass is for ----------------------------------------------------------------------------------------------

USER, ITEM = Input("user", "request", "dense", 0, 2), Input("item", "item", "dense", 0, 3)


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def builder(*inputs: Input) -> tuple[GraphBuilder, Callable[..., str]]:
    g, rng = GraphBuilder(inputs or (USER, ITEM)), np.random.default_rng(0)
    count = iter(range(1000))
    return g, lambda *shape: g.weight(f"w{next(count)}", rng.uniform(0.5, 2, size=shape))


def test_dead_nodes_and_weights_go_but_inputs_stay() -> None:
    g, w = builder()
    g.affine("item", w=w(4, 3))
    g.output("click", g.affine("user", w=w(1, 2)))
    after = remove_dead_code(g.build())
    assert ops(after) == ["affine"]
    assert list(after.weights) == ["w1"]
    assert after.inputs == (USER, ITEM)


def test_equal_nodes_are_one() -> None:
    g, w = builder()
    weight = w(1, 2)
    g.output("a", g.activation(g.affine("user", w=weight), "relu"))
    g.output("b", g.activation(g.affine("user", w=weight), "relu"))
    g.output("c", g.activation(g.affine("user", w=weight), "tanh"))
    assert ops(merge_equal_nodes(g.build())) == ["affine", "activation", "activation"]


def test_concats_and_slices_become_flat() -> None:
    g, _ = builder()
    inner = g.concat(["user", g.concat(["item"])])
    again = g.concat([g.slice(inner, 0, 1), g.slice(inner, 1, 4)])
    g.output("click", g.reduce(again, "sum"))
    g.output("like", g.slice(g.slice(again, 1, 3), 2, 1))
    after = remove_dead_code(flatten(g.build()))
    assert [(n.op, n.inputs) for n in after.nodes] == [
        ("concat", ("user", "item")),
        ("reduce", (after.nodes[0].output,)),
        ("slice", ("item",)),
    ]
    assert after.nodes[2].attrs == {"offset": 1, "width": 1}


def test_a_batch_norm_after_an_affine_goes_into_it() -> None:
    g, w = builder()
    x = g.affine("user", w=w(3, 2), b=w(3))
    g.output("click", g.reduce(g.batch_norm(x, mean=w(3), var=w(3), scale=w(3), shift=w(3)), "sum"))
    after = fold_batch_norm(g.build())
    assert ops(after) == ["affine", "reduce"]
    assert_same_outputs(g.build(), after, 1e-6)


def test_a_batch_norm_of_a_value_that_others_read_goes_into_what_follows() -> None:
    g, w = builder()
    x = g.affine("user", w=w(3, 2))
    y = g.batch_norm(x, mean=w(3), var=w(3))
    g.output("click", g.affine(g.concat([y, x]), w=w(1, 6)))
    after = remove_dead_code(fold_batch_norm(g.build()))
    assert ops(after) == ["affine", "affine"]  # y is a multiple of x, so x alone is read
    assert_same_outputs(g.build(), after, 1e-6)


def test_scales_of_scales_seen_through_concat_and_slice_go_into_a_grouped_affine() -> None:
    g, w = builder()
    x = g.activation("item", "tanh")
    scaled = g.scale_shift(g.batch_norm(x, mean=w(3), var=w(3)), scale=w(3), shift=w(3))
    wide = g.concat(["user", g.slice(scaled, 1, 2)])
    value = g.affine(wide, w=w(2, 3, 2), groups=2)
    g.output("click", g.reduce(value, "sum"))
    after = remove_dead_code(fold_batch_norm(g.build()))
    assert "scale_shift" not in ops(after)
    assert "batch_norm" not in ops(after)
    assert_same_outputs(g.build(), after, 1e-6)


def test_a_batch_norm_that_stands_alone_becomes_a_scale() -> None:
    g, w = builder()
    g.output("click", g.reduce(g.batch_norm("user", mean=w(2), var=w(2)), "sum"))
    assert ops(fold_batch_norm(g.build())) == ["scale_shift", "reduce"]


def test_a_variance_below_zero_is_refused() -> None:
    g, w = builder()
    g.output("click", g.reduce(g.batch_norm("user", mean=w(2), var=g.weight("var", [-1, 1])), "sum"))
    with pytest.raises(ConversionError, match=r"batch_norm.*positive"):
        fold_batch_norm(g.build())


def test_activation_and_sum_go_into_the_affine() -> None:
    g, w = builder()
    wide = g.add(g.affine("user", w=w(3, 2)), g.activation("item", "relu"))
    # The sum mixes domains: were it taken in, the user's product would be one of candidates.
    deep = g.add(g.affine(g.concat(["user", "item"]), w=w(3, 5)), "item")
    g.output("click", g.reduce(g.add(g.activation(deep, "tanh"), wide), "sum"))
    after = fuse_activation(g.build())
    assert Counter(ops(after)) == {"affine": 2, "activation": 1, "concat": 1, "binary": 2, "reduce": 1}
    fused = next(n for n in after.nodes if n.attrs.get("activation") == "tanh" and n.op == "affine")
    assert len(fused.inputs) == 2


def test_a_value_that_others_read_is_not_fused() -> None:
    g, w = builder()
    x = g.affine("user", w=w(1, 2))
    g.output("raw", x)
    g.output("click", g.activation(x, "sigmoid"))
    assert ops(fuse_activation(g.build())) == ["affine", "activation"]


def test_split_leaves_one_product_a_domain() -> None:
    extra = Input("position", "candidate", "dense", 0, 1)
    g, w = builder(USER, ITEM, extra)
    x = g.concat(["item", g.slice(g.concat(["user", "position"]), 1, 2), "user"])
    g.output("click", g.affine(x, w=w(1, 7), b=w(1), activation="sigmoid", name="head"))
    after = remove_dead_code(split_by_domain(g.build()))
    products = {n.output: after.domain(n.output) for n in after.nodes if n.op == "affine"}
    assert products == {"head@request": "request", "head@item": "item", "head": "candidate"}
    head = after.nodes[-1]
    assert head.inputs == ("position", "head@request", "head@item")
    assert [("b" in n.weights) for n in after.nodes if n.op == "affine"] == [True, False, False]


def test_split_may_leave_the_item_where_it_is() -> None:
    g, w = builder()
    g.output("click", g.affine(g.concat(["user", "item"]), w=w(1, 5), name="head"))
    after = remove_dead_code(split_by_domain(g.build(), keep_item={"head"}))
    assert [n.inputs for n in after.nodes if n.op == "affine"] == [("user",), ("item", "head@request")]


def test_a_product_of_one_domain_inside_a_mixed_sum_is_computed_once() -> None:
    g, w = builder()
    value = g.affine("user", w=w(3, 2), addends=["item"], activation="relu")
    g.output("click", g.reduce(value, "sum"))
    assert split_by_domain(g.build()).domain(f"{value}@request") == "request"


def parts(graph: Graph) -> dict[str, tuple[str, int]]:
    """Domain and number of columns read, of each product."""
    return {
        n.output: (graph.domain(n.output), graph.width(n.inputs[0]))
        for n in graph.nodes
        if n.op == "affine" and "w" in n.weights
    }


THREE = (
    Input("user", "request", "dense", 0, 3),
    Input("item", "item", "dense", 0, 3),
    Input("here", "candidate", "dense", 0, 3),
    Input("one", "item", "dense", 3, 1),
)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda g, w: g.sub("user", "item"), {"head@request": ("request", 3), "head@item": ("item", 3)}),
        (lambda g, w: g.add("user", "one"), {"head@request": ("request", 3), "head@item": ("item", 1)}),
        (
            lambda g, w: g.scale_shift(g.sub("item", "user"), scale=w(3), shift=w(3)),
            {"head@request": ("request", 3), "head@item": ("item", 3)},
        ),
        (
            lambda g, w: g.concat(["user", "item", g.sub("user", "item"), g.mul("user", "item")]),
            {"head@request": ("request", 3), "head@item": ("item", 3), "head": ("candidate", 3)},
        ),
        # Nothing is gained where the candidate's columns stay as many.
        (lambda g, w: g.add("user", "here"), {"head": ("candidate", 3)}),
        (lambda g, w: g.sub(g.add("user", "here"), g.activation("here", "tanh")), {"head": ("candidate", 3)}),
        # What is read twice is multiplied once.
        (lambda g, w: g.concat(["here", "here"]), {"head": ("candidate", 3)}),
        # Columns of a sum.
        (
            lambda g, w: g.slice(g.concat([g.sub("user", "item"), g.sub("item", "user")]), 2, 3),
            {"head@request": ("request", 3), "head@item": ("item", 3)},
        ),
        # A chain without activation: each product of its own domain.
        (
            lambda g, w: g.affine(g.concat(["user", "item"]), w=w(2, 6), b=w(2), name="inner"),
            {
                "inner@request": ("request", 3),
                "inner@item": ("item", 3),
                "head@request": ("request", 2),
                "head@item": ("item", 2),
            },
        ),
    ],
)
def test_split_sees_through_sums(
    build: Callable[[GraphBuilder, Callable[..., str]], str], expected: dict[str, tuple[str, int]]
) -> None:
    g, w = builder(*THREE)
    x = build(g, w)
    g.output("click", g.affine(x, w=w(1, g.width(x)), b=w(1), name="head"))
    after = remove_dead_code(split_by_domain(g.build()))
    assert parts(after) == expected
    assert_same_outputs(g.build(), after, 1e-6)


def test_split_that_keeps_the_item_still_reads_each_column_once() -> None:
    g, w = builder(*THREE)
    x = g.concat(["user", "item", g.sub("user", "item"), g.mul("user", "item")])
    g.output("click", g.affine(x, w=w(1, 12), name="head"))
    after = remove_dead_code(split_by_domain(g.build(), keep_item={"head"}))
    assert parts(after) == {"head@request": ("request", 3), "head": ("candidate", 6)}
    assert_same_outputs(g.build(), after, 1e-6)


def test_sums_of_sums_are_expanded_once_each() -> None:
    g, w = builder(*THREE)
    x = g.sub("user", "item")
    for _ in range(40):
        x = g.scale_shift(g.add(x, x), scale=g.weight(f"half{x}", [0.5] * 3), shift=w(3))
    g.output("click", g.affine(x, w=w(1, 3), name="head"))
    after = remove_dead_code(split_by_domain(g.build()))
    assert parts(after) == {"head@request": ("request", 3), "head@item": ("item", 3)}
    assert_same_outputs(g.build(), after, 1e-6)


def test_groups_with_as_many_columns_of_each_domain_are_split() -> None:
    g, w = builder(*THREE)
    hidden = g.activation("here", "tanh")
    x = g.concat([g.slice(hidden, 0, 1), "user", "item", g.slice(hidden, 1, 1), "user", g.activation("item", "relu")])
    g.output("click", g.reduce(g.affine(x, w=w(2, 4, 7), b=w(8), groups=2, activation="relu", name="head"), "sum"))
    after = remove_dead_code(split_by_domain(g.build()))
    # Both groups read all of the user, so that is one product.
    assert parts(after) == {"head@request": ("request", 3), "head@item": ("item", 6), "head": ("candidate", 2)}
    groups = {n.output: n.attr("groups") for n in after.nodes if n.op == "affine"}
    assert groups == {"head@request": 1, "head@item": 2, "head": 2}
    assert_same_outputs(g.build(), after, 1e-12)


def test_groups_of_unlike_columns_stay_as_they_are() -> None:
    g, w = builder(*THREE)
    x = g.concat(["user", "here", "item", "one", g.slice("item", 0, 2)])
    g.output("click", g.reduce(g.affine(x, w=w(2, 4, 6), groups=2, name="head"), "sum"))
    assert parts(split_by_domain(g.build())) == {"head": ("candidate", 12)}


@pytest.mark.parametrize("widths", [(4, 4), (4, 2)])
def test_siblings_are_stacked_and_grouped(widths: tuple[int, int]) -> None:
    g, w = builder()
    x = g.concat(["user", "item"])
    first = [g.affine(x, w=w(n, 5), b=w(n), activation="relu") for n in widths]
    second = [g.affine(h, w=w(3, n), activation="relu") for h, n in zip(first, widths, strict=True)]
    g.output("click", g.reduce(g.add(*second), "sum"))
    after = remove_dead_code(stack_siblings(g.build()))
    affines = [n for n in after.nodes if n.op == "affine"]
    assert after.width(affines[0].output) == sum(widths)
    assert [n.attr("groups") for n in affines] == ([1, 2] if widths == (4, 4) else [1, 1, 1])


def test_values_stacked_in_another_order_keep_their_names() -> None:
    """Gates of one size become neighbours, so their softmaxes are one step."""
    g, w = builder()
    experts = [g.affine("user", w=w(2, 2), activation="relu") for _ in range(3)]
    for t, e in enumerate((3, 2, 3)):
        gate = g.softmax(g.affine("item", w=w(e, 3), b=w(e)))
        g.output(f"task{t}", g.reduce(g.mixture(gate, experts[:e]), "sum"))
    before = g.build()
    after = remove_dead_code(stack_siblings(before, domains=("request", "item", "candidate")))
    assert ops(after).count("softmax") == 2
    assert_same_outputs(before, after, 1e-12)


def test_item_values_are_not_stacked_by_default() -> None:
    g, w = builder()
    g.output("a", g.affine("item", w=w(1, 3)))
    g.output("b", g.affine("item", w=w(1, 3)))
    assert ops(stack_siblings(g.build())) == ["affine", "affine"]


def test_inputs_in_several_pieces_are_not_copied_side_by_side() -> None:
    g, w = builder()
    wide = g.affine("item", w=w(8, 3), activation="relu")
    parts = [g.concat([g.slice(wide, 2 * t, 2), "user"]) for t in range(2)]
    g.output("click", g.reduce(g.add(*(g.affine(x, w=w(3, 4)) for x in parts)), "sum"))
    after = stack_siblings(g.build())
    assert [n.attr("groups") for n in after.nodes if n.op == "affine"] == [1, 1, 1]


def test_softmaxes_over_several_pieces_stay_apart() -> None:
    g, w = builder()
    logits = g.affine("user", w=w(4, 2))
    parts = [g.softmax(g.concat([g.slice(logits, 2 * t, 2), "user"]), size=2) for t in range(2)]
    g.output("click", g.reduce(g.concat(parts), "max"))
    after = stack_siblings(g.build())
    assert ops(after).count("softmax") == 2
    assert_same_outputs(g.build(), after, 1e-12)


# ---- steps -----------------------------------------------------------------------------------------------------------


def stepped(alike: bool) -> tuple[GraphBuilder, Callable[..., str], str, Callable[[int], NDArray[np.float64]]]:
    """An affine of two steps and three columns, and vectors for its value that are alike for both steps, or not."""
    g, w = builder(Input("user", "request", "dense", 0, 4))
    x = g.affine("user", w=w(3, 2), b=w(3), steps=2)
    n, times = (3, 2) if alike else (6, 1)
    return g, w, x, lambda seed: np.tile(np.random.default_rng(seed).uniform(0.5, 2, n), times)


@pytest.mark.parametrize("alike", [True, False])
def test_a_batch_norm_goes_into_an_affine_of_steps_where_they_are_alike(alike: bool) -> None:
    g, _, x, vector = stepped(alike)
    roles = {role: g.weight(role, vector(seed)) for seed, role in enumerate(("mean", "var", "scale", "shift"))}
    g.output("click", g.reduce(g.batch_norm(x, **roles), "sum"))
    after = fold_batch_norm(g.build())
    assert ops(after) == (["affine", "reduce"] if alike else ["affine", "scale_shift", "reduce"])
    assert_same_outputs(g.build(), after, 1e-6)


@pytest.mark.parametrize("alike", [True, False])
def test_a_batch_norm_goes_into_a_convolution_where_its_steps_are_alike(alike: bool) -> None:
    g, w = builder(Input("user", "request", "dense", 0, 8))
    x = g.conv1d("user", w=w(3, 2, 2), b=w(3), steps=4)
    roles = {role: g.weight(role, np.resize(np.arange(1, 4 if alike else 10), 9)) for role in ("mean", "var", "scale")}
    g.output("click", g.reduce(g.batch_norm(x, **roles), "sum"))
    after = fold_batch_norm(g.build())
    assert ops(after) == (["conv1d", "reduce"] if alike else ["conv1d", "scale_shift", "reduce"])
    assert_same_outputs(g.build(), after, 1e-6)


@pytest.mark.parametrize("alike", [True, False])
def test_slopes_go_into_an_affine_of_steps_where_they_are_alike(alike: bool) -> None:
    g, _, x, vector = stepped(alike)
    g.output("click", g.reduce(g.activation(x, "prelu", slope=g.weight("slope", vector(0))), "sum"))
    after = fuse_activation(g.build())
    assert ops(after) == (["affine", "reduce"] if alike else ["affine", "activation", "reduce"])
    assert_same_outputs(g.build(), after, 1e-12)


def test_affines_of_steps_are_not_stacked() -> None:
    g, w = builder(Input("user", "request", "dense", 0, 4))
    for i in range(2):
        g.output(f"task{i}", g.reduce(g.affine("user", w=w(3, 2), steps=2), "sum"))
    after = stack_siblings(g.build())
    assert ops(after).count("affine") == 2
    assert_same_outputs(g.build(), after, 1e-12)


def test_steps_that_are_all_alike_stay_as_they_are() -> None:
    g, w = builder()
    x = g.repeat(g.concat(["user", "item"]), 2)
    g.output("click", g.reduce(g.affine(x, w=w(3, 5), steps=2, name="y"), "sum"))
    assert parts(split_by_domain(g.build())) == {"y": ("candidate", 10)}


def test_what_each_step_repeats_is_multiplied_once() -> None:
    """[q; k; q - k] of each of four steps, where q is the item's and the same for each."""
    g, w = builder(Input("keys", "request", "dense", 0, 8), Input("query", "item", "dense", 0, 2))
    q = g.repeat("query", 4)
    x = g.transpose(g.concat([q, "keys", g.sub(q, "keys")]), a=3, b=4, inner=2)
    g.output("click", g.reduce(g.activation(g.affine(x, w=w(5, 6), b=w(5), steps=4, name="y"), "tanh"), "sum"))
    after = remove_dead_code(split_by_domain(g.build()))
    assert_same_outputs(g.build(), after, 1e-6)
    made = {n.output: n for n in after.nodes}
    assert after.width("y@item") == 5
    assert after.width("y@request") == 4 * 5
    assert "w" not in made["y"].weights
