"""Every operator on the whole way: raw tables, samples, a trained model, a bundle, and requests of raw values."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from operator_schema import DAY, SCHEMA, raw_tables

from fastmtr import Ranker
from fastmtr.bundle import write_bundle
from fastmtr.convert import convert
from fastmtr.features.columns import Ticks
from fastmtr.features.target_encoding import folds_of
from fastmtr.models import ModelConfig, build_model
from fastmtr.training.samples import HistoryRules, Prepared, Samples, prepare
from fastmtr.training.splits import SplitRules
from fastmtr.training.tasks import TaskRules
from fastmtr.training.trainer import TrainerConfig, predict, train


@lru_cache(maxsize=2)
def prepared(step: Any = "event") -> Prepared:
    tables = raw_tables()
    return prepare(
        SCHEMA,
        tables["log"],
        users=tables["users"],
        items=tables["items"],
        tasks=TaskRules(),
        split=SplitRules(valid_from="1970-01-08T05:30", test_from="1970-01-09T05:30"),
        history=HistoryRules(step=step),
    )


def column(packed: Any, name: str) -> np.ndarray:
    """The columns of one input."""
    found = next(i for i in prepared().pipeline.inputs if i.name == name)
    matrix = packed.dense if found.kind == "dense" else packed.ids
    return matrix[:, found.offset : found.offset + found.width]


LOG = raw_tables()["log"]
USERS = raw_tables()["users"]
ITEMS = raw_tables()["items"]


def log_row(samples: Samples, i: int) -> int:
    """The row of the log that a sample comes from."""
    user = prepared().users.keys[samples.user_rows[i]]
    item = prepared().catalogue.keys[samples.item_rows[i]]
    (row,) = np.flatnonzero((LOG["time"] == samples.timestamps[i]) & (LOG["user"] == user) & (LOG["item"] == item))
    return int(row)


def raw_request(row: int) -> dict[str, Any]:
    """All that is known of a user at the moment of a row of the log, as a service that keeps its own log would say."""
    user, time = int(LOG["user"][row]), int(LOG["time"][row])
    own = np.flatnonzero((LOG["user"] == user) & (LOG["time"] < time))
    clicks = own[LOG["click"][own] == 1][::-1]
    recent = own[LOG["time"][own] >= time - DAY]
    before = LOG["time"] < time
    known = {name: USERS[name][user] for name in USERS}
    return known | {
        "clicked": LOG["item"][clicks].tolist(),
        "click_gaps": LOG["time"][clicks].tolist(),
        "day_rate": (LOG["click"][recent].sum() + 20 * LOG["click"][before].mean()) / (len(recent) + 20),
        "time": time,
        "query": LOG["query"][row],
    }


def test_training_samples_are_what_a_service_would_ask_at_their_moment() -> None:
    data = prepared()
    encoded_out_of_fold = next(i.offset for i in data.pipeline.inputs if i.name == "city_clicks")
    for i in range(20, data.train.n_rows, 37):
        row = data.pipeline.transform_row("request", raw_request(log_row(data.train, i)))
        assert row.ids.tolist() == [data.train.request.ids[i].tolist()]
        found = data.train.request.dense[i].copy()
        found[encoded_out_of_fold] = row.dense[0, encoded_out_of_fold]
        # The rate's running sums are not the same additions.
        np.testing.assert_allclose(row.dense[0], found, rtol=1e-6)
        for name in ("visit_gaps", "click_gaps", "day", "year", "account_age"):
            assert column(row, name).tobytes() == column(data.train.request, name)[i].tobytes()


@pytest.mark.parametrize("step", ["event", "day"])
def test_times_are_scaled_as_of_the_moments_that_samples_see(step: Any) -> None:
    data = prepared(step)
    items = data.train.items(data.catalogue.packed)
    for name, packed in (
        ("account_age", data.train.request),
        ("freshness", items),
        *((n, data.train.request) for n in ("visit_gaps", "click_gaps")),
    ):
        numbers = column(packed, name)
        # A null is the mean of a recency, and no event of gaps: zero in both cases.
        known = numbers[numbers != 0].astype(np.float64)
        assert known.mean() == pytest.approx(0, abs=1e-4)
        assert known.std() == pytest.approx(1, abs=1e-4)


def test_known_users_and_items_are_what_test_samples_see() -> None:
    data = prepared()
    for i in range(0, data.test.n_rows, 7):
        row = log_row(data.test, i)
        base = data.users.packed.take([int(data.test.user_rows[i])])
        context = {"query": LOG["query"][row], "time": int(LOG["time"][row])}
        found = data.pipeline.transform_row("request", context, base=base)
        assert found.ids.tolist() == [data.test.request.ids[i].tolist()]
        assert found.dense.tobytes() == data.test.request.dense[i].tobytes()
    assert data.test.item_dense is None
    # Freshness is as of the beginning of the test samples.
    now = 8 * DAY
    for i in range(0, len(ITEMS["item"]), 5):
        raw = {name: values[i] for name, values in ITEMS.items()} | {"time": now}
        found = data.pipeline.transform_row("item", raw)
        stored = data.catalogue.packed.take([i])
        assert found.ids.tolist() == stored.ids.tolist()
        assert found.dense.tobytes() == stored.dense.tobytes()


@pytest.mark.parametrize("name", ["author_clicks", "city_clicks", "author_count", "author_share", "shelf_likes"])
def test_encodings_of_training_samples_come_from_other_folds(name: str) -> None:
    data, feature = prepared(), SCHEMA.feature(name)
    pipeline, train = data.pipeline, data.train
    rows = np.array([log_row(train, i) for i in range(train.n_rows)])
    items, users, shelves = (
        LOG[key][rows] if key != "shelf" else np.array(LOG[key])[rows] for key in ("item", "user", "shelf")
    )
    category = {
        "author": np.array(ITEMS["author"])[items - 100],
        "city": np.array(USERS["city"])[users],
        "shelf": shelves,
    }[str(feature.of)]
    keys = (
        [pa.array(users)]
        if feature.entity != "user"
        else [pa.array(users), pa.array(items), Ticks(LOG["time"][rows], None)]
    )
    fold = folds_of(keys, feature.folds)
    assert np.bincount(fold, minlength=3).min() > len(rows) / 6
    label = LOG["like" if feature.event == "like" else "click"][rows].astype(float)
    label = np.zeros(len(rows)) if feature.event is None else label
    known = ~np.isnan(label)
    ids = pipeline.encoder(str(feature.of)).encode(pa.array(category))

    def encoded(others: np.ndarray, row: int) -> float:
        own = others & (ids == row)
        if feature.encoding == "rate":
            return own.sum() / others.sum()
        if feature.encoding == "count":
            return np.log1p(own.sum() * known.sum() / others.sum())
        return (label[own].sum() + 20 * label[others].mean()) / (own.sum() + 20)

    whole = np.array([encoded(known, row) for row in ids])
    shift, factor = (whole[known].mean(), whole[known].std()) if feature.scaling == "standard" else (0.0, 1.0)
    packed = {"item": train.items(data.catalogue.packed), "user": train.request, "candidate": train.candidate}
    found = column(packed[feature.entity], name)[:, 0]
    for i in range(0, train.n_rows, 23):
        expected = (encoded(known & (fold != fold[i]), ids[i]) - shift) / factor
        assert found[i] == pytest.approx(expected, abs=1e-5)
    # Validation samples see what all training samples say.
    table = {
        "item": data.valid.items(data.catalogue.packed),
        "user": data.valid.request,
        "candidate": data.valid.candidate,
    }
    served = np.unique(column(table[feature.entity], name))
    assert np.isin(served.round(4), ((np.unique(whole) - shift) / factor).astype(np.float32).round(4)).all()


def test_a_model_of_every_operator_scores_raw_requests_as_it_scored_samples(tmp_path: Path) -> None:
    data, test = prepared(), prepared().test
    config = ModelConfig(type="shared_bottom", bottom=(16,), tower=(8,), embedding_std=0.5)
    model = build_model(config, data.pipeline.inputs, schema=SCHEMA)
    train(model, data, config=TrainerConfig(epochs=1, batch_size=128), progress=False)
    bundle = write_bundle(
        tmp_path / "bundle",
        schema=SCHEMA,
        graph=convert(model).graph,
        pipeline_state=data.pipeline.state(),
        catalogue=data.catalogue,
        users=data.users,
        fusion={"kind": "product", "tasks": ["click"], "weights": [1.0], "offsets": [0.0]},
    )
    ranker = Ranker.load(bundle)
    expected = predict(model, test, catalogue=data.catalogue.packed)
    for i in range(0, test.n_rows, 9):
        row = log_row(test, i)
        found = ranker.score(
            int(LOG["user"][row]),
            [int(LOG["item"][row])],
            context={"query": LOG["query"][row], "time": int(LOG["time"][row])},
            candidates={name: [LOG[name][row]] for name in ("shelf", "match", "labels")},
        )
        np.testing.assert_allclose(found.values[0], expected[i], atol=1e-5)
    # A user whom the bundle does not know, by raw values alone.
    i = data.train.n_rows - 5
    raw = raw_request(log_row(data.train, i))
    packed = data.pipeline.transform_row("request", raw)
    items, candidates = ranker.items[:6], {name: LOG[name][:6] for name in ("shelf", "match", "labels")}
    (expected_scores,) = ranker.score(packed, items, candidates=candidates)
    assert ranker.score(raw, items, candidates=candidates).values.tobytes() == expected_scores.values.tobytes()
