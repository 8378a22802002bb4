"""Layers that the models share: the input layer with its embeddings, and the multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastmtr.errors import SchemaError
from fastmtr.graph import DOMAINS, Domain, Input
from fastmtr.models.config import ActivationName
from fastmtr.schema import Pooling, Schema

__all__ = ["MLP", "InputLayer", "Rows", "make_activation"]

Rows = tuple[Tensor, Tensor]
"""The packed inputs of one domain: ids (integer, ``[n, ids width]``) and dense (float, ``[n, dense width]``)."""


_SIMPLE_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def make_activation(name: ActivationName, *, width: int) -> nn.Module:
    """A new activation module for ``width`` columns (PReLU learns one slope for each)."""
    return nn.PReLU(width) if name == "prelu" else _SIMPLE_ACTIVATIONS[name]()


class MLP(nn.Sequential):
    """Linear, optional BatchNorm, activation, optional dropout, for each width in ``hidden``; then one plain Linear if
    ``out`` is given.

    The modules stand in one flat sequence in that order, so :mod:`fastmtr.convert` reads the model from them alone.
    """

    in_width: int
    out_width: int

    def __init__(
        self,
        in_width: int,
        hidden: Sequence[int],
        *,
        out: int | None = None,
        activation: ActivationName = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        width = in_width
        for n in hidden:
            layers.append(nn.Linear(width, n))
            if batch_norm:
                layers.append(nn.BatchNorm1d(n))
            layers.append(make_activation(activation, width=n))
            if dropout > 0.0:
                layers.append(nn.Dropout(dropout))
            width = n
        if out is not None:
            layers.append(nn.Linear(width, out))
            width = out
        super().__init__(*layers)
        self.in_width = in_width
        self.out_width = width


class InputLayer(nn.Module):
    """Embeds and joins the packed inputs: each categorical becomes its embedding (the sum of several, where it is
    hashed several times), each sequence or multi-valued feature one pooled embedding, and numbers pass, however many
    columns they have.

    A sequence looks up the table of the item feature it is made ``of``, as the schema says.

    Parameters
    ----------
    inputs : sequence of Input
        Where each feature stands in the packed inputs. They are joined in this order, request before item before
        candidate.
    schema : Schema
        Says the embedding width and the pooling of each input, which have the features' names.
    std : float
        Standard deviation of the embeddings at the start.

    Raises
    ------
    SchemaError
        An input is no feature of the schema, or two inputs share a table of different size.
    """

    def __init__(self, inputs: Sequence[Input], schema: Schema, *, std: float = 0.01) -> None:
        super().__init__()
        self.inputs = tuple(sorted(inputs, key=lambda i: DOMAINS.index(i.domain)))
        self.tables = nn.ModuleDict()
        self.table_of: dict[str, str] = {}
        self.pooling: dict[str, Pooling | None] = {}
        for each in self.inputs:
            if each.kind == "ids":
                self._add_ids(each, schema, std=std)
        self.widths: dict[Domain, int] = {d: sum(self.width(i) for i in self.inputs if i.domain == d) for d in DOMAINS}

    def _add_ids(self, each: Input, schema: Schema, *, std: float) -> None:
        feature = schema.feature(each.name)
        owner = feature if feature.of is None else schema.feature(feature.of)
        rows = each.rows
        if rows is None:
            raise SchemaError(f"input {each.name!r} does not say how many rows its embedding table has; set Input.rows")
        key = _module_key(owner.name)
        if key not in self.tables:
            table = nn.Embedding(rows, owner.dim)
            nn.init.normal_(table.weight, std=std)
            self.tables[key] = table
        elif self._table(key).num_embeddings != rows:
            raise SchemaError(
                f"inputs {each.name!r} and {owner.name!r} share an embedding table, but one has {rows} rows and the "
                f"other {self._table(key).num_embeddings}; fit them as one vocabulary"
            )
        self.table_of[each.name] = key
        alone: Pooling | None = "sum" if each.width > 1 else None
        self.pooling[each.name] = alone if feature.kind == "categorical" else feature.pooling

    def _table(self, key: str) -> nn.Embedding:
        table = self.tables[key]
        assert isinstance(table, nn.Embedding)
        return table

    def table(self, each: Input) -> nn.Embedding:
        """The embedding table that this ids input looks up."""
        return self._table(self.table_of[each.name])

    def width(self, each: Input) -> int:
        """Columns of the joined input that come from this input."""
        if each.kind == "dense":
            return each.width
        return self.table(each).embedding_dim

    @property
    def out_width(self) -> int:
        """Columns of the joined input."""
        return sum(self.widths.values())

    def embed(self, domain: Domain, rows: Rows) -> Tensor:
        """The joined inputs of one domain, ``[n, widths[domain]]``."""
        ids, dense = rows
        parts = [self._embed_one(each, ids, dense) for each in self.inputs if each.domain == domain]
        return torch.cat(parts, dim=1) if parts else dense.new_zeros(dense.shape[0], 0)

    def _embed_one(self, each: Input, ids: Tensor, dense: Tensor) -> Tensor:
        columns = slice(each.offset, each.offset + each.width)
        if each.kind == "dense":
            return dense[:, columns]
        weight, mode = self.table(each).weight, self.pooling[each.name]
        if mode is None:
            return functional.embedding(ids[:, columns], weight).flatten(1)
        return functional.embedding_bag(ids[:, columns], weight, mode=mode, padding_idx=each.padding)

    def forward(self, request: Rows, item: Rows, candidate: Rows | None = None) -> Tensor:
        """All inputs joined, ``[n, out_width]``; a domain of one row stands for every row."""
        if candidate is None and self.widths["candidate"] > 0:
            names = [i.name for i in self.inputs if i.domain == "candidate"]
            raise SchemaError(f"the model reads candidate features {names}, but none were given; pass candidate=")
        parts = [self.embed("request", request), self.embed("item", item)]
        if candidate is not None:
            parts.append(self.embed("candidate", candidate))
        n = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(n, -1) for part in parts], dim=1)


def _module_key(name: str) -> str:
    # ModuleDict refuses dots in keys and names of its own attributes.
    return "table_" + name.replace(".", "__")
