"""The engine against float64 NumPy, on every instruction set there is; its bits, its ranking rules, its refusals."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ISAS, HandmadeModel, PlanMaker

import fastmtr
from fastmtr import SchemaError, StaleError
from fastmtr._native import Model, Session
from fastmtr.compiler.explain import explain


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model(bundle)


@pytest.fixture
def session(model: Model) -> Session:
    return Session(model)


@pytest.mark.parametrize("isa", ISAS)
def test_scores_are_those_of_float64(handmade: HandmadeModel, bundle: Path, isa: str) -> None:
    call = handmade.call([1, 0, 37, 200])
    scores, fused = Session(Model(bundle, isa=isa)).score(**call)
    expected_scores, expected_fused = handmade.answers(call)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fused, expected_fused, rtol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_vectors_are_those_of_float64(handmade: HandmadeModel, bundle: Path, isa: str) -> None:
    model = Model(bundle, isa=isa)
    ids, dense = handmade.requests(40)
    vectors = Session(model).request_output("user_vector", ids, dense)
    np.testing.assert_allclose(vectors, handmade.user_vector(ids, dense), atol=1e-6)
    np.testing.assert_allclose(model.item_output("item_vector"), handmade.item_vector(), atol=1e-6)
    assert np.array_equal(model.keys(), handmade.catalogue["keys"])


@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_nothing_but_the_inputs(handmade: HandmadeModel, bundle: Path, isa: str) -> None:
    model = Model(bundle, isa=isa)
    call = handmade.call([5, 331, 1, 0, 64, 2, 90, 17, 33, 4])
    scores, fused = Session(model).score(**call)
    ranked = Session(model).rank(**call, k=12)
    request = call["request_ids"], call["request_dense"]
    vectors = Session(model).request_output("user_vector", *request)
    for threads, tile in [(1, 1), (1, 7), (1, 1000), (2, 0), (3, 5), (4, 16)]:
        other = Session(model, threads=threads, tile=tile)
        for _ in range(2):  # nothing of an earlier call is left over
            again, fused_again = other.score(**call)
            assert scores.tobytes() == again.tobytes()
            assert fused.tobytes() == fused_again.tobytes()
            assert all(a.tobytes() == b.tobytes() for a, b in zip(ranked, other.rank(**call, k=12), strict=True))
            assert vectors.tobytes() == other.request_output("user_vector", *request).tobytes()
    # One request at a time, its candidates in another order.
    single = Session(model)
    for r in range(len(call["request_ids"])):
        mine = np.arange(int(call["offsets"][r]), int(call["offsets"][r + 1]))[::-1]
        one, _ = single.score(
            call["request_ids"][r : r + 1],
            call["request_dense"][r : r + 1],
            np.array([0, len(mine)]),
            call["items"][mine],
            candidate_ids=call["candidate_ids"][mine],
            candidate_dense=call["candidate_dense"][mine],
        )
        assert one.tobytes() == scores[mine].tobytes()


def test_the_whole_catalogue_is_scored_in_row_order(handmade: HandmadeModel, model: Model, session: Session) -> None:
    call = handmade.call([100, 100])
    call["items"] = np.concatenate([model.keys(), model.keys()])
    scores, fused = session.score(**call)
    whole, whole_fused = session.score(**call | {"offsets": None, "items": None})
    assert scores.tobytes() == whole.tobytes()
    assert fused.tobytes() == whole_fused.tobytes()
    for threads in (1, 3):
        ranked = Session(model, threads=threads).rank(**call | {"offsets": None, "items": None}, k=5)
        assert np.array_equal(ranked[0], np.argsort(-fused.reshape(2, 100), axis=1, kind="stable")[:, :5])


def test_rank_agrees_with_score(handmade: HandmadeModel, session: Session) -> None:
    counts = [30, 0, 4, 100]
    call = handmade.call(counts)
    scores, fused = session.score(**call)
    positions, best, best_scores, found = session.rank(**call, k=6)
    assert found.tolist() == [6, 0, 4, 6]
    for r, n in enumerate(counts):
        mine = slice(int(call["offsets"][r]), int(call["offsets"][r + 1]))
        order = np.argsort(-fused[mine], kind="stable")[:6]
        assert positions[r].tolist() == [*order.tolist(), *[-1] * (6 - min(n, 6))]
        assert np.array_equal(best[r, : len(order)], fused[mine][order])
        assert np.array_equal(best_scores[r, : len(order)], scores[mine][order])
        assert np.isnan(best[r, len(order) :]).all()
        assert np.isnan(best_scores[r, len(order) :]).all()


def test_rank_of_nothing(handmade: HandmadeModel, session: Session) -> None:
    positions, fused, scores, counts = session.rank(**handmade.call([3, 5]), k=0)
    assert positions.shape == fused.shape == (2, 0)
    assert scores.shape == (2, 0, 2)
    assert counts.tolist() == [0, 0]
    assert [len(a) for a in session.rank(**handmade.call([]), k=3)] == [0, 0, 0, 0]
    assert session.score(**handmade.call([]))[0].shape == (0, 2)
    assert session.score(**handmade.call([0, 0]))[1].shape == (0,)
    assert session.rank(**handmade.call([0, 0]), k=3)[3].tolist() == [0, 0]


def test_unknown_items(handmade: HandmadeModel, session: Session) -> None:
    call = handmade.call([10, 5])
    scores, fused = session.score(**call)
    call["items"][[2, 11, 12]] = [10**12, -999, 10**12]
    with pytest.raises(
        SchemaError, match=r"item 1000000000000 \(candidate 2\) is not in the catalogue of 100 items, nor are 2 others"
    ):
        session.score(**call)
    skipped, skipped_fused = session.score(**call, skip_unknown=True)
    known = np.ones(15, dtype=bool)
    known[[2, 11, 12]] = False
    assert np.isnan(skipped[~known]).all()
    assert np.isnan(skipped_fused[~known]).all()
    assert scores[known].tobytes() == skipped[known].tobytes()
    positions, _, _, counts = session.rank(**call, k=10, skip_unknown=True)
    assert counts.tolist() == [9, 3]
    assert 2 not in positions[0]
    assert sorted(positions[1].tolist()) == [-1] * 7 + [0, 3, 4]
    assert fused[known].tobytes() == skipped_fused[known].tobytes()


def test_fusion_weights_of_one_call(handmade: HandmadeModel, session: Session) -> None:
    call = handmade.call([20])
    scores, fused = session.score(**call)
    weights = np.array([0.0, 1.0], dtype=np.float32)  # buy, click
    _, clicks = session.score(**call, fusion_weights=weights)
    np.testing.assert_allclose(clicks, scores[:, 0], rtol=1e-5)
    assert session.score(**call)[1].tobytes() == fused.tobytes()
    with pytest.raises(ValueError, match="fusion_weights has 1 numbers, the model fuses 2 tasks"):
        session.score(**call, fusion_weights=weights[:1])
    with pytest.raises(SchemaError, match="fusion weight 1 is not finite"):
        session.score(**call, fusion_weights=np.array([1, np.nan], dtype=np.float32))


def test_a_new_catalogue(handmade: HandmadeModel, bundle: Path) -> None:
    model = Model(bundle, without_catalogue=True)
    session = Session(model)
    call = handmade.call([8])
    nothing = call | {"items": None, "offsets": None}
    nothing |= {name: call[name][:0] for name in ("candidate_ids", "candidate_dense")}
    assert model.n_items == 0
    assert model.keys().shape == (0,)
    with pytest.raises(ValueError, match="the model has no catalogue: set one first"):
        session.score(**call)
    with pytest.raises(ValueError, match="the model has none: set one first"):
        session.score(**nothing)
    with pytest.raises(ValueError, match="no catalogue"):
        model.item_output("item_vector")
    keys, ids, dense = (handmade.catalogue[name] for name in ("keys", "ids", "dense"))
    model.set_catalogue(keys, ids, dense)
    scores, _ = session.score(**call)
    assert scores.tobytes() == Session(Model(bundle)).score(**call)[0].tobytes()
    with pytest.raises(SchemaError, match="item key 3 stands twice, in rows 1 and 2"):
        model.set_catalogue(np.array([1, 3, 3]), ids[:3], dense[:3])
    with pytest.raises(
        SchemaError, match=r"input 'item', item row 2, position 0: id 40 is out of range, expected 0 .. 39"
    ):
        model.set_catalogue(keys[:3], np.array([[0], [1], [40]], dtype=np.int32), dense[:3])
    with pytest.raises(SchemaError, match="ids has 2 rows, expected 3"):
        model.set_catalogue(keys[:3], ids[:2], dense[:3])
    assert model.n_items == 100  # the old one stayed
    model.set_catalogue(keys[:0], ids[:0], dense[:0])
    assert model.n_items == 0
    scores, _ = session.score(**call, skip_unknown=True)
    assert np.isnan(scores).all()
    assert session.score(**nothing)[0].shape == (0, 2)


def test_a_catalogue_replaced_while_others_score(handmade: HandmadeModel, bundle: Path) -> None:
    """Each call sees one catalogue from beginning to end: the first half of the items, or all."""
    model = Model(bundle)
    keys, ids, dense = (handmade.catalogue[name] for name in ("keys", "ids", "dense"))
    request_ids, request_dense = handmade.requests(1)
    place, retrieved = handmade.candidates(1)
    expected = {}
    for n in (50, 100):
        model.set_catalogue(keys[:n], ids[:n], dense[:n])
        one = {"candidate_ids": np.repeat(place, n, axis=0), "candidate_dense": np.repeat(retrieved, n, axis=0)}
        expected[n] = Session(model).score(request_ids, request_dense, None, None, **one)[0].tobytes()

    def score_often() -> list[bool]:
        session, seen = Session(model), []
        for i in range(200):
            n = 50 if i % 2 else 100
            one = {"candidate_ids": np.repeat(place, n, axis=0), "candidate_dense": np.repeat(retrieved, n, axis=0)}
            try:
                scores, _ = session.score(request_ids, request_dense, None, None, **one)
            except SchemaError:  # the other catalogue was there: the number of candidate rows does not fit
                continue
            seen.append(scores.tobytes() == expected[n])
        return seen

    with ThreadPoolExecutor(3) as pool:
        scoring = [pool.submit(score_often) for _ in range(3)]
        for i in range(100):
            n = 50 if i % 2 else 100
            model.set_catalogue(keys[:n], ids[:n], dense[:n])
    assert all(each for future in scoring for each in future.result())


def test_upsert_and_delete(handmade: HandmadeModel, bundle: Path) -> None:
    """Replaced items keep their row, new ones come last, the others close up: as a catalogue made of these at once."""
    model, at_once = Model(bundle), Model(bundle)
    keys, ids, dense = (handmade.catalogue[name] for name in ("keys", "ids", "dense"))
    assert model.catalogue_version == 1
    assert Model(bundle, without_catalogue=True).catalogue_version == 0
    given = [0, 1, 50, 3]  # rows of inputs
    model.upsert(np.array([keys[70], 5000, keys[2], 5001]), ids[given], dense[given])
    assert model.delete(np.array([keys[1], keys[70], 31337, keys[1]])) == 2
    assert model.delete(np.array([31337])) == 0
    assert model.catalogue_version == 3
    order = [0, 2, *range(3, 70), *range(71, 100), 100, 101]
    new = {
        "keys": np.append(keys, [5000, 5001])[order],
        "ids": np.concatenate([ids, ids[[1, 3]]])[order],
        "dense": np.concatenate([dense, dense[[1, 3]]])[order],
    }
    new["ids"][1], new["dense"][1] = ids[50], dense[50]
    at_once.set_catalogue(**new)
    assert model.keys().tolist() == new["keys"].tolist()
    assert model.item_output("item_vector").tobytes() == at_once.item_output("item_vector").tobytes()
    some = model.keys()[[99, 0, 1]]
    assert model.item_output("item_vector", some).tobytes() == model.item_output("item_vector")[[99, 0, 1]].tobytes()
    with pytest.raises(SchemaError, match=r"item 31337 \(number 1\) is not in the catalogue of 100 items"):
        model.item_output("item_vector", np.array([5000, 31337]))
    request_ids, request_dense = handmade.requests(2)
    place, retrieved = handmade.candidates(2 * 100)
    whole = [request_ids, request_dense, None, None]
    candidate = {"candidate_ids": place, "candidate_dense": retrieved}
    scores, fused = Session(model).score(*whole, **candidate, catalogue_version=3)
    expected, expected_fused = Session(at_once).score(*whole, **candidate)
    assert scores.tobytes() == expected.tobytes()
    assert fused.tobytes() == expected_fused.tobytes()
    with pytest.raises(StaleError, match="the catalogue is version 3, the call expects version 2"):
        Session(model).score(*whole, **candidate, catalogue_version=2)
    one = {"candidate_ids": place[:1], "candidate_dense": retrieved[:1]}
    with pytest.raises(StaleError, match="the call expects version 2"):
        Session(model).rank(
            request_ids, request_dense, np.array([0, 1, 1]), new["keys"][:1], k=1, **one, catalogue_version=2
        )
    with pytest.raises(SchemaError, match="item key 7 stands twice, in rows 0 and 1"):
        model.upsert(np.array([7, 7]), ids[:2], dense[:2])
    with pytest.raises(SchemaError, match="input 'price', item row 0, position 1: NaN found"):
        model.upsert(np.array([7]), ids[:1], np.array([[0, np.nan]], np.float32))
    assert model.catalogue_version == 3
    empty = Model(bundle, without_catalogue=True)
    empty.upsert(keys[:3], ids[:3], dense[:3])
    assert empty.keys().tolist() == keys[:3].tolist()


def test_describe_tells_which_weights(bundle: Path, model: Model) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    found = json.loads(model.describe())
    assert found["plan_sha256"] == files["plan.json"]["sha256"]
    assert found["weights_sha256"] == files["weights.safetensors"]["sha256"]
    assert (found["catalogue_version"], found["n_items"]) == (1, 100)


def test_explain_counts_as_the_compiler_does(handmade: HandmadeModel, model: Model) -> None:
    shapes = {name: array.shape for name, array in handmade.maker.weights.items()}
    expected = explain(handmade.maker.plan(), shapes, n_items=100)
    found = json.loads(model.explain())
    columns = ("name", "domain", "width", "flops", "table_bytes", "weight_bytes", "for_tasks")
    assert [tuple(step[c] for c in columns) for step in found["steps"]] == [
        tuple(getattr(step, c) for c in columns) for step in expected.steps
    ]
    assert found["stored_bytes_an_item"] == sum(s["stored_bytes"] for s in found["steps"])
    assert found["stored_bytes_an_item"] == sum(s.stored_bytes for s in expected.steps if s.domain == "item")
    assert found["input_bytes_an_item"] == expected.input_bytes
    assert found["flops"] == {d: expected.flops(d) for d in ("request", "item", "candidate")}
    assert found["n_items"] == 100


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [0, 7])
def test_profile(handmade: HandmadeModel, model: Model, threads: int, k: int) -> None:
    call = handmade.call([300, 0, 40])
    session = Session(model, threads=threads, tile=64)
    found = json.loads(session.profile(**call, k=k, repeats=5))
    assert {name: found[name] for name in ("repeats", "requests", "candidates", "k", "threads", "precision")} == {
        "repeats": 5,
        "requests": 3,
        "candidates": 340,
        "k": k,
        "threads": threads,
        "precision": "fp32",
    }
    phases = found["phases"]
    assert list(phases) == ["checks", "lookup", "request", "candidates", "fusion", "top_k"]
    assert (phases["top_k"] > 0) == (k > 0)
    explained = {(s["name"], s["op"]): s for s in json.loads(model.explain())["steps"]}
    rows = {"request": 5 * 3, "candidate": 5 * 340}
    tiles = {"request": 5, "candidate": 5 * (5 + 1)}
    for step in found["steps"]:
        assert step["rows"] == rows[step["domain"]]
        assert step["calls"] == tiles[step["domain"]]
        assert step["flops"] == step["rows"] * explained[step["name"], step["op"]]["flops"]
    for phase, domain in (("request", "request"), ("candidates", "candidate")):
        assert 0 < sum(s["nanoseconds"] for s in found["steps"] if s["domain"] == domain) <= phases[phase]
    if threads == 1:
        assert sum(phases.values()) <= found["nanoseconds"]
    # The steps that a task needs, each once; and afterwards the session is as it was.
    needed = [s["name"] for s in json.loads(model.explain())["steps"] if s["for_tasks"] and s["domain"] != "item"]
    assert [s["name"] for s in found["steps"]] == needed
    scores, _ = session.score(**call)
    assert scores.tobytes() == Session(model).score(**call)[0].tobytes()
    with pytest.raises(ValueError, match="repeats is 0"):
        session.profile(**call, repeats=0)


def test_one_session_is_of_one_thread(handmade: HandmadeModel, model: Model) -> None:
    call = handmade.call([400] * 20)
    session = Session(model)
    expected = session.score(**call)[0].tobytes()
    barrier = threading.Barrier(3)

    def score(_: int) -> set[str]:
        answers = set()
        barrier.wait()
        for _ in range(20):
            try:
                scores, _ = session.score(**call)
                answers.add("right" if scores.tobytes() == expected else "wrong")
            except ValueError as error:
                answers.add("refused" if "in use by another thread" in str(error) else str(error))
        return answers

    with ThreadPoolExecutor(3) as pool:
        answers = set().union(*pool.map(score, range(3)))
    assert answers <= {"right", "refused"}
    assert "right" in answers


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "id too large": (
        {"request_ids": (0, 0, 50)},
        SchemaError,
        "input 'user', request row 0, position 0: id 50 is out of range, expected 0 .. 49",
    ),
    "id negative": (
        {"request_ids": (1, 4, -1)},
        SchemaError,
        "input 'history', request row 1, position 3: id -1 is out",
    ),
    "NaN": ({"request_dense": (1, 2, np.nan)}, SchemaError, "input 'profile', request row 1, position 2: NaN found"),
    "infinity": (
        {"request_dense": (0, 0, np.inf)},
        SchemaError,
        "position 0: infinity found, expected a finite number",
    ),
    "-infinity": (
        {"candidate_dense": (6, 0, -np.inf)},
        SchemaError,
        "input 'retrieved', candidate row 6, position 0: -inf",
    ),
    "candidate id": ({"candidate_ids": (2, 0, 5)}, SchemaError, "input 'place', candidate row 2, position 0: id 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_values_are_refused(handmade: HandmadeModel, session: Session, case: str) -> None:
    changes, error, message = REFUSED[case]
    call = handmade.call([3, 4])
    for name, (row, column, value) in changes.items():
        call[name] = call[name].copy()
        call[name][row, column] = value
    with pytest.raises(error, match=message):
        session.score(**call)
    with pytest.raises(error, match=message):
        session.rank(**call, k=2)


MALFORMED: dict[str, tuple[str, Callable[[Any], Any], type[Exception], str]] = {
    "list": (
        "request_ids",
        lambda a: a.tolist(),
        TypeError,
        "request_ids is of type list, expected a NumPy array of int32",
    ),
    "int64 ids": ("request_ids", lambda a: a.astype(np.int64), TypeError, "request_ids has dtype int64"),
    "float64": (
        "request_dense",
        lambda a: a.astype(np.float64),
        TypeError,
        "request_dense has dtype float64, expected",
    ),
    "big endian": ("request_dense", lambda a: a.astype(">f4"), TypeError, "request_dense has dtype >f4"),
    "one dimension": ("request_ids", lambda a: a[0], TypeError, r"request_ids has shape \(7,\)"),
    "not contiguous": ("request_ids", lambda a: np.asfortranarray(a), TypeError, "use numpy.ascontiguousarray"),
    "a column less": ("request_ids", lambda a: a[:, :6].copy(), SchemaError, r"shape \(2, 6\), expected 7 columns"),
    "a row less": ("request_dense", lambda a: a[:1], SchemaError, "request_dense has 1 rows, expected 2"),
    "None": ("request_dense", lambda a: None, SchemaError, "request_dense is None, expected an array with 3 columns"),
    "candidate None": ("candidate_ids", lambda a: None, SchemaError, "candidate_ids is None"),
    "candidate rows": ("candidate_dense", lambda a: a[:-1], SchemaError, "candidate_dense has 6 rows, expected 7"),
    "no offsets": ("offsets", lambda a: None, TypeError, "offsets is of type NoneType"),
    "offsets empty": ("offsets", lambda a: a[:0], ValueError, "offsets is empty"),
    "offsets short": ("offsets", lambda a: a[:2], ValueError, "offsets has 2 numbers for 2 requests"),
    "offsets descend": (
        "offsets",
        lambda a: np.array([0, 8, 7]),
        ValueError,
        "must ascend, but offsets\\[2\\] is 7 after 8",
    ),
    "offsets begin": ("offsets", lambda a: np.array([1, 3, 7]), ValueError, "offsets\\[0\\] is 1, expected 0"),
    "offsets end": ("offsets", lambda a: np.array([0, 3, 6]), ValueError, "offsets ends with 6, but there are 7 items"),
    "offsets negative": ("offsets", lambda a: np.array([0, -3, 7]), ValueError, "must ascend"),
    "items text": ("items", lambda a: a.astype(str), TypeError, "items has dtype <U"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_arguments_are_refused(handmade: HandmadeModel, session: Session, case: str) -> None:
    name, change, error, message = MALFORMED[case]
    call = handmade.call([3, 4])
    call[name] = change(call[name])
    with pytest.raises(error, match=message):
        session.score(**call)


def test_names_that_are_not_there(handmade: HandmadeModel, model: Model, session: Session) -> None:
    with pytest.raises(ValueError, match="no request output 'item_vector'; there are: user_vector"):
        session.request_output("item_vector", *handmade.requests(1))
    with pytest.raises(ValueError, match="no item output 'click'; there are: item_vector"):
        model.item_output("click")


def test_sessions_refuse_absurd_sizes(model: Model) -> None:
    with pytest.raises(ValueError, match="threads is 5000, expected at most 1024"):
        Session(model, threads=5000)
    with pytest.raises(ValueError, match="tile is 1000000"):
        Session(model, tile=1_000_000)


def test_describe(model: Model) -> None:
    about = json.loads(model.describe())
    assert about["tasks"] == ["click", "buy"]
    assert about["widths"] == {
        "request": {"ids": 7, "dense": 3},
        "item": {"ids": 1, "dense": 2},
        "candidate": {"ids": 1, "dense": 1},
    }
    assert about["fusion"] == {
        "kind": "product",
        "tasks": ["buy", "click"],
        "weights": [2.0, 0.5],
        "offsets": [0.01, 0],
    } or (math.isclose(about["fusion"]["offsets"][0], 0.01, rel_tol=1e-6))
    assert about["inputs"][1] == {
        "name": "history",
        "domain": "request",
        "kind": "ids",
        "offset": 1,
        "width": 6,
        "rows": 40,
        "padding": 0,
    }
    assert (about["n_items"], model.n_items, model.n_tasks) == (100, 100, 2)
    assert about["isa"] in ISAS
    assert {o["name"]: (o["role"], o["width"]) for o in about["outputs"]}["user_vector"] == ("request", 4)


def test_the_instruction_set_is_chosen(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fastmtr.info()
    assert found["abi"] == 1
    assert found["version"] == fastmtr.__version__
    for isa in found["instruction_sets"]:
        if isa["available"]:
            assert json.loads(Model(bundle, isa=isa["name"]).describe())["isa"] == isa["name"]
        else:
            with pytest.raises(fastmtr.BackendError, match=f"{isa['name']}, which cannot be used here: "):
                Model(bundle, isa=isa["name"])
    with pytest.raises(fastmtr.BackendError, match="the caller asks for instruction set 'sse9', which is not known"):
        Model(bundle, isa="sse9")
    monkeypatch.setenv("FASTMTR_FORCE_ISA", "baseline")
    assert json.loads(Model(bundle).describe())["isa"] == "baseline"
    monkeypatch.setenv("FASTMTR_FORCE_ISA", "mmx")
    with pytest.raises(fastmtr.BackendError, match="FASTMTR_FORCE_ISA asks for instruction set 'mmx'"):
        Model(bundle)


def test_what_is_installed() -> None:
    assert Path(fastmtr.get_include(), "fastmtr.h").is_file()
    assert Path(fastmtr.get_include(), "fastmtr.hpp").is_file()
    assert Path(fastmtr.get_library()).is_file()


def test_a_model_that_knows_nothing_of_items_needs_no_catalogue(tmp_path: Path) -> None:
    m = PlanMaker()
    x = m.input("x", "candidate", "dense", 2)
    m.output("sum", m.step("total", "reduce", "candidate", [x], 1, fn="sum", outer=1, axis=2, inner=1))
    session = Session(Model(str(m.write(tmp_path / "m"))))
    dense = np.arange(6, dtype=np.float32).reshape(3, 2)
    scores, _ = session.score(None, None, np.array([0, 1, 3]), np.array([5, 5, 9]), candidate_dense=dense)
    assert scores[:, 0].tolist() == [1, 5, 9]


@pytest.mark.parametrize("kind", ["sum", "product"])
def test_ties_and_nan(tmp_path: Path, kind: str) -> None:
    """Equal scores keep the order of their positions; NaN ranks last, whatever the fusion."""
    m = PlanMaker()
    x = m.input("x", "candidate", "dense", 2)
    m.output("ratio", m.step("ratio", "binary", "candidate", [[x[0], 0, 1], [x[0], 1, 1]], 1, fn="div"))
    m.fusion = {"kind": kind, "tasks": ["ratio"], "weights": [1.0]}
    session = Session(Model(str(m.write(tmp_path / "m"))))
    dense = np.array([[0, 0], [1, 1], [2, 1], [0, 0], [2, 1], [1, 0], [1, 1]], dtype=np.float32)  # NaN 1 2 NaN 2 inf 1
    items = np.zeros(7, dtype=np.int64)
    positions, fused, _, counts = session.rank(None, None, np.array([0, 7]), items, k=9, candidate_dense=dense)
    assert positions[0].tolist() == [5, 2, 4, 1, 6, 0, 3, -1, -1]
    assert np.isnan(fused[0, 5:]).all()
    assert counts.tolist() == [7]
    assert session.rank(None, None, np.array([0, 7]), items, k=2, candidate_dense=dense)[0].tolist() == [[5, 2]]
