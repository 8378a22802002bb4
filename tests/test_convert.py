"""Conversion: the graph of a model computes what the model does, in float64 to rounding."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from model_inputs import CONFIGS, INPUTS, SCHEMA, TWO_TOWER, as_tensors, random_rows
from torch import nn

import fastmtr
from fastmtr import reference
from fastmtr.convert import Conversion, Options, convert, register
from fastmtr.convert.registry import _CONVERTERS
from fastmtr.errors import ConversionError
from fastmtr.graph import Graph, Input
from fastmtr.models import MultiTaskModel, build_model
from fastmtr.schema import Task

TYPES = sorted(CONFIGS)


def trained(name: str, *, seed: int = 0, schema=SCHEMA, **changes: object) -> MultiTaskModel:
    """A model with weights and BatchNorm statistics that are not those of the start."""
    config = msgspec.structs.replace(CONFIGS[name], two_tower=TWO_TOWER, embedding_std=0.7, **changes)
    model = build_model(config, INPUTS, schema=schema, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor_name.endswith("running_var") or "slope" in tensor_name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor_name.endswith(("running_mean", "bias")):
                tensor.normal_(generator=generator)
    return model


def compare(model: MultiTaskModel, n: int = 40, *, atol: float = 1e-12, request_rows: int | None = None) -> Graph:
    graph = convert(model).graph
    packed = random_rows(n)
    if request_rows is not None:
        packed["request"] = packed["request"].take(range(request_rows))
    exact = copy.deepcopy(model).double().eval()
    request, item, candidate = as_tensors(packed, dtype=torch.float64)
    found = reference.evaluate(graph, packed)
    with torch.no_grad():
        expected = exact.probabilities(request, item, candidate)
        vectors = {"user_vector": exact.user_vector(request), "item_vector": exact.item_vector(item)}
        single = model.eval().probabilities(*as_tensors(packed))
    for task, p in expected.items():
        np.testing.assert_allclose(found[task][:, 0], p.numpy(), rtol=0, atol=atol, err_msg=task)
        np.testing.assert_allclose(found[task][:, 0], single[task].numpy(), rtol=0, atol=1e-5, err_msg=task)
    for output, vector in vectors.items():
        np.testing.assert_allclose(found[output], vector.numpy(), rtol=0, atol=atol, err_msg=output)
    assert graph.tasks == tuple(expected)
    return graph


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_graph_computes_the_model(name: str, batch_norm: bool) -> None:
    compare(trained(name, batch_norm=batch_norm, dropout=0.3))


@pytest.mark.parametrize("name", TYPES)
def test_one_request_row_for_all_candidates(name: str) -> None:
    compare(trained(name), request_rows=1)


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "prelu", "elu", "sigmoid", "tanh", "silu", "gelu", "softplus"]
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_activation(activation: str, batch_norm: bool) -> None:
    # torch's softplus is linear beyond 20, where the exact one still differs by 2e-9
    compare(
        trained("mmoe", activation=activation, batch_norm=batch_norm), atol=1e-8 if activation == "softplus" else 1e-12
    )


@pytest.mark.parametrize("name", TYPES)
def test_regression_beside_binary_tasks(name: str) -> None:
    schema = msgspec.structs.replace(SCHEMA, tasks=(*SCHEMA.tasks, Task(name="watch", kind="regression")))
    compare(trained(name, schema=schema))


@pytest.mark.parametrize("name", TYPES)
def test_one_task(name: str) -> None:
    schema = msgspec.structs.replace(SCHEMA, tasks=(Task(name="click"),))
    compare(trained(name, schema=schema))


def test_unusual_shapes() -> None:
    compare(trained("mmoe", experts=1, tower=()))
    compare(trained("ple", levels=3, shared_experts=1, task_experts=1))
    compare(trained("ple", levels=1))
    compare(trained("esmm", tower=()))


def test_siblings_become_one_product() -> None:
    graph = convert(trained("mmoe")).graph
    affine = {n.output: n for n in graph.nodes if n.op == "affine"}
    assert affine["experts.0"].attrs["groups"] == 3
    assert affine["experts.0"].attrs["shared_x"]
    assert affine["experts.1"].attrs["groups"] == 3
    assert not affine["experts.1"].attrs["shared_x"]
    assert graph.weights["gates.w"].shape == (3 * 3, graph.width("inputs"))


def test_the_history_and_the_item_share_one_table() -> None:
    graph = convert(trained("shared_bottom")).graph
    tables = {n.inputs[0]: n.weights["table"] for n in graph.nodes if "table" in n.weights}
    assert tables["history"] == tables["item"]
    assert [i.name for i in graph.inputs] == [i.name for i in INPUTS]


def test_a_graph_survives_the_round_trip_through_json() -> None:
    graph = convert(trained("ple")).graph
    again = Graph.from_json(graph.to_json(), graph.weights)
    packed = random_rows(5)
    for output, values in reference.evaluate(graph, packed).items():
        np.testing.assert_array_equal(reference.evaluate(again, packed)[output], values)


def test_input_names_like_those_of_the_layers_do_no_harm() -> None:
    renamed = {"user": "inputs", "age": "experts.0"}
    inputs = tuple(_rename(i, renamed) for i in INPUTS)
    features = tuple(msgspec.structs.replace(f, name=renamed.get(f.name, f.name)) for f in SCHEMA.features)
    schema = msgspec.structs.replace(SCHEMA, features=features)
    graph = convert(build_model(CONFIGS["mmoe"], inputs, schema=schema)).graph
    assert "inputs_2" in {n.output for n in graph.nodes}


def test_training_mode_does_not_matter() -> None:
    model = trained("shared_bottom", batch_norm=True, dropout=0.5)
    evaluated = reference.evaluate(convert(model.eval()).graph, random_rows(4))
    for output, values in reference.evaluate(convert(model.train()).graph, random_rows(4)).items():
        np.testing.assert_array_equal(evaluated[output], values)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConversionError, match="no converter for a model of type 'dict' from 'builtins'; there are"):
        convert({})


def test_the_source_scores_as_the_graph() -> None:
    packed = random_rows(9)
    conversion = convert(trained("mmoe", batch_norm=True, dropout=0.3).train())
    found = reference.evaluate(conversion.graph, packed)
    for output, values in conversion.source.score(packed).items():
        np.testing.assert_allclose(found[output], values, rtol=0, atol=1e-5)
    assert conversion.source.name == "fastmtr MMoE"


def test_the_package_is_the_function_of_its_name() -> None:
    model = trained("ple")
    assert fastmtr.convert(model).graph.to_json() == convert(model).graph.to_json()


def test_a_module_without_counterpart_is_refused() -> None:
    model = trained("shared_bottom")
    model.bottom[1] = nn.Softmax(dim=1)
    with pytest.raises(ConversionError, match="a Softmax in an MLP has no counterpart"):
        convert(model)
    model = trained("mmoe")
    model.experts[0][1] = nn.Tanh()
    with pytest.raises(ConversionError, match="differ"):
        convert(model)
    model = trained("mmoe")
    model.experts[1][0] = nn.Linear(model.inputs.out_width, 3)
    with pytest.raises(ConversionError, match="one shape"):
        convert(model)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    model = trained("mmoe")
    with torch.no_grad():
        model.experts[0][0].weight[0, 0] = torch.nan
    with pytest.raises(ConversionError, match="not finite"):
        convert(model)


def test_other_models_can_register(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(nn.Module):
        pass

    class Derived(Base):
        pass

    known = convert(trained("mmoe"))
    monkeypatch.setattr("fastmtr.convert.registry._CONVERTERS", dict(_CONVERTERS))

    @register(Base)
    def _base(model: Base, options: Options) -> Conversion:
        return known

    assert convert(Derived()) is known


def _rename(i: Input, names: dict[str, str]) -> Input:
    return Input(names.get(i.name, i.name), i.domain, i.kind, i.offset, i.width, rows=i.rows, padding=i.padding)
