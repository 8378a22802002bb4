"""DeepCTR-Torch's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

import numpy as np
import pytest
from conversion_data import edge_rows

import fastmtr
from fastmtr.compiler import compile_graph
from fastmtr.convert.verify import verify
from fastmtr.errors import ConversionError

deepctr_models = pytest.importorskip(
    "deepctr_models", reason="deepctr-torch, or requests, which it imports, is not installed"
)
INPUTS, MODELS, TASKS = deepctr_models.INPUTS, deepctr_models.MODELS, deepctr_models.TASKS
converted, trained = deepctr_models.converted, deepctr_models.trained


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    conversion = converted(name)
    assert verify(conversion).worst.engine <= 1e-5
    scores = conversion.source.score(conversion.sample)
    assert min(scores[t].std() for t in conversion.graph.tasks) > 1e-4, "the scores say something"


@pytest.mark.parametrize("name", ["MMOE", "PLE", "DCN", "DeepFM"])
def test_first_layers_are_split(name: str) -> None:
    plan = compile_graph(converted(name).graph, n_items=1000).plan
    request = [step for step in plan["steps"] if step["op"] == "affine" and step["domain"] == "request"]
    item = [step for step in plan["steps"] if step["op"] == "affine" and step["domain"] == "item"]
    assert request
    assert item


def test_names_come_from_the_model() -> None:
    conversion = converted("PLE")
    assert conversion.graph.tasks == TASKS
    inputs = {i.name: i for i in conversion.graph.inputs}
    assert inputs["clicked"].padding == 0
    assert (inputs["numbers"].kind, inputs["numbers"].width) == ("dense", 2)


def test_without_a_sample_or_from_arrays_by_name() -> None:
    model = trained("DeepFM")
    from_columns = fastmtr.convert(model, inputs=INPUTS)
    by_name = fastmtr.convert(model, inputs=INPUTS, sample=edge_rows())
    assert from_columns.graph.to_json() == by_name.graph.to_json()
    with pytest.raises(ConversionError, match="the sample lacks the features"):
        fastmtr.convert(model, inputs=INPUTS, sample={"tab": np.zeros(3)})
