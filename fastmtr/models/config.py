"""What a model is made of, as plain data: the ``[model]`` section of a configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from fastmtr.errors import ConfigError

__all__ = ["ActivationName", "ModelConfig", "ModelType", "TwoTowerConfig"]

ModelType = Literal["shared_bottom", "mmoe", "ple", "esmm"]
ActivationName = Literal["relu", "leaky_relu", "prelu", "elu", "sigmoid", "tanh", "silu", "gelu", "softplus"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Fraction = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
_Widths = tuple[_Positive, ...]


class TwoTowerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The retrieval head: a vector of the request and one of the item, whose dot product retrieves candidates.

    Parameters
    ----------
    dim : int
        Width of both vectors.
    hidden : tuple of int
        Hidden layers of each tower; empty for one linear layer.
    normalize : bool
        Scale both vectors to length one, so that the dot product is the cosine.
    temperature : float
        The dot product is divided by it in the training loss only.
    task : str, optional
        The task whose positives are the user-item pairs to retrieve; the first binary task when not given.
    weight : float
        Of the retrieval loss beside the ranking loss.
    """

    dim: _Positive = 32
    hidden: _Widths = (64,)
    normalize: bool = True
    temperature: Annotated[float, msgspec.Meta(gt=0.0)] = 0.1
    task: str | None = None
    weight: Annotated[float, msgspec.Meta(ge=0.0)] = 0.1

    def __post_init__(self) -> None:
        _refuse_below("two_tower.dim", self.dim, least=1)
        for width in self.hidden:
            _refuse_below("two_tower.hidden", width, least=1)
        if not self.temperature > 0.0:
            raise ConfigError(f"model: two_tower.temperature must be above 0, found {self.temperature}")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One multi-task model.

    Parameters
    ----------
    type : {"shared_bottom", "mmoe", "ple", "esmm"}
    bottom : tuple of int
        ``shared_bottom``: layers that all tasks share.
    experts : int
        ``mmoe``: number of experts.
    shared_experts, task_experts : int
        ``ple``: experts of all tasks, and experts of each task, at every level.
    levels : int
        ``ple``: extraction levels.
    expert : tuple of int
        ``mmoe`` and ``ple``: layers of an expert.
    tower : tuple of int
        Hidden layers of each task's tower; one linear layer of width one always follows.
    activation : str
        After every hidden layer.
    batch_norm : bool
        Between each hidden layer and its activation.
    dropout : float
        After every hidden activation, in training.
    embedding_std : float
        Standard deviation of the embeddings at the start.
    two_tower : TwoTowerConfig, optional
        Adds a retrieval head on the same embeddings.
    """

    type: ModelType = "mmoe"
    bottom: _Widths = (512, 256)
    experts: _Positive = 8
    shared_experts: _Positive = 2
    task_experts: _Positive = 2
    levels: _Positive = 2
    expert: _Widths = (256, 128)
    tower: _Widths = (64,)
    activation: ActivationName = "relu"
    batch_norm: bool = False
    dropout: _Fraction = 0.0
    embedding_std: Annotated[float, msgspec.Meta(gt=0.0)] = 0.01
    two_tower: TwoTowerConfig | None = None

    def __post_init__(self) -> None:
        for name in ("experts", "shared_experts", "task_experts", "levels"):
            _refuse_below(name, getattr(self, name), least=1)
        for name in ("bottom", "expert", "tower"):
            for width in getattr(self, name):
                _refuse_below(name, width, least=1)
        needed = {"shared_bottom": "bottom", "mmoe": "expert", "ple": "expert"}.get(self.type)
        if needed is not None and not getattr(self, needed):
            raise ConfigError(f"model: type {self.type!r} needs at least one layer in {needed!r}, found none")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model: dropout must be in [0, 1), found {self.dropout}")


def _refuse_below(name: str, found: int, *, least: int) -> None:
    if found < least:
        raise ConfigError(f"model: {name} must be at least {least}, found {found}")
