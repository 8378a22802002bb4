"""``fastmtr convert``: a model of another library becomes a bundle, on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch", reason="a torch module is converted")

from fastmtr import cli
from fastmtr.convert.command import load_sample
from fastmtr.ranker import Ranker

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.out = nn.Embedding(20, 4), nn.Embedding(30, 4), nn.Linear(9, 2)

    def forward(self, rows):
        x = torch.cat([self.user(rows["user"]), self.item(rows["item"]), rows["price"].unsqueeze(1)], 1)
        return self.out(x)


def packed():
    net = Net()

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, matrix):
            return self.net({"user": matrix[:, 0].long(), "item": matrix[:, 1].long(), "price": matrix[:, 2]})

    return Packed()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and a sample."""
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    items = np.arange(1, 30)
    users = rng.integers(1, 20, len(items))
    price = rng.normal(size=len(items)).astype(np.float32)
    np.savez("sample.npz", user=users, item=items, price=price, key=items + 1000)
    np.save("matrix.npy", np.stack([users, items, price], axis=1).astype(np.float32))
    Path("nulls.csv").write_text("a,b\n1,2\n3,\n")
    pq.write_table(pa.table({"past": [[1], [2, 3]]}), "ragged.parquet")
    return tmp_path


INPUTS = ["--input", "user=user", "--input", "item=item", "--input", "price=item"]
TASKS = ["--task", "click", "--task", "like", "--logits"]


def test_a_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["--sample", "sample.npz", "--users", "user", "--items", "key"]
    assert cli.main(["convert", "my_model:Net", "--out", "made", *sample, *INPUTS, *TASKS]) == 0
    out = capsys.readouterr().out
    assert "greatest difference from torch.export of Net: " in out
    assert "wrote made" in out
    ranker = Ranker.load("made")
    assert ranker.tasks == ("click", "like")
    assert ranker.items.tolist() == list(range(1001, 1030))
    assert len(ranker.rank(int(ranker.users[0]), None, k=5).items) == 5


def test_one_packed_matrix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["--column", "user=0", "--column", "item=1:2", "--column", "price=2"]
    made = ["my_model:packed", "--out", "made", "--sample", "matrix.npy"]
    assert cli.main(["convert", *made, *columns, *INPUTS, *TASKS]) == 0, capsys.readouterr().err
    assert {i.name for i in Ranker.load("made").bundle.graph.inputs} == {"user", "item", "price"}


def test_a_table_and_a_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(np.load("sample.npz"))
    liked = arrays["price"] > 0.2
    columns = {**{name: pa.array(a) for name, a in arrays.items()}, "like": pa.array(liked.astype(int))}
    pq.write_table(pa.table(columns), "sample.parquet")
    features = "".join(
        f'  {{ name = "{name}", entity = "{entity}", kind = "{kind}" }},\n'
        for name, entity, kind in (
            ("user", "user", "categorical"),
            ("item", "item", "categorical"),
            ("price", "item", "numeric"),
        )
    )
    tasks = 'tasks = [{ name = "click" }, { name = "like" }]'
    Path("schema.toml").write_text(f'[schema]\nuser = "user"\nitem = "key"\nfeatures = [\n{features}]\n{tasks}\n')
    arguments = ["--sample", "sample.parquet", "--schema", "schema.toml", "--items", "key", "--logits"]
    assert cli.main(["convert", "my_model:Net", "--out", "made", *arguments]) == 0, capsys.readouterr().err
    warning = "warning: input 'price' alone tells the label of task 'like'"
    assert warning in capsys.readouterr().out
    assert Ranker.load("made").schema.item == "key"
    assert cli.main(["explain", "made"]) == 0
    out = capsys.readouterr().out
    assert "greatest difference from torch.export of Net" in out
    assert warning in out
    assert cli.main(["info", "made"]) == 0
    assert "source: torch.export of Net" in capsys.readouterr().out


def test_lists_in_a_table(folder: Path) -> None:
    pq.write_table(pa.table({"past": [[1, 2], [3, 0]], "sku": ["a", "b"]}), "lists.parquet")
    found = load_sample(Path("lists.parquet"))
    assert isinstance(found, dict)
    assert found["past"].tolist() == [[1, 2], [3, 0]]
    assert found["sku"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "nothing.onnx is not there"),
        (["my_model"], "expected an ONNX file, or module:name"),
        (["no_such_module:Net"], "no module is named 'no_such_module'"),
        (["my_model:Missing"], "my_model has no 'Missing'"),
        (["my_model:Net", "--sample", "my_model.py"], "a sample is an .npz file"),
        (["my_model:Net", "--sample", "nulls.csv"], "column 'b' of the sample has nulls"),
        (["my_model:Net", "--sample", "ragged.parquet"], "have the lengths [1, 2]; pad them"),
        (["my_model:Net", "--schema", "my_model.py"], "cannot be read as a schema"),
        (["my_model:Net", "--schema", "none.toml"], "cannot be read as a schema"),
        (["my_model:Net", "--sample", "none.npz"], "cannot be read as a sample"),
        (["my_model:Net", "--sample", "sample.npz", "--items", "sku"], "the sample has no array 'sku'"),
        (["my_model:Net", "--input", "user"], "expected NAME=VALUE, found 'user'"),
        (["my_model:Net", "--column", "user=a"], "with whole numbers, found 'user=a'"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", *arguments, "--out", "made"]) == 2
    assert message in capsys.readouterr().err
