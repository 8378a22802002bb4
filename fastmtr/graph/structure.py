"""Graphs, their parts, and the checks that say whether they fit together."""

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
from fastmtr.operators import OPS, OpContext

__all__ = [
    "DOMAINS",
    "Domain",
    "Graph",
    "Input",
    "Node",
    "Output",
    "Packed",
    "check_outputs",
    "define",
    "input_values",
    "join_domains",
]

Domain = Literal["request", "item", "candidate"]
DOMAINS: tuple[Domain, ...] = ("request", "item", "candidate")
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
        values = input_values(self.inputs)
        for node in self.nodes:
            define(node, values, self.weights, self.inputs)
        check_outputs(self.outputs, values)
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


# ---- checks ----------------------------------------------------------------------------------------------------------


def input_values(inputs: Sequence[Input]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for i in inputs:
        where = f"input {i.name!r}"
        if not i.name:
            raise ConversionError("an input has no name")
        if i.name in values:
            raise ConversionError(f"{where} stands twice")
        if i.domain not in DOMAINS:
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


def define(
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
    for position, name in enumerate(node.inputs):
        kind: Kind = "ids" if position == op.ids_at else "dense"
        if values[name].kind != kind:
            refuse(f"input {name!r} holds {values[name].kind}, but {kind} are expected")

    context = OpContext(
        op=op,
        attrs=node.attrs,
        widths=[values[name].width for name in node.inputs],
        shapes={role: weights[name].shape for role, name in node.weights.items()},
        rows=next((i.rows for i in inputs if i.name == node.inputs[0]), None),
        refuse=refuse,
    )
    width = op.width(context)
    values[node.output] = _Value(join_domains(values[name].domain for name in node.inputs), "dense", width)


def check_outputs(outputs: Sequence[Output], values: Mapping[str, _Value]) -> None:
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
