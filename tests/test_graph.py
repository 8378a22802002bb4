"""Graphs check themselves, infer widths and domains, and survive JSON."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from cases import MODELS, model_graph
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, GraphBuilder, Input, Node, Output, Packed
from random_graphs import random_graphs

USER = Input("user", "request", "dense", 0, 2)
ITEM = Input("item", "item", "dense", 0, 3)
IDS = Input("ids", "item", "ids", 0, 4, rows=5, padding=0)


def builder() -> GraphBuilder:
    g = GraphBuilder([USER, ITEM, IDS])
    g.weight("table", np.ones((5, 6)))
    g.weight("w", np.ones((4, 3)))
    g.weight("b", np.ones(4))
    g.weight("gru.x", np.ones((6, 1)))
    g.weight("gru.h", np.ones((6, 2)))
    g.weight("conv", np.ones((2, 1, 3)))
    return g


def test_widths_and_domains_follow_from_the_inputs() -> None:
    g = builder()
    embedded = g.embedding("ids", "table")
    pooled = g.embedding_bag("ids", "table")
    hidden = g.affine("item", w="w", b="b")
    mixed = g.concat(["user", hidden])
    head = g.reduce(mixed, "sum")
    g.output("click", head)
    graph = g.build()
    assert [graph.width(v) for v in (embedded, pooled, hidden, mixed, head)] == [24, 6, 4, 6, 1]
    assert [graph.domain(v) for v in ("user", embedded, hidden, mixed)] == ["request", "item", "item", "candidate"]
    assert graph.kind("ids") == "ids"
    assert graph.packed_width("item", "ids") == 4
    assert graph.packed_width("candidate", "dense") == 0
    assert graph.tasks == ("click",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.embedding("user", "table"), "'user' holds dense"),
        (lambda g: g.concat(["ids", "user"]), "'ids' holds ids"),
        (lambda g: g.embedding("ids", "b"), "must be a matrix"),
        (lambda g: g.embedding("ids", g.weight("small", np.ones((4, 2)))), "up to 4, but its table has 4 rows"),
        (lambda g: g.embedding("ids", "table", padding=5), "padding"),
        (lambda g: g.embedding_bag("ids", "table", mode="median"), "median"),
        (lambda g: g.affine("user", w="w"), "x has 2 columns"),
        (lambda g: g.affine("item", w="w", b="table"), r"'b' must have the shape \(4,\)"),
        (lambda g: g.affine("item", w="w", addends=["item"]), "addend 0 has 3 columns, but 4"),
        (lambda g: g.affine("item", w="w", groups=2), r"\[2, n, k\]"),
        (lambda g: g.affine("item"), "give both or neither"),
        (lambda g: g.affine(w="w"), "1 or more input"),
        (lambda g: g.affine("item", w="w", activation="swish"), "swish"),
        (lambda g: g.affine("item", w="w", activation="prelu"), "slope"),
        (lambda g: g.activation("item", "relu", slope="b"), "slope"),
        (lambda g: g.activation("item", "elu", alpha=float("nan")), "finite"),
        (lambda g: g.softmax("item", size=2), "multiple of size 2"),
        (lambda g: g.mixture("user", ["item", "item", "item"]), "2 columns, but there are 3 experts"),
        (lambda g: g.mixture("user", ["item", "user"]), "one width"),
        (lambda g: g.add("user", "item"), "2 and 3 columns"),
        (lambda g: g.dot("user", "item"), "2 and 3 columns"),
        (lambda g: g.scale_shift("item", scale="b", shift="b"), "'scale'"),
        (lambda g: g.batch_norm("item", mean="b", var="b"), "'mean'"),
        (lambda g: g.layer_norm("item", eps=0.0), "positive"),
        (lambda g: g.reduce("item", "sum", axis=2), "outer"),
        (lambda g: g.slice("item", 2, 2), "columns 2 to 4"),
        (lambda g: g.slice("item", -1, 2), "offset"),
        (lambda g: g.affine("item", w="w", steps=2), "takes 3 2 times"),
        (lambda g: g.affine("item", w="w", steps=0), "'steps' must be a whole number >= 1"),
        (lambda g: g.affine(g.repeat("item", 2), w="w", steps=2, addends=["item"]), "4 are expected, or 8 for all"),
        (lambda g: g.affine(addends=["item"], steps=2), "not a multiple of steps 2"),
        (lambda g: g.layer_norm("item", size=2), "multiple of size 2"),
        (lambda g: g.layer_norm("item", size=1, scale="b"), r"'scale' must have the shape \(1,\)"),
        (lambda g: g.l2_normalize("item", size=0), "'size'"),
        (lambda g: g.repeat("item", 0), "'times'"),
        (lambda g: g.repeat("item", 2, outer=2), "multiple of outer 2"),
        (lambda g: g.transpose("item", a=2, b=2), r"outer \* a \* b \* inner is 4"),
        (lambda g: g.matmul("user", "item", m=1, k=3, n=1), r"input 0 has 2 columns, but outer \* m \* k is 3"),
        (lambda g: g.matmul("item", "user", m=1, k=3, n=1), r"input 1 has 2 columns, but outer \* k \* n is 3"),
        (lambda g: g.matmul("item", "item", m=1, k=3, n=1, transpose_b=1), "'transpose_b' must be true or false"),
        (lambda g: g.present("item"), "'item' holds dense"),
        (lambda g: g.present("ids", padding=-1), "'padding' must be an id"),
        (lambda g: g.mask("ids", "ids"), "'ids' holds ids, but dense"),
        (lambda g: g.mask("item", "ids"), "multiple of the number of ids 4"),
        (lambda g: g.mask(g.repeat("user", 2), "ids", value=float("-inf")), "'value' must be a finite number"),
        (lambda g: g.gru("item", steps=3, w_x="gru.x", w_h="nothing"), "no weight 'nothing'"),
        (lambda g: g.gru("item", steps=2, w_x="gru.x", w_h="gru.h"), "multiple of steps 2"),
        (lambda g: g.gru("item", steps=1, w_x="gru.x", w_h="gru.h"), r"'w_x' must have the shape \(6, 3\)"),
        (lambda g: g.gru("item", steps=3, w_x="gru.x", w_h="gru.h", b_x="b"), r"'b_x' must have the shape \(6,\)"),
        (lambda g: g.gru("item", "ids", steps=3, w_x="gru.x", w_h="gru.h"), "input 1 has 4 columns, but steps is 3"),
        (lambda g: g.gru("item", steps=3, w_x="gru.x", w_h="gru.h", output="first"), "first"),
        (lambda g: g.conv1d("item", w="w", steps=3), r"\[outputs, 1, kernel\]"),
        (lambda g: g.conv1d("item", w="conv", steps=3, dilation=2), "reaches over 5 steps, but there are 3"),
        (lambda g: g.linear("user", w="w"), "x has 2 columns"),
        (lambda g: g.linear("user", w="nothing"), "no weight 'nothing'"),
        (lambda g: g.cross("item", "item", w="w", u="w", version=1), "belongs to version 2"),
        (lambda g: g.cross("item", "item", w="w", version=3), "version must be 1 or 2"),
        (lambda g: g.fm(["item", "user"], size=3), "'user' has 2 columns, which is not a multiple of 3"),
        (lambda g: g.dice("item", mean="b", var="b"), "'item' has 3 columns, which is not a multiple of 4"),
        (lambda g: g.dice(g.repeat("item", 4), mean="b", var="nothing"), "no weight 'nothing'"),
        (lambda g: g.dice(g.repeat("item", 4), mean="b", var="b", alpha="w"), r"shape \(1,\) or \(4,\)"),
        (lambda g: g.target_attention("item", "user", score=lambda x: x), "not a multiple of 2"),
        (lambda g: g.product(["item"]), "two or more values"),
        (lambda g: g.concat([]), "1 or more"),
        (lambda g: g.concat(["nothing"]), "'nothing'"),
        (lambda g: g.concat(["user"], name="item"), "there already"),
        (lambda g: g.affine("item", w="nothing"), "'nothing'"),
        (lambda g: g.weight("w", np.ones(2)), "there already"),
        (lambda g: g.weight("bad", [np.nan]), "not finite"),
        (lambda g: g.output("click", "item"), "one column"),
        (lambda g: g.output("vector", "item", role="request"), "item value"),
        (lambda g: g.output("ids", "ids", role="item"), "ids cannot"),
        (lambda g: g.output("x", "nothing"), "no value"),
        (lambda g: g.build(), "no output"),
        (lambda g: g.width("nothing"), "no value"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(call: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        call(builder())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([USER, USER], "twice"),
        ([Input("a", "request", "dense", 0, 2), Input("b", "request", "dense", 1, 2)], "overlap"),
        ([Input("a", "planet", "dense", 0, 2)], "planet"),  # type: ignore[arg-type]
        ([Input("a", "request", "text", 0, 2)], "text"),  # type: ignore[arg-type]
        ([Input("a", "request", "dense", -1, 2)], "offset"),
        ([Input("a", "request", "dense", 0, 0)], "width"),
        ([Input("a", "request", "dense", 0, 1, rows=3)], "belong to ids"),
        ([Input("a", "request", "ids", 0, 1, rows=0)], "rows"),
        ([Input("a", "request", "ids", 0, 1, rows=3, padding=3)], "padding"),
        ([Input("", "request", "ids", 0, 1)], "no name"),
    ],
)
def test_wrong_inputs_are_refused(given: list[Input], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        GraphBuilder(given)


@pytest.mark.parametrize(
    ("nodes", "outputs", "weights", "message"),
    [
        ([Node("convolve", ("user",), "y")], [Output("a", "y")], {}, "no such operator"),
        ([Node("concat", ("z",), "y"), Node("concat", ("user",), "z")], [], {}, "earlier node"),
        ([Node("concat", ("user",), "y", {}, {"axis": 1})], [], {}, "unknown attribute 'axis'"),
        ([Node("concat", ("user",), "y", {"w": "w"})], [], {"w": np.ones(1, np.float32)}, "unknown weight 'w'"),
        (
            [Node("scale_shift", ("user",), "y", {"scale": "w"})],
            [],
            {"w": np.ones(2, np.float32)},
            "'shift' is missing",
        ),
        ([], [Output("a", "user", "boss")], {}, "boss"),
        ([], [Output("a", "user", "request"), Output("a", "user", "request")], {}, "name of its own"),
        ([], [], {"w": np.ones(2)}, "float32 array, found float64"),
        ([], [], {"w": [1.0]}, "found list"),
    ],
)
def test_a_graph_checks_itself(nodes: Any, outputs: Any, weights: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        Graph((USER, ITEM), tuple(nodes), tuple(outputs), weights)


@settings(max_examples=50, deadline=None)
@given(graph=random_graphs())
def test_json_holds_the_whole_graph(graph: Graph) -> None:
    again = Graph.from_json(graph.to_json(), {**graph.weights, "other": np.ones(1, np.float32)})
    assert again.to_json() == graph.to_json()
    assert again.inputs == graph.inputs
    assert again.nodes == graph.nodes
    assert "other" not in again.weights


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"graph_version": 2, "inputs": [], "nodes": [], "outputs": []}', b"[1]"]
)
def test_json_that_is_no_graph_is_refused(text: bytes) -> None:
    with pytest.raises(ConversionError, match="graph"):
        Graph.from_json(text, {})


@pytest.mark.parametrize("kind", MODELS)
def test_json_names_a_missing_weight(kind: Any) -> None:
    graph = model_graph(kind)
    weights = dict(graph.weights)
    del weights["w3"]
    with pytest.raises(ConversionError, match="w3"):
        Graph.from_json(graph.to_json(), weights)


def test_weights_cannot_be_exchanged() -> None:
    graph = model_graph("esmm")
    with pytest.raises(TypeError):
        graph.weights["w1"] = np.ones(1, np.float32)  # type: ignore[index]


def test_packed_rows_can_be_taken() -> None:
    packed = Packed(np.arange(6, dtype=np.int32).reshape(3, 2), np.arange(3, dtype=np.float32)[:, None])
    taken = packed.take([2, 0, 2])
    assert packed.n_rows == 3
    assert taken.ids.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert taken.dense.tolist() == [[2], [0], [2]]
