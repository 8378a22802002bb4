"""The users and the items of a data set: one row each, whether a table describes them or only the log names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import values
from fastmtr.schema import Schema
from fastmtr.tables import read_table
from fastmtr.training.splits import times_of

__all__ = ["Entities", "make_entities"]


@dataclass(frozen=True)
class Entities:
    """One row an entity, by ascending key.

    Attributes
    ----------
    name : str
        The key's column.
    table : pyarrow.Table
    keys : pyarrow.Array
        int64 or text, ascending, without repeats.
    described : int
        How many have a row in the table that was given.
    """

    name: str
    table: pa.Table
    keys: pa.Array
    described: int

    @property
    def n_rows(self) -> int:
        """How many entities."""
        return len(self.keys)

    def rows_of(self, table: pa.Table) -> NDArray[np.int64]:
        """The entity of each row of a table, by its key column."""
        kind: values.ValueType = "int" if pa.types.is_integer(self.keys.type) else "str"
        _, keys = values.category_column(table.column(self.name), name=self.name, expected=kind)
        found = pc.index_in(keys, value_set=self.keys).fill_null(-1)
        result: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return result

    def groups(self, column: str) -> NDArray[np.int64]:
        """A number for each distinct value of a column, -1 for null; shape (n_rows,)."""
        _, array = values.category_column(self.table.column(column), name=column, expected=None)
        codes = array.dictionary_encode().indices.fill_null(-1)
        result: NDArray[np.int64] = codes.to_numpy(zero_copy_only=False).astype(np.int64)
        return result


def make_entities(
    entity: Literal["user", "item"], source: Any | None, *, log: pa.Table, schema: Schema, before: int
) -> Entities:
    """All entities of a table and of a log.

    Parameters
    ----------
    entity : {"user", "item"}
    source : anything that read_table takes, optional
        One row an entity. Entities that only the log names get nulls. None: features are the columns of the log, as the
        entity's last event before `before` has them (or, for later entities, their first event).
    log : pyarrow.Table
        Cleaned.
    schema : Schema
    before : int
        When the test samples begin.

    Raises
    ------
    SchemaError
        The table has no key column, or a key is null or stands twice.
    """
    key = schema.user if entity == "user" else schema.item
    read = [schema.columns_of(f) for f in schema.of_entity(entity) if not schema.is_from_log(f)]
    wanted = list(dict.fromkeys(name for names in read for name in names))
    if source is None:
        table, described = _from_log(key, wanted, log, schema, before), 0
    else:
        table = _given(entity, key, source)
        described = table.num_rows
    kind, keys = values.category_column(table.column(key), name=key, expected=None)
    try:
        _, logged = values.category_column(log.column(key), name=key, expected=kind)
    except SchemaError as error:
        raise SchemaError(f"the {entity}s' table and the log disagree: {error}") from error
    unknown = pc.unique(logged.filter(pc.invert(pc.is_in(logged, value_set=keys))))
    order = pc.sort_indices(pa.concat_arrays([keys, unknown]))
    extended = pa.concat_tables(
        [table, pa.table({key: unknown.cast(table.schema.field(key).type)})], promote_options="default"
    )
    missing = [name for name in wanted if name not in extended.column_names]
    if missing:
        raise SchemaError(
            f"feature {missing[0]!r} of entity {entity!r} has no column; the {entity}s' table has {table.column_names}"
        )
    return Entities(
        key, extended.take(order).combine_chunks(), pa.concat_arrays([keys, unknown]).take(order), described
    )


def _given(entity: str, key: str, source: Any) -> pa.Table:
    table = read_table(source)
    if key not in table.column_names:
        raise SchemaError(f"the {entity}s' table has no column {key!r}; it has {table.column_names}")
    _, keys = values.category_column(table.column(key), name=key, expected=None)
    if keys.null_count:
        raise SchemaError(f"the {entity}s' table has {keys.null_count} rows whose {key!r} is null; remove them")
    counted = pc.value_counts(keys)
    repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if len(repeated):
        raise SchemaError(
            f"the {entity}s' table has {len(repeated)} keys in column {key!r} that stand twice: {repeated[0]}, ..."
        )
    return table


def _from_log(key: str, wanted: list[str], log: pa.Table, schema: Schema, before: int) -> pa.Table:
    names = [key, *(name for name in wanted if name != key)]
    missing = [name for name in names if name not in log.column_names]
    if missing:
        raise SchemaError(
            f"feature {missing[0]!r} has no column; there is no table for {key!r}, and the log has {log.column_names}"
        )
    _, keys = values.category_column(log.column(key), name=key, expected=None)
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    times = times_of(log, schema)
    late = times >= before
    # Best row first: early ones newest first, then late ones oldest first.
    order = np.lexsort((np.where(late, times, -times), late, codes))
    firsts = order[np.unique(codes[order], return_index=True)[1]]
    return log.select(names).take(pa.array(firsts))
