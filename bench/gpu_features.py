"""Tables of features on a GPU against the ways of the host: equal bits, rows a second; bench/gpu_check.py starts it.

    python bench/gpu_features.py --device cuda --seconds 50 --out results.json [--tiny]

First every operator on the rows of tests/operator_schema.py; then rows like Criteo's, whose categories are texts (by
vocabulary and by hash) or whole numbers. Ends with 77, and says why, where there is no CuPy or no GPU. ``--device
cuda-host`` has the host run the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from feature_rows import HASH_ROWS, raw_rows, schema

from fastmtr.errors import BackendError
from fastmtr.features import FeaturePipeline, cupy_kernels, device_batch, warm_up
from fastmtr.features.engines import numba_is_worth_it
from fastmtr.graph import Packed

ROWS, TINY_ROWS = 400_000, 500
ROUNDS = 5


def check_operators(xp: Any) -> int:
    """Every operator gives the bits of the arrays; how many features there are."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from operator_schema import SCHEMA, raw_tables

    features = tuple(each for each in SCHEMA.features if not SCHEMA.is_from_log(each))
    raw = {name: pa.table(columns) for name, columns in raw_tables().items()}
    pipeline = FeaturePipeline(msgspec.structs.replace(SCHEMA, features=features))
    pipeline.fit(users=raw["users"], items=raw["items"], interactions=raw["log"])
    users = raw["users"].append_column("time", pa.array(np.arange(raw["users"].num_rows) * 5_000))
    items = raw["items"].append_column("time", pa.array(np.arange(raw["items"].num_rows) * 90_000))
    log = raw["log"]
    for domain, table in (("request", users), ("request", log), ("item", items), ("candidate", log)):
        check_equal(
            device_batch.transform(pipeline, domain, table, missing="null", xp=xp),
            pipeline.transform(domain, table, missing="null", engine="arrays"),
            f"every operator of the {domain}",
        )
    return len(features)


def check_equal(found: Packed, expected: Packed, what: str) -> None:
    """Times mean something only if the bits are the same."""
    for mine, theirs in zip(found, expected, strict=True):
        there = mine if isinstance(mine, np.ndarray) else mine.get()
        if there.tobytes() != theirs.tobytes():
            raise SystemExit(f"{what}: the device makes other features")


def contestants(
    pipeline: FeaturePipeline, table: pa.Table, xp: Any, *, of_text: bool, device: str
) -> dict[str, Callable[[], Packed]]:
    """The ways to pack a table, the arrays' first."""
    threads = os.cpu_count() or 1
    found: dict[str, Callable[[], Packed]] = {
        "arrays": lambda: pipeline.transform("candidate", table, engine="arrays", threads=threads)
    }
    if numba_is_worth_it(sys.maxsize):
        found["numba"] = lambda: pipeline.transform("candidate", table, engine="numba", threads=threads)
    found[f"{device}, columns of the host"] = lambda: device_batch.transform(pipeline, "candidate", table, xp=xp)
    if not of_text:
        columns = {name: xp.asarray(table.column(name).to_numpy()) for name in table.column_names}
        found[f"{device}, columns of the device"] = lambda: device_batch.transform(
            pipeline, "candidate", columns, xp=xp
        )
    return found


def measure(calls: dict[str, Callable[[], Packed]], what: str, *, end: float) -> list[dict[str, Any]]:
    """Alternating, the median of each; none is begun after the end."""
    expected = calls["arrays"]()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        check_equal(call(), expected, f"{what}, {name}")
    rows = expected.n_rows
    for _ in range(ROUNDS):
        for name, call in calls.items():
            if time.monotonic() < end or not times[name]:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(each)) for name, each in times.items()}
    return [
        {
            "table": what,
            "contestant": name,
            "rows": rows,
            "p50_ms": median * 1e3,
            "rows_per_second": rows / median,
            "arrays_time_by_its": medians["arrays"] / median,
            "rounds": len(times[name]),
        }
        for name, median in medians.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cuda-host"), required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    try:
        xp = np if given.device == "cuda-host" else cupy_kernels.namespace()
    except BackendError as error:
        print(error)
        return 77
    if numba_is_worth_it(sys.maxsize):
        warm_up()
    found: dict[str, Any] = {"operators_compared": check_operators(xp), "rows": []}
    n = TINY_ROWS if given.tiny else ROWS
    texts, whole = raw_rows(n, seed=0), raw_rows(n, seed=0, of_text=False)
    for what, table, options in (
        ("whole numbers by hash", whole, {"hash_rows": HASH_ROWS}),
        ("texts by vocabulary", texts, {"min_count": 2}),
        ("texts by hash", texts, {"hash_rows": HASH_ROWS}),
    ):
        pipeline = FeaturePipeline(schema(**options)).fit(interactions=table.slice(0, n // 2))
        calls = contestants(pipeline, table, xp, of_text=table is texts, device=given.device)
        found["rows"] += measure(calls, what, end=end)
        given.out.write_text(json.dumps(found))
        for row in found["rows"][-len(calls) :]:
            print(f"   {what}, {row['contestant']}: {row['rows_per_second'] / 1e6:.2f} M rows/s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
