"""Finding items where the ranker's model is: Faiss on the GPU, from vectors there to rows there.

Nothing of it passes through the host: the requests' vectors come from the model on the device, Faiss searches its copy
of the index there, and the rows are ranked there. What cannot go this way is searched on the CPU, as by
:class:`~fastmtr.retrieval.Retriever`, with the same rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmtr import _native
from fastmtr.retrieval import Retriever

__all__ = ["DeviceSearch", "device_search"]

_MOST_RESULTS = 2048  # of a search by Faiss on a GPU


class DeviceSearch(Protocol):
    """A search whose queries and results are arrays in the device's memory."""

    def reaches(self, n: int) -> bool:
        """So many results a query are possible."""

    def search(self, vectors: _native.DeviceArray, *, k: int, exclude: Sequence[NDArray[np.int64]]) -> Any:
        """Rows of the k items nearest to each vector, int64 [requests, k], -1 where there are fewer."""


def device_search(retriever: Retriever, device: str) -> DeviceSearch | str:
    """The search over a retriever's index on that device, or why there is none.

    The index of a catalogue that has changed is on the CPU until it is made anew.
    """
    if device == "cuda-host":
        return _HostSearch(retriever)
    if retriever.has_changed:
        return "items have changed since the index was made"
    if retriever.kind not in ("flat", "ivf"):
        return f"a GPU has no index of kind {retriever.kind!r}"
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return "this Faiss is built for the CPU: install faiss-gpu in its place"
    if faiss.get_num_gpus() == 0:
        return "Faiss finds no GPU"
    if find_spec("torch") is None:
        return "Faiss passes arrays on a GPU by way of torch, which is not installed"
    return _FaissSearch(retriever.index)


class _FaissSearch:
    def __init__(self, index: Any) -> None:
        import faiss
        import faiss.contrib.torch_utils  # searches take and give tensors

        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        self._lock = threading.Lock()  # an index on a GPU is searched by one thread at a time

    def reaches(self, n: int) -> bool:
        return n <= _MOST_RESULTS

    def search(self, vectors: _native.DeviceArray, *, k: int, exclude: Sequence[NDArray[np.int64]]) -> Any:
        import torch
        from torch.utils.dlpack import from_dlpack

        queries = from_dlpack(vectors)
        spare = max((len(rows) for rows in exclude), default=0)
        with self._lock:
            _, rows = self._index.search(queries, k + spare)
        if spare:
            for found, unwanted in zip(rows, exclude, strict=True):
                if len(unwanted):
                    found[torch.isin(found, torch.as_tensor(unwanted, device=found.device))] = -1
            order = torch.argsort((rows < 0).to(torch.int8), dim=1, stable=True)
            rows = torch.gather(rows, 1, order[:, :k])
        return rows.contiguous()


class _HostSearch:
    """For the emulated device, whose memory is the host's."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    def reaches(self, n: int) -> bool:
        return n <= _MOST_RESULTS

    def search(self, vectors: _native.DeviceArray, *, k: int, exclude: Sequence[NDArray[np.int64]]) -> Any:
        queries: NDArray[Any] = np.from_dlpack(vectors)
        rows, _ = self._retriever.search(queries, k=k, exclude=exclude)
        return np.ascontiguousarray(rows)
