"""DeepCTR-Torch's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from conversion_data import ENTITIES, LENGTH, edge_rows, few_steps, greatest_difference, impressions, vocabulary

import fastmtr
from fastmtr.compiler import compile_graph
from fastmtr.errors import ConversionError

pytest.importorskip("deepctr_torch", reason="deepctr-torch (and requests, which it imports) is not installed")

from deepctr_torch import models
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import multitask

torch.set_num_threads(1)
TASKS = ("click", "long_view")
INPUTS = {**ENTITIES, "hist_video_id": "user", "length": "user"}
HIDDEN: dict[str, Any] = {"dnn_hidden_units": (24, 16)}
TWO: dict[str, Any] = {"task_types": ["binary"] * 2, "task_names": list(TASKS)}


def sparse(name: str) -> SparseFeat:
    return SparseFeat(name, vocabulary(name), 8)


def columns(combiner: str = "mean") -> list[object]:
    ids = [sparse(name) for name in ("user_id", "tab", "hour", "video_id", "author_id")]
    own = SparseFeat("clicked", vocabulary("clicked"), 8)
    return [*ids, VarLenSparseFeat(own, LENGTH, combiner), DenseFeat("duration"), DenseFeat("numbers", 2)]


def din_columns() -> list[object]:
    history = SparseFeat("hist_video_id", vocabulary("clicked"), 8, embedding_name="video_id")
    sequence = VarLenSparseFeat(history, LENGTH, length_name="length")
    return [sparse("user_id"), sparse("video_id"), sequence, DenseFeat("duration")]


MODELS = {
    "SharedBottom": lambda: multitask.SharedBottom(columns(), dnn_use_bn=True, **TWO),
    "MMOE": lambda: multitask.MMOE(columns("max"), 3, (24, 16), (8,), (8,), dnn_use_bn=True, **TWO),
    "PLE": lambda: multitask.PLE(columns("sum"), 1, 2, 2, (24, 16), (8,), (8,), **TWO),
    "ESMM": lambda: multitask.ESMM(columns(), tower_dnn_hidden_units=(24, 16), task_names=list(TASKS)),
    "DeepFM": lambda: models.DeepFM(columns(), columns(), dnn_use_bn=True, **HIDDEN),
    "DCN": lambda: models.DCN(columns(), columns(), **HIDDEN),
    "DCN matrix": lambda: models.DCN(columns(), columns(), cross_parameterization="matrix", **HIDDEN),
    "xDeepFM": lambda: models.xDeepFM(columns(), columns(), cin_layer_size=(12, 8), **HIDDEN),
    "DIN": lambda: models.DIN(din_columns(), ["video_id"], att_hidden_size=(16, 8), **HIDDEN),
    "DIN softmax": lambda: models.DIN(
        din_columns(), ["video_id"], att_hidden_size=(12,), att_weight_normalization=True, **HIDDEN
    ),
    "AutoInt": lambda: models.AutoInt(columns(), columns(), att_layer_num=1, **HIDDEN),
    "FiBiNET": lambda: models.FiBiNET(columns(), columns(), **HIDDEN),
}


def matrix(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The columns in the model's order, as the library packs them."""
    named = {**arrays, "hist_video_id": arrays["clicked"], "length": arrays["clicked_length"]}
    blocks = [named[name].reshape(len(named[name]), -1) for name in model.feature_index]
    return np.concatenate(blocks, axis=1).astype(np.float32)


@lru_cache
def trained(name: str) -> torch.nn.Module:
    model = MODELS[name]()
    arrays, labels = impressions()
    with torch.no_grad():  # the library's initial weights are so small that little is learned in a few steps
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    few_steps(model, torch.from_numpy(matrix(model, arrays)), labels)
    return model


def converted(name: str) -> fastmtr.Conversion:
    model = trained(name)
    return fastmtr.convert(model, sample=matrix(model, edge_rows()), inputs=INPUTS)


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    conversion = converted(name)
    assert greatest_difference(conversion, conversion.sample) <= 1e-5
    one = {domain: packed.take([0]) for domain, packed in conversion.sample.items()}
    assert greatest_difference(conversion, one) <= 1e-5
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
