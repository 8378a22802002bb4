"""Which item values are stored, and in what precision."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ISAS
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import MODELS, fill, model_graph
from fastmtr import _native
from fastmtr.bundle import Catalogue, open_bundle, write_bundle
from fastmtr.compiler import compile_graph
from fastmtr.compiler.storage import AUTO_MEMORY, choose_storage, row_bytes
from fastmtr.encodings import stored_rows
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import Graph, GraphBuilder, Input, Packed
from fastmtr.reference import evaluate_plan
from fastmtr.schema import Feature, Schema, Task
from random_graphs import random_graphs


def wide_item_part(width: int) -> Graph:
    """An item product of that width, added to the user's."""
    g = GraphBuilder([Input("user", "request", "dense", 0, width), Input("item", "item", "dense", 0, 32)])
    part = g.affine("item", w=g.weight("w", np.ones((width, 32))), name="part")
    g.output("click", g.reduce(g.affine(addends=["user", part], activation="relu"), "sum"))
    return g.build()


@pytest.mark.parametrize(("n_items", "stored"), [(0, True), (200_000, True), (250_000, True), (300_000, False)])
def test_auto_memory_holds_the_partials_of_a_large_catalogue(n_items: int, stored: bool) -> None:
    storage = choose_storage(wide_item_part(8 * 256 + 24), n_items=n_items)
    assert storage.stored == (frozenset({"part"}) if stored else frozenset())
    assert stored == (n_items * row_bytes(8 * 256 + 24) <= AUTO_MEMORY)


def test_a_value_is_stored_only_where_reading_it_is_quicker_than_computing_it() -> None:
    g = GraphBuilder([Input("user", "request", "dense", 0, 32), Input("item", "item", "dense", 0, 1)])
    part = g.affine("item", w=g.weight("w", np.ones((32, 1))))
    g.output("click", g.reduce(g.affine(addends=["user", part], activation="relu"), "sum"))
    storage = choose_storage(g.build(), n_items=1000)
    assert not storage.stored
    assert "longer than computing" in storage.refused[part]


def test_what_is_repeated_is_stored_instead_of_the_repetition() -> None:
    g = GraphBuilder([Input("user", "request", "dense", 0, 32), Input("item", "item", "ids", 0, 1, rows=100)])
    embedded = g.embedding("item", g.weight("t", np.ones((100, 8))))
    hidden = g.affine(embedded, w=g.weight("w", np.ones((8, 8))), activation="tanh")
    repeated = g.repeat(hidden, 4)
    g.output("click", g.dot(repeated, "user"))
    storage = choose_storage(g.build(), n_items=1000)
    assert storage.stored == {hidden}
    assert "what it repeats" in storage.refused[repeated]


@pytest.mark.parametrize("also_read", [False, True])
def test_what_a_candidate_would_read_instead_counts(also_read: bool) -> None:
    """A sum of columns is cheap, but its inputs are more bytes than it is; unless the candidate reads them anyway."""
    g = GraphBuilder([Input("user", "request", "dense", 0, 8), Input("item", "item", "dense", 0, 24)])
    pooled = g.reduce("item", "sum", axis=3, inner=8)
    g.output("click", g.reduce(g.mul("user", pooled), "sum"))
    if also_read:
        g.output("like", g.reduce(g.mul(g.slice("item", 0, 8), "user"), "sum"))
    assert choose_storage(g.build(), n_items=10**7).stored == (frozenset() if also_read else frozenset({pooled}))


# ---- precision -------------------------------------------------------------------------------------------------------

LOWER = ("fp16", "int8")


def schema_of(graph: Graph) -> Schema:
    features = (Feature(name="any", entity="user", kind="numeric"),)
    return Schema(user="user", item="item", features=features, tasks=tuple(Task(name=t) for t in graph.tasks))


def item_dtypes(plan: dict[str, Any]) -> dict[str, str]:
    """Of the stored item buffers that hold no input."""
    inputs = {i["buffer"] for i in plan["inputs"]}
    buffers = enumerate(plan["buffers"])
    return {b["name"]: b["dtype"] for i, b in buffers if b["domain"] == "item" and b["stored"] and i not in inputs}


def bundle_of(folder: str | Path, graph: Graph, item: Packed, **options: Any) -> Path:
    catalogue = Catalogue(np.arange(item.n_rows, dtype=np.int64), item)
    return write_bundle(Path(folder) / "bundle", schema=schema_of(graph), graph=graph, catalogue=catalogue, **options)


def test_fewer_bytes_store_more() -> None:
    graph = wide_item_part(2072)
    assert [row_bytes(2072, p) for p in ("fp32", "fp16", "int8")] == [8288, 4144, 2076]
    for precision, n_items in (("fp16", 500_000), ("int8", 1_000_000)):
        assert not choose_storage(graph, n_items=n_items).stored
        assert choose_storage(graph, n_items=n_items, item_precision=precision).stored == {"part"}


def test_item_outputs_and_rows_that_would_not_shrink_stay_fp32() -> None:
    plan = compile_graph(model_graph("two_tower"), n_items=1000, item_precision="int8").plan
    outputs = {plan["buffers"][o["operand"][0]]["name"] for o in plan["outputs"] if o["role"] == "item"}
    assert outputs
    assert {item_dtypes(plan)[name] for name in outputs} == {"f32"}
    assert [row_bytes(1, p) for p in ("fp32", "fp16", "int8")] == [4, 2, 4]
    with pytest.raises(ConversionError, match="item_precision must be one of fp32, fp16, int8, found 'fp8'"):
        compile_graph(model_graph("mmoe"), item_precision="fp8")  # type: ignore[arg-type]


def test_error_bounds() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(50, 33)) * 2.0 ** rng.integers(-20, 15, size=(50, 33))
    sizes = abs(rows)
    assert (abs(stored_rows(rows, "f16") - rows) <= np.maximum(2.0**-11 * sizes, 2.0**-25)).all()
    assert (abs(stored_rows(rows, "i8") - rows) <= sizes.max(axis=1, keepdims=True) / 254 * (1 + 1e-9)).all()


@settings(max_examples=40, deadline=None)
@given(graph=random_graphs(), precision=st.sampled_from(LOWER), tile=st.sampled_from([0, 3]))
def test_the_engine_reads_what_the_plan_says(graph: Graph, precision: Any, tile: int) -> None:
    assert_native_is_plan(graph, precision, tile=tile)


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: Any, precision: Any) -> None:
    assert_native_is_plan(model_graph(kind), precision)


def assert_native_is_plan(graph: Graph, precision: Any, *, tile: int = 0) -> None:
    packed = fill(graph, n_items=11, n_candidates=7)
    rows = np.random.default_rng(0).integers(0, 11, 7)
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(bundle_of(folder, graph, packed["item"], fusion={"kind": "sum"}, item_precision=precision))
        session = _native.Session(_native.Model(str(bundle.path)), tile=tile)
        found, _ = session.score(
            packed["request"].ids,
            packed["request"].dense,
            np.array([0, 7], np.int64),
            rows.astype(np.int64),
            candidate_ids=packed["candidate"].ids,
            candidate_dense=packed["candidate"].dense,
        )
        expected = evaluate_plan(bundle.plan, bundle.weights, packed, rows=rows)
    columns = np.concatenate([expected[t] for t in graph.tasks], axis=1)
    # A value that lies between two stored ones may round to the other in float32.
    tolerance = 1e-4 if not set(item_dtypes(bundle.plan).values()) - {"f32"} else 2e-2
    np.testing.assert_allclose(found, columns, rtol=0, atol=tolerance * (1 + abs(columns).max()))


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_are_those_of_the_candidate_alone(isa: str, precision: Any, tmp_path: Path) -> None:
    graph = model_graph("mmoe")
    packed = fill(graph, n_items=50, n_candidates=50)
    path = bundle_of(tmp_path, graph, packed["item"], item_precision=precision)
    model = _native.Model(str(path), isa=isa)
    rows = np.random.default_rng(0).permutation(50)

    def score(n: int, *, tile: int = 0, threads: int = 1) -> Any:
        session = _native.Session(model, tile=tile, threads=threads)
        return session.score(
            packed["request"].ids,
            packed["request"].dense,
            np.array([0, n], np.int64),
            rows[:n].astype(np.int64),
            candidate_ids=packed["candidate"].ids[:n],
            candidate_dense=packed["candidate"].dense[:n],
        )[0]

    whole = score(50)
    for n, options in ((1, {}), (7, {"tile": 3}), (50, {"tile": 1}), (50, {"tile": 8, "threads": 2})):
        np.testing.assert_array_equal(score(n, **options), whole[:n])


def linear(weight: float) -> tuple[Graph, Packed]:
    """One item number times a weight, stored in a row of 64; the user's row is zero."""
    g = GraphBuilder([Input("user", "request", "dense", 0, 64), Input("item", "item", "dense", 0, 32)])
    w = np.zeros((64, 32))
    w[:, 0] = weight
    part = g.affine("item", w=g.weight("w", w), name="part")
    g.output("click", g.reduce(g.affine(addends=["user", part], activation="relu"), "mean"))
    item = Packed(np.zeros((5, 0), np.int32), np.zeros((5, 32), np.float32))
    item.dense[:, 0] = [0, 1, -1, 0.5, 3]
    return g.build(), item


def test_a_value_beyond_fp16_is_refused(tmp_path: Path) -> None:
    graph, item = linear(30_000)
    message = "item 4: 'part' has the value 90000, but fp16 holds numbers up to 65504; compile the bundle with another"
    with pytest.raises(SchemaError, match=message):
        bundle_of(tmp_path, graph, item, item_precision="fp16")
    assert not (tmp_path / "bundle").exists()
    model = _native.Model(str(bundle_of(tmp_path, graph, item.take(np.arange(4)), item_precision="fp16")))
    user = np.zeros((1, 0), np.int32), np.zeros((1, 64), np.float32)
    for change in (model.set_catalogue, model.upsert):
        with pytest.raises(SchemaError, match="item 4"):
            change(np.arange(5, dtype=np.int64), item.ids, item.dense)
        scores, _ = _native.Session(model).score(*user, None, None)
        assert scores[:, 0].tolist() == [0, 30_000, 0, 15_000]
    model.upsert(np.array([9, 1]), item.ids[:2], np.full((2, 32), 2, np.float32))
    assert _native.Session(model).score(*user, None, None)[0][:, 0].tolist() == [0, 60_000, 0, 15_000, 60_000]


def test_memory_and_description(tmp_path: Path) -> None:
    graph, item = linear(1.0)
    sizes = {}
    for precision, row in (("fp32", 256), ("fp16", 128), ("int8", 68)):
        bundle = open_bundle(bundle_of(tmp_path / precision, graph, item, item_precision=precision))
        described = _native.Model(str(bundle.path)).describe()
        dtype = {"fp32": "f32", "fp16": "f16", "int8": "i8"}[precision]
        assert f'"item_tables": [{{"name": "part", "dtype": "{dtype}", "width": 64, "row_bytes": {row}}}]' in described
        explained = bundle.explain()
        sizes[precision] = explained.stored_bytes
        assert f"{explained.stored_bytes} bytes of values" in str(explained)
        assert (f"in {dtype}" in str(explained)) == (precision != "fp32")
    assert sizes == {"fp32": 256, "fp16": 128, "int8": 68}
