"""The inputs of a source model: what each is a function of, and where it stands in the packed matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmtr.compiler.dead_code import remove_dead_code
from fastmtr.convert.registry import Options
from fastmtr.convert.tensors import Column
from fastmtr.convert.values import Raw, Shape
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import Domain, Graph, Input, Node, Packed
from fastmtr.graph.structure import Kind

__all__ = ["ModelInputs", "pack"]

_DOMAINS: dict[str, Domain] = {
    "user": "request",
    "context": "request",
    "request": "request",
    "item": "item",
    "candidate": "candidate",
}
_NUMBERS = "#numbers"
"""Ends the name of an input that is read as numbers, until it is known whether it is also read as ids."""
_KINDS: tuple[tuple[str, Kind], ...] = (("", "ids"), (_NUMBERS, "dense"))


@dataclass(frozen=True)
class _Piece:
    """Columns of an argument of the model that have a name, and belong to one domain (None: not known)."""

    name: str
    argument: str
    start: int
    width: int
    domain: Domain | None


class ModelInputs:
    """A source model's arguments as inputs of a graph.

    An argument may be read as ids, as numbers or as both; which, is known once the model is converted
    (:meth:`settle`). Until then there is an input of either kind for each.

    Parameters
    ----------
    arrays : mapping of str to ndarray of shape (N, ...)
        The sample: the model's arguments by name, in order.
    options : Options
        Of :func:`~fastmtr.convert.convert`: what the inputs are functions of.
    padding : mapping of str to int
        The ids that mean "nothing here", where they are known.
    """

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], options: Options, *, padding: Mapping[str, int] | None = None
    ) -> None:
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.notes: list[str] = []
        self._padding = dict(padding or {})
        self._given: dict[tuple[str, Kind], Input] | None = None
        rows = {len(array) for array in self.arrays.values()}
        if len(rows) != 1 or 0 in rows:
            sizes = {name: array.shape for name, array in self.arrays.items()}
            raise ConversionError(f"the sample's arrays must have one number of rows, at least 1; found {sizes}")
        cut = list(_cut(self.arrays, options.columns))
        self._pieces = [replace(p, domain=d) for p, d in zip(cut, self._domains(cut, options), strict=True)]
        self._starts: dict[str, int] = {}
        self.columns: list[Column] = []
        for name, array in self.arrays.items():
            self._starts[name] = len(self.columns)
            for p in sorted((p for p in self._pieces if p.argument == name), key=lambda p: p.start):
                self.columns += [Column(p.name, p.name + _NUMBERS, i, p.width) for i in range(p.width)]
            assert len(self.columns) - self._starts[name] == _width(array)
        self.inputs: tuple[Input, ...] = tuple(
            Input(p.name + suffix, p.domain or "candidate", kind, offset, p.width)
            for p, offset in zip(self._pieces, np.cumsum([0, *[p.width for p in self._pieces]]).tolist(), strict=False)
            for suffix, kind in _KINDS
        )

    def raw(self, argument: str) -> Raw:
        """An argument of the model, not read yet."""
        array = self.arrays[argument]
        start = self._starts[argument]
        columns = np.arange(start, start + _width(array)).reshape(array.shape[1:])
        return Raw(columns, Shape(array.shape[1:]))

    # ---- what each is a function of ----------------------------------------------------------------------------------

    def _domains(self, pieces: Sequence[_Piece], options: Options) -> list[Domain | None]:
        given, schema = options.inputs, options.schema
        if isinstance(given, Mapping):
            return [_domain(p.name, given[p.name]) if p.name in given else None for p in pieces]
        if given is not None:
            self._given = {(i.name, i.kind): i for i in given}
            by_name = {i.name: i.domain for i in given}
            return [by_name.get(p.name) for p in pieces]
        if schema is not None:
            entities = {f.name: f.entity for f in schema.features}
            return [_domain(p.name, entities[p.name]) if p.name in entities else None for p in pieces]
        if options.groups is not None or options.items is not None:
            return [self._inferred(p, options.groups, options.items) for p in pieces]
        return [None] * len(pieces)

    def _inferred(self, piece: _Piece, groups: ArrayLike | None, items: ArrayLike | None) -> Domain:
        block = self._block(piece)
        of_request = groups is not None and _constant_within(block, np.asarray(groups), "groups")
        of_item = items is not None and _constant_within(block, np.asarray(items), "items")
        if of_request and of_item:
            raise ConversionError(
                f"input {piece.name!r}: its values in the sample are the same for every request and for every item, so "
                "it could belong to either; say which: inputs={" + repr(piece.name) + ': "user"} or "item"'
            )
        domain: Domain = "request" if of_request else "item" if of_item else "candidate"
        reason = {
            "request": "constant within each request of the sample",
            "item": "constant for each item of the sample",
            "candidate": "not constant within a request or an item of the sample",
        }[domain]
        self.notes.append(f"input {piece.name!r} belongs to the {domain}: {reason}")
        return domain

    # ---- once the model is converted ---------------------------------------------------------------------------------

    def settle(self, graph: Graph) -> Graph:
        """The graph with those inputs alone that it reads, each of its kind, one after the other.

        Raises
        ------
        ConversionError
            It is not known what an input is a function of, or it is given as ids but read as numbers.
        """
        graph = remove_dead_code(graph)
        read = {name for node in graph.nodes for name in node.inputs} | {o.value for o in graph.outputs}
        used = [i for i in graph.inputs if i.name in read]
        unknown = [p.name for p in self._pieces if p.domain is None and {p.name, p.name + _NUMBERS} & read]
        if unknown:
            raise ConversionError(
                f"what are the inputs {unknown} functions of? Pass inputs={{{unknown[0]!r}: 'user', ...}} (user, "
                "context, item or candidate), a schema with features of these names, or groups= and items= (the "
                "request and the item of each row of the sample) to find out"
            )
        names = {i.name: _settled_name(i.name, read) for i in used}
        tables = _tables(graph)
        settled: list[Input] = []
        offsets: dict[tuple[str, str], int] = {}
        for i in used:
            name, plain = names[i.name], i.name.removesuffix(_NUMBERS)
            if self._given is not None:
                settled.append(self._of_given(plain, i))
                names[i.name] = settled[-1].name
                continue
            offset = offsets.get((i.domain, i.kind), 0)
            offsets[i.domain, i.kind] = offset + i.width
            rows = min(tables.get(i.name, []), default=None) if i.kind == "ids" else None
            padding = self._padding.get(plain, _padding(graph, i.name)) if i.kind == "ids" else None
            settled.append(Input(name, i.domain, i.kind, offset, i.width, rows, padding))
        if self._given is not None:
            have = {i.name for i in settled}
            settled += [i for i in self._given.values() if i.name not in have]
        self.inputs = tuple(settled)
        nodes = tuple(replace(n, inputs=tuple(names.get(v, v) for v in n.inputs)) for n in graph.nodes)
        outputs = tuple(replace(o, value=names.get(o.value, o.value)) for o in graph.outputs)
        return Graph(self.inputs, nodes, outputs, graph.weights)

    def _of_given(self, name: str, read: Input) -> Input:
        assert self._given is not None
        found = self._given.get((name, read.kind))
        if found is None:
            kinds = [i.kind for i in self._given.values() if i.name == name]
            raise ConversionError(f"input {name!r} is given as {kinds}, but the model reads it as {read.kind}")
        if found.width != read.width:
            raise ConversionError(f"input {name!r} is given with width {found.width}, but the model reads {read.width}")
        return found

    # ---- packing -----------------------------------------------------------------------------------------------------

    def pack(self) -> dict[Domain, Packed]:
        """The sample as the packed inputs of each domain that the graph has inputs of."""
        blocks = {p.name: self._block(p) for p in self._pieces}
        blank = np.zeros((len(next(iter(self.arrays.values()))), 1))
        given = {i.name: blocks.get(_plain(i.name), np.broadcast_to(blank, (len(blank), i.width))) for i in self.inputs}
        return {domain: pack(self.inputs, domain, given) for domain in dict.fromkeys(i.domain for i in self.inputs)}

    def unpack(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The model's arguments from packed inputs; zeros where the graph does not read them."""
        n = max(p.n_rows for p in packed.values())
        blocks: dict[str, NDArray[Any]] = {}
        for i in self.inputs:
            matrix = getattr(packed[i.domain], i.kind)
            if i.kind == "ids" or _plain(i.name) not in blocks:
                blocks[_plain(i.name)] = matrix[:, i.offset : i.offset + i.width]
        arrays = {}
        for name, array in self.arrays.items():
            flat = np.zeros((n, _width(array)), array.dtype)
            for p in self._pieces:
                if p.argument == name and p.name in blocks:
                    flat[:, p.start : p.start + p.width] = blocks[p.name]
            arrays[name] = flat.reshape(n, *array.shape[1:])
        return arrays

    def _block(self, piece: _Piece) -> NDArray[Any]:
        array = self.arrays[piece.argument]
        return array.reshape(len(array), -1)[:, piece.start : piece.start + piece.width]


def pack(inputs: Sequence[Input], domain: Domain, arrays: Mapping[str, ArrayLike]) -> Packed:
    """Arrays by the names of inputs as the packed inputs of a domain.

    Parameters
    ----------
    inputs : sequence of Input
        Of a graph.
    domain : {"request", "item", "candidate"}
    arrays : mapping of str to array of shape (N,) or (N, width)
        One for each input of the domain.

    Raises
    ------
    SchemaError
        An input is missing or has the wrong shape.
    """
    here = [i for i in inputs if i.domain == domain]
    named = {_plain(name): np.asarray(array) for name, array in arrays.items()}
    widths = [max((i.offset + i.width for i in here if i.kind == kind), default=0) for _, kind in _KINDS]
    n = len(next(iter(named.values()), ()))
    matrices = Packed(np.zeros((n, widths[0]), np.int32), np.zeros((n, widths[1]), np.float32))
    for i in here:
        name = _plain(i.name)
        if name not in named:
            raise SchemaError(f"input {name!r} of the {domain} is missing; found {list(arrays)}")
        block = named[name]
        if block.shape != (n, i.width) and (i.width, block.shape) != (1, (n,)):
            raise SchemaError(f"input {name!r} must have the shape ({n}, {i.width}), found {block.shape}")
        getattr(matrices, i.kind)[:, i.offset : i.offset + i.width] = block.reshape(n, i.width)
    return matrices


def _cut(arrays: Mapping[str, NDArray[Any]], columns: Mapping[str, int | tuple[int, int]] | None) -> Sequence[_Piece]:
    """Each argument as one piece, but the one matrix among them as the pieces that `columns` names."""
    if columns is None:
        return [_Piece(name, name, 0, _width(array), None) for name, array in arrays.items()]
    matrices = [name for name, array in arrays.items() if _width(array) > 1]
    if len(matrices) != 1:
        raise ConversionError(f"columns= is for a model that takes one matrix; this one takes {list(arrays)}")
    (argument,) = matrices
    array = arrays[argument]
    spans = sorted(((span, span + 1) if isinstance(span, int) else span, name) for name, span in columns.items())
    pieces, at = [_Piece(name, name, 0, 1, None) for name in arrays if name != argument], 0
    for (start, stop), name in spans:
        if not at <= start < stop <= _width(array):
            raise ConversionError(
                f"columns: {name!r} is {start} to {stop}, but the columns of the matrix are {at} to {_width(array)} "
                "from there on"
            )
        if start > at:
            pieces.append(_Piece(f"{argument}[{at}:{start}]", argument, at, start - at, None))
        pieces.append(_Piece(name, argument, start, stop - start, None))
        at = stop
    if at < _width(array):
        pieces.append(_Piece(f"{argument}[{at}:]", argument, at, _width(array) - at, None))
    return pieces


def _width(array: NDArray[Any]) -> int:
    return math.prod(array.shape[1:])


def _plain(name: str) -> str:
    return name.removesuffix(_NUMBERS)


def _settled_name(name: str, read: set[str]) -> str:
    """Numbers have the plain name, unless the ids of that input are read, too."""
    plain = _plain(name)
    return plain if plain not in read else name


def _domain(name: str, entity: str) -> Domain:
    if entity not in _DOMAINS:
        raise ConversionError(f"input {name!r}: expected user, context, item or candidate, found {entity!r}")
    return _DOMAINS[entity]


def _constant_within(block: NDArray[Any], keys: NDArray[Any], what: str) -> bool:
    if keys.shape != (len(block),):
        raise ConversionError(f"{what} must have one entry a row of the sample ({len(block)}), found {keys.shape}")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return bool((block == block[first[inverse]]).all())


def _tables(graph: Graph) -> dict[str, list[int]]:
    """Of each input, the rows of the tables that read it."""
    found: dict[str, list[int]] = {}
    for node in graph.nodes:
        if "table" in node.weights:
            found.setdefault(node.inputs[0], []).append(graph.weights[node.weights["table"]].shape[0])
    return found


def _padding(graph: Graph, name: str) -> int | None:
    """The one id that the graph treats as "nothing here"."""
    found = {node.attr("padding") for node in graph.nodes if _reads_padding(node, name)}
    return found.pop() if len(found) == 1 else None


def _reads_padding(node: Node, name: str) -> bool:
    return name in node.inputs and node.op in ("present", "mask", "gru", "embedding_bag") and "padding" in node.attrs
