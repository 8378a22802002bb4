"""fastmtr.cli: every command, its exit status, and what it says when something is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the commands are tested on a bundle that is trained here")
from small_project import CONFIG, write_project

import fastmtr.datasets
from fastmtr import _native, cli
from fastmtr.command_line import command_line
from fastmtr.demo import ready_bundle
from fastmtr.features import FeaturePipeline, read_features
from fastmtr.ranker import Ranker
from fastmtr.tables import read_table


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project):
    """The bundle and the page that train wrote."""
    out, html = project.parent / "bundle", project.parent / "report.html"
    assert cli.main(["train", str(project), "--out", str(out), "--html", str(html)]) == 0
    return out


def test_train(project, trained, capsys):
    ranker = Ranker.load(trained)
    assert ranker.tasks == ("click", "buy")
    assert ranker.n_items == 40
    report = ranker.bundle.report
    assert report["engine_difference"] <= 1e-5
    assert report["engine_rows"] > 300
    assert {"mmoe", "logistic regression", "item popularity"} <= report["quality"].keys()
    page = (project.parent / "report.html").read_text()
    assert "<h1>small</h1>" in page
    assert cli.main(["train", str(project), "--out", str(trained)]) == 1
    assert "exists already; pass --overwrite" in capsys.readouterr().err


def test_train_learns_what_is_there(trained):
    report = Ranker.load(trained).bundle.report
    auc = {name: tasks[0]["metrics"]["auc"] for name, tasks in report["quality"].items()}
    assert auc["mmoe"] > 0.6 > auc["item popularity"]


def test_train_is_reproducible(project, trained, tmp_path):
    assert cli.main(["train", str(project), "--out", str(tmp_path / "again")]) == 0
    for name in ("weights.safetensors", "plan.json", "features.json", "catalogue.safetensors", "users.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes(), name


def test_train_with_seeds(project, tmp_path, capsys):
    path = project.parent / "short.toml"
    path.write_text(CONFIG.replace("epochs = 3", "epochs = 1"))
    assert cli.main(["train", str(path), "--out", str(tmp_path / "b"), "--seeds", "2"]) == 0
    assert "One model for all tasks against one model a task" in capsys.readouterr().out
    effects = Ranker.load(tmp_path / "b").bundle.report["effects"]
    assert {e["task"] for e in effects} == {"click", "buy"}
    assert cli.main(["train", str(path), "--out", str(tmp_path / "c"), "--seeds", "1"]) == 2


def test_template_is_a_configuration(capsys):
    from fastmtr.config import parse_config

    assert cli.main(["train", "--template"]) == 0
    assert parse_config(capsys.readouterr().out).model.type == "mmoe"


def test_evaluate(project, trained, capsys):
    assert cli.main(["evaluate", str(trained), str(project), "--json"]) == 0
    found = {row["task"]: row for row in json.loads(capsys.readouterr().out)}
    for stored in Ranker.load(trained).bundle.report["quality"]["mmoe"]:
        for name in ("auc", "log_loss", "f1", "threshold"):
            assert found[stored["task"]][name] == pytest.approx(stored["metrics"][name], abs=1e-4), name
    assert cli.main(["evaluate", str(trained), str(project)]) == 0
    assert "click on the test samples" in capsys.readouterr().out


def test_evaluate_refuses_other_data(project, trained, tmp_path, capsys):
    for name in ("log.csv", "items.csv", "small.toml"):
        (tmp_path / name).write_text((project.parent / name).read_text())
    log = tmp_path / "log.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1200]) + "1,2,800000,1,0\n" * 3)
    assert cli.main(["evaluate", str(trained), str(tmp_path / "small.toml")]) == 1
    assert "are not those that this bundle was trained on" in capsys.readouterr().err


def test_compile_in_fewer_bits_tells_what_it_costs(project, trained, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = ["compile", str(trained), "--out", str(out), "--overwrite", "--item-precision", "int8"]
    arguments += ["--embedding-precision", "int4"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert re.search(r"wrote .*small: [0-9.]+ MiB, from [0-9.]+ MiB\nMemory: .* Of the first 10 .*% stay \(", told)
    assert cli.main([*arguments, "--samples", str(project)]) == 0
    told = capsys.readouterr().out
    assert "What the precision costs, on" in told
    assert re.search(r"click +auc +0\.[0-9]{4} +0\.[0-9]{4} +[+-]0\.[0-9]{5}", told)


def test_compile(trained, tmp_path, capsys):
    out = tmp_path / "lean"
    arguments = [
        "compile",
        str(trained),
        "--out",
        str(out),
        "--item-memory",
        "0",
        "--fusion",
        "sum",
        "--weight",
        "buy=2",
    ]
    assert cli.main(arguments) == 0
    old, new = Ranker.load(trained), Ranker.load(out)
    user = int(old.users[0])
    np.testing.assert_allclose(new.score(user, None).values, old.score(user, None).values, atol=1e-6)
    np.testing.assert_allclose(new.score(user, None).fused, 2 * old.score(user, None).scores["buy"], atol=1e-5)
    assert new.label(new.items[3]) == old.label(old.items[3])
    assert new.bundle.report == old.bundle.report
    assert cli.main(arguments) == 1
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert cli.main(["compile", str(trained), "--out", str(tmp_path / "x"), "--weight", "bye=2"]) == 2
    assert "there is no task 'bye'" in capsys.readouterr().err


def test_info(trained, capsys):
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["isa"]
    assert cli.main(["info", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["bundle"]
    assert found["n_items"] == 40
    assert found["model"].startswith("MMoE, 2 experts")
    assert cli.main(["info", str(trained)]) == 0
    assert "MMoE, 2 experts" in capsys.readouterr().out


def test_explain(trained, tmp_path, capsys):
    assert cli.main(["explain", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "request: once a request" in out
    assert "candidate: for every candidate" in out
    assert cli.main(["explain", str(trained), "--html", str(tmp_path / "e.html")]) == 0
    assert "<svg" in (tmp_path / "e.html").read_text()


def test_recommend(trained, capsys):
    ranker = Ranker.load(trained)
    user = int(ranker.users[3])
    assert cli.main(["recommend", str(trained), "--user", str(user), "--user", "999", "-k", "4", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    want = ranker.recommend([user, 999], k=4, exclude="seen")
    assert [line["items"] for line in lines] == [r.items.tolist() for r in want]
    assert [line["known_user"] for line in lines] == [True, False]
    assert cli.main(["recommend", str(trained), "--user", str(user), "-k", "3", "--with-seen", "--all"]) == 0
    assert re.search(r"thing \d+ of topic \d", capsys.readouterr().out)
    assert cli.main(["recommend", str(trained), "--user", "ann"]) == 2
    assert "whole numbers, found 'ann'" in capsys.readouterr().err


def test_bench(trained, capsys):
    assert cli.main(["bench", str(trained), "--n", "1", "30", "--calls", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["stage"] for each in found][:3] == ["score 1", "rank 1, best 1", "score 30"]
    assert all(0 < each["p50"] <= each["p99"] for each in found)
    assert cli.main(["bench", str(trained), "--n", "1", "--calls", "3"]) == 0
    assert "Latency of one request" in capsys.readouterr().out


def test_profile(trained, capsys):
    assert cli.main(["profile", str(trained), "--n", "30", "-k", "4", "--repeats", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["candidates"], found["k"], found["repeats"]) == (1, 30, 4, 3)
    assert list(found["phases"]) == ["checks", "lookup", "request", "candidates", "fusion", "top_k"]
    user = str(Ranker.load(trained).users[1])
    assert cli.main(["profile", str(trained), "--user", user, "-k", "0"]) == 0
    assert "score: 1 request(s), 512 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["info", "nowhere"], 1, "nowhere"),
        (["train", "nowhere.toml", "--out", "x"], 2, "nowhere.toml does not exist"),
        (["train", "kuairan", "--out", "x"], 2, "no data set is named 'kuairan'"),
        (["train"], 2, "needs a CONFIG and --out"),
        (["demo", "--seeds", "1"], 2, "at least 2 seeds"),
    ],
)
def test_errors_are_one_line(arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    error = capsys.readouterr().err
    assert re.match(r"fastmtr: [^\n]+\n$", error), error
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["bench"],
        ["recommend", "b", "--user", "1", "-k", "0"],
        ["compile", "b", "--out", "c", "--item-memory", "1X"],
        ["compile", "b", "--out", "c", "--weight", "click"],
        ["train", "--threads", "many"],
        ["demo", "--se", "3"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: fastmtr" in capsys.readouterr().err


def test_debug_shows_where(monkeypatch):
    monkeypatch.setenv("FASTMTR_DEBUG", "1")
    with pytest.raises(Exception, match="nowhere"):
        cli.main(["info", "nowhere"])


def test_unexpected_errors_are_named(monkeypatch, capsys):
    monkeypatch.setattr("fastmtr.info", lambda: 1 / 0)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err.startswith("fastmtr: ZeroDivisionError: division by zero (set FASTMTR_DEBUG=1")


def test_transform_and_check(project, trained, tmp_path, capsys):
    log, out = project.parent / "log.csv", tmp_path / "features"
    arguments = ["transform", str(trained), str(log), "--out", str(out), "--domain", "request", "--missing", "null"]
    arguments += ["--keep", "click", "--batch-rows", "1000"]
    assert cli.main(arguments) == 0
    assert "features: 2,500 rows of request in 3 files" in capsys.readouterr().out
    files = read_features(out)
    pipeline = FeaturePipeline.from_state(Ranker.load(trained).schema, *Ranker.load(trained).bundle.pipeline_state)
    expected = pipeline.transform("request", read_table(log), missing="null")
    assert np.concatenate([b.packed["request"].ids for b in files]).tobytes() == expected.ids.tobytes()
    import torch

    # The engine and torch take what is mapped as it is.
    packed = files.batch(0).packed["request"]
    assert torch.from_numpy(packed.ids).data_ptr() == packed.ids.ctypes.data
    items = Ranker.load(trained).items[:1].repeat(packed.n_rows)
    session = _native.Session(_native.Model(str(trained)))
    scores, _ = session.score(packed.ids, packed.dense, np.arange(packed.n_rows + 1), items)
    assert scores.tobytes() == session.score(*expected.take(range(1000)), np.arange(1001), items)[0].tobytes()

    assert cli.main([*arguments, "--keep", "buy"]) == 1
    assert "differs in columns" in capsys.readouterr().err

    page = tmp_path / "check.html"
    assert cli.main(["check", str(trained), str(log), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert "no column for topic" in " ".join(told.lower().split())
    assert "<h1>Features of " in page.read_text()
    assert cli.main(["check", str(trained), str(log), "--json", "--strict"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["absent"]) == (False, ["topic"])
    assert {c["name"] for c in found["columns"]} == {"user", "hour", "item"}


def test_check_of_the_ready_bundle(capsys):
    """It keeps what its fitted rows were like, so that other users can be set against them."""
    users = Path(fastmtr.datasets.__file__).parent / "kuairand_pure" / "users.parquet"
    assert cli.main(["check", str(ready_bundle()), str(users), "--json"]) == 0
    columns = {c["name"]: c for c in json.loads(capsys.readouterr().out)["columns"]}
    assert columns["user_active_degree"]["verdict"] == "ok"
    assert "more unseen values" in columns["user_id"]["reasons"]  # these are all users, of whom training saw some


def test_a_ranker_counts_what_its_requests_were_like(trained):
    ranker = Ranker.load(trained)
    assert ranker.check_features().columns == []
    for key in range(1000, 1010):
        ranker.rank({"user": key, "time": None}, None, k=1)
    counts = ranker.feature_counts()["request"]
    assert counts["user"] == {"rows": 10, "nulls": 0, "values": 10, "unseen": 10}
    assert counts["hour"]["nulls"] == 10
    found = {c.name: c.reasons for c in ranker.check_features().columns}
    assert found["user"] == ["more unseen values"]
    assert found["hour"] == ["more nulls"]


def test_what_is_not_installed_is_named(monkeypatch, capsys, project, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["train", str(project), "--out", str(tmp_path / "b")]) == 1
    assert "this needs torch, which is not installed: pip install 'fastmtr[train]'" in capsys.readouterr().err


def test_closed_pipe(trained):
    code = "import sys; from fastmtr.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "info", str(trained)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("0", 0), ("512", 512), ("64K", 65536), ("2m", 2 << 20), ("1G", 1 << 30)]
)
def test_item_memory(text, value):
    options = command_line().parse_args(["compile", "a", "--out", "b", "--item-memory", text])
    assert options.item_memory == value
