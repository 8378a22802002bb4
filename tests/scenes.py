"""A graph with inputs: what the reference makes of them, and what is to be found by whoever else computes it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import fill
from error_bounds import error_bounds, gamma
from fastmtr._native import Model, Session
from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.graph import Domain, Graph, Packed
from fastmtr.reference import evaluate, fuse
from fastmtr.schema import Feature, Schema, Task

__all__ = ["N_ITEMS", "Scene"]

N_ITEMS = 11
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Scene:
    """A graph, packed inputs, the expected outputs and how far float32 may be from them.

    Parameters
    ----------
    graph : Graph
    packed : mapping of domain to Packed
        One request, a catalogue, and candidates.
    rows : ndarray
        The items that the candidates are.
    of_candidates, of_items : (dict, dict)
        The outputs, and the bounds of their errors: for the candidates, and for the whole catalogue.
    """

    graph: Graph
    packed: Mapping[Domain, Packed]
    rows: NDArray[np.int64]
    of_candidates: tuple[Outputs, Outputs]
    of_items: tuple[Outputs, Outputs]

    @classmethod
    def of(cls, graph: Graph, *, n: int = 7, seed: int = 0) -> Scene:
        """With random inputs and n candidates."""
        packed = fill(graph, n_items=N_ITEMS, n_candidates=n, seed=seed)
        rows = np.random.default_rng(seed).integers(0, N_ITEMS, n)
        candidates = {**packed, "item": packed["item"].take(rows)}
        items = {**packed, "candidate": fill(graph, n_candidates=1, seed=seed)["candidate"]}
        both = [(evaluate(graph, each), error_bounds(graph, each)) for each in (candidates, items)]
        return cls(graph, packed, rows, both[0], both[1])

    @property
    def keys(self) -> NDArray[np.int64]:
        """Of the items."""
        return np.arange(N_ITEMS, dtype=np.int64) * 7 - 5

    def check(self, name: str, role: str, found: NDArray[Any]) -> None:
        """The output is as near to the reference as float32 lets it be."""
        outputs, bounds = self.of_candidates if role == "task" else self.of_items
        expected, bound = outputs[name], bounds[name]
        assert found.shape == expected.shape
        far = ~(abs(found - expected) <= bound)
        assert not far.any(), f"{name}: {found[far]} is not within {bound[far]} of {expected[far]}"

    @contextmanager
    def bundle(self, **options: Any) -> Iterator[str]:
        """The path of a bundle of the graph, compiled so; the tasks are fused by :attr:`fusion`."""
        features = (Feature(name="any", entity="user", kind="numeric"),)
        tasks = tuple(Task(name=t) for t in self.graph.tasks)
        with tempfile.TemporaryDirectory() as folder:
            path = write_bundle(
                Path(folder) / "bundle",
                schema=Schema(user="user", item="item", features=features, tasks=tasks),
                graph=self.graph,
                catalogue=Catalogue(self.keys, self.packed["item"]),
                fusion=self.fusion,
                **options,
            )
            yield str(path)

    @property
    def fusion(self) -> dict[str, Any]:
        """A weighted sum."""
        n = len(self.graph.tasks)
        return {"kind": "sum", "tasks": self.graph.tasks, "weights": list(np.linspace(0.5, 1, n)), "offsets": [0] * n}

    def score(self, session: Session, chosen: Any = slice(None)) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Task scores and fused scores of these candidates."""
        rows, candidate, request = self.rows[chosen], self.packed["candidate"], self.packed["request"]
        return session.score(
            request.ids,
            request.dense,
            np.array([0, len(rows)], np.int64),
            self.keys[rows],
            candidate_ids=np.ascontiguousarray(candidate.ids[chosen]),
            candidate_dense=np.ascontiguousarray(candidate.dense[chosen]),
        )

    def check_engine(self, path: str, *, isa: str | None = None, tile: int = 0, device: str = "cpu") -> None:
        """The engine's outputs, on that instruction set or device."""
        model = Model(path, isa=isa, device=device)
        session = Session(model, tile=tile)
        scores, fused = self.score(session)
        for task, name in enumerate(self.graph.tasks):
            self.check(name, "task", scores[:, task : task + 1])
        terms = abs(scores.astype(np.float64)) @ self.fusion["weights"]
        far = abs(fused - fuse(scores.astype(np.float64), self.fusion))
        assert (far <= gamma(2 + len(self.graph.tasks)) * terms).all()
        request = self.packed["request"]
        for o in self.graph.outputs:
            if o.role == "item":
                self.check(o.name, o.role, model.item_output(o.name))
            if o.role == "request":
                self.check(o.name, o.role, session.request_output(o.name, request.ids, request.dense))

    def check_together(
        self, together: Session, alone: Session, counts: Sequence[int], *, among: Sequence[int] | None = None
    ) -> None:
        """Requests of one call, with so many candidates each, have the bits of each (`among` them) alone."""
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        packed = [fill(self.graph, n_candidates=n, seed=i) for i, n in enumerate(counts)]
        ids, dense, candidate_ids, candidate_dense = (
            np.concatenate([getattr(p[domain], kind) for p in packed])
            for domain in ("request", "candidate")
            for kind in ("ids", "dense")
        )
        items = np.random.default_rng(0).choice(self.keys, offsets[-1])
        every = together.score(ids, dense, offsets, items, candidate_ids=candidate_ids, candidate_dense=candidate_dense)
        for r in range(len(counts)) if among is None else among:
            of = slice(int(offsets[r]), int(offsets[r + 1]))
            found = alone.score(
                ids[r : r + 1],
                dense[r : r + 1],
                np.array([0, counts[r]], np.uint64),
                items[of],
                candidate_ids=candidate_ids[of],
                candidate_dense=candidate_dense[of],
            )
            for a, b in zip(found, every, strict=True):
                np.testing.assert_array_equal(a, b[of])
