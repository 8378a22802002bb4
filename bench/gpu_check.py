"""What only a GPU can show, in one command: builds, tests and measures the GPU back end, in less than 9 minutes.

    python bench/gpu_check.py                # on a machine with an NVIDIA GPU, from a plain checkout, without a network
    python bench/gpu_check.py --wheels DIR   # the wheels there stand in for packages that are not installed

Needs Python 3.11 or later, nvcc, CMake and pybind11; NumPy, msgspec and safetensors for all that is Python, torch for
the benchmark. What is not there is left out, with the reason. Nothing is installed: all that is built is in
build/gpu_check. Writes one file, bench/results/DATE-DEVICE.json, with what ran, what was left out, what failed and
which targets were met. Ends with 1 where something failed; a target that is missed is no failure.

``--device cuda-host --installed --tiny`` goes through the same steps with the emulation of an editable install.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "numpy", "msgspec", "safetensors", "pybind11", "pytest", "hypothesis", "torch", "triton", "onnx", "onnxruntime",
    "onnxruntime-gpu", "cupy-cuda13x", "cupy-cuda12x", "faiss-gpu", "faiss-cpu", "numba",
)  # fmt: skip
# By device: the tools and the option that its build needs, and what is built.
TOOLS = {"cuda": ("cmake", "nvcc"), "cuda-host": ("cmake",)}
OPTION = {"cuda": "FASTMTR_CUDA", "cuda-host": "FASTMTR_CUDA_HOST"}
PLUGIN = {"cuda": "fastmtr_cuda", "cuda-host": "fastmtr_cuda_host"}
PORTABLE = {"cuda": "test_cuda_portable_gpu", "cuda-host": "test_cuda_portable"}
CEILINGS = {"cuda": "device_ceilings_gpu", "cuda-host": "device_ceilings_host"}
# Programs are looked for there, too: beside this Python, and where CUDA's installer puts them.
MORE_PATHS = (str(Path(sys.executable).parent), "/usr/local/cuda/bin")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
MINUTES = 8.5
# Of parts, at most, in so many minutes; the benchmark has what is left.
SECONDS = {"build": 200.0, "portable": 20.0, "tests": 100.0, "ceilings": 30.0, "sanitizer": 60.0, "features": 60.0}


class LeftOutError(Exception):
    """A part cannot run here; the text says why."""


class FailedError(Exception):
    """A part ran and found something wrong."""


@dataclass
class Check:
    """The run: its settings, its time, what its parts found."""

    device: str
    tiny: bool
    installed: bool
    wheels: Path | None
    build: Path
    end: float
    minutes: float = MINUTES
    part_end: float = 0.0
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        """Where the built package lies."""
        return self.build / "site"

    def left(self) -> float:
        """Seconds of this part."""
        return self.part_end - time.monotonic()

    def environment(self) -> dict[str, str]:
        """Of the programs that are started: the built package is found first."""
        found = dict(os.environ, PATH=_path(), PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
        if not self.installed:
            found["PYTHONPATH"] = os.pathsep.join([str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])])
        return found

    def start(self, command: Sequence[str | Path], *, show: bool = False) -> tuple[int, str]:
        """Run a program within the part's time: its status and what it said.

        Raises
        ------
        FailedError
            It was still running at the end of its time, and was ended with all that it started.
        """
        seconds = max(1.0, self.left())
        text = [str(word) for word in command]
        process = subprocess.Popen(
            text,
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            last = f"; its last words: {said[-300:]}" if said else ""
            raise FailedError(f"{Path(text[0]).name} did not end within {seconds:.0f} s{last}") from None
        return process.returncode, said or ""

    def python(self, *arguments: str | Path, show: bool = False) -> tuple[int, str]:
        """Run this Python."""
        return self.start([sys.executable, *arguments], show=show)

    def has(self, package: str) -> bool:
        """Whether the programs that are started can import it."""
        return self.python("-P", "-c", f"import {package}")[0] == 0

    def passed(self, part: str) -> bool:
        """Whether that part ran and found nothing wrong."""
        return self.parts.get(part, {}).get("status") == "passed"


# ---- parts: each gives what it found, or raises one of the two errors ------------------------------------------------


def machine(check: Check) -> dict[str, Any]:
    """What the numbers are of."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "commit": _first_line(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "nvcc": _first_line(["nvcc", "--version"], r"release .*"),
    }
    asked = "name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.memory,power.limit"
    line = _first_line(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"])
    if line:
        found["gpu"] = dict(zip(asked.split(","), (part.strip() for part in line.split(",")), strict=False))
    elif check.device == "cuda":
        found["gpu"] = None
    return found


def build(check: Check) -> dict[str, Any]:
    """The plugin for this GPU, the programs, the Python package, in build/gpu_check."""
    if check.installed:
        raise LeftOutError("--installed: the fastmtr of this Python is checked as it is")
    if missing := [tool for tool in TOOLS[check.device] if _which(tool) is None]:
        raise LeftOutError(f"{' and '.join(missing)} not on the PATH")
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-D{OPTION[check.device]}=ON", "-DFASTMTR_NATIVE_TESTS=ON"]
    gpu = check.parts["machine"].get("gpu") or {}
    if capability := gpu.get("compute_cap"):
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}")
    shutil.rmtree(check.site, ignore_errors=True)
    _add_wheels(check)
    module = check.has("pybind11")
    options.append(f"-DFASTMTR_PYTHON={'ON' if module else 'OFF'}")
    if module:
        _, folder = check.python("-P", "-m", "pybind11", "--cmakedir")
        options += [f"-Dpybind11_DIR={folder.strip()}", f"-DPython_EXECUTABLE={sys.executable}"]
    generator = ["-G", "Ninja"] if _which("ninja") else []
    targets = [of[check.device] for of in (PLUGIN, PORTABLE, CEILINGS)] + ["_native" if module else "fastmtr"]
    native = check.build / "native"
    for command in (
        ["cmake", "-S", ROOT, "-B", native, *generator, *options],
        ["cmake", "--build", native, "--parallel", str(os.cpu_count() or 2), "--target", *targets],
    ):
        status, said = check.start(command)
        if status != 0:
            raise FailedError(f"{' '.join(map(str, command[:3]))} ... ended with {status}: {said[-2000:]}")
    found = {"options": options}
    if not module:
        return found | {"python": "not built: pybind11 is not installed"}
    _add_package(check, native)
    status, said = check.python("-P", "-c", "import fastmtr; fastmtr.info(); print(fastmtr.__file__)")
    if status != 0:
        return found | {"python": f"cannot be imported: {said.strip().splitlines()[-1]}"}
    if not Path(said.strip()).is_relative_to(check.site):
        return found | {"python": f"an editable install, {said.strip()}, hides it: use another Python, or --installed"}
    return found | {"python": "built"}


def _add_package(check: Check, native: Path) -> None:
    """The package; its module finds the libraries in the build folder, where it was linked."""
    shutil.copytree(ROOT / "fastmtr", check.site / "fastmtr", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (module,) = native.glob("_native*.so")
    shutil.copy2(module, check.site / "fastmtr")
    include = check.site / "fastmtr" / "include"
    shutil.copytree(ROOT / "csrc" / "include", include)
    for header in (ROOT / "csrc" / "core").glob("feature_*.h"):
        (include / "fastmtr" / "core").mkdir(parents=True, exist_ok=True)
        shutil.copy2(header, include / "fastmtr" / "core")


def _add_wheels(check: Check) -> None:
    """Packages that are found before those of this Python."""
    if check.wheels and (wheels := sorted(check.wheels.glob("*.whl"))):
        status, said = check.python(
            "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", check.site, *wheels
        )
        if status != 0:
            raise FailedError(f"the wheels of {check.wheels} cannot be installed: {said[-500:]}")


def portable(check: Check) -> dict[str, Any]:
    """What device code is made of does on the GPU what it does in the emulation."""
    status, said = check.start([_program(check, PORTABLE[check.device])])
    if status == 77:
        raise LeftOutError(said.strip())
    if status != 0:
        raise FailedError(said[-2000:])
    return {"said": said.strip()}


def tests(check: Check) -> dict[str, Any]:
    """All tests marked cuda, or with the emulation those of one operator."""
    _need_package(check, "pytest", "hypothesis")
    _need_device(check)
    files = sorted(
        f
        for f in (ROOT / "tests").glob("test_*.py")
        if re.search(r"mark\.cuda|DEVICES|NAMESPACES", f.read_text("utf8"))
    )
    which = ["-m", "cuda"] if check.device == "cuda" else ["-k", "test_each_operator and dot", "-m", "not cuda"]
    report = check.build / "tests.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    several = ["-n", str(min(8, os.cpu_count() or 1))] if not check.tiny and check.has("xdist") else []
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", f"--junitxml={report}", *several]
    options.append("--continue-on-collection-errors")
    status, said = check.start([*_pytest(), *options, *which, *files])
    found = read_report(report) if report.exists() else {"passed": 0, "failed": [], "skipped": {}}
    if status not in (0, 5) or found["failed"]:
        raise FailedError(
            f"{len(found['failed'])} failed, {found['passed']} passed: {found['failed'][:20]}\n{said[-2000:]}"
        )
    if found["passed"] == 0:
        raise LeftOutError(f"no test ran: {found['skipped'] or said[-300:]}")
    return found


def read_report(path: Path) -> dict[str, Any]:
    """Of a JUnit file: how many passed, which failed, how many were skipped by reason."""
    passed, failed, skipped = 0, [], {}
    for case in ET.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif (skip := case.find("skipped")) is not None:
            reason = skip.get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


def sanitizer(check: Check) -> dict[str, Any]:
    """compute-sanitizer over small cases: the portable test, and of the plugin's tests one of each kind of step."""
    tool = _which("compute-sanitizer")
    if check.device != "cuda":
        raise LeftOutError("it looks at a GPU; builds of the emulation have AddressSanitizer")
    if tool is None:
        raise LeftOutError("compute-sanitizer not on the PATH")
    if not check.passed("portable"):
        raise LeftOutError("the programs that it would look into did not run")
    options = ["--error-exitcode", "9", "--print-limit", "5"]
    cases = [(which, "portable", [_program(check, PORTABLE[check.device])]) for which in SANITIZERS]
    if check.parts["build"].get("python") == "built" and check.has("pytest"):
        which = ["-m", "cuda", "-k", "test_models and mmoe or test_each_operator and dot"]
        command = [*_pytest(), "-q", "-p", "no:cacheprovider", *which, ROOT / "tests" / "test_device.py"]
        cases[1:1] = [(of, "plugin", ["--target-processes", "all", *command]) for of in ("memcheck", "racecheck")]
    found: dict[str, str] = {}
    for of, what, command in cases:
        try:
            status, said = check.start([tool, "--tool", of, *options, *command])
        except FailedError as error:  # slow is not wrong
            found[f"{of}, {what}"] = f"not finished: {error}"
            continue
        # 9: it found something; else the program's own status, or the tool cannot work here.
        verdict = {0: "no errors", 9: "errors"}.get(status, f"not looked at, status {status}")
        found[f"{of}, {what}"] = verdict if status == 0 else f"{verdict}: {said[-600:]}"
    if any(said.startswith("errors") for said in found.values()):
        raise FailedError(str(found))
    if "no errors" not in found.values():
        raise LeftOutError(str(found))
    return found


def ceilings(check: Check) -> dict[str, Any]:
    """What the device can do at most."""
    program = _program(check, CEILINGS[check.device])
    status, said = check.start([program, "--small"] if check.tiny else [program])
    if status == 77:
        raise LeftOutError(said.strip())
    if status != 0:
        raise FailedError(said[-1000:])
    return dict(json.loads(said))


def features(check: Check) -> dict[str, Any]:
    """Tables of features: equal bits, and rows a second against the ways of the host: bench/gpu_features.py."""
    _need_package(check, "pyarrow")
    out = check.build / "features.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    command: list[str | Path] = [ROOT / "bench" / "gpu_features.py", "--device", check.device, "--out", out]
    command += ["--seconds", f"{check.left() - 10:.0f}", *(["--tiny"] if check.tiny else [])]
    status, said = check.python(*command)
    print(said.rstrip(), flush=True)
    if status == 77:
        raise LeftOutError(said.strip())
    if status != 0:
        raise FailedError(said[-1000:])
    return dict(json.loads(out.read_text()))


def benchmark(check: Check) -> dict[str, Any]:
    """fastmtr against its peers: bench/gpu_score.py."""
    _need_package(check, "torch")
    _need_device(check)
    out, measured = check.build / "benchmark.json", check.build / "ceilings.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    seconds = check.left() - 10  # to write the results
    check.part_end -= 10
    if seconds < 30 and not check.tiny:
        raise LeftOutError(f"{check.left():.0f} s are left")
    command: list[str | Path] = [ROOT / "bench" / "gpu_score.py", "--device", check.device, "--out", out]
    command += ["--seconds", f"{seconds - 15:.0f}", *(["--tiny"] if check.tiny else [])]
    if check.passed("ceilings"):
        measured.write_text(json.dumps(check.parts["ceilings"]))
        command += ["--ceilings", measured]
    try:
        status, _ = check.python(*command, show=True)
    except FailedError as error:
        if not out.exists():
            raise
        return {**json.loads(out.read_text()), "cut": str(error)}
    if status != 0:
        partly = f"; it wrote {out}" if out.exists() else ""
        raise FailedError(f"gpu_score.py ended with {status}{partly}")
    return dict(json.loads(out.read_text()))


def _pytest() -> list[str | Path]:
    """As a program that does not look into the source tree for the package, which has no module there."""
    return [sys.executable, "-P", "-m", "pytest"]


def _need_package(check: Check, *names: str) -> None:
    """Leave the part out where the package, or one of those, cannot be imported."""
    state = check.parts["build"]
    if not check.installed and state.get("python") != "built":
        raise LeftOutError(f"the Python package: {state.get('python', state.get('why', 'was not built'))}")
    for name in names:
        status, said = check.python("-P", "-c", f"import {name}")
        if status != 0:
            raise LeftOutError(
                f"{name} cannot be imported: {said.strip().splitlines()[-1] if said.strip() else status}"
            )


def _need_device(check: Check) -> None:
    """Leave the part out where the package finds no such device."""
    status, said = check.python("-P", "-c", "import json, fastmtr; print(json.dumps(fastmtr.info()))")
    if status != 0:
        raise LeftOutError(f"fastmtr.info() failed: {said.strip()[-300:]}")
    found = {each["name"]: each for each in json.loads(said)["back_ends"]}
    about = found.get(check.device, {"available": False, "reason": "it has no such back end"})
    if not about["available"]:
        raise LeftOutError(f"fastmtr cannot use {check.device}: {about['reason']}")


def _program(check: Check, name: str) -> Path:
    path = check.build / "native" / name
    if check.installed or not path.exists():
        raise LeftOutError(f"{name} was not built")
    return path


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *MORE_PATHS])


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=_path())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(command: Sequence[str], pattern: str = r".+") -> str | None:
    try:
        options = {"capture_output": True, "text": True, "timeout": 20, "check": False}
        done = subprocess.run(command, env=dict(os.environ, PATH=_path()), **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, done.stdout) if done.returncode == 0 else None
    return found[0].strip() if found else None


# ---- targets ---------------------------------------------------------------------------------------------------------


def targets(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each target: what was found, whether it is met (None: not measured)."""
    results = parts.get("benchmark", {})
    rows = {(r["requests"], r["candidates"], r["contestant"]): r for r in results.get("rows", ())}
    accuracy = {r["contestant"]: r for r in results.get("accuracy", ())}
    found: list[dict[str, Any]] = []

    def add(name: str, value: float | None, met: Callable[[float], bool], unit: str) -> None:
        shown = None if value is None else f"{value:.3g} {unit}"
        found.append({"target": name, "found": shown, "met": None if value is None else met(value)})

    def ratio(requests: int, precision: str) -> float | None:
        ours, peer = (rows.get((requests, 512, f"{who} {precision}")) for who in ("fastmtr", "torch compile"))
        return peer["p50_us"] / ours["p50_us"] if ours and peer else None

    for precision in ("fp32", "fp16"):
        one, many = (rows.get((requests, 512, f"fastmtr {precision}"), {}) for requests in (1, 256))
        what = f"MMoE {precision}"
        five = "at least 5 times as fast as torch.compile with CUDA graphs"
        add(f"{what}, 1 x 512: {five}", ratio(1, precision), lambda x: x >= 5, "times")
        add(f"{what}, 1 x 512: under 40 us on the device", one.get("device_us"), lambda x: x < 40, "us")
        add(f"{what}, 256 x 512: at least 3 times its throughput", ratio(256, precision), lambda x: x >= 3, "times")
        share = many.get("share_of_ceiling")
        add(f"{what}, 256 x 512: 50 % of the binding ceiling", share, lambda x: x >= 0.5, "of it")
    exact, half = accuracy.get("fastmtr fp32", {}), accuracy.get("fastmtr fp16", {})
    add("fp32: scores within 1e-5 of the reference", exact.get("largest_difference"), lambda x: x <= 1e-5, "")
    add("fp16: overlap of the 50 best at least 99 %", half.get("overlap"), lambda x: x >= 0.99, "")
    return found


# ---- the run ---------------------------------------------------------------------------------------------------------

PARTS: tuple[Callable[[Check], dict[str, Any]], ...] = (
    machine, build, portable, tests, ceilings, sanitizer, features, benchmark,
)  # fmt: skip


def run(check: Check, parts: Sequence[Callable[[Check], dict[str, Any]]]) -> None:
    """Each part after the other; one that fails does not keep the others from running."""
    for part in parts:
        name, start = part.__name__, time.monotonic()
        print(f"== {name}: {(part.__doc__ or '').splitlines()[0]}", flush=True)
        try:
            check.part_end = min(check.end, start + SECONDS.get(name, math.inf) * check.minutes / MINUTES)
            if check.left() < 5:
                raise LeftOutError("no time left")
            found = {"status": "passed", **part(check)}
        except LeftOutError as reason:
            found = {"status": "left out", "why": str(reason)}
        except FailedError as reason:
            found = {"status": "failed", "why": str(reason)}
        except Exception as error:  # a mistake of this program: the other parts still tell something
            found = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.monotonic() - start, 1)
        check.parts[name] = found
        why = f": {found['why']}" if "why" in found else ""
        print(f"   {found['status']} in {found['seconds']} s{why}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cuda-host"), default="cuda")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"in all ({MINUTES})")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="the folder of the results file")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu_check", help="a folder that is kept")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, for packages that are not installed")
    parser.add_argument("--installed", action="store_true", help="check the fastmtr of this Python, build nothing")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does the check itself work?")
    parser.add_argument("--only", help="parts, by name, separated by commas (machine and build always run)")
    given = parser.parse_args(arguments)
    names = [part.__name__ for part in PARTS]
    only = given.only.split(",") if given.only else names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(names)}")

    end = time.monotonic() + 60 * given.minutes
    check = Check(
        given.device, given.tiny, given.installed, given.wheels, given.build.resolve(), end, minutes=given.minutes
    )
    check.build.mkdir(parents=True, exist_ok=True)
    run(check, [part for part in PARTS if part.__name__ in {"machine", "build", *only}])

    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": given.device,
        "tiny": given.tiny,
        "parts": check.parts,
        "targets": targets(check.parts),
    }
    gpu = (check.parts["machine"].get("gpu") or {}).get("name", given.device)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{found['date'][:10]}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print("\ntargets" + (" (tiny: the numbers mean nothing)" if given.tiny else ""))
    for target in found["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        print(f"  {verdict:12} {target['target']}: {target['found'] or '-'}")
    print(f"written: {path}")
    failed = [name for name, part in check.parts.items() if part["status"] == "failed"]
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
