"""The native engine. Arrays are taken as they are: C-contiguous and of the dtype stated, else TypeError."""

import os
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

__version__: str

def info() -> str:
    """JSON text: version, ABI, instruction sets and back ends, with the reason where one is not used."""

def count_ints(
    values: NDArray[np.int64], valid: NDArray[np.uint8] | None = None, weights: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values in the order in which they come, and how often each occurs, or the sum of its weights.

    Parameters
    ----------
    values : ndarray of int64, shape (n,)
    valid : ndarray of uint8, shape (n,), optional
        A value whose flag is 0 leaves no trace.
    weights : ndarray of int64, shape (n,), optional
        1 by default; a value of weight 0 leaves no trace.
    """

def count_texts(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int32] | NDArray[np.int64],
    valid: NDArray[np.uint8] | None = None,
    weights: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct texts as bytes and offsets, and their counts; text i is ``data[offsets[i]:offsets[i + 1]]``.

    Raises
    ------
    ValueError
        The offsets do not ascend within the data.
    """

def order_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the texts, those of the greatest count first, ties in the order of their bytes."""

class Model:
    """A loaded bundle, immutable and shared by threads, but for its catalogue, which can be changed at any time.

    Each change makes a new version of the catalogue; sessions in other threads go on and see it at their next call. A
    call sees one version from beginning to end. An item's row is its place in the catalogue's order: a replaced item
    keeps its row, new ones come last in the order given, after a delete the others close up.

    Parameters
    ----------
    path : str or path
        The bundle's directory.
    isa : {"baseline", "avx2", "avx512", "avx512_vnni", "neon", "emulated16"}, optional
        The instruction set; None: the best this processor has, or what ``FASTMTR_FORCE_ISA`` says.
    without_catalogue : bool
        Do not read the bundle's catalogue.
    precision : {"fp32", "fp16", "int8", "tf32", "bf16"}
        fp16: the weights of all products, which are computed in fp32. int8: weights and activations of candidates'
        products in 8 bits where that is quicker. tf32 and bf16 are a GPU's.
    device : {"cpu", "cuda", "auto"}
        auto: the GPU where there is one to use, else the CPU.

    Raises
    ------
    BundleError
        The bundle is missing, damaged, or of a version that this engine does not read.
    BackendError
        The instruction set or the device is not available here, or has no such precision.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        isa: str | None = None,
        without_catalogue: bool = False,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None: ...
    def describe(self) -> str:
        """JSON text: inputs, widths, tasks, outputs, fusion, isa, precision, n_items, memory in bytes."""
    def explain(self) -> str:
        """JSON text: each step of the plan with its domain, precision, FLOPs and bytes for one row."""
    def set_catalogue(
        self, keys: NDArray[np.int64], ids: NDArray[np.int32] | None, dense: NDArray[np.float32] | None
    ) -> None:
        """Replace the catalogue. SchemaError leaves the old one in place."""
    def upsert(self, keys: NDArray[np.int64], ids: NDArray[np.int32] | None, dense: NDArray[np.float32] | None) -> None:
        """Replace the items whose keys are there, add the others. SchemaError: nothing has changed."""
    def delete(self, keys: NDArray[np.int64]) -> int:
        """Take items out; keys that are not there are passed over. Returns how many were there."""
    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """A copy, of an array of this model's device."""
    def keys(self) -> NDArray[np.int64]:
        """Item keys in row order, shape (n_items,)."""
    def item_output(self, name: str, keys: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """An output of role item, shape (n, width): of these items, or of the whole catalogue in row order."""
    @property
    def catalogue_version(self) -> int:
        """0 without a catalogue; each change makes it larger."""
    @property
    def n_items(self) -> int: ...
    @property
    def n_tasks(self) -> int: ...

class DeviceArray:
    """An array in the memory of a model's device, for whoever reads DLPack or ``__cuda_array_interface__``.

    What filled it is done: no stream has to be waited for.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(self, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Session:
    """One thread's workspace over a model; a second thread that calls it at the same time gets a ValueError.

    Parameters
    ----------
    model : Model
    threads : int
        1: the caller's thread alone.
    tile : int
        Candidates a tile, and at most so many requests; 0: chosen for the cache. The bits of a score do not depend on
        it.
    """

    def __init__(self, model: Model, *, threads: int = 1, tile: int = 0) -> None: ...
    def score(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.int64] | NDArray[np.uint64] | None,
        items: NDArray[np.int64] | None,
        *,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        skip_unknown: bool = False,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (total, n_tasks) and fused scores (total,) of R requests, each with its own candidates.

        Parameters
        ----------
        request_ids, request_dense : ndarray of shape (R, width), or None where the width is 0
        offsets : ndarray of shape (R + 1,)
            Request r has the candidates ``offsets[r] .. offsets[r + 1]``. Not read when `items` is None.
        items : ndarray of shape (total,), or None
            Catalogue keys. None: each request scores the whole catalogue, in row order.
        candidate_ids, candidate_dense : ndarray of shape (total, width), or None where the width is 0
        skip_unknown : bool
            Unknown items score NaN and are never ranked, instead of raising SchemaError.
        fusion_weights : ndarray of shape (number of fused tasks,), optional
            In place of the bundle's.
        catalogue_version : int
            That the catalogue must have; 0: any.

        Raises
        ------
        SchemaError
            An id out of range, a number that is not finite, a wrong number of columns, an unknown item.
        StaleError
            The catalogue has another version.
        """
    def rank(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.int64] | NDArray[np.uint64] | None,
        items: NDArray[np.int64] | None,
        *,
        k: int,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        skip_unknown: bool = False,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """The k best candidates of each request by fused score; ties by lower position, NaN last.

        Arguments as of `score`.

        Returns
        -------
        positions : ndarray of int64, shape (R, k)
            Among that request's candidates; -1 beyond `counts`.
        fused : ndarray of float32, shape (R, k)
            NaN beyond `counts`.
        scores : ndarray of float32, shape (R, k, n_tasks)
            NaN beyond `counts`.
        counts : ndarray of int64, shape (R,)
        """
    def rank_certified(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.int64] | NDArray[np.uint64] | None,
        items: NDArray[np.int64] | None,
        *,
        k: int,
        width: float,
        safety: float = 0,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        skip_unknown: bool = False,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """The list and the scores that `rank` gives at fp32, from a model of a lower precision.

        That holds provided that no candidate's fp32 fused score is further than the width from that of the model's
        precision: see `fmtr_rank_certified` in fastmtr.h. Arguments as of `rank`, and

        Parameters
        ----------
        width : float
            Of errors as `precision_errors` measures them; 0: only what each request shows.
        safety : float
            The width is never less than so many times the largest error seen in the request; 0: 2.

        Returns
        -------
        positions, fused, scores, counts
            As of `rank`.
        rescored : ndarray of int64, shape (R,)
            Candidates that were scored in fp32.
        """
    def precision_errors(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.int64] | NDArray[np.uint64] | None,
        items: NDArray[np.int64] | None,
        *,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        skip_unknown: bool = False,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> NDArray[np.float32]:
        """How far each candidate's fused score is from that in fp32, shape (total,).

        The absolute difference where the model fuses by a sum, that of the logarithms where by a product. Arguments as
        of `score`.
        """
    def profile(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.int64] | NDArray[np.uint64] | None,
        items: NDArray[np.int64] | None,
        *,
        k: int = 0,
        repeats: int = 10,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        skip_unknown: bool = False,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> str:
        """JSON text: where the time of `rank`, or with k = 0 of `score`, goes; one untimed run, then `repeats`.

        Nanoseconds in all, by phase, and for each step with calls, rows and FLOPs: sums over repeats and threads. Other
        arguments as of `score`.
        """
    @overload
    def rank_device_items(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.uint64],
        items: Any,
        *,
        k: int,
        rows: bool = False,
        on_device: Literal[False] = False,
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]: ...
    @overload
    def rank_device_items(
        self,
        request_ids: NDArray[np.int32] | None,
        request_dense: NDArray[np.float32] | None,
        offsets: NDArray[np.uint64],
        items: Any,
        *,
        k: int,
        rows: bool = False,
        on_device: Literal[True],
        candidate_ids: NDArray[np.int32] | None = None,
        candidate_dense: NDArray[np.float32] | None = None,
        fusion_weights: NDArray[np.float32] | None = None,
        catalogue_version: int = 0,
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray, DeviceArray]:
        """``rank`` of candidates that lie in the device's memory; unknown ones are never listed.

        Parameters
        ----------
        items : array of int64 with ``__cuda_array_interface__`` or ``__dlpack__``
            Keys, or with ``rows`` rows of the catalogue, of all requests' candidates.
        on_device : bool
            Results stay there.

        Returns
        -------
        positions, items, fused, scores, counts
            ``items`` are the listed ones, shape (requests, k), -1 beyond a list's end.
        """
    def request_output_on_device(
        self, name: str, request_ids: NDArray[np.int32] | None, request_dense: NDArray[np.float32] | None
    ) -> DeviceArray:
        """``request_output`` that stays in the device's memory."""
    def request_output(
        self, name: str, request_ids: NDArray[np.int32] | None, request_dense: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """An output of role request, shape (R, width)."""

class Features:
    """The feature program of a pipeline: raw values of one row in, its ids and numbers out.

    Parameters
    ----------
    json : bytes
        ``features.json``, of version 2.
    arrays : dict of str to ndarray
        What stands beside it in ``features.safetensors``.

    Raises
    ------
    BundleError
        Something in it is not as it must be.
    """

    def __init__(self, json: bytes, arrays: dict[str, NDArray[Any]]) -> None: ...
    def encode(
        self,
        domain: str,
        row: dict[str, Any],
        base: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """One row, shapes (1, width of the domain); `base` gives what the row does not name.

        Raises
        ------
        KeyError
            A name is no raw column of the domain.
        SchemaError
            A value is of the wrong kind, or refused by its feature's rules.
        """
    def encode_rows(self, domain: str, rows: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Several rows, shapes (rows, width)."""
    def encode_columns(
        self, domain: str, columns: dict[str, Any], n: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """`n` rows given by lists of raw values, shapes (n, width)."""
    def describe(self) -> str:
        """JSON: for each domain its widths and raw columns."""
    def counts(self) -> str:
        """JSON: for each domain and feature rows, nulls, values, unseen ones and numbers out of range so far."""

class feature_kernels:  # noqa: N801, a module
    """The functions of ``csrc/core/feature_kernels.h``, element by element, and of ``feature_batch.h``."""

    @staticmethod
    def hash_ints(values: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]: ...
    @staticmethod
    def hash_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]: ...
    @staticmethod
    def log1p(values: NDArray[np.float64]) -> NDArray[np.float64]: ...
    @staticmethod
    def sincos(phase: NDArray[np.float64]) -> NDArray[np.float64]: ...
    @staticmethod
    def elapsed(now: int, then: int, ticks_per_second: int) -> float: ...
    @staticmethod
    def index_ints(values: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The entries of a vocabulary, ``struct IntEntry``; ValueError if a value stands twice."""

    @staticmethod
    def index_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The same of texts, ``struct TextEntry``."""

    @staticmethod
    def encode_rows(steps: NDArray[np.uint8], columns: NDArray[np.uint8], rows: int) -> NDArray[np.uint32]:
        """Run the batch kernels on the host: of each step, 1 where a row was refused.

        The structs are taken as they are: see :mod:`fastmtr.features.device_batch`.
        """
