"""The batch kernels on a GPU: their source, as CuPy compiles it, and how they are launched."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import BackendError

__all__ = ["KERNEL", "OPTIONS", "encode_rows", "namespace", "source"]

KERNEL = "fastmtr_encode_rows"
# No product and sum is fused. CuPy adds -ftz=true; float becomes double, and back, by asm.
OPTIONS = ("--std=c++17", "--fmad=false")
_THREADS = 128
# Blocks over the rows, at most; a thread takes several rows then.
_MOST_BLOCKS = 1 << 16


def namespace() -> Any:
    """CuPy.

    Raises
    ------
    BackendError
        It is not installed, or finds no GPU.
    """
    if find_spec("cupy") is None:
        raise BackendError(
            "engine='cupy' needs CuPy, which is not installed; pip install 'fastmtr[cuda]' on a machine with an NVIDIA "
            "GPU, or choose engine='auto'"
        )
    import cupy

    if not cupy.is_available():
        raise BackendError("engine='cupy' needs an NVIDIA GPU, and CuPy finds none; choose engine='auto'")
    return cupy


@lru_cache(maxsize=1)
def source() -> str:
    """The kernels in one text: CuPy keeps what it compiled by that, and would not see a changed header."""
    import fastmtr

    folder = Path(fastmtr.get_include()) / "fastmtr"
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        content = (folder / name).read_text("utf8")
        return re.sub(r'^#include "(.+)"$', lambda found: text(found[1]), content, flags=re.MULTILINE)

    return text("core/feature_batch.h")


@lru_cache(maxsize=1)
def _kernel() -> Any:
    return namespace().RawModule(code=source(), options=OPTIONS).get_function(KERNEL)


def encode_rows(steps: NDArray[Any], columns: NDArray[Any], rows: int) -> NDArray[np.uint32]:
    """Run all steps on the current device, in the current stream, and wait for it.

    Parameters
    ----------
    steps, columns : ndarray of structs, shapes (steps,) and (columns,)
        Those of ``feature_batch.h``; their pointers are of that device.
    rows : int

    Returns
    -------
    ndarray of uint32, shape (steps,)
        1 where a row was refused.
    """
    xp = namespace()
    n_steps = len(steps)
    refused = xp.zeros(n_steps, np.uint32)
    blocks = min(-(-rows // _THREADS), _MOST_BLOCKS)
    arguments = xp.asarray(steps.view(np.uint8)), xp.asarray(columns.view(np.uint8)), np.uint64(rows), refused
    _kernel()((blocks, n_steps), (_THREADS,), arguments)
    found: NDArray[np.uint32] = refused.get()
    return found
