"""Latency of a ranker on its own users and catalogue, one call after the other on one thread of the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from fastmtr.errors import SchemaError
from fastmtr.evaluation.report import Latency
from fastmtr.ranker import Ranker

__all__ = ["measure", "measure_stages"]

_WARM_UP = 20
_K = 50


def measure(ranker: Ranker, *, sizes: Sequence[int], calls: int, seed: int = 0) -> list[Latency]:
    """Time ``score`` and ``rank`` by number of candidates, and ``recommend``.

    Parameters
    ----------
    sizes : sequence of int
        Candidates of a request, drawn at random from the catalogue (with repetition where it is smaller).
    calls : int
        Of each kind, each for a random known user.

    Raises
    ------
    SchemaError
        The bundle has no items or no users.
    """
    users = _known_users(ranker, calls, seed)
    rng = np.random.default_rng(seed)
    found = []
    for n in sizes:
        found += _time_size(ranker, users, [ranker.items[rng.integers(ranker.n_items, size=n)] for _ in users])
    if ranker.has_retrieval:
        found.append(_time(f"recommend {_K} of 500 retrieved", calls, lambda i: ranker.recommend(users[i], k=_K)))
    return found


def _time_size(ranker: Ranker, users: list[Any], items: list[Any]) -> list[Latency]:
    n, calls = len(items[0]), len(users)
    k = min(_K, n)
    return [
        _time(f"score {n}", calls, lambda i: ranker.score(users[i], items[i])),
        _time(f"rank {n}, best {k}", calls, lambda i: ranker.rank(users[i], items[i], k=k)),
    ]


def measure_stages(
    ranker: Ranker, *, calls: int, context: Mapping[str, Any] | None = None, k: int = _K, seed: int = 0
) -> list[Latency]:
    """Time the stages of ``recommend`` for random known users: features, retrieval, ranking, and their total.

    Parameters
    ----------
    context : mapping, optional
        Raw context features of every request.
    """
    users = _known_users(ranker, calls, seed)
    times: dict[str, list[float]] = {"features": [], "retrieval": [], "ranking": []}
    timings: dict[str, float] = {}

    def once(i: int) -> None:
        ranker.recommend(users[i], k=k, context=context, timings=timings)
        for stage, seconds in timings.items():
            times[stage].append(seconds)

    total = _time("total", calls, once)
    return [*(Latency.of(stage, seconds[-calls:]) for stage, seconds in times.items()), total]


def _known_users(ranker: Ranker, calls: int, seed: int) -> list[Any]:
    if not ranker.n_items or not len(ranker.users):
        raise SchemaError("this bundle has no items or no users of its own to measure with")
    drawn: list[Any] = ranker.users[np.random.default_rng(seed).integers(len(ranker.users), size=calls)].tolist()
    return drawn


def _time(name: str, calls: int, call: Callable[[int], Any]) -> Latency:
    for i in range(min(calls, _WARM_UP)):
        call(i)
    seconds = []
    for i in range(calls):
        start = perf_counter()
        call(i)
        seconds.append(perf_counter() - start)
    return Latency.of(name, seconds)
