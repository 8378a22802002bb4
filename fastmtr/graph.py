"""What a model computes: a :class:`Graph` of few, simple operators on rows of numbers.

Every value is a matrix with one row a request, an item or a candidate (its *domain*) and a fixed width. Domains are
inferred: a node over request and item values is a candidate value. Converters build graphs with :class:`GraphBuilder`;
the compiler rewrites them; :mod:`fastmtr.reference` evaluates them. The operators are described in ``docs/bundle.md``;
a graph has ``concat``, ``slice`` and ``batch_norm`` besides, which compilation removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.errors import ConversionError
from fastmtr.operators import ACTIVATIONS, BINARY_FUNCTIONS, OPS, OpContext

__all__ = [
    "ACTIVATIONS",
    "BINARY_FUNCTIONS",
    "Domain",
    "Graph",
    "GraphBuilder",
    "Input",
    "Node",
    "Output",
    "Packed",
    "affine_shape",
    "join_domains",
]

Domain = Literal["request", "item", "candidate"]
Kind = Literal["ids", "dense"]
Role = Literal["task", "request", "item"]


class Packed(NamedTuple):
    """The inputs of one domain, as the engine takes them.

    Parameters
    ----------
    ids : ndarray of int32, shape (n, ids width)
        Row numbers of embedding tables. Row 0 of a feature is missing (or padding), 1 unseen, 2 and on its vocabulary.
    dense : ndarray of float32, shape (n, dense width)
    """

    ids: NDArray[np.int32]
    dense: NDArray[np.float32]

    @property
    def n_rows(self) -> int:
        """How many requests, items or candidates."""
        return int(self.ids.shape[0])

    def take(self, rows: ArrayLike) -> Packed:
        """These rows, in that order."""
        chosen = np.asarray(rows)
        return Packed(self.ids[chosen], self.dense[chosen])


@dataclass(frozen=True)
class Input:
    """Columns of a domain's packed matrix under a name.

    Parameters
    ----------
    name : str
    domain : {"request", "item", "candidate"}
    kind : {"ids", "dense"}
        Which of the two packed matrices.
    offset, width : int
        Columns ``offset .. offset + width``.
    rows : int, optional
        ids: each id is below this number. None: below the rows of every table that reads it.
    padding : int, optional
        ids: the id that means "nothing here".
    """

    name: str
    domain: Domain
    kind: Kind
    offset: int
    width: int
    rows: int | None = None
    padding: int | None = None


@dataclass(frozen=True)
class Node:
    """One operator: ``output = op(inputs; weights, attrs)``.

    Parameters
    ----------
    op : str
    inputs : tuple of str
        Names of values.
    output : str
        The name it gives its value.
    weights : mapping of str to str
        Role ("w", "table", ...) to a name in :attr:`Graph.weights`.
    attrs : mapping
        Constants; one that is left out has the default of ``docs/bundle.md``.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def attr(self, name: str) -> Any:
        """An attribute, or its default."""
        return self.attrs.get(name, OPS[self.op].attrs[name])


@dataclass(frozen=True)
class Output:
    """A value that callers get.

    ``task`` is one column a candidate; ``request`` a vector a request (the user vector of retrieval); ``item`` a
    vector a catalogue item.
    """

    name: str
    value: str
    role: Role = "task"


class _Value(NamedTuple):
    domain: Domain
    kind: Kind
    width: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole model: inputs, nodes in an order of evaluation, outputs and weights. Checks itself when it is made.

    Parameters
    ----------
    inputs : tuple of Input
    nodes : tuple of Node
        Each reads inputs or the values of earlier nodes only.
    outputs : tuple of Output
    weights : mapping of str to ndarray of float32

    Raises
    ------
    ConversionError
        Something does not fit; the message names the node, what was found and what was expected.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    weights: Mapping[str, NDArray[np.float32]]
    _values: Mapping[str, _Value] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, array in self.weights.items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ConversionError(f"weight {name!r} must be a float32 array, found {found}")
        values = _input_values(self.inputs)
        for node in self.nodes:
            _define(node, values, self.weights, self.inputs)
        _check_outputs(self.outputs, values)
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        object.__setattr__(self, "_values", MappingProxyType(values))

    def width(self, value: str) -> int:
        """Columns of a value."""
        return self._value(value).width

    def domain(self, value: str) -> Domain:
        """One row of the value stands for a request, an item or a candidate."""
        return self._value(value).domain

    def kind(self, value: str) -> Kind:
        """``ids`` for an input of ids, else ``dense``."""
        return self._value(value).kind

    def _value(self, name: str) -> _Value:
        try:
            return self._values[name]
        except KeyError:
            raise ConversionError(f"the graph has no value {name!r}") from None

    def packed_width(self, domain: Domain, kind: Kind) -> int:
        """Columns of the packed matrix of that domain and kind."""
        return max((i.offset + i.width for i in self.inputs if i.domain == domain and i.kind == kind), default=0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the task outputs, in order."""
        return tuple(o.name for o in self.outputs if o.role == "task")

    def to_json(self) -> bytes:
        """All but the weights, as UTF-8 JSON text."""
        content = {
            "graph_version": 1,
            "inputs": self.inputs,
            "nodes": [
                {
                    "op": n.op,
                    "inputs": n.inputs,
                    "output": n.output,
                    "weights": dict(n.weights),
                    "attrs": dict(n.attrs),
                }
                for n in self.nodes
            ],
            "outputs": self.outputs,
        }
        return msgspec.json.format(msgspec.json.encode(content), indent=1)

    @classmethod
    def from_json(cls, text: bytes | str, weights: Mapping[str, NDArray[np.float32]]) -> Graph:
        """Read what :meth:`to_json` wrote. Of ``weights``, those that no node names are left out.

        Raises
        ------
        ConversionError
            The text is not a graph, or a graph of a newer version.
        """
        try:
            file = msgspec.json.decode(text, type=_GraphFile)
        except msgspec.DecodeError as error:
            raise ConversionError(f"graph: {error}") from error
        if file.graph_version != 1:
            raise ConversionError(f"graph: version {file.graph_version} found, this fastmtr reads version 1")
        named = {name for node in file.nodes for name in node.weights.values()}
        return cls(
            inputs=tuple(file.inputs),
            nodes=tuple(file.nodes),
            outputs=tuple(file.outputs),
            weights={name: array for name, array in weights.items() if name in named},
        )


class _GraphFile(msgspec.Struct, forbid_unknown_fields=True):
    graph_version: int
    inputs: list[Input]
    nodes: list[Node]
    outputs: list[Output]


def join_domains(domains: Iterable[Domain]) -> Domain:
    """The domain of something computed from values of these domains (at least one)."""
    found = set(domains)
    return found.pop() if len(found) == 1 else "candidate"


def affine_shape(node: Node, weights: Mapping[str, NDArray[np.float32]]) -> tuple[int, int, int]:
    """``(groups, n, k)`` of an ``affine`` node that has a product: each group maps k columns to n."""
    shape = weights[node.weights["w"]].shape
    return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


# ---- checks ----------------------------------------------------------------------------------------------------------


def _input_values(inputs: Sequence[Input]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for i in inputs:
        where = f"input {i.name!r}"
        if not i.name:
            raise ConversionError("an input has no name")
        if i.name in values:
            raise ConversionError(f"{where} stands twice")
        if i.domain not in ("request", "item", "candidate"):
            raise ConversionError(f"{where}: domain must be request, item or candidate, found {i.domain!r}")
        if i.kind not in ("ids", "dense"):
            raise ConversionError(f"{where}: kind must be ids or dense, found {i.kind!r}")
        if i.offset < 0 or i.width < 1:
            raise ConversionError(f"{where}: offset must be >= 0 and width >= 1, found {i.offset} and {i.width}")
        if i.kind == "dense" and (i.rows is not None or i.padding is not None):
            raise ConversionError(f"{where}: rows and padding belong to ids, but the input is dense")
        if i.rows is not None and i.rows < 1:
            raise ConversionError(f"{where}: rows must be >= 1, found {i.rows}")
        if i.padding is not None and not 0 <= i.padding < (i.rows or 2**31):
            raise ConversionError(f"{where}: padding must be an id below rows ({i.rows}), found {i.padding}")
        values[i.name] = _Value(i.domain, i.kind, i.width)
    taken = sorted((i.domain, i.kind, i.offset, i.width, i.name) for i in inputs)
    for (d1, k1, o1, w1, n1), (d2, k2, o2, _, n2) in pairwise(taken):
        if (d1, k1) == (d2, k2) and o2 < o1 + w1:
            raise ConversionError(f"inputs {n1!r} and {n2!r} overlap in the {d1} {k1} columns at {o2}")
    return values


def _define(
    node: Node, values: dict[str, _Value], weights: Mapping[str, NDArray[np.float32]], inputs: Sequence[Input]
) -> None:
    """Check ``node`` against the values before it and add its own."""

    def refuse(problem: str) -> NoReturn:
        raise ConversionError(f"node {node.output!r} ({node.op}): {problem}")

    op = OPS.get(node.op)
    if op is None:
        refuse(f"there is no such operator; there are {', '.join(sorted(OPS))}")
    if not node.output:
        refuse("its output has no name")
    if node.output in values:
        refuse(f"a value {node.output!r} is there already")
    for name in node.inputs:
        if name not in values:
            refuse(f"input {name!r} is not the name of an input or of an earlier node's output")
    for name in node.attrs:
        if name not in op.attrs:
            refuse(f"unknown attribute {name!r}; it takes {sorted(op.attrs) or 'none'}")
    for role, name in node.weights.items():
        if role not in op.weights:
            refuse(f"unknown weight {role!r}; it takes {sorted(op.weights) or 'none'}")
        if name not in weights:
            refuse(f"its weight {role!r} is {name!r}, which the graph does not have")
    for role, needed in op.weights.items():
        if needed and role not in node.weights:
            refuse(f"weight {role!r} is missing")
    least, most = op.arity
    if len(node.inputs) < least or (most is not None and len(node.inputs) > most):
        many = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        refuse(f"it takes {many} input(s), found {len(node.inputs)}")
    kind: Kind = "ids" if op.reads_ids else "dense"
    for name in node.inputs:
        if values[name].kind != kind:
            refuse(f"input {name!r} holds {values[name].kind}, but {kind} are expected")

    context = OpContext(
        op=op,
        attrs=node.attrs,
        widths=[values[name].width for name in node.inputs],
        shapes={role: weights[name].shape for role, name in node.weights.items()},
        rows=next((i.rows for i in inputs if op.reads_ids and i.name == node.inputs[0]), None),
        refuse=refuse,
    )
    width = op.width(context)
    values[node.output] = _Value(join_domains(values[name].domain for name in node.inputs), "dense", width)


def _check_outputs(outputs: Sequence[Output], values: Mapping[str, _Value]) -> None:
    if not outputs:
        raise ConversionError("the graph has no output; name at least one")
    names: set[str] = set()
    for o in outputs:
        where = f"output {o.name!r}"
        if not o.name or o.name in names:
            raise ConversionError(f"{where}: each output needs a name of its own")
        names.add(o.name)
        if o.role not in ("task", "request", "item"):
            raise ConversionError(f"{where}: role must be task, request or item, found {o.role!r}")
        value = values.get(o.value)
        if value is None:
            raise ConversionError(f"{where}: the graph has no value {o.value!r}")
        if value.kind != "dense":
            raise ConversionError(f"{where}: ids cannot be an output")
        if o.role == "task" and value.width != 1:
            raise ConversionError(f"{where}: a task has one column, but {o.value!r} has {value.width}")
        if o.role != "task" and value.domain != o.role:
            raise ConversionError(
                f"{where}: its role is {o.role}, but {o.value!r} is a {value.domain} value: it reads other inputs"
            )


# ---- building --------------------------------------------------------------------------------------------------------


class GraphBuilder:
    """Builds a :class:`Graph` node by node; each method returns the name of its value and checks at once.

    Parameters
    ----------
    inputs : sequence of Input
        The model's inputs, such as ``FeaturePipeline.inputs``.

    Raises
    ------
    ConversionError
        From every method: a shape, a name or a domain does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> g = GraphBuilder([Input("u", "request", "dense", 0, 2), Input("i", "item", "dense", 0, 3)])
    >>> w = g.weight("w", np.ones((1, 5), np.float32))
    >>> p = g.affine(g.concat(["u", "i"]), w=w, activation="sigmoid")
    >>> g.output("click", p)
    >>> g.build().domain(p)
    'candidate'
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)
        self._nodes: list[Node] = []
        self._outputs: list[Output] = []
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._values = _input_values(self._inputs)

    def width(self, value: str) -> int:
        """Columns of a value made so far."""
        if value not in self._values:
            raise ConversionError(f"the graph has no value {value!r}")
        return self._values[value].width

    def weight(self, name: str, array: ArrayLike) -> str:
        """Register a weight (converted to float32) and return its name."""
        if name in self._weights:
            raise ConversionError(f"a weight {name!r} is there already")
        made = np.ascontiguousarray(np.asarray(array), dtype=np.float32).reshape(np.shape(array))
        if not np.isfinite(made).all():
            raise ConversionError(f"weight {name!r} has values that are not finite (NaN or infinite)")
        self._weights[name] = made
        return name

    def embedding(self, x: str, table: str, *, padding: int | None = None, name: str | None = None) -> str:
        """Rows of ``table`` [V, D] side by side, one for each id of ``x``; zeros for the padding id."""
        return self._add("embedding", [x], {"table": table}, {"padding": padding}, name)

    def embedding_bag(
        self,
        x: str,
        table: str,
        *,
        mode: Literal["sum", "mean", "max"] = "mean",
        padding: int | None = 0,
        name: str | None = None,
    ) -> str:
        """Rows of ``table`` pooled over the ids of ``x`` that are not padding, width D; none left gives zeros."""
        return self._add("embedding_bag", [x], {"table": table}, {"mode": mode, "padding": padding}, name)

    def concat(self, values: Sequence[str], *, name: str | None = None) -> str:
        """Values side by side."""
        return self._add("concat", values, {}, {}, name)

    def slice(self, x: str, offset: int, width: int, *, name: str | None = None) -> str:
        """Columns ``offset .. offset + width``."""
        return self._add("slice", [x], {}, {"offset": offset, "width": width}, name)

    def affine(
        self,
        x: str | None = None,
        *,
        w: str | None = None,
        b: str | None = None,
        addends: Sequence[str] = (),
        groups: int = 1,
        shared_x: bool = False,
        activation: str = "none",
        alpha: float = 0.0,
        slope: str | None = None,
        name: str | None = None,
    ) -> str:
        """``activation(W x + b + sum of addends)``.

        With groups, each has its own ``w`` [n, k] and its own columns of x (``shared_x``: all of them).
        """
        attrs: dict[str, Any] = {"groups": groups, "shared_x": shared_x, "has_x": x is not None}
        attrs |= {"activation": activation, "alpha": alpha}
        weights = {"w": w, "b": b, "slope": slope}
        return self._add("affine", [*([] if x is None else [x]), *addends], weights, attrs, name)

    def activation(
        self, x: str, fn: str, *, alpha: float = 0.0, slope: str | None = None, name: str | None = None
    ) -> str:
        """One of :data:`ACTIVATIONS`, element by element."""
        return self._add("activation", [x], {"slope": slope}, {"activation": fn, "alpha": alpha}, name)

    def softmax(self, x: str, *, size: int | None = None, name: str | None = None) -> str:
        """Softmax over each run of ``size`` columns (None: over all)."""
        return self._add("softmax", [x], {}, {"size": self.width(x) if size is None else size}, name)

    def mixture(self, gate: str, experts: Sequence[str], *, name: str | None = None) -> str:
        """``sum over e of gate[e] * experts[e]``."""
        return self._add("mixture", [gate, *experts], {}, {}, name)

    def add(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a + b``; an input of width 1 stands for every column (so in the five functions after this one)."""
        return self._add("binary", [a, b], {}, {"fn": "add"}, name)

    def sub(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a - b``."""
        return self._add("binary", [a, b], {}, {"fn": "sub"}, name)

    def mul(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a * b``."""
        return self._add("binary", [a, b], {}, {"fn": "mul"}, name)

    def div(self, a: str, b: str, *, name: str | None = None) -> str:
        """``a / b``."""
        return self._add("binary", [a, b], {}, {"fn": "div"}, name)

    def maximum(self, a: str, b: str, *, name: str | None = None) -> str:
        """The greater of a and b."""
        return self._add("binary", [a, b], {}, {"fn": "max"}, name)

    def minimum(self, a: str, b: str, *, name: str | None = None) -> str:
        """The smaller of a and b."""
        return self._add("binary", [a, b], {}, {"fn": "min"}, name)

    def batch_norm(
        self,
        x: str,
        *,
        mean: str,
        var: str,
        scale: str | None = None,
        shift: str | None = None,
        eps: float = 1e-5,
        name: str | None = None,
    ) -> str:
        """``(x - mean) / sqrt(var + eps) * scale + shift`` with the statistics of training."""
        weights = {"scale": scale, "shift": shift, "mean": mean, "var": var}
        return self._add("batch_norm", [x], weights, {"eps": eps}, name)

    def scale_shift(self, x: str, *, scale: str, shift: str, name: str | None = None) -> str:
        """``x * scale + shift``, a number a column."""
        return self._add("scale_shift", [x], {"scale": scale, "shift": shift}, {}, name)

    def reduce(
        self,
        x: str,
        fn: Literal["sum", "mean", "max"],
        *,
        axis: int | None = None,
        outer: int = 1,
        inner: int = 1,
        name: str | None = None,
    ) -> str:
        """Seen as [outer, axis, inner], reduce ``axis`` (None: all columns over outer * inner)."""
        length = self.width(x) // max(outer * inner, 1) if axis is None else axis
        return self._add("reduce", [x], {}, {"fn": fn, "outer": outer, "axis": length, "inner": inner}, name)

    def layer_norm(
        self, x: str, *, scale: str | None = None, shift: str | None = None, eps: float = 1e-5, name: str | None = None
    ) -> str:
        """Normalise a row to mean 0 and (biased) variance 1, then ``* scale + shift``."""
        return self._add("layer_norm", [x], {"scale": scale, "shift": shift}, {"eps": eps}, name)

    def l2_normalize(self, x: str, *, eps: float = 1e-12, name: str | None = None) -> str:
        """``x / max(norm of x, eps)``."""
        return self._add("l2_normalize", [x], {}, {"eps": eps}, name)

    def dot(self, a: str, b: str, *, name: str | None = None) -> str:
        """The inner product, one column."""
        return self._add("dot", [a, b], {}, {}, name)

    def output(self, name: str, value: str, *, role: Role = "task") -> None:
        """Make a value an output."""
        made = Output(name, value, role)
        _check_outputs([*self._outputs, made], self._values)
        self._outputs.append(made)

    def build(self) -> Graph:
        """The graph so far."""
        return Graph(self._inputs, tuple(self._nodes), tuple(self._outputs), self._weights)

    def _add(
        self,
        op: str,
        inputs: Sequence[str],
        weights: Mapping[str, str | None],
        attrs: Mapping[str, Any],
        name: str | None,
    ) -> str:
        output = name if name is not None else self._fresh(op)
        given = {role: weight for role, weight in weights.items() if weight is not None}
        node = Node(op, tuple(inputs), output, given, dict(attrs))
        _define(node, self._values, self._weights, self._inputs)
        self._nodes.append(node)
        return output

    def _fresh(self, op: str) -> str:
        number = len(self._nodes)
        while (name := f"{op}_{number}") in self._values:
            number += 1
        return name
