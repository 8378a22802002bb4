"""A schema with one feature of every operator, and raw rows for it: for tests of features, training and serving."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmtr.schema import Feature, Schema, Task

DAY = 86_400

FEATURES = (
    Feature(name="user", entity="user", kind="categorical", dim=3),
    Feature(name="city", entity="user", kind="categorical", dim=2, hash_rows=5),
    Feature(name="age", entity="user", kind="numeric", scaling="quantile"),
    Feature(
        name="city_and_user", entity="user", kind="categorical", cross=("city", "user"), hash_rows=6, hashes=2, dim=2
    ),
    Feature(name="account_age", entity="user", kind="numeric", derive="recency", source="joined", scaling="log1p"),
    Feature(name="city_clicks", entity="user", kind="target", of="city", event="click", folds=3),
    Feature(name="last_authors", entity="user", kind="sequence", of="author", source="visited", lookup=True, length=3),
    Feature(name="visit_gaps", entity="user", kind="gaps", of="last_authors", source="visit_times", length=3),
    Feature(name="clicked", entity="user", kind="sequence", of="item", event="click", length=4),
    Feature(name="click_gaps", entity="user", kind="gaps", of="clicked", length=4),
    Feature(name="day_rate", entity="user", kind="numeric", event="click", statistic="rate", window=24),
    Feature(name="hour", entity="context", kind="categorical", derive="hour_of_week", dim=2),
    Feature(name="day", entity="context", kind="numeric", derive="hour_cycle"),
    Feature(name="year", entity="context", kind="numeric", derive="year_cycle"),
    Feature(name="query", entity="context", kind="text", ngrams=2, dim=3, length=6),
    Feature(name="item", entity="item", kind="categorical", dim=3),
    Feature(name="author", entity="item", kind="categorical", dim=3),
    Feature(name="tags", entity="item", kind="multi", dim=2, length=3),
    Feature(name="price", entity="item", kind="numeric"),
    Feature(name="price_range", entity="item", kind="categorical", source="price", buckets=4, dim=2),
    Feature(name="price_place", entity="item", kind="numeric", source="price", scaling="normal", indicator=True),
    Feature(name="author_and_item", entity="item", kind="categorical", cross=("author", "item"), oov_rows=2, dim=2),
    Feature(name="freshness", entity="item", kind="numeric", derive="recency", source="published"),
    Feature(name="picture", entity="item", kind="vector", dim=4),
    Feature(name="words", entity="item", kind="tfidf", source="title", dim=8, ngrams=2),
    Feature(name="title", entity="item", kind="text", dim=2, length=4),
    Feature(name="author_clicks", entity="item", kind="target", of="author", event="click", folds=3),
    Feature(name="author_count", entity="item", kind="target", of="author", encoding="count", folds=3),
    Feature(name="author_share", entity="item", kind="target", of="author", encoding="rate", scaling="none", folds=3),
    Feature(name="shelf", entity="candidate", kind="categorical", dim=2),
    Feature(name="match", entity="candidate", kind="vector", dim=2),
    Feature(name="labels", entity="candidate", kind="multi", dim=2, length=2),
    Feature(name="shelf_likes", entity="candidate", kind="target", of="shelf", event="like", folds=3),
)
SCHEMA = Schema(
    user="user",
    item="item",
    timestamp="time",
    utc_offset_hours=5.5,
    features=FEATURES,
    tasks=(Task(name="click"), Task(name="like", kind="regression")),
)

_WORDS = ("Summer", "dress", "red", "Straße", "été", "and", "shoes", "42", "İ", "naïve")


def _title(rng: np.random.Generator) -> str | None:
    return None if rng.random() < 0.1 else " ".join(rng.choice(_WORDS, rng.integers(0, 6)))


def raw_tables(n: int = 900, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Users, items and a log of ten days, with nulls wherever they may be."""
    rng = np.random.default_rng(seed)
    users, items = np.arange(40), np.arange(100, 130)

    def some(values: list[Any], share: float = 0.15) -> list[Any]:
        return [None if rng.random() < share else value for value in values]

    visits = [rng.choice(np.append(items, 999), rng.integers(0, 5)).tolist() for _ in users]
    return {
        "users": {
            "user": users,
            "city": some(rng.choice(["Rome", "Oslo", "Graz", "Łódź"], len(users)).tolist()),
            "age": some(rng.integers(15, 80, len(users)).astype(float).tolist()),
            "joined": some(rng.integers(-(10**6), 10 * DAY, len(users)).tolist()),
            "visited": some(visits),
            "visit_times": some([rng.integers(0, 9 * DAY, len(v)).tolist() for v in visits]),
        },
        "items": {
            "item": items,
            "author": some(rng.choice(["ann", "bob", "eve"], len(items)).tolist()),
            "tags": some([",".join(rng.choice(["new", "sale", "kids"], 2)) for _ in items]),
            "price": some(rng.gamma(2, 5, len(items)).tolist()),
            "published": some(rng.integers(-100 * DAY, 5 * DAY, len(items)).tolist()),
            "picture": some(rng.normal(size=(len(items), 4)).tolist()),
            "title": [_title(rng) for _ in items],
        },
        "log": {
            "user": rng.integers(0, 40, n),
            "item": rng.integers(100, 130, n),
            "time": np.sort(rng.integers(0, 10 * DAY, n)),
            "query": [_title(rng) for _ in range(n)],
            "shelf": some(rng.choice(["top", "side"], n).tolist()),
            "match": some(rng.normal(size=(n, 2)).tolist()),
            "labels": some([rng.choice(["x", "y"], rng.integers(0, 3)).tolist() for _ in range(n)]),
            "click": rng.integers(0, 2, n),
            "like": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
        },
    }
