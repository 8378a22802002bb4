"""Which code goes through the rows of a table."""

from __future__ import annotations

import importlib.util

from fastmtr.errors import BackendError

__all__ = ["need_numba", "numba_is_worth_it", "warm_up"]

# From so many rows on, the time to import Numba and to load what it compiled is little.
_MANY_ROWS = 1 << 16

_warm = False


def warm_up() -> None:
    """Compile Numba's kernels now, or load them: from then on tables of any size go through them.

    The first time on a machine takes some seconds; Numba keeps what it compiled beside the package, or where
    ``NUMBA_CACHE_DIR`` says. Requests of one row never need this: they are encoded natively.

    Raises
    ------
    BackendError
        Numba is not installed.
    """
    global _warm
    need_numba()
    from fastmtr.features.numba_run import compile_kernels

    compile_kernels()
    _warm = True


def need_numba() -> None:
    """BackendError if Numba is not installed."""
    if not _numba_is_there():
        raise BackendError(
            "Numba is not installed: pip install 'fastmtr[features]', or take engine='arrays', whose bits are the same"
        )


def numba_is_worth_it(rows: int) -> bool:
    """Whether Numba should go through a table of so many rows."""
    return (_warm or rows >= _MANY_ROWS) and _numba_is_there()


def _numba_is_there() -> bool:
    return importlib.util.find_spec("numba") is not None
