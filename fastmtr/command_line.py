"""The command line of ``fastmtr``: its commands and their arguments."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from fastmtr.graph import DOMAINS

__all__ = ["command_line"]


def command_line() -> argparse.ArgumentParser:
    """The parser of ``fastmtr``; ``command`` is the name of the command in what it gives."""
    parser = argparse.ArgumentParser(
        prog="fastmtr", description="Train, compile and serve multi-task ranking models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    some: dict[str, Any] = {"type": _positive, "metavar": "N"}
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}

    demo = command("demo", "Real short-video data, from the log to ranked lists: quality per task, latency.")
    demo.add_argument("--html", **file, help="write a report with plots")
    demo.add_argument("--bundle", type=Path, metavar="DIR", help="keep the trained bundle there")
    demo.add_argument("--seeds", **some, help="also compare with single-task models over N seeds (some minutes)")
    demo.add_argument("--epochs", **some, help="train at most so many epochs")
    demo.add_argument("--ready", action="store_true", help="do not train: take the packaged bundle")

    train = command("train", "Train the model of a configuration and write a bundle.")
    train.add_argument("config", metavar="CONFIG", nargs="?", help="a TOML file, or a packaged data set (kuairand)")
    _out(train, required=False)
    train.add_argument("--seeds", **some, help="compare with single-task models over N seeds (2 or more)")
    train.add_argument("--threads", **some, default=1, help="of torch (default 1)")
    train.add_argument("--users", **some, help="keep only N users in the bundle, those who met most items")
    train.add_argument("--html", **file, help="write a report with plots")
    train.add_argument("--template", action="store_true", help="print a commented configuration to start from")

    judge = command("evaluate", "Score a configuration's test samples with a bundle, and tell the quality.")
    _bundle(judge)
    judge.add_argument("config", metavar="CONFIG")
    judge.add_argument("--json", action="store_true", help="numbers for programs")

    recompile = command("compile", "Compile a bundle's model again: another memory budget, precision or fusion.")
    _bundle(recompile)
    _out(recompile, required=True)
    folds = "for products of embedding tables, which stand in the bundle, such as 8M; 0: none (default: 16M)"
    recompile.add_argument("--fold-memory", type=_bytes, default="auto", metavar="BYTES", help=folds)
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

    convert = command("convert", "Convert a trained model of another library, and compare its scores.")
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

    transform = command("transform", "Pack a table of any size with a bundle's features, into files.")
    _bundle(transform)
    _table(transform)
    transform.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write, or to go on with"
    )
    transform.add_argument("--overwrite", action="store_true", help="begin anew where there are features already")
    transform.add_argument("--domain", **many, choices=DOMAINS, help="what to pack (default: all); repeat it")
    transform.add_argument(
        "--keep", **many, metavar="COLUMN", help="of numbers, written beside the features; repeat it"
    )
    nothing = "what a feature without a column does (default error)"
    transform.add_argument("--missing", choices=("error", "null"), default="error", help=nothing)
    transform.add_argument("--batch-rows", **some, help="of a batch and of a file")

    check = command("check", "Whether rows look like those that a bundle's features were fitted on.")
    _bundle(check)
    _table(check)
    check.add_argument("--html", **file, help="write a page with plots")
    check.add_argument("--json", action="store_true", help="numbers for programs")
    check.add_argument("--strict", action="store_true", help="exit status 1 unless all features are as they were")

    info = command("info", "What the engine can use here, and what is in a bundle.")
    info.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE")
    info.add_argument("--json", action="store_true", help="for programs")

    explain = command("explain", "Each step of a bundle: when it runs, what it costs, and why.")
    _bundle(explain)
    explain.add_argument("--html", **file, help="write a page with a diagram")

    recommend = command("recommend", "Retrieve and rank for users of a bundle.")
    _bundle(recommend)
    recommend.add_argument("--user", action="append", required=True, metavar="KEY", help="repeat it for more users")
    recommend.add_argument("-k", **some, default=10)
    recommend.add_argument("--retrieve", **some, default=500, help="candidates to rank (default 500)")
    recommend.add_argument("--all", action="store_true", help="rank the whole catalogue, without retrieval")
    recommend.add_argument("--with-seen", action="store_true", help="do not leave out what the user has seen")
    _precision(recommend)
    recommend.add_argument("--certified", action="store_true", help="the list of fp32 at precision int8")
    recommend.add_argument("--json", action="store_true", help="one JSON line a user")

    bench = command("bench", "Latency of score, rank and recommend on a bundle's own catalogue.")
    _bundle(bench)
    bench.add_argument("--n", **some, nargs="+", default=[1, 16, 128, 512, 2048], help="candidates of a request")
    bench.add_argument("--calls", **some, default=300, help="of each kind (default 300)")
    bench.add_argument("--threads", **some, default=1, help="of one call (default 1)")
    _precision(bench)
    bench.add_argument("--json", action="store_true", help="numbers for programs")

    profile = command("profile", "Where the time of one request goes, step by step.")
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
