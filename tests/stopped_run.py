"""Raw rows, and a run that packs them and dies in the midst: a module of its own, which a new process can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastmtr.features import FeaturePipeline, shards
from fastmtr.features.streaming import transform_to
from fastmtr.schema import Feature, Schema, Task

N = 1000
SCHEMA = Schema(
    user="user",
    item="item",
    timestamp="time",
    features=(
        Feature(name="city", entity="user", kind="categorical"),
        Feature(name="age", entity="user", kind="numeric", scaling="standard"),
        Feature(name="hour", entity="context", kind="categorical", derive="hour"),
        Feature(name="tags", entity="item", kind="multi", length=3),
        Feature(name="price", entity="item", kind="numeric", scaling="quantile"),
    ),
    tasks=(Task(name="click"),),
)


def raw(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user": rng.integers(0, 50, n),
            "item": rng.integers(0, 90, n),
            "time": rng.integers(0, 10**9, n),
            "city": pa.array([None if i % 7 == 0 else f"city {i}" for i in rng.zipf(1.5, n) % 40]),
            "age": pa.array(np.where(rng.random(n) < 0.1, np.nan, rng.normal(40, 9, n)), from_pandas=True),
            "tags": pa.array([",".join(f"t{j}" for j in rng.integers(0, 9, rng.integers(0, 5))) for _ in range(n)]),
            "price": rng.lognormal(2, 1, n),
            "click": rng.integers(0, 2, n),
            "weight": rng.random(n),
        }
    )


def pack_and_die(where, source, out):
    """In a process of its own: pack until `where`, then die at once."""
    pipeline = FeaturePipeline(SCHEMA).fit(interactions=raw())
    whole = shards._write

    def write(path: Path, content: bytes) -> None:
        at = {"half a part": "part-000003.safetensors", "before the index": "index.json", "half an index": "index.json"}
        hit = path.name == at.get(where) and (path.suffix != ".json" or b'"parts": 4' in content)
        if hit and where != "before the index":
            path.with_name(f".{path.name}.partial").write_bytes(content[: len(content) // 2])
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, content)
        if where == "any time":
            time.sleep(0.05)

    shards._write = write
    transform_to(pipeline, out, source=source, batch_rows=100, keep=["click"])
