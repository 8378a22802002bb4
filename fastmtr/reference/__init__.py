"""What every operator means, in plain NumPy: the measure that compiler, kernels and converted models are held to.

Written for clarity and independent of the native code; float64 unless asked otherwise.
"""

from fastmtr.reference.graphs import evaluate, evaluate_values, fuse
from fastmtr.reference.operators import apply
from fastmtr.reference.plans import evaluate_plan

__all__ = ["apply", "evaluate", "evaluate_plan", "evaluate_values", "fuse"]
