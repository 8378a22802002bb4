"""The PyTorch module that a graph was made from: its scores and inner values for packed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.utils import _pytree as pytree

from fastmtr.convert.inputs import ModelInputs
from fastmtr.convert.lookups import MINUS_INFINITY
from fastmtr.convert.values import Rows
from fastmtr.graph import Domain, Packed

__all__ = ["OutputColumn", "TorchSource", "columns_of"]


class OutputColumn(NamedTuple):
    """An output of the graph: which tensor of the module's outputs it is, which column of it (None: all)."""

    name: str
    leaf: int
    column: int | None
    logit: bool


class TorchSource:
    """What a conversion is compared with.

    Parameters
    ----------
    name : str
    call : callable
        Takes arguments by name (arrays), gives the module's outputs.
    inputs : ModelInputs
    outputs : sequence of OutputColumn
    program : GraphModule
        The traced module, for so many rows as `rows`.
    leading : mapping of str to tensor, or None
        What each placeholder of the program holds; None for an argument, in the order of the arguments.
    values : mapping of str to Rows
        The graph's values by the program's node.
    rows : int
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Mapping[str, NDArray[Any]]], Any],
        inputs: ModelInputs,
        outputs: Sequence[OutputColumn],
        *,
        program: fx.GraphModule,
        leading: Mapping[str, torch.Tensor | None],
        values: Mapping[str, Rows],
        rows: int,
    ) -> None:
        self._name, self._call, self._inputs, self._outputs = name, call, inputs, tuple(outputs)
        self._program, self._leading, self._values, self._rows = program, dict(leading), dict(values), rows

    @property
    def name(self) -> str:
        """Where the graph comes from."""
        return self._name

    def arguments(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """What the module takes, by name, from packed inputs."""
        return self._inputs.unpack(packed)

    @property
    def call(self) -> Callable[[Mapping[str, NDArray[Any]]], Any]:
        """Gives the module's outputs for its arguments."""
        return self._call

    def score(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The module's outputs by the names that the graph gives them, shape (N, width)."""
        arrays = self.arguments(packed)
        n = len(next(iter(arrays.values())))
        if n == 1:  # some modules squeeze a batch of one row away
            arrays = {name: np.repeat(array, 2, axis=0) for name, array in arrays.items()}
        leaves = pytree.tree_leaves(self._call(arrays))
        found = {}
        for output in self._outputs:
            values = leaves[output.leaf].reshape(max(n, 2), -1)[:n]
            if output.column is not None:
                values = values[:, output.column : output.column + 1]
            found[output.name] = (torch.sigmoid(values) if output.logit else values).cpu().numpy()
        return found

    def layers(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The module's inner values by the names that the graph gives them, shape (N, width)."""
        arrays = self.arguments(packed)
        n = len(next(iter(arrays.values())))
        parts: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, n, self._rows):
            here = {name: _filled(array[start : start + self._rows], self._rows) for name, array in arrays.items()}
            for name, values in self._run(here).items():
                parts.setdefault(name, []).append(values[: n - start])
        return {name: np.concatenate(each) for name, each in parts.items()}

    def _run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        free = iter([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays.values()])
        given = [next(free) if tensor is None else tensor for tensor in self._leading.values()]
        recorder = _Recorder(self._program, self._values, self._rows)
        with torch.no_grad():
            recorder.run(*given)
        return recorder.found


class _Recorder(fx.Interpreter):
    """Runs a program and keeps the values that a graph has, too."""

    def __init__(self, program: fx.GraphModule, values: Mapping[str, Rows], rows: int) -> None:
        super().__init__(program)
        self.found: dict[str, NDArray[Any]] = {}
        self._rows_of, self._rows = values, rows

    def run_node(self, n: fx.Node) -> Any:
        """As usual, but remembered."""
        made = super().run_node(n)
        value = self._rows_of.get(n.name)
        if value is not None and value.name not in self.found:
            self.found[value.name] = columns_of(made, value, self._rows)
        return made


def columns_of(tensor: torch.Tensor, value: Rows, rows: int) -> NDArray[Any]:
    """A tensor as the columns of the graph's value that stands for it."""
    inner, batch = value.shape.inner, value.shape.batch
    apart = tensor.reshape(*inner[:batch], rows, *inner[batch:]).movedim(batch, 0)
    held = apart[(slice(None), *[slice(None) if place is not None else 0 for place in value.order])]
    order = np.argsort([place for place in value.order if place is not None], kind="stable")
    columns = held.permute(0, *(order + 1).tolist()).reshape(rows, -1).double().numpy()
    return np.asarray(np.maximum(columns, MINUS_INFINITY))


def _filled(array: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.resize(array, (rows, *array.shape[1:]))
