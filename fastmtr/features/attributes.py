"""Attributes of items, looked up by the items' keys in a snapshot of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import values
from fastmtr.features.accumulators import CategoryCounts
from fastmtr.features.categories import MISSING, UNSEEN, Categories
from fastmtr.features.columns import Reader
from fastmtr.features.scales import saved_vector
from fastmtr.schema import Feature, Schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Attributes", "ObservedAttributes"]


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of an attribute by key: those of :class:`Categories`, one step further.

    Parameters
    ----------
    keys : Categories
        The keys of the catalogue, as a vocabulary.
    ids : ndarray of int32, shape (keys,)
        What each key's attribute is. A key that is not known has an attribute that is not seen.
    rows : int
        Of the attribute's table of embeddings.
    """

    keys: Categories
    ids: Any
    rows: int

    @property
    def type(self) -> values.ValueType | None:
        """Of the keys."""
        return self.keys.type

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The attribute's id of each key of a column, shape (n,)."""
        by_key = np.concatenate([np.array([MISSING, UNSEEN], np.int32), self.ids])
        result: NDArray[np.int32] = by_key[self.keys.encode(column)]
        return result

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head, arrays = self.keys.state()
        return head | {"rows": self.rows}, arrays | {"ids": self.ids}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Attributes:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        keys = Categories.from_state(_of_keys(feature), head, arrays)
        ids, rows = saved_vector(feature.name, arrays, "ids", np.int32), head.get("rows")
        fits = isinstance(rows, int) and ids.min(initial=MISSING) >= MISSING and ids.max(initial=-1) < rows
        if not isinstance(rows, int) or not fits or len(ids) != len(keys.known):
            raise SchemaError(
                f"the saved state of feature {feature.name!r} is damaged: {len(keys.known)} keys of {rows} rows have "
                f"{len(ids)} ids"
            )
        return cls(keys=keys, ids=ids, rows=rows)


def _of_keys(feature: Feature) -> Feature:
    """Every key is known, however the attribute is kept."""
    return msgspec.structs.replace(feature, min_count=1, hash_rows=None)


class ObservedAttributes:
    """The keys and the attribute of the items so far."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature = feature
        self.reads = (
            Reader(schema.item, "categories"),
            Reader(schema.feature(str(feature.of)).column, "categories"),
        )
        self._keys: list[pa.Array] = []
        self._values: list[pa.Array] = []

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add items; how often they occur does not matter."""
        keys, attributes = columns
        _, keys = values.category_column(keys, name=self.reads[0].column, expected=None)
        known = keys.is_valid()
        self._keys.append(keys.filter(known))
        self._values.append(values.combined(attributes).filter(known))

    def fit(self, encoders: Mapping[str, Any]) -> Attributes:
        """What they teach: every key, in ascending order."""
        import pyarrow as pa

        of: Categories = encoders[str(self.feature.of)]
        keys = pa.chunked_array([each for each in self._keys if len(each)] or [pa.nulls(0, pa.int64())])
        counts = CategoryCounts(self.feature.name)
        kind, array = values.category_column(keys, name=self.reads[0].column, expected=None)
        if kind == "int":
            counts.update_ints(array.to_numpy(zero_copy_only=False))
        else:
            counts.update_texts(*values.text_bytes(array))
        vocabulary = Categories.fit(_of_keys(self.feature), counts)
        if len(vocabulary.known) != len(array):
            raise SchemaError(
                f"feature {self.feature.name!r}: the items' table has {len(array) - len(vocabulary.known)} keys in "
                f"column {self.reads[0].column!r} that stand twice"
            )
        ids = np.zeros(len(array), np.int32)
        found = [of.encode(each) for each in self._values]
        ids[vocabulary.encode(array) - vocabulary.first_row] = np.concatenate([np.zeros(0, np.int32), *found])
        return Attributes(keys=vocabulary, ids=ids, rows=of.rows)
