"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmtr.models.base import MultiTaskModel
from fastmtr.models.config import ModelConfig
from fastmtr.models.layers import InputLayer
from fastmtr.schema import Task

__all__ = ["MMoE", "mixture"]


def mixture(gate: nn.Module, x: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """``sum over e of softmax(gate(x))[e] * experts[e]``, ``[n, width of an expert]``."""
    weights = torch.softmax(gate(x), dim=1)
    return torch.bmm(weights.unsqueeze(1), torch.stack(list(experts), dim=1)).squeeze(1)


class MMoE(MultiTaskModel):
    """All tasks share the experts; each mixes them by a softmax gate of its own, which reads the input.

    References
    ----------
    Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018.
    """

    def __init__(self, inputs: InputLayer, tasks: Sequence[Task], config: ModelConfig) -> None:
        super().__init__(inputs, tasks, config)
        width = inputs.out_width
        self.experts = nn.ModuleList(self._mlp(width, config.expert) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts, bias=False) for _ in self.tasks)
        self.towers = self._towers(config.expert[-1])

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`MultiTaskModel`."""
        experts = [expert(x) for expert in self.experts]
        return [tower(mixture(gate, x, experts)) for gate, tower in zip(self.gates, self.towers, strict=True)]
