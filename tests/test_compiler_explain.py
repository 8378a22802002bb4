"""What ``explain`` says about a plan."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from cases import MODELS, model_graph
from fastmtr.compiler import Explanation, compile_graph, explain
from fastmtr.compiler.costs import Machine
from fastmtr.graph import GraphBuilder, Input


def explained(kind: str, **arguments: object) -> Explanation:
    graph = model_graph(kind)
    compiled = compile_graph(graph, **arguments)  # type: ignore[arg-type]
    return explain(compiled.plan, {name: w.shape for name, w in compiled.weights.items()}, n_items=1000, graph=graph)


def test_flops_and_bytes_are_counted() -> None:
    g = GraphBuilder([Input("user", "request", "dense", 0, 20), Input("item", "item", "dense", 0, 30)])
    w, b = g.weight("w", [[1.0] * 50] * 8), g.weight("b", [0.0] * 8)
    hidden = g.affine(g.concat(["user", "item"]), w=w, b=b, activation="relu", name="hidden")
    g.output("click", g.affine(hidden, w=g.weight("v", [[1.0] * 8]), name="head"))
    graph = g.build()
    compiled = compile_graph(graph, n_items=1000)
    shapes = {name: w.shape for name, w in compiled.weights.items()}
    found = explain(compiled.plan, shapes, n_items=1000, graph=graph)
    assert found.flops("request") == 2 * 8 * 20 + 8
    assert found.flops("item") == 2 * 8 * 30
    assert found.flops("candidate") == 8 * 2 + 8 + 2 * 8
    assert found.model_flops == 2 * 8 * 50 + 8 + 8 + 2 * 8
    assert f"Without factoring, the model as it was: {found.model_flops} a candidate, 20.80 times" in str(found)
    assert "Without factoring" not in str(explain(compiled.plan, shapes))
    assert found.stored_bytes == 8 * 4
    assert found.input_bytes == 30 * 4
    by_name = {s.name: s for s in found.steps}
    assert by_name["hidden"].table_bytes == 8 * 4
    assert by_name["hidden@item"].weight_bytes == 8 * 30 * 4
    assert [found.steps[i].name for i in by_name["head"].reads] == ["hidden"]
    assert "152,000 for 1,000 items" in found.summary()[-1]


def test_only_what_the_tasks_need_is_in_the_totals() -> None:
    found = explained("two_tower", n_items=1000)
    assert all(s.for_tasks for s in found.steps)
    g = GraphBuilder([Input("user", "request", "dense", 0, 2)])
    g.output("click", g.reduce("user", "sum"))
    g.output("user_vector", g.activation("user", "tanh"), role="request")
    found = explain(compile_graph(g.build()).plan, {}, graph=g.build())
    assert found.flops("request") == found.model_flops == 2
    assert sum(s.flops for s in found.steps) > 2


@pytest.mark.parametrize("item_memory", ["auto", 0])
@pytest.mark.parametrize("kind", MODELS)
def test_each_product_of_candidates_has_a_reason(kind: str, item_memory: object) -> None:
    for s in explained(kind, n_items=1000, item_memory=item_memory).steps:
        if s.domain == "candidate" and s.op == "affine":
            assert re.match(r"split: |not split: |item part not stored: |item value, not stored: .", s.remark), s


def test_predicted_times() -> None:
    found = explained("mmoe", n_items=1000)
    few, many = found.predict(32), found.predict(512)
    for step, a, b in zip(found.steps, few, many, strict=True):
        assert (a, b) == (0, 0) if step.domain == "item" else 0 < a <= b, step
        assert step.domain != "request" or a == b
        assert step.domain != "candidate" or b == pytest.approx(16 * a)  # tiles of 32
    usual = Machine()
    rates = {name: 2 * rate for name, rate in usual._asdict().items() if name.endswith(("flops", "bytes"))}
    twice = usual._replace(**rates, step_seconds=usual.step_seconds / 2)
    np.testing.assert_allclose(found.predict(512, machine=twice), np.array(many) / 2)


def test_text_and_page_have_every_step() -> None:
    found = explained("mmoe", n_items=1000)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found)
    for text in (str(found), console.export_text()):
        for domain in ("request", "item", "candidate"):
            assert f"{domain}: " in text
        assert "not split: its input has candidate values" in " ".join(text.split())
        assert "Without factoring" in text
    page = found.to_html()
    parser = _Counter()
    parser.feed(page)
    assert parser.count["rect"] == len(found.steps)
    assert parser.count["path"] == sum(len(s.reads) for s in found.steps)
    assert parser.count["tr"] == len(found.steps) + 3
    assert "http" not in page.replace("http-equiv", "")


def test_names_are_escaped_in_the_page() -> None:
    g = GraphBuilder([Input("<script>", "request", "dense", 0, 2)])
    g.output("click", g.reduce("<script>", "sum", name="<b>&"))
    page = explain(compile_graph(g.build()).plan, {}).to_html()
    assert "<script>" not in page
    assert "&lt;b&gt;&amp;" in page


class _Counter(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
