"""The ``fastmtr`` command. Exit status: 0 done, 1 an error, 2 the command line or a configuration is wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmtr.command_line import command_line
from fastmtr.errors import BundleError, ConfigError, FastMTRError, SchemaError

if TYPE_CHECKING:
    from rich.console import Console

    from fastmtr.evaluation.report import Latency
    from fastmtr.ranker import Ranker

__all__ = ["main"]

_EXTRAS = {
    "torch": "train",
    "sklearn": "train",
    "scipy": "train",
    "pyarrow": "train",
    "rich": "demo",
    "faiss": "retrieval",
    "matplotlib": "report",
    "onnx": "onnx",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        In place of the process's own.

    Returns
    -------
    int
        The exit status.
    """
    options = command_line().parse_args(arguments)
    try:
        status: int = _COMMANDS[options.command](options) or 0
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("fastmtr: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("FASTMTR_DEBUG"):
            raise
        print(f"fastmtr: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return status


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f"this needs {package}, which is not installed: pip install 'fastmtr[{_EXTRAS[package]}]'"
    if isinstance(error, FastMTRError | OSError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())} (set FASTMTR_DEBUG=1 to see where)"


# ---- commands --------------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from fastmtr.demo import run_demo

    run_demo(
        html=options.html,
        bundle=options.bundle,
        seeds=_seeds(options),
        epochs=options.epochs,
        ready=options.ready,
    )


def _seeds(options: argparse.Namespace) -> int:
    if options.seeds == 1:
        raise ConfigError("--seeds 1: an interval needs at least 2 seeds")
    return options.seeds or 0


def _train(options: argparse.Namespace) -> None:
    from fastmtr.datasets import config_path

    if options.template:
        print(config_path("kuairand").read_text(encoding="utf-8"), end="")
        return
    if options.config is None or options.out is None:
        raise ConfigError("train needs a CONFIG and --out BUNDLE; see fastmtr train --help, or start from --template")
    seeds = _seeds(options)
    # Before an hour of training, not after it.
    if options.out.exists() and not options.overwrite:
        raise BundleError(f"{options.out} exists already; pass --overwrite to replace it, or another path")
    import torch

    from fastmtr.datasets import load
    from fastmtr.workflow import train_bundle

    torch.set_num_threads(options.threads)
    path = _config_path(options.config)
    console = _console(stderr=True)
    report = train_bundle(
        load(path),
        out=options.out,
        title=path.stem,
        item_memory=options.item_memory,
        most_users=options.users,
        seeds=seeds,
        overwrite=options.overwrite,
        progress=console.is_terminal,
        say=lambda what: console.print(what, markup=False, highlight=False),
    )
    out = _console()
    for table in report.tables():
        out.print(table)
    if options.html is not None:
        from fastmtr.bundle import open_bundle
        from fastmtr.evaluation.html import write_html

        write_html(options.html, report, explain=open_bundle(options.out).explain().to_html())
    out.print(f"wrote {options.out}", markup=False, highlight=False)


def _evaluate(options: argparse.Namespace) -> None:
    import msgspec

    from fastmtr.datasets import load
    from fastmtr.evaluation.evaluate import evaluate
    from fastmtr.evaluation.report import quality_tables
    from fastmtr.ranker import Ranker
    from fastmtr.workflow import check_same_features, stored_thresholds

    data = load(_config_path(options.config))
    ranker = Ranker.load(options.bundle)
    prepared = data.prepare(progress=_console(stderr=True).is_terminal)
    check_same_features(ranker, prepared)
    scores = ranker.predict(prepared.test, items=prepared.catalogue.keys)
    found = evaluate(
        scores,
        prepared.test,
        schema=prepared.schema,
        thresholds=stored_thresholds(ranker.bundle),
        intervals=True,
    )
    if options.json:
        print(msgspec.json.encode([{"task": q.task, "kind": q.kind, **q.metrics} for q in found]).decode())
        return
    for table in quality_tables({"bundle": found}, main="bundle"):
        _console().print(table)


def _compile(options: argparse.Namespace) -> None:
    import numpy as np

    from fastmtr.bundle import open_bundle, write_bundle
    from fastmtr.fusion import Fusion

    bundle = open_bundle(options.bundle)
    fusion = bundle.plan["fusion"]
    if options.fusion or options.weight:
        weights = dict(options.weight) or dict(zip(fusion["tasks"], fusion["weights"], strict=True))
        fusion = Fusion(kind=options.fusion or fusion["kind"], weights=weights).to_plan(bundle.schema)
    catalogue, users = bundle.catalogue, bundle.users
    if catalogue is not None and bundle.item_names is not None:
        catalogue = catalogue._replace(keys=np.array(bundle.item_names))
    if users is not None and bundle.user_names is not None:
        users = users._replace(keys=np.array(bundle.user_names))
    made = write_bundle(
        options.out,
        schema=bundle.schema,
        graph=bundle.graph,
        pipeline_state=bundle.pipeline_state,
        catalogue=catalogue,
        users=users,
        seen=bundle.seen,
        fusion=fusion,
        item_memory=options.item_memory,
        fold_memory=options.fold_memory,
        item_precision=options.item_precision,
        embedding_precision=options.embedding_precision,
        progress=sys.stderr.isatty(),
        metadata=bundle.metadata,
        report=bundle.report,
        overwrite=options.overwrite,
    )
    print(f"wrote {made}: {_size(made)}, from {_size(options.bundle)}")
    if options.samples is not None or {options.item_precision, options.embedding_precision} != {"fp32"}:
        _tell_cost(options, made)


def _tell_cost(options: argparse.Namespace, made: Path) -> None:
    from fastmtr.evaluation import compare_precision
    from fastmtr.ranker import Ranker

    before, after = Ranker.load(options.bundle), Ranker.load(made)
    if options.samples is None:
        print(compare_precision(before, after))
        return
    from fastmtr.datasets import load
    from fastmtr.workflow import check_same_features

    prepared = load(_config_path(options.samples)).prepare(progress=sys.stderr.isatty())
    check_same_features(before, prepared)
    _show(compare_precision(before, after, samples=prepared.test).table())


def _size(bundle: Path) -> str:
    return f"{sum(file.stat().st_size for file in bundle.iterdir()) / 2**20:,.1f} MiB"


def _convert(options: argparse.Namespace) -> None:
    import warnings

    from fastmtr.bundle import open_bundle
    from fastmtr.convert import command, convert
    from fastmtr.convert.guard import ModelWarning

    schema = None if options.schema is None else command.load_schema(options.schema)
    inputs = dict(command.pair(text) for text in options.input) or None
    sample = None if options.sample is None else command.load_sample(options.sample)
    sample, keys = command.split_keys(sample, {"groups": options.users, "items": options.items}, inputs)
    tasks = options.task or ([] if schema is None else [task.name for task in schema.tasks])
    sample, labels = command.split_labels(sample, tasks, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)  # they are told below
        path = convert(
            command.load_model(options.model),
            schema=schema,
            inputs=inputs,
            sample=sample,
            columns=dict(command.columns(text) for text in options.column) or None,
            tasks=options.task or None,
            logits=options.logits,
            out=options.out,
            labels=labels,
            item_memory=options.item_memory,
            overwrite=options.overwrite,
            **keys,
        )
    for line in command.report_lines(open_bundle(path).metadata):
        print(line)
    print(f"wrote {path}")


def _transform(options: argparse.Namespace) -> None:
    from fastmtr.features import command

    files = command.transform(options, progress=sys.stderr.isatty())
    print(f"wrote {files.path}: {files.n_rows:,} rows of {', '.join(files.job.domains)} in {len(files)} files")


def _check(options: argparse.Namespace) -> int:
    import msgspec

    from fastmtr.features import command

    found = command.check(options, progress=sys.stderr.isatty())
    if options.json:
        print(msgspec.json.encode({"ok": found.ok, "verdict": found.verdict, **msgspec.to_builtins(found)}).decode())
    else:
        _show(found.table())
    return int(options.strict and not found.ok)


def _info(options: argparse.Namespace) -> None:
    import msgspec

    import fastmtr

    found: dict[str, Any] = {"engine": fastmtr.info()}
    if options.bundle is not None:
        from fastmtr import _native
        from fastmtr.bundle import open_bundle

        bundle = open_bundle(options.bundle)
        manifest = bundle.manifest
        found["bundle"] = {
            "path": str(bundle.path),
            "fastmtr_version": manifest["fastmtr_version"],
            "bytes": sum(each["bytes"] for each in manifest["files"].values()),
            "model": bundle.metadata.get("model"),
            "users": 0 if bundle.users is None else len(bundle.users.keys),
            **msgspec.json.decode(_native.Model(str(bundle.path)).describe()),
        }
        if "conversion" in bundle.metadata:
            found["conversion"] = bundle.metadata["conversion"]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        for what, tree in found.items():
            print(what)
            _print_tree(tree, "  ")


def _print_tree(tree: dict[str, Any], indent: str) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_tree(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            print(f"{indent}{name}")
            for each in value:
                print(f"{indent}  - " + ", ".join(f"{key}: {one}" for key, one in each.items()))
        else:
            print(f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _explain(options: argparse.Namespace) -> None:
    from fastmtr.bundle import open_bundle

    bundle = open_bundle(options.bundle)
    explanation = bundle.explain()
    if options.html is not None:
        options.html.write_text(explanation.to_html(), encoding="utf-8")
        print(f"wrote {options.html}")
        return
    _show(explanation)
    from fastmtr.convert.command import report_lines

    for line in report_lines(bundle.metadata):
        print(line)


def _recommend(options: argparse.Namespace) -> None:
    import msgspec

    from fastmtr.ranker import Ranker

    ranker = Ranker.load(options.bundle, precision=options.precision, device=options.device)
    users = [_key(ranker, user) for user in options.user]
    exclude = None if options.with_seen or ranker.bundle.seen is None else "seen"
    retrieve = None if options.all else options.retrieve
    found = ranker.recommend(users, k=options.k, retrieve=retrieve, exclude=exclude, certified=options.certified)
    for ranking in found:
        if options.json:
            line = {
                "user": ranking.user,
                "known_user": ranking.known_user,
                "items": ranking.items.tolist(),
                "fused": ranking.fused.tolist(),
                "scores": {task: column.tolist() for task, column in ranking.scores.items()},
            }
            print(msgspec.json.encode(line).decode())
        else:
            print(ranking, end="\n\n")


def _key(ranker: Ranker, text: str) -> int | str:
    """A user's key as the bundle has them."""
    return text if ranker.bundle.user_names is not None else _whole(text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--user: the users of this bundle are whole numbers, found {text!r}") from None


def _bench(options: argparse.Namespace) -> None:
    import msgspec

    from fastmtr.latency import measure
    from fastmtr.ranker import Ranker

    ranker = Ranker.load(options.bundle, threads=options.threads, precision=options.precision, device=options.device)
    found: list[Latency] = measure(ranker, sizes=options.n, calls=options.calls)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return
    note = f"{ranker!r}, {options.threads} thread(s) a call; for comparisons use the project's bench folder"
    from fastmtr.evaluation.report import latency_table

    _show(latency_table(found, title="Latency of one request", note=note))


def _profile(options: argparse.Namespace) -> None:
    import msgspec
    import numpy as np

    from fastmtr.ranker import Ranker

    ranker = Ranker.load(options.bundle, threads=options.threads, precision=options.precision, device=options.device)
    if not ranker.n_items or not len(ranker.users):
        raise SchemaError("this bundle has no items or no users of its own to measure with")
    user = ranker.users.tolist()[0]
    if options.user is not None:
        user = _key(ranker, options.user)
    items = ranker.items[np.random.default_rng(0).integers(ranker.n_items, size=options.n)]
    found = ranker.profile(user, items, k=options.k, repeats=options.repeats)
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)


def _show(table: Any) -> None:
    try:
        _console().print(table)
    except ModuleNotFoundError:
        print(table)


def _console(*, stderr: bool = False) -> Console:
    from fastmtr.evaluation.report import wide_console

    return wide_console(stderr=stderr)


def _config_path(name: str) -> Path:
    """The file of that name, or the packaged data set."""
    from fastmtr.datasets import config_path

    path = Path(name)
    return path if path.suffix == ".toml" or path.exists() else config_path(name)


# ---- the commands by name --------------------------------------------------------------------------------------------

_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "compile": _compile,
    "convert": _convert,
    "transform": _transform,
    "check": _check,
    "info": _info,
    "explain": _explain,
    "recommend": _recommend,
    "bench": _bench,
    "profile": _profile,
}


if __name__ == "__main__":
    sys.exit(main())
