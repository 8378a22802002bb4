"""Torch layers to nodes.

Sibling layers that stand in one place of the model (experts, towers, gates) become one grouped node each, so that the
engine computes them as one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmtr.errors import ConversionError
from fastmtr.graph import GraphBuilder, Input

__all__ = ["Writer"]


class _Activation(NamedTuple):
    fn: str
    alpha: float = 0.0
    slope: NDArray[np.float32] | None = None


class Writer:
    """A :class:`GraphBuilder` that takes torch modules and keeps names readable and apart.

    Parameters
    ----------
    inputs : sequence of Input
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.builder = GraphBuilder(inputs)
        self._taken = {i.name for i in inputs}

    def name(self, wanted: str) -> str:
        """``wanted``, or with a number after it where an input or an earlier value has that name."""
        found, n = wanted, 2
        while found in self._taken:
            found, n = f"{wanted}_{n}", n + 1
        self._taken.add(found)
        return found

    def concat(self, values: Sequence[str], *, name: str) -> str:
        """The values side by side; one alone stays what it is."""
        return values[0] if len(values) == 1 else self.builder.concat(values, name=self.name(name))

    def columns(self, value: str, n: int) -> list[str]:
        """The value cut into n equal pieces."""
        if n == 1:
            return [value]
        width = self.builder.width(value) // n
        return [self.builder.slice(value, i * width, width) for i in range(n)]

    def linear(self, x: str, layers: Sequence[nn.Linear], *, name: str) -> str:
        """Linear layers that read the same ``x``, their outputs side by side, as one product."""
        w = self.builder.weight(f"{name}.w", np.concatenate([array(layer.weight) for layer in layers]))
        b = self._bias(layers, name=name)
        return self.builder.affine(x, w=w, b=b, name=self.name(name))

    def mlps(self, x: str, siblings: Sequence[nn.Sequential], *, shared_x: bool, name: str) -> str:
        """Sequences of equal shape, their outputs side by side.

        Parameters
        ----------
        x : str
            The input of every sibling (``shared_x``), or their inputs side by side.
        siblings : sequence of nn.Sequential
            Of Linear, BatchNorm1d, Dropout and activations.
        """
        groups = len(siblings)
        value, depth = x, 0
        steps = [list(each) for each in siblings]
        if len({len(each) for each in steps}) != 1:
            raise ConversionError(f"{name}: siblings must have as many layers each, found {[len(e) for e in steps]}")
        position = 0
        while position < len(steps[0]):
            layers = [each[position] for each in steps]
            if len({type(layer) for layer in layers}) != 1:
                raise ConversionError(f"{name}: layer {position} differs between siblings: {layers}")
            here, first = f"{name}.{depth}", layers[0]
            position += 1
            if isinstance(first, nn.Dropout):
                continue
            if isinstance(first, nn.Linear):
                following = [each[position] for each in steps] if position < len(steps[0]) else []
                act = self._activation(following) if following else None
                position += act is not None
                value = self._grouped(
                    value,
                    layers,
                    shared_x=shared_x and depth == 0 and groups > 1,
                    act=act or _Activation("none"),
                    name=here,
                )
                depth += 1
            elif isinstance(first, nn.BatchNorm1d):
                value = self._batch_norm(value, layers, name=f"{name}.{depth - 1}.batch_norm")
            elif (act := self._activation(layers)) is not None:
                name_here = f"{name}.{depth - 1}.{act.fn}"
                slope = None if act.slope is None else self.builder.weight(f"{name_here}.slope", act.slope)
                value = self.builder.activation(value, act.fn, alpha=act.alpha, slope=slope, name=self.name(name_here))
            else:
                raise ConversionError(f"{name}: a {type(first).__name__} in an MLP has no counterpart in a graph")
        return value

    def _grouped(self, x: str, layers: Sequence[nn.Module], *, shared_x: bool, act: _Activation, name: str) -> str:
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        weights = [array(layer.weight) for layer in linears]
        if len({w.shape for w in weights}) != 1:
            raise ConversionError(
                f"{name}: siblings must have weights of one shape, found {[w.shape for w in weights]}"
            )
        w = self.builder.weight(f"{name}.w", np.stack(weights) if len(weights) > 1 else weights[0])
        slope = None if act.slope is None else self.builder.weight(f"{name}.slope", act.slope)
        return self.builder.affine(
            x,
            w=w,
            b=self._bias(linears, name=name),
            groups=len(linears),
            shared_x=shared_x,
            activation=act.fn,
            alpha=act.alpha,
            slope=slope,
            name=self.name(name),
        )

    def _bias(self, layers: Sequence[nn.Linear], *, name: str) -> str | None:
        if all(layer.bias is None for layer in layers):
            return None
        biases = [
            np.zeros(layer.out_features, np.float32) if layer.bias is None else array(layer.bias) for layer in layers
        ]
        return self.builder.weight(f"{name}.b", np.concatenate(biases))

    def _batch_norm(self, x: str, layers: Sequence[nn.Module], *, name: str) -> str:
        norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm1d)]
        if len({norm.eps for norm in norms}) != 1:
            raise ConversionError(f"{name}: siblings must have one eps, found {[norm.eps for norm in norms]}")
        parts: dict[str, list[NDArray[np.float32]]] = {"scale": [], "shift": [], "mean": [], "var": []}
        for norm in norms:
            if norm.running_mean is None or norm.running_var is None:
                raise ConversionError(
                    f"{name}: a BatchNorm without running statistics depends on the batch, not the row"
                )
            parts["mean"].append(array(norm.running_mean))
            parts["var"].append(array(norm.running_var))
            parts["scale"].append(array(norm.weight) if norm.affine else np.ones(norm.num_features, np.float32))
            parts["shift"].append(array(norm.bias) if norm.affine else np.zeros(norm.num_features, np.float32))
        weights = {role: self.builder.weight(f"{name}.{role}", np.concatenate(each)) for role, each in parts.items()}
        return self.builder.batch_norm(
            x,
            scale=weights["scale"],
            shift=weights["shift"],
            mean=weights["mean"],
            var=weights["var"],
            eps=norms[0].eps,
            name=self.name(name),
        )

    def _activation(self, siblings: Sequence[nn.Module]) -> _Activation | None:
        found = [_activation(each) for each in siblings]
        if any(each is None for each in found):
            return None
        known = [each for each in found if each is not None]
        if len({(each.fn, each.alpha) for each in known}) != 1:
            raise ConversionError(f"activations of siblings differ: {list(siblings)}")
        slopes = [each.slope for each in known if each.slope is not None]
        return known[0]._replace(slope=np.concatenate(slopes) if slopes else None)


def _activation(module: nn.Module) -> _Activation | None:
    """The graph's activation that this module computes; None for a module that is no activation."""
    match module:
        case nn.ReLU():
            return _Activation("relu")
        case nn.LeakyReLU():
            return _Activation("leaky_relu", alpha=float(module.negative_slope))
        case nn.PReLU():
            return _Activation("prelu", slope=array(module.weight))
        case nn.ELU():
            return _Activation("elu", alpha=float(module.alpha))
        case nn.Sigmoid():
            return _Activation("sigmoid")
        case nn.Tanh():
            return _Activation("tanh")
        case nn.SiLU():
            return _Activation("silu")
        case nn.GELU():
            return _Activation("gelu" if module.approximate == "none" else "gelu_tanh")
        case nn.Softplus() if module.beta == 1:
            return _Activation("softplus")
    return None


def array(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's values in float32."""
    return tensor.detach().cpu().float().numpy()
