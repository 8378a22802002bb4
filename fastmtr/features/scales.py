"""The scales of numbers: how float64 values become the float32 that a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmtr.errors import SchemaError
from fastmtr.features.accumulators import FLOAT32_MAX, Moments, NumberSummary
from fastmtr.features.array_times import log1p
from fastmtr.schema import Feature, OutOfRange, Scaling

__all__ = ["Scale", "saved_vector", "signed_log1p"]

_MAX_KNOTS = 256


class Scale(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """How the numbers of one feature become float32: ``(f(x) - shift) / factor``, or a place among the fitted values.

    Parameters
    ----------
    name : str
        The feature's, for messages.
    kind : {"none", "standard", "minmax", "robust", "log1p", "quantile", "normal"}
    nulls : {"fill", "error"}
    out_of_range : {"keep", "clip", "null", "error"}
        What becomes of values beyond `low` and `high`.
    indicator : bool
        A second number tells whether a value is null.
    mean, low, high : float
        Of the fitted values.
    least, most : float
        What values are clipped to.
    shift, factor : float
        ``f`` is the clipping, and the signed logarithm of ``log1p``.
    knots : ndarray of float64
        ``quantile`` and ``normal``: the fitted quantiles, ascending, without repeats; else empty.
    levels : ndarray of float64
        What each knot becomes: 0 to 1, or its place on the normal distribution.
    """

    name: str
    kind: Scaling
    nulls: Literal["fill", "error"]
    out_of_range: OutOfRange = "keep"
    indicator: bool = False
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0
    least: float = -FLOAT32_MAX
    most: float = FLOAT32_MAX
    shift: float = 0.0
    factor: float = 1.0
    knots: Any = ()
    levels: Any = ()

    @classmethod
    def fit(cls, feature: Feature, summary: NumberSummary) -> Scale:
        """Learn the scale from numbers that were summed up; infinities and NaN do not count.

        `summary` was made with :func:`signed_log1p` where the scaling is ``log1p``.
        """
        nothing = cls(
            name=feature.name,
            kind=feature.scaling,
            nulls=feature.nulls,
            out_of_range=feature.out_of_range,
            indicator=feature.indicator,
        )
        if not summary.moments.count:
            # No number is beyond a range that nothing is known of.
            unknown = feature.out_of_range != "keep"
            return msgspec.structs.replace(nothing, low=-FLOAT32_MAX, high=FLOAT32_MAX) if unknown else nothing
        low, high = summary.low, summary.high
        scale = msgspec.structs.replace(nothing, mean=summary.moments.mean, low=low, high=high)
        moments = summary.transformed if feature.scaling == "log1p" else summary.moments
        assert moments is not None
        if feature.clip is not None:
            least, most = (float(each) for each in summary.quantiles(np.array(feature.clip)))
            found, counts = summary.distribution()
            kept = np.clip(found, least, most)
            moments = Moments()
            moments.update(signed_log1p(kept) if feature.scaling == "log1p" else kept, counts)
            scale = msgspec.structs.replace(scale, least=least, most=most)
        elif feature.scaling in _OF_RANGE:
            scale = msgspec.structs.replace(scale, least=low, most=high)
        if feature.scaling == "minmax":
            return msgspec.structs.replace(scale, shift=scale.least, factor=(scale.most - scale.least) or 1.0)
        if feature.scaling in ("standard", "log1p"):
            return msgspec.structs.replace(scale, shift=moments.mean, factor=moments.deviation or 1.0)
        if feature.scaling == "robust":
            lower, median, upper = (float(each) for each in summary.quantiles(np.array([0.25, 0.5, 0.75])))
            return msgspec.structs.replace(scale, shift=median, factor=(upper - lower) or 1.0)
        if feature.scaling in _BY_RANK:
            knots, levels = _ranks(*summary.distribution(), normal=feature.scaling == "normal")
            return msgspec.structs.replace(scale, knots=knots, levels=levels)
        return scale

    @property
    def width(self) -> int:
        """Numbers of each value."""
        return 1 + self.indicator

    def encode(self, column: NDArray[np.float64]) -> NDArray[np.float32]:
        """The scaled values of a column, shape (n, width)."""
        missing = np.isnan(column)
        if self.nulls == "error" and missing.any():
            raise SchemaError(f"column {self.name!r} has {missing.sum()} nulls, and its rule is nulls = 'error'")
        x = np.where(missing, 0.0, column)
        below, above = (x < self.low) & ~missing, (x > self.high) & ~missing
        beyond = below | above
        if self.out_of_range == "error" and beyond.any():
            raise SchemaError(
                f"column {self.name!r} has {beyond.sum()} values beyond {self.low} and {self.high}, such as "
                f"{column[beyond][0]}, and its rule is out_of_range = 'error'"
            )
        if self.out_of_range == "null":
            missing |= beyond
        elif self.out_of_range == "clip":
            x = np.where(below, self.low, np.where(above, self.high, x))
        # What float32 cannot hold becomes an end of the fitted range; then clip; and one zero of two.
        x = np.where(x > FLOAT32_MAX, self.high, np.where(x < -FLOAT32_MAX, self.low, x))
        x = np.minimum(np.maximum(x, self.least), self.most) + 0.0
        if self.kind == "log1p":
            x = signed_log1p(x)
        with np.errstate(over="ignore"):
            y = self._ranked(x) if len(self.knots) else _single((x - self.shift) / self.factor)
        y = np.where(missing, self.filler, y)
        return np.stack([y, missing], axis=1, dtype=np.float32) if self.indicator else y[:, None]

    @cached_property
    def filler(self) -> np.float32:
        """What stands for a null: the fitted mean (after the logarithm, where there is one)."""
        if self.kind in ("standard", "log1p"):
            return np.float32(0)
        mean = np.array([self.mean])
        filler: np.float32 = (self._ranked(mean) if len(self.knots) else _single((mean - self.shift) / self.factor))[0]
        return filler

    def null(self) -> NDArray[np.float32]:
        """What null becomes, shape (width,)."""
        return np.array([self.filler, 1.0][: self.width], np.float32)

    def _ranked(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        if len(self.knots) == 1:
            return np.full(len(x), self.levels[0], np.float32)
        left = np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, len(self.knots) - 2)
        part = (x - self.knots[left]) / (self.knots[left + 1] - self.knots[left])
        return _single(self.levels[left] + part * (self.levels[left + 1] - self.levels[left]))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What JSON holds, and the arrays beside it."""
        head = {key: getattr(self, key) for key in _HEAD}
        arrays = {"knots": self.knots, "levels": self.levels} if self.kind in _BY_RANK else {}
        return head | {"filler": float(self.filler)}, {
            key: np.asarray(array, np.float64) for key, array in arrays.items()
        }

    @classmethod
    def from_state(cls, feature: Feature, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Scale:
        """Read what :meth:`state` wrote; SchemaError if it was altered."""
        damaged = f"the saved state of feature {feature.name!r} is damaged"
        given = {key: value for key, value in head.items() if key != "filler"}
        if "least" not in head and head.get("kind") in ("minmax", "quantile"):  # version 1
            given |= {"least": head.get("low"), "most": head.get("high")}
        try:
            scale = msgspec.convert({**given, "name": feature.name, "knots": (), "levels": ()}, cls)
        except msgspec.ValidationError as error:
            raise SchemaError(f"{damaged}: {error}") from error
        if (scale.kind, scale.nulls) != (feature.scaling, feature.nulls):
            raise SchemaError(f"{damaged}: it was fitted for scaling {scale.kind!r} and nulls {scale.nulls!r}")
        if (scale.out_of_range, scale.indicator) != (feature.out_of_range, feature.indicator):
            raise SchemaError(f"{damaged}: {dict(head)}")
        if scale.kind in _BY_RANK:
            knots, levels = (saved_vector(feature.name, arrays, part, np.float64) for part in ("knots", "levels"))
            fits = knots.shape == levels.shape and np.isfinite(knots).all() and np.isfinite(levels).all()
            if not fits or not (np.diff(knots) > 0).all():
                raise SchemaError(f"{damaged}: its quantiles do not ascend")
            scale = msgspec.structs.replace(scale, knots=knots, levels=levels)
        finite = np.isfinite([getattr(scale, key) for key in _NUMBERS]).all()
        if not finite or scale.factor <= 0 or scale.low > scale.high or scale.least > scale.most:
            raise SchemaError(f"{damaged}: {dict(head)}")
        if "filler" in head and head["filler"] != float(scale.filler):
            raise SchemaError(f"{damaged}: null would become {head['filler']}, not {scale.filler}")
        return scale


_NUMBERS = ("mean", "low", "high", "least", "most", "shift", "factor")
_HEAD = ("kind", "nulls", "out_of_range", "indicator", *_NUMBERS)
_BY_RANK = ("quantile", "normal")
_OF_RANGE = ("minmax", *_BY_RANK)


def _ranks(
    found: NDArray[np.float64], counts: NDArray[np.int64], *, normal: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Some of the values, ascending, and the level of each: the middle of the ranks that it takes."""
    upper = np.cumsum(counts)
    wanted = np.searchsorted(upper, np.linspace(0, upper[-1], _MAX_KNOTS))
    chosen = np.union1d(np.minimum(wanted, len(found) - 1), [0, len(found) - 1])
    middle = (upper - counts / 2)[chosen]
    if normal:
        of_share = NormalDist().inv_cdf
        return found[chosen], np.array([of_share(share) for share in (middle / upper[-1]).tolist()])
    return found[chosen], (middle - middle[0]) / ((middle[-1] - middle[0]) or 1.0)


def _single(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.clip(x, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


def signed_log1p(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of 1 + the magnitude, with the sign of the number."""
    result: NDArray[np.float64] = np.copysign(log1p(np.abs(x)), x)
    return result


def saved_vector(name: str, arrays: Mapping[str, NDArray[Any]], part: str, dtype: DTypeLike) -> NDArray[Any]:
    array = arrays.get(part)
    if array is None or array.ndim != 1 or array.dtype != np.dtype(dtype):
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise SchemaError(
            f"the saved state of feature {name!r} should hold {part!r}, a vector of {np.dtype(dtype)}; found {found}"
        )
    return array
