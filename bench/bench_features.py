"""Features of raw rows like Criteo's, against what people use for them: batches, vocabularies, and single rows.

python bench/bench_features.py [--rows 400000] [--rounds 7] [--threads 2] [--row-program FILE] [--operators]
    [--out FILE]

13 numbers with nulls and 26 categories as text; cardinalities are those of Criteo's data, values as frequent as Zipf's
law has them. Every contestant makes the same matrices (compared before anything is timed): ids by vocabulary or by
hash, and numbers as logarithms with mean 0 and deviation 1. Polars leaves columns; "packed" puts them into the two
matrices that a model reads, which fastmtr writes at once. Polars may use as many threads as fastmtr.
``--row-program`` is the program that bench/bench_features_row.cpp makes: one row in C++, without Python.
``--operators`` compares, instead of all that, fastmtr's own two ways through a table for each operator.

Prints Markdown; ``--out FILE`` writes it, too. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if "--threads" in sys.argv:
    os.environ["POLARS_MAX_THREADS"] = sys.argv[sys.argv.index("--threads") + 1]
os.environ.setdefault("POLARS_MAX_THREADS", "2")

import numba
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import sklearn
from bench_score import machine
from bench_service import alternate, median_of
from feature_operators import OPERATORS, operator_rows, pipeline_of
from feature_rows import CATEGORIES, HASH_ROWS, NUMBERS, raw_rows, schema, write_rows
from markdown_table import markdown_table
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

import fastmtr
from fastmtr.features import FeaturePipeline, warm_up
from fastmtr.graph import Domain
from fastmtr.schema import Schema, Task

ROW_CALLS = 2000


def scales_of(pipeline: FeaturePipeline) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each number's logarithm."""
    heads = pipeline.state()[0]["features"]
    return {name: (heads[name]["shift"], heads[name]["factor"]) for name in NUMBERS}


def vocabularies(pipeline: FeaturePipeline) -> dict[str, list[str]]:
    """The known values of each category, most frequent first."""
    return {name: pipeline.encoder(name).known.tolist() for name in CATEGORIES}  # type: ignore[union-attr]


# ---- Polars: what an expert writes by hand ---------------------------------------------------------------------------


def polars_numbers(scales: Mapping[str, tuple[float, float]]) -> list[pl.Expr]:
    """As fastmtr's, but for the last bits of the logarithm; all numbers here are at least 0."""
    return [
        ((pl.col(name).log1p() - shift) / factor).fill_null(0.0).cast(pl.Float32)
        for name, (shift, factor) in scales.items()
    ]


def polars_enum(words: Mapping[str, list[str]]) -> list[pl.Expr]:
    """Ids by a cast to an Enum of the vocabulary; null is 0, unseen 1."""
    return [
        pl.when(pl.col(name).is_null())
        .then(0)
        .otherwise(pl.col(name).cast(pl.Enum(known), strict=False).to_physical().cast(pl.Int32).fill_null(-1) + 2)
        .cast(pl.Int32)
        .alias(name)
        for name, known in words.items()
    ]


def polars_replace(words: Mapping[str, list[str]]) -> list[pl.Expr]:
    """Ids by a mapping."""
    return [
        pl.col(name).replace_strict(
            pl.Series([None, *known], dtype=pl.String),
            pl.Series([0, *range(2, len(known) + 2)], dtype=pl.Int32),
            default=1,
            return_dtype=pl.Int32,
        )
        for name, known in words.items()
    ]


def polars_hash() -> list[pl.Expr]:
    """Ids by Polars' own hash."""
    return [
        pl.when(pl.col(name).is_null())
        .then(0)
        .otherwise((pl.col(name).hash(0) % HASH_ROWS).cast(pl.Int32) + 2)
        .cast(pl.Int32)
        .alias(name)
        for name in CATEGORIES
    ]


def polars_join(frame: pl.DataFrame, words: Mapping[str, list[str]], numbers: list[pl.Expr]) -> pl.DataFrame:
    """Ids by a left join with each vocabulary, in one lazy query."""
    lazy = frame.lazy()
    for name, known in words.items():
        ids = pl.DataFrame({name: known, f"{name}_id": np.arange(2, len(known) + 2, dtype=np.int32)}).lazy()
        lazy = lazy.join(ids, on=name, how="left", maintain_order="left")
    found = [
        pl.when(pl.col(name).is_null()).then(0).otherwise(pl.col(f"{name}_id").fill_null(1)).cast(pl.Int32).alias(name)
        for name in words
    ]
    return lazy.select(*numbers, *found).collect()


# ---- measuring -------------------------------------------------------------------------------------------------------


def packed(found: pl.DataFrame) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Polars' columns as the two matrices that a model reads, and that fastmtr makes at once."""
    return found.select(CATEGORIES).to_numpy(order="c"), found.select(NUMBERS).to_numpy(order="c")


def check_ids(found: pl.DataFrame, expected: NDArray[np.int32], dense: NDArray[np.float32], who: str) -> None:
    """Times mean something only if the results are the same."""
    ids = found.select(CATEGORIES).to_numpy()
    numbers = found.select(NUMBERS).to_numpy()
    if not (ids == expected).all() or not np.allclose(numbers, dense, rtol=1e-5, atol=1e-6):
        raise SystemExit(f"{who} makes other features: its times mean nothing")


def batches(data: pa.Table, *, threads: int, rounds: int) -> list[list[str]]:
    """Packing all rows."""
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    by_word = FeaturePipeline(schema()).fit(interactions=data, threads=threads)
    by_hash = FeaturePipeline(schema(hash_rows=HASH_ROWS)).fit(interactions=data, threads=threads)
    words, scales = vocabularies(by_word), scales_of(by_word)
    numbers = polars_numbers(scales)
    ids, dense = by_word.transform("candidate", data, threads=threads)
    peers: dict[str, Callable[[], pl.DataFrame]] = {
        "Polars, Enum": lambda: frame.select(*numbers, *polars_enum(words)),
        "Polars, replace_strict": lambda: frame.select(*numbers, *polars_replace(words)),
        "Polars, join": lambda: polars_join(frame, words, numbers),
    }
    for name, run in peers.items():
        check_ids(run(), ids, dense, name)
    contestants: dict[str, Callable[[], object]] = dict(peers)
    for name in ("Polars, Enum", "Polars, replace_strict"):
        contestants[f"{name}, packed"] = lambda run=peers[name]: packed(run())  # type: ignore[misc]
    rows = []
    ours: Callable[[], object] = lambda: by_word.transform("candidate", data, threads=threads)  # noqa: E731
    times = alternate([ours, *contestants.values()], rounds)
    for i, name in enumerate(contestants, 1):
        rows.append(["vocabulary", name, *_cells(times, i)])

    part = data.slice(0, 50_000)
    pandas = part.to_pandas()
    encoder = ColumnTransformer(
        [
            ("ids", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), list(CATEGORIES)),
            ("numbers", StandardScaler(), list(NUMBERS)),
        ]
    ).fit(pandas)
    ours = lambda: by_word.transform("candidate", part, threads=threads)  # noqa: E731
    times = alternate([ours, lambda: encoder.transform(pandas)], max(3, rounds // 2))
    rows.append([f"vocabulary, {part.num_rows:,} rows", "scikit-learn, OrdinalEncoder", *_cells(times, 1)])

    ours = lambda: by_hash.transform("candidate", data, threads=threads)  # noqa: E731
    columns = lambda: frame.select(*numbers, *polars_hash())  # noqa: E731
    times = alternate([ours, columns, lambda: packed(columns())], rounds)
    rows += [["hash", name, *_cells(times, i)] for i, name in enumerate(("Polars, hash", "Polars, hash, packed"), 1)]
    return rows


def fitting(data: pa.Table, *, threads: int, rounds: int) -> list[list[str]]:
    """Counting the values of the categories, and ordering them."""
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    categories = Schema(
        user="user", item="item", features=schema().features[len(NUMBERS) :], tasks=(Task(name="click"),)
    )
    counted = [
        frame.lazy()
        .select(name)
        .drop_nulls()
        .group_by(name)
        .agg(pl.len().alias("n"))
        .sort("n", name, descending=[True, False])
        for name in CATEGORIES
    ]
    known = FeaturePipeline(categories).fit(interactions=data, threads=threads)
    for name, theirs in zip(CATEGORIES, pl.collect_all(counted), strict=True):
        if theirs[name].to_list() != known.encoder(name).known.tolist():  # type: ignore[union-attr]
            raise SystemExit(f"Polars counts {name} otherwise: its times mean nothing")
    ours = lambda: FeaturePipeline(categories).fit(interactions=data, threads=threads)  # noqa: E731
    times = alternate([ours, lambda: pl.collect_all(counted)], rounds)
    return [["vocabularies", "Polars, group_by and sort", *_cells(times, 1)]]


def _cells(times: NDArray[np.float64], peer: int) -> list[str]:
    mine, theirs = np.median(times[0]) * 1e3, np.median(times[peer]) * 1e3
    return [f"{mine:.0f} ms", f"{theirs:.0f} ms", median_of(times[peer] / times[0])]


def single_rows(data: pa.Table, *, program: Path | None, rounds: int) -> list[list[str]]:
    """One raw row: a dict of 39 values."""
    pipeline = FeaturePipeline(schema()).fit(interactions=data)
    known, scales = vocabularies(pipeline), scales_of(pipeline)
    dicts = {name: {word: i for i, word in enumerate(words, 2)} for name, words in known.items()}
    rows = data.slice(0, ROW_CALLS).to_pylist()

    def plain(row: Mapping[str, Any]) -> tuple[list[float], list[int]]:
        numbers = []
        for name, (shift, factor) in scales.items():
            x = row[name]
            numbers.append(0.0 if x is None else (math.log1p(x) - shift) / factor)
        ids = []
        for name, ranks in dicts.items():
            x = row[name]
            ids.append(0 if x is None else ranks.get(x, 1))
        return numbers, ids

    for row in rows[:50]:
        packed = pipeline.transform_row("candidate", row)
        numbers, ids = plain(row)
        if packed.ids[0].tolist() != ids or not np.allclose(packed.dense[0], numbers, rtol=1e-5, atol=1e-6):
            raise SystemExit("the plain loop makes other features: its times mean nothing")
    expressions = [*polars_numbers(scales), *polars_enum({name: words[:1000] for name, words in known.items()})]
    kinds = {**dict.fromkeys(NUMBERS, pl.Float64), **dict.fromkeys(CATEGORIES, pl.String)}
    calls: dict[str, tuple[Callable[[Mapping[str, Any]], object], int]] = {
        "fastmtr, from Python": (lambda row: pipeline.transform_row("candidate", row), ROW_CALLS),
        "a loop over Python dicts": (plain, ROW_CALLS),
        "Polars (vocabularies of 1,000)": (lambda row: pl.DataFrame([row], schema=kinds).select(expressions), 50),
        "pandas": (lambda row: _pandas_row(row, dicts, scales), 50),
    }
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, n) in calls.items():
            times = np.empty(n)
            for i, row in enumerate(rows[:n]):
                start = time.perf_counter_ns()
                call(row)
                times[i] = time.perf_counter_ns() - start
            found[name].append(times)
    lines = []
    if program is not None:
        lines.append(_native_row(program, pipeline, data))
    for name, each in found.items():
        every = np.concatenate(each) / 1e3
        mine = np.array([np.median(t) for t in found["fastmtr, from Python"]])
        ratios = np.array([np.median(t) for t in each]) / mine
        lines.append([name, *(f"{np.percentile(every, q):.1f} µs" for q in (50, 99)), median_of(ratios)])
    return lines


def _pandas_row(row: Mapping[str, Any], dicts: Mapping[str, Mapping[str, int]], scales: Mapping[str, Any]) -> object:
    frame = pd.DataFrame([row])
    ids = [frame[name].map(ranks).fillna(1) for name, ranks in dicts.items()]
    numbers = [((np.log1p(frame[name].astype(float)) - s) / f).fillna(0) for name, (s, f) in scales.items()]
    return ids, numbers


def _native_row(program: Path, pipeline: FeaturePipeline, data: pa.Table) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), pipeline, data.slice(0, ROW_CALLS))
        said = subprocess.run([program, folder], check=True, capture_output=True, text=True).stdout
    p50, p99 = (float(each) / 1e3 for each in said.split())
    return ["fastmtr, from C++", f"{p50:.1f} µs", f"{p99:.1f} µs", ""]


def operators(*, rows: int, threads: int, rounds: int) -> list[list[str]]:
    """A table of one feature by the arrays, and by Numba."""
    data, lines = operator_rows(rows, seed=0), []
    for name in OPERATORS:
        pipeline, domain = pipeline_of(name, data)

        def run(engine: Any, pipeline: FeaturePipeline = pipeline, domain: Domain = domain) -> object:
            return pipeline.transform(domain, data, engine=engine, threads=threads)

        times = alternate([lambda run=run: run("numba"), lambda run=run: run("arrays")], rounds)  # type: ignore[misc]
        lines.append([name, *_cells(times, 1)])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row-program", type=Path)
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    warm_up()
    rows, options = f"{given.rows:,} rows", {"threads": given.threads, "rounds": given.rounds}
    about = f"{machine()['cpu']}, {given.threads} threads; fastmtr {fastmtr.__version__}, NumPy {np.__version__}, "
    how = f"medians of ratios within {given.rounds} rounds, with their range."
    if given.operators:
        head = ["operator", "Numba", "arrays", "arrays / Numba"]
        parts = [
            f"# Features by operator, {datetime.now(UTC):%Y-%m-%d}",
            f"{about}pyarrow {pa.__version__}, Numba {numba.__version__}; {rows}. Arrays' time / Numba's time: {how}",
            "\n".join(markdown_table(head, operators(rows=given.rows, **options))),
        ]
    else:
        data = raw_rows(given.rows, seed=0)
        packing = ["categories by", "peer", "fastmtr", "peer's time", "peer / fastmtr"]
        one_row = single_rows(data, program=given.row_program, rounds=given.rounds)
        parts = [
            f"# Features, {datetime.now(UTC):%Y-%m-%d}",
            f"{about}Polars {pl.__version__}, scikit-learn {sklearn.__version__}, pandas {pd.__version__}; {rows} of "
            f"13 numbers and 26 categories of text. Peer time / fastmtr time: {how}",
            "## Packing a table",
            "\n".join(markdown_table(packing, batches(data, **options))),
            "## Learning vocabularies",
            "\n".join(markdown_table(["learned", *packing[1:]], fitting(data, **options))),
            "## One row",
            "\n".join(markdown_table(["", "p50", "p99", "of fastmtr from Python"], one_row)),
        ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
