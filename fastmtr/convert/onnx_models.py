"""ONNX models (opset 13 and up) by way of PyTorch: each node is a small module, torch's converter takes the whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from fastmtr.convert.onnx_operators import FUNCTIONS, Operator, tensor_of
from fastmtr.convert.onnx_patterns import gelus
from fastmtr.convert.onnx_source import OnnxSource, fixed_rows, inputs_of, sizes_of
from fastmtr.convert.registry import Conversion, Options
from fastmtr.convert.torch_export import ROWS, convert_module
from fastmtr.errors import ConversionError

__all__ = ["convert_model"]

_LEAST_OPSET = 13
_DRAWN_ROWS = 8
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pt2", ".pth")


def convert_model(model: onnx.ModelProto | str | os.PathLike[str], options: Options) -> Conversion:
    """The conversion of an ONNX model, or of the file that holds it.

    The first dimension of every input counts rows. A model whose inputs of the user have a single row, which it repeats
    for the candidates, is converted as if each candidate came with its user's row: the compiler takes what depends on
    the user alone out again.
    """
    proto = _checked(_read(model) if isinstance(model, str | os.PathLike) else model)
    arrays = _sample(proto, options)
    module = _Module(proto, arrays, options)
    source = partial(OnnxSource, module.served, module.outputs, module.makers)
    try:
        made = convert_module(module, replace(options, sample=arrays), name=proto.graph.name, source=source)
    except ConversionError as error:
        raise ConversionError(_in_terms_of_onnx(str(error), module)) from error
    sample = None if options.sample is None else made.sample
    return replace(made, sample=sample, notes=(*made.notes, *module.notes))


def _read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    file = Path(path)
    if file.suffix in _PICKLES:
        raise ConversionError(
            f"{file} is a pickle, or holds some, and loading one can run any code; load it yourself, where you trust "
            "it, and pass the model to fastmtr.convert, or export it to ONNX"
        )
    if not file.is_file():
        raise ConversionError(f"there is no file {file}")
    try:
        return onnx.load(file)
    except Exception as error:  # protobuf's decoding errors have no common base
        raise ConversionError(f"{file} is no ONNX model: {error}") from error


def _checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    opset = {each.domain: each.version for each in proto.opset_import}.get("", _LEAST_OPSET)
    if opset < _LEAST_OPSET:
        raise ConversionError(
            f"the model has opset {opset}, but {_LEAST_OPSET} or later is expected: export it again, or raise it with "
            "onnx.version_converter.convert_version"
        )
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _in_terms_of_onnx(message: str, module: _Module) -> str:
    """What torch's converter says of an operator in a module is about a node of the model."""
    found = re.match(r"operator \S+ in module '(.+?)' \(Operator\)(?:, '.*?')?: (.*)", message, re.DOTALL)
    if found is None or found[1] not in module.titles:
        return message
    return f"{module.titles[found[1]]}: {found[2]}"


def _sample(proto: onnx.ModelProto, options: Options) -> dict[str, NDArray[Any]]:
    """The model's arguments, given or drawn, with a row an example."""
    infos = inputs_of(proto)
    if options.sample is None:
        return {info.name: _drawn(info) for info in infos}
    given = options.sample
    if not isinstance(given, Mapping):
        several = given if isinstance(given, tuple | list) else [given]
        if len(several) != len(infos):
            raise ConversionError(f"the model has {len(infos)} inputs, but the sample has {len(several)} arrays")
        given = dict(zip([info.name for info in infos], several, strict=True))
    missing = [info.name for info in infos if info.name not in given]
    if missing:
        raise ConversionError(f"the sample lacks the inputs {missing} of the model; it has {list(given)}")
    arrays = {info.name: np.asarray(given[info.name]) for info in infos}
    n = max(len(array) for array in arrays.values())
    for info in infos:
        array = arrays[info.name]
        if array.ndim + 1 == len(sizes_of(info)):  # a column given as a plain array
            array = array[:, None]
        arrays[info.name] = np.repeat(array, n, axis=0) if len(array) == 1 < n else array
    return arrays


def _drawn(info: onnx.ValueInfoProto) -> NDArray[Any]:
    sizes = sizes_of(info)[1:]
    if None in sizes:
        raise ConversionError(
            f"input {info.name!r} has the sizes {sizes_of(info)}, of which all but the first must be known: pass "
            "sample=, some rows as the model takes them"
        )
    shape = (_DRAWN_ROWS, *[int(s or 0) for s in sizes])
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if dtype.kind not in "fiub":
        raise ConversionError(f"input {info.name!r} holds {dtype}; encode text as whole numbers before the model")
    return np.asarray(rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)


class _NodeError(ConversionError):
    """The message names the node already."""


class _Module(nn.Module):
    """An ONNX model as a torch module: what depends on its inputs is computed, the rest is known beforehand.

    Parameters
    ----------
    proto : ModelProto
    arrays : mapping of str to ndarray
        A sample of the inputs.
    options : Options

    Attributes
    ----------
    outputs : dict of str to (str, slice)
        By the name of the output: the value of the model, and its columns.
    makers : dict of str to str
        By the path of each operator's module: the first value that it makes.
    titles : dict of str to str
        By the same: the node, as messages call it.
    served : ModelProto
        The model with those nodes only that the outputs come from.
    notes : list of str
    """

    def __init__(self, proto: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], options: Options) -> None:
        super().__init__()
        self.notes: list[str] = []
        self._opsets = {each.domain: each.version for each in proto.opset_import}
        self._batch = fixed_rows(proto)
        self._values: dict[str, Tensor | NDArray[Any] | None] = {
            each.name: numpy_helper.to_array(each) for each in proto.graph.initializer
        }
        for node in proto.graph.node:
            if node.op_type == "Constant":
                self._values[node.output[0]] = _folded(node, {}, self._opsets)[0]
        for name, array in arrays.items():
            self._values[name] = tensor_of(np.resize(array, (ROWS, *array.shape[1:])))
        self._steps: list[tuple[str, list[str], list[str]]] = []
        self.makers: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        chosen = self._chosen(proto)
        with torch.no_grad():
            self._plan(_needed(gelus(proto.graph.node, self._number), set(chosen.values())))
        self.served = onnx.ModelProto()
        self.served.CopyFrom(proto)
        del self.served.graph.node[:], self.served.graph.output[:]
        self.served.graph.node.extend(_needed(proto.graph.node, set(chosen.values())))
        self.served.graph.output.extend(helper.make_tensor_value_info(v, 1, None) for v in chosen.values())
        self.outputs = dict(self._columns(chosen, options))
        self._values = {}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name."""
        values = dict(inputs)
        for name, read, made in self._steps:
            found = getattr(self, name)(*[values[each] for each in read])
            several = found if isinstance(found, tuple | list) else (found,)
            values.update(zip(made, several, strict=False))
        return {name: values[value][..., columns] for name, (value, columns) in self.outputs.items()}

    def _number(self, name: str) -> NDArray[Any] | None:
        """A constant of the model."""
        found = self._values.get(name)
        return found if isinstance(found, np.ndarray) else None

    # ---- what is computed --------------------------------------------------------------------------------------------

    def _plan(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Run the sample through the nodes; keep those that depend on it."""
        for node in nodes:
            try:
                self._plan_node(node)
            except _NodeError:
                raise
            except Exception as error:  # whatever an operator may raise
                raise _NodeError(f"{_title(node)}: {error}") from error

    def _plan_node(self, node: onnx.NodeProto) -> None:
        attributes = {a.name: _attribute(a) for a in node.attribute}
        given = [self._values[name] if name else None for name in node.input]
        values = [v for v in given if isinstance(v, Tensor)]
        if node.op_type in ("Shape", "Size") and values:
            sizes = np.array(values[0].shape, np.int64)
            part = sizes[attributes.get("start", 0) : attributes.get("end")]
            self._values[node.output[0]] = part if node.op_type == "Shape" else np.asarray(np.prod(sizes))
        elif node.op_type == "If":
            self._plan_branch(node, attributes)
        elif not values:
            known = {name: v for name, v in zip(node.input, given, strict=True) if name}
            self._values.update(zip(node.output, _folded(node, known, self._opsets), strict=True))
        else:
            self._plan_operator(node, attributes, given)

    def _plan_branch(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        condition = self._values[node.input[0]]
        if not isinstance(condition, np.ndarray):
            raise ConversionError(
                "its condition is computed from the model's inputs; only a constant has a counterpart"
            )
        branch = attributes["then_branch" if condition.any() else "else_branch"]
        self._values.update({each.name: numpy_helper.to_array(each) for each in branch.initializer})
        self._plan(branch.node)
        for outer, inner in zip(node.output, branch.output, strict=True):
            self._values[outer] = self._values[inner.name]
            self._alias(outer, inner.name)

    def _alias(self, name: str, of: str) -> None:
        """The output of a branch under the name that it has outside."""
        node = helper.make_node("Identity", [of], [name])
        if isinstance(self._values[of], Tensor):
            self._keep(
                node, Operator(FUNCTIONS["Identity"], {}, ["value"], names=[of], outputs=1, batch=None), [of], [name]
            )

    def _plan_operator(self, node: onnx.NodeProto, attributes: dict[str, Any], given: Sequence[Any]) -> None:
        function = FUNCTIONS.get(_kind(node))
        if function is None:
            raise ConversionError(
                "it has no counterpart in a graph; leave it out of what is exported (a step before or after the model) "
                f"or write it with operators that have: {', '.join(sorted(FUNCTIONS))}"
            )
        operator = Operator(
            function,
            attributes,
            ["value" if isinstance(v, Tensor) else v for v in given],
            names=list(node.input),
            outputs=len(node.output),
            batch=self._batch,
        )
        found = operator(*[v for v in given if isinstance(v, Tensor)])
        several = found if isinstance(found, tuple | list) else (found,)
        self._values.update(zip(node.output, several, strict=False))
        read = [name for name, v in zip(node.input, given, strict=True) if isinstance(v, Tensor)]
        self._keep(node, operator, read, list(node.output))

    def _keep(self, node: onnx.NodeProto, operator: Operator, read: list[str], made: list[str]) -> None:
        wanted = _label(node).strip("/").replace(".", "_")
        name, n = wanted, 2
        while hasattr(self, name):
            name, n = f"{wanted}_{n}", n + 1
        self.add_module(name, operator)
        self.titles[name] = _title(node)
        self._steps.append((name, read, made))
        self.makers[name] = made[0]

    # ---- outputs -----------------------------------------------------------------------------------------------------

    def _chosen(self, proto: onnx.ModelProto) -> dict[str, str]:
        """The value of each output that holds numbers; labels of classes are left out."""
        makers = {name: node for node in proto.graph.node for name in node.output}
        chosen = {}
        for info in proto.graph.output:
            maker = makers.get(info.name)
            if maker is not None and maker.op_type == "ZipMap":
                chosen[info.name] = maker.input[0]
            elif info.type.tensor_type.elem_type in (1, 10, 11, 16):
                chosen[info.name] = info.name
            else:
                self.notes.append(f"output {info.name!r} holds no scores, so it is left out")
        if not chosen:
            raise ConversionError("the model has no output of floating-point numbers, so it gives no scores")
        return chosen

    def _columns(self, chosen: Mapping[str, str], options: Options) -> Iterator[tuple[str, tuple[str, slice]]]:
        """Of a probability for either of two classes, that of the second one."""
        tasks = options.task_names
        classifier = bool(self.notes)
        for name, value in chosen.items():
            found = self._values[value]
            if not isinstance(found, Tensor):
                raise ConversionError(f"output {name!r} of the model does not depend on its inputs")
            two = found.dim() == 2 and found.shape[1] == 2
            if two and (classifier if tasks is None else len(tasks) == len(chosen)):
                self.notes.append(f"output {name!r} has two columns, the classes 0 and 1: the second is taken")
                yield name, (value, slice(1, 2))
            else:
                yield name, (value, slice(None))


def _folded(node: onnx.NodeProto, known: Mapping[str, Any], opsets: Mapping[str, int]) -> list[NDArray[Any]]:
    """The outputs of a node whose inputs are known."""
    return [np.asarray(v) for v in ReferenceEvaluator(node, opsets=dict(opsets)).run(None, dict(known))]


def _kind(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _label(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} of {node.output[0]}"


def _title(node: onnx.NodeProto) -> str:
    return f"operator {_kind(node)} in node {_label(node)!r}"


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that these values come from, in order."""
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
            for a in node.attribute:
                for inner in a.g.node:
                    wanted |= set(inner.input)
    return kept[::-1]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [each.decode() for each in value]
    return value
