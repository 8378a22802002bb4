"""Models loaded with fp16 weights or 8-bit products: near fp32, the same bits for any tile; certified lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ISAS, PlanMaker

import fastmtr
from fastmtr import Ranker
from fastmtr._native import Model, Session
from fastmtr.bundle import Catalogue, open_bundle, write_bundle
from fastmtr.engine import Engine
from fastmtr.errors import BundleError, ConfigError
from fastmtr.graph import GraphBuilder, Input, Packed
from fastmtr.precision import ErrorWidth
from fastmtr.schema import Feature, Schema, Task

ANY = Feature(name="any", entity="user", kind="numeric")
BUNDLE = Path(fastmtr.__file__).parent / "datasets" / "kuairand_bundle"


@pytest.fixture(scope="module")
def users() -> Packed:
    """The packed requests of the bundle's users."""
    ranker = Ranker.load(BUNDLE)
    return ranker._packer.pack(list(ranker.users[:12]), None).packed


def scores(users: Packed, *, precision: str = "int8", isa: str | None = None, threads: int = 1, tile: int = 0) -> bytes:
    session = Session(Model(BUNDLE, precision=precision, isa=isa), threads=threads, tile=tile)
    values, _ = session.score(users.ids, users.dense, None, None)
    return values.tobytes()


def as_array(values: bytes) -> np.ndarray:
    return np.frombuffer(values, np.float32)


def test_what_is_in_8_bits() -> None:
    def steps(precision: str) -> list[str]:
        described = json.loads(Model(BUNDLE, precision=precision).describe())
        assert described["precision"] == precision
        return list(described["int8_steps"])

    assert steps("int8") == ["experts.1"]  # gates, towers of 16 columns and the last layers gain nothing
    assert steps("fp32") == []
    with pytest.raises(ValueError, match="precision must be 'fp32', 'fp16', 'int8', 'tf32' or 'bf16', found 'int4'"):
        Model(BUNDLE, precision="int4")


@pytest.mark.parametrize("isa", ISAS)
def test_near_fp32_and_nearly_the_same_everywhere(users: Packed, isa: str) -> None:
    users = users.take(np.arange(3))
    exact = as_array(scores(users, precision="fp32"))
    coarse = as_array(scores(users, isa=isa))
    assert 0 < np.abs(coarse - exact).max() < 0.02
    # The 8-bit products have the same bits everywhere; the fp32 ones before and after round apart.
    np.testing.assert_allclose(coarse, as_array(scores(users, isa="baseline")), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_near_fp32_where_x_is_a_sum(steps: int, tmp_path: Path) -> None:
    """A sum may be made on the way to its product; one over steps is not."""
    rng = np.random.default_rng(0)
    n, width = 50, 64
    m = PlanMaker()
    user, item = m.input("user", "request", "dense", steps * width), m.input("item", "item", "dense", width)
    x = m.step("x", "affine", "candidate", [user, item], steps * width, has_x=False, activation="relu", steps=steps)
    w, out = rng.normal(size=(32, steps * width)) / 8, rng.normal(size=(1, 32)) / 6
    hidden = m.step("hidden", "affine", "candidate", [x], 32, weights={"w": w})
    m.output("score", m.step("score", "affine", "candidate", [hidden], 1, weights={"w": out}))
    users, items = (rng.normal(size=shape).astype(np.float32) for shape in ((1, steps * width), (n, width)))
    path = m.write(tmp_path / "m", {"keys": np.arange(n), "ids": np.zeros((n, 0), np.int32), "dense": items})
    exact, coarse = (Model(str(path), precision=p) for p in ("fp32", "int8"))
    assert json.loads(coarse.describe())["int8_steps"] == ["hidden"]
    expected, found = (Session(model).score(None, users, None, None)[0] for model in (exact, coarse))
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
def test_half_precision_weights(users: Packed, isa: str) -> None:
    users = users.take(np.arange(3))
    exact = as_array(scores(users, precision="fp32"))
    half = as_array(scores(users, precision="fp16", isa=isa))
    assert 0 < np.abs(half - exact).max() < 2e-3  # each weight is within 2**-11 of itself
    np.testing.assert_allclose(half, as_array(scores(users, precision="fp16", isa="baseline")), rtol=1e-5, atol=2e-6)


def test_half_precision_keeps_no_fp32(users: Packed) -> None:
    def packed_bytes(precision: str) -> int:
        return int(json.loads(Model(BUNDLE, precision=precision).describe())["memory"]["weights_packed"])

    assert packed_bytes("fp16") <= 0.55 * packed_bytes("fp32")
    session = Session(Model(BUNDLE, precision="fp16"))
    with pytest.raises(ValueError, match=r"fp16 keeps no fp32 weights .* load it with fp32 or int8"):
        session.precision_errors(users.ids, users.dense, None, None)


def test_half_precision_is_half_to_read() -> None:
    """But for addends, slopes and the like, which stay as they are."""
    full, half = (json.loads(Model(BUNDLE, precision=p).explain())["steps"] for p in ("fp32", "fp16"))
    bundle = open_bundle(BUNDLE)
    products = [bundle.weights[s["weights"]["w"]].size if "w" in s["weights"] else 0 for s in bundle.plan["steps"]]
    assert sum(n > 0 for n in products) == 10
    for of_full, of_half, n in zip(full, half, products, strict=True):
        assert of_half["precision"] == ("fp16" if n else "fp32")
        assert of_full["weight_bytes"] - of_half["weight_bytes"] == 2 * n


def test_weights_that_are_halves_lose_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    steps, width, hidden = 5, 6, 8
    g = GraphBuilder([Input("u", "request", "dense", 0, steps * width), Input("i", "item", "dense", 0, 3)])

    def weight(name: str, *shape: int) -> str:
        return g.weight(name, rng.normal(size=shape).astype(np.float16).astype(np.float32) / 2)

    x = g.conv1d("u", w=weight("conv", width, width, 3), steps=steps, padding=1)
    x = g.affine(x, w=weight("each", width, width), steps=steps, activation="tanh")
    state = g.gru(x, w_x=weight("x", 3 * hidden, width), w_h=weight("h", 3 * hidden, hidden), steps=steps)
    g.output("click", g.affine(g.concat([state, "i"]), w=weight("last", 1, hidden + 3), activation="sigmoid"))
    schema = Schema(user="user", item="item", features=(ANY,), tasks=(Task(name="click"),))
    packed = [
        Packed(np.zeros((n, 0), np.int32), rng.normal(size=(n, w)).astype(np.float32)) for n, w in ((3, 30), (9, 3))
    ]
    path = write_bundle(tmp_path / "b", schema=schema, graph=g.build(), catalogue=Catalogue(np.arange(9), packed[1]))
    full, half = (Session(Model(path, precision=p)).score(*packed[0], None, None)[0] for p in ("fp32", "fp16"))
    assert len(np.unique(full)) > 20
    np.testing.assert_allclose(half, full, rtol=1e-6)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    g = GraphBuilder([Input("u", "request", "dense", 0, 2)])
    g.output("click", g.affine("u", w=g.weight("big", np.array([[7e4, 1.0]], np.float32))))
    schema = Schema(user="user", item="item", features=(ANY,), tasks=(Task(name="click"),))
    write_bundle(tmp_path / "b", schema=schema, graph=g.build(), catalogue=None)
    Model(tmp_path / "b")
    with pytest.raises(BundleError, match="weight of 70000, which half precision cannot hold"):
        Model(tmp_path / "b", precision="fp16")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bits_do_not_depend_on_tile_or_threads(users: Packed, precision: str) -> None:
    whole = scores(users, precision=precision)
    assert scores(users, precision=precision, tile=7) == whole
    assert scores(users, precision=precision, tile=100, threads=3) == whole
    first = users.take(np.array([0]))
    assert scores(first, precision=precision, threads=2) == whole[: len(whole) // len(users.ids)]


def test_ranker_and_its_precision() -> None:
    ranker = Ranker.load(BUNDLE, precision="int8")
    assert ranker.precision == "int8"
    assert Ranker.load(BUNDLE).precision == "fp32"
    assert len(ranker.rank(ranker.users[0], None, k=5)) == 5
    with pytest.raises(ConfigError, match="precision must be one of fp32, fp16, int8, tf32, bf16, found 'half'"):
        Ranker.load(BUNDLE, precision="half")  # type: ignore[arg-type]


# ---- certified lists -------------------------------------------------------------------------------------------------


def same_lists(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    """Positions, fused scores, tasks' scores and counts, all bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a[:4], b[:4], strict=True))


def test_the_certified_list_is_that_of_fp32(users: Packed) -> None:
    exact, coarse = (Session(Model(BUNDLE, precision=p)) for p in ("fp32", "int8"))
    every = {"request_ids": users.ids, "request_dense": users.dense, "offsets": None, "items": None}
    errors = coarse.precision_errors(**every)
    assert errors.shape == (len(users.ids) * Model(BUNDLE).n_items,)
    assert not exact.precision_errors(**every).any()
    width = 2 * float(errors[: len(errors) // 4].max())
    assert 0 < width < 0.5
    for k in (1, 10, 100):
        right = exact.rank(**every, k=k)
        assert not same_lists(coarse.rank(**every, k=k), right)
        found = coarse.rank_certified(**every, k=k, width=width)
        assert same_lists(found, right)
        assert (k <= found[4]).all()
        assert found[4].mean() < k + 150
    # On threads, in small tiles, and everything: the same again.
    for options in ({"threads": 2, "tile": 64}, {"tile": 5}):
        assert same_lists(
            Session(Model(BUNDLE, precision="int8"), **options).rank_certified(**every, k=100, width=width), right
        )
    unlimited = coarse.rank_certified(**every, k=100, width=1e30)
    assert same_lists(unlimited, right)
    assert (unlimited[4] == Model(BUNDLE).n_items).all()
    at_fp32 = exact.rank_certified(**every, k=100, width=width)
    assert same_lists(at_fp32, right)
    assert not at_fp32[4].any()


def test_a_width_far_too_small_is_found_out(users: Packed) -> None:
    exact, coarse = (Session(Model(BUNDLE, precision=p)) for p in ("fp32", "int8"))
    every = {"request_ids": users.ids, "request_dense": users.dense, "offsets": None, "items": None}
    right = exact.rank(**every, k=20)
    found = coarse.rank_certified(**every, k=20, width=0, safety=2)
    assert same_lists(found, right)
    assert found[4].sum() > 20 * len(users.ids), "the errors that were seen made it look further"
    more = coarse.rank_certified(**every, k=20, width=0, safety=50)
    assert (more[4] >= found[4]).all()
    assert more[4].sum() > 1.5 * found[4].sum()
    for wrong in ({"width": -1.0}, {"width": float("nan")}, {"width": 0.1, "safety": 0.5}):
        with pytest.raises(ValueError, match=r"(width is .*, expected a number)|(safety is 0.5, expected at least 1)"):
            coarse.rank_certified(**every, k=3, **wrong)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads inputs of request, item and candidate, its two tasks fused by a sum."""
    rng = np.random.default_rng(5)
    inputs = [
        Input("request_x", "request", "dense", 0, 6),
        Input("item_id", "item", "ids", 0, 1, rows=300),
        Input("item_x", "item", "dense", 0, 9),
        Input("place", "candidate", "ids", 0, 1, rows=20),
        Input("candidate_x", "candidate", "dense", 0, 4),
    ]
    g = GraphBuilder(inputs)

    names = (f"w{i}" for i in range(9))

    def linear(x: str, n: int, activation: str) -> str:
        k = g.width(x)
        w = g.weight(next(names), rng.normal(size=(n, k)).astype(np.float32) * np.float32(1.5 / np.sqrt(k)))
        return g.affine(x, w=w, activation=activation)

    tables = [g.embedding(i, g.weight(f"{i}.table", rng.normal(size=(300, 8)))) for i in ("item_id", "place")]
    hidden = linear(g.concat(["request_x", "item_x", "candidate_x", *tables]), 96, "relu")
    hidden = linear(hidden, 64, "tanh")  # so that what the towers read is of both signs
    for task in ("click", "buy"):
        g.output(task, linear(linear(hidden, 40, "relu"), 1, "sigmoid"))
    graph = g.build()
    ids = np.arange(300, dtype=np.int32)[:, None]
    catalogue = Catalogue(np.arange(300) * 3, Packed(ids, rng.normal(size=(300, 9)).astype(np.float32)))
    schema = Schema(user="user", item="item", features=(ANY,), tasks=tuple(Task(name=t) for t in graph.tasks))
    fusion = {"kind": "sum", "weights": [1.0, 2.0]}
    path = tmp_path_factory.mktemp("wide") / "bundle"
    return write_bundle(path, schema=schema, graph=graph, catalogue=catalogue, fusion=fusion)


def test_random_requests_with_candidate_inputs(wide_model: Path) -> None:
    rng = np.random.default_rng(6)
    exact, coarse, threads = (
        Session(Model(wide_model, precision=p), threads=n) for p, n in (("fp32", 1), ("int8", 1), ("int8", 3))
    )
    assert len(json.loads(Model(wide_model, precision="int8").describe())["int8_steps"]) == 2
    wrong = rescored = candidates = 0
    width = 0.0
    for turn in range(60):
        counts = rng.integers(0, 400, 5)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        total = int(offsets[-1])
        items = rng.integers(-2, 305, total) * 3  # some are unknown
        arguments = {
            "request_ids": None,
            "request_dense": rng.normal(size=(5, 6)).astype(np.float32),
            "offsets": offsets,
            "items": items,
            "candidate_ids": rng.integers(0, 20, (total, 1)).astype(np.int32),
            "candidate_dense": rng.normal(size=(total, 4)).astype(np.float32),
            "skip_unknown": True,
        }
        if turn < 10:
            width = max(width, 2 * float(np.nan_to_num(coarse.precision_errors(**arguments)).max()))
        k = int(rng.integers(1, 30))
        right = exact.rank(**arguments, k=k)
        wrong += not same_lists(coarse.rank(**arguments, k=k), right)
        for session in (coarse, threads):
            found = session.rank_certified(**arguments, k=k, width=width)
            assert same_lists(found, right)
        rescored += int(found[4].sum())
        candidates += total
    assert wrong > 20
    assert rescored < 0.2 * candidates


def test_ranker_certified() -> None:
    exact, coarse = (Ranker.load(BUNDLE, precision=p) for p in ("fp32", "int8"))
    some = exact.users[:8]
    weights = {"click": 0.3, "like": 2.0}
    for options in ({}, {"fusion_weights": weights}):
        for right, found in zip(
            exact.rank(some, None, k=8, **options), coarse.rank(some, None, k=8, certified=True, **options), strict=True
        ):
            assert found.items.tolist() == right.items.tolist()
            assert found.values.tobytes() == right.values.tobytes()
            assert right.rescored is None
            assert 8 <= found.rescored < coarse.n_items
    assert coarse.rank(some[0], None, k=8).rescored is None
    assert exact.rank(some[0], None, k=8, certified=True).rescored == 0
    one = coarse.recommend(some[0], k=5, retrieve=100, certified=True)
    assert one.items.tolist() == exact.recommend(some[0], k=5, retrieve=100).items.tolist()


def test_calibration_while_the_items_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first certified call measures; what is deleted between the choice of items and that is no error."""
    exact, coarse = (Ranker.load(BUNDLE, precision=p) for p in ("fp32", "int8"))
    session, gone = coarse._engine.session, coarse.items[10:]

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def precision_errors(self, *args: Any, **options: Any) -> Any:
            if coarse.n_items > 10:
                coarse.delete(gone)
            return session.precision_errors(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "session", Interrupted())
        found = coarse.rank(coarse.users[0], None, k=3, certified=True)
    assert coarse.n_items == 10
    assert coarse._errors().samples == 32 * 10
    exact.delete(gone)
    assert found.values.tobytes() == exact.rank(exact.users[0], None, k=3).values.tobytes()


def test_certified_after_changes_of_the_catalogue() -> None:
    """Rows are then no longer where the items lie."""
    rankers = [Ranker.load(BUNDLE, precision=precision) for precision in ("fp32", "int8")]
    stored = rankers[0].bundle.catalogue
    assert stored is not None
    rows = np.arange(0, 900, 3)
    for ranker in rankers:
        ranker.delete(ranker.items[::7])
        ranker.upsert(Catalogue(stored.keys[rows], stored.packed.take(rows[::-1])))
    users = rankers[0].users[:3].tolist()
    exact = rankers[0].rank(users, None, k=20)
    certified = rankers[1].rank(users, None, k=20, certified=True)
    for a, b in zip(exact, certified, strict=True):
        assert a.items.tolist() == b.items.tolist()
        assert a.values.tobytes() == b.values.tobytes()


def test_calibration() -> None:
    ranker = Ranker.load(BUNDLE, precision="int8")
    few = ranker.calibrate(list(ranker.users[:3]), ranker.items[:50], safety=3)
    assert few.samples == 150
    assert few.safety == 3
    assert set(few.tasks) == {"click", "long_view", "like", "follow", "comment"}
    assert few.width(None) == 3 * few.fused
    assert ranker.bundle.users is not None
    assert ranker.calibrate(ranker.bundle.users.packed.take([0, 1, 2]), ranker.items[:50], safety=3) == few
    assert few.width({"click": 0.5, "like": -2.0}) == pytest.approx(
        3 * (0.5 * few.tasks["click"] + 2 * few.tasks["like"])
    )
    assert ranker.calibrate().fused >= few.fused / 2
    with pytest.raises(ConfigError, match="safety must be at least 1"):
        ranker.calibrate(safety=0.5)
    with pytest.raises(ConfigError, match="no users to measure them with"):
        ranker.calibrate([])
    with pytest.raises(ConfigError, match="does not fuse a task 'share'"):
        ErrorWidth(0.1, {"click": 0.1}, 1).width({"share": 1.0})
