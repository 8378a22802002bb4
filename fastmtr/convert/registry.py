"""Which function converts which type of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fastmtr.errors import ConversionError
from fastmtr.graph import Graph

__all__ = ["convert", "register"]

_Model = TypeVar("_Model", bound=nn.Module)

_CONVERTERS: dict[type[nn.Module], Callable[[nn.Module], Graph]] = {}


def register(kind: type[_Model]) -> Callable[[Callable[[_Model], Graph]], Callable[[_Model], Graph]]:
    """Decorate the function that converts models of this type, and of types derived from it."""

    def add(converter: Callable[[_Model], Graph]) -> Callable[[_Model], Graph]:
        def call(model: nn.Module) -> Graph:
            assert isinstance(model, kind)
            return converter(model)

        _CONVERTERS[kind] = call
        return converter

    return add


def convert(model: nn.Module) -> Graph:
    """What a trained model computes at inference, as a :class:`~fastmtr.graph.Graph`.

    Dropout is left out and BatchNorm uses its running statistics, whatever mode the model is in. Outputs with role
    ``task`` are probabilities (values, for a regression task); a model with a retrieval head has ``user_vector`` and
    ``item_vector`` besides.

    Raises
    ------
    ConversionError
        There is no converter for this type of model, or a module in it has no counterpart among the operators.
    """
    for kind in type(model).__mro__:
        if kind in _CONVERTERS:
            return _CONVERTERS[kind](model)
    known = sorted(kind.__name__ for kind in _CONVERTERS)
    raise ConversionError(
        f"no converter for a model of type {type(model).__name__!r}; there are converters for {known}"
    )
