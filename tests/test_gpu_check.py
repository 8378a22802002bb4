"""The check for machines with a GPU goes through all its steps on the emulation; it tells what failed, what it left
out, and which targets are met.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from devices import HOST
from fastmtr import info

gpu_check = pytest.importorskip("gpu_check", reason="bench/ is not there: a source distribution has none")
BENCH = Path(gpu_check.__file__).parent


def make_check(folder: Path, *, seconds: float = 60.0, device: str = HOST) -> Any:
    end = time.monotonic() + seconds
    return gpu_check.Check(device, True, True, None, folder, end, part_end=end)


def test_all_steps_on_the_emulation(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if not any(each["name"] == HOST and each["available"] for each in info()["back_ends"]):
        pytest.skip(f"no back end {HOST}: an editable install builds it")
    options = ["--device", HOST, "--installed", "--tiny", "--out", tmp_path / "results", "--build", tmp_path / "build"]
    command = [sys.executable, BENCH / "gpu_check.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.endswith(f"-{HOST}.json")
    found = json.loads(path.read_text())
    parts = found["parts"]
    left_out = {name: part["why"] for name, part in parts.items() if part["status"] == "left out"}
    assert list(left_out) == ["build", "portable", "ceilings", "sanitizer"]
    assert "--installed" in left_out["build"]
    assert parts["tests"]["status"] == parts["benchmark"]["status"] == "passed"
    assert parts["tests"]["passed"] >= 1
    assert parts["features"]["status"] == "passed"
    assert parts["features"]["operators_compared"] > 25
    packed = {(row["table"], row["contestant"]): row for row in parts["features"]["rows"]}
    assert {contestant for table, contestant in packed if table == "whole numbers by hash"} >= {
        "arrays", f"{HOST}, columns of the host", f"{HOST}, columns of the device",
    }  # fmt: skip
    assert all(row["rows_per_second"] > 0 for row in packed.values())
    contestants = {(r["requests"], r["candidates"], r["contestant"]) for r in parts["benchmark"]["rows"]}
    assert {(1, 24, "fastmtr fp32"), (2, 12, "fastmtr fp16"), (2, 12, "torch eager fp32")} <= contestants
    for row in parts["benchmark"]["rows"]:
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["candidates_per_second"] > 0
    assert {"torch compile fp32"} <= {each["what"] for each in parts["benchmark"]["skipped"]}
    met = {each["target"]: each["met"] for each in found["targets"]}
    assert met.pop("fp32: scores within 1e-5 of the reference") is True
    assert met.pop("fp16: overlap of the 50 best at least 99 %") is True
    assert set(met.values()) == {None}


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def first(_: Any) -> dict[str, Any]:
        """Finds something wrong."""
        raise gpu_check.FailedError("3 tests failed")

    def second(_: Any) -> dict[str, Any]:
        """Cannot run."""
        raise gpu_check.LeftOutError("no compiler")

    def third(_: Any) -> dict[str, Any]:
        """Has a mistake of its own."""
        return {"x": {}["y"]}

    def fourth(_: Any) -> dict[str, Any]:
        """Runs."""
        return {"found": 1}

    check = make_check(tmp_path)
    gpu_check.run(check, [first, second, third, fourth])
    status = {name: (part["status"], part.get("why")) for name, part in check.parts.items()}
    assert status == {
        "first": ("failed", "3 tests failed"),
        "second": ("left out", "no compiler"),
        "third": ("failed", "KeyError: 'y'"),
        "fourth": ("passed", None),
    }
    assert "left out" in capsys.readouterr().out
    check.end = time.monotonic() + 1
    gpu_check.run(check, [fourth])
    assert check.parts["fourth"] | {"seconds": 0} == {"status": "left out", "why": "no time left", "seconds": 0}


def test_a_failed_part_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: Any) -> dict[str, Any]:
        """Finds something wrong."""
        raise gpu_check.FailedError("it does not compile")

    monkeypatch.setattr(gpu_check, "PARTS", (gpu_check.machine, build))
    options = ["--device", HOST, "--out", tmp_path, "--build", tmp_path / "build"]
    assert gpu_check.main([str(option) for option in options]) == 1


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    check = make_check(tmp_path, seconds=0)
    child = tmp_path / "child"
    code = f"import subprocess, sys, time; subprocess.Popen(['sh', '-c', 'sleep 2; touch {child}']); time.sleep(60)"
    with pytest.raises(gpu_check.FailedError, match="did not end within 1 s"):
        check.python("-c", code)
    time.sleep(2)
    assert not child.exists()


def test_what_is_not_there_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = make_check(tmp_path, device="cuda")
    check.installed = False
    check.parts = {"machine": {}, "build": {}}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_check, "MORE_PATHS", ())
    with pytest.raises(gpu_check.LeftOutError, match="cmake and nvcc not on the PATH"):
        gpu_check.build(check)
    with pytest.raises(gpu_check.LeftOutError, match="compute-sanitizer not on the PATH"):
        gpu_check.sanitizer(check)
    with pytest.raises(gpu_check.LeftOutError, match="device_ceilings_gpu was not built"):
        gpu_check.ceilings(check)
    with pytest.raises(gpu_check.LeftOutError, match="Python package"):
        gpu_check.benchmark(check)
    with pytest.raises(gpu_check.LeftOutError, match="Python package"):
        gpu_check.features(check)
    check.installed = True
    with pytest.raises(gpu_check.LeftOutError, match="no_such_package cannot be imported: ModuleNotFoundError"):
        gpu_check._need_package(check, "json", "no_such_package")
    if not any(each["name"] == "cuda" and each["available"] for each in info()["back_ends"]):
        with pytest.raises(gpu_check.LeftOutError, match="fastmtr cannot use cuda: "):
            gpu_check._need_device(check)
        with pytest.raises(gpu_check.LeftOutError, match="engine='cupy' needs "):
            gpu_check.features(check)


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (0, None, ""),
        (9, "FailedError", "'memcheck, portable': 'errors: "),
        (3, "LeftOutError", "not looked at, status 3"),
    ],
)
def test_what_compute_sanitizer_finds(
    status: int, error: str | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, program = tmp_path / "compute-sanitizer", tmp_path / "native" / "test_cuda_portable_gpu"
    tool.write_text(f"#!/bin/sh\necho looked at $*\nexit {status}\n")
    tool.chmod(0o755)
    program.parent.mkdir()
    program.touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = make_check(tmp_path, device="cuda")
    check.installed = False
    check.parts = {"build": {}, "portable": {"status": "passed"}}
    if error is None:
        found = gpu_check.sanitizer(check)
        assert found == {f"{of}, portable": "no errors" for of in gpu_check.SANITIZERS}
    else:
        with pytest.raises(getattr(gpu_check, error), match=text):
            gpu_check.sanitizer(check)


def test_the_report_of_tests(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        "<testsuites><testsuite><testcase classname='a' name='ok'/>"
        "<testcase classname='a' name='bad'><failure/></testcase><testcase classname='' name='b'><error/></testcase>"
        "<testcase classname='a' name='c'><skipped message='no GPU'/></testcase></testsuite></testsuites>"
    )
    assert gpu_check.read_report(path) == {"passed": 1, "failed": ["a::bad", "::b"], "skipped": {"no GPU": 1}}


# ---- targets ---------------------------------------------------------------------------------------------------------


def results(*, ours: float, peer: float, device: float, share: float, difference: float, overlap: float) -> Any:
    rows = []
    for requests in (1, 256):
        for precision in ("fp32", "fp16"):
            mine = {"p50_us": ours, "device_us": device, "share_of_ceiling": share}
            for name, numbers in (("fastmtr", mine), ("torch compile", {"p50_us": peer})):
                rows.append({"requests": requests, "candidates": 512, "contestant": f"{name} {precision}"} | numbers)
    accuracy = [
        {"contestant": "fastmtr fp32", "largest_difference": difference, "overlap": 1.0},
        {"contestant": "fastmtr fp16", "largest_difference": 1e-3, "overlap": overlap},
    ]
    return {"benchmark": {"rows": rows, "accuracy": accuracy}}


def test_targets() -> None:
    good = results(ours=50, peer=300, device=35, share=0.6, difference=1e-6, overlap=0.995)
    bad = results(ours=50, peer=100, device=45, share=0.4, difference=1e-4, overlap=0.98)
    for parts, met in ((good, True), (bad, False), ({}, None)):
        found = gpu_check.targets(parts)
        assert len(found) == 10
        assert {each["met"] for each in found} == {met}
    middling = gpu_check.targets(results(ours=50, peer=200, device=35, share=0.5, difference=0, overlap=1))
    missed = [each for each in middling if not each["met"]]
    assert [each["found"] for each in missed] == ["4 times", "4 times"]
    assert all("1 x 512: at least 5 times" in each["target"] for each in missed)


def test_times_on_the_device() -> None:
    gpu_score = pytest.importorskip("gpu_score")
    calls = [
        (at + start, at + end) for at in (0.0, 1.0, 2.0) for start, end in ((0.0, 1e-5), (2e-5, 5e-5), (1e-5, 4e-5))
    ]
    assert gpu_score.span_of_calls(calls, gap=1e-2, calls=3) == pytest.approx(5e-5)
    with pytest.raises(RuntimeError, match="saw 3 calls on the device, expected 4"):
        gpu_score.span_of_calls(calls, gap=1e-2, calls=4)
    with pytest.raises(RuntimeError, match="saw 0 calls"):
        gpu_score.span_of_calls([], gap=1e-2, calls=4)


def test_share_of_the_binding_ceiling() -> None:
    gpu_score = pytest.importorskip("gpu_score")
    costs = gpu_score.Costs(request_flops=1000, candidate_flops=100, candidate_bytes=10, weight_bytes=500)
    ceilings = {"fp32_flops_per_second": 1e9, "fp16_flops_per_second": 1e12, "gather_bytes_per_second": 1e9}
    # 2 requests of 50: 12,000 FLOPs and 1,500 bytes.
    found = gpu_score.share_of_ceiling(costs, 2, 50, 24e-6, "fp32", ceilings)
    assert (found["binding"], found["share_of_ceiling"]) == ("flops", pytest.approx(0.5))
    assert found["flops_per_second"] == pytest.approx(5e8)
    found = gpu_score.share_of_ceiling(costs, 2, 50, 3e-6, "fp16", ceilings)
    assert (found["binding"], found["share_of_ceiling"]) == ("memory", pytest.approx(0.5))
