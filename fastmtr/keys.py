"""Keys of users and items, and the rows of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.errors import ConfigError, SchemaError

__all__ = ["Keys", "UnknownItems", "check_unknown_items", "unknown_items_error"]

UnknownItems: TypeAlias = Literal["error", "skip"]


class Keys:
    """Keys of users or items and their rows. Text keys have a number in the engine in place of the key.

    Parameters
    ----------
    keys : array of int64, shape (n,)
        The engine's.
    names : sequence of str, optional
        The text keys.
    """

    def __init__(self, keys: NDArray[np.int64], names: Sequence[str] | None) -> None:
        self.keys = keys
        self.names = names
        self.all: NDArray[Any] = keys if names is None else np.array(names, dtype=object)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.keys, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return self.keys[self._order]

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names or ())}

    def extended(self, keys: NDArray[np.int64], names: Sequence[str] | None) -> Keys:
        """With more keys after these. What was sorted is not sorted again."""
        if not len(keys):
            return self
        longer = Keys(np.append(self.keys, keys), None if self.names is None else [*self.names, *(names or ())])
        if "_order" in self.__dict__:
            order = np.argsort(keys, kind="stable")
            longer._order = np.insert(self._order, self._sorted.searchsorted(keys[order]), len(self.keys) + order)
        if "_by_name" in self.__dict__:
            rows = range(len(self.keys), len(longer.keys))
            longer._by_name = self._by_name | dict(zip(names or (), rows, strict=True))
        return longer

    def without(self, rows: NDArray[np.int64]) -> tuple[Keys, NDArray[np.int64]]:
        """Without the keys in these rows, and where each row is then (-1: gone)."""
        stays = np.ones(len(self.keys), bool)
        stays[rows] = False
        moved = np.where(stays, np.cumsum(stays) - 1, -1)
        names = None if self.names is None else [self.names[row] for row in np.flatnonzero(stays).tolist()]
        fewer = Keys(self.keys[stays], names)
        if "_order" in self.__dict__:
            fewer._order = moved[self._order[stays[self._order]]]
        return fewer, moved

    def row(self, key: Any) -> int:
        """The key's row, -1 if there is none."""
        if self.names is not None:
            return self._by_name.get(key, -1) if isinstance(key, str) else self._refuse(key)
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            return self._refuse(key)
        if not -(2**63) <= key < 2**63:
            raise SchemaError(f"a key must fit in 64 bits, found {key}")
        at = int(self._sorted.searchsorted(key))
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == key else -1

    def rows(self, keys: ArrayLike) -> NDArray[np.int64]:
        """The row of each key, -1 where there is none."""
        given = self.as_keys(keys)
        if self.names is not None:
            return np.array([self._by_name.get(name, -1) for name in given.tolist()], np.int64)
        return self.rows_of_keys(given)

    def rows_of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same of the engine's keys."""
        if not len(self._sorted):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(self._sorted.searchsorted(keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)

    def as_keys(self, keys: ArrayLike) -> NDArray[Any]:
        """A one-dimensional array of keys of the right kind."""
        given = np.asarray(keys, dtype=object if self.names is not None else None)
        if given.ndim != 1:
            raise SchemaError(f"items must be one-dimensional, found shape {list(given.shape)}")
        if self.names is not None:
            wrong = next((key for key in given.tolist() if not isinstance(key, str)), None)
            if wrong is not None:
                self._refuse(wrong)
            return given
        if not len(given):
            return np.empty(0, np.int64)
        if given.dtype.kind not in "iu":
            self._refuse(given[0])
        if given.dtype.kind == "u" and given.max() > np.iinfo(np.int64).max:
            raise SchemaError(f"a key must fit in 64 bits, found {given.max()}")
        return np.ascontiguousarray(given, np.int64)

    def to_engine(self, keys: NDArray[Any], *, skip: bool) -> NDArray[np.int64]:
        """What the engine knows these keys by; -1 for text that it does not know."""
        if self.names is None:
            return keys
        rows = self.rows(keys)
        if not skip and (rows < 0).any():
            raise unknown_items_error(sorted(set(keys[rows < 0].tolist())))
        numbers = np.full(len(rows), -1)
        numbers[rows >= 0] = self.keys[rows[rows >= 0]]
        return numbers

    def _refuse(self, key: Any) -> int:
        kind = "whole numbers" if self.names is None else "text"
        raise SchemaError(f"keys of this bundle are {kind}, found {key!r} of type {type(key).__name__}")


def check_unknown_items(given: str) -> None:
    """Refuse what is not one of :data:`UnknownItems`."""
    if given not in get_args(UnknownItems):
        raise ConfigError(f"unknown_items must be 'error' or 'skip', found {given!r}")


def unknown_items_error(unknown: list[Any]) -> SchemaError:
    shown = ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
    return SchemaError(
        f"{len(unknown)} item(s) are not in the bundle's catalogue: {shown}; leave them out, "
        "or pass unknown_items='skip'"
    )
