"""fastmtr.features.quality: what is counted, the stability index, and verdicts that small samples do not shake."""

from __future__ import annotations

import json
import math
import re

import msgspec
import numpy as np
import operator_schema
import pyarrow as pa
import pytest

from fastmtr.errors import SchemaError
from fastmtr.evaluation import html
from fastmtr.features import FeaturePipeline
from fastmtr.features.accumulators import NumberSummary
from fastmtr.features.kinds import operation
from fastmtr.features.quality import (
    TOP,
    FeatureCheck,
    Limits,
    category_statistics,
    check_counts,
    compare,
    number_statistics,
    read_statistics,
    stability_index,
)
from fastmtr.schema import Feature, Schema, Task

EVIL = '<script>alert("x")</script>&$\\frac$'


def numbers(values, fitted=None):
    summary = NumberSummary()
    summary.update(np.asarray(values, np.float64))
    return number_statistics(summary, fitted)


def categories(ids, rows=30, hashed=False):
    """Of ids 0 = null, 1 = unseen, 2 and on = the vocabulary."""
    ids = np.asarray(ids)
    by_row = np.bincount(ids[ids >= 2] - 2, minlength=rows)
    return category_statistics(
        rows=len(ids), nulls=int((ids == 0).sum()), unseen=int((ids == 1).sum()), by_row=by_row, hashed=hashed
    )


def test_numbers_are_counted_between_deciles():
    fitted = numbers([*range(100), np.nan, np.inf])
    assert (fitted.rows, fitted.nulls, fitted.outside) == (102, 1, 1)
    assert fitted.edges == [9, 19, 29, 39, 49, 59, 69, 79, 89]
    assert fitted.bins == [9, *[10] * 8, 11]
    found = numbers([-5, 8, 9, 89, 99, 100, np.nan, -np.inf], fitted)
    assert (found.outside, found.nulls) == (3, 1)
    assert found.bins == [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    ties = numbers([0.0] * 80 + [1.0, 2.0] * 10)
    assert ties.edges == [0.0, 1.0]
    assert ties.bins == [0, 80, 20]
    nothing = numbers([np.nan])
    assert (nothing.edges, nothing.bins) == ([], [0])


def test_categories_are_counted_by_row():
    found = categories([0, 1, 2, 2, 3, 2 + TOP, 3 + TOP])
    assert (found.rows, found.nulls, found.values, found.unseen) == (7, 1, 6, 1)
    assert found.bins == [2, 1, *[0] * (TOP - 2), 2]
    hashed = categories(range(2, 102), rows=100, hashed=True)
    assert hashed.bins == [5] * TOP
    assert categories([0], rows=0).bins == [0]


def test_statistics_there_and_back():
    fitted = {"a": numbers([1, 2, 3]), "b": categories([0, 1, 2])}
    plain = json.loads(msgspec.json.encode(fitted))
    assert read_statistics(plain) == fitted
    for name, change in {
        "a": {"edges": [3.0, 1.0]},
        "b": {"unseen": 7},
    }.items():
        with pytest.raises(SchemaError, match=f"statistics of feature '{name}' are damaged"):
            read_statistics(plain | {name: plain[name] | change})
    with pytest.raises(SchemaError, match="are damaged"):
        read_statistics({"a": {"type": "else"}})
    with pytest.raises(SchemaError, match="are damaged"):
        read_statistics({"a": plain["a"] | {"bins": [-1, 1, 1, 1]}})


def test_the_index_is_as_published():
    fitted, found = [300, 500, 200], [200, 500, 300]
    p, q = ((np.array(c) + 0.5) / (1000 + 1.5) for c in (fitted, found))
    index, chance = stability_index(fitted, found)
    assert index == pytest.approx(float(((q - p) * np.log(q / p)).sum()), rel=1e-12)
    assert index == pytest.approx(2 * 0.1 * math.log(1.5), rel=0.01)
    # chi-squared of 2 degrees of freedom: 9.2103 at 99 %.
    assert chance == pytest.approx(9.2103 * 2 / 1000, rel=0.003)
    assert stability_index([5], [7]) == (0.0, 0.0)
    assert stability_index([0, 0], [3, 4])[1] == 0.0


def test_chance_keeps_its_promise():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(10, 5.0))
    exceeded = 0
    for _ in range(2000):
        index, chance = stability_index(*(rng.multinomial(n, shares).tolist() for n in (2000, 500)))
        exceeded += index > chance
    assert 5 <= exceeded <= 40  # 20 are expected


def test_verdicts():
    rng = np.random.default_rng(1)
    fitted = {
        "same": numbers(rng.normal(size=5000)),
        "moved": numbers(rng.normal(size=5000)),
        "a bit": numbers(rng.normal(size=5000)),
        "holes": numbers(rng.normal(size=5000)),
        "beyond": numbers(rng.random(5000)),
        "city": categories(rng.integers(2, 12, 5000)),
        "words": categories(rng.integers(1, 12, 5000)),
        "gone": numbers([1.0]),
    }
    old = fitted
    holes = np.where(rng.random(3000) < 0.2, np.nan, rng.normal(size=3000))
    found = {
        "same": numbers(rng.normal(size=3000), old["same"]),
        "moved": numbers(rng.normal(size=3000) + 1, old["moved"]),
        "a bit": numbers(rng.normal(size=3000) + 0.4, old["a bit"]),
        "holes": numbers(holes, old["holes"]),
        "beyond": numbers(np.where(rng.random(3000) < 0.05, 7.0, rng.random(3000)), old["beyond"]),
        "city": categories(np.where(rng.random(3000) < 0.3, 1, rng.integers(2, 12, 3000))),
        "words": categories(rng.integers(1, 12, 3000)),
    }
    check = compare(fitted, found)
    by_name = {c.name: c for c in check.columns}
    assert {name: c.verdict for name, c in by_name.items()} == {
        "same": "ok",
        "moved": "drift",
        "a bit": "watch",
        "holes": "drift",
        "beyond": "drift",
        "city": "drift",
        "words": "ok",
    }
    assert by_name["holes"].reasons == ["more nulls"]
    assert by_name["beyond"].reasons == ["out of range"]
    assert by_name["city"].reasons[0] == "more unseen values"
    assert by_name["city"].labels[-1] == "unseen"
    assert by_name["moved"].reasons[0].startswith("another distribution (PSI ")
    assert check.absent == ["gone"]
    assert not check.ok
    assert check.verdict == (
        "4 of 7 features are not as they were fitted: city, moved, beyond, holes; 1 of 7 features are to be watched: "
        "a bit; no column for gone"
    )
    bare = check.without_bins(most=2)
    assert [c.name for c in bare.worst if c.labels] == ["city", "moved"]
    assert bare.table() == check.table()
    assert [row[0] for row in check.table(most=3).rows] == ["city", "moved", "beyond"]
    many = FeatureCheck(columns=[msgspec.structs.replace(by_name["moved"], name=f"f{i}") for i in range(9)])
    assert many.verdict.endswith("f0, f1, f2, f3, f4, f5 and 3 more")
    table = check.table()
    assert {row[0] for row in table.rows[:4]} == {"moved", "holes", "beyond", "city"}
    assert table.rows[-1][1] == "ok"
    assert "by chance" in str(check)
    assert msgspec.json.decode(msgspec.json.encode(check), type=FeatureCheck) == check
    loose = compare(fitted, found, limits=Limits(nulls=1, unseen=1, out_of_range=1, watch=9, drift=9))
    assert {c.verdict for c in loose.columns} == {"ok"}


def test_few_rows_are_no_drift():
    rng = np.random.default_rng(2)
    fitted = {"x": numbers(rng.normal(size=1000)), "c": categories(rng.integers(2, 22, 1000))}
    found = {"x": numbers([0.1, np.nan, 0.3], fitted["x"]), "c": categories([2, 1, 4])}
    check = compare(fitted, found)
    assert check.ok
    assert max(c.index for c in check.columns) > Limits().drift  # chance explains it
    assert check.verdict == "all 2 features are as they were fitted"


def test_other_bins_are_refused():
    one, other = numbers([1, 2, 3]), numbers([4, 5, 6])
    with pytest.raises(SchemaError, match="'x': the new rows were counted in other bins"):
        compare({"x": one}, {"x": other})
    with pytest.raises(SchemaError, match="counted in other bins"):
        compare({"x": one}, {"x": categories([2])})


def test_what_a_server_counted():
    many = category_statistics(rows=10, nulls=0, unseen=0, by_row=np.array([25]), hashed=False)
    fitted = {
        "x": numbers(np.arange(1000.0)),
        "c": categories(np.full(1000, 2)),
        "idle": numbers([1.0]),
        "tags": many,
    }
    counts = {
        "request": {
            "x": {"rows": 500, "nulls": 100, "values": 400, "beyond": 40},
            "idle": {"rows": 0, "nulls": 0, "values": 0, "beyond": 0},
            "other": {"rows": 7, "nulls": 0, "values": 7, "beyond": 0},
        },
        "item": {
            "c": {"rows": 500, "nulls": 0, "values": 500, "unseen": 10},
            "tags": {"rows": 500, "nulls": 0, "values": 1400, "unseen": 700},
        },
        "candidate": {},
    }
    check = check_counts(fitted, counts)
    x, c, tags = check.columns
    assert (x.nulls, x.out_of_range, x.unseen, x.index) == (0.2, 0.1, None, None)
    assert x.reasons == ["more nulls", "out of range"]
    assert (c.unseen, c.out_of_range, c.verdict) == (0.02, None, "ok")
    assert (tags.unseen, tags.fitted_unseen, tags.reasons) == (0.5, 0.0, ["more unseen values"])
    assert "-" in check.table().rows[0]


# ---- of a pipeline ---------------------------------------------------------------------------------------------------

SCHEMA = Schema(
    user="user",
    item="item",
    timestamp="time",
    features=(
        Feature(name="city", entity="user", kind="categorical", min_count=3),
        Feature(name="age", entity="user", kind="numeric"),
        Feature(name="income", entity="user", kind="numeric", scaling="log1p"),
        Feature(name="odds", entity="user", kind="numeric", event="click"),
        Feature(name="hour", entity="context", kind="categorical", derive="hour"),
        Feature(name="author", entity="item", kind="categorical", hash_rows=50),
        Feature(name="tags", entity="item", kind="multi", length=3),
        Feature(name="title", entity="item", kind="text", length=4),
    ),
    tasks=(Task(name="click"),),
)


def raw(seed, n=3000, *, cities=12, older=0.0, silent=0.0):
    rng = np.random.default_rng(seed)
    lists = [None if r < silent else [f"t{j}" for j in rng.integers(0, 9, 2)] for r in rng.random(n)]
    return pa.table(
        {
            "city": [f"city {i}" for i in rng.integers(0, cities, n)],
            "age": rng.normal(40 + older, 9, n),
            "income": rng.lognormal(9, 1, n),
            "odds": rng.normal(size=n),
            "time": rng.integers(0, 10**6, n),
            "author": rng.integers(0, 500, n),
            "tags": lists,
            "title": [" ".join(rng.choice(["blue", "red", "Green"], 2)) for _ in range(n)],
        }
    )


@pytest.fixture(scope="module")
def pipeline():
    return FeaturePipeline(SCHEMA).fit(interactions=raw(0))


def test_a_pipeline_checks_rows(pipeline):
    assert pipeline.check(raw(0)).ok
    check = pipeline.check(raw(1))
    assert check.ok, str(check)
    assert {c.name for c in check.columns} == {f.name for f in SCHEMA.features}
    found = pipeline.check(raw(2, cities=24, older=9, silent=0.3))
    reasons = {c.name: c.reasons for c in found.columns if c.reasons}
    assert reasons.keys() == {"city", "age", "tags"}
    assert reasons["city"][0] == "more unseen values"
    assert reasons["tags"] == ["more nulls"]
    city = next(c for c in found.columns if c.name == "city")
    assert city.unseen == pytest.approx(0.5, abs=0.05)
    assert city.labels[0].startswith("city ")
    for column in [*check.columns, *found.columns]:
        assert len(column.labels) == len(column.fitted) == len(column.found), column.name
    assert next(c for c in check.columns if c.name == "tags").labels[-2:] == ["others", "unseen"]
    age = next(c for c in found.columns if c.name == "age")
    assert age.index == pytest.approx(1.0, abs=0.2)  # of two normal distributions one deviation apart


def test_rows_may_come_in_batches(pipeline):
    table = raw(3, older=4)
    whole = pipeline.check(table)
    order = np.random.default_rng(0).permutation(table.num_rows)
    assert pipeline.check(iter(table.take(order).to_batches(max_chunksize=100))) == whole


def test_statistics_are_saved(pipeline):
    state, arrays = pipeline.state()
    state = json.loads(msgspec.json.encode(state))
    again = FeaturePipeline.from_state(SCHEMA, state, arrays)
    assert again.check(raw(4)) == pipeline.check(raw(4))
    without = FeaturePipeline.from_state(SCHEMA, {k: v for k, v in state.items() if k != "statistics"}, arrays)
    assert without.transform("request", raw(4)).ids.tobytes() == pipeline.transform("request", raw(4)).ids.tobytes()
    with pytest.raises(SchemaError, match="saved by an earlier release; fit them again"):
        without.check(raw(4))


def test_columns_that_are_not_there(pipeline):
    check = pipeline.check(raw(5).drop_columns(["age", "odds", "time"]))
    # What the log makes is in no raw table, so nobody misses it.
    assert check.absent == ["age", "hour"]
    assert not check.ok
    with pytest.raises(SchemaError, match="'city' should hold text"):
        pipeline.check({"city": [1, 2]})


def test_times_are_checked_as_the_model_sees_them():
    schema = Schema(
        user="user",
        item="item",
        timestamp="time",
        features=(
            Feature(name="joined", entity="user", kind="numeric", derive="recency", source="since", scaling="log1p"),
            Feature(name="seen", entity="user", kind="sequence", of="item", length=3),
            Feature(name="gaps", entity="user", kind="gaps", of="seen", source="when", length=3),
            Feature(name="item", entity="item", kind="categorical"),
            Feature(name="day", entity="context", kind="numeric", derive="hour_cycle"),
            Feature(name="picture", entity="item", kind="vector", dim=2),
        ),
        tasks=(Task(name="click"),),
    )

    def rows(seed, *, age, n=2000):
        rng = np.random.default_rng(seed)
        time = rng.integers(10**9, 2 * 10**9, n)
        return pa.table(
            {
                "time": time,
                "since": time - np.floor(rng.lognormal(age, 1, n)).astype(int),
                "when": [sorted(each - rng.integers(1, 10**5, 2)) for each in time.tolist()],
                "item": rng.integers(0, 9, n),
                "picture": [[0.5, 1.0]] * n,
            }
        )

    pipeline = FeaturePipeline(schema).fit(interactions=rows(0, age=10))
    assert pipeline.statistics.keys() == {"joined", "gaps", "item", "day", "picture"}
    assert pipeline.statistics["gaps"].rows == 4000  # one an event
    # A year later, the times are others, and what the model sees is the same.
    assert pipeline.check(rows(1, age=10)).ok
    found = pipeline.check(rows(2, age=12))
    assert [c.name for c in found.columns if c.verdict != "ok"] == ["joined"]
    assert pipeline.check(rows(2, age=10).drop_columns(["when"])).absent == ["gaps"]


def test_the_clock_vectors_and_texts_are_checked_by_one_number_a_row():
    """The place in the day, the vector's length, the number of words."""
    schema = Schema(
        user="user",
        item="item",
        timestamp="time",
        features=(
            Feature(name="day", entity="context", kind="numeric", derive="hour_cycle"),
            Feature(name="picture", entity="item", kind="vector", dim=2),
            Feature(name="about", entity="item", kind="tfidf", source="title", dim=4),
            Feature(name="other", entity="item", kind="vector", dim=3),
        ),
        tasks=(Task(name="click"),),
    )

    def rows(seed, *, hours=24, length=1.0, words=9, n=2000):
        rng = np.random.default_rng(seed)
        of_picture = rng.normal(length, 0.1, (n, 2)).tolist()
        return pa.table(
            {
                "time": rng.integers(0, hours * 3600, n) + 86400 * rng.integers(0, 99, n),
                "picture": [None if i % 50 == 0 else each for i, each in enumerate(of_picture)],
                "title": ["a " * int(each) for each in rng.integers(1, words, n)],
            }
        )

    pipeline = FeaturePipeline(schema).fit(interactions=rows(0))  # which has nothing of "other"
    assert {name: each.nulls for name, each in pipeline.statistics.items()} == {"day": 0, "picture": 40, "about": 0}
    assert pipeline.statistics["day"].high < 1
    assert pipeline.statistics["about"].high == 8
    assert pipeline.check(rows(1)).ok
    for changed, name in (({"hours": 8}, "day"), ({"length": 2.0}, "picture"), ({"words": 20}, "about")):
        assert [c.name for c in pipeline.check(rows(2, **changed)).columns if c.verdict == "drift"] == [name]
    without = rows(3).to_pandas()
    without.loc[:999, "title"] = None
    assert {c.name: c.reasons for c in pipeline.check(without).columns}["about"] == ["more nulls"]


def test_what_a_rule_refuses_is_counted_all_the_same():
    schema = Schema(
        user="user",
        item="item",
        features=(
            Feature(name="city", entity="user", kind="categorical", unseen="error", nulls="error"),
            Feature(name="many", entity="user", kind="categorical", source="city", hash_rows=7, hashes=3),
            Feature(name="spread", entity="user", kind="categorical", source="city", oov_rows=5),
            Feature(name="age", entity="user", kind="numeric", out_of_range="error", nulls="error"),
            Feature(name="decade", entity="user", kind="categorical", source="age", buckets=8),
            Feature(name="both", entity="user", kind="categorical", cross=("city", "age")),
        ),
        tasks=(Task(name="click"),),
    )

    def rows(seed, *, cities=6, n=3000):
        rng = np.random.default_rng(seed)
        ages = rng.integers(20, 25, n).astype(float)
        return pa.table({"city": [f"c{i}" for i in rng.integers(0, cities, n)], "age": ages})

    pipeline = FeaturePipeline(schema).fit(interactions=rows(0))
    assert pipeline.statistics.keys() == {f.name for f in schema.features}
    assert pipeline.check(rows(1)).ok
    wild = rows(2, cities=12).to_pandas()
    wild.loc[:999, "age"] = 99.0
    wild.loc[2000:, "age"] = None
    wild.loc[2900:, "city"] = None
    found = {c.name: c for c in pipeline.check(wild).columns}
    assert found["city"].unseen == pytest.approx(0.5, abs=0.05)
    assert found["spread"].unseen == found["city"].unseen
    assert found["many"].unseen == 0
    assert found["age"].reasons[:2] == ["more nulls", "out of range"]
    assert found["decade"].reasons[:2] == ["more nulls", "out of range"]
    assert found["both"].unseen == pytest.approx(0.75, abs=0.05)
    for column in found.values():
        assert len(column.labels) == len(column.fitted) == len(column.found)


@pytest.mark.parametrize("domain", ["request", "item", "candidate"])
def test_the_engine_counts_what_a_check_of_the_table_counts(domain):
    own = {"clicked", "click_gaps", "day_rate"}  # made by the log
    kept = tuple(f for f in operator_schema.FEATURES if f.name not in own)
    schema = msgspec.structs.replace(operator_schema.SCHEMA, features=kept)
    raw = operator_schema.raw_tables()
    pipeline = FeaturePipeline(schema).fit(users=raw["users"], items=raw["items"], interactions=raw["log"])
    other = operator_schema.raw_tables(200, seed=1)
    source = {"request": "users", "item": "items", "candidate": "log"}[domain]
    n = len(next(iter(other[source].values())))
    columns = other[source] | {name: other["log"][name][:n] for name in ("time", "query")}
    if domain == "item":
        columns["price"] = [each and each * 3 for each in columns["price"]]
        columns["tags"] = [[], [None], ["new", None, "other", "other"], None, *columns["tags"][4:]]
        columns["tags"] = [each.split(",") if isinstance(each, str) else each for each in columns["tags"]]
        columns["author"] = [None, "someone", *columns["author"][2:]]
        columns["title"] = ["", " ,", None, *columns["title"][3:]]
    columns = {name: each for name, each in columns.items() if name in pipeline.raw_columns(domain)}
    for row in zip(*columns.values(), strict=True):
        pipeline.transform_row(domain, dict(zip(columns, row, strict=True)))
    mine = {f.name for f in pipeline.features(domain)}
    expected = {c.name: c for c in pipeline.check(columns).columns if c.name in mine}
    counted = {c.name: c for c in check_counts(pipeline.statistics, json.loads(pipeline.native.counts())).columns}
    assert counted.keys() == expected.keys()
    assert len(counted) > 1
    for name, one in counted.items():
        for what in ("rows", "nulls", "fitted_nulls", "unseen", "fitted_unseen", "out_of_range"):
            # The engine does not know the ends of buckets, nor of what is told of the clock, vectors and texts.
            unknown = operation(schema.feature(name)) in ("bucket", "cyclic", "vector", "tfidf")
            if what != "out_of_range" or not unknown:
                assert getattr(one, what) == getattr(expected[name], what), (name, what)


def test_page():
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(3)
    fitted = {EVIL: categories(rng.integers(2, 12, 500)), "x": numbers(rng.normal(size=500)), "no": numbers([np.nan])}
    found = {
        EVIL: categories(rng.integers(2, 12, 500)),
        "x": numbers(rng.normal(size=500) + 2, fitted["x"]),
        "no": numbers([1.0], fitted["no"]),
    }
    check = compare(fitted, found, labels={EVIL: [EVIL] * (TOP + 1)})
    page = html.render_check(check, title=EVIL)
    assert "<script" not in page
    assert page.count("<img ") == 2
    assert page == html.render_check(check, title=EVIL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z/]""", page, re.I)
    empty = html.render_check(FeatureCheck(columns=[]))
    assert "all 0 features" in empty


def test_page_without_matplotlib(monkeypatch):
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    check = compare({"x": numbers([1.0, 2.0])}, {"x": numbers([1.0], numbers([1.0, 2.0]))})
    page = html.render_check(check)
    assert "<img" not in page
    assert "matplotlib is not installed" in page
