"""Rows of data larger than memory, batch by batch: Parquet files and folders, Arrow datasets and streams, iterators."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from fastmtr.errors import SchemaError
from fastmtr.tables import read_table

__all__ = ["BATCH_ROWS", "Source", "open_source", "read_batches"]

# A batch of 40 columns takes some tens of MB.
BATCH_ROWS = 1 << 17

_Part = TypeVar("_Part", pa.Table, pa.RecordBatch)

_READ_BYTES = 1 << 20
# Little is read ahead.
_SCAN: dict[str, Any] = {
    "batch_size": BATCH_ROWS,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "use_threads": False,
}


class Source(Protocol):
    """Where batches come from.

    Attributes
    ----------
    names : tuple of str
        The columns.
    n_rows : int, or None
        None: not known before the last batch.
    again : bool
        Whether the rows can be read more than once.
    in_memory : bool
        Whether they are there as a whole, so that batches save nothing.
    identity : str, or None
        Tells files from others without reading their rows; None: it takes reading.
    """

    n_rows: int | None
    again: bool
    in_memory: bool
    identity: str | None

    @property
    def names(self) -> tuple[str, ...]: ...

    def tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        """Tables of any number of rows, without the first `start` rows."""
        ...


def open_source(source: Any) -> Source:
    """What :func:`read_batches` reads from.

    Parameters
    ----------
    source : path, Dataset, RecordBatchReader, table, iterable of tables, or function
        A ``.parquet`` file; a folder of such files, read in the order of their names; a ``pyarrow.dataset``; a
        ``RecordBatchReader`` or an iterator of tables, which can be read once; a list of tables, or a function that
        returns a new iterator each time; or whatever :func:`fastmtr.tables.read_table` takes, in memory as a whole.

    Raises
    ------
    SchemaError
        Nothing can be read from it, or two files of a folder differ in their columns.
    FileNotFoundError
        There is no such file or folder.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            files = sorted(path.rglob("*.parquet"))
            if not files:
                raise SchemaError(f"{path} holds no .parquet file; give a folder of Parquet files, or a table")
            return _Parquet(path, files)
        return _Parquet(path.parent, [path]) if path.suffix == ".parquet" and path.exists() else _Memory(source)
    if isinstance(source, pa.dataset.Dataset):
        try:
            return _Dataset(source)
        except ValueError:  # one that filters has no fragments of its own
            return _Iterated(lambda: source.to_batches(**_SCAN), again=True)
    if isinstance(source, pa.RecordBatchReader):
        return _Iterated(lambda: source, again=False)
    if callable(source):
        return _Iterated(source, again=True)
    if isinstance(source, Iterator):
        return _Iterated(lambda: source, again=False)
    if isinstance(source, list | tuple):
        return _Iterated(lambda: source, again=True)
    return _Memory(source)


def read_batches(
    source: Source, *, columns: Sequence[str] | None = None, batch_rows: int | None = None, start: int = 0
) -> Iterator[pa.Table]:
    """The rows from `start` on in tables of exactly `batch_rows` rows, the last one excepted.

    Where one batch ends does not depend on how the source is cut (row groups, the tables of an iterator).

    Parameters
    ----------
    source : Source
    columns : sequence of str, optional
        Read these where they are there; None: all.
    batch_rows : int, optional
        None: :data:`BATCH_ROWS`, or all rows of what is in memory.
    start : int

    Raises
    ------
    SchemaError
        Tables of one source differ in their columns.
    """
    if batch_rows is None:
        batch_rows = max(source.n_rows or 1, 1) if source.in_memory else BATCH_ROWS
    waiting: list[pa.Table] = []
    missing = batch_rows
    types = _Types()
    for table in source.tables(columns, start):
        types.check(table.schema, "a table of the stream")
        at = 0
        while at < table.num_rows:
            piece = table.slice(at, missing)
            waiting.append(piece)
            at += piece.num_rows
            missing -= piece.num_rows
            if not missing:
                yield _joined(waiting)
                waiting, missing = [], batch_rows
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(f"the tables of a stream should have columns of the same types: {error}") from error


class _Types:
    """Refuses columns that come as one kind of values and then as another.

    Arrow would make float64 of whole numbers and floats, and round large keys.
    """

    def __init__(self) -> None:
        self._found: dict[str, str | None] | None = None

    def check(self, schema: pa.Schema, where: str) -> None:
        mine = {field.name: _kind(field.type) for field in schema}
        if self._found is None:
            self._found = dict.fromkeys(mine)
        if list(mine) != list(self._found):
            raise SchemaError(f"{where} should have the columns {list(self._found)}, found {list(mine)}")
        for name, kind in mine.items():
            before = self._found[name]
            if kind is not None and before not in (None, kind):
                raise SchemaError(
                    f"{where} should hold {before} in the column {name!r} as those before it, found {kind}; give the "
                    "column one type"
                )
            self._found[name] = kind or before


def _kind(kind: pa.DataType) -> str | None:
    """In words; None: only nulls."""
    if pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _kind(kind.value_type)
        return None if inner is None else f"lists of {inner}"
    if pa.types.is_integer(kind):
        return "whole numbers"
    if pa.types.is_floating(kind):
        return "floats"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "text"
    return str(kind)


class _Parquet:
    """Parquet files as one table after another."""

    again, in_memory = True, False

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._files = files
        digest = hashlib.sha256()
        rows = []
        types = _Types()
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    schema = file.schema_arrow.remove_metadata()
                    rows.append(file.metadata.num_rows)
            except (pa.ArrowException, OSError) as error:
                raise SchemaError(f"{path} cannot be read: {error}") from error
            types.check(schema, f"the file {path.relative_to(folder)}")
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            digest.update(_footer(path))
        self._rows = rows
        self.names: tuple[str, ...] = tuple(schema.names)
        self.n_rows: int | None = sum(rows)
        self.identity: str | None = digest.hexdigest()

    def tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        wanted = None if columns is None else [name for name in self.names if name in columns]
        for path, rows in zip(self._files, self._rows, strict=True):
            if start >= rows:
                start -= rows
                continue
            yield from _row_groups(path, wanted, start)
            start = 0


def _row_groups(path: Path, columns: list[str] | None, start: int) -> Iterator[pa.Table]:
    # A buffered stream reads a column's pages as they are needed, not whole row groups.
    with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start >= rows:
                start -= rows
                continue
            batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
            yield from map(read_table, _from_row(batches, start))
            start = 0


def _footer(path: Path) -> bytes:
    """A Parquet file's own description: where each column's pages are, their sizes and statistics."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        return file.read(size)


class _Dataset:
    """An Arrow dataset, fragment by fragment."""

    again, in_memory = True, False

    def __init__(self, dataset: pa.dataset.Dataset) -> None:
        self._dataset = dataset
        self._fragments = list(dataset.get_fragments())
        self._rows = [fragment.count_rows() for fragment in self._fragments]
        self.names: tuple[str, ...] = tuple(dataset.schema.names)
        self.n_rows: int | None = sum(self._rows)
        parts = [(str(getattr(f, "path", "")), n) for f, n in zip(self._fragments, self._rows, strict=True)]
        text = f"{_fields(dataset.schema)} {parts}"
        self.identity: str | None = hashlib.sha256(text.encode()).hexdigest()

    def tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        wanted = None if columns is None else [name for name in self.names if name in columns]
        for fragment, rows in zip(self._fragments, self._rows, strict=True):
            if start >= rows:
                start -= rows
                continue
            batches = fragment.to_batches(schema=self._dataset.schema, columns=wanted, **_SCAN)
            yield from map(read_table, _from_row(batches, start))
            start = 0


class _Memory:
    """One table, whole in memory."""

    again, in_memory = True, True
    identity: str | None = None

    def __init__(self, source: Any) -> None:
        self._table = read_table(source)
        self.names: tuple[str, ...] = tuple(self._table.column_names)
        self.n_rows: int | None = self._table.num_rows

    def tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        yield _selected(self._table, columns).slice(start)


class _Iterated:
    """Tables that come one by one."""

    in_memory = False
    n_rows: int | None = None
    identity: str | None = None

    def __init__(self, make: Callable[[], Iterable[Any]], *, again: bool) -> None:
        self._make = make
        self.again = again
        # An iterator that can be read once, until it is.
        self._once: Iterator[Any] | None = None if again else iter(make())
        self._names: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        if self._names is None:
            tables = iter(self._make()) if self.again else self._take_once()
            first = next(tables, None)
            self._names = () if first is None else tuple(read_table(first).column_names)
            if not self.again:
                self._once = tables if first is None else itertools.chain([first], tables)
        return self._names

    def tables(self, columns: Sequence[str] | None, start: int) -> Iterator[pa.Table]:
        given = self._make() if self.again else self._take_once()
        yield from _from_row((_selected(read_table(each), columns) for each in given), start)

    def _take_once(self) -> Iterator[Any]:
        once, self._once = self._once, None
        if once is None:
            raise SchemaError(
                "this takes a second pass over the rows, and an iterator can be read once; give a path, a dataset, or "
                "a function that returns a new iterator each time"
            )
        return once


def _from_row(parts: Iterable[_Part], start: int) -> Iterator[_Part]:
    """The parts without the first `start` of their rows; a part that loses all of them is empty."""
    for part in parts:
        skipped = min(start, part.num_rows)
        start -= skipped
        yield part.slice(skipped)


def _selected(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    return table if columns is None else table.select([name for name in table.column_names if name in columns])


def _fields(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}
