"""Numbers in fewer bits: what becomes of the rows of stored item tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["stored_rows"]

_SIGNED_LEVELS = 127


def stored_rows(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """What is read of rows that were stored in a plan's buffer of that dtype.

    Parameters
    ----------
    rows : ndarray, shape (n, width)
        Whole rows of the buffer.
    dtype : str
        ``f32``: as they are. ``f16``: to the nearest number of IEEE 754 binary16. ``i8``: to the nearest of the 255
        multiples of the row's scale, which is its largest size / 127.

    Returns
    -------
    ndarray, shape (n, width)
        Of the dtype of ``rows``.
    """
    if dtype == "f16":
        return rows.astype(np.float16).astype(rows.dtype)
    if dtype == "i8":
        scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / _SIGNED_LEVELS
        return np.asarray(np.round(rows / np.where(scale > 0, scale, 1)) * scale, dtype=rows.dtype)
    return rows
