"""Peak memory of fitting and packing features, on a file and on one of four times the rows.

    python bench/feature_memory.py [--rows 1500000] [--json FILE]

Rows are like Criteo's: 13 numbers with nulls, 26 categories as text. Each step runs in a process of its own, whose peak
(VmHWM of Linux) is told, and what it has before it begins. ``fit`` and ``transform`` stream the Parquet file; ``fit, in
memory`` reads it whole first, for comparison. With fewer rows than a million, what is counted still grows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmtr.features import FeaturePipeline
from fastmtr.schema import Feature, Schema, Task
from fastmtr.text_table import text_table

STEPS = ("fit", "transform", "fit, in memory")
NUMBERS, CATEGORIES = 13, 26
CHUNK = 100_000

SCHEMA = Schema(
    user="user",
    item="item",
    features=(
        *(Feature(name=f"i{i}", entity="candidate", kind="numeric", scaling="log1p") for i in range(NUMBERS)),
        *(Feature(name=f"c{i}", entity="candidate", kind="categorical", min_count=5) for i in range(CATEGORIES)),
    ),
    tasks=(Task(name="click"),),
)


def write_rows(path: Path, rows: int) -> None:
    """Write a Parquet file of so many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, rows, CHUNK):
        rng = np.random.default_rng(start)
        n = min(CHUNK, rows - start)
        columns: dict[str, Any] = {}
        for i in range(NUMBERS):
            numbers = np.floor(rng.lognormal(2, 2, n))
            columns[f"i{i}"] = pa.array(numbers, mask=rng.random(n) < 0.04 * i)
        for i in range(CATEGORIES):
            # From a few values to 18,000, the first ones far more often than the last.
            distinct = 4 * 1.4**i
            codes = np.floor(distinct * rng.random(n) ** 3).astype(np.int64)
            columns[f"c{i}"] = pa.array([f"{code * 2654435761 % 2**32:08x}" for code in codes.tolist()])
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=CHUNK)
    if writer is not None:
        writer.close()


def measure(rows: int, folder: Path, *, steps: Sequence[str] = STEPS) -> list[dict[str, Any]]:
    """Peak and beginning of each step in MiB, on `rows` rows and on four times as many."""
    found = []
    for times in (1, 4):
        path = folder / f"rows_{times}.parquet"
        write_rows(path, rows * times)
        for step in steps:
            command = [sys.executable, __file__, "--step", step, "--file", str(path)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(
                {"step": step, "rows": rows * times, "file_mib": path.stat().st_size / 2**20, **json.loads(answer)}
            )
    return found


def _run(step: str, path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = _memory("VmRSS")
    state = path.with_suffix(".state")
    if step == "transform":
        pipeline = FeaturePipeline.from_state(SCHEMA, *_load(state))
        pipeline.transform_to(path.with_suffix(".features"), source=path, overwrite=True)
    else:
        pipeline = FeaturePipeline(SCHEMA).fit(interactions=path if step == "fit" else pq.read_table(path))
        _save(state, pipeline)
    rows = sum(i.rows or 0 for i in pipeline.inputs)
    return {
        "before_mib": before,
        "peak_mib": _memory("VmHWM"),
        "arrow_peak_mib": pa.default_memory_pool().max_memory() / 2**20,
        "vocabulary": rows,
    }


def _save(path: Path, pipeline: FeaturePipeline) -> None:
    from safetensors.numpy import save_file

    head, arrays = pipeline.state()
    path.write_text(json.dumps(head))
    save_file(arrays, path.with_suffix(".safetensors"))


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.numpy import load_file

    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def _memory(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status tells no {what}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        print(json.dumps(_run(options.step, options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.rows, Path(folder))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    lines = [["step", "rows", "Parquet MiB", "before MiB", "peak MiB", "of Arrow", "vocabulary rows"]]
    for each in found:
        sizes = (each["file_mib"], each["before_mib"], each["peak_mib"], each["arrow_peak_mib"])
        lines.append(
            [each["step"], f"{each['rows']:,}", *(f"{size:,.0f}" for size in sizes), f"{each['vocabulary']:,}"]
        )
    print("\n".join(text_table(lines, left={0})))
    for step in STEPS:
        one, four = (next(e for e in found if e["step"] == step and e["rows"] == n * options.rows) for n in (1, 4))
        print(f"{step}: {four['peak_mib'] / one['peak_mib']:.2f} times the peak at four times the rows")


if __name__ == "__main__":
    main()
