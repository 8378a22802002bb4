"""Finding the items whose vectors are nearest to a user's: Faiss, or exact search in NumPy where it is not installed.

Both vectors come from the same compiled graph that ranks, so they cannot drift apart from it.

When items come, change or go, an index stays as it is for a while: :meth:`Retriever.changed` gives a retriever over the
same index that passes over the vectors that hold no more, and searches the few new ones exactly. Faiss can neither take
vectors out of a graph nor change an index that others search.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import BackendError, ConfigError, SchemaError

__all__ = ["IndexKind", "RetrievalConfig", "Retriever"]

IndexKind = Literal["auto", "exact", "flat", "ivf", "hnsw"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
# Below this many items an exhaustive search costs less than a millisecond, and loses nothing.
_SMALL = 50_000
# So many changed vectors, or this share of all, are worth a new index.
_FEW, _SHARE = 1000, 0.05
# Faiss asks for so many vectors a centroid, or it warns.
_VECTORS_A_LIST = 39


class RetrievalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[retrieval]`` section of a configuration.

    Parameters
    ----------
    index : {"auto", "exact", "flat", "ivf", "hnsw"}
        ``exact``: NumPy; ``flat``: Faiss, exhaustive; ``ivf``, ``hnsw``: Faiss, approximate; ``auto``: ``flat`` up to
        50,000 items, above that ``ivf``, and ``exact`` without Faiss.
    lists : int, optional
        ``ivf``: clusters; 4 times the root of the number of items if not given.
    probes : int
        ``ivf``: clusters that are searched.
    links : int
        ``hnsw``: neighbours a vector.
    ef_construction, ef_search : int
        ``hnsw``: candidates kept while building and searching.
    """

    index: IndexKind = "auto"
    lists: _Positive | None = None
    probes: _Positive = 32
    links: _Positive = 32
    ef_construction: _Positive = 80
    ef_search: _Positive = 128


class Retriever:
    """An index over the vectors of a catalogue; the score of an item is the inner product.

    Parameters
    ----------
    vectors : array of float32, shape (items, dim)
        In catalogue row order.
    config : RetrievalConfig, optional
    threads : int
        That Faiss may use.

    Attributes
    ----------
    kind : str
        The index in use: what ``auto`` became.

    Raises
    ------
    BackendError
        The index needs Faiss, which is not installed.
    SchemaError
        The vectors are not a finite matrix.

    References
    ----------
    Douze et al., "The Faiss library", 2024, arXiv:2401.08281. Bachrach et al., "Speeding Up the Xbox Recommender System
    Using a Euclidean Transformation for Inner-Product Spaces", RecSys 2014 (for ``hnsw``).
    """

    def __init__(
        self, vectors: NDArray[np.float32], *, config: RetrievalConfig | None = None, threads: int = 1
    ) -> None:
        _check_vectors(vectors, np.arange(len(vectors)))
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, found {threads}")
        self.config = config if config is not None else RetrievalConfig()
        self.threads = threads
        self.n_items, self.dim = vectors.shape
        self.kind = self._choose(self.config.index)
        self._vectors = np.ascontiguousarray(vectors)
        # Of the indexed vectors: the item's row, -1 where the vector holds no more. None: as they are.
        self._rows: NDArray[np.int64] | None = None
        self._new_rows, self._new_vectors = np.empty(0, np.int64), self._vectors[:0]
        self._index: Any = None
        if self.kind != "exact" and self.n_items:
            with _faiss_threads(threads):
                self._index = self._build()

    def __repr__(self) -> str:
        return f"Retriever({self.kind}, {self.n_items} items, dim {self.dim})"

    def changed(self, moved: NDArray[np.int64], rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Retriever:
        """The retriever of a catalogue that has changed, over the same index.

        Parameters
        ----------
        moved : array of int64, shape (items,)
            The row that each item has now; -1: it is gone, or has another vector.
        rows : array of int64, shape (n,)
            Of the items that are new or have another vector.
        vectors : array of float32, shape (n, dim)
            Theirs.
        """
        if vectors.shape[1:] != (self.dim,):
            raise SchemaError(f"the vectors must have {self.dim} columns like the others, found {vectors.shape}")
        _check_vectors(vectors, rows)
        next_one = copy.copy(self)  # of what both share, nothing ever changes
        before = np.arange(len(self._vectors)) if self._rows is None else self._rows
        next_one._rows = np.full(len(before), -1)
        next_one._rows[before >= 0] = moved[before[before >= 0]]
        still = moved[self._new_rows]
        next_one._new_rows = np.concatenate([still[still >= 0], rows])
        next_one._new_vectors = np.concatenate([self._new_vectors[still >= 0], vectors])
        next_one.n_items = int((next_one._rows >= 0).sum()) + len(next_one._new_rows)
        return next_one

    @property
    def index(self) -> Any:
        """Faiss's index, None where the search is NumPy's; see :attr:`has_changed`."""
        return self._index

    @property
    def has_changed(self) -> bool:
        """Some of the index's vectors hold no more, or some hold that it does not have."""
        return self._rows is not None

    @property
    def is_worn(self) -> bool:
        """So much has changed since the index was made that a new one would be quicker."""
        gone = 0 if self._rows is None else int((self._rows < 0).sum())
        return gone + len(self._new_rows) > max(_FEW, _SHARE * len(self._vectors))

    def search(
        self, queries: NDArray[np.float32], *, k: int, exclude: Sequence[NDArray[np.int64] | None] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k items with the greatest inner product for each query.

        Parameters
        ----------
        queries : array of float32, shape (requests, dim)
        k : int
        exclude : sequence of arrays of int64, one a query, optional
            Item rows not to return.

        Returns
        -------
        rows : array of int64, shape (requests, k)
            Best first; -1 where fewer than k were found.
        scores : array of float32, shape (requests, k)
            NaN where the row is -1.

        Raises
        ------
        SchemaError
            A shape does not fit, or a query is not finite.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, found {k}")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise SchemaError(f"queries must have shape [requests, {self.dim}], found {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise SchemaError("a query vector is not finite (NaN or infinite)")
        if exclude is not None and len(exclude) != len(queries):
            raise SchemaError(f"exclude has {len(exclude)} entries for {len(queries)} queries; give one for each")
        # With as many more results as rows may have to go, the k best of the rest are all there.
        spare = max((0 if rows is None else len(rows) for rows in exclude), default=0) if exclude is not None else 0
        reach = min(k + spare, self.n_items)
        if reach == 0 or not len(queries):
            rows = np.full((len(queries), k), -1, np.int64)
            return rows, np.full(rows.shape, np.nan, np.float32)
        rows, scores = self._nearest(np.ascontiguousarray(queries, np.float32), reach)
        if spare and exclude is not None:
            for found, unwanted in zip(rows, exclude, strict=True):
                if unwanted is not None and len(unwanted):
                    found[np.isin(found, unwanted)] = -1
            order = np.argsort(rows < 0, axis=1, kind="stable")
            rows = np.take_along_axis(rows, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
        if rows.shape[1] < k:
            missing = ((0, 0), (0, k - rows.shape[1]))
            rows, scores = np.pad(rows, missing, constant_values=-1), np.pad(scores, missing)
        rows, scores = rows[:, :k], scores[:, :k]
        scores[rows < 0] = np.nan
        return rows, scores

    def _nearest(self, queries: NDArray[np.float32], reach: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self._rows is None:
            return self._indexed(queries, reach, None)
        alive = self._rows >= 0
        rows, scores = self._indexed(queries, min(reach, int(alive.sum())), alive)
        rows = np.where(rows >= 0, self._rows[rows], -1)
        if len(self._new_rows):
            rows = np.column_stack([rows, np.broadcast_to(self._new_rows, (len(queries), len(self._new_rows)))])
            scores = np.column_stack([scores, queries @ self._new_vectors.T])
        # Best first, ties by lower row, places without a row last.
        order = np.lexsort((rows, -scores, rows < 0))[:, :reach]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _indexed(
        self, queries: NDArray[np.float32], reach: int, alive: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search the index, among the vectors that are alive (None: all). Rows are those of the index."""
        if reach == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        if self._index is None:
            return _exact(self._vectors, queries, reach, alive)
        faiss = _faiss()
        only = {} if alive is None else {"sel": faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))}
        if self.kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(self.config.ef_search, reach), **only)
            extended = np.column_stack([queries, np.zeros(len(queries), np.float32)])
            distances, rows = self._search(extended, reach, params)
            squares = np.einsum("nd,nd->n", queries, queries)
            return rows, (squares[:, None] + np.float32(self._longest) - distances) / 2
        if self.kind == "ivf":
            params = faiss.SearchParametersIVF(nprobe=self._index.nprobe, **only)
        else:
            params = faiss.SearchParameters(**only)
        scores, rows = self._search(queries, reach, params)
        return rows, scores

    def _search(self, queries: NDArray[np.float32], reach: int, params: Any) -> tuple[Any, Any]:
        # Faiss searches one query with one thread.
        with _faiss_threads(self.threads) if len(queries) > 1 else nullcontext():
            found: tuple[Any, Any] = self._index.search(queries, reach, params=params)
        return found

    def _choose(self, wanted: IndexKind) -> str:
        have = find_spec("faiss") is not None
        if wanted == "auto":
            if not have:
                return "exact"
            return "flat" if self.n_items <= _SMALL else "ivf"
        if wanted != "exact" and not have:
            raise BackendError(
                f"retrieval index {wanted!r} needs Faiss, which is not installed: pip install 'fastmtr[retrieval]', "
                "or choose index 'exact'"
            )
        return wanted

    def _build(self) -> Any:
        faiss = _faiss()
        if self.kind == "flat":
            index = faiss.IndexFlatIP(self.dim)
        elif self.kind == "ivf":
            lists = self.config.lists or max(1, min(round(4 * self.n_items**0.5), self.n_items // _VECTORS_A_LIST))
            if lists > self.n_items:
                raise ConfigError(f"retrieval.lists is {lists}, but there are only {self.n_items} items")
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dim), self.dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = min(self.config.probes, lists)
            index.cp.min_points_per_centroid = 1  # quiet where the caller asked for many lists
            index.train(self._vectors)
        else:
            # A graph of neighbours needs a distance. One more column that makes all vectors equally long turns the
            # greatest inner product into the least distance.
            squares = np.einsum("nd,nd->n", self._vectors, self._vectors)
            self._longest = float(squares.max())
            index = faiss.IndexHNSWFlat(self.dim + 1, self.config.links)
            index.hnsw.efConstruction = self.config.ef_construction
            index.add(np.column_stack([self._vectors, np.sqrt(self._longest - squares)]).astype(np.float32))
            return index
        index.add(self._vectors)
        return index


def _faiss() -> Any:
    import faiss

    return faiss


@contextmanager
def _faiss_threads(threads: int) -> Iterator[None]:
    """Faiss with so many threads in this thread, and as before afterwards."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _check_vectors(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise SchemaError(f"vectors must be a float32 matrix [items, dim], found {vectors.dtype} {vectors.shape}")
    if not np.isfinite(vectors).all():
        bad = int(rows[~np.isfinite(vectors).all(axis=1)][0])
        raise SchemaError(f"the vector of item row {bad} is not finite; the model's retrieval head is damaged")


def _exact(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], reach: int, alive: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `reach` greatest inner products of the vectors that are alive (None: all), ties by lower row."""
    products = queries @ vectors.T
    if alive is not None:
        products[:, ~alive] = -np.inf
    if reach < products.shape[1]:
        # The reach-th greatest value and all above it; a tie at the border goes to the lower row.
        border = -np.partition(-products, reach - 1, axis=1)[:, reach - 1 : reach]
        products = np.where(products >= border, products, -np.inf)
    rows = np.argsort(-products, axis=1, kind="stable")[:, :reach]
    return rows.astype(np.int64, copy=False), np.take_along_axis(products, rows, axis=1)
