"""A configuration file with a small log beside it, for tests of what runs from a file to a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CONFIG = """
[data]
log = "log.csv"
items = "items.csv"
item_label = "thing {item} of topic {topic}"

[schema]
user = "user"
item = "item"
timestamp = "time"
features = [
  { name = "user", entity = "user", kind = "categorical", dim = 4 },
  { name = "clicked", entity = "user", kind = "sequence", of = "item", event = "click", length = 5 },
  { name = "hour", entity = "context", kind = "categorical", derive = "hour", dim = 2 },
  { name = "item", entity = "item", kind = "categorical", dim = 4 },
  { name = "topic", entity = "item", kind = "categorical", dim = 3 },
]
tasks = [{ name = "click" }, { name = "buy" }]

[split]
valid_from = "1970-01-08"
test_from = "1970-01-09"

[model]
type = "mmoe"
experts = 2
expert = [12, 8]
tower = [4]

[model.two_tower]
dim = 4
hidden = []

[training]
epochs = 3
learning_rate = 0.02
batch_size = 128

[fusion]
weights = { click = 1.0, buy = 0.5 }
"""


def write_project(folder: Path) -> Path:
    """Write the files; returns the configuration's path."""
    rng = np.random.default_rng(0)
    n, n_users, n_items = 2500, 60, 40
    topic = rng.integers(0, 3, n_items)
    user, item = rng.integers(0, n_users, n), rng.integers(0, n_items, n)
    click = rng.random(n) < np.where(user % 3 == topic[item], 0.8, 0.2)
    buy = click & (rng.random(n) < 0.4)
    time = np.sort(rng.integers(0, 10 * 86_400, n))
    rows = zip(user, item, time, click.astype(int), buy.astype(int), strict=True)
    (folder / "log.csv").write_text("user,item,time,click,buy\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))
    (folder / "items.csv").write_text("item,topic\n" + "".join(f"{i},{t}\n" for i, t in enumerate(topic)))
    path = folder / "small.toml"
    path.write_text(CONFIG)
    return path
