"""Any PyTorch module, through ``torch.export``: each operator of the exported program becomes nodes of a graph."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fastmtr.convert import aten_layers, aten_math, aten_views  # noqa: F401 - their handlers
from fastmtr.convert.aten import HANDLERS, Call, is_value
from fastmtr.convert.inputs import ModelInputs
from fastmtr.convert.registry import Conversion, Options
from fastmtr.convert.tensors import Tensors
from fastmtr.convert.torch_source import OutputColumn, TorchSource
from fastmtr.convert.values import Raw, Rows
from fastmtr.errors import ConversionError
from fastmtr.graph.structure import Role

__all__ = ["ROWS", "Arguments", "ModuleCall", "convert_model", "convert_module"]

ROWS = 61
"""The size of the batch while a model is traced: a prime that is unlikely to be a size of anything else."""

_ROLES: dict[str, Role] = {"user_vector": "request", "item_vector": "item"}


def convert_model(model: nn.Module, options: Options) -> Conversion:
    """The conversion of any module, from a sample of what it takes.

    Outputs that are called ``user_vector`` and ``item_vector`` (in a dict that the module returns) are the vectors of a
    retrieval head.
    """
    if options.sample is None:
        raise ConversionError(
            f"converting a {type(model).__name__} needs sample=: some rows of what it takes, as a dict of arrays, a "
            "tuple of arrays or one array"
        )
    return convert_module(model, options, name=type(model).__name__)


def convert_module(
    model: nn.Module,
    options: Options,
    *,
    name: str,
    padding: Mapping[str, int] | None = None,
    source: Callable[..., TorchSource] = TorchSource,
) -> Conversion:
    """As :func:`convert_model`; ``padding`` are the ids that mean "nothing here", where they are known.

    ``source`` makes what the conversion is compared with, where the module stands for another model.
    """
    module = _copied(model).cpu().float().eval()
    arguments = Arguments(module, options.sample)
    inputs = ModelInputs(arguments.arrays, options, padding=padding)
    program = _exported(module, arguments)
    tasks = options.task_names
    ids: set[int] = set()
    for _ in range(2):  # the first pass finds out which inputs are ids
        translation = _Translation(program, arguments, inputs, ids=ids)
        translation.run(tasks, logits=options.logits)
        ids = translation.t.ids
    graph = inputs.settle(translation.t.builder.build())
    made = {node.output for node in graph.nodes}
    compared = source(
        f"torch.export of {name}",
        ModuleCall(module, arguments),
        inputs,
        translation.outputs,
        program=program.graph_module,
        leading=translation.leading,
        values={n: v for n, v in translation.values.items() if isinstance(v, Rows) and v.name in made},
        rows=ROWS,
    )
    return Conversion(graph, compared, inputs.pack(), tuple(inputs.notes))


def _copied(model: nn.Module) -> nn.Module:
    """A copy, also of a module that keeps results of its last training step as attributes."""
    kept = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(v): v.detach() for v in kept})


class Arguments:
    """What a module takes, by name: a dict, positional tensors, keyword tensors, or one packed matrix.

    Parameters
    ----------
    module : nn.Module
    sample : dict, tuple or list of arrays, or an array
        N rows.
    """

    def __init__(self, module: nn.Module, sample: Any) -> None:
        parameters = [p.name for p in inspect.signature(module.forward).parameters.values()]
        self._keywords = isinstance(sample, Mapping) and len(parameters) > 1 and set(sample) <= set(parameters)
        tree = sample if self._keywords or isinstance(sample, tuple | list) else (sample,)
        leaves, self._spec = pytree.tree_flatten_with_path(tree)
        self.arrays: dict[str, NDArray[Any]] = {}
        for path, leaf in leaves:
            self.arrays[self._name(path, parameters)] = _array(leaf)
        self.example = self._tree([torch.from_numpy(_resized(array)) for array in self.arrays.values()])

    def _name(self, path: Sequence[Any], parameters: Sequence[str]) -> str:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        if self._keywords:
            return ".".join(keys)
        if len(keys) > 1:
            return ".".join(keys[1:] if len(parameters) == 1 else [parameters[int(keys[0])], *keys[1:]])
        at = int(keys[0])
        return parameters[at] if at < len(parameters) else f"input{at}"

    def _tree(self, tensors: Sequence[torch.Tensor]) -> Any:
        return pytree.tree_unflatten(list(tensors), self._spec)

    def give(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """The module's outputs for tensors in the order of :attr:`arrays`."""
        tree = self._tree(tensors)
        return module(**tree) if self._keywords else module(*tree)

    def export(self, module: nn.Module) -> ExportedProgram:
        """The module as a program for :data:`ROWS` rows."""
        args, kwargs = ((), self.example) if self._keywords else (tuple(self.example), {})
        return torch.export.export(module, args, kwargs, strict=False)


class ModuleCall(NamedTuple):
    """A module and what it takes: calls it with arrays by name."""

    module: nn.Module
    arguments: Arguments

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The module's outputs."""
        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self.arguments.arrays]
        with torch.inference_mode():
            return self.arguments.give(self.module, tensors)


def _array(leaf: Any) -> NDArray[Any]:
    array = leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
    if array.dtype.kind not in "iufb" or array.ndim < 1:
        raise ConversionError(
            f"the sample must hold arrays of numbers with a row an example, found {type(leaf).__name__}"
        )
    wide = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    return array.astype(wide)


def _resized(array: NDArray[Any]) -> NDArray[Any]:
    return np.resize(array, (ROWS, *array.shape[1:]))


def _exported(module: nn.Module, arguments: Arguments) -> ExportedProgram:
    try:
        ModuleCall(module, arguments)({name: _resized(array) for name, array in arguments.arrays.items()})
    except Exception as error:  # whatever a forward may raise
        raise ConversionError(
            f"the {type(module).__name__} itself cannot score the sample: {type(error).__name__}: {error}"
        ) from error
    try:
        with warnings.catch_warnings():
            # torch.export itself uses what torch has deprecated; attributes that a forward sets are of no use here
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
            warnings.filterwarnings("ignore", category=UserWarning, message=".*assigned during export")
            program = arguments.export(module)
            strange = _strange(program)
            if strange or not all(map(_is_pure, _operators(program))):
                program = program.run_decompositions(strange)
            return program
    except Exception as error:  # torch.export raises errors of many kinds
        raise ConversionError(
            f"torch.export cannot trace this {type(module).__name__}: {f'{error} '.splitlines()[0]} A forward that "
            "branches on values, or leaves PyTorch, has no graph: convert the part that scores, or write it with "
            "torch.where"
        ) from error


def _strange(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Operators without a handler that torch can take apart, and how."""
    known = torch.export.default_decompositions()
    targets = {node.target for node in _operators(program)}
    return {target: known[target] for target in targets if _handler(target) is None and target in known}


def _operators(program: ExportedProgram) -> list[fx.Node]:
    calls = (n for n in program.graph.nodes if n.op == "call_function")
    return [n for n in calls if isinstance(n.target, torch._ops.OpOverload)]  # others compute with sizes


def _is_pure(node: fx.Node) -> bool:
    """The operator changes no tensor that another one might read."""
    schema = node.target._schema  # type: ignore[union-attr]
    if not schema.is_mutable:
        return True
    changed = node.args[0]
    return (
        isinstance(changed, fx.Node)
        and len(changed.users) == 1
        and changed.op == "call_function"
        and changed.target is not operator.getitem
        and all(r.alias_info is None for r in changed.target._schema.returns)  # type: ignore[union-attr]
    )


def _handler(target: Any) -> Callable[..., Any] | None:
    name, overload = target._schema.name.split("::")[-1], target._schema.overload_name
    plain = name.removesuffix("_") if target._schema.is_mutable else name
    return HANDLERS.get(f"{plain}.{overload}") or HANDLERS.get(plain)


class _Translation:
    """An exported program as nodes of a graph."""

    def __init__(self, program: ExportedProgram, arguments: Arguments, inputs: ModelInputs, *, ids: set[int]) -> None:
        self.program = program
        self.t = Tensors(inputs.inputs, inputs.columns, ids=ids)
        self.values: dict[str, Any] = {}
        self.outputs: list[OutputColumn] = []
        self.leading: dict[str, torch.Tensor | None] = {}
        self._weight_names: dict[str, str] = {}
        signature = program.graph_signature
        stored = {**program.state_dict, **program.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
        free = iter(arguments.arrays)
        for node in placeholders:
            if node.name in targets:
                self.values[node.name] = self.leading[node.name] = stored[targets[node.name]].detach()
                self._weight_names[node.name] = targets[node.name]
            else:
                self.values[node.name] = inputs.raw(next(free))
                self.leading[node.name] = None

    def run(self, tasks: Sequence[str] | None, *, logits: bool | Sequence[str]) -> None:
        """Translate every operator, then name the outputs."""
        needed: set[fx.Node] = set()
        for node in reversed(self.program.graph.nodes):
            if node.op == "output" or node in needed:
                needed.update(node.all_input_nodes)
        for node in self.program.graph.nodes:
            if node.op == "call_function" and node in needed:
                self.values[node.name] = self._call(node)
        self.t.scope = ""
        self._outputs(tasks, logits)

    def _call(self, node: fx.Node) -> Any:
        found: Any = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n.name])
        args, kwargs = found
        if node.target is operator.getitem:
            several, at = args
            return several[at]
        flat = [x for x in pytree.tree_leaves((args, kwargs))]
        if not any(is_value(x) for x in flat):
            checks_sizes = str(node.target).startswith(("aten._assert", "aten.sym_constrain"))
            return None if checks_sizes else node.target(*args, **kwargs)  # type: ignore[operator]
        path, kind = _place(node)
        self.t.scope = path
        handler = _handler(node.target)
        try:
            if handler is None:
                raise ConversionError(
                    "it has no counterpart in a graph; write this part with operators that have (linear layers, "
                    "convolutions, products, sums, softmax, normalisations, activations, embeddings, masks), or leave "
                    "it out of what is converted"
                )
            made = handler(self._context(node, flat), *args, **kwargs)
        except ConversionError as error:
            raise ConversionError(f"{_described(path, kind, node)}: {error}") from error
        self._check(node, made)
        return made

    def _context(self, node: fx.Node, operands: Sequence[Any]) -> Call:
        value = node.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
        tensors = [n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        numbers = [x for x in operands if isinstance(x, float)]
        whole = not any(v.dtype.is_floating_point for v in tensors) and all(x == int(x) for x in numbers)
        names = [self._weight_names[n.name] for n in node.all_input_nodes if n.name in self._weight_names]
        boolean = all(v.dtype == torch.bool for v in tensors)
        weight_name = names[0] if names else ""
        return Call(self.t, rows=ROWS, dtype=dtype, whole=whole, boolean=boolean, weight_name=weight_name)

    def _check(self, node: fx.Node, made: Any) -> None:
        """The shape is the one that torch says."""
        expected = node.meta.get("val")
        several = isinstance(made, tuple | list)
        for value, meta in zip(made if several else [made], expected if several else [expected], strict=True):  # type: ignore[arg-type]
            if not isinstance(value, Rows | Raw) or any(isinstance(n, torch.SymInt) for n in meta.shape):
                continue  # a size that only the values of a constant tell
            if value.shape.full(ROWS) != tuple(meta.shape):
                raise AssertionError(f"{node.name}: {value.shape.full(ROWS)} is not {tuple(meta.shape)}")

    # ---- outputs -----------------------------------------------------------------------------------------------------

    def _outputs(self, tasks: Sequence[str] | None, logits: bool | Sequence[str]) -> None:
        pieces = list(self._pieces())
        keys = [key for key, *_ in pieces if key not in _ROLES]
        if tasks is not None and len(tasks) != len(keys):
            raise ConversionError(f"the model has {len(keys)} outputs, but {len(tasks)} tasks are named: {list(tasks)}")
        names = iter(tasks if tasks is not None else [key or f"task{i}" for i, key in enumerate(keys)])
        for key, value, leaf, column in pieces:
            name = key if key in _ROLES else next(names)
            logit = key not in _ROLES and (logits if isinstance(logits, bool) else name in logits)
            if logit:
                value = self.t.builder.activation(value, "sigmoid", name=self.t.name(f"{name}.probability"))
            self.t.builder.output(name, value, role=_ROLES.get(key, "task"))
            self.outputs.append(OutputColumn(name, leaf, column, logit))

    def _pieces(self) -> Iterator[tuple[str, str, int, int | None]]:
        """Key ("" where it has none), value, place among the output tensors and column of each output."""
        (node,) = (n for n in self.program.graph.nodes if n.op == "output")
        leaves = [self.values[n.name] if isinstance(n, fx.Node) else n for n in node.args[0]]
        spec = self.program.call_spec.out_spec
        assert spec is not None
        paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(len(leaves)), spec))
        for leaf, ((path, _), value) in enumerate(zip(paths, leaves, strict=True)):
            key = str(getattr(path[-1], "key", "")) if path else ""
            if value is None:
                continue
            if not is_value(value):
                raise ConversionError(f"output {key or leaf} of the model does not depend on its inputs")
            name = self.t.packed(self.t.rows(value)).name
            width = self.t.builder.width(name)
            if key in _ROLES:
                yield key, name, leaf, None
                continue
            for column in range(width):
                yield key and (key if width == 1 else f"{key}{column}"), self.t.cut(name, column, 1), leaf, column


def _place(node: fx.Node) -> tuple[str, str]:
    """Where the operator stands: the module's path, and its class."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    return str(path), kind if isinstance(kind, str) else kind.__name__


def _described(path: str, kind: str, node: fx.Node) -> str:
    line = next((x.strip() for x in reversed(str(node.meta.get("stack_trace") or "").splitlines()) if x.strip()), "")
    module = f"module {path!r} ({kind.rpartition('.')[2]})" if path else "the model's forward"
    return f"operator {node.target} in {module}" + (f", {line!r}" if line else "")
