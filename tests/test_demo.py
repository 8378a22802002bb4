"""fastmtr.demo: the packaged bundle with nothing else installed, and the whole way from a part of the packaged log."""

import subprocess
import sys

import numpy as np
import pytest

from fastmtr import demo
from fastmtr.errors import BundleError, FastMTRError
from fastmtr.ranker import Ranker
from fastmtr.reference import evaluate

# What a plain installation does not have.
BARE = """
import importlib.util, sys
ABSENT = {"faiss", "matplotlib", "pandas", "polars", "pyarrow", "rich", "scipy", "sklearn", "torch"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.partition(".")[0] in ABSENT else find_spec(name, *a)
from fastmtr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bare(*arguments):
    return subprocess.run(
        [sys.executable, "-P", "-c", BARE, *arguments], capture_output=True, text=True, encoding="utf-8"
    )


def test_plain_installation_shows_the_ready_bundle(tmp_path):
    done = bare("demo", "--html", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert "Ready bundle (torch, sklearn, pyarrow, rich not installed" in done.stdout
    for part in (
        "click on the test samples",
        "One model for all tasks",
        "NumPy, exact",
        "For a user never seen",
        "ranking",
    ):
        assert part in done.stdout, part
    assert "matplotlib is not installed" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--bundle", "x"], "training needs torch, sklearn, pyarrow, rich: pip install 'fastmtr[demo]'"),
        (["train", "kuairand", "--out", "x"], "this needs torch, which is not installed: pip install 'fastmtr[train]'"),
    ],
)
def test_plain_installation_says_what_training_needs(arguments, message, tmp_path):
    done = bare(*arguments)
    assert done.returncode == 1
    assert done.stderr == f"fastmtr: {message}\n"


def test_ready_bundle_scores_as_the_reference():
    ranker = Ranker.load(demo.ready_bundle())
    bundle = ranker.bundle
    rows = np.arange(0, ranker.n_items, 97)
    catalogue = bundle.catalogue
    assert catalogue is not None
    for user in ranker.users[:5].tolist():
        found = ranker.score(user, ranker.items[rows])
        request = bundle.users.packed.take(np.flatnonzero(ranker.users == user))
        want = evaluate(bundle.graph, {"request": request, "item": catalogue.packed.take(rows)})
        for task, scores in found.scores.items():
            np.testing.assert_allclose(scores, want[task].reshape(-1), atol=1e-5, err_msg=task)


def test_ready_bundle_is_small():
    files = list(demo.ready_bundle().iterdir())
    assert sum(file.stat().st_size for file in files) < 2.5e6


def test_whole_way_on_a_part_of_the_log(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="the demo trains")
    import dataclasses

    import pyarrow.compute as pc

    from fastmtr import datasets

    whole = datasets.kuairand()
    part = pc.less(pc.bit_wise_and(whole.log.column("user_id"), 7), 1)
    monkeypatch.setattr(datasets, "kuairand", lambda: dataclasses.replace(whole, log=whole.log.filter(part)))
    page, bundle = tmp_path / "page.html", tmp_path / "bundle"
    demo.run_demo(html=page, bundle=bundle, epochs=2)
    out = capsys.readouterr().out
    for part_of_output in (
        "exact duplicate",
        "logistic regression",
        "differ from torch's",
        "For user",
        "retrieval",
        "done in",
    ):
        assert part_of_output in out, part_of_output
    report = Ranker.load(bundle).bundle.report
    assert report["engine_difference"] < 1e-5
    auc = {model: tasks[0]["metrics"]["auc"] for model, tasks in report["quality"].items()}
    assert auc["mmoe"] > auc["item popularity"] > 0.5
    assert "</html>" in page.read_text(encoding="utf-8")
    with pytest.raises(BundleError, match="exists already"):
        demo.run_demo(bundle=bundle)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(FastMTRError, match=r"pip install 'fastmtr\[demo\]'"):
        demo.run_demo(seeds=3)
