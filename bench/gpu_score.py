"""Scoring on a GPU against PyTorch and ONNX Runtime: the benchmark of bench/gpu_check.py, which starts it.

    python bench/gpu_score.py --device cuda --seconds 200 --out results.json [--ceilings ceilings.json] [--tiny]

The reference workload of bench/README.md, MMoE; ids in, the 50 best of each request out. Cells in order of importance,
as many as the time allows; the file is written after each, so what was measured stays whatever happens later.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_peers import Batch, Contestant, FastMTR, OnnxRuntime, TorchRows, make_batch
from numpy.typing import NDArray
from workload import Workload, make_workload

from fastmtr.compiler import compile_graph, explain
from fastmtr.reference import evaluate

if TYPE_CHECKING:
    from fastmtr.graph import Graph
    from fastmtr.models import MultiTaskModel

MODEL = "mmoe"
K = 50
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
STORED = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16", "bf16": "fp16"}  # what of items is stored, by precision
CELLS = (
    (1, 512), (256, 512), (1, 128), (1, 2048), (16, 512), (1, 16384), (256, 128), (16, 2048), (16, 128), (256, 2048),
    (16, 16384), (256, 16384),
)  # fmt: skip
TINY_CELLS = ((1, 24), (2, 12))
MOST_ROWS_OF_PEERS = 256 * 2048
ROUNDS = 4
TOLERANCE = 0.05  # of a sum of three probabilities; beyond it a contestant computes something else


@dataclass
class Clock:
    """When the benchmark must be done."""

    end: float

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


@dataclass
class Results:
    """What is written, after each step."""

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, what: str, why: str) -> None:
        """Note what was left out."""
        print(f"  left out: {what}: {why}", flush=True)
        self.skipped.append({"what": what, "why": why})

    def write(self) -> None:
        """To the file."""
        keep = {"settings": self.settings, "accuracy": self.accuracy, "rows": self.rows, "skipped": self.skipped}
        self.path.write_text(json.dumps(keep, indent=1) + "\n")


@dataclass(frozen=True)
class Costs:
    """What a plan computes and reads, at least."""

    request_flops: int
    candidate_flops: int
    candidate_bytes: int
    weight_bytes: int

    def flops(self, requests: int, candidates: int) -> float:
        """Of a batch."""
        return float(requests * self.request_flops + requests * candidates * self.candidate_flops)

    def bytes(self, requests: int, candidates: int) -> float:
        """Of a batch."""
        return float(requests * candidates * self.candidate_bytes + self.weight_bytes)


def costs_of(graph: Graph, n_items: int, item_precision: Any) -> Costs:
    """Of the plan that the bundle has."""
    compiled = compile_graph(graph, n_items=n_items, item_precision=item_precision)
    shapes = {name: array.shape for name, array in compiled.weights.items()}
    found = explain(compiled.plan, shapes, n_items=n_items)
    candidate = [s for s in found.steps if s.domain == "candidate"]
    return Costs(
        found.flops("request"),
        found.flops("candidate"),
        sum(s.table_bytes for s in candidate),
        sum(s.weight_bytes for s in candidate),
    )


def share_of_ceiling(
    costs: Costs, requests: int, candidates: int, seconds: float, precision: str, ceilings: dict[str, Any]
) -> dict[str, Any]:
    """How near to the binding ceiling: the least time that its FLOPs and its bytes take, over the time it took."""
    flops, moved = costs.flops(requests, candidates), costs.bytes(requests, candidates)
    by = {
        "flops": flops / ceilings[f"{precision}_flops_per_second"],
        "memory": moved / ceilings["gather_bytes_per_second"],
    }
    binding = max(by, key=lambda which: by[which])
    return {
        "flops_per_second": flops / seconds,
        "bytes_per_second": moved / seconds,
        "binding": binding,
        "share_of_ceiling": by[binding] / seconds,
    }


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(contestants: Sequence[Contestant], batch: Batch, seconds: float) -> list[NDArray[np.float64]]:
    """Seconds of every call. Contestants take turns; each has its share of the time, and a call at least."""
    turn = seconds / (ROUNDS * len(contestants))
    times: list[list[float]] = [[] for _ in contestants]
    gc.collect()
    gc.disable()
    try:
        for contestant in contestants:
            contestant.load(batch)
        for round_ in range(ROUNDS):
            order = range(len(contestants)) if round_ % 2 == 0 else reversed(range(len(contestants)))
            for i in order:
                contestants[i].run()
                end = time.perf_counter() + min(turn, 1.0)
                calls = 0
                while calls < 1 or time.perf_counter() < end:
                    start = time.perf_counter()
                    contestants[i].run()
                    times[i].append(time.perf_counter() - start)
                    calls += 1
    finally:
        gc.enable()
    return [np.array(t) for t in times]


def device_seconds(run: Callable[[], None], *, calls: int = 8) -> float:
    """The median time from the first to the last thing that the device does for a call, as CUPTI sees it.

    Raises
    ------
    RuntimeError
        The profiler saw nothing on the device.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    gap = 8e-3
    run()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            time.sleep(2 * gap)
            run()
        torch.cuda.synchronize()
    on_device = [e for e in seen.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(e.time_range.start * 1e-6, e.time_range.end * 1e-6) for e in on_device]
    return span_of_calls(spans, gap=gap, calls=calls)


def span_of_calls(spans: Sequence[tuple[float, float]], *, gap: float, calls: int) -> float:
    """From what the device did, ``(start, end)`` in seconds: the median length of a call. Calls lie ``gap`` apart."""
    groups: list[list[float]] = []
    for start, end in sorted(spans):
        if groups and start - groups[-1][1] < gap:
            groups[-1][1] = max(groups[-1][1], end)
        else:
            groups.append([start, end])
    if len(groups) != calls:
        raise RuntimeError(f"the profiler saw {len(groups)} calls on the device, expected {calls}")
    return float(np.median([end - start for start, end in groups]))


def check_accuracy(
    ours: Sequence[FastMTR],
    graph: Graph,
    workload: Workload,
    results: Results,
    *,
    candidates: int,
    requests: int,
) -> None:
    """Of each precision: the largest difference from the float64 reference, and the overlap of the k best with its."""
    k = results.settings["k"]
    batch = make_batch(workload, requests=requests, candidates=candidates, seed=7)
    expected = []
    for r in range(requests):
        packed = {"request": batch.request.take(np.array([r])), "item": workload.items.take(batch.rows[r])}
        values = evaluate(graph, packed)
        expected.append(np.column_stack([np.broadcast_to(values[t].ravel(), candidates) for t in graph.tasks]))
    wanted = [set(np.argsort(-e.sum(1), kind="stable")[:k].tolist()) for e in expected]
    for contestant in ours:
        contestant.load(batch)
        contestant.run()
        scores, _ = contestant.scores()
        worst = float(np.abs(scores - np.concatenate(expected)).max())
        overlaps = [len(wanted[r] & set(contestant.result[0][r].tolist())) / k for r in range(requests)]
        row = {"contestant": contestant.name, "largest_difference": worst, "overlap": float(np.mean(overlaps))}
        results.accuracy.append(row | {"k": k, "candidates": candidates, "requests": requests})
        print(f"  {contestant.name}: differs by {worst:.3g}, overlap of the {k} best {row['overlap']:.1%}", flush=True)


class Stage:
    """The contestants for a cell. One that cannot be made or cannot run is left out, with the reason."""

    def __init__(self, ours: list[FastMTR], model: MultiTaskModel, graph: Graph, workload: Workload, results: Results):
        self.ours, self.model, self.graph, self.workload, self.results = ours, model, graph, workload, results
        self.device = results.settings["device"]
        self.torch_device = "cuda" if self.device == "cuda" else "cpu"
        self.eager: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.onnx = self._onnx()

    def _onnx(self) -> dict[str, tuple[Any, Any]]:
        try:
            import onnxruntime
            from peers import to_onnx
            from program import lower

            from fastmtr.compiler.split_by_domain import split_by_domain
        except ImportError as error:
            self.results.skip("ONNX Runtime", f"not installed: {error}")
            return {}
        if self.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            self.results.skip("ONNX Runtime", f"this build has no CUDA: {onnxruntime.get_available_providers()}")
            return {}
        programs = {
            "repeated": lower(self.graph, repeated=True, stacked=False),
            "hand-split, stacked": lower(split_by_domain(self.graph), repeated=False, stacked=True),
        }
        return {which: (program, to_onnx(program)) for which, program in programs.items()}

    def contestants(self, requests: int, candidates: int, clock: Clock) -> list[Contestant]:
        """All that can take part, ours first."""
        made: list[Contestant] = list(self.ours)
        if requests * candidates > MOST_ROWS_OF_PEERS:
            self.results.skip(f"peers at {requests} x {candidates}", f"more than {MOST_ROWS_OF_PEERS} rows at once")
            return made
        if self.device == "cuda":
            import torch

            torch._dynamo.reset()  # what it compiled for other sizes counts towards a limit of shapes
        makers: dict[str, Callable[[], Contestant]] = {}
        k = self.results.settings["k"]

        def of_torch(precision: str, compiled: bool) -> Callable[[], Contestant]:
            options = {"device": self.torch_device, "compiled": compiled, "precision": precision, "k": k}
            return lambda: TorchRows(self.model, self.workload, **options)  # type: ignore[arg-type]

        def of_onnx(which: str) -> Callable[[], Contestant]:
            name = f"ONNX Runtime {which}"
            return lambda: OnnxRuntime(name, *self.onnx[which], self.workload, device=self.device, k=k)

        for precision in ("fp32", "fp16") if self.device == "cuda" else ("fp32",):
            makers[f"torch eager {precision}"] = of_torch(precision, False)
            makers[f"torch compile {precision}"] = of_torch(precision, True)
        for which in self.onnx:
            if requests == 1 or which == "repeated":
                makers[f"ONNX Runtime {which}"] = of_onnx(which)
        batch = make_batch(self.workload, requests=requests, candidates=candidates, seed=0)
        for name, make in makers.items():
            if contestant := self._ready(name, make, batch, clock):
                made.append(contestant)
        return made

    def _ready(self, name: str, make: Callable[[], Contestant], batch: Batch, clock: Clock) -> Contestant | None:
        where = f"{name} at {batch.rows.shape[0]} x {batch.rows.shape[1]}"
        if name in self.failed:
            return None
        if name.startswith("torch compile"):
            if self.device != "cuda":
                self.failed.add(name)
                self.results.skip(name, "CUDA graphs need a GPU")
                return None
            if clock.left() < 60:
                self.results.skip(where, f"{clock.left():.0f} s left, compiling may take a minute")
                return None
        try:
            contestant = make()
            contestant.load(batch)
            for _ in range(3):
                contestant.run()
        except Exception as error:
            kind, _, _ = str(error).partition("\n")
            if "out of memory" not in str(error).lower():
                self.failed.add(name)
            self.results.skip(where, f"{type(error).__name__}: {kind[:200]}")
            return None
        return contestant


def measure_cell(
    stage: Stage, requests: int, candidates: int, seconds: float, clock: Clock, costs: dict[str, Costs], ceilings: Any
) -> None:
    """One row a contestant."""
    results = stage.results
    batch = make_batch(stage.workload, requests=requests, candidates=candidates, seed=1)
    contestants = stage.contestants(requests, candidates, clock)
    measured = measure(contestants, batch, seconds)
    for contestant, times in zip(contestants, measured, strict=True):
        difference = float(np.abs(contestant.best() - contestants[0].best()).max())
        if not difference < TOLERANCE:
            what = f"{contestant.name} at {requests} x {candidates}"
            results.skip(what, f"its best scores differ by {difference:.3g}: its time means nothing")
            continue
        row: dict[str, Any] = {
            "model": MODEL,
            "requests": requests,
            "candidates": candidates,
            "contestant": contestant.name,
            "p50_us": float(np.median(times)) * 1e6,
            "p99_us": float(np.quantile(times, 0.99)) * 1e6,
            "calls": len(times),
            "candidates_per_second": requests * candidates / float(np.mean(times)),
            "difference_of_best": difference,
        }
        took = float(np.median(times))
        if results.settings["device"] == "cuda":
            try:
                took = device_seconds(contestant.run)
                row["device_us"] = took * 1e6
            except Exception as error:
                results.skip(f"time on the device, {contestant.name} at {requests} x {candidates}", str(error)[:200])
        if ceilings and isinstance(contestant, FastMTR):
            precision = contestant.name.split()[-1]
            row |= share_of_ceiling(costs[precision], requests, candidates, took, precision, ceilings)
        results.rows.append(row)
    here = [r for r in results.rows if (r["requests"], r["candidates"]) == (requests, candidates)]
    ours = min((r for r in here if r["contestant"].startswith("fastmtr")), key=_p50)
    peers = [r for r in here if not r["contestant"].startswith("fastmtr")]
    best = min(peers, key=_p50, default=None)
    against = f", {best['contestant']} {best['p50_us']:.0f} us" if best else ""
    print(f"  {requests} x {candidates}: {ours['contestant']} {ours['p50_us']:.0f} us{against}", flush=True)


def _p50(row: dict[str, Any]) -> float:
    return float(row["p50_us"])


def run(results: Results, clock: Clock, ceilings: dict[str, Any], *, tiny: bool) -> None:
    """Everything, as far as the time goes."""
    device, k = results.settings["device"], results.settings["k"]
    items, rows = (500, 5000) if tiny else (100_000, 1_000_000)
    workload = make_workload(n_items=items, embedding_rows=rows)
    model, graph = workload.build(MODEL)
    costs = {p: costs_of(graph, items, STORED[p]) for p in PRECISIONS}
    with tempfile.TemporaryDirectory(prefix="fastmtr-gpu-") as folder:
        bundles = {}
        for stored in dict.fromkeys(STORED.values()):
            bundles[stored] = workload.bundle(
                Path(folder) / stored,
                MODEL,
                graph,
                fusion={"kind": "sum", "tasks": list(graph.tasks), "weights": [1.0] * len(graph.tasks)},
                item_precision=stored,
            )
        ours = []
        for precision in ("fp32", "fp16") if tiny else PRECISIONS:
            try:
                ours.append(FastMTR(bundles[STORED[precision]], workload, device=device, precision=precision, k=k))
            except Exception as error:
                results.skip(f"fastmtr {precision}", f"{type(error).__name__}: {error}")
        if not ours:
            raise SystemExit("no precision of fastmtr can be used on this device")
        print(f"ready, {clock.left():.0f} s left", flush=True)
        check_accuracy(ours, graph, workload, results, candidates=24 if tiny else 512, requests=2 if tiny else 8)
        results.write()
        stage = Stage(ours, model, graph, workload, results)
        cells = TINY_CELLS if tiny else CELLS
        for i, (requests, candidates) in enumerate(cells):
            if not tiny and clock.left() < 10:
                results.skip(f"{requests} x {candidates}", "no time left")
                continue
            share = clock.left() / (len(cells) - i)
            measure_cell(stage, requests, candidates, 0.0 if tiny else min(share / 2, 12.0), clock, costs, ceilings)
            results.write()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cuda-host"), default="cuda")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which no other cell is begun")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--ceilings", type=Path, help="what device_ceilings printed")
    parser.add_argument("--tiny", action="store_true", help="does all still work? The numbers mean nothing")
    given = parser.parse_args(arguments)
    ceilings = json.loads(given.ceilings.read_text()) if given.ceilings else {}
    k = 10 if given.tiny else K
    results = Results(given.out, {"device": given.device, "k": k, "tiny": given.tiny, "model": MODEL})
    try:
        run(results, Clock(time.monotonic() + given.seconds), ceilings, tiny=given.tiny)
    finally:
        results.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
