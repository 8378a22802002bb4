"""How good the scores are: metrics, baselines and comparisons with intervals."""

from fastmtr.evaluation.precision import PrecisionCost, compare_precision

__all__ = ["PrecisionCost", "compare_precision"]
