"""Lower precisions of the engine, and what certified ranking takes for granted about them.

A certified list is the list of fp32: candidates are scored in 8 bits, and those that could still belong to the list
are scored again in fp32. *Could* means: their 8-bit score is within a **width** of the list's end. The certificate is
only as good as that width, which is measured, not proved: bounds that hold for every input are far wider than the
errors that occur, since they add up the worst case of every weight. So:

* The width is the largest error over a sample of requests and candidates, times a safety factor.
* It is watched: every error seen while ranking a request (of all candidates scored in fp32, the listed ones included)
  times the safety factor must stay within the width; else the width grows and more candidates are scored in fp32, all
  of them if need be.
* The list is that of fp32, with its scores, unless a candidate that was passed over has an error beyond that width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastmtr.fusion import fusion_weights as weights_of

__all__ = ["SAFETY", "ErrorWidth", "Precision"]

Precision: TypeAlias = Literal["fp32", "fp16", "int8", "tf32", "bf16"]

SAFETY = 2.0


@dataclass(frozen=True, slots=True)
class ErrorWidth:
    """Largest measured errors of a model's fused scores at its precision from those in fp32.

    Absolute errors where the model fuses by a sum, of the logarithms where by a product.

    Attributes
    ----------
    fused : float
        With the model's own fusion weights.
    tasks : dict of task to float
        Of each fused task alone, with weight 1.
    samples : int
        Candidates it was measured on.
    safety : float
        What the errors are multiplied with to give a width.
    """

    fused: float
    tasks: dict[str, float]
    samples: int
    safety: float = SAFETY

    @classmethod
    def measure(
        cls, errors: Callable[[Mapping[str, float] | None], NDArray[np.float32]], *, tasks: list[str], safety: float
    ) -> ErrorWidth:
        """From ``errors(fusion weights)``, which gives each sampled candidate's error."""
        own = errors(None)
        return cls(_largest(own), {t: _largest(errors({t: 1.0})) for t in tasks}, len(own), safety)

    def width(self, fusion_weights: Mapping[str, float] | None) -> float:
        """The width for one call. Errors of the tasks add up, in the worst case, by the sizes of their weights."""
        if fusion_weights is None:
            return self.safety * self.fused
        weights = weights_of(fusion_weights, tasks=list(self.tasks))
        return self.safety * float(np.abs(weights) @ np.array(list(self.tasks.values()), np.float32))


def _largest(errors: NDArray[np.float32]) -> float:
    return float(errors.max(initial=0.0))
