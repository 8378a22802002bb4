"""The complete examples of the pages on conversion, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
NEEDS = {
    "torch": "torch",
    "torch_rechub": "torch_rechub",
    "deepctr_torch": "deepctr_torch",
    "onnx": "onnxscript",
    "sklearn": "sklearn",
}


# torch's exporter itself uses what torch has deprecated
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("page", NEEDS)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with mock.patch("threading.Thread.start"):  # DeepCTR-Torch would ask for a newer version of itself
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (DOCS / f"convert_{page}.md").read_text()
    np.random.seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, page, "exec"), {"__name__": page})
    assert "Ranking: 5 items for user" in capsys.readouterr().out
