"""What fastmtr does to the process that it runs in: nothing but what was asked for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HandmadeModel, handmade_model

from fastmtr._native import Model, Session

# Run in a process of its own; {path} is the bundle's, and load() then loads it, scores and gives what there is.
_BESIDE = """
import os, sys
import numpy as np

def threads():
    return int(next(line for line in open("/proc/self/status") if line.startswith("Threads:")).split()[1])

def load(threads):
    from fastmtr._native import Model, Session
    model = Model({path!r})
    session = Session(model, threads=threads)
    request = np.zeros((1, 7), np.int32), np.zeros((1, 3), np.float32)
    candidate = dict(candidate_ids=np.zeros((100, 1), np.int32), candidate_dense=np.zeros((100, 1), np.float32))
    session.score(*request, None, None, **candidate)
    session.rank(*request, None, None, k=5, **candidate)
    model.upsert(np.array([1]), np.zeros((1, 1), np.int32), np.zeros((1, 2), np.float32))
    return session
"""

_NOTHING_ELSE = """
tiny = np.float32(1e-40)
state = os.sched_getaffinity(0), dict(os.environ), threads()
session = load(1)
assert (os.sched_getaffinity(0), dict(os.environ), threads()) == state
assert tiny * np.float32(0.5) > 0, "subnormal numbers must not be flushed to zero"
more = load(3)
assert threads() == state[2] + 2
del more
assert threads() == state[2]
"""

_TORCH = """
import torch
import torch.nn.functional
x = torch.arange(60000.0).reshape(200, 300) / 60000
before = torch.get_num_threads(), torch.get_num_interop_threads(), (x @ x.T).numpy().tobytes()
there = threads()
session = load(1)
assert threads() == there
assert (torch.get_num_threads(), torch.get_num_interop_threads(), (x @ x.T).numpy().tobytes()) == before
"""

_ONNXRUNTIME = """
import onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64])
graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run
x = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
before = run(None, {{"x": x}})[0].tobytes()
there = threads()
session = load(1)
assert threads() == there
assert run(None, {{"x": x}})[0].tobytes() == before
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("needs", "code"),
    [([], _NOTHING_ELSE), (["torch"], _TORCH), (["onnxruntime", "onnx"], _ONNXRUNTIME)],
    ids=["alone", "torch", "onnxruntime"],
)
def test_threads_and_state_of_others_stay(bundle: Path, needs: list[str], code: str) -> None:
    for name in needs:
        pytest.importorskip(name)
    program = (_BESIDE + code).format(path=str(bundle))
    command = [sys.executable, "-P", "-c", program]  # -P: not the source tree, should that be the working directory
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_free_threaded_python_stays_so() -> None:
    """The module declares that it needs no GIL; otherwise importing it would have switched it on."""
    assert not sys._is_gil_enabled()


def test_several_models_in_one_process(handmade: HandmadeModel, bundle: Path, tmp_path: Path) -> None:
    """Models of other weights, with catalogues that change, do not see one another."""
    second = handmade_model()
    for name, weight in second.maker.weights.items():
        second.maker.weights[name] = weight[::-1].copy()
    other = second.maker.write(tmp_path / "other", second.catalogue)
    call = handmade.call([30, 60])
    expected = [Session(Model(path)).score(**call)[0].tobytes() for path in (bundle, other)]
    assert expected[0] != expected[1]
    models = [Model(bundle), Model(other), Model(bundle)]
    parts = [[np.ascontiguousarray(handmade.catalogue[n][i::3]) for n in ("keys", "ids", "dense")] for i in range(3)]

    def score(which: int) -> None:
        session = Session(models[which], threads=1 + which)
        for _ in range(30):
            models[which].upsert(*parts[which])  # as they were
            assert session.score(**call)[0].tobytes() == expected[which % 2]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(score, (0, 1, 2, 0, 1, 2)))


def test_many_threads_with_a_session_each(handmade: HandmadeModel, bundle: Path) -> None:
    model = Model(bundle)
    calls = [handmade.call([n // 3, n - n // 3]) for n in (1, 40, 300)]
    alone = Session(model)
    expected = [_answers(alone, call) for call in calls]

    def work(start: int) -> None:
        session = Session(model, threads=1 + start % 2)
        for i in range(start, start + 30):
            assert _answers(session, calls[i % 3]) == expected[i % 3]

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


def _answers(session: Session, call: dict[str, Any]) -> list[bytes]:
    found = [*session.score(**call), *session.rank(**call, k=7)]
    return [array.tobytes() for array in found]
