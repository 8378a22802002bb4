"""Writes the bundles of ``tests/golden/v1``: once for a format version, never to make a test pass.

``python tests/golden/make.py`` refuses to touch what is there. Every bundle that was ever written in a format must keep
loading and must give the scores that it gave then; so a change that breaks them needs a new format version, whose
bundles go to a folder of their own.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

import fastmtr
from fastmtr import cli
from fastmtr.bundle import FORMAT_VERSION
from fastmtr.ranker import Ranker

USERS, ITEMS, SIZES = 7, 9, {"user": 7, "history": 10, "item": 10, "genre": 4}
INPUTS = {"user": "user", "history": "user", "item": "item", "genre": "item", "price": "item"}


def sample() -> dict[str, np.ndarray]:
    """Each user with each item: 7 times 9 rows."""
    rng = np.random.default_rng(1)
    user, item = np.divmod(np.arange(USERS * ITEMS), ITEMS)
    history = rng.integers(1, ITEMS + 1, (USERS, 4)) * (np.arange(4) < np.arange(USERS)[:, None] % 5)
    return {
        "user": user,
        "history": history[user],
        "item": item + 1,
        "genre": rng.integers(1, 4, ITEMS)[item],
        "price": rng.normal(size=ITEMS).astype(np.float32)[item],
    }


class Body(nn.Module):
    """Embeddings of all inputs, then experts and gates, attention or a recurrent layer over the history."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.user, self.item, self.genre = (nn.Embedding(SIZES[n], 4, padding_idx=0) for n in ("user", "item", "genre"))
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(17, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(17, 3) for _ in range(2))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(6, 3), nn.PReLU(), nn.Linear(3, 1)) for _ in range(2))
        self.score = nn.Sequential(nn.Linear(16, 3), nn.Sigmoid(), nn.Linear(3, 1))
        self.gru, self.conv = nn.GRU(4, 4, batch_first=True), nn.Conv1d(4, 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def past(self, history: Tensor, item: Tensor) -> Tensor:
        """The history as four numbers."""
        rows, mask = self.item(history), (history != 0).unsqueeze(-1)
        if self.kind == "gru":
            states: Tensor = self.gru(rows)[1][0]
            return states
        if self.kind == "conv":
            return self.conv(rows.transpose(1, 2)).amax(2)
        if self.kind == "attention":
            q = item.unsqueeze(1).expand_as(rows)
            weights = self.score(torch.cat([q, rows, q - rows, q * rows], -1)).masked_fill(~mask, -1e9)
            return (weights.softmax(1) * rows).sum(1)
        return (rows * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, user: Tensor, history: Tensor, item: Tensor, genre: Tensor, price: Tensor) -> dict[str, Tensor]:
        """Two probabilities."""
        i = self.item(item)
        x = torch.cat([self.user(user), self.past(history, i), i, self.genre(genre), price[:, None]], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [(gate(x).softmax(1).unsqueeze(-1) * experts).sum(1) for gate in self.gates]
        click, like = (tower(m).squeeze(1).sigmoid() for tower, m in zip(self.towers, mixed, strict=True))
        return {"click": click, "like": click * like}


def of_sklearn() -> Any:
    """A logistic regression and a perceptron over one-hot codes and numbers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = sample()
    x = np.column_stack([rows[name] for name in ("user", "item", "price")])
    code = ColumnTransformer([("ids", OneHotEncoder(handle_unknown="ignore"), [0, 1]), ("n", StandardScaler(), [2])])
    y = (x[:, 2] + x[:, 0] % 3 > 1).astype(int)
    models = {
        "click": make_pipeline(code, LogisticRegression()).fit(x, y),
        "like": make_pipeline(code, MLPClassifier((4,), max_iter=5, random_state=0)).fit(x, 1 - y),
    }
    columns = {"user": 0, "item": 1, "price": 2}
    return models, {"sample": x, "columns": columns, "inputs": {name: INPUTS[name] for name in columns}}


def of_onnx(folder: Path) -> Any:
    """The same as of torch, by way of a file."""
    names, rows = list(INPUTS), tuple(torch.from_numpy(v) for v in sample().values())
    path = folder / "model.onnx"
    dynamic = {name: {0: "rows"} for name in [*names, "click", "like"]}
    outputs = {"output_names": ["click", "like"], "dynamic_axes": dynamic, "dynamo": False, "opset_version": 17}
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(Body("gru").eval(), rows, str(path), input_names=names, **outputs)
    return path, {"sample": sample(), "inputs": INPUTS}


def of_torch_rechub() -> Any:
    """A model that knows its features."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE

    torch.manual_seed(1)
    features = [SparseFeature(name, SIZES[name], 4) for name in ("user", "item", "genre")]
    history = SequenceFeature("history", SIZES["item"], 4, pooling="mean", shared_with="item", padding_idx=0)
    towers = [{"dims": [4]}, {"dims": [4]}]
    model = MMOE([*features, history, DenseFeature("price")], ["classification"] * 2, 2, {"dims": [6]}, towers)
    return model, {"sample": sample(), "inputs": INPUTS, "tasks": ["click", "like"]}


def main() -> None:
    """Write all bundles and the scores of each."""
    target = Path(__file__).parent / f"v{FORMAT_VERSION}"
    if target.exists():
        sys.exit(f"{target} is there: bundles of a format are written once; raise FORMAT_VERSION for another format")
    warnings.simplefilter("ignore")
    target.mkdir()
    rows = sample()
    keys = {"groups": np.char.add("user", rows["user"].astype(str)), "items": rows["item"] + 1000}
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("pooled", "attention", "gru", "conv")
        models = {f"torch_{k}": (Body(k), {"sample": rows, "inputs": INPUTS}) for k in kinds}
        models |= {"sklearn": of_sklearn(), "onnx": of_onnx(Path(folder)), "torch_rechub": of_torch_rechub()}
        for name, (model, options) in models.items():
            fastmtr.convert(model, **options, **keys, out=target / name)
    encoded = {"encoded_int8": ("int8", "int8"), "encoded_fp16": ("fp16", "fp16"), "encoded_int4": ("fp32", "int4")}
    for name, (items, tables) in encoded.items():
        precisions = ["--item-precision", items, "--embedding-precision", tables]
        if cli.main(["compile", str(target / "torch_pooled"), "--out", str(target / name), *precisions]):
            sys.exit(f"{name} could not be compiled")
    for path in sorted(p for p in target.iterdir()):
        ranker = Ranker.load(path)
        scores = {user: ranker.score(user, ranker.items).values.tolist() for user in ranker.users.tolist()}
        expected = {"tasks": ranker.tasks, "items": ranker.items.tolist(), "scores": scores}
        (target / f"{path.name}.json").write_bytes(msgspec.json.encode(expected))


if __name__ == "__main__":
    main()
