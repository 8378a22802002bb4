"""Entire space multi-task model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastmtr.errors import ConfigError
from fastmtr.models.base import MultiTaskModel
from fastmtr.models.config import ModelConfig
from fastmtr.models.layers import InputLayer
from fastmtr.schema import Task

__all__ = ["ESMM", "product_logit"]


class ESMM(MultiTaskModel):
    """Each task's tower gives the probability that it happens *given that the task it depends on did*; the output is
    the product along that chain (click-through and conversion: pCTCVR = pCTR x pCVR).

    So every tower is trained on all impressions, through the product, and never on the biased sample of those where the
    first task happened. Towers read the shared embeddings directly, as in the paper. A task without dependence is a
    plain tower.

    Attributes
    ----------
    chains : tuple of tuple of int
        For each task, the positions of the towers that its probability multiplies, first cause first.

    Raises
    ------
    ConfigError
        A task depends on one that the model does not predict, or a regression is part of a chain.

    References
    ----------
    Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate",
    SIGIR 2018.
    """

    def __init__(self, inputs: InputLayer, tasks: Sequence[Task], config: ModelConfig) -> None:
        super().__init__(inputs, tasks, config)
        self.chains = tuple(_chain(i, self.tasks) for i in range(len(self.tasks)))
        self.towers = self._towers(inputs.out_width)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`MultiTaskModel`: the logit of the product, for a task with dependence."""
        own = [tower(x) for tower in self.towers]
        return [own[c[0]] if len(c) == 1 else product_logit([own[i] for i in c]) for c in self.chains]


def product_logit(logits: Sequence[Tensor]) -> Tensor:
    """The logit of the product of the probabilities that have these logits, without leaving the log domain."""
    log_p = torch.stack([functional.logsigmoid(z) for z in logits]).sum(dim=0)
    # log_p - log(1 - p). expm1 keeps 1 - p exact as p nears 1; p that rounds to 1 would give log(0).
    tiny = torch.finfo(log_p.dtype).tiny
    return log_p - torch.log(torch.clamp(-torch.expm1(log_p), min=tiny))


def _chain(position: int, tasks: Sequence[Task]) -> tuple[int, ...]:
    names = [t.name for t in tasks]
    chain = [position]
    while (cause := tasks[chain[0]].depends_on) is not None:
        if cause not in names:
            raise ConfigError(f"esmm: task {tasks[chain[0]].name!r} depends on {cause!r}, which is not among {names}")
        chain.insert(0, names.index(cause))
    if len(chain) > 1:
        for i in chain:
            if tasks[i].kind != "binary":
                raise ConfigError(
                    f"esmm: task {tasks[position].name!r} multiplies probabilities along its dependences, but "
                    f"{tasks[i].name!r} is a {tasks[i].kind}; only binary tasks can depend on each other"
                )
    return tuple(chain)
