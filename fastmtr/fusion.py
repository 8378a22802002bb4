"""How the tasks' scores of one candidate become one number to rank by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import ConfigError
from fastmtr.schema import Schema

__all__ = ["Fusion", "fusion_weights"]


class Fusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[fusion]`` section of a configuration.

    Parameters
    ----------
    kind : {"product", "sum"}
        ``product``: ``exp(sum of w_t * log(p_t + o_t))``, so that a weight is an exponent and rare tasks count as
        much as frequent ones; ``sum``: ``sum of w_t * p_t``, the expected value when a weight is what one such action
        is worth.
    weights : dict of task to float
        A task that is not named does not count. Empty: every binary task counts with weight 1.
    offsets : dict of task to float
        ``o_t`` of ``product``, 0 where not given: the greater, the less a small ``p_t`` can pull the product down.
    """

    kind: Literal["product", "sum"] = "product"
    weights: dict[str, float] = {}
    offsets: dict[str, Annotated[float, msgspec.Meta(ge=0.0)]] = {}

    def to_plan(self, schema: Schema) -> dict[str, Any]:
        """The ``fusion`` object of a plan, its tasks in schema order.

        Raises
        ------
        ConfigError
            A task is not in the schema, or a number is not finite, or nothing is left to rank by.
        """
        known = [t.name for t in schema.tasks]
        for where, numbers in (("weights", self.weights), ("offsets", self.offsets)):
            for task, number in numbers.items():
                if task not in known:
                    raise ConfigError(f"fusion.{where}: there is no task {task!r}; the schema has {known}")
                if not np.isfinite(number):
                    raise ConfigError(f"fusion.{where}.{task} must be finite, found {number}")
        if self.kind == "sum" and self.offsets:
            raise ConfigError("fusion.offsets belong to kind 'product'; a sum does not change its order by them")
        weights = self.weights or {t.name: 1.0 for t in schema.tasks if t.kind == "binary"}
        tasks = [name for name in known if name in weights]
        if not any(weights[name] for name in tasks):
            raise ConfigError(
                "fusion.weights: no task counts, so there is nothing to rank by; give a task a weight other than 0"
            )
        for task in self.offsets:
            if task not in weights:
                raise ConfigError(
                    f"fusion.offsets: task {task!r} has an offset but no weight; there are weights of {tasks}"
                )
        return {
            "kind": self.kind,
            "tasks": tasks,
            "weights": [float(weights[name]) for name in tasks],
            "offsets": [float(self.offsets.get(name, 0.0)) for name in tasks],
        }


def fusion_weights(given: Mapping[str, float], *, tasks: Sequence[str]) -> NDArray[np.float32]:
    """Weights of one call, in the order of the bundle's fused tasks; a task that is not named gets 0.

    Parameters
    ----------
    given : mapping of task to float
    tasks : sequence of str
        The tasks that the bundle fuses.

    Returns
    -------
    array of float32, shape (tasks,)

    Raises
    ------
    ConfigError
        A task is not among them, or a weight is not finite.
    """
    for task, weight in given.items():
        if task not in tasks:
            raise ConfigError(f"fusion_weights: the bundle does not fuse a task {task!r}; it fuses {list(tasks)}")
        if not np.isfinite(weight):
            raise ConfigError(f"fusion_weights: the weight of {task!r} must be finite, found {weight}")
    return np.array([given.get(task, 0.0) for task in tasks], np.float32)
