"""The models: shapes, the papers' formulas recomputed by hand, gradients, and what they refuse."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from model_inputs import CONFIGS, INPUTS, SCHEMA, TWO_TOWER, as_tensors, random_rows

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.graph import Input
from fastmtr.models import ESMM, PLE, MMoE, ModelConfig, SharedBottom, build_model
from fastmtr.models.esmm import product_logit
from fastmtr.schema import Feature, Schema, Task

TYPES = sorted(CONFIGS)


def build(name: str, **changes: object):
    return build_model(msgspec.structs.replace(CONFIGS[name], **changes), INPUTS, schema=SCHEMA)


@pytest.mark.parametrize("name", TYPES)
def test_a_model_gives_one_number_a_row_and_task(name: str) -> None:
    model = build(name).eval()
    rows = as_tensors(random_rows(7))
    logits = model(*rows)
    assert list(logits) == ["click", "buy", "like"]
    assert all(v.shape == (7,) and torch.isfinite(v).all() for v in logits.values())
    for task, p in model.probabilities(*rows).items():
        assert torch.allclose(p, torch.sigmoid(logits[task]))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_reach_every_parameter(name: str, batch_norm: bool) -> None:
    model = build(name, batch_norm=batch_norm, activation="tanh", two_tower=TWO_TOWER, embedding_std=0.5)
    request, item, candidate = as_tensors(random_rows(64))
    total = sum(v.square().sum() for v in model(request, item, candidate).values())
    total = total + (model.user_vector(request) * model.item_vector(item).roll(1, 0)).sum()
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        # A bias before BatchNorm is taken out again by the mean: its gradient is rounding noise, but it is there.
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", TYPES)
def test_one_request_row_stands_for_all_candidates(name: str) -> None:
    model = build(name).eval()
    packed = random_rows(6)
    packed["request"] = packed["request"].take([2])
    one = model(*as_tensors(packed))
    packed["request"] = packed["request"].take([0] * 6)
    for task, repeated in model(*as_tensors(packed)).items():
        torch.testing.assert_close(one[task], repeated)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(CONFIGS["mmoe"], INPUTS, schema=SCHEMA, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second = build_model(CONFIGS["mmoe"], INPUTS, schema=SCHEMA, seed=1)
    other = build_model(CONFIGS["mmoe"], INPUTS, schema=SCHEMA, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_input_layer_pools_without_padding_and_shares_the_history_table() -> None:
    layer = build("mmoe").inputs
    assert layer.table_of["history"] == layer.table_of["item"]
    packed = random_rows(4)
    packed["request"].ids[1, 1:6] = [3, 5, 0, 0, 0]
    request, item, _ = as_tensors(packed)
    x = layer.embed("request", request)
    table = layer.table(INPUTS[5]).weight
    history = x[:, 6:10]
    assert torch.equal(history[0], torch.zeros(4)), "an empty history is zeros"
    torch.testing.assert_close(history[1], (table[3] + table[5]) / 2)
    topics = layer.table(INPUTS[2]).weight
    ids = request[0][2, 6:10]
    torch.testing.assert_close(x[2, 10:13], sum(topics[i] for i in ids if i != 0))
    tags = layer.table(INPUTS[6]).weight
    chosen = [int(i) for i in item[0][3, 1:4] if i != 0]
    torch.testing.assert_close(layer.embed("item", item)[3, 4:7], tags[chosen].max(dim=0).values)


def test_the_embeddings_of_several_hashes_are_added_and_wide_numbers_pass() -> None:
    layer = build("mmoe").inputs
    ids, dense = as_tensors(random_rows(4))[2]
    shop = layer.table(INPUTS[9]).weight
    expected = torch.cat([dense[:, :1], shop[ids[:, 0].long()] + shop[ids[:, 1].long()], dense[:, 1:3]], dim=1)
    torch.testing.assert_close(layer.embed("candidate", (ids, dense)), expected)
    assert layer.widths["candidate"] == 1 + 3 + 2


def test_a_categorical_learns_its_missing_row_though_the_history_pads_with_it() -> None:
    model = build("shared_bottom", embedding_std=1.0).eval()
    packed = random_rows(2)
    packed["item"].ids[:, 0] = 0
    table = model.inputs.table(INPUTS[5]).weight
    assert torch.equal(model.inputs.embed("item", as_tensors(packed)[1])[0, :4], table[0])
    assert table[0].abs().sum() > 0


def test_shared_bottom_is_towers_on_one_trunk() -> None:
    model = build("shared_bottom").eval()
    assert isinstance(model, SharedBottom)
    rows = as_tensors(random_rows(3))
    shared = model.bottom(model.inputs(*rows))
    torch.testing.assert_close(model(*rows)["like"], model.towers[2](shared).squeeze(1))


def test_mmoe_is_a_gated_sum_of_experts() -> None:
    model = build("mmoe").eval()
    assert isinstance(model, MMoE)
    rows = as_tensors(random_rows(3))
    x = model.inputs(*rows)
    gate = torch.softmax(x @ model.gates[1].weight.T, dim=1)
    mixed = sum(gate[:, e : e + 1] * expert(x) for e, expert in enumerate(model.experts))
    torch.testing.assert_close(model(*rows)["buy"], model.towers[1](mixed).squeeze(1))


def test_ple_gates_see_shared_and_own_experts() -> None:
    model = build("ple").eval()
    assert isinstance(model, PLE)
    rows = as_tensors(random_rows(3))
    x = model.inputs(*rows)

    def mix(gate, of, experts):
        weights = torch.softmax(of @ gate.weight.T, dim=1)
        assert weights.shape[1] == len(experts)
        return sum(weights[:, e : e + 1] * experts[e] for e in range(len(experts)))

    first, second = model.levels
    shared = [e(x) for e in first.shared_experts]
    own = [[e(x) for e in experts] for experts in first.task_experts]
    everything = shared + own[0] + own[1] + own[2]
    to_task = mix(first.task_gates[2], x, shared + own[2])
    to_shared = mix(first.shared_gate, x, everything)
    assert second.shared_gate is None
    seen = [e(to_shared) for e in second.shared_experts] + [e(to_task) for e in second.task_experts[2]]
    like = model.towers[2](mix(second.task_gates[2], to_task, seen)).squeeze(1)
    torch.testing.assert_close(model(*rows)["like"], like)


def test_esmm_multiplies_along_the_chain() -> None:
    model = build("esmm").eval()
    assert isinstance(model, ESMM)
    rows = as_tensors(random_rows(5))
    x = model.inputs(*rows)
    click, buy_given_click, like = (torch.sigmoid(tower(x)).squeeze(1) for tower in model.towers)
    p = model.probabilities(*rows)
    torch.testing.assert_close(p["click"], click)
    torch.testing.assert_close(p["buy"], click * buy_given_click)
    torch.testing.assert_close(p["like"], like)


def test_the_logit_of_a_product_is_finite_at_both_ends() -> None:
    z = torch.tensor([-200.0, -5.0, 0.0, 3.0, 200.0], requires_grad=True)
    logit = product_logit([z, z])
    assert torch.isfinite(logit).all()
    torch.testing.assert_close(torch.sigmoid(logit), torch.sigmoid(z) ** 2)
    torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.ones(5)).backward()
    assert torch.isfinite(z.grad).all()


def test_esmm_refuses_a_chain_it_cannot_multiply() -> None:
    with pytest.raises(ConfigError, match="'buy' depends on 'click', which is not among"):
        build_model(CONFIGS["esmm"], INPUTS, schema=SCHEMA, tasks=["buy"])
    tasks = (Task(name="watch", kind="regression"), Task(name="finish", depends_on="watch"))
    with pytest.raises(ConfigError, match="'watch' is a regression"):
        build_model(CONFIGS["esmm"], INPUTS, schema=msgspec.structs.replace(SCHEMA, tasks=tasks))


def test_a_regression_task_is_a_plain_value() -> None:
    schema = msgspec.structs.replace(SCHEMA, tasks=(Task(name="click"), Task(name="watch", kind="regression")))
    model = build_model(CONFIGS["esmm"], INPUTS, schema=schema).eval()
    rows = as_tensors(random_rows(4))
    assert torch.equal(model(*rows)["watch"], model.probabilities(*rows)["watch"])


def test_retrieval_vectors_have_length_one_unless_told_otherwise() -> None:
    request, item, _ = as_tensors(random_rows(4))
    model = build("mmoe", two_tower=TWO_TOWER).eval()
    for vector in (model.user_vector(request), model.item_vector(item)):
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(4))
    plain = build("mmoe", two_tower=msgspec.structs.replace(TWO_TOWER, normalize=False)).eval()
    torch.testing.assert_close(plain.item_vector(item), plain.two_tower.item(plain.inputs.embed("item", item)))


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    request, item, _ = as_tensors(random_rows(3))
    with pytest.raises(ConfigError, match="no retrieval head"):
        build("mmoe").user_vector(request)
    with pytest.raises(SchemaError, match="candidate features \\['position', 'shop'"):
        build("mmoe")(request, item)
    longer = Input("history", "request", "ids", 1, 5, rows=12, padding=0)
    with pytest.raises(SchemaError, match="share an embedding table"):
        build_model(CONFIGS["mmoe"], [longer if i.name == longer.name else i for i in INPUTS], schema=SCHEMA)
    with pytest.raises(SchemaError, match="no feature is named 'other'"):
        build_model(CONFIGS["mmoe"], [Input("other", "item", "ids", 0, 1, rows=3)], schema=SCHEMA)
    with pytest.raises(SchemaError, match="how many rows"):
        build_model(CONFIGS["mmoe"], [Input("item", "item", "ids", 0, 1)], schema=SCHEMA)
    with pytest.raises(SchemaError, match="at least one input"):
        build_model(CONFIGS["mmoe"], [], schema=SCHEMA)
    with pytest.raises(SchemaError, match="features of the request"):
        build_model(msgspec.structs.replace(CONFIGS["mmoe"], two_tower=TWO_TOWER), [INPUTS[5]], schema=SCHEMA)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experts": 0}, "experts must be at least 1"),
        ({"expert": ()}, "at least one layer in 'expert'"),
        ({"tower": (64, 0)}, "tower must be at least 1"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_a_configuration_is_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**wrong)


def test_the_reference_workload_can_be_built_from_a_plain_list_of_inputs() -> None:
    features, inputs = [], []
    for domain, entity, letter in (("request", "user", "u"), ("item", "item", "i")):
        for n in range(12 if letter == "u" else 8):
            features.append(Feature(name=f"{letter}{n}", entity=entity, kind="categorical"))
            inputs.append(Input(f"{letter}{n}", domain, "ids", n, 1, rows=20))
        for n in range(8):
            features.append(Feature(name=f"{letter}d{n}", entity=entity, kind="numeric"))
            inputs.append(Input(f"{letter}d{n}", domain, "dense", n, 1))
    features.append(Feature(name="history", entity="user", kind="sequence", of="i0", length=50))
    inputs.append(Input("history", "request", "ids", 12, 50, rows=20, padding=0))
    schema = Schema(user="u0", item="i0", features=tuple(features), tasks=tuple(Task(name=f"t{n}") for n in range(3)))
    model = build_model(ModelConfig(type="mmoe"), inputs, schema=schema)
    assert model.inputs.widths == {"request": 216, "item": 136, "candidate": 0}
    layers = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("experts", "gates", "towers")))
    experts = 8 * (352 * 256 + 256 + 256 * 128 + 128)
    assert layers == experts + 3 * (352 * 8) + 3 * (128 * 64 + 64 + 64 + 1)
    assert np.isfinite([float(p.detach().sum()) for p in model.parameters()]).all()
