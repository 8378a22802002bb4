"""A small log with a structure that can be learned, as prepared samples: for the tests of training and evaluation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from fastmtr.schema import Feature, Schema, Task
from fastmtr.training.samples import Prepared, Samples, prepare
from fastmtr.training.splits import SplitRules
from fastmtr.training.tasks import TaskRule, TaskRules

# Matrices this small are quickest on one thread; on a busy machine two would mostly wait for each other.
torch.set_num_threads(1)

SCHEMA = Schema(
    user="user",
    item="item",
    timestamp="time",
    features=(
        Feature(name="user", entity="user", kind="categorical", dim=4),
        Feature(name="group", entity="user", kind="categorical", dim=3),
        Feature(name="clicked", entity="user", kind="sequence", of="item", event="click", length=5),
        Feature(name="hour", entity="context", kind="categorical", derive="hour", dim=2),
        Feature(name="item", entity="item", kind="categorical", dim=4),
        Feature(name="topic", entity="item", kind="categorical", dim=3),
        Feature(name="price", entity="item", kind="numeric"),
        Feature(name="item_click_odds", entity="item", kind="numeric", event="click"),
        Feature(name="position", entity="candidate", kind="numeric"),
    ),
    tasks=(
        Task(name="click"),
        Task(name="buy", depends_on="click"),
        Task(name="watch", kind="regression", weight=0.2),
    ),
)


@lru_cache(maxsize=1)
def small_prepared() -> Prepared:
    """4000 impressions over ten days: users of a group click on items of its topic, some users click more than others,
    and they buy the cheap items of those."""
    rng = np.random.default_rng(0)
    n, n_users, n_items = 4000, 80, 50
    group, topic, price = rng.integers(0, 4, n_users), rng.integers(0, 4, n_items), rng.normal(size=n_items)
    user, item, position = rng.integers(0, n_users, n), rng.integers(0, n_items, n), rng.integers(0, 10, n)
    eager = rng.normal(size=n_users)
    match = group[user] == topic[item]
    click = rng.random(n) < 1 / (1 + np.exp(-(3.0 * match - 1.5 - 0.1 * position + eager[user])))
    buy = click & (rng.random(n) < 1 / (1 + np.exp(price[item] + 0.5)))
    watch = 2.0 * match + 0.5 * eager[user] + 0.3 * rng.normal(size=n)
    watch[rng.random(n) < 0.1] = np.nan
    log = {
        "user": user,
        "item": item,
        "time": np.sort(rng.integers(0, 10 * 86_400, n)),
        "position": position.astype(float),
        "click": click.astype(int),
        "buy": buy.astype(int),
        "watch": watch,
    }
    return prepare(
        SCHEMA,
        log,
        users={"user": np.arange(n_users), "group": group},
        items={"item": np.arange(n_items), "topic": topic, "price": price},
        tasks=TaskRules(rules={"click": TaskRule()}),
        split=SplitRules(valid_from="1970-01-08", test_from="1970-01-09"),
    )


def cut(samples: Samples, rows: np.ndarray) -> Samples:
    """Only these samples."""
    return Samples(
        request=samples.request.take(rows),
        item_rows=samples.item_rows[rows],
        item_dense=None if samples.item_dense is None else samples.item_dense[rows],
        candidate=None if samples.candidate is None else samples.candidate.take(rows),
        user_rows=samples.user_rows[rows],
        labels=samples.labels[rows],
        timestamps=samples.timestamps[rows],
    )
