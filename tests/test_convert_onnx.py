"""ONNX models of several exporters: the engine gives the scores of ONNX's reference and of ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fastmtr
from fastmtr.bundle import open_bundle
from fastmtr.compiler import compile_graph
from fastmtr.convert.verify import verify
from fastmtr.errors import ConversionError
from fastmtr.ranker import Ranker

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import helper, numpy_helper  # noqa: E402

from fastmtr.convert.onnx_source import fixed_rows  # noqa: E402

torch.set_num_threads(1)
USERS, ITEMS, LENGTH, DIM, N = 13, 11, 6, 4, 23
INPUTS = {"user": "user", "history": "user", "item": "item", "price": "item", "scores": "candidate"}


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    history = rng.integers(1, ITEMS, (N, LENGTH)) * (np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (N, 1)))
    return {
        "user": rng.integers(0, USERS, N),
        "history": history,
        "item": rng.integers(0, ITEMS, N),
        "price": rng.normal(size=(N, 1)).astype(np.float32),
        "scores": rng.normal(size=(N, 3)).astype(np.float32),
    }


def by_runtime(model: Any, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime says, which is independent of what a conversion is compared with."""
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    known = {i.name: np.int64 if "int64" in i.type else np.float32 for i in session.get_inputs()}
    found: list[np.ndarray] = session.run(None, {name: arrays[name].astype(t) for name, t in known.items()})
    return found


def agrees(model: Any, arrays: Mapping[str, np.ndarray], **options: Any) -> fastmtr.Conversion:
    """Converted, verified, and compared with ONNX Runtime on the sample."""
    conversion = fastmtr.convert(model, sample=arrays, **options)
    assert verify(conversion).worst.engine <= 1e-5
    assert conversion.sample is not None
    found = conversion.source.score(conversion.sample)
    wanted = [v.reshape(len(v), -1) for v in by_runtime(model, arrays) if getattr(v, "dtype", None) == np.float32]
    together = np.concatenate([found[o.name] for o in conversion.graph.outputs], axis=1)
    np.testing.assert_allclose(together, np.concatenate(wanted, axis=1)[:, -together.shape[1] :], rtol=1e-4, atol=1e-5)
    return conversion


def export(model: nn.Module, path: Path, arrays: Mapping[str, np.ndarray], **options: Any) -> None:
    given = {"dynamo": False, "opset_version": 17, "output_names": ["p"], **options}
    names = list(arrays)
    if not given["dynamo"] and "dynamic_axes" not in given:
        given["dynamic_axes"] = {name: {0: "rows"} for name in [*names, "p"]}
    tensors = tuple(torch.from_numpy(a) for a in arrays.values())
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporters use what torch and ONNX have deprecated
            torch.onnx.export(model.eval(), tensors, str(path), input_names=names, **given)
    finally:
        logging.disable(logging.NOTSET)


# ---- of torch --------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """A mixture of experts over embeddings, a masked mean of a history, and two tasks."""

    def __init__(self, *, clamp: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 3 * DIM + 4
        self.clamp = clamp
        self.users, self.items = nn.Embedding(USERS, DIM), nn.Embedding(ITEMS, DIM, padding_idx=0)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 6)) for _ in range(3)
        )
        self.gates = nn.ModuleList(nn.Linear(width, 3) for _ in range(2))
        self.towers = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.PReLU(), nn.Linear(6, 1)) for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, user: Tensor, history: Tensor, item: Tensor, price: Tensor, scores: Tensor) -> Tensor:
        mask = (history != 0).unsqueeze(-1).float()
        past = (self.items(history) * mask).sum(1) / mask.sum(1).clamp(min=1)
        x = torch.cat([self.users(user), past, self.items(item), price, scores], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [torch.bmm(gate(x).softmax(-1).unsqueeze(1), experts).squeeze(1) for gate in self.gates]
        return torch.cat([tower(m) for tower, m in zip(self.towers, mixed, strict=True)], dim=1).sigmoid()


def dimensions(arrays: Mapping[str, np.ndarray]) -> tuple[dict[int, Any], ...]:
    return tuple({0: torch.export.Dim("rows")} for _ in arrays)


@pytest.mark.parametrize(
    "options",
    [
        {"opset_version": 13},
        {"opset_version": 17},
        {"dynamic_axes": {}},  # the exporter fixes the number of rows
    ],
    ids=str,
)
def test_torchs_older_exporter(options: dict[str, Any], tmp_path: Path) -> None:
    export(Experts(), tmp_path / "model.onnx", sample(), **options)
    conversion = agrees(tmp_path / "model.onnx", sample(), inputs=INPUTS, tasks=["click", "like"])
    ops = {node.op for node in conversion.graph.nodes}
    assert {"embedding_bag", "mixture", "batch_norm"} <= ops
    assert ("layer_norm" in ops) == (options.get("opset_version") != 13)  # before 17, it is written in its parts
    gelus = [n for n in conversion.graph.nodes if n.op == "activation" and n.attr("activation") == "gelu"]
    assert len(gelus) == 3
    assert not any(np.isnan(v).any() for v in conversion.source.score(conversion.sample or {}).values())


def test_torchs_newer_exporter(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "model.onnx"
    export(Experts(), path, sample(), dynamo=True, opset_version=18, dynamic_shapes=dimensions(sample()))
    agrees(path, sample(), inputs=INPUTS, tasks=["click", "like"])


def test_inner_values_are_those_of_onnx(tmp_path: Path) -> None:
    from fastmtr import reference

    export(Experts(), tmp_path / "model.onnx", sample())
    conversion = fastmtr.convert(tmp_path / "model.onnx", sample=sample(), inputs=INPUTS)
    assert conversion.sample is not None
    theirs, ours = (
        conversion.source.layers(conversion.sample),
        reference.evaluate_values(conversion.graph, conversion.sample),
    )
    assert len(theirs) > 20
    assert set(theirs) <= set(ours)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=1e-5, err_msg=name)


def test_the_compiler_takes_the_user_out_of_repeated_rows(tmp_path: Path) -> None:
    export(Experts(), tmp_path / "model.onnx", sample())
    steps = compile_graph(
        fastmtr.convert(tmp_path / "model.onnx", sample=sample(), inputs=INPUTS).graph, n_items=ITEMS
    ).plan["steps"]
    products = [step for step in steps if step["op"] == "affine"]
    assert {step["domain"] for step in products} == {"request", "item", "candidate"}


class Repeats(nn.Module):
    """The inputs of the user have one row, which is repeated for all candidates."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.users, self.items, self.out = nn.Embedding(USERS, DIM), nn.Embedding(ITEMS, DIM), nn.Linear(2 * DIM + 1, 1)

    def forward(self, user: Tensor, price: Tensor, item: Tensor) -> Tensor:
        u = torch.cat([self.users(user.reshape(1)).reshape(1, -1), price], 1).view(1, DIM + 1)
        i = self.items(item)
        rows = i.shape[0]
        u = u.expand(rows, DIM + 1) if self.how == "expand" else u.repeat(rows, 1)
        return self.out(torch.cat([u, i], 1)).sigmoid()


@pytest.mark.parametrize("how", ["expand", "repeat"])
def test_one_row_of_the_user_for_all_candidates(how: str, tmp_path: Path) -> None:
    arrays = {"user": np.array([5]), "price": np.array([[0.5]], np.float32), "item": np.arange(ITEMS)}
    path = tmp_path / "model.onnx"
    export(Repeats(how), path, arrays, dynamic_axes={"item": {0: "rows"}, "p": {0: "rows"}})
    conversion = agrees(path, arrays, inputs={"user": "user", "price": "user", "item": "item"})
    assert {i.name: i.domain for i in conversion.graph.inputs} == {
        "user": "request",
        "price": "request",
        "item": "item",
    }


class Layers(nn.Module):
    """Of a history [rows, steps] and an item: whatever a test does with their embeddings."""

    def __init__(self, body: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.items = nn.Embedding(ITEMS, DIM)
        self.last = nn.LazyLinear(1)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        made: Tensor = self.body(self, self.items(history), self.items(item), history != 0)
        return self.last(made.flatten(1)).sigmoid()


def attention(m: Any, past: Tensor, item: Tensor, there: Tensor) -> Tensor:
    q = item.unsqueeze(1).expand(-1, LENGTH, -1)
    scores = m.net(torch.cat([q, past, q - past, q * past], -1)).squeeze(-1).masked_fill(~there, -1e9)
    return (scores.softmax(1).unsqueeze(-1) * past).sum(1)


BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gru": (lambda m, past, item, there: m.gru(past)[1][0], {"gru": nn.GRU(DIM, 5, batch_first=True)}),
    "all states": (lambda m, past, item, there: m.gru(past)[0], {"gru": nn.GRU(DIM, 5, batch_first=True)}),
    "convolution": (
        lambda m, past, item, there: m.conv(past.transpose(1, 2)).amax(2),
        {"conv": nn.Conv1d(DIM, 5, 3, padding=1)},
    ),
    "attention": (attention, {"net": nn.Sequential(nn.Linear(4 * DIM, 6), nn.Sigmoid(), nn.Linear(6, 1))}),
    "einsum": (lambda m, past, item, there: torch.einsum("bld,bd->bl", past, item), {}),
    "dot products": (lambda m, past, item, there: past @ item.unsqueeze(-1), {}),
    "pooling": (lambda m, past, item, there: torch.cat([past.mean(1), past.amax(1), past.sum(1)], 1), {}),
    "parts": (
        lambda m, past, item, there: torch.cat([past[:, 1::2].flatten(1), past[:, -1], *item.chunk(2, 1)], 1),
        {},
    ),
    "length": (lambda m, past, item, there: F.normalize(past, dim=-1).sum(1) * item, {}),
    "where": (lambda m, past, item, there: torch.where(there.unsqueeze(-1), past, item.unsqueeze(1) * 2), {}),
    "squash": (
        lambda m, past, item, there: torch.cat(
            [
                F.silu(item),
                F.elu(item),
                F.softplus(item),
                item.clamp(-0.5, 0.5),
                item.abs().sqrt(),
                (item * item).exp(),
            ],
            1,
        ),
        {},
    ),
    "more": (
        lambda m, past, item, there: torch.cat(
            [
                F.leaky_relu(item, 0.2),
                F.hardsigmoid(item),
                F.hardswish(item),
                F.selu(item),
                F.mish(item),
                1 / (2 + item**2),
            ],
            1,
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_layers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body, modules = BODIES[name]
    arrays = {key: sample()[key] for key in ("history", "item")}
    model = Layers(body, **modules)
    model(*[torch.from_numpy(a) for a in arrays.values()])
    export(model, tmp_path / "model.onnx", arrays)
    agrees(tmp_path / "model.onnx", arrays, inputs=INPUTS)


# ---- of torch-rechub -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MMOE", "DCNv2", "DIN", "FiBiNet"])
def test_torch_rechubs_own_exporter(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_rechub", reason="torch-rechub is not installed")
    from conversion_data import ENTITIES, edge_rows
    from rechub_models import trained
    from torch_rechub.utils.onnx_export import ONNXExporter

    path = tmp_path / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        ONNXExporter(trained(name)).export(str(path), seq_length=12, onnx_export_kwargs={"dynamo": False})
    rows = edge_rows()
    infos = {i.name: i.type.tensor_type.shape.dim for i in onnx.load(path).graph.input}
    arrays = {name: rows[name].reshape(40, -1) if len(sizes) == 2 else rows[name] for name, sizes in infos.items()}
    agrees(path, arrays, inputs=ENTITIES)


# ---- of scikit-learn -------------------------------------------------------------------------------------------------


def test_skl2onnx() -> None:
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32) * 3 + 1
    y = (x[:, 0] + x[:, 3] > rng.normal(size=200) + 2).astype(int)
    columns = {"age": 0, "income": (1, 3), "price": 3, "rank": 4}
    inputs = {"age": "user", "income": "user", "price": "item", "rank": "candidate"}
    scale = ColumnTransformer([("some", StandardScaler(), [0, 1, 3])], remainder="passthrough")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [
            make_pipeline(scale, LogisticRegression()).fit(x, y),
            make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=5)).fit(x, y),
            LogisticRegression().fit(x, y + (x[:, 2] > 2)),
        ]
        protos = [skl2onnx.to_onnx(model, x[:1], target_opset=18, options={"zipmap": False}) for model in models]
        zipped = skl2onnx.to_onnx(models[0], x[:1], target_opset=18)
    for model, proto in zip([*models, models[0]], [*protos, zipped], strict=True):
        conversion = fastmtr.convert(proto, sample=x, columns=columns, inputs=inputs)
        assert verify(conversion).worst.engine < 2e-6
        assert conversion.sample is not None
        found = conversion.source.score(conversion.sample)
        n = len(model.classes_)
        wanted = model.predict_proba(x)[:, 0 if n > 2 else 1 :]
        np.testing.assert_allclose(np.concatenate(list(found.values()), axis=1), wanted, atol=1e-5)
        assert "label' holds no scores, so it is left out" in conversion.notes[0]
        assert n > 2 or "the second is taken" in conversion.notes[-1]


# ---- by hand ---------------------------------------------------------------------------------------------------------


def by_hand(text: str, *, opset: int = 18, **weights: np.ndarray) -> Any:
    """A model from the lines of its graph, with inputs ``item`` (ids), ``x`` [rows, 4] and ``y`` [rows, 2, 3]."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"hand (int64[rows] item, float[rows, 4] x, float[rows, 2, 3] y) => (float[rows, k] p) {{ {text} }}"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


HAND = {"item": "item", "x": "user", "y": "candidate"}


def hand_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    draw = rng.normal
    return {
        "item": rng.integers(0, 6, N),
        "x": draw(size=(N, 4)).astype(np.float32),
        "y": draw(size=(N, 2, 3)).astype(np.float32),
    }


def floats(*sizes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


GRAPHS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "product and sum": ("h = MatMul(x, w)  p = Add(h, b)", {"w": floats(4, 3), "b": floats(3)}),
    "gemm": ("p = Gemm <alpha: float = 0.5, beta: float = 2.0> (x, w, b)", {"w": floats(4, 3), "b": floats(3)}),
    "one-hot": (
        "c = OneHot <axis: int = -1> (item, d, v)  p = Concat <axis: int = 1> (c, x)",
        {"d": np.array(6), "v": np.array([0, 1], np.float32)},
    ),
    "lookup": (
        "i = Unsqueeze(item, a)  e = GatherND(t, i)  p = Mul(e, x)",
        {"a": whole(-1), "t": floats(6, 4)},
    ),
    "slices": (
        "s = Slice(x, from, to, axes, by)  z = Slice(y, from, to, last)  q = Flatten(z)  "
        "p = Concat <axis: int = 1> (s, q)",
        {"from": whole(-1), "to": whole(-100), "axes": whole(1), "by": whole(-1), "last": whole(2)},
    ),
    "columns": ("g = Gather <axis: int = 1> (x, k)  p = Flatten(g)", {"k": np.array([[3, 0], [-1, 1]], np.int64)}),
    "split": (
        "a, b = Split <axis: int = 1, num_outputs: int = 2> (x)  c, d = Split <axis: int = 1> (x, n)  "
        "p = Concat <axis: int = 1> (b, a, d, c)",
        {"n": whole(1, 3)},
    ),
    "views": (
        "t = Transpose <perm: ints = [0, 2, 1]> (y)  r = Reshape(t, s)  u = Unsqueeze(r, a)  e = Expand(u, z)  "
        "q = Squeeze(u, a)  m = ReduceMean <keepdims: int = 0> (e, a)  p = Add(q, m)",
        {"s": whole(0, -1), "a": whole(1), "z": whole(1, 5, 1)},
    ),
    "sizes": (
        "s = Shape(x)  n = Gather(s, zero)  t = Concat <axis: int = 0> (n, six)  p = Reshape(y, t)",
        {"zero": whole(0), "six": whole(6)},
    ),
    "fill": (
        "s = Shape(x)  z = ConstantOfShape(s)  m = Max(x, z)  o = Concat <axis: int = 1> (z, m)  p = Add(o, one)",
        {"one": np.array(1, np.float32)},
    ),
    "reductions": (
        "a = ReduceL2 <keepdims: int = 0> (y, last)  b = ReduceSumSquare <keepdims: int = 0> (y, last)  "
        "c = ReduceMin <keepdims: int = 0> (y, last)  d = ReduceL1 <keepdims: int = 0> (y, last)  "
        "p = Concat <axis: int = 1> (a, b, c, d)",
        {"last": whole(-1)},
    ),
    "softmax": ("s = LogSoftmax <axis: int = 1> (y)  t = Softmax <axis: int = 2> (s)  p = Flatten(t)", {}),
    "norms": (
        "a = LpNormalization <axis: int = 2> (y)  b = LayerNormalization <axis: int = -1> (a, g, h)  p = Flatten(b)",
        {"g": floats(3), "h": floats(3, seed=1)},
    ),
    "slope": (
        "a = PRelu(x, s)  b = PRelu(y, r)  q = Flatten(b)  p = Concat <axis: int = 1> (a, q)",
        {"s": floats(4), "r": floats(2, 1)},
    ),
    "bounds": (
        "a = Clip(x, low, high)  b = Clip(x, low)  p = Sub(a, b)",
        {"low": np.float32(-1), "high": np.float32(0.3)},
    ),
    "hard": (
        "a = HardSigmoid(x)  b = HardSigmoid <alpha: float = 0.1666667> (x)  p = Concat <axis: int = 1> (a, b)",
        {},
    ),
    "several": ("a = Sum(x, w, x)  b = Mean(x, a)  c = Min(a, b, x)  p = Max(c, w)", {"w": floats(4)}),
    "powers": (
        "a = Pow(x, two)  b = Add(a, two)  c = Pow(b, half)  p = Reciprocal(c)",
        {"two": np.float32(2), "half": np.float32(0.5)},
    ),
    "padding": ("a = Pad(x, n, v)  p = Neg(a)", {"n": whole(0, 1, 0, 2), "v": np.float32(7)}),
    "known": (
        "j = Equal(item, one)  k = Not(j)  l = Cast <to: int = 1> (k)  m = Unsqueeze(l, last)  "
        "e = Gather(t, item)  q = Mul(e, m)  p = Add(q, x)",
        {"one": whole(1), "last": whole(-1), "t": floats(6, 4)},
    ),
    "gates": ("a = Swish(x)  p = Mul(a, x)", {}),
    "tanh gelu": ("p = Gelu <approximate: string = 'tanh'> (x)", {}),
    "cumulative": ("a = CumSum(x, one)  p = Identity(a)", {"one": np.array(1, np.int64)}),
    "tile": ("a = Tile(x, n)  p = Dropout(a)", {"n": whole(1, 2)}),
}  # fmt: skip
LATER = {"gates": 24, "tanh gelu": 20}
"""The opset that a model needs."""


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_by_hand(name: str) -> None:
    text, weights = GRAPHS[name]
    proto = by_hand(text.replace("'", '"'), opset=LATER.get(name, 18), **weights)
    rows = hand_rows()
    conversion = fastmtr.convert(proto, sample=rows, inputs=HAND)
    assert verify(conversion).worst.engine <= 1e-5
    if name not in LATER:
        agrees(proto, rows, inputs=HAND)


@pytest.mark.parametrize("fixed", [{"x": 8}, {"x": 8, "y": 1}, {"item": 1, "x": 8}])
def test_exporters_that_fix_the_rows_of_some_inputs(fixed: dict[str, int]) -> None:
    """The number of rows is that of the candidates, not of the user's one row, in whichever order the inputs stand."""
    text = "a = Reshape(x, s)  b = ReduceSum <keepdims: int = 0> (a, one)  e = Gather(t, item)  h = Add(b, e)  "
    text += "c = ReduceSum <keepdims: int = 0> (y, two)  p = Mul(c, h)"
    proto = by_hand(text, s=whole(8, 2, 2), one=whole(1), two=whole(2), t=floats(6, 2))
    for info in proto.graph.input:
        if info.name in fixed:
            info.type.tensor_type.shape.dim[0].dim_value = fixed[info.name]
    assert fixed_rows(proto) == 8
    assert verify(fastmtr.convert(proto, sample=hand_rows(), inputs=HAND)).worst.engine <= 1e-5


def test_a_condition_that_is_known() -> None:
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "then", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("LSTM", ["x"], ["s"])], "other", [], [helper.make_tensor_value_info("s", 1, None)]
    )
    proto = by_hand("p = Neg(q)", c=np.array(True))
    proto.graph.node.insert(0, helper.make_node("If", ["c"], ["q"], then_branch=then, else_branch=other))
    conversion = fastmtr.convert(proto, sample=hand_rows(), inputs=HAND)
    assert verify(conversion).worst.engine <= 1e-6


def test_functions_of_a_model_are_taken_apart() -> None:
    proto = by_hand("p = Neg(x)")
    proto.functions.append(
        helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
        )
    )
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Twice", "own"
    assert verify(fastmtr.convert(proto, sample=hand_rows(), inputs=HAND)).worst.engine <= 1e-6


def test_a_sample_is_drawn_where_sizes_are_known() -> None:
    conversion = fastmtr.convert(by_hand("p = Neg(x)"), inputs=HAND)
    assert conversion.sample is None
    assert verify(conversion).examples == {"sample": 0, "random": 64, "edge": 4}


def test_logits_and_retrieval_vectors() -> None:
    vectors = "user_vector = MatMul(x, w)  item_vector = Gather(t, item)"
    proto = by_hand(
        f"{vectors}  m = Mul(user_vector, item_vector)  p = ReduceSum(m, one)",
        w=floats(4, 3),
        t=floats(6, 3),
        one=whole(1),
    )
    for name in ("user_vector", "item_vector"):
        proto.graph.output.append(helper.make_tensor_value_info(name, 1, ["rows", 3]))
    conversion = fastmtr.convert(proto, sample=hand_rows(), inputs=HAND, tasks=["click"], logits=True)
    assert {o.name: o.role for o in conversion.graph.outputs} == {
        "click": "task",
        "user_vector": "request",
        "item_vector": "item",
    }
    assert verify(conversion).worst.engine <= 1e-6


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        (
            "p = Erf(x)",
            {},
            r"operator Erf in node 'Erf of p': it has no counterpart .*write it with operators that have",
        ),
        ("p = Sin(x)", {}, "operator Sin in node 'Sin of p'"),
        ("h = Mul(x, x)  p = Floor(h)", {}, "operator Floor"),
        ("p = com.microsoft.Inverse(x)", {}, "operator com.microsoft.Inverse in node"),
        (
            "s = ReduceSum(x, a)  p = Add(x, s)",
            {"a": whole(0)},
            "operator ReduceSum in node .*across the rows of the batch",
        ),
        ("k = Cast <to: int = 7> (x)  p = Reshape(y, k)", {}, "its shape is computed from the model's inputs"),
        ("p = Softplus(w)", {"w": floats(3, 4)}, "output 'p' of the model does not depend on its inputs"),
        ("p = MatMul(x, w)", {"w": floats(5, 3)}, "operator MatMul in node 'MatMul of p'"),
    ],
)
def test_what_has_no_counterpart_names_the_node(text: str, weights: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        fastmtr.convert(by_hand(text, **weights), sample=hand_rows(), inputs=HAND)


def test_what_is_wrong_with_a_model_or_file(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="has opset 11, but 13 or later is expected"):
        fastmtr.convert(by_hand("p = Neg(x)", opset=11), inputs=HAND)
    with pytest.raises(ConversionError, match="lacks the inputs"):
        fastmtr.convert(by_hand("p = Neg(x)"), sample={"x": floats(3, 4)}, inputs=HAND)
    with pytest.raises(ConversionError, match="3 inputs, but the sample has 1 arrays"):
        fastmtr.convert(by_hand("p = Neg(x)"), sample=floats(3, 4), inputs=HAND)
    for name in ("model.pt2", "model.pkl", "model.pt"):
        with pytest.raises(ConversionError, match="loading one can run any code"):
            fastmtr.convert(tmp_path / name)
    with pytest.raises(ConversionError, match="there is no file"):
        fastmtr.convert(tmp_path / "model.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ConversionError, match="is no ONNX model"):
        fastmtr.convert(tmp_path / "text.onnx")


def test_a_bundle_from_a_file(tmp_path: Path) -> None:
    export(Experts(), tmp_path / "model.onnx", sample())
    keys = np.char.add("sku", np.arange(N).astype(str))
    path = fastmtr.convert(
        tmp_path / "model.onnx",
        sample={**sample(), "scores": np.zeros((N, 3), np.float32)},
        inputs={**INPUTS, "scores": "item"},
        tasks=["click", "like"],
        items=keys,
        groups=np.arange(N),
        out=tmp_path / "bundle",
    )
    assert open_bundle(path).metadata["conversion"]["source"].startswith("ONNX of")
    assert len(Ranker.load(path).rank(3, None, k=5).items) == 5
