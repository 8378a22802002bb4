"""What one feature has learned: a vocabulary, a hash, or the scale of a number.

Row 0 of every table of embeddings is "missing" (and padding), row 1 "unseen", the rest is the vocabulary, most frequent
first. Column and single-value paths share the state and, for numbers, the arithmetic, so they give the same ids and bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.schema import Feature

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FIRST_ROW", "MISSING", "UNSEEN", "Categories", "Scale", "encode_lists", "tokens", "weigh"]

MISSING, UNSEEN, FIRST_ROW = 0, 1, 2

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MAX_KNOTS = 256
_WORD = re.compile(r"\w+")


class Categories(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The ids of one set of categories.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    type : {"int", "str"}
    known : ndarray of int64, or tuple of str
        The vocabulary: id 2, 3, ...; empty if hashed.
    hash_rows : int, optional
        The values are hashed into so many ids from 2 on.
    """

    name: str
    type: values.ValueType
    known: Any
    hash_rows: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the table of embeddings: one more than the largest id."""
        return FIRST_ROW + (self.hash_rows if self.hash_rows is not None else len(self.known))

    @classmethod
    def fit(cls, feature: Feature, column: pa.Array | pa.ChunkedArray, weights: NDArray[np.int64] | None) -> Categories:
        """Count the values of a column, each row as often as its weight says."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind, array = values.category_column(column, name=feature.name, expected=None)
        if feature.hash_rows is not None:
            return cls(name=feature.name, type=kind, known=(), hash_rows=feature.hash_rows)
        coded = array.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        present = codes >= 0
        counts = np.bincount(
            codes[present], weights=None if weights is None else weights[present], minlength=len(coded.dictionary)
        ).astype(np.int64)
        ascending = pc.sort_indices(coded.dictionary).to_numpy()
        by_count = ascending[np.argsort(-counts[ascending], kind="stable")]
        kept = coded.dictionary.take(pa.array(by_count[counts[by_count] >= feature.min_count]))
        known = kept.to_numpy(zero_copy_only=False).astype(np.int64) if kind == "int" else tuple(_texts(kept, feature.name))
        return cls(name=feature.name, type=kind, known=known)

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The id of each value of a column, shape (n,)."""
        import pyarrow.compute as pc

        _, array = values.category_column(column, name=self.name, expected=self.type)
        missing = array.is_null().to_numpy(zero_copy_only=False)
        if self.hash_rows is None:
            found = pc.index_in(array, value_set=self._value_set).fill_null(UNSEEN - FIRST_ROW)
            ids = found.to_numpy(zero_copy_only=False).astype(np.int32) + np.int32(FIRST_ROW)
        else:
            coded = array.dictionary_encode()
            if self.type == "int":
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
        return FIRST_ROW + hashing.hash_value(_checked(one, self.name) if isinstance(one, str) else one) % self.hash_rows

    @cached_property
    def _ids(self) -> dict[int | str, int]:
        known = self.known.tolist() if isinstance(self.known, np.ndarray) else self.known
        return {value: i for i, value in enumerate(known, FIRST_ROW)}

    @cached_property
    def _value_set(self) -> pa.Array:
        import pyarrow as pa

        return pa.array(self.known, pa.int64() if self.type == "int" else pa.large_string())

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {"type": self.type, "hash_rows": self.hash_rows}
        if self.hash_rows is not None:
            return head, {}
        if self.type == "int":
            return head, {"values": np.asarray(self.known, np.int64)}
        encoded = [text.encode() for text in self.known]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return head, {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}

    @classmethod
    def from_state(cls, name: str, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Categories:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        kind, hash_rows = head.get("type"), head.get("hash_rows")
        if kind not in ("int", "str") or not (hash_rows is None or (type(hash_rows) is int and 0 < hash_rows < 2**31 - 2)):
            raise SchemaError(f"the saved state of feature {name!r} is damaged: {dict(head)}")
        known: Any = ()
        if hash_rows is None and kind == "int":
            known = _saved(name, arrays, "values", np.int64)
        elif hash_rows is None:
            known = _saved_texts(name, _saved(name, arrays, "bytes", np.uint8), _saved(name, arrays, "offsets", np.int64))
        categories = cls(name=name, type=kind, known=known, hash_rows=hash_rows)
        if len(categories._ids) != len(known):
            raise SchemaError(f"the saved state of feature {name!r} is damaged: a category stands twice")
        return categories


class Scale(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """How the numbers of one feature become float32.

    Parameters
    ----------
    kind : {"none", "standard", "minmax", "log1p", "quantile"}
    nulls : {"fill", "error"}
    mean, low, high : float
        Of the fitted values.
    shift, factor : float
        ``standard`` and ``log1p``: subtracted from, then divided into, the value (or its logarithm).
    knots : ndarray of float64
        ``quantile``: the fitted quantiles, ascending, without repeats; else empty.
    levels : ndarray of float64
        ``quantile``: what each knot becomes, 0 to 1.
    """

    name: str
    kind: Literal["none", "standard", "minmax", "log1p", "quantile"]
    nulls: Literal["fill", "error"]
    mean: float
    low: float
    high: float
    shift: float = 0.0
    factor: float = 1.0
    knots: Any = ()
    levels: Any = ()

    @classmethod
    def fit(cls, feature: Feature, column: NDArray[np.float64], weights: NDArray[np.int64] | None) -> Scale:
        """Learn the scale from a column, each row as often as its weight says; infinities and NaN do not count."""
        keep = np.abs(column) <= _FLOAT32_MAX
        if weights is not None:
            keep &= weights > 0
        # Sorted, so that the sums do not depend on the order of the rows; + 0.0 makes one zero of two.
        found, inverse = np.unique(column[keep] + 0.0, return_inverse=True)
        counts = np.bincount(inverse, weights=None if weights is None else weights[keep], minlength=len(found))
        head: dict[str, Any] = {"name": feature.name, "kind": feature.scaling, "nulls": feature.nulls}
        if not len(found):
            return cls(**head, mean=0.0, low=0.0, high=0.0)
        share = counts / counts.sum()
        head |= {"mean": float((found * share).sum()), "low": float(found[0]), "high": float(found[-1])}
        if feature.scaling in ("standard", "log1p"):
            points = _signed_log1p(found) if feature.scaling == "log1p" else found
            shift = float((points * share).sum())
            factor = float(np.sqrt(((points - shift) ** 2 * share).sum()))
            return cls(**head, shift=shift, factor=factor if factor > 0 else 1.0)
        if feature.scaling == "quantile":
            upper = np.cumsum(counts)
            wanted = np.linspace(0, upper[-1], _MAX_KNOTS)
            chosen = np.unique(np.minimum(np.searchsorted(upper, wanted), len(found) - 1))
            chosen = np.union1d(chosen, [0, len(found) - 1])
            middle = (upper - counts / 2)[chosen]
            span = middle[-1] - middle[0]
            return cls(**head, knots=found[chosen], levels=(middle - middle[0]) / (span if span > 0 else 1.0))
        return cls(**head)

    def encode(self, column: NDArray[np.float64]) -> NDArray[np.float32]:
        """The scaled values of a column, shape (n,)."""
        missing = np.isnan(column)
        if self.nulls == "error" and missing.any():
            raise SchemaError(f"column {self.name!r} has {int(missing.sum())} nulls, and its rule is nulls = 'error'")
        return self._scaled(np.where(missing, self.mean, column), missing)

    def encode_value(self, value: Any) -> np.float32:
        """The scaled value of one number."""
        return self.encode(np.array([values.number(value, name=self.name)]))[0]

    @cached_property
    def filler(self) -> np.float32:
        """What stands for a null."""
        return self._scaled(np.array([self.mean]), np.array([True]))[0]

    def _scaled(self, x: NDArray[np.float64], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
        x = np.where(x > _FLOAT32_MAX, self.high, np.where(x < -_FLOAT32_MAX, self.low, x)) + 0.0
        if self.kind in ("standard", "log1p"):
            if self.kind == "log1p":
                x = _signed_log1p(x)
            x = (x - self.shift) / self.factor
            x = np.where(missing, 0.0, x)
        elif self.kind == "minmax":
            x = (np.clip(x, self.low, self.high) - self.low) / ((self.high - self.low) or 1.0)
        elif self.kind == "quantile" and len(self.knots):
            x = self._quantile(np.clip(x, self.low, self.high))
        return np.clip(x, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)

    def _quantile(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(self.knots) == 1:
            return np.zeros_like(x)
        left = np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, len(self.knots) - 2)
        part = (x - self.knots[left]) / (self.knots[left + 1] - self.knots[left])
        result: NDArray[np.float64] = self.levels[left] + part * (self.levels[left + 1] - self.levels[left])
        return result

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {key: getattr(self, key) for key in ("kind", "nulls", "mean", "low", "high", "shift", "factor")}
        arrays = {"knots": self.knots, "levels": self.levels} if self.kind == "quantile" else {}
        return head, {key: np.asarray(array, np.float64) for key, array in arrays.items()}

    @classmethod
    def from_state(cls, name: str, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Scale:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        try:
            scale = msgspec.convert({**head, "name": name, "knots": (), "levels": ()}, cls)
        except msgspec.ValidationError as error:
            raise SchemaError(f"the saved state of feature {name!r} is damaged: {error}") from error
        if scale.kind == "quantile":
            knots, levels = _saved(name, arrays, "knots", np.float64), _saved(name, arrays, "levels", np.float64)
            if knots.shape != levels.shape or not (np.diff(knots) > 0).all() or not np.isfinite(levels).all():
                raise SchemaError(f"the saved state of feature {name!r} is damaged: its quantiles do not ascend")
            scale = msgspec.structs.replace(scale, knots=knots, levels=levels)
        finite = np.isfinite([scale.mean, scale.low, scale.high, scale.shift, scale.factor]).all()
        if not finite or scale.factor <= 0 or scale.low > scale.high:
            raise SchemaError(f"the saved state of feature {name!r} is damaged: {dict(head)}")
        return scale


def tokens(feature: Feature, text: str) -> list[str]:
    """The parts of a text: a ``multi`` split at its separator, or the words of a ``text``."""
    _checked(text, feature.name)
    if feature.kind == "text":
        return _WORD.findall(text.lower())
    return [part for part in (piece.strip() for piece in text.split(feature.separator)) if part]


def encode_lists(ids: NDArray[np.int32], parents: NDArray[np.int64], n_rows: int, *, length: int, as_set: bool) -> NDArray[np.int32]:
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


def weigh(column: pa.Array, keys: pa.Array) -> NDArray[np.int64]:
    """How often each value of `column` occurs in `keys`."""
    import pyarrow.compute as pc

    counted = pc.value_counts(keys.drop_null())
    place = pc.index_in(column, value_set=counted.field("values")).fill_null(-1).to_numpy(zero_copy_only=False)
    counts = np.append(counted.field("counts").to_numpy(zero_copy_only=False), 0)
    result: NDArray[np.int64] = counts[place].astype(np.int64)
    return result


def _signed_log1p(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.copysign(np.log1p(np.abs(x)), x)
    return result


def _checked(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"column {name!r} holds text that is not valid Unicode: {error.reason} in {text!r}") from error
    return text


def _texts(array: pa.Array, name: str) -> list[str]:
    try:
        return [str(text) for text in array.to_pylist()]
    except UnicodeDecodeError as error:
        raise SchemaError(f"column {name!r} holds text that is not valid UTF-8: {error}") from error


def _saved(name: str, arrays: Mapping[str, NDArray[Any]], part: str, dtype: Callable[..., Any]) -> NDArray[Any]:
    array = arrays.get(part)
    if array is None or array.ndim != 1 or array.dtype != np.dtype(dtype):
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise SchemaError(f"the saved state of feature {name!r} should hold {part!r}, a vector of {np.dtype(dtype)}; found {found}")
    return array


def _saved_texts(name: str, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[str, ...]:
    content = data.tobytes()
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(content) or (np.diff(offsets) < 0).any():
        raise SchemaError(f"the saved state of feature {name!r} is damaged: its texts do not lie within their bytes")
    try:
        return tuple(content[start:end].decode() for start, end in _pairs(offsets.tolist()))
    except UnicodeDecodeError as error:
        raise SchemaError(f"the saved state of feature {name!r} is damaged: {error}") from error


def _pairs(offsets: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(offsets[:-1], offsets[1:], strict=True)
