"""DeepCTR-Torch's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

import numpy as np
import pytest
from conversion_data import check_first_layers, check_scores, edge_rows

import fastmtr
from fastmtr.errors import ConversionError

deepctr_models = pytest.importorskip(
    "deepctr_models", reason="deepctr-torch, or requests, which it imports, is not installed"
)
INPUTS, MODELS, TASKS = deepctr_models.INPUTS, deepctr_models.MODELS, deepctr_models.TASKS
converted, trained = deepctr_models.converted, deepctr_models.trained


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    check_scores(converted(name))


@pytest.mark.parametrize("name", ["MMOE", "PLE", "DCN", "DeepFM"])
def test_first_layers_are_split(name: str) -> None:
    check_first_layers(converted(name).graph)


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
