"""The retrieval head: two towers on the embeddings of the ranking model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fastmtr.errors import SchemaError
from fastmtr.models.config import ActivationName, TwoTowerConfig
from fastmtr.models.layers import MLP

__all__ = ["TwoTower"]


class TwoTower(nn.Module):
    """A user tower on the request's inputs and an item tower on the item's; their dot product ranks the catalogue.

    Both read the embeddings that the ranking model trains. The loss is
    :func:`fastmtr.training.losses.in_batch_softmax`.

    References
    ----------
    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019.
    """

    def __init__(
        self,
        request_width: int,
        item_width: int,
        *,
        config: TwoTowerConfig,
        activation: ActivationName = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for domain, width in (("request", request_width), ("item", item_width)):
            if width == 0:
                raise SchemaError(f"a retrieval head needs features of the {domain}, but the schema has none")
        self.config = config
        self.user, self.item = (
            MLP(width, config.hidden, out=config.dim, activation=activation, batch_norm=batch_norm, dropout=dropout)
            for width in (request_width, item_width)
        )

    def user_vector(self, x: Tensor) -> Tensor:
        """Vectors ``[n, dim]`` from the joined request inputs."""
        return self._finish(self.user(x))

    def item_vector(self, x: Tensor) -> Tensor:
        """Vectors ``[n, dim]`` from the joined item inputs."""
        return self._finish(self.item(x))

    def _finish(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1, eps=1e-12) if self.config.normalize else x
