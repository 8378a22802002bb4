"""What a lower precision costs, measured on bundles of one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmtr
from fastmtr.bundle import Bundle, open_bundle, write_bundle
from fastmtr.errors import SchemaError
from fastmtr.evaluation import compare_precision
from fastmtr.evaluation.metrics import roc_auc
from fastmtr.ranker import Ranker
from fastmtr.training.samples import Samples

BUNDLE = Path(fastmtr.__file__).parent / "datasets" / "kuairand_bundle"


def written_again(bundle: Bundle, path: Path, *, n_items: int = 500, **options: Any) -> Ranker:
    """With its first items alone."""
    assert bundle.catalogue is not None
    keys, packed, _ = bundle.catalogue
    catalogue = bundle.catalogue._replace(keys=keys[:n_items], packed=packed.take(np.arange(n_items)), labels=None)
    made = write_bundle(
        path,
        schema=bundle.schema,
        graph=bundle.graph,
        pipeline_state=bundle.pipeline_state,
        catalogue=catalogue,
        users=bundle.users,
        fold_memory=0,
        **options,
    )
    return Ranker.load(made)


def samples_of(ranker: Ranker, n: int = 2000) -> Samples:
    """Random users, items and labels."""
    assert ranker.bundle.users is not None
    rng = np.random.default_rng(1)
    users = rng.integers(len(ranker.users), size=n)
    labels = rng.integers(0, 2, (n, len(ranker.tasks))).astype(np.float32)
    items, times = rng.integers(ranker.n_items, size=n), np.arange(n)
    return Samples(ranker.bundle.users.packed.take(users), items, None, None, users, labels, times)


def test_costs(tmp_path: Path) -> None:
    bundle = open_bundle(BUNDLE)
    before = written_again(bundle, tmp_path / "fp32")
    samples = samples_of(before)
    same = compare_precision(before, before, samples=samples, most_users=20)
    assert (same.overlap, same.users, same.samples) == (1.0, 20, 2000)
    assert all(t.before == t.after and t.largest_difference == 0 for t in same.tasks)

    after = written_again(bundle, tmp_path / "int4", embedding_precision="int4", item_precision="int8")
    cost = compare_precision(before, after, samples=samples, most_users=20)
    scores = [ranker.predict(samples, items=ranker.items) for ranker in (before, after)]
    for i, task in enumerate(cost.tasks):
        assert task.task == before.schema.tasks[i].name
        assert 0 < task.largest_difference == abs(scores[1] - scores[0])[:, i].max() < 0.2
        assert [task.before, task.after] == [roc_auc(samples.labels[:, i], s[:, i]) for s in scores]
    assert cost.overlap is not None
    assert 0.5 < cost.overlap < 1
    assert cost.memory[1] < cost.memory[0]
    table = cost.table()
    assert [row[0] for row in table.rows] == [t.name for t in before.schema.tasks]
    assert f"{cost.overlap:.1%} stay (20 users)" in table.note


def test_other_items_are_refused(tmp_path: Path) -> None:
    bundle = open_bundle(BUNDLE)
    few, more = (written_again(bundle, tmp_path / str(n), n_items=n) for n in (5, 6))
    with pytest.raises(SchemaError, match="the rankers differ in tasks or items"):
        compare_precision(few, more)
