"""Shared bottom: one trunk, one tower a task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmtr.models.base import MultiTaskModel
from fastmtr.models.config import ModelConfig
from fastmtr.models.layers import InputLayer
from fastmtr.schema import Task

__all__ = ["SharedBottom"]


class SharedBottom(MultiTaskModel):
    """All tasks share the bottom layers; each has a tower of its own.

    References
    ----------
    Caruana, "Multitask Learning", Machine Learning 28, 1997.
    """

    def __init__(self, inputs: InputLayer, tasks: Sequence[Task], config: ModelConfig) -> None:
        super().__init__(inputs, tasks, config)
        self.bottom = self._mlp(inputs.out_width, config.bottom)
        self.towers = self._towers(self.bottom.out_width)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`MultiTaskModel`."""
        shared = self.bottom(x)
        return [tower(shared) for tower in self.towers]
