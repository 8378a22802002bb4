"""Scoring speed against ONNX Runtime, OpenVINO and PyTorch, as ratios in one run. See README.md beside this file.

python bench/bench_score.py [--quick] [--models mmoe,esmm] [--n 16,512] [--threads 1,2]
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markdown_table import markdown_table
from numpy.typing import NDArray
from peers import (
    CertifiedFastMTR,
    Contestant,
    FastMTR,
    OnnxRuntime,
    OpenVINO,
    TorchModel,
    TorchProgram,
    in_int8,
    onnx_session,
    to_onnx,
)
from program import Program, lower
from workload import MODELS, Request, Workload, make_workload

from fastmtr.compiler.split_by_domain import split_by_domain
from fastmtr.graph import Domain, Graph, Packed
from fastmtr.reference import evaluate

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from fastmtr.models import MultiTaskModel

HERE = Path(__file__).parent
OURS = "fastmtr"
OURS_UNSTORED = "fastmtr, nothing stored"
OURS_INT8 = "fastmtr int8"
OURS_CERTIFIED = "fastmtr int8 certified"
CERTIFIED_K = 10
INT8_PROGRAMS = ("repeated", "hand-split")
TOLERANCE, INT8_TOLERANCE = 1e-4, 0.1
PROGRAMS = ("repeated", "hand-split", "hand-split, stacked")
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}


@dataclass(frozen=True)
class Settings:
    """How long and what to measure."""

    models: tuple[str, ...]
    n: tuple[int, ...]
    threads: tuple[int, ...]
    peers: tuple[str, ...]
    rounds: int
    turn: float  # seconds of calls a contestant makes in a round, at least `least` calls
    least: int
    most: int
    requests: int
    items: int
    rows: int
    item_memory: int
    seed: int
    int8: bool


@dataclass(frozen=True)
class Prepared:
    """A model in all its forms."""

    name: str
    workload: Workload
    torch_model: MultiTaskModel
    graph: Graph
    programs: dict[str, Program]
    onnx: dict[str, onnx.ModelProto]
    bundles: dict[str, Path]


# ---- measuring -------------------------------------------------------------------------------------------------------


def prepare(name: str, workload: Workload, settings: Settings, folder: Path) -> Prepared:
    """Build the model, its programs and its bundles."""
    model, graph = workload.build(name)
    split = split_by_domain(graph)
    programs = {
        "repeated": lower(graph, repeated=True, stacked=False),
        "hand-split": lower(split, repeated=False, stacked=False),
        "hand-split, stacked": lower(split, repeated=False, stacked=True),
    }
    bundles = {OURS: settings.item_memory, OURS_UNSTORED: 0}
    for item_memory in bundles.values():
        workload.bundle(
            folder / f"{name}-{item_memory}",
            name,
            graph,
            fusion={"kind": "sum", "tasks": list(graph.tasks), "weights": [1.0] * len(graph.tasks)},
            item_memory=item_memory,
        )
    return Prepared(
        name,
        workload,
        model,
        graph,
        programs,
        {which: to_onnx(program) for which, program in programs.items()},
        {contestant: folder / f"{name}-{item_memory}" for contestant, item_memory in bundles.items()},
    )


class Stage:
    """Makes the contestants of one model and thread count for each number of candidates; what can be shared is."""

    def __init__(self, prepared: Prepared, settings: Settings, threads: int) -> None:
        self.prepared, self.settings, self.threads = prepared, settings, threads
        self.ours = [FastMTR(c, b, prepared.workload, threads=threads) for c, b in prepared.bundles.items()]
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        if "onnxruntime" in settings.peers:
            self.sessions = {w: onnx_session(m, threads=threads) for w, m in prepared.onnx.items()}
        self.int8_sessions: dict[str, onnxruntime.InferenceSession] = {}
        if settings.int8:
            stored = prepared.bundles[OURS]
            some = prepared.workload.requests(512, count=8)
            self.ours.append(FastMTR(OURS_INT8, stored, prepared.workload, threads=threads, int8=True))
            self.ours.append(
                CertifiedFastMTR(OURS_CERTIFIED, stored, prepared.workload, some, k=CERTIFIED_K, threads=threads)
            )
            if "onnxruntime" in settings.peers:
                quantised = {which: in_int8(prepared.onnx[which]) for which in INT8_PROGRAMS}
                self.int8_sessions = {w: onnx_session(m, threads=threads) for w, m in quantised.items()}

    def contestants(self, example: Request) -> list[Contestant]:
        """All contestants, ready for requests of the example's size; fastmtr is the first."""
        p, peers = self.prepared, self.settings.peers
        made: list[Contestant] = list(self.ours)
        for which, session in self.sessions.items():
            made.append(OnnxRuntime(f"ONNX Runtime {which}", p.programs[which], session, p.workload, example))
        for which, session in self.int8_sessions.items():
            name = f"ONNX Runtime int8 {which}"
            made.append(OnnxRuntime(name, p.programs[which], session, p.workload, example, int8=True))
        if "openvino" in peers:
            for which, model in p.onnx.items():
                name = f"OpenVINO {which}"
                made.append(OpenVINO(name, p.programs[which], model, p.workload, example, threads=self.threads))
        if "torch" in peers:
            made.append(TorchModel("PyTorch repeated", p.torch_model, p.workload))
            for which in PROGRAMS[1:]:
                made.append(TorchProgram(f"PyTorch {which}", p.programs[which], p.workload, example))
        return made


def measure(
    contestants: Sequence[Contestant], requests: Sequence[Request], settings: Settings
) -> list[list[NDArray[Any]]]:
    """Seconds of every call: for each contestant, for each round. The order changes from round to round."""
    calls = [_calls_a_turn(c, requests, settings) for c in contestants]
    rng = np.random.default_rng(settings.seed)
    times: list[list[NDArray[Any]]] = [[] for _ in contestants]
    gc.collect()
    gc.disable()
    try:
        for _ in range(settings.rounds):
            for i in rng.permutation(len(contestants)):
                time.sleep(0.01)  # helpers of the last contestant stop spinning
                _turn(contestants[i], requests, 3)
                times[i].append(_turn(contestants[i], requests, calls[i]))
    finally:
        gc.enable()
    return times


def _calls_a_turn(contestant: Contestant, requests: Sequence[Request], settings: Settings) -> int:
    typical = float(np.median(_turn(contestant, requests, 5)))
    return int(np.clip(settings.turn / typical, settings.least, settings.most))


def _turn(contestant: Contestant, requests: Sequence[Request], calls: int) -> NDArray[Any]:
    clock = time.perf_counter_ns
    times = np.empty(calls)
    for k in range(calls):
        contestant.load(requests[k % len(requests)])
        start = clock()
        contestant.run()
        times[k] = clock() - start
    return times * 1e-9


def largest_differences(contestants: Sequence[Contestant], requests: Sequence[Request], p: Prepared) -> list[float]:
    """Of each contestant from the float64 reference over the first requests; a contestant that is wrong is an error."""
    worst = [0.0] * len(contestants)
    for request in requests[:2]:
        packed: dict[Domain, Packed] = {"request": request.request, "item": p.workload.items.take(request.rows)}
        values = evaluate(p.graph, packed)
        expected = np.column_stack([np.broadcast_to(values[t].ravel(), len(request.rows)) for t in p.graph.tasks])
        for i, contestant in enumerate(contestants):
            contestant.load(request)
            contestant.run()
            worst[i] = max(worst[i], float(np.nanmax(np.abs(contestant.scores() - expected))))
    for contestant, difference in zip(contestants, worst, strict=True):
        exact = not contestant.int8 or isinstance(contestant, CertifiedFastMTR)
        if not difference < (TOLERANCE if exact else INT8_TOLERANCE):
            raise SystemExit(
                f"{p.name}: {contestant.name} differs from the reference by {difference}: its time means nothing"
            )
    return worst


def interval(name: str, values: NDArray[Any]) -> dict[str, float]:
    """Median and a 95% interval for it from order statistics (no distribution assumed)."""
    ordered = np.sort(values)
    n = len(ordered)
    low = max(0, int(np.floor((n - 1.96 * np.sqrt(n)) / 2)))
    return {
        name: float(np.median(ordered)),
        f"{name}_low": float(ordered[low]),
        f"{name}_high": float(ordered[n - 1 - low]),
    }


def cell(
    p: Prepared,
    n: int,
    threads: int,
    contestants: Sequence[Contestant],
    requests: Sequence[Request],
    settings: Settings,
) -> list[dict[str, Any]]:
    """One row a contestant. The ratio is its time over fastmtr's, round by round: above 1, fastmtr is faster."""
    differences = largest_differences(contestants, requests, p)
    times = measure(contestants, requests, settings)
    medians = [np.array([np.median(turn) for turn in rounds]) for rounds in times]
    ours = {c.name: m for c, m in zip(contestants, medians, strict=True)}
    rows = []
    for contestant, rounds, median, difference in zip(contestants, times, medians, differences, strict=True):
        calls = np.concatenate(rounds) * 1e6
        rows.append(
            {
                "model": p.name,
                "n": n,
                "threads": threads,
                "contestant": contestant.name,
                "p50_us": float(np.median(calls)),
                "p99_us": float(np.quantile(calls, 0.99)),
                "calls": len(calls),
                "int8": contestant.int8,
                **interval("ratio", median / ours[OURS]),
                **interval("ratio_to_unstored", median / ours[OURS_UNSTORED]),
                **(interval("ratio_to_int8", median / ours[OURS_INT8]) if settings.int8 else {}),
                **(interval("ratio_to_certified", median / ours[OURS_CERTIFIED]) if settings.int8 else {}),
                "rescored": rescored_share(contestant, requests) if isinstance(contestant, CertifiedFastMTR) else None,
                "largest_difference": difference,
                "round_medians_us": [round(float(m) * 1e6, 2) for m in median],
            }
        )
    return rows


def rescored_share(contestant: CertifiedFastMTR, requests: Sequence[Request]) -> float:
    """Of the candidates: those that were scored again in float32."""
    shares = []
    for request in requests:
        contestant.load(request)
        contestant.run()
        shares.append(contestant.rescored() / len(request.rows))
    return float(np.mean(shares))


def run(settings: Settings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All cells."""
    import torch

    workload = make_workload(n_items=settings.items, embedding_rows=settings.rows, seed=settings.seed)
    rows: list[dict[str, Any]] = []
    for name in settings.models:
        with tempfile.TemporaryDirectory(prefix="fastmtr-bench-") as folder:
            say(f"{name}: building")
            prepared = prepare(name, workload, settings, Path(folder))
            for threads in settings.threads:
                torch.set_num_threads(threads)
                stage = Stage(prepared, settings, threads)
                for n in settings.n:
                    requests = workload.requests(n, count=settings.requests)
                    contestants = stage.contestants(requests[0])
                    rows += cell(prepared, n, threads, contestants, requests, settings)
                    ours = next(r for r in rows[::-1] if r["contestant"] == OURS)
                    best = best_peer(rows, name, n, threads)
                    against = "" if best is None else f", {best['contestant']} {best['p50_us']:.0f} us"
                    say(f"{name}, N = {n}, {threads} thread(s): fastmtr {ours['p50_us']:.0f} us{against}")
    return rows


# ---- results ---------------------------------------------------------------------------------------------------------


def best_peer(rows: Sequence[dict[str, Any]], model: str, n: int, threads: int) -> dict[str, Any] | None:
    """The float32 peer of the smallest median in this cell."""
    peers = [r for r in _of(rows, model, n, threads) if not r["int8"] and not r["contestant"].startswith(OURS)]
    return min(peers, key=lambda r: r["p50_us"], default=None)


def _of(rows: Sequence[dict[str, Any]], model: str, n: int, threads: int) -> list[dict[str, Any]]:
    return [r for r in rows if (r["model"], r["n"], r["threads"]) == (model, n, threads)]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            cpu[key.strip()] = value.strip()
    except OSError:  # not Linux
        pass
    flags = cpu.get("flags", "").split()
    caches = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((entry / f).read_text().strip() for f in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "family": cpu.get("cpu family", ""),
        "cpu_model": cpu.get("model", ""),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [
            f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags
        ],
        "caches": caches,
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of everything that took part."""
    packages = ("fastmtr", "numpy", "onnx", "onnxruntime", "openvino", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def time_text(microseconds: float) -> str:
    """Three digits, in us or ms."""
    return f"{microseconds:.0f} us" if microseconds < 9999.5 else f"{microseconds / 1000:.1f} ms"


def ratio_text(row: dict[str, Any], which: str = "ratio") -> str:
    """A ratio with its interval."""
    return f"{row[which]:.2f} [{row[f'{which}_low']:.2f}, {row[f'{which}_high']:.2f}]"


def markdown(rows: Sequence[dict[str, Any]], about: dict[str, Any], made_with: dict[str, str]) -> str:
    """The tables."""
    order = list(dict.fromkeys(r["contestant"] for r in rows))
    cells = list(dict.fromkeys((r["threads"], r["model"], r["n"]) for r in rows))
    lines = [
        f"{about['cpu']} ({', '.join(about['instruction_sets'])}), {about['cores']} cores; load when it began: "
        f"{about['load_before']}; " + ", ".join(f"{k} {v}" for k, v in made_with.items()),
        "",
        "Ratios are peer time / fastmtr time, medians over rounds with a 95% interval: above 1, fastmtr is faster.",
    ]
    for threads in dict.fromkeys(t for t, _, _ in cells):
        here = [(m, n) for t, m, n in cells if t == threads]
        lines += ["", f"### {threads} thread{'s' if threads > 1 else ''}: fastmtr against the best peer", ""]
        lines += markdown_table(
            [
                "model",
                "N",
                "fastmtr p50",
                "p99",
                "best peer",
                "its p50",
                "p99",
                "best peer / fastmtr",
                "best peer / fastmtr, nothing stored",
            ],
            [_summary_row(rows, m, n, threads) for m, n in here],
        )
        lines += ["", *_summary(rows, here, threads)]
        lines += ["", f"### {threads} thread{'s' if threads > 1 else ''}: each contestant / fastmtr", ""]
        others = [c for c in order if c != OURS]
        body = []
        for m, n in here:
            found = {r["contestant"]: r for r in _of(rows, m, n, threads)}
            body.append([m, str(n), *(ratio_text(found[c]) if c in found else "" for c in others)])
        lines += markdown_table(["model", "N", *others], body)
    if any(r["contestant"] == OURS_INT8 for r in rows):
        lines += _int8_tables(rows, cells)
    lines += ["", "### Largest difference of a probability from the float64 reference", ""]
    models = list(dict.fromkeys(r["model"] for r in rows))
    body = [
        [
            c,
            *(
                f"{max(r['largest_difference'] for r in rows if (r['contestant'], r['model']) == (c, m)):.1e}"
                for m in models
            ),
        ]
        for c in order
    ]
    lines += markdown_table(["contestant", *models], body)
    return "\n".join(lines) + "\n"


def _int8_tables(rows: Sequence[dict[str, Any]], cells: Sequence[tuple[int, str, int]]) -> list[str]:
    """What products in 8 bits give, against float32 peers and against the peer's own 8 bits."""
    against = ("ONNX Runtime repeated", "ONNX Runtime hand-split", *(f"ONNX Runtime int8 {w}" for w in INT8_PROGRAMS))
    lines = []
    for ours, key in ((OURS_INT8, "ratio_to_int8"), (OURS_CERTIFIED, "ratio_to_certified")):
        lines += ["", f"### Each contestant / {ours}", ""]
        if ours == OURS_CERTIFIED:
            lines += [
                f"It ranks: the {CERTIFIED_K} best of float32 with their float32 scores. All others only score. "
                "*rescored*: candidates that it scored again in float32.",
                "",
            ]
        body = []
        for threads, model, n in cells:
            found = {r["contestant"]: r for r in _of(rows, model, n, threads)}
            mine = found[ours]
            share = "" if mine["rescored"] is None else f"{mine['rescored']:.1%}"
            ratios = (ratio_text(found[c], key) if c in found else "" for c in (OURS, *against))
            body.append([str(threads), model, str(n), time_text(mine["p50_us"]), share, *ratios])
        lines += markdown_table(["threads", "model", "N", "its p50", "rescored", OURS, *against], body)
    return lines


def _summary_row(rows: Sequence[dict[str, Any]], model: str, n: int, threads: int) -> list[str]:
    ours = next(r for r in _of(rows, model, n, threads) if r["contestant"] == OURS)
    row = [model, str(n), time_text(ours["p50_us"]), time_text(ours["p99_us"])]
    best = best_peer(rows, model, n, threads)
    if best is None:
        return [*row, "", "", "", "", ""]
    times = [time_text(best["p50_us"]), time_text(best["p99_us"])]
    return [*row, best["contestant"], *times, ratio_text(best), ratio_text(best, "ratio_to_unstored")]


def _summary(rows: Sequence[dict[str, Any]], cells: Sequence[tuple[str, int]], threads: int) -> list[str]:
    """One sentence: the geometric mean and the worst cell."""
    best = {(m, n): best_peer(rows, m, n, threads) for m, n in cells}
    ratios = {f"{m}, N = {n}": b["ratio"] for (m, n), b in best.items() if b is not None}
    if not ratios:
        return []
    mean, worst = np.exp(np.mean(np.log(list(ratios.values())))), min(ratios, key=lambda name: ratios[name])
    return [f"Best peer / fastmtr: geometric mean {mean:.2f}, smallest {ratios[worst]:.2f} ({worst})."]


def save(
    folder: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any], made_with: dict[str, str], settings: Settings
) -> Path:
    """Write the JSON file and, beside it, the rows as CSV and the tables as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    cpu = "-".join(filter(str.isalnum, about["cpu"].lower().replace("(r)", "").replace("(tm)", "").split()))
    stem = folder / f"{datetime.now(UTC):%Y-%m-%d}-{cpu or 'cpu'}-{about['family']}-{about['cpu_model']}"
    content = {
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "machine": about,
        "versions": made_with,
        "settings": settings.__dict__,
        "rows": rows,
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        columns = [k for k in rows[0] if k != "round_medians_us"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    stem.with_suffix(".md").write_text(markdown(rows, about, made_with))
    return stem.with_suffix(".json")


# ---- command line ----------------------------------------------------------------------------------------------------


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0 with commas between, found {text!r}")
    return tuple(map(int, parts))


def _names(among: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := [name for name in found if name not in among]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(among)}")
        return found

    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="a few short rounds on a small workload; saves nothing",
    )
    add("--models", type=_names(MODELS), default=MODELS, metavar="A,B", help=f"of {','.join(MODELS)}")
    add("--n", type=_numbers, metavar="A,B", help="numbers of candidates (default 1,16,128,512,2048)")
    add("--threads", type=_numbers, default=(1, 2), metavar="A,B", help="thread counts (default 1,2)")
    add(
        "--peers",
        type=_names([*PEERS, "none"]),
        default=tuple(PEERS),
        metavar="A,B",
        help=f"of {','.join(PEERS)}, or none",
    )
    add("--rounds", type=int, help="rounds a cell (default 21)")
    add("--items", type=int, help="items of the catalogue (default 200000)")
    add("--rows", type=int, help="rows of all embedding tables together (default 3000000)")
    add("--item-memory", type=int, default=4 << 30, help="bytes fastmtr may store for the items (default 4 GiB)")
    add("--int8", action="store_true", help="also products in 8 bits: fastmtr's, certified, and ONNX Runtime's")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder of the results (default bench/results)")
    given = parser.parse_args(arguments)
    quick = given.quick
    settings = Settings(
        models=given.models,
        n=given.n or ((16, 512) if quick else (1, 16, 128, 512, 2048)),
        threads=given.threads,
        peers=given.peers,
        rounds=given.rounds or (3 if quick else 21),
        turn=0.005 if quick else 0.05,
        least=2 if quick else 5,
        most=200,
        requests=4 if quick else 16,
        items=given.items or (20_000 if quick else 200_000),
        rows=given.rows or (200_000 if quick else 3_000_000),
        item_memory=given.item_memory,
        seed=given.seed,
        int8=given.int8,
    )
    about = machine()
    rows = run(settings, lambda text: print(text, file=sys.stderr, flush=True))
    made_with = versions()
    print(markdown(rows, about, made_with))
    folder = given.out or (None if quick else HERE / "results")
    if folder is not None:
        print(f"saved {save(folder, rows, about, made_with, settings)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
