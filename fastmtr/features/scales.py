"""The scales of numbers: how float64 values become the float32 that a model reads.

A column and a single row go through the same arithmetic, element by element, so they give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmtr.errors import SchemaError
from fastmtr.features.accumulators import FLOAT32_MAX, NumberSummary
from fastmtr.schema import Feature

__all__ = ["RowScales", "Scale", "saved_vector", "signed_log1p"]

_MAX_KNOTS = 256

ScaleKind = Literal["none", "standard", "minmax", "log1p", "quantile"]


class Scale(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """How the numbers of one feature become float32: ``(f(x) - shift) / factor``, or a place among quantiles.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    kind : {"none", "standard", "minmax", "log1p", "quantile"}
    nulls : {"fill", "error"}
    mean, low, high : float
        Of the fitted values.
    shift, factor : float
        ``f`` is the signed logarithm of ``log1p``, the clipping of ``minmax``, or nothing.
    knots : ndarray of float64
        ``quantile``: the fitted quantiles, ascending, without repeats; else empty.
    levels : ndarray of float64
        ``quantile``: what each knot becomes, 0 to 1.
    """

    name: str
    kind: ScaleKind
    nulls: Literal["fill", "error"]
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0
    shift: float = 0.0
    factor: float = 1.0
    knots: Any = ()
    levels: Any = ()

    @classmethod
    def fit(cls, feature: Feature, summary: NumberSummary) -> Scale:
        """Learn the scale from numbers that were summed up; infinities and NaN do not count.

        `summary` was made with :func:`signed_log1p` where the scaling is ``log1p``.
        """
        nothing = cls(name=feature.name, kind=feature.scaling, nulls=feature.nulls)
        if not summary.moments.count:
            return nothing
        low, high = summary.low, summary.high
        scale = msgspec.structs.replace(nothing, mean=summary.moments.mean, low=low, high=high)
        if feature.scaling == "minmax":
            return msgspec.structs.replace(scale, shift=low, factor=(high - low) or 1.0)
        if feature.scaling in ("standard", "log1p"):
            moments = summary.transformed if feature.scaling == "log1p" else summary.moments
            assert moments is not None
            return msgspec.structs.replace(scale, shift=moments.mean, factor=moments.deviation or 1.0)
        if feature.scaling == "quantile":
            found, counts = summary.distribution()
            upper = np.cumsum(counts)
            wanted = np.searchsorted(upper, np.linspace(0, upper[-1], _MAX_KNOTS))
            chosen = np.union1d(np.minimum(wanted, len(found) - 1), [0, len(found) - 1])
            # A value's level is the middle of the ranks that it takes.
            middle = (upper - counts / 2)[chosen]
            levels = (middle - middle[0]) / ((middle[-1] - middle[0]) or 1.0)
            return msgspec.structs.replace(scale, knots=found[chosen], levels=levels)
        return scale

    def encode(self, column: NDArray[np.float64]) -> NDArray[np.float32]:
        """The scaled values of a column, shape (n,)."""
        missing = np.isnan(column)
        if self.nulls == "error" and missing.any():
            raise SchemaError(f"column {self.name!r} has {int(missing.sum())} nulls, and its rule is nulls = 'error'")
        x = _bounded(np.where(missing, 0.0, column), self.low, self.high, *self._clip)
        x = signed_log1p(x) if self.kind == "log1p" else x
        y = self._ranked(x) if len(self.knots) else _single((x - self.shift) / self.factor)
        return np.where(missing, self.filler, y)

    @cached_property
    def filler(self) -> np.float32:
        """What stands for a null: the fitted mean (after the logarithm, where there is one)."""
        if self.kind in ("standard", "log1p"):
            return np.float32(0)
        mean = np.array([self.mean])
        filler: np.float32 = (self._ranked(mean) if len(self.knots) else _single((mean - self.shift) / self.factor))[0]
        return filler

    @property
    def _clip(self) -> tuple[float, float]:
        return (self.low, self.high) if self.kind in ("minmax", "quantile") else (-FLOAT32_MAX, FLOAT32_MAX)

    def _ranked(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        if len(self.knots) == 1:
            return np.zeros(len(x), np.float32)
        left = np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, len(self.knots) - 2)
        part = (x - self.knots[left]) / (self.knots[left + 1] - self.knots[left])
        return _single(self.levels[left] + part * (self.levels[left + 1] - self.levels[left]))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {key: getattr(self, key) for key in ("kind", "nulls", "mean", "low", "high", "shift", "factor")}
        arrays = {"knots": self.knots, "levels": self.levels} if self.kind == "quantile" else {}
        return head, {key: np.asarray(array, np.float64) for key, array in arrays.items()}

    @classmethod
    def from_state(cls, feature: Feature, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Scale:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        damaged = f"the saved state of feature {feature.name!r} is damaged"
        try:
            scale = msgspec.convert({**head, "name": feature.name, "knots": (), "levels": ()}, cls)
        except msgspec.ValidationError as error:
            raise SchemaError(f"{damaged}: {error}") from error
        if (scale.kind, scale.nulls) != (feature.scaling, feature.nulls):
            raise SchemaError(f"{damaged}: it was fitted for scaling {scale.kind!r} and nulls {scale.nulls!r}")
        if scale.kind == "quantile":
            knots, levels = (saved_vector(feature.name, arrays, part, np.float64) for part in ("knots", "levels"))
            fits = knots.shape == levels.shape and np.isfinite(knots).all() and np.isfinite(levels).all()
            if not fits or not (np.diff(knots) > 0).all():
                raise SchemaError(f"{damaged}: its quantiles do not ascend")
            scale = msgspec.structs.replace(scale, knots=knots, levels=levels)
        finite = np.isfinite([scale.mean, scale.low, scale.high, scale.shift, scale.factor]).all()
        if not finite or scale.factor <= 0 or scale.low > scale.high:
            raise SchemaError(f"{damaged}: {dict(head)}")
        return scale


class RowScales:
    """The scales of several features, applied to one number each; the same bits as their :meth:`Scale.encode`."""

    def __init__(self, scales: Sequence[Scale]) -> None:
        self._scales = scales
        self._low, self._high, self._shift, self._factor = (
            np.array([getattr(scale, part) for scale in scales], np.float64)
            for part in ("low", "high", "shift", "factor")
        )
        self._least, self._most = np.array([scale._clip for scale in scales], np.float64).reshape(-1, 2).T
        self._log = np.array([scale.kind == "log1p" for scale in scales], bool)
        self._fillers = np.array([scale.filler for scale in scales], np.float32)
        self._strict = np.array([scale.nulls == "error" for scale in scales], bool)
        self._ranked = [i for i, scale in enumerate(scales) if len(scale.knots)]

    def encode(self, row: NDArray[np.float64], *, strict: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The scaled values of one row, shape (features,); `strict` tells which nulls may be refused (None: all)."""
        missing = np.isnan(row)
        refused = np.flatnonzero(missing & self._strict & (True if strict is None else strict))
        if len(refused):
            raise SchemaError(f"column {self._scales[refused[0]].name!r} is null, and its rule is nulls = 'error'")
        x = _bounded(np.where(missing, 0.0, row), self._low, self._high, self._least, self._most)
        y = _single((np.where(self._log, signed_log1p(x), x) - self._shift) / self._factor)
        for i in self._ranked:
            y[i] = self._scales[i]._ranked(x[i : i + 1])[0]
        return np.where(missing, self._fillers, y)


def _bounded(x: NDArray[np.float64], low: Any, high: Any, least: Any, most: Any) -> NDArray[np.float64]:
    """What float32 cannot hold becomes an end of the fitted range; then clip; and one zero of two."""
    held = np.where(x > FLOAT32_MAX, high, np.where(x < -FLOAT32_MAX, low, x))
    result: NDArray[np.float64] = np.minimum(np.maximum(held, least), most) + 0.0
    return result


def _single(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.clip(x, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


def signed_log1p(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of 1 + the magnitude, with the sign of the number."""
    result: NDArray[np.float64] = np.copysign(np.log1p(np.abs(x)), x)
    return result


def saved_vector(name: str, arrays: Mapping[str, NDArray[Any]], part: str, dtype: DTypeLike) -> NDArray[Any]:
    array = arrays.get(part)
    if array is None or array.ndim != 1 or array.dtype != np.dtype(dtype):
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise SchemaError(
            f"the saved state of feature {name!r} should hold {part!r}, a vector of {np.dtype(dtype)}; found {found}"
        )
    return array
