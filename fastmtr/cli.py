"""The ``fastmtr`` command. Exit status: 0 done, 1 an error, 2 the command line or a configuration is wrong."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options) or 0
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmtr", description="Train, compile and serve multi-task ranking models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    some: dict[str, Any] = {"type": _positive, "metavar": "N"}
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}

    demo = command("demo", _demo, "Real short-video data, from the log to ranked lists: quality per task, latency.")
    demo.add_argument("--html", **file, help="write a report with plots")
    demo.add_argument("--bundle", type=Path, metavar="DIR", help="keep the trained bundle there")
    demo.add_argument("--seeds", **some, help="also compare with single-task models over N seeds (some minutes)")
    demo.add_argument("--epochs", **some, help="train at most so many epochs")
    demo.add_argument("--ready", action="store_true", help="do not train: take the packaged bundle")

    train = command("train", _train, "Train the model of a configuration and write a bundle.")
    train.add_argument("config", metavar="CONFIG", nargs="?", help="a TOML file, or a packaged data set (kuairand)")
    _out(train, required=False)
    train.add_argument("--seeds", **some, help="compare with single-task models over N seeds (2 or more)")
    train.add_argument("--threads", **some, default=1, help="of torch (default 1)")
    train.add_argument("--users", **some, help="keep only N users in the bundle, those who met most items")
    train.add_argument("--html", **file, help="write a report with plots")
    train.add_argument("--template", action="store_true", help="print a commented configuration to start from")

    judge = command("evaluate", _evaluate, "Score a configuration's test samples with a bundle, and tell the quality.")
    _bundle(judge)
    judge.add_argument("config", metavar="CONFIG")
    judge.add_argument("--json", action="store_true", help="numbers for programs")

    recompile = command(
        "compile", _compile, "Compile a bundle's model again: another memory budget, precision or fusion."
    )
    _bundle(recompile)
    _out(recompile, required=True)
    kept = "what item values computed ahead of time are kept in (default fp32)"
    recompile.add_argument("--item-precision", choices=("fp32", "fp16", "int8"), default="fp32", help=kept)
    tables = "what tables of embeddings are kept in, at most (default fp32)"
    precisions = ("fp32", "fp16", "int8", "int4")
    recompile.add_argument("--embedding-precision", choices=precisions, default="fp32", help=tables)
    judge_on = "judge what the precision costs on the test samples of this configuration, too"
    recompile.add_argument("--samples", metavar="CONFIG", help=judge_on)
    recompile.add_argument("--fusion", choices=("product", "sum"), help="how task scores become one")
    weight: dict[str, Any] = {"action": "append", "default": [], "type": _weight, "metavar": "TASK=W"}
    recompile.add_argument("--weight", **weight, help="of the fusion; repeat it")

    convert = command("convert", _convert, "Convert a trained model of another library, and compare its scores.")
    convert.add_argument("model", metavar="MODEL", help="an ONNX file, or module:name of a Python model")
    _out(convert, required=True)
    convert.add_argument("--sample", **file, help="rows as the model takes them: .npz, .npy, .parquet or .csv")
    convert.add_argument("--schema", **file, help="JSON or TOML; says what each input is a function of")
    many: dict[str, Any] = {"action": "append", "default": []}
    convert.add_argument("--input", **many, metavar="NAME=ENTITY", help="user, context, item or candidate; repeat it")
    convert.add_argument("--column", **many, metavar="NAME=FROM[:TO]", help="of a packed matrix; repeat it")
    convert.add_argument("--task", **many, metavar="NAME", help="of each output in order; repeat it")
    convert.add_argument("--logits", action="store_true", help="the model ends before the sigmoid")
    convert.add_argument("--users", metavar="ARRAY", help="of the sample: the key of each row's user")
    convert.add_argument("--items", metavar="ARRAY", help="of the sample: the key of each row's item")

    transform = command("transform", _transform, "Pack a table of any size with a bundle's features, into files.")
    _bundle(transform)
    _table(transform)
    transform.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write, or to go on with"
    )
    transform.add_argument("--overwrite", action="store_true", help="begin anew where there are features already")
    domains = ("request", "item", "candidate")
    transform.add_argument("--domain", **many, choices=domains, help="what to pack (default: all); repeat it")
    transform.add_argument(
        "--keep", **many, metavar="COLUMN", help="of numbers, written beside the features; repeat it"
    )
    nothing = "what a feature without a column does (default error)"
    transform.add_argument("--missing", choices=("error", "null"), default="error", help=nothing)
    transform.add_argument("--batch-rows", **some, help="of a batch and of a file")

    check = command("check", _check, "Whether rows look like those that a bundle's features were fitted on.")
    _bundle(check)
    _table(check)
    check.add_argument("--html", **file, help="write a page with plots")
    check.add_argument("--json", action="store_true", help="numbers for programs")
    check.add_argument("--strict", action="store_true", help="exit status 1 unless all features are as they were")

    info = command("info", _info, "What the engine can use here, and what is in a bundle.")
    info.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE")
    info.add_argument("--json", action="store_true", help="for programs")

    explain = command("explain", _explain, "Each step of a bundle: when it runs, what it costs, and why.")
    _bundle(explain)
    explain.add_argument("--html", **file, help="write a page with a diagram")

    recommend = command("recommend", _recommend, "Retrieve and rank for users of a bundle.")
    _bundle(recommend)
    recommend.add_argument("--user", action="append", required=True, metavar="KEY", help="repeat it for more users")
    recommend.add_argument("-k", **some, default=10)
    recommend.add_argument("--retrieve", **some, default=500, help="candidates to rank (default 500)")
    recommend.add_argument("--all", action="store_true", help="rank the whole catalogue, without retrieval")
    recommend.add_argument("--with-seen", action="store_true", help="do not leave out what the user has seen")
    _precision(recommend)
    recommend.add_argument("--certified", action="store_true", help="the list of fp32 at precision int8")
    recommend.add_argument("--json", action="store_true", help="one JSON line a user")

    bench = command("bench", _bench, "Latency of score, rank and recommend on a bundle's own catalogue.")
    _bundle(bench)
    bench.add_argument("--n", **some, nargs="+", default=[1, 16, 128, 512, 2048], help="candidates of a request")
    bench.add_argument("--calls", **some, default=300, help="of each kind (default 300)")
    bench.add_argument("--threads", **some, default=1, help="of one call (default 1)")
    _precision(bench)
    bench.add_argument("--json", action="store_true", help="numbers for programs")

    profile = command("profile", _profile, "Where the time of one request goes, step by step.")
    _bundle(profile)
    profile.add_argument("--user", metavar="KEY", help="a known user (default: the bundle's first)")
    profile.add_argument("--n", **some, default=512, help="candidates, drawn from the catalogue (default 512)")
    profile.add_argument("-k", type=_count, metavar="N", default=50, help="rank so many; 0: score only (default 50)")
    profile.add_argument("--repeats", **some, default=100, help="runs whose mean is told (default 100)")
    profile.add_argument("--threads", **some, default=1, help="of one call (default 1)")
    _precision(profile)
    profile.add_argument("--json", action="store_true", help="numbers for programs")
    return parser


def _out(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--out", type=Path, required=required, metavar="BUNDLE", help="the directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    memory = "for item values computed ahead of time, such as 64M (default: 2G)"
    parser.add_argument("--item-memory", type=_bytes, default="auto", metavar="BYTES", help=memory)


def _bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's directory")


def _table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="a .parquet file, a folder of them, or a .csv")


def _precision(parser: argparse.ArgumentParser) -> None:
    choices = ("fp32", "fp16", "int8", "tf32", "bf16")
    parser.add_argument("--precision", choices=choices, default="fp32", help="of the products (fp32)")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="what computes (cpu)")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if (value := _count(text)) < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def _bytes(text: str) -> int | str:
    """A number with K, M or G, or auto."""
    if text == "auto":
        return text
    parts = re.fullmatch(r"([0-9]+)([KMG]?)", text.upper())
    if parts is None:
        raise argparse.ArgumentTypeError(f"expected bytes such as 64M, or auto, found {text!r}")
    exponent: int = " KMG".index(parts[2] or " ")
    return int(parts[1]) << 10 * exponent


def _weight(text: str) -> tuple[str, float]:
    task, equals, number = text.rpartition("=")
    try:
        return (task, float(number)) if equals else _bad_weight(text)
    except ValueError:
        return _bad_weight(text)


def _bad_weight(text: str) -> tuple[str, float]:
    raise argparse.ArgumentTypeError(f"expected TASK=WEIGHT such as like=0.5, found {text!r}")


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


if __name__ == "__main__":
    sys.exit(main())
