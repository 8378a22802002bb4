"""A device's plugin gives what the CPU gives: each operator, models, random graphs, lists, catalogues that change.

On the host (see ``csrc/cuda/host.h``) the threads of a block are run in different orders: what depends on it would lack
a barrier.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HandmadeModel, PlanMaker
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fastmtr
from cases import CASES, MODELS, model_graph
from devices import DEVICES, HOST, ORDERS, thread_order
from fastmtr._native import Model, Session
from fastmtr.graph import Graph
from random_graphs import random_graphs
from scenes import Scene

ON_DEVICES = pytest.mark.parametrize("device", DEVICES)

# ---- values ----------------------------------------------------------------------------------------------------------


@ON_DEVICES
@pytest.mark.parametrize("name", CASES)
def test_each_operator(name: str, device: str) -> None:
    scene = Scene.of(CASES[name].graph)
    with scene.bundle() as path:
        scene.check_engine(path, device=device)


@ON_DEVICES
@pytest.mark.parametrize("item_memory", ["auto", 0])
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: Any, item_memory: Any, device: str) -> None:
    scene = Scene.of(model_graph(kind))
    with scene.bundle(item_memory=item_memory) as path:
        scene.check_engine(path, device=device)


@ON_DEVICES
@settings(deadline=None, max_examples=60)
@given(
    graph=random_graphs(),
    item_memory=st.sampled_from(["auto", 0]),
    tile=st.sampled_from([0, 1, 3]),
    n=st.sampled_from([0, 1, 7]),
)
def test_random_graphs(device: str, graph: Graph, item_memory: Any, tile: int, n: int) -> None:
    scene = Scene.of(graph, n=n)
    with scene.bundle(item_memory=item_memory) as path:
        scene.check_engine(path, device=device, tile=tile)


@ON_DEVICES
@pytest.mark.parametrize("name", CASES)
def test_requests_of_one_call_have_the_bits_of_each_alone(name: str, device: str) -> None:
    scene = Scene.of(CASES[name].graph)
    with scene.bundle() as path:
        session = Session(Model(path, device=device))
        scene.check_together(session, session, [2, 0, 1, 3, 1, 0, 20, 2, 1], among=(0, 6, 8))


@pytest.mark.parametrize("device", DEVICES[:1])
@pytest.mark.parametrize("name", [*CASES, *MODELS])
def test_the_order_of_threads_changes_no_bit(name: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene.of(CASES[name].graph if name in CASES else model_graph(name), n=21)
    with scene.bundle() as path:
        session = Session(Model(path, device=device))
        bits = set()
        for order in ORDERS:
            with thread_order(monkeypatch, order):
                bits.add(b"".join(each.tobytes() for each in scene.score(session)))
    assert len(bits) == 1


# ---- lists -----------------------------------------------------------------------------------------------------------

# The score of a candidate is the quotient of its two numbers.
N_ITEMS = 5000


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    m = PlanMaker()
    value, divisor = m.input("value", "candidate", "dense", 1), m.input("divisor", "candidate", "dense", 1)
    m.input("any", "item", "dense", 1)
    m.output("value", m.step("value", "binary", "candidate", [value, divisor], 1, fn="div"))
    catalogue = {
        "keys": np.arange(N_ITEMS),
        "ids": np.zeros((N_ITEMS, 0), np.int32),
        "dense": np.zeros((N_ITEMS, 1), np.float32),
    }
    return m.write(tmp_path_factory.mktemp("plain") / "m", catalogue)


def values_of(kind: str, n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(n)
    values = rng.normal(size=n)
    divisors = np.ones(n)
    if kind == "ties":
        values = rng.integers(0, 3, n)
    elif kind == "special":  # infinite, NaN, zeros of both signs
        values, divisors = rng.integers(-1, 2, n), rng.integers(0, 2, n)
        divisors = np.where(rng.random(n) < 0.5, divisors, -1.0)
    elif kind == "equal":
        values[:] = 1.5
    elif kind == "near":  # that only the last digits tell apart
        values = 1 + rng.integers(0, 64, n) * 2.0**-23
    return np.column_stack([values, divisors]).astype(np.float32)


@ON_DEVICES
@pytest.mark.parametrize("kind", ["any", "ties", "special", "equal", "near"])
def test_lists_are_those_of_the_cpu(kind: str, device: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [0, 1, 7, 300, 0, 1500, 3000, 1024, 1025]  # few candidates and many go different ways
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    values = np.concatenate([values_of(kind, n) for n in counts])
    items = np.random.default_rng(1).integers(0, N_ITEMS, len(values))
    items[::7] = -1  # not in the catalogue
    fused_weights = np.array([np.float32(-2.0)])
    sessions = [Session(Model(str(plain), device=d)) for d in ("cpu", device)]
    for k in (1, 5, 64, 1100, 4000):
        for weights in (None, fused_weights) if k == 5 else (None,):
            expected, found = (
                s.rank(
                    None, None, offsets, items, k=k, candidate_dense=values, skip_unknown=True, fusion_weights=weights
                )
                for s in sessions
            )
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_array_equal(a, b)
    if device == HOST:
        for order in ORDERS:
            with thread_order(monkeypatch, order):
                again = sessions[1].rank(None, None, offsets, items, k=4000, candidate_dense=values, skip_unknown=True)
            for a, b in zip(expected, again, strict=True):
                np.testing.assert_array_equal(a, b)


# ---- the rest of what the CPU does -----------------------------------------------------------------------------------


def assert_same(expected: Any, found: Any) -> None:
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@ON_DEVICES
def test_items_come_change_and_go(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    models = [Model(bundle, device=d) for d in ("cpu", device)]
    sessions = [Session(model) for model in models]
    rng = np.random.default_rng(5)
    keys = handmade.catalogue["keys"]
    for round_ in range(4):
        new = np.concatenate([rng.choice(keys, 20, replace=False), 10_000 + 50 * round_ + np.arange(50)])
        ids = rng.integers(0, 40, (len(new), 1)).astype(np.int32)
        dense = rng.normal(size=(len(new), 2)).astype(np.float32)
        for model in models:
            model.upsert(new, ids, dense)
            model.delete(new[round_ : round_ + 10].copy())
        np.testing.assert_array_equal(*(model.keys() for model in models))
        call = handmade.call([])
        call |= {"request_ids": handmade.requests(2)[0], "request_dense": handmade.requests(2)[1]}
        n = models[0].n_items
        call["candidate_ids"], call["candidate_dense"] = handmade.candidates(2 * n)
        call["items"] = call["offsets"] = None
        assert_same(*(s.score(**call) for s in sessions))
        assert_same(*(s.rank(**call, k=30) for s in sessions))
        call = handmade.call([3, 40])
        call["items"][::5] = new[round_]
        assert_same(*(s.score(**call, skip_unknown=True) for s in sessions))
    with pytest.raises(fastmtr.StaleError):
        sessions[1].score(**handmade.call([3]), catalogue_version=1)
    for model in models:
        model.set_catalogue(np.empty(0, np.int64), np.empty((0, 1), np.int32), np.empty((0, 2), np.float32))
    call = handmade.call([3, 0])
    assert_same(*(s.score(**call, skip_unknown=True) for s in sessions))
    assert_same(*(s.rank(**call, k=2, skip_unknown=True) for s in sessions))


@ON_DEVICES
def test_a_catalogue_that_outgrows_its_place(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    models = [Model(bundle, device=d) for d in ("cpu", device)]
    n = 30_000
    rng = np.random.default_rng(5)
    new = (100_000 + np.arange(n), rng.integers(0, 40, (n, 1)).astype(np.int32), rng.normal(size=(n, 2)))
    for model in models:
        model.upsert(new[0], new[1], new[2].astype(np.float32))
    call = handmade.call([100])
    call["items"] = rng.choice(models[0].keys(), 100)
    assert_same(*(Session(model).score(**call) for model in models))


@ON_DEVICES
def test_changes_while_others_score(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    """Scores are always those of one version: each item's numbers are the same in all rounds but one."""
    model = Model(bundle, device=device)
    keys = handmade.catalogue["keys"]
    call = handmade.call([40])
    versions = [handmade.catalogue["dense"] + np.float32(shift) for shift in (0, 1)]
    answers = []
    for dense in versions:
        model.upsert(keys, handmade.catalogue["ids"], dense)
        answers.append(Session(model).score(**call)[1].tobytes())

    def change() -> None:
        for i in range(10):
            model.upsert(keys, handmade.catalogue["ids"], versions[i % 2])

    def score() -> None:
        session = Session(model)
        while not changing.done():
            assert session.score(**call)[1].tobytes() in answers

    with ThreadPoolExecutor(3) as pool:
        changing = pool.submit(change)
        scoring = [pool.submit(score) for _ in range(2)]
    for each in (changing, *scoring):
        each.result()


@ON_DEVICES
def test_mistakes_are_told_as_on_the_cpu(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    sessions = [Session(Model(bundle, device=d)) for d in ("cpu", device)]
    call = handmade.call([4])
    wrong = [
        {"items": call["items"] + 100_000},
        {"request_ids": call["request_ids"] + 1000},
        {"candidate_dense": np.full_like(call["candidate_dense"], np.nan)},
        {"fusion_weights": np.array([np.nan, 1], np.float32)},
        {"offsets": np.array([0, 3], np.uint64)},
    ]
    for change in wrong:
        messages = []
        for session in sessions:
            with pytest.raises((fastmtr.SchemaError, ValueError)) as caught:
                session.score(**(call | change))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    empty = handmade.call([0, 0])
    assert_same(*(s.score(**empty) for s in sessions))
    assert_same(*(s.rank(**empty, k=3) for s in sessions))


@ON_DEVICES
def test_what_a_device_does_not_do(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    with pytest.raises(fastmtr.BackendError, match="int8"):
        Model(bundle, device=device, precision="int8")
    session = Session(Model(bundle, device=device))
    with pytest.raises(fastmtr.BackendError, match="profile"):
        session.profile(**handmade.call([4]))
    call = handmade.call([4])
    *expected, rescored = session.rank_certified(**call, k=2, width=0.0)
    assert_same(expected, session.rank(**call, k=2))
    assert rescored.tolist() == [0]
    assert not session.precision_errors(**call).any()


def test_devices_that_are_not_there(bundle: Path) -> None:
    with pytest.raises(fastmtr.BackendError, match="'tpu'"):
        Model(bundle, device="tpu")
    with pytest.raises(fastmtr.BackendError, match="tf32 is a GPU's"):
        Model(bundle, precision="tf32")
    about = next(each for each in fastmtr.info()["back_ends"] if each["name"] == "cuda")
    if about["available"]:
        pytest.skip("there is a GPU")
    with pytest.raises(fastmtr.BackendError) as caught:
        Model(bundle, device="cuda")
    assert about["reason"] in str(caught.value)
    assert json.loads(Model(bundle, device="auto").describe())["device"]["name"] == "cpu"


# ---- a ranker --------------------------------------------------------------------------------------------------------


@ON_DEVICES
def test_a_ranker(device: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from small_ranker import make_bundle

    path = make_bundle(tmp_path / "bundle")
    cpu, ranker = (fastmtr.Ranker.load(path, device=d) for d in ("cpu", device))
    assert (cpu.device, ranker.device) == ("cpu", device)
    assert device in repr(ranker)
    np.testing.assert_allclose(ranker.user_vectors([101, 999]), cpu.user_vectors([101, 999]), atol=1e-6)
    for users in (104, [101, 104, 999]):
        for options in ({"retrieve": 12}, {"retrieve": None, "exclude": "seen"}, {"fusion_weights": {"buy": 1.0}}):
            expected, found = (r.recommend(users, k=5, **options) for r in (cpu, ranker))  # type: ignore[arg-type]
            for a, b in zip(expected, found, strict=True) if isinstance(users, list) else [(expected, found)]:
                np.testing.assert_array_equal(a.items, b.items)
                np.testing.assert_allclose(a.fused, b.fused, rtol=1e-6)
                np.testing.assert_allclose(a.values, b.values, rtol=1e-6)
    timings: dict[str, float] = {}
    ranker.recommend(104, k=3, timings=timings)
    assert list(timings) == ["features", "retrieval", "ranking"]


@ON_DEVICES
def test_retrieval_on_the_device_follows_the_items(device: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from small_ranker import make_bundle

    path = make_bundle(tmp_path / "bundle")
    rankers = cpu, there = [fastmtr.Ranker.load(path, device=d) for d in ("cpu", device)]
    for _ in range(3):
        for options in ({}, {"exclude": "seen"}, {"exclude": cpu.items[3:9]}, {"retrieve": 10_000}):
            expected, found = (r.recommend([104, 999], k=6, **{"retrieve": 10, **options}) for r in rankers)
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_array_equal(a.items, b.items)
        for ranker in rankers:
            ranker.delete(ranker.items[5:8])
    assert isinstance(there._items.search_on(device, there._items.current), str) == (device != HOST)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_faiss_searches_on_the_gpu(device: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this Faiss is built for the CPU")
    from small_ranker import make_bundle

    ranker = fastmtr.Ranker.load(make_bundle(tmp_path / "bundle"), device=device)
    assert not isinstance(ranker._items.search_on(device, ranker._items.current), str)
