"""Features of text: the words of a text, and TF-IDF rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import SchemaError
from fastmtr.features import array_text, hashing
from fastmtr.features.accumulators import DocumentCounts, NumberSummary
from fastmtr.features.columns import Texts
from fastmtr.features.operators import damaged, readers, refuse_nulls
from fastmtr.features.scales import saved_vector
from fastmtr.features.unicode_tables import code_points
from fastmtr.schema import Feature, Schema

__all__ = ["ObservedDocuments", "Tfidf", "words"]


def words(texts: Texts, *, ngrams: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The n-grams of a column of texts; see :func:`fastmtr.features.array_text.words`."""
    return array_text.words(*texts, ngrams=ngrams, table=code_points())


class Tfidf(msgspec.Struct, frozen=True, kw_only=True):
    """Term frequency times inverse document frequency over hashed n-grams, each row of Euclidean length one.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    ngrams : int
    idf : ndarray of float64, shape (width,)
    nulls : {"fill", "error"}
    """

    name: str
    ngrams: int
    idf: Any
    nulls: Literal["fill", "error"] = "fill"

    @property
    def width(self) -> int:
        """Columns of the packed matrix."""
        return len(self.idf)

    def encode(self, columns: Sequence[Any]) -> NDArray[np.float32]:
        """The weights of each row, shape (n, width); null is zeros."""
        texts: Texts
        (texts,) = columns
        refuse_nulls(self.name, self.nulls, texts.valid)
        found, rows = _hashed(texts, self.ngrams, self.width)
        out = np.empty((len(rows) - 1, self.width), np.float32)
        array_text.tfidf(found, rows, self.idf, out)
        return out

    def null(self) -> NDArray[np.float32]:
        """Zeros: no words."""
        return np.zeros(self.width, np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        return {"ngrams": self.ngrams, "width": self.width, "nulls": self.nulls}, {"idf": self.idf}

    @classmethod
    def from_state(
        cls, feature: Feature, schema: Schema, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Tfidf:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        idf = saved_vector(feature.name, arrays, "idf", np.float64)
        found = cls(name=feature.name, ngrams=feature.ngrams, idf=idf, nulls=feature.nulls)
        if head != found.state()[0] or len(idf) != feature.dim:
            raise SchemaError(damaged(feature.name, head))
        if not np.isfinite(idf).all() or (idf < 0).any():
            raise SchemaError(f"{damaged(feature.name, head)}: its weights are not finite numbers from 0 on")
        return found


class ObservedDocuments:
    """In how many texts each hashed n-gram occurred so far, and how many of them the texts had."""

    def __init__(self, feature: Feature, schema: Schema) -> None:
        self.feature, self.reads = feature, readers(feature, schema)
        self.summary = NumberSummary()
        self._counts = DocumentCounts(feature.dim)

    def observe(self, columns: Sequence[Any], weights: NDArray[np.int64] | None) -> None:
        """Add a batch, each row as often as its weight says; null is no document."""
        texts: Texts
        (texts,) = columns
        found, rows = _hashed(texts, self.feature.ngrams, self.feature.dim)
        n_words = np.diff(rows).astype(np.float64)
        self.summary.update(np.where(n_words > 0, n_words, np.nan), weights)
        # A null has no words, so leaving out its row of offsets leaves out the document.
        rows = np.concatenate([rows[:-1][texts.valid], rows[-1:]])
        self._counts.update(found, rows, None if weights is None else weights[texts.valid])

    def fit(self, encoders: Mapping[str, Any]) -> Tfidf:
        """The weights ``log((1 + documents) / (1 + documents with it)) + 1``."""
        n, counts = self._counts.documents, self._counts.counts.tolist()
        idf = np.array([math.log((1 + n) / (1 + each)) + 1 for each in counts])
        return Tfidf(name=self.feature.name, ngrams=self.feature.ngrams, idf=idf, nulls=self.feature.nulls)


def _hashed(texts: Texts, ngrams: int, dim: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The column of each n-gram, and where those of each text begin."""
    data, offsets, rows = words(texts, ngrams=ngrams)
    return (hashing.hash_packed_bytes(data, offsets) % np.uint64(dim)).astype(np.int64), rows
