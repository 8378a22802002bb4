"""A small schema with every kind of input, and random rows of it: shared by the tests of models and conversion."""

from __future__ import annotations

import numpy as np
import torch

from fastmtr.graph import Domain, Input, Packed
from fastmtr.models import ModelConfig, Rows, TwoTowerConfig
from fastmtr.schema import Feature, Schema, Task

SCHEMA = Schema(
    user="user",
    item="item",
    features=(
        Feature(name="user", entity="user", kind="categorical", dim=6),
        Feature(name="history", entity="user", kind="sequence", of="item", length=5),
        Feature(name="topics", entity="user", kind="multi", dim=3, length=4, pooling="sum"),
        Feature(name="age", entity="user", kind="numeric"),
        Feature(name="hour", entity="context", kind="categorical", dim=2),
        Feature(name="item", entity="item", kind="categorical", dim=4),
        Feature(name="tags", entity="item", kind="multi", dim=3, length=3, pooling="max"),
        Feature(name="price", entity="item", kind="numeric"),
        Feature(name="position", entity="candidate", kind="numeric"),
        Feature(name="shop", entity="candidate", kind="categorical", dim=3),
        Feature(name="time_of_day", entity="candidate", kind="numeric"),
    ),
    tasks=(
        Task(name="click"),
        Task(name="buy", depends_on="click", weight=2.0),
        Task(name="like"),
    ),
)

INPUTS = (
    Input("user", "request", "ids", 0, 1, rows=11),
    Input("history", "request", "ids", 1, 5, rows=9, padding=0),
    Input("topics", "request", "ids", 6, 4, rows=7, padding=0),
    Input("age", "request", "dense", 0, 1),
    Input("hour", "request", "ids", 10, 1, rows=5),
    Input("item", "item", "ids", 0, 1, rows=9),
    Input("tags", "item", "ids", 1, 3, rows=6, padding=0),
    Input("price", "item", "dense", 0, 1),
    Input("position", "candidate", "dense", 0, 1),
    Input("shop", "candidate", "ids", 0, 2, rows=8),
    Input("time_of_day", "candidate", "dense", 1, 2),
)

CONFIGS = {
    "shared_bottom": ModelConfig(type="shared_bottom", bottom=(12, 8), tower=(6,)),
    "mmoe": ModelConfig(type="mmoe", experts=3, expert=(10, 6), tower=(5,)),
    "ple": ModelConfig(type="ple", shared_experts=2, task_experts=2, levels=2, expert=(8, 6), tower=(5,)),
    "esmm": ModelConfig(type="esmm", tower=(10, 6)),
}
TWO_TOWER = TwoTowerConfig(dim=4, hidden=(7,))


def random_rows(n: int, *, seed: int = 0) -> dict[Domain, Packed]:
    """Random packed inputs; the first row has an empty history and no topics or tags."""
    rng = np.random.default_rng(seed)
    packed: dict[Domain, Packed] = {}
    for domain in ("request", "item", "candidate"):
        here = [i for i in INPUTS if i.domain == domain]
        ids = np.zeros((n, sum(i.width for i in here if i.kind == "ids")), np.int32)
        dense = rng.normal(size=(n, sum(i.width for i in here if i.kind == "dense"))).astype(np.float32)
        for i in here:
            if i.kind == "ids":
                ids[:, i.offset : i.offset + i.width] = rng.integers(0, i.rows, size=(n, i.width))
            if i.padding is not None:
                ids[0, i.offset : i.offset + i.width] = i.padding
        packed[domain] = Packed(ids, dense)
    return packed


def as_tensors(packed: dict[Domain, Packed], *, dtype: torch.dtype = torch.float32) -> tuple[Rows, Rows, Rows]:
    """Request, item and candidate rows as a model takes them."""
    request, item, candidate = (
        (torch.from_numpy(packed[d].ids), torch.from_numpy(packed[d].dense).to(dtype))
        for d in ("request", "item", "candidate")
    )
    return request, item, candidate
