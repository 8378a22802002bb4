"""The operators of ONNX, each as PyTorch computes it; :mod:`fastmtr.convert.torch_export` takes it from there.

A function takes the :class:`Operator` that it belongs to, and the operator's inputs as tensors (None where an optional
one is left out). What must be known beforehand (axes, shapes, tables) it asks of :meth:`Operator.constant`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastmtr.errors import ConversionError

__all__ = ["FUNCTIONS", "Operator", "tensor_of", "torch_dtype"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""By the operator's type, with its domain in front unless that is the default one."""


def _computes(*types: str) -> Callable[[_Function], _Function]:
    def add(function: _Function) -> _Function:
        for each in types:
            FUNCTIONS[each] = function
        return function

    return add


def torch_dtype(onnx_type: int) -> torch.dtype:
    """What values of an ONNX element type are computed in: every float is a float32, every integer an int64."""
    if onnx_type in (1, 10, 11, 16):
        return torch.float32
    if onnx_type in (2, 3, 4, 5, 6, 7, 12, 13):
        return torch.int64
    if onnx_type == 9:
        return torch.bool
    raise ConversionError(f"values of the ONNX element type {onnx_type} have no counterpart; numbers have")


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A constant as a tensor of the dtype that values are computed in."""
    if array.dtype.kind not in "fiub":
        raise ConversionError(f"constants of type {array.dtype} have no counterpart; numbers have")
    wide = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(np.array(array, dtype=wide))


class Operator(nn.Module):
    """A node of an ONNX model.

    Parameters
    ----------
    function : callable
        Of :data:`FUNCTIONS`.
    attributes : dict
    constants : sequence of ndarray, "value" or None
        The node's inputs that are known beforehand; "value" for one that depends on the model's inputs, None for one
        that is left out.
    names : sequence of str
        Of the inputs.
    outputs : int
        How many the node has.
    batch : int, optional
        The number of rows that the exporter fixed, which stands for any number.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        attributes: dict[str, Any],
        constants: Sequence[NDArray[Any] | str | None],
        *,
        names: Sequence[str],
        outputs: int,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.attributes, self.outputs, self.batch = attributes, outputs, batch
        self._function, self._constants = function, tuple(constants)
        self._buffer_names: list[str | None] = []
        for i, (name, constant) in enumerate(zip(names, constants, strict=True)):
            held = isinstance(constant, np.ndarray) and constant.dtype.kind in "fiub"
            wanted = f"{name.replace('.', '_')}_{i}"
            self._buffer_names.append(wanted if held else None)
            if held:
                self.register_buffer(wanted, tensor_of(constant))  # type: ignore[arg-type]

    def forward(self, *values: Tensor) -> Any:
        """The node's outputs."""
        free = iter(values)
        given = [
            next(free) if isinstance(constant, str) else None if buffer is None else getattr(self, buffer)
            for constant, buffer in zip(self._constants, self._buffer_names, strict=True)
        ]
        return self._function(self, *given)

    def constant_at(self, place: int) -> bool:
        """That input is known beforehand."""
        return not isinstance(self._constants[place], str)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def constant(self, place: int, what: str) -> NDArray[Any] | None:
        """An input that has to be known beforehand; None if it is left out."""
        found = self._constants[place] if place < len(self._constants) else None
        if isinstance(found, str):
            raise ConversionError(f"its {what} is computed from the model's inputs; only a constant has a counterpart")
        return found

    def whole(self, place: int, what: str) -> list[int]:
        """The same as whole numbers; [] if it is left out."""
        found = self.constant(place, what)
        return [] if found is None else [int(v) for v in np.ravel(found)]

    def axes(self, place: int) -> list[int]:
        """From an attribute (before opset 13 or 18) or an input."""
        return list(self.attributes["axes"]) if "axes" in self.attributes else self.whole(place, "axes")

    def rows(self, sizes: Sequence[int], x: Tensor) -> list[int]:
        """Sizes with the number of rows in place of the one that the exporter fixed."""
        fixed = self.batch is not None and len(sizes) > 0 and sizes[0] == self.batch and x.shape[0] != self.batch
        return [x.shape[0], *sizes[1:]] if fixed else list(sizes)


# ---- element by element ----------------------------------------------------------------------------------------------

for _type, _of_torch in {
    "Abs": torch.abs,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}.items():
    FUNCTIONS[_type] = lambda op, x, of_torch=_of_torch: of_torch(x)

for _type, _of_torch in {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
}.items():
    FUNCTIONS[_type] = lambda op, a, b, of_torch=_of_torch: of_torch(a, b)


@_computes("Identity", "Dropout")
def _identity(op: Operator, x: Tensor, *rest: Tensor | None) -> Any:
    return x if op.outputs == 1 else (x, None)


@_computes("Cast")
def _cast(op: Operator, x: Tensor) -> Tensor:
    return x.to(torch_dtype(op.attributes["to"]))


@_computes("CastLike")
def _cast_like(op: Operator, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@_computes("Div")
def _div(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    if not (a.is_floating_point() or b.is_floating_point()):
        raise ConversionError("a division of whole numbers jumps, so it has no counterpart")
    return a / b


@_computes("Pow")
def _pow(op: Operator, x: Tensor, exponent: Tensor) -> Tensor:
    power = op.constant(1, "exponent")
    if power is None or power.size != 1:
        raise ConversionError("a power of several exponents has no counterpart")
    return torch.pow(x, float(power.reshape(())))


def _variadic(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def function(op: Operator, first: Tensor, *more: Tensor) -> Tensor:
        for each in more:
            first = combine(first, each)
        return first

    return function


FUNCTIONS.update(Sum=_variadic(torch.add), Max=_variadic(torch.maximum), Min=_variadic(torch.minimum))


@_computes("Mean")
def _mean(op: Operator, *several: Tensor) -> Tensor:
    total: Tensor = FUNCTIONS["Sum"](op, *several)
    return total / len(several)


@_computes("Where")
def _where(op: Operator, mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask, a, b)


@_computes("Clip")
def _clip(op: Operator, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = [op.constant(place, what) for place, what in ((1, "least value"), (2, "greatest value"))]
    least, greatest = (None if b is None else float(b.reshape(())) for b in bounds)
    return x if least is None and greatest is None else torch.clamp(x, least, greatest)


@_computes("Elu")
def _elu(op: Operator, x: Tensor) -> Tensor:
    return F.elu(x, op.attribute("alpha", 1.0))


@_computes("Selu")
def _selu(op: Operator, x: Tensor) -> Tensor:
    alpha, gamma = float(op.attribute("alpha", 1.6732632)), float(op.attribute("gamma", 1.0507010))
    if abs(alpha - 1.6732632) > 1e-6 or abs(gamma - 1.0507010) > 1e-6:
        return gamma * F.elu(x, alpha)
    return F.selu(x)


@_computes("LeakyRelu")
def _leaky_relu(op: Operator, x: Tensor) -> Tensor:
    return F.leaky_relu(x, op.attribute("alpha", 0.01))


@_computes("PRelu")
def _prelu(op: Operator, x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() == 1 or (x.dim() == 2 and slope.numel() == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.relu(x) - slope * torch.relu(-x)


@_computes("HardSigmoid")
def _hard_sigmoid(op: Operator, x: Tensor) -> Tensor:
    alpha, beta = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@_computes("Gelu", "com.microsoft.Gelu")
def _gelu(op: Operator, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.attribute("approximate", "none"))


@_computes("Swish")
def _swish(op: Operator, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.attribute("alpha", 1.0) * x)


# ---- along axes ------------------------------------------------------------------------------------------------------


def _reduces(*types: str) -> Callable[[Callable[[Tensor, list[int], bool], Tensor]], None]:
    def add(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> None:
        def function(op: Operator, x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = op.axes(1)
            if not chosen and op.attribute("noop_with_empty_axes", 0):
                return x
            return reduce(x, chosen or list(range(x.dim())), bool(op.attribute("keepdims", 1)))

        for each in types:
            FUNCTIONS[each] = function

    return add


_reduces("ReduceSum")(lambda x, axes, keep: x.sum(axes, keepdim=keep))
_reduces("ReduceMean")(lambda x, axes, keep: x.mean(axes, keepdim=keep))
_reduces("ReduceMax")(lambda x, axes, keep: x.amax(axes, keepdim=keep))
_reduces("ReduceMin")(lambda x, axes, keep: x.amin(axes, keepdim=keep))
_reduces("ReduceL1")(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep))
_reduces("ReduceL2")(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))
_reduces("ReduceSumSquare")(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep))


@_computes("CumSum")
def _cumsum(op: Operator, x: Tensor, axis: Tensor) -> Tensor:
    if op.attribute("exclusive", 0) or op.attribute("reverse", 0):
        raise ConversionError("an exclusive or reversed cumulative sum has no counterpart")
    return torch.cumsum(x, op.whole(1, "axis")[0])


@_computes("Softmax")
def _softmax(op: Operator, x: Tensor) -> Tensor:
    return torch.softmax(x, op.attribute("axis", -1))


@_computes("LogSoftmax")
def _log_softmax(op: Operator, x: Tensor) -> Tensor:
    return torch.log_softmax(x, op.attribute("axis", -1))


@_computes("BatchNormalization")
def _batch_norm(op: Operator, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Any:
    if op.attribute("training_mode", 0):
        raise ConversionError("a batch norm in training mode depends on the batch; export the model in eval mode")
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, op.attribute("epsilon", 1e-5))


@_computes("LayerNormalization")
def _layer_norm(op: Operator, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
    axis = op.attribute("axis", -1)
    made = F.layer_norm(x, x.shape[axis:], scale.reshape(x.shape[axis:]), shift, op.attribute("epsilon", 1e-5))
    return made if op.outputs == 1 else (made, *[None] * (op.outputs - 1))


@_computes("RMSNormalization")
def _rms_norm(op: Operator, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(op.attribute("axis", -1) % x.dim(), x.dim()))
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + op.attribute("epsilon", 1e-5)) * scale


@_computes("LpNormalization")
def _lp_norm(op: Operator, x: Tensor) -> Tensor:
    return F.normalize(x, float(op.attribute("p", 2)), op.attribute("axis", -1))


@_computes("GlobalAveragePool")
def _global_mean(op: Operator, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@_computes("GlobalMaxPool")
def _global_max(op: Operator, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


# ---- products --------------------------------------------------------------------------------------------------------


@_computes("MatMul")
def _matmul(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@_computes("Gemm")
def _gemm(op: Operator, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    x = a.t() if op.attribute("transA", 0) else a
    w = b if op.attribute("transB", 0) else b.t()
    if op.constant_at(1):
        one_each = c is not None and op.constant_at(2) and c.dim() == 1 and c.shape[0] == w.shape[0]
        if alpha == beta == 1 and one_each:
            return F.linear(x, w, c)
        made = F.linear(x, w if alpha == 1 else alpha * w)
    else:
        made = torch.matmul(x, w.t()) if alpha == 1 else alpha * torch.matmul(x, w.t())
    return made if c is None else made + (c if beta == 1 else beta * c)


@_computes("Einsum")
def _einsum(op: Operator, *operands: Tensor) -> Tensor:
    return torch.einsum(op.attributes["equation"], *operands)


@_computes("Conv")
def _conv(op: Operator, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if x.dim() != 3:
        raise ConversionError(f"a convolution over {x.dim() - 2} dimensions has no counterpart; over one it has")
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ConversionError(f"auto_pad {op.attributes['auto_pad']!r} has no counterpart; export explicit pads")
    pads = op.attribute("pads", [0, 0])
    if pads[0] != pads[1]:
        raise ConversionError(f"a convolution padded by {pads[0]} before and {pads[1]} after has no counterpart")
    stride, dilation = op.attribute("strides", [1])[0], op.attribute("dilations", [1])[0]
    return F.conv1d(x, w, b, stride, pads[0], dilation, op.attribute("group", 1))


@_computes("GRU")
def _gru(
    op: Operator,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> Any:
    if not op.attribute("linear_before_reset", 0):
        raise ConversionError(
            "a GRU with linear_before_reset 0 computes another formula than torch; it has no counterpart"
        )
    if op.attribute("direction", "forward") != "forward" or op.attribute("activations") not in (
        None,
        ["Sigmoid", "Tanh"],
    ):
        raise ConversionError("a GRU in another direction than forward, or with other activations, has no counterpart")
    if op.attribute("layout", 0) or op.attribute("clip"):
        raise ConversionError("a GRU with the batch first in its layout, or with clipping, has no counterpart")
    if lengths is not None and (op.constant(4, "lengths") != x.shape[0]).any():  # type: ignore[union-attr]
        raise ConversionError("a GRU with lengths has no counterpart; mask its inputs instead")
    state = op.constant(5, "initial state")
    if state is not None and state.any():
        raise ConversionError("a GRU that starts from another state than zeros has no counterpart")
    hidden = r.shape[-1]
    # ONNX orders the gates z, r, n; torch r, z, n.
    order = torch.tensor([*range(hidden, 2 * hidden), *range(hidden), *range(2 * hidden, 3 * hidden)])
    biases = torch.zeros(6 * hidden) if b is None else b[0]
    weights = [w[0][order], r[0][order], biases[: 3 * hidden][order], biases[3 * hidden :][order]]
    zeros = torch.zeros(1, x.shape[1], hidden)
    every, last = torch.gru(x, zeros, weights, True, 1, 0.0, False, False, False)
    return (every.unsqueeze(1), last)[: op.outputs]


# ---- views -----------------------------------------------------------------------------------------------------------


@_computes("Reshape")
def _reshape(op: Operator, x: Tensor, sizes: Tensor) -> Tensor:
    wanted = op.rows(op.whole(1, "shape"), x)
    if not op.attribute("allowzero", 0):
        wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    return x.reshape(wanted)


@_computes("Flatten")
def _flatten(op: Operator, x: Tensor) -> Tensor:
    axis = op.attribute("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@_computes("Squeeze")
def _squeeze(op: Operator, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = op.axes(1) or [d for d, size in enumerate(x.shape) if size == 1]
    for axis in sorted((a % x.dim() for a in chosen), reverse=True):
        x = x.squeeze(axis)
    return x


@_computes("Unsqueeze")
def _unsqueeze(op: Operator, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = op.axes(1)
    for axis in sorted(a % (x.dim() + len(chosen)) for a in chosen):
        x = x.unsqueeze(axis)
    return x


@_computes("Transpose")
def _transpose(op: Operator, x: Tensor) -> Tensor:
    return x.permute(op.attribute("perm") or list(range(x.dim()))[::-1])


@_computes("Expand")
def _expand(op: Operator, x: Tensor, sizes: Tensor) -> Tensor:
    wanted = op.rows(op.whole(1, "shape"), x)
    sizes_of_both: list[int] = np.broadcast_shapes(tuple(x.shape), tuple(wanted))  # type: ignore[assignment]
    return x.expand(sizes_of_both)


@_computes("Tile")
def _tile(op: Operator, x: Tensor, repeats: Tensor) -> Tensor:
    times = op.whole(1, "repeats")
    if times[0] == x.shape[0]:  # a row of a request, repeated for all candidates: each has a row of its own here
        times[0] = 1
    return x.repeat(times)


@_computes("Concat")
def _concat(op: Operator, *parts: Tensor) -> Tensor:
    return torch.cat(parts, op.attributes["axis"])


@_computes("Split")
def _split(op: Operator, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = op.attribute("axis", 0)
    wanted = list(op.attribute("split") or op.whole(1, "sizes"))
    if not wanted:
        each = -(-x.shape[axis] // op.outputs)
        wanted = [min(each, x.shape[axis] - at) for at in range(0, x.shape[axis], each)]
    return torch.split(x, wanted, axis)


@_computes("Slice")
def _slice(op: Operator, x: Tensor, *rest: Tensor | None) -> Tensor:
    starts, ends = op.whole(1, "starts"), op.whole(2, "ends")
    axes = op.whole(3, "axes") or list(range(len(starts)))
    steps = op.whole(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        chosen = range(size)[_slice_of(start, end, step, size)]
        if len(chosen) == size and step > 0:
            continue
        x = x.narrow(axis, chosen.start, len(chosen)) if step == 1 else x.index_select(axis, torch.tensor(list(chosen)))
    return x


def _slice_of(start: int, end: int, step: int, size: int) -> slice:
    """Beyond the beginning, a descending slice of ONNX ends where Python's has no end."""
    return slice(start, None if step < 0 and end < -size else end, step)


@_computes("Gather")
def _gather(op: Operator, x: Tensor, indices: Tensor) -> Tensor:
    axis = op.attribute("axis", 0) % x.dim()
    if op.constant_at(0) and not op.constant_at(1):
        if axis != 0 or x.dim() != 2:
            raise ConversionError("it looks up along another axis than the first of a matrix")
        return F.embedding(indices, x)
    known = op.constant(1, "indices")
    assert known is not None
    chosen = [int(i) % x.shape[axis] for i in known.reshape(-1)]
    if known.ndim == 0:
        return x.select(axis, chosen[0])
    taken = x.index_select(axis, torch.tensor(chosen))
    return taken.reshape([*x.shape[:axis], *known.shape, *x.shape[axis + 1 :]])


@_computes("GatherND")
def _gather_nd(op: Operator, x: Tensor, indices: Tensor) -> Tensor:
    if not op.constant_at(0) or x.dim() != 2 or indices.shape[-1] != 1 or op.attribute("batch_dims", 0):
        raise ConversionError("only rows of a constant matrix can be looked up so")
    return F.embedding(indices.squeeze(-1), x)


@_computes("OneHot")
def _one_hot(op: Operator, ids: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    off, on = (float(v) for v in op.constant(2, "values").reshape(-1))  # type: ignore[union-attr]
    if op.attribute("axis", -1) not in (-1, ids.dim()):
        raise ConversionError("a one-hot along another axis than the last has no counterpart")
    return F.one_hot(ids, op.whole(1, "depth")[0]) * (on - off) + off


@_computes("Pad")
def _pad(op: Operator, x: Tensor, *rest: Tensor | None) -> Tensor:
    pads, value = op.whole(1, "pads"), op.constant(2, "value")
    axes = op.whole(3, "axes") or list(range(x.dim()))
    if op.attribute("mode", "constant") != "constant" or min(pads) < 0:
        raise ConversionError("padding of another mode than constant, or that cuts off, has no counterpart")
    fill = 0.0 if value is None else float(value.reshape(()))
    for i, axis in enumerate(axes):
        for at_end, n in ((False, pads[i]), (True, pads[i + len(axes)])):
            if n:
                sizes = [*x.shape]
                sizes[axis] = n
                edge = torch.full(sizes, fill)
                x = torch.cat([x, edge] if at_end else [edge, x], axis)
    return x


# ---- of scikit-learn's converters (ai.onnx.ml) -----------------------------------------------------------------------


@_computes("ai.onnx.ml.LinearRegressor")
def _linear_regressor(op: Operator, x: Tensor) -> Tensor:
    return _post(op, _linear(op, x, op.attribute("targets", 1)))


@_computes("ai.onnx.ml.LinearClassifier")
def _linear_classifier(op: Operator, x: Tensor) -> Any:
    """Labels (which have no counterpart, and are None) and scores of all classes."""
    scores = _linear(op, x, len(op.attribute("intercepts") or [0]))
    post = op.attribute("post_transform", "NONE")
    if scores.shape[1] == 1:  # two classes, one of them given
        if post not in ("LOGISTIC", "NONE"):
            raise ConversionError(f"post_transform {post} of a single score has no counterpart")
        p = torch.sigmoid(scores) if post == "LOGISTIC" else scores
        return None, torch.cat([1 - p if post == "LOGISTIC" else -p, p], 1)
    return None, _post(op, scores)


def _linear(op: Operator, x: Tensor, targets: int) -> Tensor:
    w = torch.tensor(op.attributes["coefficients"]).reshape(targets, -1)
    b = op.attribute("intercepts")
    return F.linear(x.to(torch.float32), w, None if b is None else torch.tensor(b))


def _post(op: Operator, scores: Tensor) -> Tensor:
    post = op.attribute("post_transform", "NONE")
    if post == "NONE":
        return scores
    if post == "LOGISTIC":
        return torch.sigmoid(scores)
    if post == "SOFTMAX":
        return torch.softmax(scores, 1)
    raise ConversionError(f"post_transform {post} has no counterpart; NONE, LOGISTIC and SOFTMAX have")


@_computes("ai.onnx.ml.Scaler")
def _scaler(op: Operator, x: Tensor) -> Tensor:
    return (x - torch.tensor(op.attributes["offset"])) * torch.tensor(op.attributes["scale"])


@_computes("ai.onnx.ml.Normalizer")
def _normalizer(op: Operator, x: Tensor) -> Tensor:
    kind = op.attribute("norm", "MAX")
    if kind == "L2":
        return F.normalize(x, dim=1)
    size = x.abs()
    return x / (size.sum(1, keepdim=True) if kind == "L1" else size.amax(1, keepdim=True))


@_computes("ai.onnx.ml.OneHotEncoder")
def _one_hot_encoder(op: Operator, x: Tensor) -> Tensor:
    known = op.attribute("cats_int64s")
    if not known or min(known) < 0:
        raise ConversionError("categories must be whole numbers from 0; encode text before the model")
    table = torch.zeros(max(known) + 1, len(known))
    table[list(known), list(range(len(known)))] = 1.0
    return F.embedding(x.to(torch.int64), table)


@_computes("ai.onnx.ml.ArrayFeatureExtractor")
def _extract(op: Operator, x: Tensor, places: Tensor) -> Tensor:
    return x.index_select(x.dim() - 1, torch.tensor(op.whole(1, "positions")))


@_computes("ai.onnx.ml.FeatureVectorizer")
def _vectorizer(op: Operator, *parts: Tensor) -> Tensor:
    return torch.cat([p.to(torch.float32) for p in parts], 1)


@_computes("ai.onnx.ml.Imputer")
def _imputer(op: Operator, x: Tensor) -> Tensor:
    if not math.isnan(op.attribute("replaced_value_float", 0.0)):
        raise ConversionError("it replaces a number; only NaN, which never reaches the engine, may be replaced")
    return x
