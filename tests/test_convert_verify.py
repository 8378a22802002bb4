"""Every conversion is compared with its source, and refused where the engine's scores are not the model's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_inputs import SCHEMA, random_rows
from numpy.typing import NDArray
from test_convert import trained

import fastmtr
from fastmtr import reference
from fastmtr.bundle import open_bundle
from fastmtr.convert import Conversion, convert
from fastmtr.convert.examples import draw
from fastmtr.convert.guard import ModelWarning, suspicions
from fastmtr.convert.save import save
from fastmtr.convert.verify import VerificationError, verify
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import Graph, GraphBuilder, Input, Packed
from fastmtr.ranker import Ranker

INPUTS = (
    Input("user", "request", "ids", 0, 1, rows=8),
    Input("past", "request", "ids", 1, 4, rows=6, padding=0),
    Input("item", "item", "ids", 0, 1, rows=6),
    Input("price", "item", "dense", 0, 1),
)


def graph(*, bias: float = 0.0, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    g = GraphBuilder(INPUTS)
    table, users = g.weight("items", rng.normal(size=(6, 3))), g.weight("users", rng.normal(size=(8, 2)))
    parts = [g.embedding("user", users), g.embedding_bag("past", table), g.embedding("item", table), "price"]
    x = g.concat(parts, name="x")
    hidden = g.affine(x, w=g.weight("w", rng.normal(size=(5, 9))), activation="relu", name="hidden")
    logits = g.affine(hidden, w=g.weight("v", rng.normal(size=(2, 5))), b=g.weight("b", [bias, 0]), name="logits")
    p = g.activation(logits, "sigmoid", name="p")
    for i, task in enumerate(("click", "like")):
        g.output(task, g.slice(p, i, 1))
    return g.build()


@dataclass
class Other:
    """A source that computes another graph, or makes its scores worse."""

    graph: Graph
    spoil: Any = None
    name: str = "another graph"

    def score(self, packed: Mapping[Any, Packed]) -> dict[str, NDArray[Any]]:
        n = next(iter(packed.values())).n_rows
        found = {k: np.broadcast_to(v, (n, v.shape[1])) for k, v in reference.evaluate(self.graph, packed).items()}
        return found if self.spoil is None else self.spoil(found)

    def layers(self, packed: Mapping[Any, Packed]) -> dict[str, NDArray[Any]]:
        values = reference.evaluate_values(self.graph, packed)
        return {name: values[name] for name in ("x", "hidden", "logits")}


def same(**changes: Any) -> Conversion:
    return Conversion(graph(), Other(graph(), **changes))


def sample(n: int = 60) -> dict[Any, Packed]:
    return dict(draw(graph(), None, random=n).packed)


def test_a_conversion_that_agrees() -> None:
    report = verify(replace(same(), sample=sample(), notes=("noted",)))
    assert report.examples == {"sample": 65, "random": 64, "edge": 5}
    assert [o.name for o in report.outputs] == ["click", "like"]
    assert report.worst.engine < 1e-6
    assert all(o.reference == 0 for o in report.outputs)
    assert report.notes == ("noted",)
    assert report.layers == ()


def test_the_first_value_that_departs_is_named() -> None:
    with pytest.raises(VerificationError, match=r"differ .* by up to .*the first value that departs is 'logits'") as e:
        verify(Conversion(graph(), Other(graph(bias=0.01))))
    assert [each.value for each in e.value.report.layers] == ["x", "hidden", "logits"]
    assert e.value.report.first_departure is e.value.report.layers[-1]
    assert e.value.report.layers[1].difference == 0


def test_a_difference_within_the_tolerance_passes() -> None:
    slightly = Conversion(graph(), Other(graph(bias=1e-4)))
    assert 1e-6 < verify(slightly, tolerance=1e-4).worst.engine < 1e-4
    with pytest.raises(VerificationError, match="allowed: 1e-06"):
        verify(slightly, tolerance=1e-6)


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused() -> None:
    def mixed(found: dict[str, Any]) -> dict[str, Any]:
        return {name: values - values.mean() for name, values in found.items()}

    with pytest.raises(VerificationError, match="mixes the rows of a batch"):
        verify(same(spoil=mixed))


def test_examples_without_a_number_are_noted_not_compared() -> None:
    def holes(found: dict[str, Any]) -> dict[str, Any]:
        made = {name: values.copy() for name, values in found.items()}
        if len(made["click"]) > 1:
            made["click"][3] = np.nan
        return made

    assert verify(same(spoil=holes)).notes == (
        "output 'click' of the model itself is NaN or infinite for 1 of 69 examples",
    )
    with pytest.raises(ConversionError, match="'like' of the model itself is NaN or infinite for all"):
        verify(same(spoil=lambda found: {**found, "like": found["like"] * np.nan}))


def test_examples_have_the_edge_cases() -> None:
    ids, _ = draw(graph(), None, random=50).packed["request"]
    past = ids[:, 1:]
    assert (past == 0).all(axis=1).any()
    assert (past == 5).all(axis=1).any()
    assert (ids[:, 0] == 7).any()
    assert set((past != 0).sum(axis=1)) == {0, 1, 2, 3, 4}
    assert ((past != 0) == (np.arange(4) < (past != 0).sum(axis=1)[:, None])).mean() > 0.8  # ids may be 0 by chance
    given = sample(20)
    _, dense = draw(graph(), given, random=30).packed["item"]
    assert set(dense[:, 0]) == set(given["item"].dense[:, 0])


def test_a_bundle_with_its_report(tmp_path: Path) -> None:
    items, groups = np.arange(65) % 20, np.array([f"u{i % 7}" for i in range(65)])
    conversion = replace(same(), sample=sample())
    path = save(conversion, tmp_path / "bundle", items=items, groups=groups)
    bundle = open_bundle(path)
    assert bundle.metadata["conversion"]["examples"]["sample"] == 65
    assert bundle.metadata["model"] == "another graph"
    ranker = Ranker.load(path)
    scores = ranker.score("u3", items=[0, 19])
    last = {key: int(np.flatnonzero(items == key)[-1]) for key in (0, 19)}
    user = int(np.flatnonzero(groups == "u3")[-1])
    packed = conversion.sample
    assert packed is not None
    rows = {"request": packed["request"].take([user, user]), "item": packed["item"].take([last[0], last[19]])}
    expected = reference.evaluate(conversion.graph, rows)
    np.testing.assert_allclose(scores.values[:, 0], expected["click"][:, 0], atol=1e-6)
    with pytest.raises(SchemaError, match="one for each expected"):
        save(conversion, tmp_path / "other", items=items[:3])


def test_nothing_is_written_where_the_scores_differ(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        save(Conversion(graph(), Other(graph(bias=0.01))), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_convert_writes_a_bundle(tmp_path: Path) -> None:
    made = fastmtr.convert(trained("mmoe", batch_norm=True), schema=SCHEMA, out=tmp_path / "bundle")
    assert made == tmp_path / "bundle"
    assert open_bundle(made).metadata["conversion"]["source"] == "fastmtr MMoE"
    with pytest.raises(TypeError, match="only with out="):
        convert(trained("mmoe"), overwrite=True)


# ---- what is strange about a model -----------------------------------------------------------------------------------


def strange(**changes: Any) -> Graph:
    g = GraphBuilder(INPUTS)
    table = g.weight("items", changes.get("table", np.arange(18.0).reshape(6, 3)))
    x = g.embedding("item", table)
    ones, zeros = g.weight("ones", changes.get("var", np.ones(3))), g.weight("zeros", np.zeros(3))
    x = g.batch_norm(x, mean=zeros, var=ones, name="norm")
    p = g.activation(g.reduce(x, "mean"), "sigmoid")
    g.output("click", p)
    g.output("like", p)
    g.output("mood", g.activation(g.reduce(g.embedding("user", g.weight("users", np.eye(8))), "sum"), "sigmoid"))
    return g.build()


def test_untrained_parts_are_named() -> None:
    assert any("batch norm 'norm' has mean 0 and variance 1 exactly" in w for w in suspicions(strange()))
    assert not any("batch norm" in w for w in suspicions(strange(var=np.full(3, 1.5))))
    found = suspicions(strange(table=np.ones((6, 3))))
    assert any("embedding 'items' has the same values in all 6 rows" in w for w in found)
    assert not any("embedding" in w for w in suspicions(strange()))


def test_outputs_that_tell_nothing_are_named() -> None:
    packed = sample()
    scores = reference.evaluate(strange(), packed)
    found = suspicions(strange(), sample=packed, scores=scores)
    assert any("tasks 'click' and 'like' are the same" in w for w in found)
    assert any("task 'mood' is 0.731059 for every row" in w for w in found)
    assert any("task 'mood' reads nothing of the items" in w for w in found)
    assert suspicions(graph(), sample=packed, scores=reference.evaluate(graph(), packed)) == ()


def test_an_input_that_gives_the_label_away_is_named() -> None:
    packed = sample(200)
    price, user = packed["item"].dense[:, 0], packed["request"].ids[:, 0]
    fair = np.random.default_rng(0).integers(0, 2, len(price))
    labels = {"click": price > 0.3, "like": user % 2, "fair": fair}
    found = suspicions(graph(), sample=packed, labels=labels)
    assert [w.split(" for every")[0] for w in found] == [
        "input 'price' alone tells the label of task 'click'",
        "input 'user' alone tells the label of task 'like'",
    ]


def test_warnings_reach_the_user_and_the_bundle(tmp_path: Path) -> None:
    made = Conversion(strange(), Other(strange()), sample())
    with pytest.warns(ModelWarning) as caught:
        path = save(made, tmp_path / "bundle")
    kept = open_bundle(path).metadata["conversion"]["warnings"]
    assert [str(w.message) for w in caught] == kept
    assert len(kept) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(replace(same(), sample=sample()), tmp_path / "other")


def test_random_rows_of_a_model_with_every_kind_of_input() -> None:
    conversion = replace(convert(trained("ple", batch_norm=True)), sample=random_rows(30))
    assert verify(conversion).worst.engine < 2e-6
