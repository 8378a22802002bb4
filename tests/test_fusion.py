"""fastmtr.fusion: the section of a configuration and the weights of one call."""

import numpy as np
import pytest

from fastmtr.errors import ConfigError
from fastmtr.fusion import Fusion, fusion_weights
from fastmtr.schema import Feature, Schema, Task

SCHEMA = Schema(
    user="u",
    item="i",
    features=(Feature(name="i", entity="item", kind="categorical"),),
    tasks=(Task(name="click"), Task(name="watch", kind="regression"), Task(name="like")),
)


def test_default_takes_every_binary_task_alike():
    assert Fusion().to_plan(SCHEMA) == {
        "kind": "product",
        "tasks": ["click", "like"],
        "weights": [1.0, 1.0],
        "offsets": [0.0, 0.0],
    }


def test_tasks_are_in_schema_order():
    plan = Fusion(kind="product", weights={"like": 0.5, "click": 2}, offsets={"like": 0.01}).to_plan(SCHEMA)
    assert plan["tasks"] == ["click", "like"]
    assert plan["weights"] == [2.0, 0.5]
    assert plan["offsets"] == [0.0, 0.01]


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (Fusion(weights={"clik": 1.0}), r"fusion.weights: there is no task 'clik'; the schema has \['click', 'watch'"),
        (Fusion(weights={"click": float("nan")}), "must be finite"),
        (Fusion(weights={"click": 0.0}), "nothing to rank by"),
        (Fusion(kind="sum", weights={"click": 1.0}, offsets={"click": 0.1}), "offsets belong to kind 'product'"),
        (Fusion(weights={"click": 1.0}, offsets={"like": 0.1}), "has an offset but no weight"),
    ],
)
def test_refuses(fusion, message):
    with pytest.raises(ConfigError, match=message):
        fusion.to_plan(SCHEMA)


def test_weights_of_one_call():
    weights = fusion_weights({"like": 3.0}, tasks=["click", "like"])
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.0, 3.0]
    with pytest.raises(ConfigError, match="does not fuse a task 'buy'"):
        fusion_weights({"buy": 1.0}, tasks=["click"])
    with pytest.raises(ConfigError, match="must be finite"):
        fusion_weights({"click": float("inf")}, tasks=["click"])
