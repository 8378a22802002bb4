"""Tables of embeddings in fewer bits: error bounds, the smallest form, bundles that keep them, the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ISAS
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import fill, model_graph, task_scores
from fastmtr import _native
from fastmtr.bundle import Bundle, Catalogue, open_bundle, write_bundle
from fastmtr.compiler.encode_tables import encode_tables
from fastmtr.encodings import EMBEDDING_PRECISIONS, encode_table
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, GraphBuilder, Input
from fastmtr.reference import evaluate, evaluate_plan
from fastmtr.schema import Feature, Schema, Task

LOWER: Any = EMBEDDING_PRECISIONS[1:]


def random_table(rows: int, columns: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    sizes = 2.0 ** rng.integers(-18, 12, size=(rows, 1))
    table = (rng.normal(size=(rows, columns)) * sizes + rng.normal(size=(rows, 1)) * sizes).astype(np.float32)
    table[0] = 0  # of the padding id
    return table


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 99), precision=st.sampled_from(LOWER))
def test_bounds(rows: int, columns: int, seed: int, precision: Any) -> None:
    table = random_table(rows, columns, seed)
    made = encode_table(table, precision)
    assert made is not None
    assert made.nbytes < table.nbytes
    decoded = made.decode()
    assert decoded.dtype == np.float32
    assert not decoded[0].any()
    error = abs(decoded.astype(np.float64) - table)
    if made.precision == "fp16":
        assert (error <= np.maximum(2.0**-11 * abs(table), 2.0**-25)).all()
    else:
        assert made.scale is not None
        levels = {"int8": 255, "int4": 15}[made.precision]
        span = table.max(axis=1).astype(np.float64) - table.min(axis=1)
        np.testing.assert_allclose(made.scale, span / levels, rtol=1e-7)
        rounding = 2.0**-23 * abs(table).max(axis=1)
        assert (error <= (span / levels / 2 * (1 + 1e-6) + rounding)[:, None]).all()


@pytest.mark.parametrize(
    ("columns", "precision", "form", "bytes_a_row"),
    [
        (16, "fp16", "fp16", 32),
        (1, "int8", "fp16", 2),  # a scale and a shift take more
        (8, "int8", "fp16", 16),
        (9, "int8", "int8", 17),
        (16, "int4", "int4", 16),
        (15, "int4", "int8", 23),  # two columns a byte
        (4, "int4", "fp16", 8),
    ],
)
def test_the_smallest_form_is_taken(columns: int, precision: Any, form: str, bytes_a_row: int) -> None:
    made = encode_table(random_table(3, columns), precision)
    assert made is not None
    assert (made.precision, made.nbytes) == (form, 3 * bytes_a_row)


def test_a_number_beyond_fp16_keeps_its_table_out_of_it() -> None:
    table = np.full((3, 4), 65519.0, np.float32)
    made = encode_table(table, "fp16")
    assert made is not None
    assert made.decode().max() == 65504
    table[1, 2] = -65520
    assert encode_table(table, "fp16") is None
    assert encode_table(table, "int8") is not None


def test_int4_packs_the_first_of_two_columns_low() -> None:
    made = encode_table(np.arange(32, dtype=np.float32).reshape(2, 16), "int4")
    assert made is not None
    assert made.table[0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert (made.scale.tolist(), made.shift.tolist()) == ([1, 1], [0, 16])  # type: ignore[union-attr]


def lookups(width: int = 18) -> Graph:
    """A bag of the user's history and the item's embedding, an inner product, a tower; a tied table stays fp32."""
    g = GraphBuilder(
        [
            Input("history", "request", "ids", 0, 5, rows=40, padding=0),
            Input("item", "item", "ids", 0, 1, rows=40),
            Input("place", "candidate", "ids", 0, 1, rows=7),
        ]
    )
    table = g.weight("items", random_table(40, width) / 1000)
    history = g.embedding_bag("history", table, mode="mean", padding=0)
    item = g.embedding("item", table)
    place = g.embedding("place", g.weight("places", random_table(7, 3) / 1000))
    tied = g.weight("tied", np.random.default_rng(1).normal(size=(40, width)))
    both = g.mul(g.affine(g.embedding("item", tied), w=tied), g.affine(history, w=tied))
    g.output("click", g.activation(g.dot(history, item), "sigmoid"))
    g.output("like", g.reduce(g.concat([g.mul(history, item), place, both]), "mean"))
    return g.build()


def bundle_of(path: Path, graph: Graph, item: Any, **options: Any) -> Bundle:
    features = (Feature(name="any", entity="user", kind="numeric"),)
    schema = Schema(user="user", item="item", features=features, tasks=tuple(Task(name=t) for t in graph.tasks))
    catalogue = Catalogue(np.arange(item.n_rows, dtype=np.int64), item)
    return open_bundle(write_bundle(path, schema=schema, graph=graph, catalogue=catalogue, **options))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", LOWER)
def test_the_engine_gives_what_the_decoded_tables_say(precision: Any, isa: str, tmp_path: Path) -> None:
    for i, graph in enumerate((lookups(), lookups(17), model_graph("mmoe"))):
        packed = fill(graph, n_items=30, n_candidates=25)
        bundle = bundle_of(tmp_path / str(i), graph, packed["item"], embedding_precision=precision, fold_memory=0)
        rows = np.random.default_rng(0).integers(0, 30, 25)
        session = _native.Session(_native.Model(str(bundle.path), isa=isa))
        found, _ = session.score(
            packed["request"].ids,
            packed["request"].dense,
            np.array([0, 25], np.int64),
            rows,
            candidate_ids=packed["candidate"].ids,
            candidate_dense=packed["candidate"].dense,
        )
        decoded = bundle.graph
        expected = task_scores(evaluate(decoded, {**packed, "item": packed["item"].take(rows)}), decoded)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * (1 + abs(expected).max()))
        executed = evaluate_plan(bundle.plan, bundle.weights, packed, rows=rows)
        np.testing.assert_allclose(np.concatenate([executed[t] for t in graph.tasks], axis=1), expected, atol=1e-9)


def test_bundle_keeps_the_encoded_form_alone(tmp_path: Path) -> None:
    graph = lookups()
    item = fill(graph, n_items=9)["item"]
    sizes = {}
    for precision in EMBEDDING_PRECISIONS:
        bundle = bundle_of(tmp_path / precision, graph, item, embedding_precision=precision)
        sizes[precision] = bundle.weights["items"].nbytes
        assert bundle.weights["tied"].dtype == np.float32
        decoded, encoded = encode_tables(graph, precision)
        assert "tied" not in encoded
        for name, array in bundle.graph.weights.items():
            np.testing.assert_array_equal(array, decoded.weights[name])
        again = bundle_of(tmp_path / f"{precision}-again", bundle.graph, item, embedding_precision=precision)
        np.testing.assert_allclose(again.graph.weights["items"], decoded.weights["items"], rtol=1e-5, atol=1e-6)
    assert sizes == {"fp32": 40 * 72, "fp16": 40 * 36, "int8": 40 * 18, "int4": 40 * 9}
    assert set(bundle.weights) >= {"items:scale", "items:shift"}


def test_explain_counts_the_bytes_of_rows(tmp_path: Path) -> None:
    graph = lookups()
    item = fill(graph, n_items=9)["item"]
    for precision, row in (("fp32", 72), ("fp16", 36), ("int8", 26), ("int4", 17)):
        bundle = bundle_of(tmp_path / precision, graph, item, embedding_precision=precision)
        bag = next(s for s in bundle.explain().steps if s.op == "embedding_bag")
        assert (bag.table_bytes, bag.weight_bytes) == (5 * row, 0)
        assert '"op": "embedding_bag", "domain": "request", "width": 18' in (text := _explained(bundle))
        assert f'"table_bytes": {5 * row}' in text


def _explained(bundle: Bundle) -> str:
    return _native.Model(str(bundle.path)).explain()


def test_refusals() -> None:
    graph = lookups()
    with pytest.raises(
        ConversionError, match="embedding_precision must be one of fp32, fp16, int8, int4, found 'int2'"
    ):
        encode_tables(graph, "int2")  # type: ignore[arg-type]
    weights = {name: array.copy() for name, array in graph.weights.items()}
    weights["items"][3, 1] = np.nan
    with pytest.raises(ConversionError, match="weight 'items' has values that are not finite"):
        encode_tables(Graph(graph.inputs, graph.nodes, graph.outputs, weights), "int8")
