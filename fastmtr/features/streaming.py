"""Features of data larger than memory: batch by batch, with output that a stopped run goes on with.

Memory is some batches of raw rows (see :data:`fastmtr.features.batches.BATCH_ROWS`) and one of packed rows, whatever
the number of rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save

from fastmtr.errors import SchemaError
from fastmtr.features.batches import BATCH_ROWS, open_source, read_batches
from fastmtr.features.shards import FeatureFiles, Job, ShardWriter
from fastmtr.graph import DOMAINS, Domain, Packed

if TYPE_CHECKING:
    from fastmtr.features.pipeline import FeaturePipeline

__all__ = ["state_checksum", "transform_to"]


def transform_to(
    pipeline: FeaturePipeline,
    path: str | os.PathLike[str],
    *,
    source: Any,
    domains: Sequence[Domain] | None = None,
    keep: Sequence[str] = (),
    missing: Literal["error", "null"] = "error",
    batch_rows: int = BATCH_ROWS,
    progress: bool = False,
    overwrite: bool = False,
) -> FeatureFiles:
    """Pack the rows of a source, and write them as files that are mapped (see :mod:`fastmtr.features.shards`).

    A run that was stopped, killed even, goes on where it was when it is called again with the same arguments: at most
    the batch it was at is done again, and the result has the same bytes as one run's. The last finished part is encoded
    again and compared first; so another input is refused, as is another pipeline.

    Parameters
    ----------
    pipeline : FeaturePipeline
        Fitted.
    path : path
        The folder to write.
    source : path, Dataset, RecordBatchReader, table, iterable of tables, or function
        See :func:`fastmtr.features.batches.open_source`. One row of it is one row of the result.
    domains : sequence of {"request", "item", "candidate"}, optional
        None: all that have features.
    keep : sequence of str
        Columns of numbers (labels, keys, times) that are written beside the features.
    missing : {"error", "null"}
        What a feature without a column does: raise, or count as null.
    batch_rows : int
        Rows of a batch, and of a part.
    progress : bool
        Show how far it is.
    overwrite : bool
        Begin anew where the folder holds features.

    Returns
    -------
    FeatureFiles

    Raises
    ------
    SchemaError
        A column is missing or holds values of the wrong kind; or the folder holds features of another pipeline, input
        or arguments, or something else.
    """
    if batch_rows < 1:
        raise SchemaError(f"batch_rows must be at least 1, found {batch_rows}")
    chosen = tuple(d for d in DOMAINS if pipeline.features(d)) if domains is None else tuple(domains)
    opened = open_source(source)
    job = Job(
        pipeline=state_checksum(pipeline),
        source=opened.identity,
        source_rows=opened.n_rows,
        domains=chosen,
        columns=tuple(keep),
        batch_rows=batch_rows,
        missing=missing,
    )
    writer = ShardWriter(path, job, overwrite=overwrite)
    if writer.complete:
        return writer.finish()

    def encoded(table: pa.Table) -> tuple[dict[Domain, Packed], dict[str, NDArray[Any]]]:
        packed = {domain: pipeline.transform(domain, table, missing=missing) for domain in chosen}
        return packed, {name: _kept(table, name) for name in keep}

    # The last finished part is read again, to be compared.
    first = max(writer.parts - 1, 0)
    tables = read_batches(
        opened, columns=_columns(pipeline, chosen, keep), batch_rows=batch_rows, start=first * batch_rows
    )
    with rows_progress("packing features", opened.n_rows, shown=progress, done=first * batch_rows) as advance:
        if writer.parts:
            _check_last(writer, next(tables, None), encoded)
            advance(writer.rows - first * batch_rows)
        for table in tables:
            writer.write(*encoded(table), rows=table.num_rows)
            advance(table.num_rows)
    return writer.finish()


def _check_last(writer: ShardWriter, table: pa.Table | None, encoded: Any) -> None:
    if table is None:
        raise SchemaError(
            f"{writer.path} holds {writer.rows:,} rows already, and the input has fewer: it is another one"
        )
    writer.check_last(*encoded(table))


def state_checksum(pipeline: FeaturePipeline) -> str:
    """SHA-256 of the schema and of what the pipeline learned."""
    head, arrays = pipeline.state()
    digest = hashlib.sha256(pipeline.schema.to_json())
    digest.update(msgspec.json.encode(head, order="sorted"))
    digest.update(save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))
    return digest.hexdigest()


def _columns(pipeline: FeaturePipeline, domains: Sequence[Domain], keep: Sequence[str]) -> list[str]:
    """The raw columns that may be read."""
    schema = pipeline.schema
    names = {name for name in (schema.user, schema.item, schema.timestamp, *keep) if name is not None}
    for domain in domains:
        names.update(pipeline.raw_columns(domain), *(pipeline.columns_read(f) for f in pipeline.features(domain)))
    return sorted(names)


def _kept(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as int64 or float64."""
    if name not in table.column_names:
        raise SchemaError(f"the column {name!r} that is to be kept is not there; there are {table.column_names}")
    column = table.column(name).combine_chunks()
    kind = column.type
    if pa.types.is_floating(kind):
        return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind)):
        raise SchemaError(f"the column {name!r} that is to be kept should hold numbers, found {kind}")
    if column.null_count:
        raise SchemaError(f"the column {name!r} that is to be kept has nulls among whole numbers; make it float")
    return np.array(column.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)


class Advance(Protocol):
    """Tells that so many more rows are done."""

    def __call__(self, rows: int) -> None: ...


@contextmanager
def rows_progress(text: str, total: int | None, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """A bar on the terminal that counts rows, if it is shown and rich is there."""
    if not shown or find_spec("rich") is None:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    count = "{task.completed:,.0f} of {task.total:,.0f} rows" if total is not None else "{task.completed:,.0f} rows"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn(count), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total, completed=done)
        yield lambda rows: bar.advance(task, rows)
