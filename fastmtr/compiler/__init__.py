"""Compiles a :class:`~fastmtr.graph.Graph` into the plan that the engine executes: one file a pass."""

from fastmtr.compiler.explain import Explanation, explain
from fastmtr.compiler.pipeline import Compiled, compile_graph

__all__ = ["Compiled", "Explanation", "compile_graph", "explain"]
