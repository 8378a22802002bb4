"""Progressive layered extraction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastmtr.models.base import MultiTaskModel
from fastmtr.models.config import ModelConfig
from fastmtr.models.layers import MLP, InputLayer
from fastmtr.models.mmoe import mixture
from fastmtr.schema import Task

__all__ = ["PLE", "ExtractionLevel"]


class ExtractionLevel(nn.Module):
    """One level of customised gate control.

    Each task has experts that only it sees, beside shared ones. Its gate mixes the shared and its own; the shared gate,
    which the last level has no use for, mixes all. Gates and experts of a task read what the task got from the level
    before; those that are shared read what the shared gate gave.

    Parameters
    ----------
    width : int
        Columns of each input.
    n_tasks : int
    config : ModelConfig
    last : bool
        No level follows.
    """

    def __init__(self, width: int, n_tasks: int, *, config: ModelConfig, last: bool) -> None:
        super().__init__()

        def experts(n: int) -> nn.ModuleList:
            return nn.ModuleList(
                MLP(
                    width,
                    config.expert,
                    activation=config.activation,
                    batch_norm=config.batch_norm,
                    dropout=config.dropout,
                )
                for _ in range(n)
            )

        n_own, n_shared = config.task_experts, config.shared_experts
        self.shared_experts = experts(n_shared)
        self.task_experts = nn.ModuleList(experts(n_own) for _ in range(n_tasks))
        self.task_gates = nn.ModuleList(nn.Linear(width, n_shared + n_own, bias=False) for _ in range(n_tasks))
        self.shared_gate = None if last else nn.Linear(width, n_shared + n_own * n_tasks, bias=False)

    def forward(self, tasks: Sequence[Tensor], shared: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each task and the shared part pass on; the last level gives its shared input back."""
        common = [expert(shared) for expert in self.shared_experts]
        own = [[expert(x) for expert in experts] for x, experts in zip(tasks, _lists(self.task_experts), strict=True)]
        mixed = [mixture(gate, x, common + mine) for gate, x, mine in zip(self.task_gates, tasks, own, strict=True)]
        if self.shared_gate is None:
            return mixed, shared
        everything = common + [output for mine in own for output in mine]
        return mixed, mixture(self.shared_gate, shared, everything)


class PLE(MultiTaskModel):
    """Levels of shared and task-specific experts (customised gate control), then a tower a task.

    References
    ----------
    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020.
    """

    def __init__(self, inputs: InputLayer, tasks: Sequence[Task], config: ModelConfig) -> None:
        super().__init__(inputs, tasks, config)
        widths = [inputs.out_width] + [config.expert[-1]] * (config.levels - 1)
        self.levels = nn.ModuleList(
            ExtractionLevel(width, len(self.tasks), config=config, last=i == config.levels - 1)
            for i, width in enumerate(widths)
        )
        self.towers = self._towers(config.expert[-1])

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`MultiTaskModel`."""
        tasks, shared = [x] * len(self.tasks), x
        for level in self.levels:
            tasks, shared = level(tasks, shared)
        return [tower(mixed) for tower, mixed in zip(self.towers, tasks, strict=True)]


def _lists(of_lists: nn.ModuleList) -> list[nn.ModuleList]:
    return [each for each in of_lists if isinstance(each, nn.ModuleList)]
