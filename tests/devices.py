"""The devices that tests run on: a GPU's plugin emulated on the host, and a GPU; and the namespaces of arrays there.

The same tests run on both. Those of a GPU are skipped, with the reason, where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fastmtr import info
from fastmtr.errors import BackendError
from fastmtr.features import cupy_kernels

__all__ = ["DEVICES", "HOST", "NAMESPACES", "ORDERS", "thread_order"]

HOST = "cuda-host"
ORDERS = ("forward", "reverse", "random:1", "random:2")


def _devices() -> list[Any]:
    found = {each["name"]: each for each in info()["back_ends"]}
    missing = {"available": False, "reason": "its plugin is only built for editable installs (-DFASTMTR_CUDA_HOST=ON)"}
    params = []
    for name, marks in ((HOST, []), ("cuda", [pytest.mark.cuda])):
        about = found.get(name, missing)
        if not about["available"]:
            marks = [*marks, pytest.mark.skip(reason=f"{name}: {about['reason']}")]
        params.append(pytest.param(name, marks=marks))
    return params


def _namespaces() -> list[Any]:
    marks = [pytest.mark.cuda]
    try:
        cupy = cupy_kernels.namespace()
    except BackendError as error:
        cupy, marks = None, [*marks, pytest.mark.skip(reason=str(error))]
    return [pytest.param(np, id="numpy"), pytest.param(cupy, id="cupy", marks=marks)]


DEVICES = _devices()
NAMESPACES = _namespaces()


@contextmanager
def thread_order(monkeypatch: pytest.MonkeyPatch, order: str) -> Iterator[None]:
    """The emulation runs threads and blocks in that order: forward, reverse, or random:SEED."""
    with monkeypatch.context() as patch:
        patch.setenv("FASTMTR_CUDA_HOST_ORDER", order)
        yield
