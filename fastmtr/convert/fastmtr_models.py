"""Converters of the models in :mod:`fastmtr.models`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from fastmtr.convert.layers import Writer, array
from fastmtr.convert.registry import Conversion, Options
from fastmtr.errors import ConversionError
from fastmtr.graph import DOMAINS, Domain, Graph, Packed
from fastmtr.models.base import MultiTaskModel
from fastmtr.models.esmm import ESMM
from fastmtr.models.layers import InputLayer, Rows
from fastmtr.models.mmoe import MMoE
from fastmtr.models.ple import PLE, ExtractionLevel
from fastmtr.models.shared_bottom import SharedBottom
from fastmtr.models.two_tower import TwoTower

__all__ = ["convert_model"]


def convert_model(model: MultiTaskModel, options: Options) -> Conversion:
    """The conversion of a model of :mod:`fastmtr.models`, which knows its own inputs and tasks."""
    for kind in type(model).__mro__:
        if kind in _GRAPHS:
            return Conversion(_GRAPHS[kind](model), _Source(model), options.sample)
    known = sorted(kind.__name__ for kind in _GRAPHS)
    raise ConversionError(f"no converter for a {type(model).__name__} of fastmtr; there are converters for {known}")


class _Source:
    """The torch model that a graph was made from."""

    def __init__(self, model: MultiTaskModel) -> None:
        self._model = copy.deepcopy(model).eval()

    @property
    def name(self) -> str:
        return f"fastmtr {type(self._model).__name__}"

    def score(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        rows = {domain: _tensors(each) for domain, each in packed.items()}
        with torch.inference_mode():
            found = self._model.probabilities(rows["request"], rows["item"], rows.get("candidate"))
            outputs = {task: p[:, None].numpy() for task, p in found.items()}
            if self._model.two_tower is not None:
                outputs["user_vector"] = self._model.user_vector(rows["request"]).numpy()
                outputs["item_vector"] = self._model.item_vector(rows["item"]).numpy()
        return outputs

    def layers(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        return {}


def _tensors(packed: Packed) -> Rows:
    return torch.from_numpy(packed.ids), torch.from_numpy(packed.dense)


def _shared_bottom(model: SharedBottom) -> Graph:
    w = Writer(model.inputs.inputs)
    domains = _inputs(w, model.inputs)
    shared = w.mlps(_join(w, domains), [model.bottom], shared_x=False, name="bottom")
    return _finish(w, model, _logits(w, model, [shared]), domains)


def _mmoe(model: MMoE) -> Graph:
    w = Writer(model.inputs.inputs)
    domains = _inputs(w, model.inputs)
    x = _join(w, domains)
    experts = _experts(w, [(x, each) for each in model.experts], name="experts")
    gates = _gates(w, [(x, each) for each in model.gates], name="gates")
    mixed = [
        w.builder.mixture(gate, experts, name=w.name(f"mixture.{task.name}"))
        for task, gate in zip(model.tasks, gates, strict=True)
    ]
    return _finish(w, model, _logits(w, model, mixed), domains)


def _ple(model: PLE) -> Graph:
    w = Writer(model.inputs.inputs)
    domains = _inputs(w, model.inputs)
    x = _join(w, domains)
    tasks, shared = [x] * len(model.tasks), x
    for i, level in enumerate(model.levels):
        assert isinstance(level, ExtractionLevel)
        tasks, shared = _extraction_level(w, level, tasks, shared, names=[t.name for t in model.tasks], at=f"level{i}")
    return _finish(w, model, _logits(w, model, tasks), domains)


def _esmm(model: ESMM) -> Graph:
    w = Writer(model.inputs.inputs)
    domains = _inputs(w, model.inputs)
    return _finish(w, model, _logits(w, model, [_join(w, domains)]), domains, chains=model.chains)


_GRAPHS: dict[type, Callable[[Any], Graph]] = {SharedBottom: _shared_bottom, MMoE: _mmoe, PLE: _ple, ESMM: _esmm}


def _inputs(w: Writer, layer: InputLayer) -> dict[str, str]:
    """The joined inputs of each domain that has any."""
    tables: dict[str, str] = {}
    domains: dict[str, str] = {}
    for domain in DOMAINS:
        values: list[str] = []
        for each in layer.inputs:
            if each.domain != domain:
                continue
            if each.kind == "dense":
                values.append(each.name)
                continue
            key = layer.table_of[each.name]
            if key not in tables:
                tables[key] = w.builder.weight(f"embeddings.{key}", array(layer.table(each).weight))
            name, mode = w.name(f"{each.name}.embedding"), layer.pooling[each.name]
            if mode is None:
                values.append(w.builder.embedding(each.name, tables[key], name=name))
            else:
                values.append(
                    w.builder.embedding_bag(each.name, tables[key], mode=mode, padding=each.padding, name=name)
                )
        if values:
            domains[domain] = w.concat(values, name=f"{domain}_inputs")
    return domains


def _join(w: Writer, domains: dict[str, str]) -> str:
    return w.concat(list(domains.values()), name="inputs")


def _experts(w: Writer, experts: Sequence[tuple[str, nn.Module]], *, name: str) -> list[str]:
    """Each expert's output, in order; those that read the same value are computed together."""
    readers: dict[str, list[int]] = {}
    for i, (x, _) in enumerate(experts):
        readers.setdefault(x, []).append(i)
    outputs = [""] * len(experts)
    for n, (x, positions) in enumerate(readers.items()):
        siblings = [_sequential(experts[i][1]) for i in positions]
        here = name if len(readers) == 1 else f"{name}.{n}"
        joined = w.mlps(x, siblings, shared_x=True, name=here)
        for i, piece in zip(positions, w.columns(joined, len(positions)), strict=True):
            outputs[i] = piece
    return outputs


def _gates(w: Writer, gates: Sequence[tuple[str, nn.Module]], *, name: str) -> list[str]:
    """Each gate's softmax; gates of one size that read the same value are computed together."""
    alike: dict[tuple[str, int], list[int]] = {}
    layers = [_linear(gate) for _, gate in gates]
    for i, ((x, _), layer) in enumerate(zip(gates, layers, strict=True)):
        alike.setdefault((x, layer.out_features), []).append(i)
    outputs = [""] * len(gates)
    for n, ((x, size), positions) in enumerate(alike.items()):
        here = name if len(alike) == 1 else f"{name}.{n}"
        logits = w.linear(x, [layers[i] for i in positions], name=here)
        weights = w.builder.softmax(logits, size=size, name=w.name(f"{here}.softmax"))
        for i, piece in zip(positions, w.columns(weights, len(positions)), strict=True):
            outputs[i] = piece
    return outputs


def _extraction_level(
    w: Writer, level: ExtractionLevel, tasks: list[str], shared: str, *, names: Sequence[str], at: str
) -> tuple[list[str], str]:
    pairs: list[tuple[str, nn.Module]] = [(shared, each) for each in level.shared_experts]
    n_shared = len(pairs)
    for x, own in zip(tasks, level.task_experts, strict=True):
        assert isinstance(own, nn.ModuleList)
        pairs += [(x, each) for each in own]
    experts = _experts(w, pairs, name=f"{at}.experts")
    gates = [(x, gate) for x, gate in zip(tasks, level.task_gates, strict=True)]
    if level.shared_gate is not None:
        gates.append((shared, level.shared_gate))
    weights = _gates(w, gates, name=f"{at}.gates")
    each_own = (len(experts) - n_shared) // len(tasks)
    mixed = []
    for i, task in enumerate(names):
        start = n_shared + i * each_own
        seen = experts[:n_shared] + experts[start : start + each_own]
        mixed.append(w.builder.mixture(weights[i], seen, name=w.name(f"{at}.mixture.{task}")))
    if level.shared_gate is None:
        return mixed, shared
    return mixed, w.builder.mixture(weights[-1], experts, name=w.name(f"{at}.mixture.shared"))


def _logits(w: Writer, model: MultiTaskModel, inputs: Sequence[str]) -> str:
    """The outputs of the towers side by side; they read one value, or one each."""
    towers = [_sequential(tower) for tower in model.towers]
    shared_x = len(inputs) == 1
    x = inputs[0] if shared_x else w.concat(inputs, name="tower_inputs")
    return w.mlps(x, towers, shared_x=shared_x, name="towers")


def _finish(
    w: Writer,
    model: MultiTaskModel,
    logits: str,
    domains: dict[str, str],
    *,
    chains: Sequence[Sequence[int]] | None = None,
) -> Graph:
    """The outputs: a probability or a value a task, and the vectors of the retrieval head."""
    binary = [task.kind == "binary" for task in model.tasks]
    n = len(model.tasks)
    if all(binary):
        own = w.columns(w.builder.activation(logits, "sigmoid", name=w.name("probabilities")), n)
    else:
        own = [
            w.builder.activation(column, "sigmoid") if is_binary else column
            for column, is_binary in zip(w.columns(logits, n), binary, strict=True)
        ]
    for i, task in enumerate(model.tasks):
        value, *others = [own[j] for j in chains[i]] if chains is not None else [own[i]]
        for other in others:
            value = w.builder.mul(value, other)
        w.builder.output(task.name, value)
    if model.two_tower is not None:
        _two_tower(w, model.two_tower, domains)
    return w.builder.build()


def _two_tower(w: Writer, head: TwoTower, domains: dict[str, str]) -> None:
    for domain, name, tower in (("request", "user_vector", head.user), ("item", "item_vector", head.item)):
        value = w.mlps(domains[domain], [tower], shared_x=False, name=name)
        if head.config.normalize:
            value = w.builder.l2_normalize(value, eps=1e-12, name=w.name(f"{name}.normalized"))
        w.builder.output(name, value, role="request" if domain == "request" else "item")


def _sequential(module: nn.Module) -> nn.Sequential:
    assert isinstance(module, nn.Sequential)
    return module


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
