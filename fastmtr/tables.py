"""Reading tables: pandas, Polars, Arrow, dictionaries of arrays, CSV, TSV and Parquet all become an Arrow table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fastmtr.errors import SchemaError

__all__ = ["BAD_ROWS", "ColumnType", "DataRules", "Tables", "load_tables", "read_table"]

ColumnType = Literal["int", "float", "text"]

# Key of the Arrow metadata that tells how many malformed rows of a file were left out.
BAD_ROWS = b"fastmtr.bad_rows"

_ARROW_TYPES: dict[str, pa.DataType] = {"int": pa.int64(), "float": pa.float64(), "text": pa.string()}
# Not "NA": it is a country and a surname.
_NULLS = ["", "NULL", "null", "NaN", "nan"]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class DataRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[data]`` section of a configuration: where the tables are and how to read them.

    Parameters
    ----------
    log : str
        The behaviour log. Paths are relative to the configuration file.
    users, items : str, optional
        Features of users and items. None: what the log tells of them.
    columns : tuple of str
        Names of the log's columns if its file has no header.
    types : dict
        Columns whose type is not to be guessed from the text of a CSV file: "int", "float" or "text".
    bad_rows : {"error", "skip"}
        What a CSV row of a wrong number of columns does. Skipped rows are counted in the cleaning report.
    item_label : str, optional
        How an item is shown, such as ``"video {video_id} (tag {tag})"``: names of columns of the items' table in
        braces.
    """

    log: str
    users: str | None = None
    items: str | None = None
    columns: tuple[str, ...] = ()
    types: dict[str, ColumnType] = {}
    bad_rows: Literal["error", "skip"] = "error"
    item_label: str | None = None


class Tables(NamedTuple):
    """The tables of a data set."""

    log: pa.Table
    users: pa.Table | None
    items: pa.Table | None


def load_tables(rules: DataRules, *, folder: str | os.PathLike[str] = ".") -> Tables:
    """Read the tables that `rules` name, relative to `folder`."""
    base = Path(folder)

    def load(name: str | None, columns: Sequence[str] = ()) -> pa.Table | None:
        if name is None:
            return None
        return read_table(base / name, columns=columns, types=rules.types, bad_rows=rules.bad_rows)

    log = load(rules.log, rules.columns)
    assert log is not None
    return Tables(log, load(rules.users), load(rules.items))


def read_table(
    source: Any,
    *,
    columns: Sequence[str] = (),
    types: Mapping[str, ColumnType] | None = None,
    bad_rows: Literal["error", "skip"] = "error",
) -> pa.Table:
    """Make an Arrow table of `source`.

    Parameters
    ----------
    source : DataFrame, Table, RecordBatchReader, dict of arrays, str or Path
        pandas, Polars and whatever else speaks the Arrow C stream protocol; or the path of a ``.csv``, ``.tsv`` (both
        also ``.gz``) or ``.parquet`` file. Empty CSV cells and ``NULL``, ``null``, ``NaN``, ``nan`` are nulls.
    columns : sequence of str
        Names for a CSV file that has no header.
    types : mapping, optional
        Types of CSV columns that are not to be guessed.
    bad_rows : {"error", "skip"}
        What a CSV row with a wrong number of columns does.

    Returns
    -------
    pyarrow.Table
        Its text columns are of type string or large_string, never dictionary-encoded.

    Raises
    ------
    SchemaError
        The source is of another kind, a file is damaged, two columns have one name, or values do not fit one type.
    FileNotFoundError
        There is no such file.
    """
    if isinstance(source, str | os.PathLike):
        table = _read_file(Path(source), columns, types or {}, bad_rows)
    else:
        table = _from_memory(source)
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if repeated:
        raise SchemaError(f"the table has more than one column named {repeated[0]!r}; rename or drop one")
    return _plain(table)


def _from_memory(source: Any) -> pa.Table:
    try:
        if isinstance(source, pa.Table):
            return source
        if isinstance(source, pa.RecordBatch):
            return pa.Table.from_batches([source])
        if isinstance(source, pa.RecordBatchReader):
            return source.read_all()
        if isinstance(source, Mapping):
            return pa.table({str(name): _column(values) for name, values in source.items()})
        if type(source).__module__.startswith("pandas.") and type(source).__name__ == "DataFrame":
            return pa.Table.from_pandas(source, preserve_index=False).replace_schema_metadata(None)
        if hasattr(source, "__arrow_c_stream__"):
            return pa.table(source)
    except UnicodeError as error:
        raise SchemaError(f"the table holds text that is not valid Unicode ({error}); clean it first") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise SchemaError(f"the table cannot be read: {error}") from error
    raise SchemaError(
        f"cannot read a table from a {type(source).__module__}.{type(source).__name__}; give a pandas or "
        "Polars DataFrame, an Arrow table, a dictionary of arrays, "
        "or the path of a .csv, .csv.gz, .tsv, .tsv.gz or .parquet file"
    )


def _column(values: Any) -> Any:
    if getattr(values, "ndim", 1) != 1:
        raise SchemaError(
            f"a column is one-dimensional, found an array of shape {values.shape}; give lists, or a column each"
        )
    return values


def _read_file(
    path: Path, columns: Sequence[str], types: Mapping[str, ColumnType], bad_rows: Literal["error", "skip"]
) -> pa.Table:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        if suffix == ".parquet":
            return pa.parquet.read_table(path).replace_schema_metadata(None)
        if suffix in _DELIMITERS:
            return _read_csv(path, _DELIMITERS[suffix], columns, types, bad_rows)
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise SchemaError(f"{path} cannot be read: {error}") from error
    raise SchemaError(f"{path} has an unknown ending; expected .csv, .csv.gz, .tsv, .tsv.gz or .parquet")


def _read_csv(
    path: Path,
    delimiter: str,
    columns: Sequence[str],
    types: Mapping[str, ColumnType],
    bad_rows: Literal["error", "skip"],
) -> pa.Table:
    bad: list[int | None] = []

    def skip(row: Any) -> str:
        bad.append(row.number)
        return "skip"

    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(column_names=list(columns) or None),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, invalid_row_handler=skip if bad_rows == "skip" else None, newlines_in_values=True
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: _ARROW_TYPES[kind] for name, kind in types.items()},
            null_values=_NULLS,
            strings_can_be_null=True,
        ),
    )
    return table.replace_schema_metadata({BAD_ROWS: str(len(bad)).encode()} if bad else None)


def _plain(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        kind = _plain_type(field.type)
        if kind != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if kind == pa.string_view():
        return pa.large_string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return kind
