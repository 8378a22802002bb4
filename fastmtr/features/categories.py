"""The ids of categories: a vocabulary or a hash.

Row 0 of every table of embeddings is "missing" (and padding), row 1 "unseen", the rest is the vocabulary, most frequent
first. A column and a single value get the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.features.accumulators import CategoryCounts
from fastmtr.features.columns import Reader
from fastmtr.features.counts import text_array
from fastmtr.features.scales import saved_vector
from fastmtr.features.text import words, words_of
from fastmtr.schema import Feature

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FIRST_ROW", "MISSING", "UNSEEN", "Categories", "Texts", "encode_lists", "split_lists", "tokens"]

MISSING, UNSEEN, FIRST_ROW = 0, 1, 2


class Texts:
    """A vocabulary of texts, in valid UTF-8: text i is ``data[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.data, self.offsets = data, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def array(self) -> pa.Array:
        """As an Arrow array over the same memory."""
        return text_array(self.data, self.offsets)

    def tolist(self, most: int | None = None) -> list[str]:
        """The first ones, or all."""
        ends = self.offsets[: None if most is None else most + 1].tolist()
        content = self.data[: ends[-1]].tobytes()
        return [content[start:end].decode() for start, end in pairwise(ends)]


class Categories(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The ids of one set of categories.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    type : {"int", "str"}, optional
        None: the fitted data held nulls only, so either comes as unseen.
    known : ndarray of int64, or Texts
        The vocabulary: id 2, 3, ...; empty if hashed.
    hash_rows : int, optional
        The values are hashed into so many ids from 2 on.
    """

    name: str
    type: values.ValueType | None
    known: Any
    hash_rows: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the table of embeddings: one more than the largest id."""
        return FIRST_ROW + (self.hash_rows if self.hash_rows is not None else len(self.known))

    @classmethod
    def fit(cls, feature: Feature, counts: CategoryCounts) -> Categories:
        """Learn the vocabulary from values that were counted."""
        if counts.type is None or feature.hash_rows is not None:
            return cls(name=feature.name, type=counts.type, known=(), hash_rows=feature.hash_rows)
        known: Any
        if counts.type == "int":
            known, _ = counts.ints(feature.min_count)
        else:
            data, offsets, _ = counts.texts(feature.min_count)
            values.check_utf8(data, offsets, problem=f"column {feature.name!r} holds text that is not valid UTF-8")
            known = Texts(data, offsets)
        return cls(name=feature.name, type=counts.type, known=known)

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The id of each value of a column, shape (n,)."""
        import pyarrow.compute as pc

        _, array = values.category_column(column, name=self.name, expected=self.type)
        missing = array.is_null().to_numpy(zero_copy_only=False)
        ids: NDArray[np.int32]
        if self.hash_rows is None:
            found = pc.index_in(array, value_set=self._value_set.cast(array.type)).fill_null(UNSEEN - FIRST_ROW)
            ids = found.to_numpy(zero_copy_only=False).astype(np.int32) + np.int32(FIRST_ROW)
        else:
            coded = array.dictionary_encode()
            if not values.is_text(array.type):
                hashes = hashing.hash_integers(coded.dictionary.to_numpy(zero_copy_only=False).astype(np.int64))
            else:
                hashes = hashing.hash_packed_bytes(*values.text_bytes(coded.dictionary))
            of_unique = (hashes % np.uint64(self.hash_rows)).astype(np.int32) + np.int32(FIRST_ROW)
            codes = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            ids = of_unique[codes] if len(of_unique) else np.zeros(len(array), np.int32)
        ids[missing] = MISSING
        return ids

    def encode_value(self, value: Any) -> int:
        """The id of one value."""
        one = values.category(value, name=self.name, expected=self.type)
        if one is None:
            return MISSING
        if self.hash_rows is None:
            found = self._ids.get(one)
            if found is not None:
                return found
            if isinstance(one, str):
                _checked(one, self.name)
            return UNSEEN
        return (
            FIRST_ROW + hashing.hash_value(_checked(one, self.name) if isinstance(one, str) else one) % self.hash_rows
        )

    @cached_property
    def _ids(self) -> dict[int | str, int]:
        known = self.known.tolist() if len(self.known) else ()
        return {value: i for i, value in enumerate(known, FIRST_ROW)}

    @cached_property
    def _value_set(self) -> pa.Array:
        import pyarrow as pa

        return self.known.array if isinstance(self.known, Texts) else pa.array(self.known, pa.int64())

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {"type": self.type, "hash_rows": self.hash_rows}
        if self.hash_rows is not None or self.type is None:
            return head, {}
        if self.type == "int":
            return head, {"values": np.asarray(self.known, np.int64)}
        return head, {"bytes": self.known.data, "offsets": self.known.offsets}

    @classmethod
    def from_state(cls, feature: Feature, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Categories:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        name, kind, hash_rows = feature.name, head.get("type"), head.get("hash_rows")
        if kind not in ("int", "str", None) or hash_rows != feature.hash_rows:
            raise SchemaError(f"the saved state of feature {name!r} is damaged: {dict(head)}")
        known: Any = ()
        if hash_rows is None and kind == "int":
            known = saved_vector(name, arrays, "values", np.int64)
        elif hash_rows is None and kind == "str":
            known = _saved_texts(
                name, saved_vector(name, arrays, "bytes", np.uint8), saved_vector(name, arrays, "offsets", np.int64)
            )
        categories = cls(name=name, type=kind, known=known, hash_rows=hash_rows)
        if len(categories._ids) != len(known):
            raise SchemaError(f"the saved state of feature {name!r} is damaged: a category stands twice")
        return categories


def tokens(feature: Feature, text: str) -> list[str]:
    """The parts of a text: a ``multi`` split at its separator, or the words of a ``text``."""
    _checked(text, feature.name)
    if feature.kind == "text":
        return words_of(text, ngrams=feature.ngrams)
    return [part for part in (piece.strip() for piece in text.split(feature.separator)) if part]


def split_lists(
    feature: Feature, column: pa.Array | pa.ChunkedArray, expected: values.ValueType | None
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64] | None]:
    """The values of a many-valued column and the row of each; for text, also which of these rows each one of it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if feature.kind == "text":
            raise SchemaError(f"column {feature.column!r} should hold text, found a column of type {kind}")
        return pc.list_flatten(array), pc.list_parent_indices(array).to_numpy().astype(np.int64), None
    if array.null_count == len(array):
        nothing = pa.large_string() if values.is_text(kind) else pa.null()
        return pa.nulls(0, nothing), np.zeros(0, np.int64), None
    if feature.kind == "text" and values.is_text(kind):
        texts = Reader(feature.column, "texts").of_column(array)
        data, offsets, rows = words(texts, ngrams=feature.ngrams)
        return text_array(data, offsets), np.repeat(np.arange(len(array)), np.diff(rows)), None
    if feature.kind == "multi" and values.is_text(kind):
        coded = array.dictionary_encode()
        try:
            split = [tokens(feature, text) for text in coded.dictionary.to_pylist()]
        except UnicodeDecodeError as error:
            raise SchemaError(f"column {feature.name!r} holds text that is not valid UTF-8: {error}") from error
        parents = np.repeat(np.arange(len(split)), [len(each) for each in split])
        flat = pa.array([part for each in split for part in each], pa.large_string())
        return flat, parents, coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    what = {"text": "text", "sequence": "lists"}.get(
        feature.kind, f"lists, or text with {feature.separator!r} between values"
    )
    raise SchemaError(f"column {feature.name!r} should hold {what}, found a column of type {kind}")


def encode_lists(
    ids: NDArray[np.int32], parents: NDArray[np.int64], n_rows: int, *, length: int, as_set: bool
) -> NDArray[np.int32]:
    """Rows of ids, padded at the end.

    Parameters
    ----------
    ids : ndarray of int32, shape (m,)
        Missing ones are left out.
    parents : ndarray of int64, shape (m,)
        The row of each, ascending.
    n_rows, length : int
    as_set : bool
        Keep the first of equal ids of a row only.

    Returns
    -------
    ndarray of int32, shape (n_rows, length)
    """
    keep = ids != MISSING
    ids, parents = ids[keep], parents[keep]
    if as_set and len(ids):
        _, first = np.unique(parents * (int(ids.max()) + 1) + ids, return_index=True)
        first.sort()
        ids, parents = ids[first], parents[first]
    places = np.arange(len(ids)) - np.searchsorted(parents, parents, side="left")
    fits = places < length
    out = np.full((n_rows, length), MISSING, np.int32)
    out[parents[fits], places[fits]] = ids[fits]
    return out


def _checked(text: str, name: str) -> str:
    values.utf8(text, name=name)
    return text


def _saved_texts(name: str, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Texts:
    damaged = f"the saved state of feature {name!r} is damaged"
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise SchemaError(f"{damaged}: its texts do not lie within their bytes")
    values.check_utf8(data, offsets, problem=damaged)
    return Texts(data, offsets)
