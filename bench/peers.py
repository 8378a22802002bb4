"""The contestants: fastmtr, ONNX Runtime, OpenVINO and PyTorch, each behind the same three methods.

``load`` puts a request into the contestant's preallocated inputs and is not timed; ``run`` is timed; ``scores`` is read
for the comparison with the float64 reference. Only fastmtr looks up the candidates' features by itself, inside ``run``:
its peers get ids and numbers of the candidates already gathered, which is their best case.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from program import Call, Program
from workload import Request, Workload

from fastmtr.graph import Packed

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    import torch

    from fastmtr.models import MultiTaskModel

__all__ = [
    "CertifiedFastMTR",
    "Contestant",
    "FastMTR",
    "OnnxRuntime",
    "OpenVINO",
    "TorchModel",
    "TorchProgram",
    "in_int8",
    "onnx_session",
    "to_onnx",
]

Array = NDArray[Any]


class Contestant(Protocol):
    """What the benchmark calls. ``name`` is the column of the table; ``int8``: it computes products in 8 bits."""

    name: str
    int8: bool

    def load(self, request: Request) -> None:
        """Make this request the next one (not timed)."""

    def run(self) -> None:
        """Score its candidates (timed)."""

    def scores(self) -> Array:
        """The last scores, [n, tasks]."""


class FastMTR:
    """``Session.score`` of the Python binding: keys in, scores out; allocates its results in each call."""

    def __init__(self, name: str, bundle: Path, workload: Workload, *, threads: int, int8: bool = False) -> None:
        from fastmtr._native import Model, Session

        self.name = name
        self.int8 = int8
        self.keys = workload.keys
        self.model = Model(str(bundle), precision="int8" if int8 else "fp32")
        self.session = Session(self.model, threads=threads)

    def load(self, request: Request) -> None:
        """See :class:`Contestant`."""
        self.request = request.request
        self.items = self.keys[request.rows]
        n_requests = len(self.request.ids)
        self.offsets = np.arange(n_requests + 1, dtype=np.uint64) * np.uint64(len(self.items) // n_requests)

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.result, _ = self.session.score(*self._arguments())

    def scores(self) -> Array:
        """See :class:`Contestant`."""
        return np.asarray(self.result)

    def _arguments(self) -> tuple[Array, Array, Array, Array]:
        return self.request.ids, self.request.dense, self.offsets, self.items


class CertifiedFastMTR(FastMTR):
    """``Session.rank_certified`` at int8: the k best of fp32 with their scores. Others only score."""

    def __init__(
        self, name: str, bundle: Path, workload: Workload, requests: Sequence[Request], *, k: int, threads: int
    ) -> None:
        super().__init__(name, bundle, workload, threads=threads, int8=True)
        self.k = k
        errors = []
        for request in requests:
            self.load(request)
            errors.append(self.session.precision_errors(*self._arguments()).max())
        self.width = 2.0 * float(max(errors))

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.result = self.session.rank_certified(*self._arguments(), k=self.k, width=self.width)

    def scores(self) -> Array:
        """See :class:`Contestant`; NaN for candidates that are not listed."""
        positions, _, scores, counts, _ = self.result
        full = np.full((len(self.items), scores.shape[2]), np.nan, np.float32)
        full[positions[0, : counts[0]]] = scores[0, : counts[0]]
        return full

    def rescored(self) -> int:
        """Candidates of the last request that were scored again in float32."""
        return int(self.result[4][0])


class _ProgramPeer:
    """Preallocated inputs of a program for n candidates."""

    int8 = False

    def __init__(self, name: str, program: Program, workload: Workload, example: Request) -> None:
        self.name, self.program, self.items = name, program, workload.items
        self.n = len(example.rows)
        self.inputs = program.values(example.request, self.items.take(example.rows))

    def load(self, request: Request) -> None:
        """See :class:`Contestant`."""
        for name, value in self.program.values(request.request, self.items.take(request.rows)).items():
            np.copyto(self.inputs[name], value)


def onnx_session(model: onnx.ModelProto, *, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session as a service would configure it: all optimisations, so many threads, spinning allowed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning helpers answer quickest; the pause between two contestants' turns lets them fall asleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime's own dynamic quantisation: weights in 8 bits per output column, activations per tensor at run time.

    Products with one matrix for all rows alone; its kernels do not take the batched ones.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="fastmtr-bench-") as folder:
        path = Path(folder) / "int8.onnx"
        products = ["MatMul", "Gemm"]
        quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=products)
        return onnx.load(path)


class OnnxRuntime(_ProgramPeer):
    """ONNX Runtime with preallocated, bound inputs and outputs."""

    def __init__(
        self,
        name: str,
        program: Program,
        session: onnxruntime.InferenceSession,
        workload: Workload,
        example: Request,
        *,
        int8: bool = False,
    ) -> None:
        super().__init__(name, program, workload, example)
        self.int8 = int8
        self.session = session
        self.binding = session.io_binding()
        for feed, value in self.inputs.items():
            self.binding.bind_input(feed, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self.outputs = [np.zeros((self.n, 1), np.float32) for _ in program.outputs]
        for output, value in zip(program.outputs, self.outputs, strict=True):
            self.binding.bind_output(output, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.session.run_with_iobinding(self.binding)

    def scores(self) -> Array:
        """See :class:`Contestant`."""
        return np.hstack(self.outputs)


class OpenVINO(_ProgramPeer):
    """OpenVINO's CPU plug-in in float32, compiled for exactly n candidates, with the latency hint."""

    def __init__(
        self, name: str, program: Program, model: onnx.ModelProto, workload: Workload, example: Request, *, threads: int
    ) -> None:
        import openvino

        super().__init__(name, program, workload, example)
        core = openvino.Core()
        read = core.read_model(model.SerializeToString())
        read.reshape({feed: value.shape for feed, value in self.inputs.items()})
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the CPU has it
            "ENABLE_CPU_PINNING": False,  # it would pin the benchmark's own thread
        }
        self.call = core.compile_model(read, "CPU", config).create_infer_request()
        for feed, value in self.inputs.items():
            self.call.set_tensor(feed, openvino.Tensor(value, shared_memory=True))

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.call.infer()

    def scores(self) -> Array:
        """See :class:`Contestant`."""
        return np.hstack([self.call.get_tensor(output).data for output in self.program.outputs])


class TorchModel:
    """The eager PyTorch model itself; the request is repeated for each candidate."""

    int8 = False

    def __init__(self, name: str, model: MultiTaskModel, workload: Workload) -> None:
        self.name, self.model, self.items = name, model, workload.items

    def load(self, request: Request) -> None:
        """See :class:`Contestant`."""
        repeated = request.request.take(np.zeros(len(request.rows), np.int64))
        self.request, self.item = _tensors(repeated), _tensors(self.items.take(request.rows))

    def run(self) -> None:
        """See :class:`Contestant`."""
        import torch

        with torch.inference_mode():
            self.result = self.model.probabilities(self.request, self.item)

    def scores(self) -> Array:
        """See :class:`Contestant`."""
        return np.stack([p.numpy() for p in self.result.values()], axis=1)


class TorchProgram(_ProgramPeer):
    """A program as eager PyTorch calls."""

    def __init__(self, name: str, program: Program, workload: Workload, example: Request) -> None:
        import torch

        super().__init__(name, program, workload, example)
        self.tensors: dict[str, torch.Tensor] = {feed: torch.from_numpy(v) for feed, v in self.inputs.items()}
        self.steps = [(call.inputs, call.output, _torch_call(call)) for call in program.calls]

    def run(self) -> None:
        """See :class:`Contestant`."""
        import torch

        values = dict(self.tensors)
        with torch.inference_mode():
            for inputs, output, function in self.steps:
                values[output] = function(*(values[name] for name in inputs))
        self.result = [values[name] for name in self.program.outputs]

    def scores(self) -> Array:
        """See :class:`Contestant`."""
        return np.hstack([p.numpy() for p in self.result])


def _tensors(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.from_numpy(packed.ids), torch.from_numpy(packed.dense)


def _torch_call(call: Call) -> Callable[..., torch.Tensor]:
    import torch
    from torch.nn import functional

    const = {name: torch.from_numpy(array) for name, array in call.constants.items()}
    a = call.attrs

    def bag_mean(ids: torch.Tensor) -> torch.Tensor:
        present = (ids != a["padding"]).unsqueeze(1).float()
        return (present @ functional.embedding(ids, const["table"])).squeeze(1) / present.sum(2).clamp(min=1.0)

    def gemm(x: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        return torch.addmm(const["b"] if c is None else c, x, const["w"])

    def softmax(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x.unflatten(1, (a["runs"], a["size"])), dim=2).flatten(1)

    def mix(gate: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        return torch.bmm(gate.unsqueeze(1), experts.unflatten(1, (a["experts"], -1))).squeeze(1)

    def mix_groups(gate: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        return torch.bmm(gate.unsqueeze(1), experts.transpose(0, 1)).squeeze(1)

    functions: dict[str, Callable[..., torch.Tensor]] = {
        "gather": lambda ids: functional.embedding(ids, const["table"]).flatten(1),
        "bag_mean": bag_mean,
        "concat": lambda *x: torch.cat(x, dim=1),
        "columns": lambda x: x[:, a["offset"] : a["offset"] + a["width"]],
        "gemm": gemm,
        "bmm": lambda x: torch.baddbmm(const["b"], x, const["w"]),
        "group": lambda x: x.unflatten(1, (a["groups"], -1)).transpose(0, 1),
        "ungroup": lambda x: x.transpose(0, 1).flatten(1),
        "group_range": lambda x: x[a["start"] : a["stop"]],
        "add": lambda *x: torch.add(*x, *const.values()),
        "mul": torch.mul,
        "softmax": softmax,
        "mix": mix,
        "mix_groups": mix_groups,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "softplus": functional.softplus,
        "exp": torch.exp,
    }
    return functions[call.op]


def to_onnx(program: Program) -> onnx.ModelProto:
    """The program as an ONNX model. Its inputs are the program's feeds, its outputs the tasks, [n, 1] each."""
    import onnx
    from onnx import TensorProto, helper

    written = _OnnxWriter()
    for call in program.calls:
        written.add(call)
    feeds = [
        helper.make_tensor_value_info(
            f.name,
            TensorProto.FLOAT if f.shift is None else TensorProto.INT32,
            ["n" if program.repeated or f.domain != "request" else 1, len(f.columns)],
        )
        for f in program.feeds
    ]
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", 1]) for o in program.outputs]
    graph = helper.make_graph(written.nodes, "fastmtr_bench", feeds, outputs, written.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class _OnnxWriter:
    """Writes each call as ONNX nodes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.named: dict[int, tuple[str, Array]] = {}  # by id(array), which is unique while the array lives

    def add(self, call: Call) -> None:
        const = {role: self.constant(array) for role, array in call.constants.items()}
        writer = getattr(self, f"_{call.op}", None)
        if writer is None:
            self.node(call.op.capitalize(), call.inputs, call.output)  # Add, Mul, Relu, Sigmoid, Tanh, Softplus, Exp
        else:
            writer(call, const)

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attrs: Any) -> str:
        from onnx import helper

        name = output if output is not None else f"inner_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def constant(self, array: Array) -> str:
        from onnx import numpy_helper

        if id(array) not in self.named:
            name = f"constant_{len(self.initializers)}"
            self.named[id(array)] = (name, array)
            self.initializers.append(numpy_helper.from_array(array, name))
        return self.named[id(array)][0]

    def whole(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def _gather(self, call: Call, const: dict[str, str]) -> None:
        rows = self.node("Gather", [const["table"], call.inputs[0]], axis=0)
        self.node("Flatten", [rows], call.output, axis=1)

    def _bag_mean(self, call: Call, const: dict[str, str]) -> None:
        ids = call.inputs[0]
        padding = self.constant(np.array(call.attrs["padding"], np.int32))
        present = self.node("Cast", [self.node("Not", [self.node("Equal", [ids, padding])])], to=1)
        rows = self.node("Gather", [const["table"], ids], axis=0)
        total = self.node("MatMul", [self.node("Unsqueeze", [present, self.whole(1)]), rows])
        count = self.node("ReduceSum", [present, self.whole(1)], keepdims=1)
        count = self.node("Max", [count, self.constant(np.array(1.0, np.float32))])
        self.node("Div", [self.node("Flatten", [total], axis=1), count], call.output)

    def _concat(self, call: Call, const: dict[str, str]) -> None:
        self.node("Concat", call.inputs, call.output, axis=1)

    def _columns(self, call: Call, const: dict[str, str]) -> None:
        offset, width = call.attrs["offset"], call.attrs["width"]
        self.node("Slice", [call.inputs[0], self.whole(offset), self.whole(offset + width), self.whole(1)], call.output)

    def _gemm(self, call: Call, const: dict[str, str]) -> None:
        c = const["b"] if len(call.inputs) == 1 else call.inputs[1]
        self.node("Gemm", [call.inputs[0], const["w"], c], call.output)

    def _bmm(self, call: Call, const: dict[str, str]) -> None:
        self.node("Add", [self.node("MatMul", [call.inputs[0], const["w"]]), const["b"]], call.output)

    def _group(self, call: Call, const: dict[str, str]) -> None:
        split = self.node("Reshape", [call.inputs[0], self.whole(0, call.attrs["groups"], -1)])
        self.node("Transpose", [split], call.output, perm=[1, 0, 2])

    def _ungroup(self, call: Call, const: dict[str, str]) -> None:
        self.node("Reshape", [self.node("Transpose", call.inputs, perm=[1, 0, 2]), self.whole(0, -1)], call.output)

    def _group_range(self, call: Call, const: dict[str, str]) -> None:
        start, stop = call.attrs["start"], call.attrs["stop"]
        self.node("Slice", [call.inputs[0], self.whole(start), self.whole(stop), self.whole(0)], call.output)

    def _add(self, call: Call, const: dict[str, str]) -> None:
        self.node("Add", [*call.inputs, *const.values()], call.output)

    def _softmax(self, call: Call, const: dict[str, str]) -> None:
        runs, size = call.attrs["runs"], call.attrs["size"]
        if runs == 1:
            self.node("Softmax", call.inputs, call.output, axis=1)
            return
        split = self.node("Reshape", [call.inputs[0], self.whole(0, runs, size)])
        self.node("Flatten", [self.node("Softmax", [split], axis=2)], call.output, axis=1)

    def _mix(self, call: Call, const: dict[str, str]) -> None:
        split = self.node("Reshape", [call.inputs[1], self.whole(0, call.attrs["experts"], -1)])
        self._weigh(call, split)

    def _mix_groups(self, call: Call, const: dict[str, str]) -> None:
        self._weigh(call, self.node("Transpose", [call.inputs[1]], perm=[1, 0, 2]))

    def _weigh(self, call: Call, experts: str) -> None:
        gate = self.node("Unsqueeze", [call.inputs[0], self.whole(1)])
        self.node("Flatten", [self.node("MatMul", [gate, experts])], call.output, axis=1)
