"""Models of other libraries, converted: how near their scores are, and how much quicker the engine gives them.

python bench/bench_convert.py [--models MMOE,DIN] [--n 512] [--rounds 15] [--markdown FILE]

Each model of tests/rechub_models.py and tests/deepctr_models.py is trained a little on real impressions, and converted.
One request has N candidates. Its own library and ONNX Runtime get N rows with the user repeated in each, as exporters
make them; the engine gets one row of the user and N keys of its catalogue. All use one thread, and they take turns.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markdown_table import markdown_table
from numpy.typing import NDArray

from fastmtr import _native
from fastmtr.bundle import Catalogue, open_bundle, write_bundle
from fastmtr.compiler.costs import model_flops
from fastmtr.convert import Conversion
from fastmtr.convert.schemas import schema_of
from fastmtr.convert.torch_export import ModuleCall
from fastmtr.convert.torch_source import TorchSource
from fastmtr.graph import Domain, Packed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LIBRARIES = {"torch-rechub": "rechub_models", "DeepCTR-Torch": "deepctr_models"}
HEAD = ("library", "model", "largest difference", "MFLOP a request", "factored", "less", "its library", "ONNX Runtime")


@dataclass(frozen=True)
class Row:
    """One model's line of the table; times are in seconds a request."""

    library: str
    model: str
    difference: float
    flops: float
    factored: float
    engine: float
    own: float
    onnx: float

    def cells(self) -> tuple[str, ...]:
        """As text; the last two are how often quicker the engine is."""
        return (
            self.library,
            self.model,
            f"{self.difference:.1e}",
            f"{self.flops / 1e6:.1f}",
            f"{self.factored / 1e6:.1f}",
            f"{self.flops / self.factored:.1f} x",
            f"{self.own / self.engine:.1f} x",
            "not exported" if math.isnan(self.onnx) else f"{self.onnx / self.engine:.1f} x",
        )


def measured(library: str, name: str, *, n: int, rounds: int) -> Row:
    """One model."""
    models = import_module(LIBRARIES[library])
    conversion: Conversion = models.converted(name)
    assert conversion.sample is not None
    with tempfile.TemporaryDirectory() as folder:
        path = _bundle(conversion, Path(folder) / "bundle", n)
        session = _native.Session(_native.Model(str(path)))
        costs = open_bundle(path).explain()
        one = {
            domain: packed.take(np.zeros(n, int)) for domain, packed in conversion.sample.items() if domain == "request"
        }
        rows: dict[Domain, Packed] = {**_items(conversion.sample, n), **one}
        expected = conversion.source.score(rows)
        call = _engine(session, rows, n)
        got = call()
        difference = max(
            float(np.abs(got[:, [i]] - expected[task]).max()) for i, task in enumerate(conversion.graph.tasks)
        )
        assert isinstance(conversion.source, TorchSource)
        arrays, own = conversion.source.arguments(rows), conversion.source.call
        assert isinstance(own, ModuleCall)
        contestants: list[Callable[[], Any]] = [call, lambda: own(arrays)]
        onnx = _onnx(own, arrays, Path(folder) / "model.onnx")
        times = _in_turns([*contestants, *([onnx] if onnx else [])], rounds)
    return Row(
        library,
        name,
        difference,
        flops=n * model_flops(conversion.graph),
        factored=costs.flops("request") + n * costs.flops("candidate"),
        engine=times[0],
        own=times[1],
        onnx=times[2] if onnx else math.nan,
    )


def _items(sample: Mapping[Domain, Packed], n: int) -> dict[Domain, Packed]:
    """The rows of items and candidates, again and again until there are n."""
    rows = np.resize(np.arange(next(iter(sample.values())).n_rows), n)
    return {domain: packed.take(rows) for domain, packed in sample.items() if domain != "request"}


def _bundle(conversion: Conversion, path: Path, n: int) -> Path:
    graph = conversion.graph
    assert conversion.sample is not None
    nothing = Packed(np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32))
    items = _items(conversion.sample, n).get("item", nothing)
    return write_bundle(path, schema=schema_of(graph), graph=graph, catalogue=Catalogue(np.arange(n), items))


def _engine(session: _native.Session, rows: Mapping[Domain, Packed], n: int) -> Callable[[], NDArray[np.float32]]:
    def some(domain: Domain, kind: str, count: int) -> NDArray[Any] | None:
        matrix = getattr(rows[domain], kind)[:count] if domain in rows else np.zeros((0, 0))
        return np.ascontiguousarray(matrix) if matrix.shape[1] else None

    request = some("request", "ids", 1), some("request", "dense", 1)
    candidate = {f"candidate_{kind}": some("candidate", kind, n) for kind in ("ids", "dense")}
    offsets, keys = np.array([0, n]), np.arange(n)
    return lambda: session.score(*request, offsets, keys, **candidate)[0]  # type: ignore[arg-type]


class _OneByOne(torch.nn.Module):
    """A source model that takes its arguments as tensors one by one, as exporters want it."""

    def __init__(self, call: ModuleCall) -> None:
        super().__init__()
        self.module, self.arguments = call

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The model's outputs, without names."""
        return tuple(torch.utils._pytree.tree_leaves(self.arguments.give(self.module, tensors)))


def _onnx(call: ModuleCall, arrays: Mapping[str, NDArray[Any]], path: Path) -> Callable[[], Any] | None:
    import onnxruntime

    names = list(arrays)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays.values())
    axes = {name: {0: "n"} for name in names}
    module = _OneByOne(call).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter
            torch.onnx.export(module, tensors, str(path), input_names=names, dynamic_axes=axes, dynamo=False)
    except Exception as error:  # the exporter raises errors of many kinds
        print(f"not exported to ONNX: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {i.name: arrays[i.name] for i in session.get_inputs()}
    return lambda: session.run(None, given)


def _in_turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The median of each call's time; a turn is as many calls as fit in 20 ms, at least three."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(rounds + 1):
        for own, call in zip(times, calls, strict=True):
            call()
            begun = time.perf_counter()
            count = 0
            while count < 3 or time.perf_counter() - begun < 0.02:
                call()
                count += 1
            if round_:  # the first warms up
                own.append((time.perf_counter() - begun) / count)
    return [statistics.median(own) for own in times]


PAGE = """# Models of other libraries, converted

Made by `python bench/bench_convert.py --markdown docs/converters.md`: {machine}, torch {torch}, ONNX Runtime {onnx}.

{table}

*largest difference*: of a probability (a score, for YoutubeDNN), between the engine and the model in its own library,
over the N rows of one request. *MFLOP a request*: of N rows through the model as it is, and as the compiler factors it.
The models are small, as in the tests (embeddings of 8, layers of 24 and 16).

Not converted, and why:

* DIEN of DeepCTR-Torch drops rows with an empty history while it scores, so `torch.export` cannot trace it; DIEN of
  torch-rechub 0.9 raises an error in its own `forward`.
* CCPM of DeepCTR-Torch needs the k largest of computed values in their order.
* LSTMs, and GRUs in both directions or from a computed state, have no counterpart.
* DSelect-k of LibMTL compares computed numbers: a score that jumps has no counterpart.
"""


def page(rows: Sequence[Row], *, n: int) -> str:
    """The page of the documentation."""
    from importlib.metadata import version

    machine = f"{_processor()}, one thread"
    return PAGE.format(machine=machine, torch=torch.__version__, onnx=version("onnxruntime"), table=table(rows, n=n))


def _processor() -> str:
    names = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return names[0].strip() if names else platform.processor()


def table(rows: Sequence[Row], *, n: int) -> str:
    """In Markdown."""
    lines = markdown_table(HEAD, [row.cells() for row in rows], right_from=2)
    note = f"N = {n} candidates a request, one thread; the last two columns: how often quicker the engine is."
    return "\n".join([*lines, "", note])


def main() -> None:
    """Measure what the arguments name, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="only these, separated by commas")
    parser.add_argument("--n", type=int, default=512, help="candidates a request (default: 512)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", type=Path, help="write a page with the table, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = given.models.split(",") if given.models else None
    rows = []
    for library, module in LIBRARIES.items():
        for name in import_module(module).MODELS:
            if wanted is None or name in wanted:
                rows.append(measured(library, name, n=given.n, rounds=given.rounds))
                print("  ".join(rows[-1].cells()), file=sys.stderr)
    text = table(rows, n=given.n)
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(page(rows, n=given.n))


if __name__ == "__main__":
    main()
