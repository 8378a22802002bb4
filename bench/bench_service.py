"""What a service sees beyond one request: independent rows in one call, many requests at once, loading a large bundle.

python bench/bench_service.py [--models mmoe,esmm] [--rounds 7] [--rows 16384] [--gigabytes 4]

Prints Markdown; ``--out FILE`` writes it, too. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from bench_score import machine, versions
from markdown_table import markdown_table
from numpy.typing import NDArray
from peers import Contestant, FastMTR, OnnxRuntime, OpenVINO, onnx_session, to_onnx
from program import lower
from workload import MODELS, Request, Workload, make_workload

from fastmtr._native import Model, Session
from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.graph import Graph, GraphBuilder, Input, Packed
from fastmtr.schema import Feature, Schema, Task

SECONDS = 0.25  # a thread's calls in a round: shorter, and one wrong move of the scheduler is the result


def bundle_of(workload: Workload, name: str, folder: Path) -> tuple[Graph, Path]:
    """The model's graph and bundle, item parts stored."""
    _, graph = workload.build(name)
    fusion = {"kind": "sum", "tasks": list(graph.tasks)}
    return graph, workload.bundle(folder / name, name, graph, fusion=fusion, item_memory=4 << 30)


def alternate(contestants: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Seconds [contestants, rounds], in turn."""
    times = np.empty((len(contestants), rounds))
    for c in contestants:
        c()
    for r in range(rounds):
        for i, run in enumerate(contestants):
            start = time.perf_counter()
            run()
            times[i, r] = time.perf_counter() - start
    return times


def median_of(ratios: NDArray[np.float64]) -> str:
    """With its range."""
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def independent_rows(workload: Workload, name: str, graph: Graph, bundle: Path, rows: int, rounds: int) -> list[str]:
    """Each row another user with one candidate: nothing of the request can be shared."""
    rng = np.random.default_rng(rows)
    users = workload.requests(1, count=rows)
    request = Request(
        Packed(np.concatenate([u.request.ids for u in users]), np.concatenate([u.request.dense for u in users])),
        rng.integers(0, len(workload.keys), rows),
    )
    program = lower(graph, repeated=True, stacked=False)
    model = to_onnx(program)
    peers: list[Contestant] = [
        OnnxRuntime("ONNX Runtime", program, onnx_session(model, threads=1), workload, request),
        OpenVINO("OpenVINO", program, model, workload, request, threads=1),
    ]
    contestants = [FastMTR("fastmtr", bundle, workload, threads=1), *peers]
    for c in contestants:
        c.load(request)
    times = alternate([c.run for c in contestants], rounds)
    found = [c.scores() for c in contestants]
    worst = max(float(np.abs(f - found[0]).max()) for f in found[1:])
    if not worst < 1e-4:
        raise SystemExit(f"{name}: contestants differ by {worst}: their times mean nothing")
    medians = np.median(times, axis=1)
    cells = [f"{1000 * medians[0]:.0f} ms", *(median_of(t / times[0]) for t in times[1:])]
    return [name, *cells, f"{worst:.1e}"]


def requests_at_once(workload: Workload, name: str, bundle: Path, n: int, rounds: int) -> list[str]:
    """Throughput of two threads, each with a session, over that of one."""
    model = Model(str(bundle))
    requests = workload.requests(n, count=64)
    offsets = np.array([0, n], np.uint64)
    calls = [(r.request.ids, r.request.dense, offsets, workload.keys[r.rows]) for r in requests]
    sessions = [Session(model), Session(model)]

    def serve(session: Session, turns: int) -> None:
        for _ in range(turns):
            for call in calls:
                session.score(*call)

    turns = 1 + int(SECONDS / alternate([lambda: serve(sessions[0], 1)], 3).min())

    def one() -> None:
        serve(sessions[0], turns)

    def two() -> None:
        threads = [threading.Thread(target=serve, args=(s, turns)) for s in sessions]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    times = alternate([one, two], rounds)
    return [name, str(n), f"{len(calls) * turns / np.median(times[0]):.0f}", median_of(2 * times[0] / times[1])]


def large_bundle(folder: Path, gigabytes: float) -> list[str]:
    """A model with one large table of embeddings: from Model() to its first score, the file in the page cache."""
    width = 64
    rows = int(gigabytes * 2**30 / 4 / width)
    g = GraphBuilder([Input("user", "request", "ids", 0, 1, rows=rows), Input("x", "item", "dense", 0, width)])
    table = np.zeros((rows, width), np.float32)
    table[:: 1 + rows // 1000] = 0.5
    user = g.embedding("user", g.weight("table", table))
    g.output("click", g.activation(g.dot(user, "x"), "sigmoid"))
    features = (Feature(name="x", entity="item", kind="numeric"),)
    path = write_bundle(
        folder / "large",
        schema=Schema(user="user", item="item", features=features, tasks=(Task(name="click"),)),
        graph=g.build(),
        catalogue=Catalogue(np.arange(1000), Packed(np.zeros((1000, 0), np.int32), np.ones((1000, width), np.float32))),
    )
    size = sum(f.stat().st_size for f in path.iterdir())
    for file in path.iterdir():
        file.read_bytes()  # into the page cache
    request = (np.array([[rows - 1]], np.int32), np.zeros((1, 0), np.float32), np.array([0, 10], np.uint64))

    def load() -> None:
        Session(Model(str(path))).score(*request, np.arange(10))

    times = alternate([load], 7)[0]
    return [f"{size / 1e9:.2f} GB", f"{1000 * np.median(times):.1f} ms", f"{1000 * times.max():.1f} ms"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=16_384, help="independent rows (16384)")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the large bundle (4)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    given = parser.parse_args(arguments)

    workload = make_workload(n_items=50_000, embedding_rows=1_000_000)
    independent, at_once = [], []
    with tempfile.TemporaryDirectory(prefix="fastmtr-bench-") as text:
        folder = Path(text)
        for name in given.models.split(","):
            graph, bundle = bundle_of(workload, name, folder)
            independent.append(independent_rows(workload, name, graph, bundle, given.rows, given.rounds))
            at_once += [requests_at_once(workload, name, bundle, n, given.rounds) for n in (16, 512)]
            print(independent[-1], at_once[-2:], file=sys.stderr)
        loading = large_bundle(folder, given.gigabytes)
    about = machine()
    made_with = ", ".join(f"{k} {v}" for k, v in versions().items())
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}: {about['cpu']} ({', '.join(about['instruction_sets'])}), {about['cores']} cores"
        + f"; load when it ended {about['load_before']}; {made_with}",
        f"### {given.rows} independent rows, one thread: peer time / fastmtr time, medians [least, most]",
        "\n".join(markdown_table(["model", "fastmtr", "ONNX Runtime", "OpenVINO", "largest difference"], independent)),
        "### Two threads, each with a session, over one: throughput",
        "\n".join(markdown_table(["model", "N", "requests a second, one thread", "two threads / one"], at_once)),
        "### Loading to the first score, files in the page cache",
        "\n".join(markdown_table(["bundle", "median", "slowest"], [loading])),
    ]
    text = "\n\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
