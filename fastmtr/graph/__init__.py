"""What a model computes: a :class:`Graph` of few, simple operators on rows of numbers.

Every value is a matrix with one row a request, an item or a candidate (its *domain*) and a fixed width. Domains are
inferred: a node over request and item values is a candidate value. Converters build graphs with :class:`GraphBuilder`;
the compiler rewrites them; :mod:`fastmtr.reference` evaluates them. The operators are described in ``docs/bundle.md``;
a graph has ``concat``, ``slice`` and ``batch_norm`` besides, which compilation removes.
"""

from fastmtr.graph.layers import GraphBuilder
from fastmtr.graph.structure import DOMAINS, Domain, Graph, Input, Node, Output, Packed, join_domains
from fastmtr.operators import ACTIVATIONS, BINARY_FUNCTIONS

__all__ = [
    "ACTIVATIONS",
    "BINARY_FUNCTIONS",
    "DOMAINS",
    "Domain",
    "Graph",
    "GraphBuilder",
    "Input",
    "Node",
    "Output",
    "Packed",
    "join_domains",
]
