"""The ids of categories: a vocabulary or a hash.

Row 0 of every table of embeddings is "missing" (and padding), row 1 (and perhaps some more) "unseen", the rest is the
vocabulary, most frequent first. A column and a single value get the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.features.accumulators import CategoryCounts
from fastmtr.features.columns import Reader
from fastmtr.features.counts import TextCounts, text_array
from fastmtr.features.scales import saved_vector
from fastmtr.features.text import words
from fastmtr.schema import Feature

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.features.numba_batch import Index

__all__ = ["MISSING", "UNSEEN", "Categories", "Texts", "encode_lists", "hashed_column", "split_lists"]

MISSING, UNSEEN = 0, 1


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
        The raw column's, for messages.
    type : {"int", "str"}, optional
        None: the fitted data held nulls only, so either comes as unseen.
    known : ndarray of int64, or Texts
        The vocabulary: the ids from `first_row` on; empty if hashed.
    hash_rows : int, optional
        The values are hashed into so many ids instead.
    hashes : int
        Ids of each value, if hashed.
    oov_rows : int
        Values that the vocabulary does not have are hashed into so many ids from 1 on.
    nulls : {"fill", "error"}
    unseen : {"row", "error"}
    """

    name: str
    type: values.ValueType | None
    known: Any
    hash_rows: int | None = None
    hashes: int = 1
    oov_rows: int = 1
    nulls: Literal["fill", "error"] = "fill"
    unseen: Literal["row", "error"] = "row"

    @property
    def first_row(self) -> int:
        """The id of the first known value."""
        return UNSEEN + self.oov_rows

    @property
    def rows(self) -> int:
        """Rows of the table of embeddings: one more than the largest id."""
        return self.first_row + (self.hash_rows if self.hash_rows is not None else len(self.known))

    @classmethod
    def fit(cls, feature: Feature, counts: CategoryCounts) -> Categories:
        """Learn the vocabulary from values that were counted."""
        nothing = cls(name=feature.column, type=counts.type, known=(), **_rules(feature))
        if counts.type is None or feature.hash_rows is not None:
            return nothing
        known: Any
        if counts.type == "int":
            known, _ = counts.ints(feature.min_count)
        else:
            data, offsets, _ = counts.texts(feature.min_count)
            values.check_utf8(data, offsets, problem=f"column {feature.column!r} holds text that is not valid UTF-8")
            known = Texts(data, offsets)
        return msgspec.structs.replace(nothing, known=known)

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The (first) id of each value of a column, shape (n,)."""
        return self.encode_hashes(column)[:, 0]

    def encode_hashes(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The ids of each value of a column, shape (n, hashes)."""
        import pyarrow.compute as pc

        _, array = values.category_column(column, name=self.name, expected=self.type)
        missing = array.is_null().to_numpy(zero_copy_only=False)
        self._refuse_nulls(int(missing.sum()))
        ids = np.empty((len(array), self.hashes), np.int32)
        if self.hash_rows is None:
            found = pc.index_in(array, value_set=self._value_set.cast(array.type)).fill_null(-1)
            ranks = found.to_numpy(zero_copy_only=False).astype(np.int64)
            ids[:, 0] = ranks + self.first_row
            unseen = np.flatnonzero((ranks < 0) & ~missing)
            if len(unseen):
                ids[unseen, 0] = self._unseen_rows(array, unseen)
        else:
            coded = array.dictionary_encode()
            codes = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            for seed in range(self.hashes):
                hashes = hashed_column(coded.dictionary, seed=seed) % np.uint64(self.hash_rows)
                ids[:, seed] = np.append(hashes.astype(np.int32), np.int32(0))[codes] + np.int32(self.first_row)
        ids[missing] = MISSING
        return ids

    def encode_integers(self, numbers: NDArray[np.int64], valid: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The ids of whole numbers by a vocabulary, shape (n, 1); of those that are not valid anything."""
        order, ascending = self._ascending
        found = np.full(len(numbers), False)
        places = np.searchsorted(ascending, numbers)
        if len(ascending):
            places = np.minimum(places, len(ascending) - 1)
            found = ascending[places] == numbers
            places = order[places]
        strange = np.flatnonzero(~found & valid)
        if len(strange) and self.unseen == "error":
            self._refuse_unseen(int(numbers[strange[0]]), len(strange))
        ids = np.where(found, places + self.first_row, UNSEEN).astype(np.int32)
        if self.oov_rows > 1:
            of_hash = hashing.hash_integers(numbers[strange]) % np.uint64(self.oov_rows)
            ids[strange] += of_hash.astype(np.int32)
        return ids[:, None]

    @cached_property
    def _ascending(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        known = np.asarray(self.known, np.int64)
        order = np.argsort(known, kind="stable")
        return order, known[order]

    def _unseen_rows(self, array: pa.Array, unseen: NDArray[np.int64]) -> Any:
        import pyarrow as pa

        strange = array.take(pa.array(unseen))
        if self.unseen == "error":
            self._refuse_unseen(strange[0].as_py(), len(strange))
        if self.oov_rows == 1:
            return UNSEEN
        return (hashed_column(strange) % np.uint64(self.oov_rows)).astype(np.int32) + np.int32(UNSEEN)

    def _refuse_nulls(self, n: int) -> None:
        if n and self.nulls == "error":
            raise SchemaError(f"column {self.name!r} has {n} nulls, and its rule is nulls = 'error'")

    def _refuse_unseen(self, value: Any, n: int) -> NoReturn:
        raise SchemaError(
            f"column {self.name!r} has {n} values that were not seen when it was fitted, such as {value!r}, and its "
            "rule is unseen = 'error'"
        )

    @cached_property
    def index(self) -> Index:
        """The vocabulary for Numba's look-ups."""
        from fastmtr.features.numba_batch import Index

        return Index(np.zeros(0, np.int64) if self.type is None else self.known)

    @cached_property
    def _value_set(self) -> pa.Array:
        import pyarrow as pa

        return self.known.array if isinstance(self.known, Texts) else pa.array(self.known, pa.int64())

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {key: getattr(self, key) for key in ("type", *_RULES)}
        if self.hash_rows is not None or self.type is None:
            return head, {}
        if self.type == "int":
            return head, {"values": np.asarray(self.known, np.int64)}
        return head, {"bytes": self.known.data, "offsets": self.known.offsets}

    @classmethod
    def from_state(cls, feature: Feature, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Categories:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        name, kind, rules = feature.name, head.get("type"), _rules(feature)
        # Version 1 had no rules but hash_rows.
        if kind not in ("int", "str", None) or any(head.get(key, _RULES[key]) != rules[key] for key in _RULES):
            raise SchemaError(f"the saved state of feature {name!r} is damaged: {dict(head)}")
        known: Any = ()
        if feature.hash_rows is None and kind == "int":
            known = saved_vector(name, arrays, "values", np.int64)
        elif feature.hash_rows is None and kind == "str":
            known = _saved_texts(
                name, saved_vector(name, arrays, "bytes", np.uint8), saved_vector(name, arrays, "offsets", np.int64)
            )
        if _distinct(known) != len(known):
            raise SchemaError(f"the saved state of feature {name!r} is damaged: a category stands twice")
        return cls(name=feature.column, type=kind, known=known, **rules)


# What a schema says of the ids of a feature, with what it is where it says nothing.
_RULES: dict[str, Any] = {"hash_rows": None, "hashes": 1, "oov_rows": 1, "nulls": "fill", "unseen": "row"}


def _rules(feature: Feature) -> dict[str, Any]:
    return {key: getattr(feature, key) for key in _RULES}


def hashed_column(array: pa.Array, *, seed: int = 0) -> NDArray[np.uint64]:
    """The hash of each value of an int64 or text array without nulls."""
    if values.is_text(array.type):
        return hashing.hash_packed_bytes(*values.text_bytes(array), seed=seed)
    return hashing.hash_integers(array.to_numpy(zero_copy_only=False).astype(np.int64), seed=seed)


def split_lists(
    feature: Feature, column: pa.Array | pa.ChunkedArray, expected: values.ValueType | None
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64] | None]:
    """The values of a many-valued column and the row of each; for text, also which of these rows each one of it is."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if feature.kind == "text":
            raise SchemaError(f"column {feature.column!r} should hold text, found a column of type {kind}")
        elements, offsets = values.list_elements(array)
        return elements, np.repeat(np.arange(len(array)), np.diff(offsets)), None
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
            split = [_separated(text, feature.separator) for text in coded.dictionary.to_pylist()]
        except UnicodeDecodeError as error:
            raise SchemaError(f"column {feature.column!r} holds text that is not valid UTF-8: {error}") from error
        parents = np.repeat(np.arange(len(split)), [len(each) for each in split])
        flat = pa.array([part for each in split for part in each], pa.large_string())
        return flat, parents, coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    what = {"text": "text", "sequence": "lists"}.get(
        feature.kind, f"lists, or text with {feature.separator!r} between values"
    )
    raise SchemaError(f"column {feature.column!r} should hold {what}, found a column of type {kind}")


def _separated(text: str, separator: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(separator)) if part]


def encode_lists(
    ids: NDArray[np.int32], parents: NDArray[np.int64], n_rows: int, *, length: int, as_set: bool, keep_last: bool
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
    keep_last : bool
        Of more than `length` ids keep the last ones, else the first.

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
    if keep_last:
        counts = np.bincount(parents, minlength=n_rows)
        places -= np.maximum(counts - length, 0)[parents]
    fits = (places >= 0) & (places < length)
    out = np.full((n_rows, length), MISSING, np.int32)
    out[parents[fits], places[fits]] = ids[fits]
    return out


def _distinct(known: Any) -> int:
    if isinstance(known, Texts):
        texts = TextCounts()
        texts.update(known.data, known.offsets)
        return texts.distinct
    return len(np.unique(known))


def _saved_texts(name: str, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Texts:
    damaged = f"the saved state of feature {name!r} is damaged"
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise SchemaError(f"{damaged}: its texts do not lie within their bytes")
    values.check_utf8(data, offsets, problem=damaged)
    return Texts(data, offsets)
