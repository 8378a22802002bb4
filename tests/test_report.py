"""fastmtr.evaluation.report and .html: what is saved, shown and drawn."""

import base64
import json
import re
import subprocess
import sys

import msgspec
import pytest

from fastmtr.evaluation import html
from fastmtr.evaluation.report import (
    Correlation,
    Curve,
    Effect,
    Epoch,
    Latency,
    Quality,
    Report,
    Split,
    Table,
    latency_table,
    show,
)
from fastmtr.features.quality import ColumnCheck, FeatureCheck

EVIL = '<script>alert("x")</script>&$\\frac$'


def make_report(task="click"):
    metrics = {"n": 9.0, "base_rate": 0.25, "auc": 0.75, "gauc": None, "log_loss": 0.5, "threshold": 0.3, "f1": 0.4}
    watch = Quality("watch", "regression", {"rmse": 1.5, "r2": None})
    return Report(
        title=f"{task} report",
        model=f"{task} model",
        parameters=12345,
        main="ours",
        cleaning=[(f"{task} is null", 3, 1000)],
        rules={task: f"{task} >= 1", "watch": "log(1 + play)"},
        splits=[Split("train", 700, 50, 40, {task: 0.25, "watch": None}), Split("test", 300, 30, 35, {task: 0.3})],
        quality={
            "ours": [Quality(task, "binary", metrics, (0.7, 0.8)), watch],
            f"{task} baseline": [Quality(task, "binary", metrics | {"auc": 0.6}), watch],
        },
        curves={task: Curve([0.0, 0.5, 1.0], [0.0, 0.8, 1.0], [0.1, 0.4], [0.0, 0.5])},
        correlation=Correlation([task, "watch"], [[1.0, 0.2], [0.2, 1.0]], [[1.0, None], [None, 1.0]]),
        epochs=[
            Epoch(1, 0.9, {task: 0.7, "watch": 0.1}, 0.4, 1.0),
            Epoch(2, None, {task: None, "watch": 0.2}, None, 1.0),
        ],
        best_epoch=1,
        retrieval={
            "retrieval": {"users": 20.0, "recall@50": 0.25, "hit@50": 0.5},
            f"{task} popular": {"users": 20.0, "recall@50": None},
        },
        retrieval_task=task,
        effects=[
            Effect(task, "auc", 0.76, 0.75, 0.01, 0.005, 0.015),
            Effect(task, "log_loss", 0.5, 0.49, 0.01, 0.005, 0.015),
            Effect("watch", "rmse", 1.5, 1.5, 0.0, -0.1, 0.1),
        ],
        seeds=3,
        engine_rows=300,
        engine_difference=2e-7,
        features=FeatureCheck(
            columns=[
                ColumnCheck(
                    name=f"{task} column",
                    kind="category",
                    rows=300,
                    nulls=0.0,
                    fitted_nulls=0.1,
                    index=0.3,
                    chance=0.02,
                    labels=[task, "others", "unseen"],
                    fitted=[0.5, 0.4, 0.1],
                    found=[0.2, 0.7, 0.1],
                    verdict="drift",
                    reasons=[f"{task} moved"],
                )
            ]
        ),
    )


def test_json_there_and_back():
    report = make_report()
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    with pytest.raises(msgspec.ValidationError):
        Report.from_json({"title": "else"})


def test_tables():
    tables = {table.title: table for table in make_report().tables()}
    quality = tables["click on the test samples (base rate 0.2500)"]
    assert quality.columns == ["model", "auc", "gauc", "log_loss", "f1"]
    assert quality.rows[0] == ["ours", "0.7500 [0.700, 0.800]", "-", "0.5000", "0.4000"]
    assert quality.strong == 0
    assert tables["watch on the test samples"].columns == ["model", "rmse", "r2"]
    effects = next(table for title, table in tables.items() if title.startswith("One model"))
    assert [row[-1] for row in effects.rows] == ["better", "worse", "not resolved"]
    assert "3 seeds" in effects.note
    found = next(table for title, table in tables.items() if title.startswith("The first k"))
    assert "(20 users)" in found.title
    assert found.rows == [["50", "retrieval", "0.2500", "-", "0.5000"], ["50", "click popular", "-", "-", "-"]]
    assert tables["Cleaning"].rows == [["click is null", "3", "1,000"]]
    checked = next(table for title, table in tables.items() if title.startswith("Features of the test samples"))
    assert checked.rows[0][:2] == ["click column", "click moved"]


def test_table_as_text():
    text = str(Table("data", "Things", ["name", "n"], [["a", "10"], ["long", "9"]], "a note"))
    assert text == "Things\nname   n\na     10\nlong   9\na note"


def test_markup_in_data_is_not_read_by_rich():
    console_module = pytest.importorskip("rich.console")
    console = console_module.Console(width=100, record=True)
    with console.capture() as captured:
        console.print(Table("data", "[bold]t[/bold]", ["[red]c"], [["[/nonsense]"]], "[link]"))
    for part in ("[bold]t[/bold]", "[red]c", "[/nonsense]", "[link]"):
        assert part in captured.get()


def test_latency():
    found = Latency.of("ranking", [1e-6 * i for i in range(101)])
    assert (found.calls, round(found.p50), round(found.p90), round(found.p99)) == (101, 50, 90, 99)
    assert latency_table([found], title="t").rows == [["ranking", "50", "90", "99", "101"]]


def test_show():
    assert [show(0.12345, 3), show(None, 3), show(float("nan"), 3)] == ["0.123", "-", "-"]


def test_page_loads_nothing_and_escapes_everything(tmp_path):
    latency = [Latency(f"features {EVIL}", 5, 1.0, 2.0, 3.0), Latency("total", 5, 1500.0, 2.0, 3.0)]
    table = Table("lists", f"For {EVIL}", ["", EVIL], [["1", EVIL]], EVIL, text=2)
    path = tmp_path / "page.html"
    html.write_html(
        path, make_report(EVIL), latency=latency, latency_note=EVIL, rankings=[table], explain=f"<p>{EVIL}</p>"
    )
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("alert(") > 10
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z/]""", re.sub(r'srcdoc="[^"]*"', "", page), re.I)
    assert "@import" not in page
    assert page.startswith("<!doctype html>")
    for tag in ("table", "div", "html", "body", "iframe"):
        assert page.count(f"<{tag}") == page.count(f"</{tag}>"), tag
    for code in re.findall(r"base64,([^\"]+)", page):
        svg = base64.b64decode(code).decode()
        assert "<script" not in svg
        assert not re.search(r"""(href|src)\s*=\s*["'](?!#|data:)""", svg)


def test_plots_are_drawn_and_the_same_each_time():
    pytest.importorskip("matplotlib")
    page = html.render(make_report())
    assert page.count("<img ") == 6
    assert page == html.render(make_report())
    words = re.findall(r'<img alt="([^"]+)"', page)
    assert words[0] == "ROC and calibration curves of each task"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    page = html.render(make_report())
    assert "<img" not in page
    assert "matplotlib is not installed" in page


def test_report_needs_neither_sklearn_nor_torch():
    code = (
        "import sys\n"
        "for name in ('sklearn', 'torch', 'scipy', 'matplotlib', 'rich', 'pyarrow'): sys.modules[name] = None\n"
        "import fastmtr.evaluation.report, fastmtr.evaluation.html"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
