"""fastmtr.ranker: what users, items and k may be, and that the scores are those of the reference."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastmtr import _native
from fastmtr.errors import BackendError, ConfigError, SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Packed
from fastmtr.ranker import Ranker, Ranking, Scores
from fastmtr.reference import evaluate
from fastmtr.retrieval import RetrievalConfig

pa = pytest.importorskip("pyarrow")
from small_ranker import N_ITEMS, N_USERS, make_bundle  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("ranker") / "bundle")


@pytest.fixture(scope="module")
def ranker(bundle):
    return Ranker.load(bundle)


def expected(ranker, request, rows):
    """Reference scores [n, 2] and fused [n] of one packed request."""
    item = stored_items(ranker).take(rows)
    found = evaluate(ranker.bundle.graph, {"request": request, "item": item, "candidate": None_packed(len(rows))})
    scores = np.stack([np.broadcast_to(found[t].reshape(-1), len(rows)) for t in ("click", "buy")], axis=1)
    return scores, scores[:, 0] * np.sqrt(scores[:, 1])


def stored_items(ranker):
    from safetensors.numpy import load_file

    stored = load_file(ranker.bundle.path / "catalogue.safetensors")
    return Packed(stored["ids"], stored["dense"])


def None_packed(n):  # noqa: N802
    return Packed(np.empty((n, 0), np.int32), np.empty((n, 0), np.float32))


def pipeline_of(ranker):
    return FeaturePipeline.from_state(ranker.schema, *ranker.bundle.pipeline_state)


def test_scores_are_those_of_the_reference(ranker):
    rows = np.array([5, 0, 39, 5])
    result = ranker.score(103, ranker.items[rows], context={"place": "work"})
    request = pipeline_of(ranker).transform_row("request", {"place": "work"}, base=ranker.bundle.users.packed.take([3]))
    scores, fused = expected(ranker, request, rows)
    assert isinstance(result, Scores)
    assert result.known_user
    assert result.tasks == ("click", "buy")
    np.testing.assert_array_equal(result.items, ranker.items[rows])
    np.testing.assert_allclose(result.values, scores, atol=1e-5)
    np.testing.assert_allclose(result.fused, fused, atol=1e-5)
    np.testing.assert_array_equal(result.scores["buy"], result.values[:, 1])


def test_rank_is_score_sorted(ranker):
    scores = ranker.score(101, ranker.items)
    ranking = ranker.rank(101, ranker.items, k=7)
    order = np.argsort(-scores.fused, kind="stable")[:7]
    assert isinstance(ranking, Ranking)
    np.testing.assert_array_equal(ranking.items, scores.items[order])
    np.testing.assert_array_equal(ranking.fused, scores.fused[order])
    np.testing.assert_array_equal(ranking.values, scores.values[order])


def test_items_none_is_the_catalogue(ranker):
    np.testing.assert_array_equal(ranker.score(101, None).values, ranker.score(101, ranker.items).values)
    np.testing.assert_array_equal(ranker.rank(101, None, k=3).items, ranker.rank(101, ranker.items, k=3).items)


def test_items_may_be_lists_and_narrow_integers(ranker):
    some = ranker.items[:4]
    want = ranker.score(101, some).values
    for same in (some.tolist(), tuple(some.tolist()), some.astype(np.int16), np.repeat(some, 2)[::2]):
        np.testing.assert_array_equal(ranker.score(101, same).values, want)


def test_many_users(ranker):
    lists = [ranker.items[:3], ranker.items[3:3], ranker.items[10:15]]
    users = [101, 999, {"user": 104, "age": 0.3}]
    together = ranker.rank(users, lists, k=4)
    assert [len(r) for r in together] == [3, 0, 4]
    assert [r.known_user for r in together] == [True, False, True]
    for user, items, result in zip(users, lists, together, strict=True):
        alone = ranker.rank(user, items, k=4)
        np.testing.assert_array_equal(alone.items, result.items)
        np.testing.assert_array_equal(alone.values, result.values)
    shared = ranker.score(np.array([101, 102]), ranker.items[:5])
    assert [len(r) for r in shared] == [5, 5]
    assert ranker.score([], []) == []
    assert ranker.recommend([], k=3) == []
    with pytest.raises(SchemaError, match="3 lists of items for 2"):
        ranker.score([101, 102], lists)


def test_packed_requests(ranker):
    packed = ranker.bundle.users.packed.take([1, 2])
    both = ranker.score(packed, ranker.items[:5])
    for result, user in zip(both, (101, 102), strict=True):
        np.testing.assert_array_equal(result.values, ranker.score(user, ranker.items[:5]).values)


def test_unknown_user_is_unseen_without_history(ranker):
    result = ranker.rank(31337, ranker.items, k=5)
    assert not result.known_user
    request = pipeline_of(ranker).transform_row("request", {"user": 31337})
    assert request.ids[0, 0] == 1
    scores, _ = expected(ranker, request, np.arange(N_ITEMS))
    want = ranker.score(31337, None)
    np.testing.assert_allclose(want.values, scores, atol=1e-5)
    assert "unknown" in repr(result)


def test_user_by_features(ranker):
    given = {"user": 105, "age": float("nan"), "place": "home"}
    request = pipeline_of(ranker).transform_row("request", given)
    scores, _ = expected(ranker, request, np.arange(4))
    np.testing.assert_allclose(ranker.score(given, ranker.items[:4]).values, scores, atol=1e-5)
    with pytest.raises(SchemaError, match="did you mean 'age'"):
        ranker.score({"user": 105, "agee": 3}, ranker.items[:4])


def test_unknown_items(ranker):
    items = np.array([ranker.items[0], 5_000, ranker.items[1], 6_000])
    with pytest.raises(SchemaError, match=r"2 item\(s\) are not in the bundle's catalogue: 5000, 6000; leave them out"):
        ranker.score(101, items)
    scores = ranker.score(101, items, unknown_items="skip")
    assert np.isnan(scores.values[[1, 3]]).all()
    assert np.isfinite(scores.values[[0, 2]]).all()
    ranking = ranker.rank(101, items, k=4, unknown_items="skip")
    assert sorted(ranking.items.tolist()) == sorted(ranker.items[:2].tolist())
    with pytest.raises(ConfigError, match="'error' or 'skip'"):
        ranker.score(101, items, unknown_items="ignore")


def test_fewer_than_k_and_none(ranker):
    assert len(ranker.rank(101, ranker.items[:3], k=10)) == 3
    empty = ranker.rank(101, [], k=10)
    assert len(empty) == 0
    assert empty.values.shape == (0, 2)
    assert len(ranker.score(101, np.empty(0, np.int64))) == 0
    assert len(ranker.recommend(101, k=5, exclude=ranker.items)) == 0
    assert len(ranker.recommend(101, k=5, exclude=ranker.items[2:])) == 2
    assert len(ranker.recommend(101, k=500, retrieve=10_000)) == N_ITEMS
    for k in (0, -1):
        with pytest.raises(ConfigError, match="k must be at least 1"):
            ranker.rank(101, ranker.items, k=k)
        with pytest.raises(ConfigError, match="k must be at least 1"):
            ranker.recommend(101, k=k)
    with pytest.raises(ConfigError, match="retrieve must be at least 1"):
        ranker.recommend(101, k=1, retrieve=0)


def test_recommend_ranks_what_was_retrieved(ranker):
    found = ranker.recommend(104, k=5, retrieve=12)
    vectors = ranker.item_vectors @ ranker.user_vectors(104)[0]
    nearest = np.argsort(-vectors, kind="stable")[:12]
    want = ranker.rank(104, ranker.items[nearest], k=5)
    assert set(found.items.tolist()) == set(want.items.tolist())
    np.testing.assert_array_equal(found.fused, want.fused)
    everything = ranker.recommend(104, k=5, retrieve=None)
    np.testing.assert_array_equal(everything.items, ranker.rank(104, None, k=5).items)


@pytest.mark.parametrize("retrieve", [None, 20, 10_000])
def test_recommend_excludes(ranker, retrieve):
    starts, rows = ranker.bundle.seen
    seen = set(ranker.items[rows[starts[4] : starts[5]]].tolist())
    assert len(seen) == 3
    found = ranker.recommend(104, k=N_ITEMS, retrieve=retrieve, exclude="seen")
    assert not seen & set(found.items.tolist())
    assert len(found) == min(retrieve or N_ITEMS, N_ITEMS - 3)
    both = ranker.recommend([104, 999], k=N_ITEMS, retrieve=retrieve, exclude=[ranker.items[:2], [424242]])
    assert len(both[0]) == min(retrieve or N_ITEMS, N_ITEMS - 2)
    assert len(both[1]) == min(retrieve or N_ITEMS, N_ITEMS)
    with pytest.raises(ConfigError, match="exclude must be 'seen'"):
        ranker.recommend(104, k=3, exclude="sen")


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_faiss_indexes_give_the_same_lists(bundle, ranker, index):
    pytest.importorskip("faiss")
    other = Ranker.load(bundle, retrieval=RetrievalConfig(index=index, probes=100, ef_search=100))
    assert other.retriever.kind == index
    want = ranker.recommend(list(range(100, 100 + N_USERS)), k=6, retrieve=15, exclude="seen")
    found = other.recommend(list(range(100, 100 + N_USERS)), k=6, retrieve=15, exclude="seen")
    for a, b in zip(want, found, strict=True):
        np.testing.assert_array_equal(a.items, b.items)


def test_timings(ranker):
    timings = {}
    ranker.recommend(101, k=3, timings=timings)
    assert list(timings) == ["features", "retrieval", "ranking"]
    assert all(seconds >= 0 for seconds in timings.values())


def test_fusion_weights_of_one_call(ranker):
    by_buy = ranker.rank(101, None, k=N_ITEMS, fusion_weights={"buy": 1.0})
    assert (np.diff(by_buy.scores["buy"]) <= 0).all()
    np.testing.assert_allclose(by_buy.fused, by_buy.scores["buy"], rtol=1e-5)
    with pytest.raises(ConfigError, match="does not fuse a task 'bye'"):
        ranker.rank(101, None, k=3, fusion_weights={"bye": 1.0})


def test_wrong_keys(ranker):
    for user in ("101", 1.5, True, None):
        with pytest.raises(SchemaError, match="keys of this bundle are whole numbers"):
            ranker.score(user, ranker.items[:2])
    for items in (["a"], [1.5], [True], [None]):
        with pytest.raises(SchemaError, match="keys of this bundle are whole numbers"):
            ranker.score(101, items)
    with pytest.raises(SchemaError, match="items must be"):
        ranker.score(101, 5)
    with pytest.raises(SchemaError, match="items must be"):
        ranker.score(101, "five")
    with pytest.raises(SchemaError, match="fit in 64 bits"):
        ranker.score(2**70, ranker.items[:2])


def test_text_keys(tmp_path):
    ranker = Ranker.load(make_bundle(tmp_path / "b", text_keys=True, labels=False))
    some = ranker.items[[3, 1]].tolist()
    assert all(isinstance(key, str) for key in some)
    result = ranker.score(101, some)
    scores, _ = expected(ranker, ranker.bundle.users.packed.take([1]), np.array([3, 1]))
    np.testing.assert_allclose(result.values, scores, atol=1e-5)
    assert result.items.tolist() == some
    assert result.labels == some
    assert set(ranker.recommend(101, k=4, exclude=some).items.tolist()).isdisjoint(some)
    with pytest.raises(SchemaError, match=r"1 item\(s\) .*: 'nix'"):
        ranker.score(101, ["nix"])
    assert np.isnan(ranker.score(101, ["nix"], unknown_items="skip").values).all()
    with pytest.raises(SchemaError, match="keys of this bundle are text, found 3"):
        ranker.score(101, [3])


def test_without_a_head(tmp_path):
    ranker = Ranker.load(make_bundle(tmp_path / "b", head=False, seen=False))
    assert not ranker.has_retrieval
    with pytest.raises(SchemaError, match="no retrieval head; rank the whole catalogue"):
        ranker.recommend(101, k=3)
    assert len(ranker.recommend(101, k=3, retrieve=None)) == 3
    with pytest.raises(SchemaError, match="does not know what its users have seen"):
        ranker.recommend(101, k=3, retrieve=None, exclude="seen")


def test_candidate_features(tmp_path):
    ranker = Ranker.load(make_bundle(tmp_path / "b", candidate=True))
    rows = np.arange(6)
    position = np.arange(6.0)
    result = ranker.score(101, ranker.items[rows], candidates={"position": position})
    packed = pipeline_of(ranker).transform("candidate", pa.table({"position": position}))
    found = evaluate(
        ranker.bundle.graph,
        {"request": ranker.bundle.users.packed.take([1]), "item": stored_items(ranker).take(rows), "candidate": packed},
    )
    np.testing.assert_allclose(result.scores["click"], found["click"].reshape(-1), atol=1e-5)
    with pytest.raises(SchemaError, match=r"needs the candidate features \['position'\]"):
        ranker.score(101, ranker.items[rows])
    with pytest.raises(SchemaError, match="one value for each of 6 candidates"):
        ranker.score(101, ranker.items[rows], candidates={"position": position[:5]})


def test_superfluous_candidate_features(ranker):
    with pytest.raises(SchemaError, match="has no candidate features"):
        ranker.score(101, ranker.items[:2], candidates={"position": [0, 1]})


def test_shared_by_threads(ranker):
    want = [ranker.rank(100 + i, None, k=10) for i in range(N_USERS)]

    def work(start):
        for step in range(100):
            i = (start + step) % N_USERS
            found = ranker.rank(100 + i, None, k=10)
            np.testing.assert_array_equal(found.items, want[i].items)
            np.testing.assert_array_equal(found.values, want[i].values)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_load(bundle):
    with pytest.raises(BackendError, match="device must be 'cpu', 'cuda' or 'auto', found 'gpu'"):
        Ranker.load(bundle, device="gpu")
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        Ranker.load(bundle, threads=0)
    with pytest.raises(BackendError):
        Ranker.load(bundle, isa="mmx")
    two = Ranker.load(bundle, threads=2, isa="baseline")
    assert two.isa == "baseline"
    assert sum(v for v in two.memory_usage.values() if isinstance(v, int)) > 0
    assert str(bundle) in repr(two)
    np.testing.assert_allclose(two.score(101, None).values, Ranker.load(bundle).score(101, None).values, atol=1e-6)


def test_results_are_shown(ranker):
    ranking = ranker.rank(101, None, k=12)
    text = repr(ranking)
    assert "Ranking: 12 items for user 101" in text
    assert f"item {ranking.items[0]}" in text
    assert "... and 2 more" in text
    with pytest.raises(AttributeError):
        ranking.fused = None
    pandas = pytest.importorskip("pandas")
    frame = ranking.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["item", "label", "fused", "click", "buy"]
    assert len(frame) == 12
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=120, file=io.StringIO())
    console.print(ranking)
    assert f"item {ranking.items[0]}" in console.file.getvalue()


def test_engine_is_the_native_one(ranker):
    assert _native.info()
    assert ranker.isa in _native.info()
