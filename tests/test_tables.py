"""Every kind of source becomes the same table, and what cannot be read says why."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastmtr.errors import SchemaError
from fastmtr.tables import BAD_ROWS, DataRules, load_tables, read_table

COLUMNS = {"user": [1, 2, 3], "name": ["a", None, "c"], "x": [0.5, None, 2.0]}
CSV = "user,name,x\n1,a,0.5\n2,,\n3,c,2.0\n"


def _sources(folder: Path) -> dict[str, Any]:
    table = pa.table(COLUMNS)
    pq.write_table(table, folder / "t.parquet")
    (folder / "t.csv").write_text(CSV)
    (folder / "t.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    (folder / "t.tsv").write_text(CSV.replace(",", "\t"))
    return {
        "arrow": table,
        "batch": table.to_batches()[0],
        "reader": table.to_reader(),
        "dictionary": COLUMNS,
        "pandas": table.to_pandas(),
        "polars": pl.DataFrame(COLUMNS),
        "encoded": table.set_column(1, "name", table.column("name").dictionary_encode()),
        "parquet": folder / "t.parquet",
        "csv": str(folder / "t.csv"),
        "csv.gz": folder / "t.csv.gz",
        "tsv": folder / "t.tsv",
    }


KINDS = ["arrow", "batch", "reader", "dictionary", "pandas", "polars", "encoded", "parquet", "csv", "csv.gz", "tsv"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_give_the_same_table(kind: str, tmp_path: Path) -> None:
    sources = _sources(tmp_path)
    assert sorted(sources) == sorted(KINDS)
    table = read_table(sources[kind])
    assert table.column_names == list(COLUMNS)
    assert table.to_pydict() == COLUMNS
    assert table.schema.field("name").type in (pa.string(), pa.large_string())


def test_list_columns_and_text_views_become_plain() -> None:
    frame = pl.DataFrame({"tags": [["a"], ["b", "c"], []]})
    assert read_table(frame).schema.field("tags").type == pa.large_list(pa.large_string())
    views = pa.table({"t": pa.array(["a", "b"], pa.string_view())})
    assert read_table(views).schema.field("t").type == pa.large_string()


def test_csv_without_header_with_types_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("1,39\n2,7\n3\n4,2,2\n5,8\n")
    with pytest.raises(SchemaError, match=r"log\.csv cannot be read.*Expected 2 columns"):
        read_table(path, columns=["user", "tag"])
    table = read_table(path, columns=["user", "tag"], types={"tag": "text"}, bad_rows="skip")
    assert table.to_pydict() == {"user": [1, 2, 5], "tag": ["39", "7", "8"]}
    assert table.schema.metadata == {BAD_ROWS: b"2"}


def test_load_tables_reads_what_the_rules_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("1,2\n")
    (tmp_path / "users.csv").write_text("user\n1\n")
    log, users, items = load_tables(
        DataRules(log="log.csv", users="users.csv", columns=("user", "item")), folder=tmp_path
    )
    assert (log.column_names, users.column_names, items) == (["user", "item"], ["user"], None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (42, "cannot read a table from a builtins.int"),
        ([1, 2], "cannot read a table from a builtins.list"),
        ({"a": [1, 2], "b": [1]}, "the table cannot be read"),
        ({"a": np.zeros((2, 2))}, "one-dimensional, found an array of shape"),
        ({"a": ["\ud800"]}, "not valid Unicode"),
        ({"a": [1, "x"]}, "the table cannot be read"),
        (pd.DataFrame({"a": [1, "x"]}, dtype=object), "the table cannot be read"),
        (pd.DataFrame({"a": ["\ud800"]}, dtype=object), "not valid Unicode"),
        (pa.table([[1], [2]], names=["a", "a"]), "more than one column named 'a'"),
    ],
)
def test_refuses_kindly(source: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        read_table(source)


def test_refuses_files_kindly(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv does not exist"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(SchemaError, match="unknown ending"):
        read_table(tmp_path / "t.xlsx")
    for name in ("broken.parquet", "broken.csv.gz", "empty.csv"):
        (tmp_path / name).write_bytes(b"" if name == "empty.csv" else b"\x1f\x8bnonsense")
        with pytest.raises(SchemaError, match="cannot be read"):
            read_table(tmp_path / name)
