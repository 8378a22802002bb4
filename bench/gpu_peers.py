"""The contestants of bench/gpu_score.py: fastmtr, PyTorch and ONNX Runtime on a device.

A call takes a batch in the host's memory (requests, and row numbers or keys of their candidates) and leaves the k best
of each request, with their scores, in the host's memory. ONNX Runtime is given its inputs on the device, gathered
already, and leaves all scores there: its best case.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from program import Program
from workload import Workload

from fastmtr.graph import Packed

if TYPE_CHECKING:
    import onnx
    import torch

    from fastmtr.models import MultiTaskModel

__all__ = ["Batch", "Contestant", "FastMTR", "OnnxRuntime", "TorchRows", "make_batch"]

Array = NDArray[Any]


class Batch(NamedTuple):
    """Requests of the same number of candidates; ``rows`` [requests, candidates] are those of the catalogue."""

    request: Packed
    rows: NDArray[np.int64]


def make_batch(workload: Workload, *, requests: int, candidates: int, seed: int) -> Batch:
    """Random requests, whose candidates are drawn from the whole catalogue."""
    made = [r.request for r in workload.requests(1, count=requests)]
    packed = Packed(np.concatenate([m.ids for m in made]), np.concatenate([m.dense for m in made]))
    rng = np.random.default_rng([seed, requests, candidates])
    return Batch(packed, rng.integers(0, len(workload.keys), (requests, candidates), dtype=np.int64))


class Contestant(Protocol):
    """What the benchmark calls."""

    name: str

    def load(self, batch: Batch) -> None:
        """Make this batch the next one (not timed)."""

    def run(self) -> None:
        """Score it (timed), to the end."""

    def best(self) -> Array:
        """The fused scores of the k best of the last call, [requests, k], descending."""


class FastMTR:
    """``Session.rank`` of the Python binding: keys in, the k best out."""

    def __init__(self, bundle: Path, workload: Workload, *, device: str, precision: str, k: int) -> None:
        from fastmtr._native import Model, Session

        self.name = f"fastmtr {precision}"
        self.keys, self.k = workload.keys, k
        self.model = Model(str(bundle), device=device, precision=precision)
        self.session = Session(self.model)

    def load(self, batch: Batch) -> None:
        """See :class:`Contestant`."""
        requests, candidates = batch.rows.shape
        offsets = np.arange(requests + 1, dtype=np.uint64) * np.uint64(candidates)
        self.arguments = batch.request.ids, batch.request.dense, offsets, self.keys[batch.rows.ravel()]

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.result = self.session.rank(*self.arguments, k=self.k)

    def best(self) -> Array:
        """See :class:`Contestant`."""
        return np.asarray(self.result[1])

    def scores(self) -> tuple[Array, Array]:
        """Of all candidates of the batch: by task, and fused (not timed)."""
        return self.session.score(*self.arguments)


class TorchRows:
    """The PyTorch model on all rows, requests repeated; the catalogue's inputs are on the device, as the engine's are.

    ``compiled``: ``torch.compile`` with CUDA graphs. ``precision``: fp32, or fp16 by autocast.
    """

    def __init__(
        self, model: MultiTaskModel, workload: Workload, *, device: str, compiled: bool, precision: str, k: int
    ) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")
        self.torch = torch
        self.name = f"torch {'compile' if compiled else 'eager'} {precision}"
        self.precision, self.k, self.device, self.compiled = precision, k, torch.device(device), compiled
        self.model = model.to(self.device)
        self.items = [torch.from_numpy(part).to(self.device) for part in (workload.items.ids, workload.items.dense)]
        for part in self.items:
            torch._dynamo.mark_static_address(part)  # a CUDA graph then reads it where it is
        self.score: Any = self._score
        if compiled:
            self.score = torch.compile(self._score, mode="reduce-overhead", dynamic=False)

    def _score(
        self, ids: torch.Tensor, dense: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch = self.torch
        requests, candidates = rows.shape
        flat = rows.flatten()
        of_request = torch.arange(requests, device=self.device).repeat_interleave(
            candidates, output_size=requests * candidates
        )
        item = (self.items[0][flat], self.items[1][flat])
        probabilities = self.model.probabilities((ids[of_request], dense[of_request]), item)
        scores = torch.stack(tuple(probabilities.values()), dim=1).float()
        fused, places = scores.sum(1).view(requests, candidates).topk(min(self.k, candidates), dim=1)
        listed = scores.view(requests, candidates, -1).gather(1, places[..., None].expand(-1, -1, scores.shape[1]))
        return places, fused, listed

    def load(self, batch: Batch) -> None:
        """See :class:`Contestant`."""
        tensors = [self.torch.from_numpy(part) for part in (batch.request.ids, batch.request.dense, batch.rows)]
        cuda = self.device.type == "cuda"
        self.inputs = [t.pin_memory() for t in tensors] if cuda else tensors

    def run(self) -> None:
        """See :class:`Contestant`."""
        torch = self.torch
        half = torch.autocast(self.device.type, torch.float16, enabled=self.precision == "fp16")
        with torch.inference_mode(), half:
            if self.compiled:
                torch.compiler.cudagraph_mark_step_begin()
            found = self.score(*(t.to(self.device, non_blocking=True) for t in self.inputs))
            self.result = [part.cpu() for part in found]

    def best(self) -> Array:
        """See :class:`Contestant`."""
        return np.asarray(self.result[1].numpy())


class OnnxRuntime:
    """ONNX Runtime with inputs and outputs bound to the device's memory."""

    def __init__(
        self, name: str, program: Program, model: onnx.ModelProto, workload: Workload, *, device: str, k: int
    ) -> None:
        import onnxruntime

        self.name, self.program, self.items, self.ort, self.k = name, program, workload.items, onnxruntime, k
        self.place = "cuda" if device == "cuda" else "cpu"
        provider: Any = ("CUDAExecutionProvider", {"use_tf32": "0"}) if device == "cuda" else "CPUExecutionProvider"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
        wanted = provider if isinstance(provider, str) else provider[0]
        if wanted not in self.session.get_providers():
            raise RuntimeError(f"ONNX Runtime made no session of {wanted}")

    def load(self, batch: Batch) -> None:
        """See :class:`Contestant`."""
        self.shape = requests, candidates = batch.rows.shape
        if requests > 1 and not self.program.repeated:
            raise ValueError(f"{self.name} takes one request")
        request = batch.request
        if self.program.repeated:
            request = request.take(np.repeat(np.arange(requests), candidates))
        feeds = self.program.values(request, self.items.take(batch.rows.ravel()))
        self.binding = self.session.io_binding()
        self.values = {name: self.ort.OrtValue.ortvalue_from_numpy(v, self.place, 0) for name, v in feeds.items()}
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, value)
        for output in self.program.outputs:
            self.binding.bind_output(output, self.place)

    def run(self) -> None:
        """See :class:`Contestant`."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def best(self) -> Array:
        """See :class:`Contestant`."""
        fused = np.hstack(self.binding.copy_outputs_to_cpu()).sum(1).reshape(self.shape)
        return -np.sort(-fused, axis=1)[:, : self.k]
