"""One feature of each operator over raw rows: the arrays' time against Numba's, for bench_features.py --operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastmtr.features import FeaturePipeline
from fastmtr.graph import Domain
from fastmtr.schema import Feature, Schema, Task

__all__ = ["OPERATORS", "operator_rows", "pipeline_of"]

_KEY: dict[str, Any] = {"name": "key", "entity": "item", "kind": "categorical"}
_HASHED = {"hash_rows": 1 << 20}

# What is measured, by name: the domain and the feature.
OPERATORS: dict[str, tuple[Domain, dict[str, Any]]] = {
    "category, vocabulary": ("candidate", {"kind": "categorical", "source": "word"}),
    "category, two hashes": ("candidate", {"kind": "categorical", "source": "word", **_HASHED, "hashes": 2}),
    "number, log1p": ("candidate", {"kind": "numeric", "source": "number", "scaling": "log1p"}),
    "bucket": ("candidate", {"kind": "categorical", "source": "number", "buckets": 50}),
    "cross, vocabulary": ("candidate", {"kind": "categorical", "cross": ("word", "key"), "min_count": 2}),
    "cross, hash": ("candidate", {"kind": "categorical", "cross": ("word", "key"), **_HASHED}),
    "target and its category": ("candidate", {"kind": "target", "of": "word", "event": "click"}),
    "multi, texts": ("candidate", {"kind": "multi", "source": "words", "length": 8}),
    "multi, numbers, last": ("candidate", {"kind": "multi", "source": "keys", "length": 8, "keep": "last"}),
    "multi, hash": ("candidate", {"kind": "multi", "source": "words", "length": 8, **_HASHED}),
    "multi, separator": ("candidate", {"kind": "multi", "source": "joined", "length": 8}),
    "sequence": ("request", {"kind": "sequence", "of": "key", "source": "keys", "length": 8}),
    "attributes of past items": (
        "request", {"kind": "sequence", "of": "word", "source": "past", "length": 8, "lookup": True},
    ),
    "words": ("candidate", {"kind": "text", "source": "text", "length": 16}),
    "words, bigrams, hash": ("candidate", {"kind": "text", "source": "text", "length": 32, "ngrams": 2, **_HASHED}),
    "tfidf, bigrams": ("candidate", {"kind": "tfidf", "source": "text", "dim": 64, "ngrams": 2}),
    "hour": ("request", {"entity": "context", "kind": "categorical", "derive": "hour"}),
    "cycle of the week": ("request", {"entity": "context", "kind": "numeric", "derive": "weekday_cycle"}),
    "recency": ("candidate", {"kind": "numeric", "derive": "recency", "source": "then"}),
    "gaps and their sequence": ("request", {"kind": "gaps", "of": "history", "source": "times", "length": 8}),
    "vector": ("candidate", {"kind": "vector", "source": "vector", "dim": 32}),
}  # fmt: skip


def operator_rows(n: int, *, seed: int) -> pa.Table:
    """Columns of every type, with some nulls; values as frequent as Zipf's law has them."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"word{i * 2654435761 % 10**6}" for i in range(20_000)], object)
    vocabulary[::7] = [f"Größe{i}" for i in range(len(vocabulary[::7]))]

    def ranks(size: int) -> NDArray[np.int64]:
        return np.exp(rng.random(size) * np.log(len(vocabulary))).astype(np.int64)

    def some(column: Any) -> pa.Array:
        return pa.array(column, mask=rng.random(n) < 0.05)

    def lists(elements: Any, most: int) -> pa.Array:
        sizes = rng.integers(0, most + 1, n)
        offsets = np.minimum(np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]), len(elements))
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(elements))

    lines = [" ".join(vocabulary[each]) + "." for each in np.array_split(ranks(10 * n), n)]
    joined = [", ".join(vocabulary[each]) for each in np.array_split(ranks(5 * n), n)]
    return pa.table(
        {
            "user": np.arange(n),
            "item": np.arange(n),
            "time": rng.integers(0, 10**9, n),
            "click": rng.integers(0, 2, n),
            "word": some(vocabulary[ranks(n)]),
            "key": some(ranks(n)),
            "number": some(rng.lognormal(2, 2, n)),
            "words": lists(vocabulary[ranks(6 * n)], 12),
            "keys": lists(ranks(6 * n), 12),
            "past": lists(rng.integers(0, n, 6 * n), 12),
            "joined": some(joined),
            "text": some(lines),
            "then": some(rng.integers(0, 10**9, n)),
            "times": lists(rng.integers(0, 10**9, 6 * n), 12),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=32 * n).astype(np.float32)), 32),
        }
    )


def pipeline_of(name: str, rows: pa.Table) -> tuple[FeaturePipeline, Domain]:
    """An operator of :data:`OPERATORS` fitted to rows, and its domain.

    Raises
    ------
    SystemExit
        Numba makes something else than the arrays: times would mean nothing.
    """
    domain, options = OPERATORS[name]
    others = [Feature(name="word", entity="item", kind="categorical"), Feature(**_KEY)]
    if options["kind"] == "target":
        others = [Feature(name="word", entity="candidate", kind="categorical")]
    if options["kind"] == "gaps":
        others = [Feature(**_KEY), Feature(name="history", entity="user", kind="sequence", of="key", source="keys")]
    feature = Feature(**{"name": "x", "entity": "user" if domain == "request" else domain} | options)
    schema = Schema(
        user="user", item="item", timestamp="time", features=(feature, *others), tasks=(Task(name="click"),)
    )
    pipeline = FeaturePipeline(schema).fit(items=rows if feature.lookup else None, interactions=rows)
    arrays = pipeline.transform(domain, rows, engine="arrays")
    compiled = pipeline.transform(domain, rows, engine="numba")
    if not ((arrays.ids == compiled.ids).all() and (arrays.dense == compiled.dense).all()):
        raise SystemExit(f"{name}: Numba makes another feature than the arrays: its times mean nothing")
    return pipeline, domain
