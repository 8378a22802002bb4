"""The ONNX model that a graph was made from: its outputs and inner values, by ONNX's own reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from fastmtr.convert.torch_source import TorchSource, columns_of
from fastmtr.graph import Domain, Packed

__all__ = ["OnnxSource", "fixed_rows", "inputs_of", "sizes_of"]


def inputs_of(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What a caller gives: stored weights may be listed among the inputs, too."""
    stored = {each.name for each in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in stored]


def sizes_of(info: onnx.ValueInfoProto) -> list[int | None]:
    """None where a size is not fixed."""
    return [d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim]


def fixed_rows(proto: onnx.ModelProto) -> int | None:
    """The number of rows that the exporter fixed: of several the largest, the candidates', not the user's one row."""
    return max((sizes[0] or 0 for info in inputs_of(proto) if (sizes := sizes_of(info))), default=0) or None


class BatchNormalization(OpRun):
    """With the statistics of training; below opset 14, ONNX's own implementation takes those of the batch."""

    def _run(self, x: Any, scale: Any, shift: Any, mean: Any, var: Any, epsilon: float, **_: Any) -> tuple[Any]:
        along = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        scale, shift, mean, var = (v.reshape(along) for v in (scale, shift, mean, var))
        return (((x - mean) / np.sqrt(var + epsilon) * scale + shift).astype(x.dtype),)


class OnnxSource(TorchSource):
    """What the conversion of an ONNX model is compared with.

    Parameters
    ----------
    proto : ModelProto
        With those nodes only that the outputs come from.
    outputs : mapping of str to (str, slice)
        By the name of the output: the value of the model, and its columns.
    makers : mapping of str to str
        By the path of an operator's module: the value of the model that it makes.
    *args, **kwargs
        As of :class:`~fastmtr.convert.torch_source.TorchSource`, of the torch module that stands for the model.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        outputs: Mapping[str, tuple[str, slice]],
        makers: Mapping[str, str],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._call = self._score
        self._dtypes = {
            info.name: helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type) for info in inputs_of(proto)
        }
        self._batch = fixed_rows(proto)
        self._chosen, self._makers = dict(outputs), dict(makers)
        self._title = proto.graph.name or "a model"
        opset = {each.domain: each.version for each in proto.opset_import}.get("", 0)
        self._evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization] if opset < 14 else [])

    @property
    def name(self) -> str:
        """Where the graph comes from."""
        return f"ONNX of {self._title}"

    def _score(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        found = self._evaluate(arrays)
        return {
            name: torch.from_numpy(np.array(found[value][..., columns], np.float32))
            for name, (value, columns) in self._chosen.items()
        }

    def layers(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The model's inner values by the names that the graph gives them, shape (N, width)."""
        arrays = self._inputs.unpack(packed)
        n = len(next(iter(arrays.values())))
        values = self._evaluate(arrays)
        last = {}
        for node in self._program.graph.nodes:  # the last value of a module is that of the ONNX node
            if stack := node.meta.get("nn_module_stack"):
                last[str(list(stack.values())[-1][0])] = node.name
        found = {}
        for path, name in last.items():
            value = self._values.get(name)
            made = values.get(self._makers.get(path, ""))
            if value is not None and made is not None and made.size == n * int(np.prod(value.shape.inner)):
                found[value.name] = columns_of(torch.from_numpy(np.array(made, np.float64)), value, n)
        return found

    def _evaluate(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every value of the model, in pieces of the number of rows that the exporter fixed."""
        given = {name: array.astype(self._dtypes[name]) for name, array in arrays.items()}
        n = len(next(iter(given.values())))
        size = self._batch or n
        pieces: list[dict[str, Any]] = []
        for start in range(0, n, size):
            here = {name: np.resize(a[start : start + size], (size, *a.shape[1:])) for name, a in given.items()}
            with np.errstate(all="ignore"):  # infinities and NaN are compared, and noted, as they are
                pieces.append(dict(self._evaluator.run(None, here, intermediate=True)))
        whole = [k for k, v in pieces[0].items() if isinstance(v, np.ndarray) and v.ndim]
        return {k: np.concatenate([p[k] for p in pieces])[:n] for k in whole} if len(pieces) > 1 else pieces[0]
