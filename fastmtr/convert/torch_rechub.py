"""Models of torch-rechub: names, vocabularies, padding and order come from the model's own features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastmtr.convert.registry import Conversion, Options
from fastmtr.convert.torch_export import convert_model as convert_torch
from fastmtr.convert.torch_export import convert_module
from fastmtr.errors import ConversionError

__all__ = ["convert_model"]

_SAMPLE_ROWS = 64
_ENTITIES = {
    "user_features": "user",
    "history_features": "user",
    "item_features": "item",
    "target_features": "item",
}
"""Attributes of models that say by themselves what their features are functions of."""


def convert_model(model: nn.Module, options: Options) -> Conversion:
    """The conversion of a model that takes a dict of features.

    A model of two towers gets the outputs ``user_vector`` and ``item_vector`` besides its score.
    """
    features = {feature.name: feature for _, feature in _features(model)}
    if not features:
        return convert_torch(model, options)
    name = type(model).__name__
    negatives = [feature.name for feature in getattr(model, "neg_item_feature", [])]
    served = {key: feature for key, feature in features.items() if key not in negatives}
    sample = (
        _drawn(served, name)
        if options.sample is None
        else {key: options.sample[key] for key in _given(served, options)}
    )
    inputs = options.inputs
    if inputs is None and options.schema is None and options.groups is None and options.items is None:
        inputs = _entities(model, served)
    padding = {k: f.padding_idx for k, f in served.items() if getattr(f, "padding_idx", None) is not None}
    two_towers = hasattr(model, "mode") and hasattr(model, "user_tower")
    module = _TwoTowers(model) if two_towers else model
    return convert_module(module, replace(options, sample=sample, inputs=inputs), name=name, padding=padding)


class _TwoTowers(nn.Module):
    """A matching model with its vectors among its outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Score, user vectors and item vectors."""
        vectors = {}
        for mode in ("user", "item"):
            self.model.mode = mode
            vectors[f"{mode}_vector"] = self.model(x)
        self.model.mode = None
        if hasattr(self.model, "neg_item_feature"):  # its own forward scores the negatives of training beside the item
            score = (vectors["user_vector"] * vectors["item_vector"]).sum(dim=1) / self.model.temperature
        else:
            score = self.model(x)
        return {"score": score, **vectors}


def _features(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every feature that the model holds, with the name of the attribute that holds it."""
    for attribute, value in vars(model).items():
        if isinstance(value, list | tuple):
            for each in value:
                if hasattr(each, "name") and hasattr(each, "embed_dim"):
                    yield attribute, each


def _given(features: dict[str, Any], options: Options) -> list[str]:
    missing = [name for name in features if name not in options.sample]
    if missing:
        raise ConversionError(f"the sample lacks the features {missing}; it has {list(options.sample)}")
    return list(features)


def _drawn(features: dict[str, Any], name: str) -> dict[str, Any]:
    """A random sample, where the features tell everything about their values."""
    rng = np.random.default_rng(0)
    sample: dict[str, Any] = {}
    for key, feature in features.items():
        kind = type(feature).__name__
        if kind == "SequenceFeature":
            raise ConversionError(
                f"converting this {name} needs sample=: its feature {key!r} is a sequence, and the model does not say "
                "how long. Pass some rows as the model takes them: a dict of arrays, this one of shape (N, length)"
            )
        if kind == "DenseFeature":
            sample[key] = rng.normal(size=(_SAMPLE_ROWS, feature.embed_dim)).astype(np.float32)
        else:
            sample[key] = rng.integers(0, feature.vocab_size, _SAMPLE_ROWS)
    return sample


def _entities(model: nn.Module, features: dict[str, Any]) -> dict[str, str]:
    """What the model itself says: towers of user and item, or a history and its target."""
    found = {f.name: _ENTITIES[a] for a, f in _features(model) if a in _ENTITIES and f.name in features}
    if "history_features" in vars(model):  # DIN: the others are the user's profile and the context
        found = {name: found.get(name, "user") for name in features}
    return found
