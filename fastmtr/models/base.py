"""What all multi-task models have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmtr.errors import ConfigError
from fastmtr.models.config import ModelConfig
from fastmtr.models.layers import MLP, InputLayer, Rows
from fastmtr.models.two_tower import TwoTower
from fastmtr.schema import Task

__all__ = ["MultiTaskModel"]


class MultiTaskModel(nn.Module, ABC):
    """A model that reads the joined inputs of a user, a context and an item, and gives one number for each task.

    Subclasses define :meth:`task_logits`; each defines ``towers``, one MLP of width one for each task.

    Parameters
    ----------
    inputs : InputLayer
    tasks : sequence of Task
        What is predicted, in the order of the outputs.
    config : ModelConfig

    Attributes
    ----------
    inputs : InputLayer
    tasks : tuple of Task
    two_tower : TwoTower or None
        The retrieval head, if the configuration asks for one.
    """

    towers: nn.ModuleList

    def __init__(self, inputs: InputLayer, tasks: Sequence[Task], config: ModelConfig) -> None:
        super().__init__()
        self.inputs = inputs
        self.tasks = tuple(tasks)
        self.config = config
        self.two_tower: TwoTower | None = None
        if config.two_tower is not None:
            self.two_tower = TwoTower(
                inputs.widths["request"],
                inputs.widths["item"],
                config=config.two_tower,
                activation=config.activation,
                batch_norm=config.batch_norm,
                dropout=config.dropout,
            )

    @abstractmethod
    def task_logits(self, x: Tensor) -> list[Tensor]:
        """One column ``[n, 1]`` a task from the joined inputs ``[n, width]``."""

    def forward(self, request: Rows, item: Rows, candidate: Rows | None = None) -> dict[str, Tensor]:
        """Logits of binary tasks and values of regression tasks.

        Parameters
        ----------
        request, item, candidate : (ids, dense)
            Packed inputs of each domain with n rows, or with one row that stands for all.

        Returns
        -------
        dict of str to Tensor of shape (n,)
        """
        columns = self.task_logits(self.inputs(request, item, candidate))
        return {task.name: column.squeeze(1) for task, column in zip(self.tasks, columns, strict=True)}

    def probabilities(self, request: Rows, item: Rows, candidate: Rows | None = None) -> dict[str, Tensor]:
        """As :meth:`forward`, with the logits of binary tasks turned into probabilities."""
        logits = self(request, item, candidate)
        return {t.name: torch.sigmoid(logits[t.name]) if t.kind == "binary" else logits[t.name] for t in self.tasks}

    def user_vector(self, request: Rows) -> Tensor:
        """The retrieval head's vectors ``[n, dim]`` of requests; ConfigError if the model has no such head."""
        return self._head().user_vector(self.inputs.embed("request", request))

    def item_vector(self, item: Rows) -> Tensor:
        """The retrieval head's vectors ``[n, dim]`` of items; ConfigError if the model has no such head."""
        return self._head().item_vector(self.inputs.embed("item", item))

    def _head(self) -> TwoTower:
        if self.two_tower is None:
            raise ConfigError("the model has no retrieval head; set [model.two_tower] and train it again")
        return self.two_tower

    def _mlp(self, in_width: int, hidden: Sequence[int], *, out: int | None = None) -> MLP:
        c = self.config
        return MLP(in_width, hidden, out=out, activation=c.activation, batch_norm=c.batch_norm, dropout=c.dropout)

    def _towers(self, in_width: int) -> nn.ModuleList:
        return nn.ModuleList(self._mlp(in_width, self.config.tower, out=1) for _ in self.tasks)
