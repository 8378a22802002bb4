"""The packaged data set, and a log of another shape through the same code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmtr.datasets import DataSet, config_path, kuairand, load
from fastmtr.errors import ConfigError
from fastmtr.features import FeaturePipeline
from fastmtr.training.samples import Prepared, Samples

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TAOBAO = SHARED / "taobao_userbehavior_head"
OUTCOMES = {
    "play_time_ms",
    "is_click",
    "long_view",
    "is_like",
    "is_comment",
    "is_follow",
    "is_forward",
    "is_profile_enter",
}


@pytest.fixture(scope="module")
def data() -> DataSet:
    return kuairand()


@pytest.fixture(scope="module")
def prepared(data: DataSet) -> Prepared:
    return data.prepare()


def test_the_package_holds_data_and_licence_within_its_limit(data: DataSet) -> None:
    assert (data.log.num_rows, data.users.num_rows, data.items.num_rows) == (228_329, 27_285, 7_583)  # type: ignore[union-attr]
    folder = config_path().parent / "kuairand_pure"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    assert "Attribution-ShareAlike 4.0 International" in (folder / "LICENSE").read_text()
    assert "10.1145/3511808.3557624" in (folder / "README.md").read_text()


def test_no_outcome_is_an_input(data: DataSet) -> None:
    assert not OUTCOMES & {feature.name for feature in data.config.schema.features}
    assert set(data.log.column_names) >= OUTCOMES


def test_kuairand_is_prepared(prepared: Prepared) -> None:
    report = prepared.report
    # Published counts of the slice, less its exact duplicates.
    removed = {step.rule: step.removed for step in report.cleaning.steps if step.removed}
    assert removed == {"exact duplicate": 5_877}
    train, valid, test = report.splits
    assert train.samples + valid.samples + test.samples + report.before_training == 228_329 - 5_877
    assert (report.users, report.items) == (27_285, 7_583)
    for part in report.splits:
        assert part.mean["click"] == pytest.approx(0.45, abs=0.02)
        assert part.mean["long_view"] == pytest.approx(0.315, abs=0.02)
        assert part.mean["like"] == pytest.approx(0.017, abs=0.003)
    assert train.last < valid.first < valid.last < test.first  # type: ignore[operator]
    assert prepared.catalogue.labels is not None
    assert prepared.catalogue.labels[0] == "video 0 (tag 39, author 7349781)"


def test_test_samples_are_checked_against_training(prepared: Prepared) -> None:
    check = prepared.report.features
    assert not check.absent
    found = {column.name: column for column in check.columns}
    assert found.keys() == {f.name for f in prepared.schema.features if f.kind != "sequence"}
    assert {column.rows for column in check.columns} == {prepared.test.n_rows}
    # The test days are other days of the week; hours are as they were.
    assert found["weekday"].verdict == "drift"
    assert found["hour"].verdict == "ok"


def test_all_inputs_are_in_range(prepared: Prepared) -> None:
    for samples in (prepared.train, prepared.valid, prepared.test):
        packed = {
            "request": samples.request,
            "item": samples.items(prepared.catalogue.packed),
        }
        assert all(np.isfinite(each.dense).all() for each in packed.values())
        for spec in prepared.pipeline.inputs:
            if spec.kind == "ids":
                ids = packed[spec.domain].ids[:, spec.offset : spec.offset + spec.width]
                assert spec.rows is not None
                assert 0 <= ids.min() <= ids.max() < spec.rows


def test_one_request_gives_what_the_table_gave(data: DataSet, prepared: Prepared) -> None:
    state, arrays = prepared.pipeline.state()
    pipeline = FeaturePipeline.from_state(prepared.schema, state, arrays)
    users = pd.DataFrame(data.users.to_pandas()).set_index("user_id", drop=False)  # type: ignore[union-attr]
    log = data.log.to_pandas()
    names = {f.name for f in prepared.schema.of_entity("user") if not f.from_log}
    test = prepared.test
    for i in np.random.default_rng(0).choice(test.n_rows, 50, replace=False):
        row, moment = int(test.user_rows[i]), int(test.timestamps[i])
        key = int(prepared.users.keys[row])
        events = log[(log.time_ms == moment) & (log.user_id == key)]
        video = prepared.catalogue.keys[test.item_rows[i]]
        tab = events[events.video_id == video].tab.iloc[0]
        stored = prepared.users.packed.take([row])
        raw = {name: value for name, value in users.loc[key].to_dict().items() if name in names}
        # The stored user in a new context; and every raw value again, from its table.
        for given in ({"tab": tab, "time_ms": moment}, {"tab": tab, "time_ms": moment, **raw}):
            packed = pipeline.transform_row("request", given, base=stored)
            assert packed.ids.tolist() == [test.request.ids[i].tolist()]
            assert packed.dense.tobytes() == test.request.dense[i].tobytes()


def test_past_rates_predict(prepared: Prepared) -> None:
    from sklearn.metrics import roc_auc_score

    test: Samples = prepared.test
    place = {i.name: i.offset for i in prepared.pipeline.inputs}
    items = test.items(prepared.catalogue.packed).dense
    for task, floor in {"click": 0.67, "long_view": 0.67, "like": 0.77}.items():
        odds = test.request.dense[:, place[f"user_{task}_odds"]] + items[:, place[f"video_{task}_odds"]]
        label = test.labels[:, [t.name for t in prepared.schema.tasks].index(task)]
        assert roc_auc_score(label, odds) > floor


def test_an_unknown_data_set_is_refused_kindly() -> None:
    with pytest.raises(ConfigError, match=r"no data set is named 'movies'; there are \['kuairand'\]"):
        config_path("movies")


@pytest.mark.skipif(not TAOBAO.is_dir(), reason=f"the Taobao data set is not at {TAOBAO}")
def test_taobao_long_log() -> None:
    data = load(Path(__file__).with_name("taobao.toml"))
    prepared = data.prepare()
    report = prepared.report
    assert data.log.num_rows == 84_475
    assert {step.rule: step.removed for step in report.cleaning.steps if step.removed} == {"before 2017-11-25": 35}
    assert report.users == 815
    assert set(report.tasks.without_sample.values()) == {0}
    assert report.tasks.negatives == pytest.approx(2 * report.tasks.samples, rel=0.001)

    # The labels of the samples that were not drawn, computed again with pandas.
    log = data.log.to_pandas()
    log = log[log.timestamp >= 1_511_539_200]  # 2017-11-25 in China
    log["day"] = (log.timestamp + 8 * 3600) // 86_400
    samples = log.groupby(["user_id", "item_id", "day"], as_index=False).timestamp.min()
    ends = {"train": 1_512_057_600, "valid": 1_512_144_000, "test": 2**62}
    for part, end in ends.items():
        found: Samples = getattr(prepared, part)
        table = pd.DataFrame(
            {
                "user_id": prepared.users.keys[found.user_rows],
                "item_id": prepared.catalogue.keys[found.item_rows],
                "timestamp": found.timestamps,
            }
        )
        real = table.merge(samples, how="left", indicator=True)._merge.eq("both").to_numpy()
        assert (found.labels[~real] == 0).all()
        assert (found.labels[real, 0] == 1).all()
        for column, action in enumerate(("cart", "fav", "buy"), 1):
            events = log[log.behavior == action][["user_id", "item_id", "timestamp"]].rename(
                columns={"timestamp": "then"}
            )
            pairs = table[real].reset_index().merge(events)
            hit = pairs[(pairs.then >= pairs.timestamp) & (pairs.then < pairs.timestamp + 86_400) & (pairs.then < end)]
            assert found.labels[real, column].sum() == hit["index"].nunique() > 0
            assert set(np.flatnonzero(found.labels[:, column])) == set(hit["index"])
