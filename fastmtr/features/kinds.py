"""Which operator makes which feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastmtr.features.attributes import Attributes, ObservedAttributes
from fastmtr.features.made_categories import Buckets, Cross, ObservedBuckets, ObservedCross
from fastmtr.features.operators import Observer, Operator
from fastmtr.features.target_encoding import ObservedOutcomes, TargetTable
from fastmtr.features.text import ObservedDocuments, Tfidf
from fastmtr.features.times import Cyclic, Gaps, ObservedCycle, ObservedGaps, ObservedRecency, Recency
from fastmtr.features.vectors import ObservedVectors, Vector
from fastmtr.schema import Feature, Schema

__all__ = ["OPERATORS", "is_operator", "observer_of", "operation", "operator_from_state", "unlearned"]

OPERATORS = (Buckets, Cross, Cyclic, Gaps, Recency, TargetTable, Tfidf, Vector)


def is_operator(feature: Feature) -> bool:
    """Whether an :class:`Operator` makes it, rather than a vocabulary or a scale alone."""
    return _operator(feature) is not None


def unlearned(feature: Feature, schema: Schema) -> Operator | None:
    """The operator of a feature that has nothing to learn."""
    kind = _operator(feature)
    found: Operator | None = kind.of(feature, schema) if kind in (Cyclic, Vector) else None
    return found


def observer_of(feature: Feature, schema: Schema) -> Observer | None:
    """What learns such a feature, or only watches it; None where a vocabulary or a scale does."""
    if feature.lookup:
        return ObservedAttributes(feature, schema)
    observers: dict[Any, Any] = {
        Buckets: ObservedBuckets,
        Cross: ObservedCross,
        Cyclic: ObservedCycle,
        Gaps: ObservedGaps,
        Recency: ObservedRecency,
        TargetTable: ObservedOutcomes,
        Tfidf: ObservedDocuments,
        Vector: ObservedVectors,
    }
    kind = observers.get(_operator(feature))
    found: Observer | None = None if kind is None else kind(feature, schema)
    return found


def operator_from_state(
    feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> Operator | Attributes | None:
    """Read the state of such a feature; None where it is a vocabulary or a scale."""
    kind = Attributes if feature.lookup else _operator(feature)
    found: Operator | Attributes | None = None if kind is None else kind.from_state(feature, schema, head, arrays)
    return found


def operation(feature: Feature) -> str:
    """What the engine calls it: see docs/features.md."""
    if feature.lookup:
        return "attribute"
    if feature.kind in ("multi", "sequence"):
        return "many"
    if feature.kind == "text":
        return "words"
    names: dict[Any, str] = {
        Buckets: "bucket",
        Cross: "cross",
        Cyclic: "cyclic",
        Gaps: "gaps",
        Recency: "recency",
        TargetTable: "table",
        Tfidf: "tfidf",
        Vector: "vector",
    }
    plain = "scale" if feature.is_dense else "category"
    return names.get(_operator(feature), plain)


def _operator(feature: Feature) -> Any:
    if feature.cross or feature.buckets:
        return Cross if feature.cross else Buckets
    if feature.kind == "numeric" and feature.derive is not None:
        return Recency if feature.derive == "recency" else Cyclic
    return {"gaps": Gaps, "target": TargetTable, "tfidf": Tfidf, "vector": Vector}.get(feature.kind)
