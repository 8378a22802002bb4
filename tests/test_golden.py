"""Bundles that earlier commits wrote still load, and give the scores that they gave then."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastmtr import reference
from fastmtr.bundle import open_bundle
from fastmtr.convert.command import report_lines
from fastmtr.graph import Packed
from fastmtr.ranker import Ranker

GOLDEN = Path(__file__).parent / "golden"
BUNDLES = sorted(path.parent for path in GOLDEN.glob("v*/*/manifest.json"))


def expected(bundle: Path) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
    """Tasks, items, and the scores of each user, shape (items, tasks)."""
    found = msgspec.json.decode(bundle.with_suffix(".json").read_bytes())
    return found["tasks"], found["items"], {user: np.array(scores) for user, scores in found["scores"].items()}


def test_there_are_bundles_of_every_source() -> None:
    names = {"encoded_fp16", "encoded_int4", "encoded_int8", "onnx", "sklearn", "torch_attention", "torch_conv"}
    assert {path.name for path in BUNDLES} == names | {"torch_gru", "torch_pooled", "torch_rechub"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_engine_gives_the_scores_of_then(bundle: Path) -> None:
    tasks, items, scores = expected(bundle)
    ranker = Ranker.load(bundle, verify=True)
    assert list(ranker.tasks) == tasks
    assert ranker.items.tolist() == items
    assert ranker.users.tolist() == list(scores)
    for user, values in scores.items():
        np.testing.assert_allclose(ranker.score(user, items).values, values, rtol=0, atol=2e-6)
        assert np.ptp(values) > 1e-3
    assert "over " in report_lines(ranker.bundle.metadata)[0]


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if "encoded" not in b.name], ids=lambda path: path.name)
def test_their_graphs_still_mean_the_same(bundle: Path) -> None:
    opened = open_bundle(bundle)
    tasks, items, scores = expected(bundle)
    users, catalogue = opened.users, opened.catalogue
    assert users is not None
    assert catalogue is not None
    for row, values in enumerate(scores.values()):
        request = Packed(*(np.repeat(m[row : row + 1], len(items), axis=0) for m in users.packed))
        found = reference.evaluate(opened.graph, {"request": request, "item": catalogue.packed})
        np.testing.assert_allclose(np.concatenate([found[t] for t in tasks], axis=1), values, rtol=0, atol=2e-6)
