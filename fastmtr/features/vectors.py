"""Vectors that something else made: pretrained embeddings of items, and text through an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.errors import FastMTRError, SchemaError
from fastmtr.features.accumulators import FLOAT32_MAX, NumberSummary
from fastmtr.features.columns import Vectors
from fastmtr.features.operators import damaged, readers, refuse_nulls
from fastmtr.schema import Feature, Schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ObservedVectors", "Vector", "embed_texts"]


def embed_texts(
    texts: Iterable[str | None] | pa.Array | pa.ChunkedArray,
    encoder: str | Callable[[list[str]], ArrayLike],
    *,
    batch: int = 256,
) -> pa.FixedSizeListArray:
    """A vector for each text, as a column for a feature of kind "vector".

    Texts are encoded before fitting, not at serving: the vectors of a catalogue belong in the items' table.

    Parameters
    ----------
    texts : column or iterable of str
        Null has no vector.
    encoder : callable, or str
        Gets a list of texts and returns an array of shape (texts, width); or the name of a model of the package
        sentence-transformers.
    batch : int
        How many texts at once. Equal texts are encoded once.

    Returns
    -------
    pyarrow.FixedSizeListArray of float32

    Raises
    ------
    FastMTRError
        A name was given, and sentence-transformers is not installed.
    SchemaError
        The encoder does not return one vector of finite numbers for each text, all of one width.
    """
    import pyarrow as pa

    column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.large_string())
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = array.dictionary_encode()
    distinct: list[str] = coded.dictionary.to_pylist()
    encode = _sentence_encoder(encoder) if isinstance(encoder, str) else encoder
    parts = [
        _vectors(encode(distinct[at : at + batch]), distinct[at : at + batch]) for at in range(0, len(distinct), batch)
    ]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise SchemaError(f"the encoder returned vectors of different widths: {sorted(widths)}")
    width = widths.pop() if widths else 1
    absent = coded.indices.is_null()
    rows = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    known = np.concatenate([*parts, np.zeros((1, width), np.float32)])
    flat = pa.array(known[rows].reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=absent)


def _vectors(found: ArrayLike, texts: list[str]) -> Any:
    vectors = np.asarray(found, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise SchemaError(
            f"an encoder should return one vector of finite numbers for each of {len(texts)} texts, found an array of "
            f"shape {vectors.shape}"
        )
    return vectors


def _sentence_encoder(name: str) -> Callable[[list[str]], ArrayLike]:
    if find_spec("sentence_transformers") is None:
        raise FastMTRError(
            f"encoder {name!r} is the name of a model of sentence-transformers, which is not installed: "
            "pip install sentence-transformers, or give a function from texts to vectors"
        )
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    return lambda texts: model.encode(texts, show_progress_bar=False)


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """A list of numbers as it is, in float32; null is zeros, and a null among the numbers 0."""

    name: str
    width: int
    nulls: Literal["fill", "error"] = "fill"

    @classmethod
    def of(cls, feature: Feature, schema: Schema) -> Vector:
        """The operator of a feature; it learns nothing."""
        return cls(name=feature.name, width=feature.dim, nulls=feature.nulls)

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The numbers of each row, shape (n, width)."""
        vectors: Vectors
        (vectors,) = columns
        refuse_nulls(self.name, self.nulls, vectors.valid)
        return _held(vectors).astype(np.float32)

    def null(self) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros(self.width, np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds; there are no arrays."""
        return {"width": self.width, "nulls": self.nulls}, {}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Vector:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        found = cls.of(feature, schema)
        if head != found.state()[0]:
            raise SchemaError(damaged(feature.name, head))
        return found


class ObservedVectors:
    """How long the vectors so far were (Euclid)."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.reads = readers(feature, schema)
        self.summary = NumberSummary()
        self._vector = Vector.of(feature, schema)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says."""
        vectors: Vectors
        (vectors,) = columns
        self.summary.update(np.where(vectors.valid, np.linalg.norm(_held(vectors), axis=1), np.nan), weights)

    def fit(self, encoders: Mapping[str, Any]) -> Vector:
        """The operator, which needs none of it."""
        return self._vector


def _held(vectors: Vectors) -> NDArray[np.float64]:
    """The numbers within float32's range, 0 for null."""
    numbers = np.where(np.isnan(vectors.values), 0.0, vectors.values)
    return np.clip(numbers, -FLOAT32_MAX, FLOAT32_MAX)
