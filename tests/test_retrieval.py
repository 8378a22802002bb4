"""fastmtr.retrieval: every index against a search by hand."""

import subprocess
import sys

import numpy as np
import pytest

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.retrieval import RetrievalConfig, Retriever

KINDS = ["exact", "flat", "ivf", "hnsw"]


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)


def make(vectors, kind, **options):
    if kind != "exact":
        pytest.importorskip("faiss")
    # All clusters are searched, so that the approximate indexes have nothing to miss.
    return Retriever(vectors, config=RetrievalConfig(index=kind, probes=10_000, ef_search=600, **options))


def by_hand(vectors, query, k, without=()):
    order = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable")
    return [row for row in order.tolist() if row not in set(without)][:k]


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_nearest(vectors, kind):
    queries = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    rows, scores = make(vectors, kind).search(queries, k=10)
    assert rows.dtype == np.int64
    assert rows.tolist() == [by_hand(vectors, q, 10) for q in queries]
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_out_the_excluded(vectors, kind):
    queries = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    first = np.array(by_hand(vectors, queries[0], 7))
    rows, _ = make(vectors, kind).search(queries, k=5, exclude=[first, np.empty(0, np.int64), None])
    assert rows[0].tolist() == by_hand(vectors, queries[0], 5, first)
    assert rows[1].tolist() == by_hand(vectors, queries[1], 5)
    assert rows[2].tolist() == by_hand(vectors, queries[2], 5)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_than_k(vectors, kind):
    few = vectors[:4]
    rows, scores = make(few, kind).search(few[:1], k=6, exclude=[np.array([1])])
    assert rows[0, :3].tolist() == by_hand(few, few[0], 3, [1])
    assert rows[0, 3:].tolist() == [-1, -1, -1]
    assert np.isnan(scores[0, 3:]).all()
    assert np.isfinite(scores[0, :3]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_items_and_no_queries(vectors, kind):
    rows, scores = make(vectors[:0], kind).search(vectors[:2], k=3)
    assert rows.tolist() == [[-1] * 3] * 2
    assert np.isnan(scores).all()
    rows, scores = make(vectors, kind).search(vectors[:0], k=3)
    assert rows.shape == scores.shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_follows_a_catalogue_that_changes(vectors, kind):
    """As if it had been made of the items that there are now, whatever was changed before."""
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    first = retriever = make(vectors, kind)
    now = vectors
    for _ in range(8):
        gone = rng.permutation(len(now))[:20]
        moved = np.where(np.isin(np.arange(len(now)), gone), -1, np.arange(len(now)))
        replaced, deleted = gone[:8], gone[8:]
        left = np.delete(np.arange(len(now)), deleted)
        place = np.full(len(now), -1)
        place[left] = np.arange(len(left))
        moved = np.where(moved >= 0, place, -1)
        fresh = rng.normal(size=(13, 8)).astype(np.float32)
        rows = np.concatenate([place[replaced], len(left) + np.arange(5)])
        now = np.concatenate([now[left], fresh[8:]])
        now[place[replaced]] = fresh[:8]
        retriever = retriever.changed(moved, rows, fresh)
        assert retriever.n_items == len(now)
        excluded = [rng.permutation(len(now))[:30] for _ in queries]
        found, scores = retriever.search(queries, k=25, exclude=excluded)
        assert found.tolist() == [by_hand(now, q, 25, e) for q, e in zip(queries, excluded, strict=True)]
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ now.T, found, axis=1), atol=1e-5)
    assert first.search(queries, k=9)[0].tolist() == [by_hand(vectors, q, 9) for q in queries]
    assert not retriever.is_worn
    none_left = retriever.changed(np.full(len(now), -1), np.empty(0, np.int64), now[:0])
    assert none_left.search(queries, k=2)[0].tolist() == [[-1, -1]] * 4
    many = np.arange(1001)
    assert none_left.changed(np.empty(0, np.int64), many, np.ones((1001, 8), np.float32)).is_worn
    with pytest.raises(SchemaError, match="the vector of item row 7 is not finite"):
        retriever.changed(np.arange(len(now)), np.array([7]), np.full((1, 8), np.nan, np.float32))
    with pytest.raises(SchemaError, match="must have 8 columns"):
        retriever.changed(np.arange(len(now)), np.array([7]), np.ones((1, 9), np.float32))


def test_exact_breaks_ties_by_row():
    same = np.ones((9, 2), np.float32)
    rows, _ = Retriever(same, config=RetrievalConfig(index="exact")).search(same[:1], k=4)
    assert rows.tolist() == [[0, 1, 2, 3]]


def test_approximate_index_is_nearly_right():
    pytest.importorskip("faiss")
    data = np.random.default_rng(3).normal(size=(4000, 16)).astype(np.float32)
    queries = data[:50]
    right, _ = Retriever(data, config=RetrievalConfig(index="exact")).search(queries, k=20)
    for kind in ("ivf", "hnsw"):
        rows, _ = Retriever(data, config=RetrievalConfig(index=kind)).search(queries, k=20)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(rows, right, strict=True)])
        assert recall > 0.6, kind


def test_hnsw_finds_long_vectors_too():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(4)
    data = (rng.normal(size=(3000, 8)) * rng.lognormal(sigma=0.5, size=(3000, 1))).astype(np.float32)
    queries = rng.normal(size=(50, 8)).astype(np.float32)
    right, _ = Retriever(data, config=RetrievalConfig(index="exact")).search(queries, k=50)
    rows, _ = Retriever(data, config=RetrievalConfig(index="hnsw")).search(queries, k=50)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(rows, right, strict=True)]) > 0.85


def test_auto_chooses_by_size(vectors):
    pytest.importorskip("faiss")
    assert Retriever(vectors).kind == "flat"
    assert Retriever(np.random.default_rng(0).normal(size=(50_001, 2)).astype(np.float32)).kind == "ivf"


def test_faiss_keeps_its_thread_count(vectors):
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    Retriever(vectors, config=RetrievalConfig(index="flat")).search(vectors, k=2)
    assert faiss.omp_get_max_threads() == before


def test_without_faiss():
    code = """
import sys; sys.modules["faiss"] = None
import importlib.util, numpy as np
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "faiss" else find(name, *a)
from fastmtr.errors import BackendError
from fastmtr.retrieval import RetrievalConfig, Retriever
v = np.eye(3, dtype=np.float32)
assert Retriever(v).kind == "exact"
assert Retriever(v).search(v[1:2], k=1)[0].tolist() == [[1]]
try:
    Retriever(v, config=RetrievalConfig(index="hnsw"))
except BackendError as error:
    assert "pip install" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_refuses(vectors):
    flat = Retriever(vectors, config=RetrievalConfig(index="exact"))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        flat.search(vectors[:1], k=0)
    with pytest.raises(SchemaError, match=r"shape \[requests, 8\], found \[1, 3\]"):
        flat.search(vectors[:1, :3], k=1)
    with pytest.raises(SchemaError, match="not finite"):
        flat.search(np.full((1, 8), np.nan, np.float32), k=1)
    with pytest.raises(SchemaError, match="give one for each"):
        flat.search(vectors[:2], k=1, exclude=[None])
    with pytest.raises(SchemaError, match="float32 matrix"):
        Retriever(vectors.astype(np.float64))
    bad = vectors.copy()
    bad[17, 3] = np.inf
    with pytest.raises(SchemaError, match="item row 17 is not finite"):
        Retriever(bad)
    pytest.importorskip("faiss")
    with pytest.raises(ConfigError, match="only 4 items"):
        Retriever(vectors[:4], config=RetrievalConfig(index="ivf", lists=5))
