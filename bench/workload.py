"""The reference workload of the benchmarks: one schema, four models with random seeded weights, a catalogue, requests.

One request is 12 user and context categoricals, 8 numbers and a history of up to 50 item ids (mean-pooled); a candidate
is 8 categoricals and 8 numbers. Embeddings are 16 wide, so a model reads 216 request columns and 136 item columns. Ids
are uniform over their tables: the worst case for everybody's caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.graph import Graph, Input, Packed
from fastmtr.schema import Feature, Schema, Task

if TYPE_CHECKING:
    from fastmtr.models import MultiTaskModel

__all__ = ["MODELS", "Request", "Workload", "make_workload"]

MODELS = ("shared_bottom", "mmoe", "ple", "esmm")
DIM = 16
HISTORY = 50
NUMBERS = 8

# Rows of every table but the user's, which takes what is left of the total, and the item's, which is the catalogue's.
_REQUEST_SHARES = {
    "city": 0.01, "district": 0.03, "device": 0.005, "app_version": 0.001, "language": 0.0001, "age_band": 0.0001,
    "gender": 0.0001, "segment": 0.002, "hour_of_week": 0.0001, "page": 0.001, "referrer": 0.01,
}  # fmt: skip
_ITEM_SHARES = {
    "author": 0.07, "category": 0.002, "brand": 0.02, "tag": 0.01, "upload_day": 0.0005, "price_band": 0.0001,
    "seller_city": 0.01,
}  # fmt: skip
_CONTEXT = ("hour_of_week", "page", "referrer")


class Request(NamedTuple):
    """One request: its packed inputs (one row) and its candidates as row numbers of the catalogue.

    With a row of inputs for each candidate instead: as many requests of one candidate each.
    """

    request: Packed
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Everything the contestants have in common.

    Parameters
    ----------
    schema : Schema
        For SharedBottom, MMoE and PLE; :meth:`schema_of` gives ESMM's, which has two tasks.
    inputs : tuple of Input
    keys : ndarray of int64, shape (n_items,)
        Catalogue keys.
    items : Packed
        The catalogue's inputs, one row an item.
    seed : int
    """

    schema: Schema
    inputs: tuple[Input, ...]
    keys: NDArray[np.int64]
    items: Packed
    seed: int

    def schema_of(self, model: str) -> Schema:
        """The schema with the tasks of that model."""
        if model != "esmm":
            return self.schema
        tasks = (Task(name="click"), Task(name="buy", depends_on="click"))
        return Schema(user=self.schema.user, item=self.schema.item, features=self.schema.features, tasks=tasks)

    def build(self, model: str) -> tuple[MultiTaskModel, Graph]:
        """The torch model of that name, in evaluation mode, and the graph of the same weights."""
        import torch

        from fastmtr.convert import convert
        from fastmtr.models import ModelConfig, build_model

        configs = {
            "shared_bottom": ModelConfig(type="shared_bottom", bottom=(512, 256), tower=(128, 64), embedding_std=1.0),
            "mmoe": ModelConfig(type="mmoe", experts=8, expert=(256, 128), tower=(64,), embedding_std=1.0),
            "ple": ModelConfig(
                type="ple",
                levels=2,
                shared_experts=2,
                task_experts=2,
                expert=(256, 128),
                tower=(64,),
                embedding_std=1.0,
            ),
            "esmm": ModelConfig(type="esmm", tower=(256, 128), embedding_std=1.0),
        }
        schema = self.schema_of(model)
        made = build_model(configs[model], self.inputs, schema=schema, seed=self.seed).eval()
        # Weights of this size make probabilities that differ between candidates, so that errors can be seen.
        random = torch.Generator().manual_seed(self.seed)
        for layer in made.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        return made, convert(made).graph

    def bundle(self, path: Path, model: str, graph: Graph, **options: Any) -> Path:
        """Write the bundle of that model's graph with the whole catalogue; the options are those of `write_bundle`."""
        catalogue = Catalogue(keys=self.keys, packed=self.items)
        return write_bundle(path, schema=self.schema_of(model), graph=graph, catalogue=catalogue, **options)

    def requests(self, n: int, *, count: int) -> list[Request]:
        """``count`` random requests of ``n`` different candidates each; the same for the same seed."""
        rng = np.random.default_rng([self.seed, n])
        packed = _random_rows([i for i in self.inputs if i.domain == "request"], count, rng)
        n_items = len(self.keys)
        return [
            Request(packed.take(np.array([r])), rng.choice(n_items, n, replace=False).astype(np.int64))
            for r in range(count)
        ]


def make_workload(*, n_items: int = 200_000, embedding_rows: int = 3_000_000, seed: int = 0) -> Workload:
    """Build the workload; ``embedding_rows`` are the rows of all tables together.

    Raises
    ------
    ValueError
        There are too few rows for the catalogue.
    """
    if embedding_rows < 2 * n_items or n_items < 1:
        raise ValueError(f"embedding_rows must be at least twice n_items ({n_items}), found {embedding_rows}")
    rows = {name: max(8, int(share * embedding_rows)) for name, share in (_REQUEST_SHARES | _ITEM_SHARES).items()}
    rows["item_id"] = n_items + 2
    rows["user_id"] = embedding_rows - sum(rows.values())

    request = ["user_id", *_REQUEST_SHARES]
    item = ["item_id", *_ITEM_SHARES]
    features = [
        *(Feature(name=f, entity="context" if f in _CONTEXT else "user", kind="categorical", dim=DIM) for f in request),
        Feature(name="history", entity="user", kind="sequence", length=HISTORY, of="item_id", dim=DIM),
        *(Feature(name=f"user_number_{i}", entity="user", kind="numeric") for i in range(NUMBERS)),
        *(Feature(name=f, entity="item", kind="categorical", dim=DIM) for f in item),
        *(Feature(name=f"item_number_{i}", entity="item", kind="numeric") for i in range(NUMBERS)),
    ]
    schema = Schema(
        user="user_id",
        item="item_id",
        features=tuple(features),
        tasks=(Task(name="click"), Task(name="like"), Task(name="buy")),
    )
    inputs = (
        *(Input(f, "request", "ids", i, 1, rows=rows[f]) for i, f in enumerate(request)),
        Input("history", "request", "ids", len(request), HISTORY, rows=rows["item_id"], padding=0),
        *(Input(f"user_number_{i}", "request", "dense", i, 1) for i in range(NUMBERS)),
        *(Input(f, "item", "ids", i, 1, rows=rows[f]) for i, f in enumerate(item)),
        *(Input(f"item_number_{i}", "item", "dense", i, 1) for i in range(NUMBERS)),
    )
    rng = np.random.default_rng(seed)
    items = _random_rows([i for i in inputs if i.domain == "item"], n_items, rng)
    items.ids[:, 0] = np.arange(2, n_items + 2)
    keys = rng.permutation(n_items).astype(np.int64) + 1_000_000
    return Workload(schema, inputs, keys, items, seed)


def _random_rows(inputs: Sequence[Input], n: int, rng: np.random.Generator) -> Packed:
    ids_width = max(i.offset + i.width for i in inputs if i.kind == "ids")
    dense_width = max(i.offset + i.width for i in inputs if i.kind == "dense")
    ids = np.zeros((n, ids_width), np.int32)
    for i in inputs:
        if i.kind == "ids":
            assert i.rows is not None
            columns = rng.integers(1, i.rows, (n, i.width), dtype=np.int32)
            if i.padding is not None:  # a history is between empty and full, padded at the end
                columns[np.arange(i.width) >= rng.integers(0, i.width + 1, (n, 1))] = i.padding
            ids[:, i.offset : i.offset + i.width] = columns
    return Packed(ids, rng.standard_normal((n, dense_width), dtype=np.float32))
