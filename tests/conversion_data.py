"""Real impressions as the other libraries take them, and the comparison of a converted model with its source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmtr import Conversion
from fastmtr.compiler import compile_graph
from fastmtr.convert.verify import verify
from fastmtr.datasets import kuairand
from fastmtr.graph import Graph

N, LENGTH = 3000, 12
"""Impressions, and the length of a history; its end is padded with 0."""
ENTITIES = {
    "user_id": "user",
    "clicked": "user",
    "clicked_length": "user",
    "tab": "context",
    "hour": "context",
    "video_id": "item",
    "author_id": "item",
    "duration": "item",
    "numbers": "item",
}


@lru_cache(maxsize=1)
def impressions() -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The first impressions of the packaged data, encoded as label encoders do it, and the labels of three tasks.

    Ids are 1, 2, ...; 0 is padding. ``numbers`` holds two numbers, as a dense feature with a vector.
    """
    data = kuairand()
    assert data.items is not None
    log = data.log.slice(0, N)
    known, video = np.unique(log["video_id"].to_numpy(), return_inverse=True)
    author_of = dict(zip(data.items["video_id"].to_pylist(), data.items["author_id"].to_pylist(), strict=True))
    _, authors = np.unique([author_of[v] for v in known.tolist()], return_inverse=True)
    users = np.unique(log["user_id"].to_numpy(), return_inverse=True)[1]
    click = log["is_click"].to_numpy()
    history = np.zeros((N, LENGTH), np.int64)
    seen: dict[int, list[int]] = {}
    for i, user in enumerate(users.tolist()):
        past = seen.setdefault(user, [])[-LENGTH:]
        history[i, : len(past)] = past
        if click[i]:
            seen[user].append(int(video[i]) + 1)
    duration = np.log(log["duration_ms"].to_numpy() / 1e4 + 1).astype(np.float32)
    counts = np.bincount(video)
    arrays = {
        "user_id": users + 1,
        "clicked": history,
        "clicked_length": (history > 0).sum(axis=1),
        "tab": log["tab"].to_numpy().astype(np.int64) + 1,
        "hour": log["time_ms"].to_numpy() // 3_600_000 % 24 + 1,
        "video_id": video + 1,
        "author_id": authors[video] + 1,
        "duration": duration,
        "numbers": np.stack([np.log(counts[video]), duration**2], axis=1).astype(np.float32),
    }
    labels = np.stack([log[name].to_numpy() for name in ("is_click", "long_view", "is_like")], axis=1)
    return arrays, labels.astype(np.float32)


def vocabulary(name: str) -> int:
    """Rows of the table of a feature of ids."""
    arrays, _ = impressions()
    return int(arrays["video_id" if name == "clicked" else name].max()) + 1


def edge_rows(n: int = 40) -> dict[str, NDArray[Any]]:
    """Some impressions, and some more with what is rare: padding, the last id, an empty history, a full one."""
    arrays, _ = impressions()
    found = {name: array[-n:].copy() for name, array in arrays.items()}
    for name in ("user_id", "tab", "hour", "video_id", "author_id"):
        found[name][:2] = 0, vocabulary(name) - 1
    found["clicked"][0] = 0
    found["clicked"][1] = vocabulary("clicked") - 1
    found["clicked_length"] = (found["clicked"] > 0).sum(axis=1)
    found["duration"][:2] = 0, 9
    return found


def few_steps(model: torch.nn.Module, inputs: Any, labels: NDArray[np.float32], *, steps: int = 12) -> None:
    """Train a little, as a library's own trainer would: batches of 250, binary cross-entropy.

    The libraries' initial weights are so small that little is learned in a few steps, so noise is added first.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    y = torch.from_numpy(labels)
    for step in range(steps):
        rows = slice(250 * (step % 12), 250 * (step % 12 + 1))
        batch = {k: v[rows] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows]
        optimizer.zero_grad()
        p = model(batch).reshape(250, -1)
        torch.nn.functional.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), y[rows, : p.shape[1]]).backward()
        optimizer.step()
    model.eval()


def check_scores(conversion: Conversion) -> None:
    """The engine's scores are the source's, and say something."""
    assert verify(conversion).worst.engine <= 1e-5
    scores = conversion.source.score(conversion.sample)
    assert min(scores[t].std() for t in conversion.graph.tasks) > 1e-4


def check_first_layers(graph: Graph) -> None:
    """What depends on the user alone is done once a request, and the item's share of the first layers is stored."""
    products = [step for step in compile_graph(graph, n_items=1000).plan["steps"] if step["op"] == "affine"]
    assert {"request", "item"} <= {step["domain"] for step in products}
