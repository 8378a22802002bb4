"""Plans whose steps over sequences are wrong in one place each: the engine must refuse them, and say where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade import PlanMaker, seal
from malformed import Plan, put, refused_plan, remove, step

from fastmtr._native import Model

STEPS, SIZE = 4, 3


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One step of each operator over a history of four vectors of three numbers."""
    m, rng = PlanMaker(), np.random.default_rng(0)

    def w(*shape: int) -> np.ndarray:
        return rng.normal(size=shape)

    ids = m.input("history", "request", "ids", STEPS, rows=9, padding=0)
    x = m.input("vectors", "request", "dense", STEPS * SIZE)
    made = {
        "present": m.step("present", "present", "request", [ids], STEPS, padding=0),
        "mask": m.step("mask", "mask", "request", [x, ids], STEPS * SIZE, padding=0, value=0.0),
        "repeat": m.step("repeat", "repeat", "request", [x], 2 * STEPS * SIZE, times=2, outer=STEPS),
        "transpose": m.step("transpose", "transpose", "request", [x], STEPS * SIZE, a=STEPS, b=SIZE),
        "norm": m.step(
            "norm", "layer_norm", "request", [x], STEPS * SIZE, eps=1e-5, size=SIZE, weights={"scale": w(3)}
        ),
    }
    made["matmul"] = m.step("matmul", "matmul", "request", [x, made["transpose"]], 16, m=4, k=3, n=4)
    linear = {"w": w(2, SIZE), "b": w(2)}
    made["linear"] = m.step("linear", "affine", "request", [x, [made["norm"][0], 0, 2]], 8, weights=linear, steps=STEPS)
    gates = {"w_x": w(6, SIZE), "w_h": w(6, 2), "b_x": w(6)}
    given = {"steps": STEPS, "hidden": 2, "padding": 0}
    made["gru"] = m.step("gru", "gru", "request", [x, ids], 8, weights=gates, **given)
    m.steps[-1]["attrs"]["output"] = "all"  # (the name is an argument of m.step, too)
    kernel = {"w": w(5, SIZE, 2), "b": w(5)}
    made["conv"] = m.step("conv", "conv1d", "request", [x], 15, weights=kernel, steps=STEPS, padding=1, stride=2)
    for name, operand in made.items():
        m.output(name, operand, "request")
    path = m.write(tmp_path / "m")
    plan = json.loads((path / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps({**plan, "plan_version": 2}))
    Model(seal(path))  # is sound before it is attacked
    return path


PLANS: dict[str, tuple[Callable[[Plan], None], str]] = {
    "present without padding": (remove("steps/present/attrs", "padding"), "'padding' is missing"),
    "present of numbers": (put("steps/present/inputs/0", [1, 0, 4]), "dtype f32, expected i32"),
    "present width": (put("steps/present/output/2", 3), "output has width 3, expected 4"),
    "mask of ids": (put("steps/mask/inputs/0", [0, 0, 4]), "input 0 .* of dtype i32, expected f32"),
    "mask blocks of another size": (put("steps/mask/inputs/0/2", 10), "x has width 10, which is no multiple of the 4"),
    "mask value": (put("steps/mask/attrs/value", 1e300), "'value' is beyond float32"),
    "mask without ids": (lambda plan: step(plan, "mask")["inputs"].pop(), "has 1 inputs, expected 2"),
    "repeat times": (put("steps/repeat/attrs/times", 3), "output has width 24, expected 36"),
    "repeat times 0": (put("steps/repeat/attrs/times", 0), "'times' must be a whole number 1"),
    "repeat outer": (put("steps/repeat/attrs/outer", 5), "output has width 24, which is no multiple of the 5 outer"),
    "repeat input": (put("steps/repeat/inputs/0/2", 11), "output has width 24, expected 22"),
    "transpose": (put("steps/transpose/attrs/a", 5), "output has width 12, expected outer 1 times a 5 times b 3"),
    "transpose overflow": (
        lambda plan: step(plan, "transpose")["attrs"].update(a=1 << 20, b=1 << 20, outer=1 << 20, inner=1 << 20),
        "output has width 12, expected outer",
    ),
    "transpose input": (put("steps/transpose/inputs/0/2", 11), "output has width 12, expected 11"),
    "run": (put("steps/norm/attrs/size", 5), "output has width 12, which is no multiple of the 5 columns of a run"),
    "scale of another run": (put("steps/norm/attrs/size", 4), r"'scale' has shape \[3\], expected \[4\]"),
    "matmul m": (put("steps/matmul/attrs/m", 3), "input 0 has width 12, expected outer 1 times 3 times 3"),
    "matmul n": (put("steps/matmul/attrs/n", 5), "input 1 has width 12, expected outer 1 times 3 times 5"),
    "matmul output": (put("steps/matmul/output/2", 15), "output has width 15, expected outer 1 times m 4 times n 4"),
    "matmul overflow": (
        lambda plan: step(plan, "matmul")["attrs"].update(outer=1 << 20, m=1 << 20, k=1 << 20),
        "input 0 has width 12, expected outer",
    ),
    "matmul flag": (put("steps/matmul/attrs/transpose_b", 1), "'transpose_b' must be true or false"),
    "steps": (put("steps/linear/attrs/steps", 3), "output has width 8, which is no multiple of the 3 steps"),
    "steps of x": (put("steps/linear/inputs/0/2", 11), "x has width 11, which is no multiple of the 4 steps"),
    "addend of steps": (
        put("steps/linear/inputs/1/2", 4),
        "has width 4, expected the output's 8, or 2 that stand",
    ),
    "b of steps": (put("steps/linear/weights/b", "conv.b"), r"'b' has shape \[5\], expected \[2\]"),
    "gru steps": (put("steps/gru/attrs/steps", 5), "x has width 12, which is no multiple of the 5 steps"),
    "gru fewer steps": (put("steps/gru/attrs/steps", 2), r"'w_x' has shape \[6, 3\], expected \[6, 6\]"),
    "gru hidden": (put("steps/gru/attrs/hidden", 3), r"'w_x' has shape \[6, 3\], expected \[9, 3\]"),
    "gru w_h": (put("steps/gru/weights/w_h", "gru.w_x"), r"'w_h' has shape \[6, 3\], expected \[6, 2\]"),
    "gru without w_h": (remove("steps/gru/weights", "w_h"), "'w_h' is missing"),
    "gru output": (put("steps/gru/attrs/output", "last"), "output has width 8, expected 2 = hidden"),
    "gru other output": (put("steps/gru/attrs/output", "first"), "'output' is 'first', expected one of last, all"),
    "gru ids": (put("steps/gru/inputs/1/2", 3), "there are 3 ids for 4 steps"),
    "gru without padding": (put("steps/gru/attrs/padding", None), "'padding' is missing"),
    "gru without ids": (lambda plan: step(plan, "gru")["inputs"].pop(), "'padding' has no meaning without ids"),
    "gru without x": (put("steps/gru/inputs", []), "has no inputs, expected x first"),
    "conv channels": (put("steps/conv/attrs/steps", 2), r"'w' has shape \[5, 3, 2\], expected \[outputs, 6, kernel\]"),
    "conv w": (put("steps/conv/weights/w", "conv.b"), r"'w' has shape \[5\], expected \[outputs, 3, kernel\]"),
    "conv dilation": (put("steps/conv/attrs/dilation", 6), "a kernel of 2 with dilation 6 reaches beyond"),
    "conv stride": (put("steps/conv/attrs/stride", 1), "output has width 15, expected 5 for each of 5 positions"),
    "conv padding": (put("steps/conv/attrs/padding", 1 << 20), "workspace|output has width 15"),
    "unknown attribute": (put("steps/conv/attrs/groups", 1), "unknown member 'groups'"),
}


@pytest.mark.parametrize("case", PLANS)
def test_plan(bundle: Path, case: str) -> None:
    refused_plan(bundle, *PLANS[case])
