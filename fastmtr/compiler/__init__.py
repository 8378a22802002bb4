"""Compiles a :class:`~fastmtr.graph.Graph` into the plan that the engine executes: one file a pass."""

from fastmtr.compiler.encode_tables import compile_encoded
from fastmtr.compiler.explain import Explanation, explain
from fastmtr.compiler.pipeline import Compiled, compile_graph
from fastmtr.compiler.storage import ITEM_PRECISIONS, ItemPrecision

__all__ = ["ITEM_PRECISIONS", "Compiled", "Explanation", "ItemPrecision", "compile_encoded", "compile_graph", "explain"]
