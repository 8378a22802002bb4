"""From a configuration to a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmtr.errors import SchemaError
from fastmtr.graph import Input
from fastmtr.models.base import MultiTaskModel
from fastmtr.models.config import ModelConfig, ModelType
from fastmtr.models.esmm import ESMM
from fastmtr.models.layers import InputLayer
from fastmtr.models.mmoe import MMoE
from fastmtr.models.ple import PLE
from fastmtr.models.shared_bottom import SharedBottom
from fastmtr.schema import Schema

__all__ = ["MODELS", "build_model"]

MODELS: dict[ModelType, type[MultiTaskModel]] = {"shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "esmm": ESMM}


def build_model(
    config: ModelConfig,
    inputs: Sequence[Input],
    *,
    schema: Schema,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
) -> MultiTaskModel:
    """A model with fresh weights.

    Parameters
    ----------
    config : ModelConfig
    inputs : sequence of Input
        The packed inputs, as ``FeaturePipeline.inputs`` gives them.
    schema : Schema
        Its features describe the inputs; its tasks are what the model predicts.
    tasks : sequence of str, optional
        Predict only these tasks (a single-task model is a model with one).
    seed : int
        Of the initial weights. The global random state is left as it was.

    Raises
    ------
    SchemaError, ConfigError
        Inputs, schema and configuration do not fit together.
    """
    if not inputs:
        raise SchemaError("a model needs at least one input, found none")
    chosen = schema.tasks if tasks is None else tuple(schema.task(name) for name in tasks)
    if not chosen:
        raise SchemaError(f"a model needs at least one task; the schema has {[t.name for t in schema.tasks]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = InputLayer(inputs, schema, std=config.embedding_std)
        return MODELS[config.type](layer, chosen, config)
