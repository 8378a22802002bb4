"""The schema of a model that came without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import Domain, Graph, Input
from fastmtr.schema import Entity, Feature, FeatureKind, Schema, Task

__all__ = ["schema_of"]

_ENTITIES: dict[Domain, Entity] = {"request": "user", "item": "item", "candidate": "candidate"}


def schema_of(graph: Graph, scores: Mapping[str, NDArray[Any]] | None = None) -> Schema:
    """A schema that says of a graph what can be told: features from its inputs, tasks from its outputs.

    Parameters
    ----------
    graph : Graph
    scores : mapping of output to ndarray, optional
        A task whose scores here are not all between 0 and 1 is a regression.
    """

    def kind(task: str) -> Literal["binary", "regression"]:
        values = np.zeros(1) if scores is None else scores[task]
        return "binary" if bool(((values >= 0) & (values <= 1)).all()) else "regression"

    features = tuple(
        Feature(name=i.name, entity=_ENTITIES[i.domain], kind=_kind(i), length=i.width) for i in graph.inputs
    )
    return Schema(
        user="user", item="item", features=features, tasks=tuple(Task(name=t, kind=kind(t)) for t in graph.tasks)
    )


def _kind(i: Input) -> FeatureKind:
    return "numeric" if i.kind == "dense" else "categorical" if i.width == 1 else "multi"
