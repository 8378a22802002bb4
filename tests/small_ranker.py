"""A small bundle with everything that a ranker knows: users, items with labels, what was seen, a retrieval head."""

import numpy as np
import pyarrow as pa

from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.features import FeaturePipeline
from fastmtr.graph import GraphBuilder
from fastmtr.schema import Feature, Schema, Task

N_USERS, N_ITEMS = 12, 40


def schema_with(*more):
    return Schema(
        user="user",
        item="item",
        features=(
            Feature(name="user", entity="user", kind="categorical", dim=4),
            Feature(name="age", entity="user", kind="numeric"),
            Feature(name="place", entity="context", kind="categorical", dim=3),
            Feature(name="item", entity="item", kind="categorical", dim=4),
            Feature(name="price", entity="item", kind="numeric"),
            *more,
        ),
        tasks=(Task(name="click"), Task(name="buy")),
    )


def make_bundle(path, *, text_keys=False, head=True, candidate=False, seen=True, labels=True, **options):
    rng = np.random.default_rng(0)
    schema = schema_with(*([Feature(name="position", entity="candidate", kind="numeric")] if candidate else []))
    users = pa.table({"user": np.arange(100, 100 + N_USERS), "age": rng.normal(size=N_USERS)})
    numbers = rng.permutation(1000)[:N_ITEMS]
    keys = [f"i{n}" for n in numbers] if text_keys else numbers.tolist()
    items = pa.table({"item": keys, "price": rng.normal(size=N_ITEMS)})
    events = pa.table({"place": ["home", "work"] * 5, "position": np.arange(10.0)})
    pipeline = FeaturePipeline(schema).fit(users=users, items=items, interactions=events)
    g = GraphBuilder(pipeline.inputs)
    parts = {}
    for each in pipeline.inputs:
        if each.kind == "dense":
            parts[each.name] = each.name
        else:
            table = g.weight(f"{each.name}.table", rng.normal(size=(each.rows, 4)))
            parts[each.name] = g.embedding(each.name, table, padding=each.padding)
    request = g.concat([parts["user"], parts["age"], parts["place"]])
    item = g.concat([parts["item"], parts["price"]])
    x = g.concat([request, item, *([parts["position"]] if candidate else [])])
    hidden = g.affine(x, w=g.weight("w", rng.normal(size=(8, g.width(x))) / 3), activation="relu")
    for task in ("click", "buy"):
        w = g.weight(f"{task}.w", rng.normal(size=(1, 8)))
        g.output(task, g.affine(hidden, w=w, activation="sigmoid"))
    if head:
        for name, value, role in (("user_vector", request, "request"), ("item_vector", item, "item")):
            w = g.weight(f"{name}.w", rng.normal(size=(6, g.width(value))))
            g.output(name, g.affine(value, w=w), role=role)
    request_table = users.append_column("place", pa.nulls(N_USERS, pa.string()))
    offsets = np.minimum(np.arange(N_USERS + 1) * 3, N_ITEMS)
    rows = np.concatenate([np.sort(rng.permutation(N_ITEMS)[:3]) for _ in range(N_USERS)])
    write_bundle(
        path,
        schema=schema,
        graph=g.build(),
        pipeline_state=pipeline.state(),
        catalogue=Catalogue(
            np.array(keys), pipeline.transform("item", items), [f"item {key}" for key in keys] if labels else None
        ),
        users=Catalogue(np.arange(100, 100 + N_USERS), pipeline.transform("request", request_table)),
        seen=(offsets, rows) if seen else None,
        fusion={"kind": "product", "tasks": ["click", "buy"], "weights": [1.0, 0.5], "offsets": [0.0, 0.0]},
        **options,
    )
    return path
