"""Rows that a converted model is tried on: some of the sample, random ones, and those that are rare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmtr.graph import Domain, Graph, Input, Packed

__all__ = ["Examples", "domains_of", "draw"]

_UNBOUNDED = 2
"""Ids below this number are drawn for an input of ids that no table bounds and no sample shows."""


class Examples(NamedTuple):
    """Rows of each domain, row by row one example each.

    Parameters
    ----------
    packed : mapping of domain to Packed
    counts : mapping of str to int
        How many are from the sample, random, and edge cases, in this order.
    """

    packed: Mapping[Domain, Packed]
    counts: Mapping[str, int]


def domains_of(graph: Graph) -> list[Domain]:
    """The domains that the graph has inputs of."""
    return list(dict.fromkeys(i.domain for i in graph.inputs))


def draw(
    graph: Graph, sample: Mapping[Domain, Packed] | None, *, most: int = 256, random: int = 64, seed: int = 0
) -> Examples:
    """Examples of a graph's inputs.

    Random ids are drawn from the whole table, sequences with random lengths (0 among them); numbers are those of the
    sample, column by column shuffled, so that each stays plausible. Edge cases: every id the first one or the padding,
    every id the last one, each sequence empty alone, all numbers at their least and at their greatest.

    Parameters
    ----------
    sample : mapping of domain to Packed, optional
    most : int
        Rows of the sample to keep, at even distances.
    random : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    n = 0 if sample is None else min(p.n_rows for p in sample.values())
    kept = np.linspace(0, n - 1, min(n, most)).astype(int)
    sequences = [i.name for i in graph.inputs if i.padding is not None and i.width > 1]
    edges = 4 + len(sequences)
    packed: dict[Domain, Packed] = {}
    for domain in domains_of(graph):
        ids = np.zeros((len(kept) + random + edges, graph.packed_width(domain, "ids")), np.int32)
        dense = np.zeros((len(ids), graph.packed_width(domain, "dense")), np.float32)
        given = None if sample is None else sample[domain]
        for i in graph.inputs:
            if i.domain == domain:
                matrix = ids if i.kind == "ids" else dense
                known = None if given is None else getattr(given, i.kind)[:, i.offset : i.offset + i.width]
                fill = _ids if i.kind == "ids" else _numbers
                drawn = fill(i, known, random + edges, edges, rng)
                if i.name in sequences:
                    assert i.padding is not None
                    drawn[random + 4 + sequences.index(i.name)] = i.padding
                own = drawn if known is None else np.concatenate([known[kept], drawn])
                matrix[:, i.offset : i.offset + i.width] = own
        packed[domain] = Packed(ids, dense)
    return Examples(packed, {"sample": len(kept), "random": random, "edge": edges})


def _ids(i: Input, known: NDArray[Any] | None, n: int, edges: int, rng: np.random.Generator) -> NDArray[np.int32]:
    limit = i.rows if i.rows is not None else _UNBOUNDED if known is None else int(known.max(initial=1)) + 1
    drawn = rng.integers(0, limit, (n, i.width), dtype=np.int32)
    if i.padding is not None and i.width > 1:
        drawn[np.arange(i.width) >= rng.integers(0, i.width + 1, (n, 1))] = i.padding
    drawn[n - edges] = 0 if i.padding is None else i.padding
    drawn[n - edges + 1] = limit - 1
    return drawn


def _numbers(i: Input, known: NDArray[Any] | None, n: int, edges: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if known is None or not len(known):
        known = rng.normal(size=(n, i.width)).astype(np.float32)
    drawn = known[rng.integers(0, len(known), n)]
    drawn[n - edges + 2] = known.min(axis=0)
    drawn[n - edges + 3] = known.max(axis=0)
    return drawn.astype(np.float32)
