"""How near the candidate part of each model is to the machine's peak, for whoever tunes the engine.

    python bench/limits.py [--models mmoe,esmm] [--n 512] [--kernels PATH/bench_kernels]

The time of the candidate part is the slope between a request of n and one of few candidates, so the request part and
the cost of a call drop out. Its FLOPs are those of the plan.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markdown_table import markdown_table
from peers import FastMTR
from workload import MODELS, Workload, make_workload

from fastmtr._native import info
from fastmtr.compiler import Explanation, compile_graph, explain
from fastmtr.graph import Graph

FEW = 32
HEAD = ("model", "stored an item", "FLOPs a request", "FLOPs", "bytes gathered", "ns", "GFLOP/s", "share of peak")


def fma_peak(kernels: Path | None) -> tuple[float, str]:
    """FLOP/s of one core, and where the number comes from."""
    if kernels is not None:
        isa = json.loads(info())["isa"]
        text = subprocess.run([kernels, isa], capture_output=True, text=True, check=True).stdout
        found = re.search(r"multiply-add peak ([\d.]+) GFLOP/s", text)
        if found is None:
            raise SystemExit(f"{kernels} {isa} printed no 'multiply-add peak ... GFLOP/s': {text[:200]!r}")
        return float(found[1]) * 1e9, f"{kernels.name}, {isa}"
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    best = min(_seconds(lambda: torch.mm(a, b)) for _ in range(20))
    return 2 * 768**3 / best, "the best of 20 PyTorch products 768 x 768, somewhat below the true peak"


def _seconds(function: Callable[[], object]) -> float:
    """Of this thread's processor time, so that other programs count less."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def candidate_seconds(bundle: Path, workload: Workload, n: int) -> float:
    """Of one candidate, one thread. Each request counts with its best time: noise can only add to a time."""
    contestant = FastMTR("fastmtr", bundle, workload, threads=1)
    requests = {size: workload.requests(size, count=8) for size in (FEW, n)}
    best = {size: np.full(8, np.inf) for size in requests}
    for _ in range(25):
        for size, some in requests.items():
            for i, request in enumerate(some):
                contestant.load(request)
                best[size][i] = min(best[size][i], _seconds(contestant.run))
    return float(np.median(best[n]) - np.median(best[FEW])) / (n - FEW)


def plan_costs(graph: Graph, workload: Workload, item_memory: int) -> Explanation:
    """FLOPs and bytes of the plan that the bundle has."""
    compiled = compile_graph(graph, n_items=len(workload.keys), item_memory=item_memory)
    shapes = {name: array.shape for name, array in compiled.weights.items()}
    return explain(compiled.plan, shapes, n_items=len(workload.keys))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--n", type=int, default=512, help=f"candidates, more than {FEW}")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--kernels", type=Path, help="the built bench_kernels program, for the machine's FMA peak")
    given = parser.parse_args(arguments)
    if given.n <= FEW:
        parser.error(f"--n must be more than {FEW}, found {given.n}")

    peak, source = fma_peak(given.kernels)
    print(f"peak of one core: {peak / 1e9:.0f} GFLOP/s ({source}); columns from FLOPs on are for one candidate\n")
    print("\n".join(markdown_table(HEAD)))
    workload = make_workload(n_items=given.items, embedding_rows=given.rows)
    for name in given.models.split(","):
        _, graph = workload.build(name)
        for item_memory in (4 << 30, 0):
            with tempfile.TemporaryDirectory(prefix="fastmtr-limits-") as folder:
                bundle = workload.bundle(Path(folder) / name, name, graph, item_memory=item_memory)
                seconds = candidate_seconds(bundle, workload, given.n)
            costs = plan_costs(graph, workload, item_memory)
            flops = costs.flops("candidate")
            gathered = sum(s.table_bytes for s in costs.steps if s.domain == "candidate")
            rate = flops / seconds
            stored = f"{costs.stored_bytes:,} bytes" if item_memory else "nothing"
            print(
                f"| {name} | {stored} | {costs.flops('request'):,} | {flops:,} | {gathered:,} | {seconds * 1e9:.0f} "
                f"| {rate / 1e9:.1f} | {rate / peak:.0%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
