"""Executing a compiled plan, with the rules on who may read what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastmtr.encodings import decoded_weights, stored_rows
from fastmtr.errors import ConversionError
from fastmtr.graph import Domain, Input, Packed
from fastmtr.operators import OPS
from fastmtr.reference.graphs import columns_of, fuse
from fastmtr.reference.operators import Array, apply

__all__ = ["evaluate_plan"]


def evaluate_plan(
    plan: Mapping[str, Any],
    weights: Mapping[str, NDArray[Any]],
    packed: Mapping[Domain, Packed],
    *,
    rows: ArrayLike,
    dtype: DTypeLike = np.float64,
) -> dict[str, Array]:
    """Execute a compiled plan: the request phase, the item phase over a catalogue, the candidate phase.

    Parameters
    ----------
    plan : mapping
        ``plan.json``.
    weights : mapping of str to ndarray
        Encoded tables are decoded.
    packed : mapping of domain to Packed
        One row of ``request``; the whole catalogue as ``item``; one row a candidate as ``candidate`` (where there are
        such inputs).
    rows : array of int, shape (N,)
        The catalogue rows that are the candidates.
    dtype : dtype

    Returns
    -------
    dict of str to ndarray
        Tasks (N, 1), request outputs (1, width), item outputs (catalogue, width), and "" the fused score (N,).

    Raises
    ------
    ConversionError
        A step breaks a rule of ``docs/bundle.md``: it reads what nothing wrote, or what its domain cannot reach.
    """
    candidates = np.asarray(rows, dtype=np.int64)
    n_rows = {"request": 1, "item": packed["item"].n_rows if "item" in packed else 0, "candidate": len(candidates)}
    numbers = {k: v.astype(dtype) for k, v in decoded_weights(plan, weights).items()}
    runner = _PlanRunner(plan, numbers, n_rows, candidates, np.dtype(dtype))
    for i in plan["inputs"]:
        columns = columns_of(Input(**{k: v for k, v in i.items() if k != "buffer"}), packed, np.dtype(dtype))
        runner.write([i["buffer"], 0, i["width"]], columns)
    for step in sorted(plan["steps"], key=lambda s: s["domain"] == "candidate"):  # after all rows are stored
        runner.run(step)
    outputs = {}
    for o in plan["outputs"]:
        value = runner.read(o["operand"])
        outputs[o["name"]] = np.broadcast_to(value, (len(candidates), 1)).copy() if o["role"] == "task" else value
        domain = plan["buffers"][o["operand"][0]]["domain"]
        if domain not in {"task": ("request", "candidate"), "request": ("request",), "item": ("item",)}[o["role"]]:
            raise ConversionError(f"output {o['name']!r} ({o['role']}) is in a {domain} buffer")
    tasks = [o["name"] for o in plan["outputs"] if o["role"] == "task"]
    if tasks:
        scores = np.concatenate([outputs[t] for t in tasks], axis=1)
        outputs[""] = fuse(scores, plan["fusion"], tasks=tasks)
    return outputs


class _PlanRunner:
    """Buffers of a plan in execution, with the rules on who may read what."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        weights: Mapping[str, Array],
        n_rows: Mapping[str, int],
        candidates: NDArray[np.int64],
        dtype: np.dtype[Any],
    ) -> None:
        self.weights, self.candidates = weights, candidates
        self.buffers = plan["buffers"]
        self.data = [
            np.zeros((n_rows[b["domain"]], b["width"]), np.int32 if b["dtype"] == "i32" else dtype)
            for b in self.buffers
        ]
        self.written = [np.zeros(b["width"], dtype=bool) for b in self.buffers]

    def read(self, operand: Sequence[int]) -> Array:
        buffer, offset, width = operand
        if not self.written[buffer][offset : offset + width].all() or offset + width > self.buffers[buffer]["width"]:
            raise ConversionError(f"operand {list(operand)} of {self.buffers[buffer]['name']!r} is not written yet")
        return self.data[buffer][:, offset : offset + width]

    def write(self, operand: Sequence[int], value: Array) -> None:
        buffer, offset, width = operand
        if self.written[buffer][offset : offset + width].any():
            raise ConversionError(f"operand {list(operand)} of {self.buffers[buffer]['name']!r} is written twice")
        if value.shape[1] != width:
            raise ConversionError(f"operand {list(operand)} is given {value.shape[1]} columns")
        self.data[buffer][:, offset : offset + width] = value
        self.written[buffer][offset : offset + width] = True

    def run(self, step: Mapping[str, Any]) -> None:
        domain, op = step["domain"], step["op"]
        if self.buffers[step["output"][0]]["domain"] != domain:
            raise ConversionError(f"step {step['name']!r}: its output is not in a {domain} buffer")
        inputs = []
        for position, operand in enumerate(step["inputs"]):
            value, buffer = self.read(operand), self.buffers[operand[0]]
            reached = buffer["domain"] == domain or (domain == "candidate" and buffer["domain"] == "request")
            if domain == "candidate" and buffer["domain"] == "item" and buffer["stored"]:
                reached = op == "gather" or (op == "affine" and position >= ("w" in step["weights"]))
                _, offset, width = operand
                rows = stored_rows(self.data[operand[0]][self.candidates], buffer["dtype"])
                value = rows[:, offset : offset + width]
            if not reached:
                raise ConversionError(f"step {step['name']!r} ({domain}) cannot read {buffer['name']!r}")
            inputs.append(value)
        if op in ("gather", "copy"):
            result = inputs[0]
        else:
            named = {role: self.weights[name] for role, name in step["weights"].items()}
            attrs = {**OPS[op].attrs, **step["attrs"]}
            result = apply(op, inputs, named, attrs.__getitem__)
        self.write(step["output"], result)
