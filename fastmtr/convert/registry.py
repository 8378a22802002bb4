"""The way into conversion: which function converts which model, and what it gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload

from numpy.typing import ArrayLike, NDArray

from fastmtr.errors import ConversionError
from fastmtr.graph import Domain, Graph, Input, Packed
from fastmtr.schema import Schema

__all__ = ["Conversion", "Converter", "Options", "Source", "convert", "register"]


class Source(Protocol):
    """The model that a graph was made from, so that its scores can be compared with the graph's."""

    @property
    def name(self) -> str:
        """Where the graph comes from, such as "torch.export of MMOE"."""

    def score(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The model's own outputs.

        Parameters
        ----------
        packed : mapping of domain to Packed
            N rows in each domain that the graph has inputs of, row by row one example each.

        Returns
        -------
        dict of str to ndarray
            Every output of the graph by name, shape (N, width), in the precision that the model computes in.
        """

    def layers(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The model's own inner values by the name that the graph gives them, shape (N, width), in order of evaluation.

        Empty where the source cannot tell.
        """


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted model.

    Parameters
    ----------
    graph : Graph
        What the model computes. ``graph.inputs`` says where each of its inputs stands in the packed matrices.
    source : Source
        The model itself.
    sample : mapping of domain to Packed, optional
        The sample that was given, packed: N rows in each domain.
    notes : tuple of str
        What the conversion chose by itself, for the user to read (a domain inferred from the sample, say).
    """

    graph: Graph
    source: Source
    sample: Mapping[Domain, Packed] | None = None
    notes: tuple[str, ...] = ()

    def pack(self, domain: Domain, arrays: Mapping[str, ArrayLike]) -> Packed:
        """Other rows of the model's inputs, such as a catalogue's, as :class:`~fastmtr.Ranker` and bundles take them.

        Parameters
        ----------
        domain : {"request", "item", "candidate"}
        arrays : mapping of str to array of shape (N,) or (N, width)
            One for each input of this domain, by name; ids are as the model takes them.

        Raises
        ------
        SchemaError
            An input is missing or has the wrong shape.
        """
        from fastmtr.convert.inputs import pack

        return pack(self.graph.inputs, domain, arrays)


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """The arguments of :func:`convert`, where they are described."""

    schema: Schema | None = None
    inputs: Mapping[str, str] | Sequence[Input] | None = None
    sample: Any = None
    groups: ArrayLike | None = None
    items: ArrayLike | None = None
    columns: Mapping[str, int | tuple[int, int]] | None = None
    tasks: Sequence[str] | None = None
    logits: bool | Sequence[str] = False

    @property
    def task_names(self) -> Sequence[str] | None:
        """What the outputs are called: as given, or as the schema's tasks; None: neither says."""
        if self.tasks is not None or self.schema is None:
            return self.tasks
        return [task.name for task in self.schema.tasks]


Converter: TypeAlias = Callable[[Any, Options], Conversion]

_CONVERTERS: dict[type, Converter] = {}

_HOMES = {
    "fastmtr": "fastmtr.convert.fastmtr_models",
    "torch": "fastmtr.convert.torch_export",
    "torch_rechub": "fastmtr.convert.torch_rechub",
    "deepctr_torch": "fastmtr.convert.deepctr_torch",
    "sklearn": "fastmtr.convert.sklearn",
    "onnx": "fastmtr.convert.onnx_models",
}
"""The package that a model's class comes from: the module whose ``convert_model`` converts its models."""


def register(kind: type) -> Callable[[Converter], Converter]:
    """Decorate the function that converts models of this type, and of types derived from it.

    It takes the model and :class:`Options`, and returns a :class:`Conversion`. It goes before fastmtr's own converters.
    """

    def add(converter: Converter) -> Converter:
        _CONVERTERS[kind] = converter
        return converter

    return add


@overload
def convert(model: Any, *, out: None = None, **options: Any) -> Conversion: ...


@overload
def convert(model: Any, *, out: str | os.PathLike[str], **options: Any) -> Path: ...


def convert(
    model: Any,
    *,
    schema: Schema | None = None,
    inputs: Mapping[str, str] | Sequence[Input] | None = None,
    sample: Any = None,
    groups: ArrayLike | None = None,
    items: ArrayLike | None = None,
    columns: Mapping[str, int | tuple[int, int]] | None = None,
    tasks: Sequence[str] | None = None,
    logits: bool | Sequence[str] = False,
    out: str | os.PathLike[str] | None = None,
    **bundle: Any,
) -> Conversion | Path:
    """What a trained model computes at inference, as a :class:`~fastmtr.graph.Graph`.

    Dropout is left out and BatchNorm uses its running statistics, whatever mode the model is in. The model itself is
    left as it is.

    Parameters
    ----------
    model : object
        A trained model.
    schema : Schema, optional
        Says what each input is a function of (the entity of the feature of that name), and names the tasks.
    inputs : mapping of str to str, or sequence of Input, optional
        What each input of the model is a function of: "user", "context", "item" or "candidate" ("request" is as good as
        "user"); or in full, where it stands in the packed matrices. Before `schema`.
    sample : object, optional
        Rows of input as the model takes them, at least one: a dict of arrays, a tuple of arrays, or one array. It tells
        the shapes of inputs, and the converted model is compared with its source on it.
    groups, items : array of shape (N,), optional
        The request, and the item, that each row of the sample belongs to. With neither `inputs` nor `schema`, an input
        whose values are the same in all rows of every request is taken to be the user's, one whose values are the same
        in all rows of every item to be the item's, and others to be the candidate's. ``notes`` of the result say so.
    columns : mapping of str to int or (start, stop), optional
        Where the model takes a matrix that holds several inputs: the columns of each.
    tasks : sequence of str, optional
        Names of the outputs, in the order in which the model gives them. Before those of `schema`.
    logits : bool or sequence of str
        The tasks that the model gives logits of, not probabilities (True: all tasks); a sigmoid is added to them.
    out : path, optional
        Write a bundle there, once the engine's scores have been found to be the model's.
    **bundle
        With `out`: catalogue, users, labels, pipeline, fusion, item_memory, tolerance and overwrite, as of
        :func:`fastmtr.convert.save.save`, which takes `groups` and `items` for the keys of users and items.

    Returns
    -------
    Conversion, or Path
        The path of the bundle if `out` is given.

    Raises
    ------
    ConversionError
        There is no converter for this type of model, an argument that it needs is missing, something in the model has
        no counterpart among the operators (the message names it), or the engine's scores differ from the model's.
    """
    if bundle and out is None:
        raise TypeError(f"convert() takes {sorted(bundle)} only with out=, the bundle to write")
    options = Options(
        schema=schema,
        inputs=inputs,
        sample=sample,
        groups=groups,
        items=items,
        columns=columns,
        tasks=tasks,
        logits=logits,
    )
    conversion = _converter(model)(model, options)
    if out is None:
        return conversion
    from fastmtr.convert.save import save

    return save(conversion, out, schema=schema, groups=groups, items=items, **bundle)


def _converter(model: Any) -> Converter:
    kinds = type(model).__mro__
    for kind in kinds:
        if kind in _CONVERTERS:
            return _CONVERTERS[kind]
    if isinstance(model, Mapping) and model:  # a model a task
        return _converter(next(iter(model.values())))
    packages = ["onnx"] if isinstance(model, str | Path) else [kind.__module__.partition(".")[0] for kind in kinds]
    for package in packages:
        if package in _HOMES:
            converter: Converter = import_module(_HOMES[package]).convert_model
            return converter
    raise ConversionError(
        f"no converter for a model of type {type(model).__name__!r} from {kinds[0].__module__!r}; there are converters "
        f"for models of {', '.join(sorted(_HOMES))}"
    )
