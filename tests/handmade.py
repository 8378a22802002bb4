"""Bundles written by hand, step by step, for tests of the engine that must not depend on the compiler."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["ISAS", "HandmadeModel", "PlanMaker", "handmade_model", "seal"]


def _available_isas() -> list[str]:
    from fastmtr import info

    return [isa["name"] for isa in info()["instruction_sets"] if isa["available"]]


ISAS = _available_isas()
Operand = list[int]


def seal(path: Path, *, format_version: Any = 1) -> Path:
    """Write the manifest over whatever files are in the folder."""
    files = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        for file in sorted(path.iterdir())
        if file.name != "manifest.json"
    }
    manifest = {
        "format_version": format_version,
        "fastmtr_version": "0.1.0",
        "files": files,
        "metadata": {"by": "hand"},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@dataclass
class PlanMaker:
    """Collects a plan. Operands are lists ``[buffer, offset, width]``, as in plan.json."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    buffers: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    fusion: dict[str, Any] | None = None
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def buffer(self, domain: str, width: int, *, dtype: str = "f32", stored: bool = False) -> Operand:
        index = len(self.buffers)
        self.buffers.append({"name": f"b{index}", "domain": domain, "dtype": dtype, "width": width, "stored": stored})
        return [index, 0, width]

    def input(self, name: str, domain: str, kind: str, width: int, **ids: int) -> Operand:
        before = [i for i in self.inputs if (i["domain"], i["kind"]) == (domain, kind)]
        operand = self.buffer(domain, width, dtype="i32" if kind == "ids" else "f32", stored=True)
        self.inputs.append(
            {
                "name": name,
                "domain": domain,
                "kind": kind,
                "offset": sum(i["width"] for i in before),
                "width": width,
                "buffer": operand[0],
                **ids,
            }
        )
        return operand

    def step(
        self,
        name: str,
        op: str,
        domain: str,
        inputs: list[Operand],
        output: Operand | int,
        *,
        stored: bool = False,
        dtype: str = "f32",
        weights: dict[str, NDArray[Any]] | None = None,
        **attrs: Any,
    ) -> Operand:
        """Append a step; `output` may be the width of a buffer of its own. Weights are saved as ``NAME.ROLE``."""
        if isinstance(output, int):
            output = self.buffer(domain, output, dtype=dtype, stored=stored)
        names = {role: f"{name}.{role}" for role in weights or {}}
        for role, array in (weights or {}).items():
            self.weights[names[role]] = np.ascontiguousarray(array, dtype=np.float32)
        step = {"op": op, "domain": domain, "name": name, "inputs": inputs, "output": output}
        self.steps.append(step | {"weights": names, "attrs": attrs})
        return output

    def output(self, name: str, operand: Operand, role: str = "task") -> None:
        self.outputs.append({"name": name, "role": role, "operand": operand})

    def plan(self) -> dict[str, Any]:
        return {
            "plan_version": 1,
            "inputs": self.inputs,
            "buffers": self.buffers,
            "steps": self.steps,
            "outputs": self.outputs,
            "fusion": self.fusion,
        }

    def write(self, path: Path, catalogue: dict[str, NDArray[Any]] | None = None) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        (path / "plan.json").write_text(json.dumps(self.plan()))
        save_file(self.weights, path / "weights.safetensors")
        if catalogue is not None:
            save_file(catalogue, path / "catalogue.safetensors")
        return seal(path)


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


@dataclass
class HandmadeModel:
    """A small MMoE of two tasks with histories, stored item parts and a two-tower head, and what it must answer."""

    maker: PlanMaker
    catalogue: dict[str, NDArray[Any]]
    rng: np.random.Generator

    def requests(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        history = self.rng.integers(1, 40, (n, 6)) * (self.rng.random((n, 6)) < 0.7)  # 0 is padding
        ids = np.column_stack([self.rng.integers(0, 50, n), history]).astype(np.int32)
        return ids, self.rng.normal(size=(n, 3)).astype(np.float32)

    def candidates(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        return self.rng.integers(0, 5, (n, 1)).astype(np.int32), self.rng.normal(size=(n, 1)).astype(np.float32)

    def call(self, counts: list[int]) -> dict[str, Any]:
        """Arguments of a session's calls: a request for each count, with so many candidates from the catalogue."""
        (ids, dense), (place, retrieved) = self.requests(len(counts)), self.candidates(sum(counts))
        return {
            "request_ids": ids,
            "request_dense": dense,
            "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64),
            "items": self.rng.choice(self.catalogue["keys"], sum(counts)),
            "candidate_ids": place,
            "candidate_dense": retrieved,
        }

    def _weight(self, name: str) -> NDArray[np.float64]:
        return self.maker.weights[name].astype(np.float64)

    def _request(self, ids: NDArray[Any], dense: NDArray[Any]) -> NDArray[np.float64]:
        user = self._weight("user.table")[ids[:, 0]]
        real = (ids[:, 1:] != 0)[:, :, None]
        history = (self._weight("history.table")[ids[:, 1:]] * real).sum(axis=1) / np.maximum(real.sum(axis=1), 1)
        return np.concatenate([user, history, dense], axis=1)

    def _item(self) -> NDArray[np.float64]:
        item = self._weight("item.table")[self.catalogue["ids"][:, 0]]
        return np.concatenate([item, self.catalogue["dense"]], axis=1)

    def user_vector(self, ids: NDArray[Any], dense: NDArray[Any]) -> NDArray[np.float64]:
        x = self._request(ids, dense) @ self._weight("user_tower.w").T
        return x / np.maximum(np.sqrt((x**2).sum(axis=1, keepdims=True)), 1e-6)

    def item_vector(self) -> NDArray[np.float64]:
        return np.tanh(self._item() @ self._weight("item_tower.w").T)

    def scores(
        self,
        request: tuple[NDArray[Any], NDArray[Any]],
        rows: NDArray[Any],
        candidate: tuple[NDArray[Any], NDArray[Any]],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores [n, 2] and fused [n] of one request in float64: one plain product a layer, nothing factored."""
        x_request = np.repeat(self._request(*request), len(rows), axis=0)
        place = self._weight("place.table")[candidate[0][:, 0]]
        x = np.concatenate([x_request, self._item()[rows], place, candidate[1]], axis=1)
        w = np.concatenate([self._weight(f"first.{part}.w") for part in ("request", "item", "candidate")], axis=1)
        first = x @ w.T + self._weight("first.request.b")
        experts = np.maximum(first[:, :32], 0).reshape(len(rows), 2, 16)
        second = np.einsum("rek,enk->ren", experts, self._weight("second.w")) + self._weight("second.b").reshape(2, 8)
        second = np.where(second > 0, second, 0.1 * second)
        gates = np.exp(first[:, 32:].reshape(len(rows), 2, 2))
        gates /= gates.sum(axis=2, keepdims=True)
        scores = np.empty((len(rows), 2))
        for task, name in enumerate(("click", "buy")):
            mixed = (gates[:, task, :, None] * second).sum(axis=1)
            logits = mixed @ self._weight(f"tower.{name}.w").T + self._weight(f"tower.{name}.b")
            scores[:, task] = _sigmoid(logits)[:, 0]
        scores[:, 1] *= scores[:, 0]
        return scores, np.exp(np.log(scores[:, 1] + 0.01) * 2 + np.log(scores[:, 0]) * 0.5)

    def answers(self, call: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What :meth:`scores` gives for each request of a call, one after the other."""
        ids, dense = call["request_ids"], call["request_dense"]
        order = np.argsort(self.catalogue["keys"])
        rows = order[np.searchsorted(self.catalogue["keys"], call["items"], sorter=order)]
        parts = []
        for r, (begin, end) in enumerate(pairwise(call["offsets"].astype(int))):
            candidate = call["candidate_ids"][begin:end], call["candidate_dense"][begin:end]
            parts.append(self.scores((ids[r : r + 1], dense[r : r + 1]), rows[begin:end], candidate))
        scores, fused = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(fused)


def handmade_model(seed: int = 0, n_items: int = 100) -> HandmadeModel:
    rng = np.random.default_rng(seed)
    m = PlanMaker()

    def w(*shape: int) -> NDArray[Any]:
        return rng.normal(size=shape) / np.sqrt(shape[-1])

    user = m.input("user", "request", "ids", 1, rows=50)
    history = m.input("history", "request", "ids", 6, rows=40, padding=0)
    profile = m.input("profile", "request", "dense", 3)
    item = m.input("item", "item", "ids", 1, rows=40)
    price = m.input("price", "item", "dense", 2)
    place = m.input("place", "candidate", "ids", 1, rows=5)
    retrieved = m.input("retrieved", "candidate", "dense", 1)

    # Request: user, history and profile side by side, each written into its slice of one buffer.
    x = m.buffer("request", 19)
    table = {"table": rng.normal(size=(50, 8))}
    m.step("user", "embedding", "request", [user], [x[0], 0, 8], weights=table, padding=None)
    table = {"table": rng.normal(size=(40, 8))}
    m.step("history", "embedding_bag", "request", [history], [x[0], 8, 8], weights=table, mode="mean", padding=0)
    m.step("profile", "copy", "request", [profile], [x[0], 16, 3])
    first_request = m.step("first.request", "affine", "request", [x], 36, weights={"w": w(36, 19), "b": w(36)})
    user_tower = m.step("user_tower", "affine", "request", [x], 4, weights={"w": w(4, 19)})
    user_vector = m.step("user_vector", "l2_normalize", "request", [user_tower], 4, eps=1e-6)

    # Item: the item part of the first layer is stored, one row an item.
    x = m.buffer("item", 10)
    m.step("item", "embedding", "item", [item], [x[0], 0, 8], weights={"table": rng.normal(size=(40, 8))})
    m.step("price", "copy", "item", [price], [x[0], 8, 2])
    first_item = m.step("first.item", "affine", "item", [x], 36, stored=True, weights={"w": w(36, 10)})
    tower = {"w": w(4, 10)}
    item_vector = m.step("item_tower", "affine", "item", [x], 4, stored=True, weights=tower, activation="tanh")

    # Candidate.
    x = m.buffer("candidate", 3)
    m.step("place", "embedding", "candidate", [place], [x[0], 0, 2], weights={"table": rng.normal(size=(5, 2))})
    m.step("retrieved", "copy", "candidate", [retrieved], [x[0], 2, 1])
    parts = [x, first_request, first_item]
    first = m.step("first.candidate", "affine", "candidate", parts, 36, weights={"w": w(36, 3)}, has_x=True)[0]
    experts = m.step("experts", "activation", "candidate", [[first, 0, 32]], 32, activation="relu")
    weights = {"w": w(2, 8, 16), "b": w(16)}
    leaky = {"activation": "leaky_relu", "alpha": 0.1}
    second = m.step("second", "affine", "candidate", [experts], 16, weights=weights, groups=2, **leaky)[0]
    gates = m.step("gates", "softmax", "candidate", [[first, 32, 4]], 4, size=2)[0]
    scores = m.buffer("candidate", 2)[0]
    towers = []
    for task, (name, output) in enumerate([("click", [scores, 0, 1]), ("buy", m.buffer("candidate", 1))]):
        operands = [[gates, 2 * task, 2], [second, 0, 8], [second, 8, 8]]
        mixed = m.step(f"mixture.{name}", "mixture", "candidate", operands, 8)
        weights = {"w": w(1, 8), "b": w(1)}
        towers.append(
            m.step(f"tower.{name}", "affine", "candidate", [mixed], output, weights=weights, activation="sigmoid")
        )
    m.step("chain", "binary", "candidate", towers, [scores, 1, 1], fn="mul")

    m.output("click", [scores, 0, 1])
    m.output("buy", [scores, 1, 1])
    m.output("user_vector", user_vector, "request")
    m.output("item_vector", item_vector, "item")
    m.fusion = {"kind": "product", "tasks": ["buy", "click"], "weights": [2.0, 0.5], "offsets": [0.01, 0.0]}
    catalogue = {
        "keys": rng.permutation(10 * n_items)[:n_items].astype(np.int64) - 7,
        "ids": rng.integers(0, 40, (n_items, 1)).astype(np.int32),
        "dense": rng.normal(size=(n_items, 2)).astype(np.float32),
    }
    return HandmadeModel(m, catalogue, rng)
