"""DeepCTR-Torch's models over the impressions of :mod:`conversion_data`: shared by the tests and the benchmark."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from conversion_data import ENTITIES, LENGTH, edge_rows, few_steps, impressions, vocabulary

import fastmtr

with mock.patch("threading.Thread.start"):  # it would ask the package index for a newer version of itself
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import multitask

__all__ = ["INPUTS", "MODELS", "TASKS", "converted", "matrix", "trained"]

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
    few_steps(model, torch.from_numpy(matrix(model, arrays)), labels)
    return model


def converted(name: str) -> fastmtr.Conversion:
    model = trained(name)
    return fastmtr.convert(model, sample=matrix(model, edge_rows()), inputs=INPUTS)
