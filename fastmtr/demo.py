"""``fastmtr demo``: real impressions of a short-video app, from the log to ranked lists."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from fastmtr.errors import BundleError, FastMTRError
from fastmtr.evaluation.report import Latency, Report, Table, latency_table, wide_console
from fastmtr.latency import measure_stages
from fastmtr.ranker import Ranker, Ranking
from fastmtr.retrieval import RetrievalConfig, Retriever

__all__ = ["ready_bundle", "run_demo"]

_TITLE = "KuaiRand: short videos, five tasks"
_NEEDED = ("torch", "sklearn", "pyarrow", "rich")
_CALLS = 500
_LISTS = 2
_K = 5
# The page (tab) that most impressions come from, on the evening of the first test day.
_CONTEXT = {"tab": 1, "time_ms": 1_651_752_000_000}
_CONTEXT_WORDS = "page 1, Thursday 2022-05-05, 20:00"


def ready_bundle() -> Path:
    """The bundle that is packaged with fastmtr; ``fastmtr/datasets/README.md`` has the command that makes it."""
    path = Path(__file__).parent / "datasets" / "kuairand_bundle"
    if not path.is_dir():
        raise BundleError(f"{path} is not there: this installation of fastmtr has no ready bundle")
    return path


def run_demo(
    *,
    html: Path | None = None,
    bundle: Path | None = None,
    seeds: int = 0,
    epochs: int | None = None,
    ready: bool = False,
) -> None:
    """Train (or take the ready bundle), and show quality by task, lists, and latency by stage.

    Parameters
    ----------
    html : Path, optional
        Write a page with plots there.
    bundle : Path, optional
        Keep the bundle there; it must not exist yet.
    seeds : int
        At least 2: compare with single-task models over so many seeds.
    epochs : int, optional
        In place of the configuration's.
    ready : bool
        Do not train. Without torch and its companions that is what happens, and is said.
    """
    began = perf_counter()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and (bundle or seeds or epochs):
        raise FastMTRError(f"training needs {', '.join(missing)}: pip install 'fastmtr[demo]'")
    say = _Voice()
    with ExitStack() as stack:
        if ready or missing:
            why = f"{', '.join(missing)} not installed" if missing else "--ready"
            say.title(f"Ready bundle ({why}; quality is as measured when it was made)")
            path = ready_bundle()
            stored = Ranker.load(path).bundle.report
            report = Report.from_json(stored)
            for table in report.tables():
                say(table)
        else:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastmtr-")))
            path = bundle if bundle is not None else scratch / "bundle"
            report = _learn(path, seeds=seeds, epochs=epochs, say=say)
        _serve(path, report, html=html, say=say)
    say(f"\ndone in {perf_counter() - began:.0f} s" + (f"; the bundle is in {bundle}" if bundle else ""))


def _learn(path: Path, *, seeds: int, epochs: int | None, say: _Voice) -> Report:
    import torch

    from fastmtr import workflow
    from fastmtr.datasets import kuairand

    if path.exists():
        raise BundleError(f"{path} exists already; give --bundle another path, or remove it")
    # More threads gain little with a model of this size, lose much on a busy machine, and change the last bits.
    torch.set_num_threads(1)
    say.title("Data")
    data = kuairand()
    config = data.config
    if epochs is not None:
        config = msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, epochs=epochs))
    prepared = data.prepare(progress=say.live)
    say(
        f"{data.log.num_rows:,} impressions; {len(prepared.users.keys):,} users and "
        f"{len(prepared.catalogue.keys):,} videos are described"
    )
    say.title(f"Training: {workflow.describe_model(config.model)}")
    fitted = workflow.fit(config, prepared, progress=say.live)
    result = fitted.result
    say(f"best epoch {result.best_epoch} of {len(result.history)}, {result.seconds:.0f} s")
    with say.busy("judging the model and the baselines"):
        quality = workflow.judge(config, prepared, fitted)
    comparison = None
    if seeds:
        with say.busy("comparing with single-task models") as status:
            comparison = workflow.compare(config, prepared, seeds=seeds, on_model=status.update)
    with say.busy("compiling, and checking the engine against torch"):
        report = workflow.finish(config, prepared, fitted, quality, comparison, out=path, title=_TITLE)
    for table in report.tables():
        say(table)
    return report


def _serve(path: Path, report: Report, *, html: Path | None, say: _Voice) -> None:
    ranker = Ranker.load(path)
    say.title("Compiled")
    say(
        f"{ranker.n_items:,} videos, {len(ranker.users):,} users, {ranker.isa}. The engine's scores differ from "
        f"torch's by at most {report.engine_difference or 0.0:.1e} on {report.engine_rows:,} test samples."
    )
    explanation = ranker.bundle.explain()
    for line in explanation.summary()[1:]:
        say(line)

    say.title("Retrieval")
    indexes = _index_table(ranker)
    say(indexes)

    say.title("Lists")
    lists = [_list_table(ranking) for ranking in _lists(ranker)]
    for table in lists:
        say(table)

    say.title("Latency")
    with say.busy(f"{_CALLS} requests"):
        latency = measure_stages(ranker, calls=_CALLS, context=_CONTEXT)
    note = (
        f"{_CALLS} requests of random known users, one after the other on one thread, with raw context; 500 of "
        f"{ranker.n_items:,} videos retrieved and ranked for {len(ranker.tasks)} tasks."
    )
    say(latency_table(latency, title="One request", note=note))
    if html is not None:
        from fastmtr.evaluation.html import write_html

        write_html(
            html,
            report,
            latency=latency,
            latency_note=note,
            rankings=lists,
            extra=[indexes],
            explain=explanation.to_html(),
        )
        say(f"wrote {html}")


def _index_table(ranker: Ranker) -> Table:
    """The approximate indexes against the exact search, for the same user vectors."""
    users = ranker.users[:: max(1, len(ranker.users) // 200)][:200].tolist()
    queries = ranker.user_vectors(users, context=_CONTEXT)
    vectors = ranker.item_vectors
    exact, _ = Retriever(vectors, config=RetrievalConfig(index="exact")).search(queries, k=100)
    rows = []
    for kind in ("exact", "flat", "ivf", "hnsw") if find_spec("faiss") is not None else ("exact",):
        index = Retriever(vectors, config=msgspec.structs.replace(RetrievalConfig(), index=kind))
        found, seconds = [], []
        for query in queries:
            start = perf_counter()
            one, _ = index.search(query[None], k=100)
            seconds.append(perf_counter() - start)
            found.append(one[0])
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(found, exact, strict=True)])
        times = Latency.of(kind, seconds)
        rows.append([_INDEXES[kind], f"{recall:.3f}", f"{times.p50:,.0f}", f"{times.p99:,.0f}"])
    title = f"Nearest 100 of {ranker.n_items:,} video vectors"
    return Table("retrieval", title, ["index", "recall of the exact list", "p50 µs", "p99 µs"], rows)


_INDEXES = {"exact": "NumPy, exact", "flat": "Faiss flat, exact", "ivf": "Faiss IVF", "hnsw": "Faiss HNSW"}


def _lists(ranker: Ranker) -> list[Ranking]:
    """Lists of a few users with a long history."""
    seen = ranker.bundle.seen
    assert seen is not None
    busiest = np.argsort(-np.diff(seen[0]), kind="stable")[:_LISTS]
    users = [*ranker.users[busiest].tolist(), -1]
    return [ranker.recommend(user, k=_K, exclude="seen", context=_CONTEXT) for user in users]


def _list_table(ranking: Ranking) -> Table:
    rows = [
        [str(i + 1), label, f"{fused:.4g}", *(f"{p:.3f}" for p in scores)]
        for i, (label, fused, scores) in enumerate(zip(ranking.labels, ranking.fused, ranking.values, strict=True))
    ]
    who = f"user {ranking.user}" if ranking.known_user else "a user never seen"
    title = f"For {who} ({_CONTEXT_WORDS})"
    return Table("lists", title, ["", "video", "fused", *ranking.tasks], rows, text=2)


class _Voice:
    """Prints with rich where it is installed, plainly where it is not."""

    def __init__(self) -> None:
        self._console: Any = None
        if find_spec("rich") is not None:
            self._console = wide_console()

    @property
    def live(self) -> bool:
        """Progress can be shown."""
        return self._console is not None and bool(self._console.is_terminal)

    def __call__(self, what: Any) -> None:
        if self._console is None:
            print(what, end="\n\n" if isinstance(what, Table) else "\n")
        elif isinstance(what, str):
            self._console.print(what, markup=False, highlight=False)
        else:
            self._console.print(what)

    def title(self, text: str) -> None:
        """Begin a part."""
        if self._console is None:
            print(f"\n== {text}")
        else:
            from rich.text import Text

            self._console.print()
            self._console.rule(Text(text), align="left")

    def busy(self, text: str) -> Any:
        """A context in which something takes time."""
        if self._console is None:
            from contextlib import nullcontext

            print(f"{text} ...")
            return nullcontext()
        return self._console.status(text)
