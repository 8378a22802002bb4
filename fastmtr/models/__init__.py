"""Multi-task models in PyTorch: SharedBottom, MMoE, PLE and ESMM, each with an optional two-tower retrieval head."""

from fastmtr.models.base import MultiTaskModel
from fastmtr.models.build import build_model
from fastmtr.models.config import ModelConfig, TwoTowerConfig
from fastmtr.models.esmm import ESMM
from fastmtr.models.layers import MLP, InputLayer, Rows
from fastmtr.models.mmoe import MMoE
from fastmtr.models.ple import PLE
from fastmtr.models.shared_bottom import SharedBottom
from fastmtr.models.two_tower import TwoTower

__all__ = [
    "ESMM",
    "MLP",
    "PLE",
    "InputLayer",
    "MMoE",
    "ModelConfig",
    "MultiTaskModel",
    "Rows",
    "SharedBottom",
    "TwoTower",
    "TwoTowerConfig",
    "build_model",
]
