"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastmtr.schema import Task

__all__ = ["MultiTaskLoss", "Weighting", "in_batch_softmax"]

Weighting = Literal["fixed", "uncertainty"]


class MultiTaskLoss(nn.Module):
    """The weighted sum of the tasks' losses: binary cross-entropy on logits, squared error on values.

    Parameters
    ----------
    tasks : sequence of Task
        Their ``weight`` multiplies each loss.
    weighting : {"fixed", "uncertainty"}
        "uncertainty" learns one log variance s for each task besides: ``exp(-s) * loss + s / 2`` for binary tasks,
        ``exp(-s) * loss / 2 + s / 2`` for regression.

    References
    ----------
    Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
    CVPR 2018.
    """

    def __init__(self, tasks: Sequence[Task], *, weighting: Weighting = "fixed") -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks))) if weighting == "uncertainty" else None

    def forward(self, predictions: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The total, and each task's mean loss ``[tasks]`` before weighting.

        Parameters
        ----------
        predictions : mapping of task to Tensor of shape (n,)
            Logits or values, as the model's ``forward`` gives them.
        labels : Tensor of shape (n, tasks)
            NaN where a label is unknown; that row does not count for that task.
        """
        each = torch.stack([self._one(t, predictions[t.name], labels[:, i]) for i, t in enumerate(self.tasks)])
        weights = each.new_tensor([t.weight for t in self.tasks])
        if self.log_variance is None:
            return (weights * each).sum(), each.detach()
        halves = each.new_tensor([1.0 if t.kind == "binary" else 0.5 for t in self.tasks])
        weighed = halves * torch.exp(-self.log_variance) * each + self.log_variance / 2
        return (weights * weighed).sum(), each.detach()

    @staticmethod
    def _one(task: Task, prediction: Tensor, label: Tensor) -> Tensor:
        known = ~torch.isnan(label)
        target = torch.where(known, label, torch.zeros_like(label))
        if task.kind == "binary":
            losses = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        else:
            losses = functional.mse_loss(prediction, target, reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)


def in_batch_softmax(
    users: Tensor,
    items: Tensor,
    *,
    user_rows: Tensor,
    item_rows: Tensor,
    log_q: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Sampled softmax over the items of the batch, corrected for how often each is sampled.

    Row i of ``users`` chose row i of ``items``; the other items of the batch are its negatives. Popular items are
    sampled more often, so ``log q`` is taken from their logits. A negative that is the positive's item, or another
    choice of the same user, is left out.

    Parameters
    ----------
    users, items : Tensor of shape (n, dim)
    user_rows, item_rows : Tensor of shape (n,)
        Which user and item each row is.
    log_q : Tensor of shape (n,)
        Logarithm of the probability that a row of the batch holds this item.
    temperature : float
        Divides the dot products.

    Returns
    -------
    Tensor
        The mean cross-entropy; zero for an empty batch.

    References
    ----------
    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019.
    """
    n = users.shape[0]
    if n == 0:
        return users.sum() * 0.0
    logits = users @ items.T / temperature - log_q
    same = (item_rows.unsqueeze(0) == item_rows.unsqueeze(1)) | (user_rows.unsqueeze(0) == user_rows.unsqueeze(1))
    same.fill_diagonal_(False)
    return functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(n, device=users.device))
