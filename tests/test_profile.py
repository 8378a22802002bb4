"""fastmtr.profile: the engine's times as numbers and as tables."""

import io

import pytest

pytest.importorskip("pyarrow")
from small_ranker import N_ITEMS, make_bundle

from fastmtr.profile import Profile
from fastmtr.ranker import Ranker


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return Ranker.load(make_bundle(tmp_path_factory.mktemp("profile") / "bundle"))


def test_numbers_are_means_of_one_run():
    text = """{"repeats": 4, "requests": 2, "candidates": 10, "k": 3, "threads": 1, "isa": "avx2", "precision": "fp32",
      "nanoseconds": 40000, "phases": {"checks": 400, "candidates": 36000, "top_k": 3600},
      "steps": [{"name": "layer", "op": "affine", "domain": "candidate", "calls": 8, "rows": 40, "flops": 80000,
                 "nanoseconds": 20000}]}"""
    profile = Profile.from_json(text)
    assert (profile.nanoseconds, profile.phases["candidates"]) == (10_000, 9_000)
    step = profile.steps[0]
    assert (step.calls, step.rows, step.flops, step.nanoseconds) == (2, 10, 20_000, 5_000)
    assert repr(profile).splitlines() == [
        "rank, best 3: 2 request(s), 10 candidates, 10.0 us (avx2, fp32, 1 thread(s), mean of 4)",
        "step        operator  domain     rows   us  predicted us  share  GFLOP/s",
        "checks                                 0.1                 1.0%",
        "candidates                             9.0                90.0%      2.2",
        "  layer     affine    candidate    10  5.0                50.0%      4.0",
        "top_k                                  0.9                 9.0%",
    ]


@pytest.mark.parametrize("k", [0, 5])
def test_of_a_ranker(ranker, k):
    profile = ranker.profile([101, 102], None, k=k, repeats=3, context={"place": "home"})
    assert (profile.requests, profile.candidates, profile.k, profile.repeats) == (2, 2 * N_ITEMS, k, 3)
    assert profile.isa == ranker.isa
    rows = {"request": 2, "candidate": 2 * N_ITEMS}
    assert [s.rows for s in profile.steps] == [rows[s.domain] for s in profile.steps]
    assert {s.domain for s in profile.steps} == set(rows)
    frame = pytest.importorskip("pandas").DataFrame(ranker.profile(101, ranker.items[:3]).to_pandas())
    assert list(frame) == ["step", "op", "domain", "calls", "rows", "flops", "nanoseconds", "predicted"]
    assert (frame["predicted"] > 0).all()
    assert set(frame["rows"]) == {1, 3}


def test_as_a_rich_table(ranker):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=140)
    console.print(ranker.profile(101, None, k=4))
    shown = console.file.getvalue()
    assert "rank, best 4: 1 request(s), 40 candidates" in shown
    assert "affine" in shown
