"""Registers, spills and static shared memory of each CUDA kernel, as the compiler reports them; against ceilings.

    python bench/registers.py             # the numbers, and fails where one is above its ceiling
    python bench/registers.py --update    # writes the ceilings, bench/registers.json

No GPU is needed: nvcc compiles the plugin for each architecture, and its assembler says what a kernel takes. The
numbers are those of one nvcc: with another one than the ceilings', nothing is compared, and the command says so.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
CEILINGS = Path(__file__).with_suffix(".json")
TARGET = "fastmtr_cuda"
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DFASTMTR_PYTHON=OFF",
    "-DFASTMTR_NATIVE_TESTS=ON",
    "-DFASTMTR_CUDA=ON",
    "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
]
WHAT = ("registers", "spill_bytes", "stack_bytes", "shared_bytes")

_KERNEL = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def kernels_of(report: str) -> Iterator[tuple[str, dict[str, int]]]:
    """``(name and architecture, numbers)`` of each kernel that the assembler's verbose report is about.

    Raises
    ------
    ValueError
        The report begins on a kernel and never says what it uses.
    """
    parts = re.split(r"(?=Compiling entry function)", report)
    for part in parts[1:]:
        kernel, used = _KERNEL.match(part), _USED.search(part)
        functions = _STACK.findall(part)  # the kernel, and what it calls
        if not (kernel and functions and used):
            raise ValueError(f"the assembler's report is not of the expected form: {part[:300]!r}")
        shared = _SHARED.search(part[used.start() :].splitlines()[0])
        spills = sum(int(stores) + int(loads) for _, stores, loads in functions)
        numbers = (int(used[1]), spills, max(int(stack) for stack, _, _ in functions), int(shared[1]) if shared else 0)
        yield f"{kernel['name']} {kernel['arch']}", dict(zip(WHAT, numbers, strict=True))


def readable(names: Sequence[str]) -> list[str]:
    """The names without mangling, namespaces and parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [short(name) for name in done.stdout.splitlines()]


def short(name: str) -> str:
    """``void a::kernel<a::b>(a::Args) sm_80`` as ``kernel<b> sm_80``."""
    name, _, arch = name.rpartition(" ")
    name = re.sub(r"\((?:\w+::)*\w+(?:<[^()]*>)?(?: const)?&?\)$", "", name).removeprefix("void ")
    return re.sub(r"(?:\w+::|\(anonymous namespace\)::)+", "", name) + f" {arch}"


def measure(folder: Path) -> dict[str, dict[str, int]]:
    """Compile the plugin and read what the assembler said."""
    ninja = shutil.which("ninja") is not None  # which does not mix what two compilers say at once
    configure = ["cmake", "-S", ROOT, "-B", folder, *(["-G", "Ninja"] if ninja else []), *OPTIONS]
    build = ["cmake", "--build", folder, "--target", TARGET, "--parallel", "2" if ninja else "1"]
    report = ""
    for command in (configure, build):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        report = done.stdout
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{report[-3000:]}")
    found = list(kernels_of(report))
    if not found:
        raise SystemExit(f"the assembler reported no kernel:\n{report[-3000:]}")
    return dict(sorted(zip(readable([name for name, _ in found]), (numbers for _, numbers in found), strict=True)))


def compiler() -> str:
    """Of nvcc, release and version."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    return f"nvcc {found[1] if found else text.strip()[-60:]}"


def above(numbers: dict[str, dict[str, int]], ceilings: dict[str, dict[str, int]]) -> list[str]:
    """What is wrong, in words: numbers above their ceiling, kernels that have none, ceilings without a kernel."""
    wrong = [f"{name} has no ceiling" for name in numbers if name not in ceilings]
    wrong += [f"{name} is gone" for name in ceilings if name not in numbers]
    for name in sorted(numbers.keys() & ceilings.keys()):
        for what in WHAT:
            if numbers[name][what] > ceilings[name][what]:
                wrong.append(f"{name}: {what} {numbers[name][what]}, at most {ceilings[name][what]} expected")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the ceilings")
    parser.add_argument("--build", type=Path, help="an empty build folder to use and keep")
    given = parser.parse_args(arguments)
    if missing := [tool for tool in ("nvcc", "cmake", "c++filt") if shutil.which(tool) is None]:
        print(f"CUDA kernels were not compiled: {' and '.join(missing)} not on the PATH")
        return 0
    with tempfile.TemporaryDirectory(prefix="fastmtr-registers-") as text:
        numbers = measure(given.build or Path(text) / "build")
    if given.update:
        CEILINGS.write_text(json.dumps({"compiler": compiler(), "kernels": numbers}, indent=1) + "\n")
    expected = json.loads(CEILINGS.read_text())
    width = max(map(len, numbers))
    print(f"{'':{width}} {' '.join(WHAT)}")
    for name, values in numbers.items():
        print(f"{name:{width}} " + " ".join(f"{values[what]:>{len(what)}}" for what in WHAT))
    if expected["compiler"] != compiler():
        print(f"not compared: the ceilings are of {expected['compiler']}, this is {compiler()}")
        return 0
    if wrong := above(numbers, expected["kernels"]):
        print("\n".join([*wrong, "If it is meant, --update and say why."]))
        return 1
    print(f"{len(numbers)} kernels, none above its ceiling")
    return 0


if __name__ == "__main__":
    sys.exit(main())
