"""Any torch module through torch.export: what libraries write in their own ways becomes the same few operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fastmtr
from fastmtr import reference
from fastmtr.compiler import compile_graph
from fastmtr.convert.verify import verify
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.graph import Input
from fastmtr.schema import Feature, Schema, Task

torch.set_num_threads(1)
USERS, ITEMS, LENGTH, DIM = 13, 11, 6, 4
INPUTS = {"user": "user", "history": "user", "item": "item", "price": "item", "scores": "candidate"}


def sample(n: int = 23, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    history = rng.integers(1, ITEMS, (n, LENGTH)) * (np.arange(LENGTH) < rng.integers(0, LENGTH + 1, (n, 1)))
    history[0] = 0
    return {
        "user": rng.integers(0, USERS, n),
        "history": history,
        "item": rng.integers(0, ITEMS, n),
        "price": rng.normal(size=n).astype(np.float32),
        "scores": rng.normal(size=(n, 3)).astype(np.float32),
    }


class Net(nn.Module):
    """Embeddings, then whatever a test does with them: ``body(net, x, history, mask)`` of the joined vectors
    [n, 12], the history's embeddings [n, 6, 4] and where it is not padding [n, 6]."""

    def __init__(self, body: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        self.users, self.items = nn.Embedding(USERS, DIM), nn.Embedding(ITEMS, DIM, padding_idx=0)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        parts = [self.users(inputs["user"]), self.items(inputs["item"]), inputs["price"][:, None], inputs["scores"]]
        history = self.items(inputs["history"])
        return self.body(self, torch.cat(parts, dim=-1), history, inputs["history"] != 0)


def parameter(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*sizes) / sizes[-1] ** 0.5)


def head(x: Tensor) -> Tensor:
    return torch.sigmoid(x.flatten(1).sum(dim=1))


# ---- the same things, written in many ways ---------------------------------------------------------------------------


def experts_einsum(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    experts = torch.relu(torch.einsum("bi,eio->beo", x, net.w) + net.b)
    gates = torch.softmax(torch.einsum("bi,iet->bte", x, net.g), dim=-1)
    return torch.sigmoid(torch.einsum("bte,beo->bto", gates, experts).mean(dim=-1))


def experts_bmm(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    experts = torch.bmm(x.unsqueeze(0).expand(5, -1, -1), net.w).relu_()
    gate = net.gate(x).softmax(1)
    return head((gate.t().unsqueeze(-1) * experts).sum(0))


def experts_unbind(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    experts = torch.stack([torch.tanh(x @ w) for w in net.w.unbind(0)], dim=2)
    weights = F.softmax(net.norm(net.gate(x)), dim=-1).unsqueeze(1)
    return head(torch.matmul(weights, experts.transpose(1, 2)).squeeze(1))


def experts_expanded(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    experts = torch.cat([layer(x).unsqueeze(1) for layer in net.layers], dim=1)
    gate = net.gate(x).softmax(dim=1).unsqueeze(2).expand(-1, -1, 7)
    return head(torch.mul(gate, experts).sum(dim=1, keepdim=True))


def masked_mean(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (history * mask.unsqueeze(-1).float()).sum(dim=1) / count
    return head(net.out(torch.cat([x, mean], 1)))


def masked_extremes(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    most = history.masked_fill(~mask.unsqueeze(-1), -1e9).max(dim=1)[0]
    least = torch.where(mask[:, :, None], history, torch.full_like(history, 9.0)).amin(1)
    return head(net.out(torch.cat([x, most.clamp(-3, 3), least], 1)))


def target_attention(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    query = x[:, DIM : 2 * DIM].unsqueeze(1).repeat(1, LENGTH, 1)
    joined = torch.cat([query, history, query - history, query * history], dim=-1)
    weights = net.attention(joined).squeeze(-1).masked_fill(mask == 0, float("-inf"))
    weights = torch.where(mask.sum(1, keepdim=True) > 0, weights, 0.0)
    return head(net.out(torch.cat([x, torch.bmm(weights.softmax(1).unsqueeze(1), history).squeeze(1)], 1)))


def dice_and_prelu(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    y = net.prelu(net.out(x))
    p = torch.sigmoid(net.norm(y))
    return head(p * y + (1 - p) * net.alpha * y)


def sequence_layers(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    local = F.relu(net.conv(history.transpose(1, 2)))
    states, last = net.gru(history)
    return head(torch.cat([local.amax(dim=2), states[:, -2], last[-1], x], dim=1))


def self_attention(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    q, k, v = net.qkv(history).chunk(3, dim=-1)
    heads = [t.reshape(-1, LENGTH, 2, DIM // 2).transpose(1, 2) for t in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return head(net.norm(mixed + history)[:, 0] * x[:, :DIM])


def multihead(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    known = mask | (torch.arange(LENGTH) == 0)
    mixed, _ = net.attention(history, history, history, key_padding_mask=~known, need_weights=False)
    return head(mixed.mean(1) * x[:, :DIM])


def crosses(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    first = x * net.cross(x) + x
    second = x * (first @ net.u @ net.v + net.b) + first
    fields = torch.stack([x[:, :DIM], x[:, DIM : 2 * DIM], history[:, 0]], 1)
    fm = 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1)).sum(1, keepdim=True)
    pairs = (fields[:, [0, 0, 1]] * fields[:, [1, 2, 2]]).sum(-1)
    return head(torch.cat([second, fm, pairs], 1))


def interactions(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    maps = torch.einsum("bhd,bmd->bhmd", history, history[:, :3]).reshape(-1, 3 * LENGTH, DIM)
    return head(torch.relu(net.conv(maps)).sum(-1))


def normalised(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    cosine = (F.normalize(history, dim=-1) * F.normalize(x[:, :DIM], dim=1)[:, None]).sum(-1)
    z = net.norm(torch.cat([cosine, x.std(1, keepdim=True), x.norm(dim=1, keepdim=True)], 1))
    return torch.sigmoid((300 * z).log_softmax(1).mean(1) / 300 + z.logsumexp(1) - 2)


def odds_and_ends(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    y[:, :3].mul_(2)
    a, b = y.split([5, 7], dim=1)
    z = torch.cat([(3 - a) / 2, 1 / (1 + b.square()), torch.maximum(a, -a), b.cumsum(1), a.flip(1) * 0.3], 1)
    z = z.abs().clamp(0.1, 2).log1p()
    return torch.sigmoid(z.mean(-1) + torch.arange(5.0).mean() + z.new_zeros(z.shape[0], 1).squeeze(1))


def position_mask(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    length = mask.long().sum(1)
    seen = torch.arange(LENGTH) < length.unsqueeze(1)
    last = torch.arange(LENGTH) == length.unsqueeze(1) - 1
    return head((history * (seen & ~last).unsqueeze(2)).sum(1) + (history * last.float().unsqueeze(-1)).sum(1) * 0.3)


def masks_from_embeddings(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    known = history.sum(dim=-1) != 0
    mean = history.sum(1) / (known.float().sum(-1, keepdim=True) + 1e-12)
    weights = (history @ net.w).masked_fill_(mask.float() == 0, -1e9).softmax(-1)
    return head(torch.einsum("...t,...td->...d", weights, history) + mean)


def pairs_by_mask(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    upper = torch.triu(torch.ones(LENGTH, LENGTH), 1).bool()
    pairs = torch.bmm(history, history.transpose(1, 2))
    chosen = torch.masked_select(pairs, upper).view(-1, LENGTH * (LENGTH - 1) // 2)
    gates = net.gate(x).softmax(-1)
    return head(net.out(torch.cat([chosen, torch.einsum("ij..., ji -> j...", x.expand(3, -1, -1), gates)], 1)))


W = 2 * DIM + 4
BODIES: dict[str, Callable[[], Net]] = {
    "experts by einsum": lambda: Net(experts_einsum, w=parameter(5, W, 7), b=parameter(1, 5, 7), g=parameter(W, 5, 2)),
    "experts by bmm": lambda: Net(experts_bmm, w=parameter(5, W, 7), gate=nn.Linear(W, 5)),
    "experts unbound and stacked": lambda: Net(
        experts_unbind, w=parameter(5, W, 7), gate=nn.Linear(W, 5), norm=nn.BatchNorm1d(5)
    ),
    "experts expanded": lambda: Net(
        experts_expanded, layers=nn.ModuleList(nn.Linear(W, 7) for _ in range(4)), gate=nn.Linear(W, 4)
    ),
    "masked mean": lambda: Net(masked_mean, out=nn.Linear(W + DIM, 2)),
    "masked extremes": lambda: Net(masked_extremes, out=nn.Linear(W + 2 * DIM, 2)),
    "target attention": lambda: Net(
        target_attention,
        attention=nn.Sequential(nn.Linear(4 * DIM, 5), nn.PReLU(), nn.Linear(5, 1)),
        out=nn.Linear(W + DIM, 2),
    ),
    "dice and prelu": lambda: Net(
        dice_and_prelu, out=nn.Linear(W, 6), prelu=nn.PReLU(6), norm=nn.BatchNorm1d(6), alpha=parameter(6)
    ),
    "convolution and gru": lambda: Net(
        sequence_layers, conv=nn.Conv1d(DIM, 5, 3, padding=1), gru=nn.GRU(DIM, 5, num_layers=2, batch_first=True)
    ),
    "self-attention": lambda: Net(self_attention, qkv=nn.Linear(DIM, 3 * DIM), norm=nn.LayerNorm(DIM)),
    "multi-head attention": lambda: Net(multihead, attention=nn.MultiheadAttention(DIM, 2, batch_first=True)),
    "crosses": lambda: Net(crosses, cross=nn.Linear(W, W), u=parameter(W, 2), v=parameter(2, W), b=parameter(W)),
    "compressed interactions": lambda: Net(interactions, conv=nn.Conv1d(3 * LENGTH, 5, 1)),
    "normalised": lambda: Net(normalised, norm=nn.LayerNorm(LENGTH + 2)),
    "odds and ends": lambda: Net(odds_and_ends),
    "masks by position": lambda: Net(position_mask),
    "masks from embeddings": lambda: Net(masks_from_embeddings, w=parameter(DIM)),
    "pairs by a mask": lambda: Net(pairs_by_mask, gate=nn.Linear(W, 3), out=nn.Linear(W + 15, 2)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    net = BODIES[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", BODIES)
def test_the_graph_and_the_engine_give_the_modules_scores(name: str) -> None:
    module = made(name)
    conversion = fastmtr.convert(module, sample=sample(), inputs=INPUTS)
    exact = reference.evaluate(conversion.graph, conversion.sample)
    expected = conversion.source.score(conversion.sample)
    with torch.no_grad():
        direct = module({k: torch.from_numpy(v) for k, v in sample().items()}).reshape(23, -1).numpy()
    np.testing.assert_array_equal(np.concatenate(list(expected.values()), axis=1), direct)
    assert direct.std(axis=0).min() > 1e-3
    for task, scores in expected.items():
        np.testing.assert_allclose(exact[task], scores, rtol=0, atol=1e-6)
    assert verify(conversion).worst.engine <= 1e-5


@pytest.mark.parametrize("name", ["experts by einsum", "target attention", "self-attention", "convolution and gru"])
def test_inner_values_are_those_of_the_module(name: str) -> None:
    conversion = fastmtr.convert(made(name), sample=sample(140), inputs=INPUTS)
    layers = conversion.source.layers(conversion.sample)
    values = reference.evaluate_values(conversion.graph, conversion.sample)
    assert len(layers) > 5
    for layer, expected in layers.items():
        np.testing.assert_allclose(values[layer], expected, rtol=1e-5, atol=1e-5, err_msg=layer)


def ops(conversion: fastmtr.Conversion) -> list[str]:
    return [node.op for node in conversion.graph.nodes]


def test_many_ways_to_write_experts_are_few_operators() -> None:
    for name in ("experts by einsum", "experts by bmm", "experts unbound and stacked", "experts expanded"):
        conversion = fastmtr.convert(made(name), sample=sample(), inputs=INPUTS)
        assert {"affine", "softmax"} <= set(ops(conversion)), name
        assert "transpose" not in ops(conversion), name
        compiled = compile_graph(conversion.graph, n_items=1000)
        products = [s for s in compiled.plan["steps"] if s["op"] == "affine"]
        assert {s["domain"] for s in products} >= {"request", "item"}, name
        assert "mixture" in ops(conversion) or name == "experts by einsum", name


def test_the_query_of_target_attention_is_multiplied_once() -> None:
    """``[q, k, q - k, q * k] W`` takes q and k apart from the steps that repeat them."""
    graph = fastmtr.convert(made("target attention"), sample=sample(), inputs=INPUTS).graph
    products = [n for n in graph.nodes if n.op == "affine" and n.output.startswith("attention.0")]
    assert sorted((graph.domain(n.inputs[0]), n.attr("steps")) for n in products) == [
        ("candidate", LENGTH),
        ("item", 1),
        ("request", LENGTH),
    ]


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.silu, F.gelu, F.mish, F.softplus, F.softsign, F.tanh),
    *(F.hardswish, F.hardsigmoid, F.hardtanh, F.logsigmoid, F.glu),
    *(torch.exp, torch.abs, torch.square, torch.rsqrt, torch.expm1),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.softplus(x, beta=2),
    lambda x: x.pow(3),
]


@pytest.mark.parametrize("fn", ACTIVATIONS)
def test_activations(fn: Callable[[Tensor], Tensor]) -> None:
    def body(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        return head(fn(x * x + 0.1 if fn is torch.rsqrt else x) * 0.3)

    torch.manual_seed(0)
    conversion = fastmtr.convert(Net(body), sample=sample(), inputs=INPUTS)
    found = reference.evaluate(conversion.graph, conversion.sample)["task0"]
    np.testing.assert_allclose(found, conversion.source.score(conversion.sample)["task0"], rtol=0, atol=1e-6)


# ---- what a module takes and gives -----------------------------------------------------------------------------------


class TwoTasks(nn.Module):
    """Takes tensors one by one, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(USERS + ITEMS, DIM)
        self.out = nn.Linear(2 * DIM + 1, 2)
        self.register_buffer("offsets", torch.tensor([0, USERS]))

    def forward(self, ids: Tensor, price: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.embedding(ids + self.offsets).flatten(1), price.unsqueeze(1)], 1)
        click, like = self.out(x).unbind(1)
        return {"like": like, "click": click}


class Packed(nn.Module):
    """Takes one matrix and cuts it."""

    def __init__(self, inner: TwoTasks) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, matrix: Tensor) -> Tensor:
        found = self.inner(matrix[:, :2].long(), matrix[:, 3])
        return torch.stack([found["click"], found["like"]], -1).sigmoid()


def two_tasks() -> tuple[TwoTasks, np.ndarray]:
    torch.manual_seed(0)
    given = sample()
    matrix = np.stack([given["user"], given["item"], np.zeros(23), given["price"]], axis=1).astype(np.float32)
    return TwoTasks(), matrix


def test_arguments_in_every_form() -> None:
    module, matrix = two_tasks()
    ids, price = matrix[:, :2].astype(np.int64), matrix[:, 3]
    options: dict[str, Any] = {"inputs": INPUTS, "logits": True, "columns": {"user": 0, "item": 1}}
    by_position = fastmtr.convert(module, sample=(ids, price), **options)
    by_name = fastmtr.convert(module, sample={"price": torch.from_numpy(price), "ids": ids}, **options)
    columns = {"user": 0, "item": (1, 2), "price": (3, 4)}
    packed = fastmtr.convert(Packed(module), sample=matrix, columns=columns, inputs=INPUTS, tasks=["click", "like"])
    assert by_position.graph.tasks == by_name.graph.tasks == ("like", "click")
    assert packed.graph.tasks == ("click", "like")
    expected = by_position.source.score(by_position.sample)
    for conversion in (by_position, by_name, packed):
        assert verify(conversion).worst.engine <= 1e-5
        for task, scores in conversion.source.score(conversion.sample).items():
            np.testing.assert_allclose(scores, expected[task], rtol=0, atol=1e-6)
    # One table for users and items: each input has its own rows of it.
    assert [(i.name, i.rows) for i in packed.graph.inputs if i.kind == "ids"] == [("user", USERS), ("item", ITEMS)]
    with pytest.raises(ConversionError, match="the columns of 'ids' are ids of several features"):
        fastmtr.convert(module, sample=(ids, price), inputs={"ids": "candidate", "price": "item"})


def test_a_retrieval_head() -> None:
    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(USERS, DIM), nn.EmbeddingBag(ITEMS, DIM, mode="mean", padding_idx=0)

        def forward(self, user: Tensor, tags: Tensor) -> dict[str, Tensor]:
            u, i = F.normalize(self.users(user), dim=1), F.normalize(self.items(tags), dim=1)
            return {"click": torch.sigmoid(5 * (u * i).sum(1)), "user_vector": u, "item_vector": i}

    given = sample()
    tags = given["history"].copy()
    tags[0, 0] = 1
    conversion = fastmtr.convert(TwoTowers(), sample=(given["user"], tags), inputs={"user": "user", "tags": "item"})
    assert {o.name: o.role for o in conversion.graph.outputs} == {
        "click": "task",
        "user_vector": "request",
        "item_vector": "item",
    }
    assert next(i for i in conversion.graph.inputs if i.name == "tags").padding == 0
    assert {"embedding_bag", "l2_normalize", "dot"} <= set(ops(conversion))
    assert verify(conversion).worst.engine <= 1e-5


# ---- what inputs are functions of ------------------------------------------------------------------------------------


def plain() -> Net:
    torch.manual_seed(0)
    return Net(lambda net, x, history, mask: head(net.out(x)), out=nn.Linear(W, 1))


def domains(conversion: fastmtr.Conversion) -> dict[str, str]:
    return {i.name: i.domain for i in conversion.graph.inputs}


def test_domains_from_a_schema() -> None:
    features = tuple(
        Feature(name=n, entity=e, kind="numeric") for n, e in {**INPUTS, "user": "context", "other": "user"}.items()
    )
    schema = Schema(user="u", item="i", features=features, tasks=(Task(name="click"),))
    conversion = fastmtr.convert(plain(), sample=sample(), schema=schema)
    assert domains(conversion) == {"user": "request", "item": "item", "price": "item", "scores": "candidate"}
    assert conversion.graph.tasks == ("click",)


def test_domains_from_the_sample() -> None:
    given = sample(60)
    groups, items = np.repeat(np.arange(6), 10), np.tile(np.arange(10), 6)
    for name, keys in (("user", groups), ("item", items), ("price", items)):
        given[name] = given[name][keys]
    conversion = fastmtr.convert(plain(), sample=given, groups=groups, items=items)
    assert domains(conversion) == {"user": "request", "item": "item", "price": "item", "scores": "candidate"}
    assert "input 'price' belongs to the item: constant for each item of the sample" in conversion.notes
    without = fastmtr.convert(plain(), sample=given, groups=groups)
    assert domains(without) == {"user": "request", "item": "candidate", "price": "candidate", "scores": "candidate"}
    given["price"][:] = 1
    with pytest.raises(ConversionError, match="input 'price': its values in the sample are the same for every request"):
        fastmtr.convert(plain(), sample=given, groups=groups, items=items)
    with pytest.raises(ConversionError, match="one entry a row of the sample"):
        fastmtr.convert(plain(), sample=given, groups=groups[1:])


def test_inputs_given_in_full() -> None:
    inputs = (
        Input("user", "request", "ids", 1, 1, rows=USERS),
        Input("item", "item", "ids", 0, 1),
        Input("price", "item", "dense", 2, 1),
        Input("scores", "candidate", "dense", 0, 3),
        Input("unread", "item", "dense", 0, 2),
    )
    conversion = fastmtr.convert(plain(), sample=sample(), inputs=inputs)
    assert set(conversion.graph.inputs) == set(inputs)
    np.testing.assert_array_equal(conversion.sample["request"].ids[:, 1], sample()["user"])
    with pytest.raises(ConversionError, match=r"input 'item' is given as \['dense'\], but the model reads it as ids"):
        fastmtr.convert(plain(), sample=sample(), inputs=(inputs[0], Input("item", "item", "dense", 0, 1), *inputs[2:]))


def test_an_input_that_is_read_both_ways() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(USERS, 1)

        def forward(self, user: Tensor) -> Tensor:
            return torch.sigmoid(self.table(user).squeeze(1) + user.float() / 10)

    conversion = fastmtr.convert(Both(), sample=(sample()["user"],), inputs={"user": "user"})
    assert [(i.name, i.kind) for i in conversion.graph.inputs] == [("user", "ids"), ("user#numbers", "dense")]
    found = reference.evaluate(conversion.graph, conversion.sample)["task0"]
    np.testing.assert_allclose(found, conversion.source.score(conversion.sample)["task0"], rtol=0, atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------


def refusal(body: Callable[..., Tensor], **modules: nn.Module) -> str:
    with pytest.raises(ConversionError) as error:
        fastmtr.convert(Net(body, **modules), sample=sample(), inputs=INPUTS)
    return str(error.value)


def test_an_operator_without_counterpart_names_itself_and_its_module() -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=1)[0]

    message = refusal(lambda net, x, history, mask: head(net.deep[0](x)), deep=nn.ModuleList([Sorting()]))
    assert message.startswith(
        "operator aten.sort.default in module 'deep.0' (Sorting), 'return x.sort(dim=1)[0]': it has"
    )


def test_what_no_output_depends_on_may_be_anything() -> None:
    def body(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        x.sort(dim=0)
        return head(x)

    assert fastmtr.convert(Net(body), sample=sample(), inputs=INPUTS).graph.tasks == ("task0",)


def test_what_depends_on_other_rows_is_refused() -> None:
    assert "works across the rows of the batch" in refusal(lambda net, x, history, mask: head(x - x.mean(0)))
    norm = nn.BatchNorm1d(W, track_running_stats=False)
    assert "without running statistics" in refusal(lambda net, x, history, mask: head(net.norm(x)), norm=norm)
    assert "rows in different dimensions" in refusal(lambda net, x, history, mask: head(x.sum(1) * x[:, :1]))
    assert "mixes values of different rows" in refusal(
        lambda net, x, history, mask: head(x.t().reshape(x.shape[0], -1))
    )


def test_scores_that_jump_are_refused() -> None:
    assert "a score that jumps" in refusal(lambda net, x, history, mask: head((x > 0).float() * x))


def test_what_cannot_be_traced_or_run_is_said() -> None:
    def branching(net: Any, x: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        return head(x) if x.sum() > 0 else head(-x)

    assert "torch.export cannot trace this Net" in refusal(branching)
    assert "the Net itself cannot score the sample: RuntimeError" in refusal(lambda net, x, history, mask: head(x @ x))


def test_arguments_of_convert_are_checked() -> None:
    with pytest.raises(ConversionError, match="needs sample="):
        fastmtr.convert(plain())
    with pytest.raises(
        ConversionError, match=r"what are the inputs \['user', 'item', 'price', 'scores'\] functions of"
    ):
        fastmtr.convert(plain(), sample=sample())
    with pytest.raises(ConversionError, match="expected user, context, item or candidate, found 'video'"):
        fastmtr.convert(plain(), sample=sample(), inputs={"item": "video"})
    with pytest.raises(ConversionError, match="1 outputs, but 2 tasks are named"):
        fastmtr.convert(plain(), sample=sample(), inputs=INPUTS, tasks=["click", "like"])
    with pytest.raises(ConversionError, match="one number of rows"):
        fastmtr.convert(plain(), sample=sample() | {"price": np.zeros(3, np.float32)}, inputs=INPUTS)
    with pytest.raises(ConversionError, match="columns: 'item' is 1 to 9"):
        fastmtr.convert(Packed(TwoTasks()), sample=np.zeros((3, 4)), columns={"user": 0, "item": (1, 9)})
    with pytest.raises(ConversionError, match="arrays of numbers"):
        fastmtr.convert(plain(), sample=sample() | {"user": np.array(["a"] * 23)}, inputs=INPUTS)


def test_the_model_is_left_as_it_is_and_samples_are_packed() -> None:
    module = made("masked mean").train()
    conversion = fastmtr.convert(module, sample=sample(), inputs=INPUTS)
    assert module.training
    assert conversion.source.name == "torch.export of Net"
    inputs = {i.name: i for i in conversion.graph.inputs}
    assert inputs["history"].padding == 0
    ids = conversion.sample["request"].ids
    at = inputs["history"].offset
    np.testing.assert_array_equal(ids[:, at : at + LENGTH], sample()["history"])
    users = {"user": np.array([3, 4]), "history": np.zeros((2, LENGTH), int)}
    assert conversion.pack("request", users).ids[:, inputs["user"].offset].tolist() == [3, 4]
    with pytest.raises(SchemaError, match=r"input 'history' must have the shape \(2, 6\), found \(3, 2\)"):
        conversion.pack("request", users | {"history": np.zeros((3, 2))})
    with pytest.raises(SchemaError, match="input 'price' of the item is missing"):
        conversion.pack("item", {"item": [1]})
