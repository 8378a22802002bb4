"""Files compiled for an instruction set hold nothing that a linker could give to code for another processor.

A weak symbol (an inline function or a template of a C++ library header) exists in many object files, and the linker
keeps one: if it is the one compiled with AVX-512, every processor without it crashes. Compiled here without
optimisation, where nothing is inlined and each function that is used shows.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.stem.removeprefix("isa_") for path in (ROOT / "csrc" / "cpu").glob("isa_*.cpp"))
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
AARCH64 = platform.machine().lower() in ("aarch64", "arm64")
# What the C library or the compiler's run time gives; none is compiled by us.
C_FUNCTIONS = {"memcpy", "memset", "memmove", "sqrtf", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def flags(isa: str) -> list[str]:
    """The flags that CMakeLists.txt gives to the file."""
    found = re.search(rf"set\(flags_{isa} ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    return found[1].split() if found else []


def runs_here(isa: str) -> bool:
    return {"avx2": X86_64, "avx512": X86_64, "avx512_vnni": X86_64, "neon": AARCH64}.get(isa, True)


@pytest.fixture(scope="module", params=FILES)
def symbols(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(kind, name) of every symbol of the file, as nm has them."""
    isa: str = request.param
    if not runs_here(isa):
        pytest.skip(f"{isa} is not of this processor family ({platform.machine()})")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    nm = shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs a C++ compiler and nm")
    built = tmp_path_factory.mktemp(isa) / "isa.o"
    source = ROOT / "csrc" / "cpu" / f"isa_{isa}.cpp"
    command = [*compiler.split(), "-std=c++20", "-O0", "-fPIC", "-w", *flags(isa), "-c", str(source), "-o", str(built)]
    subprocess.run(command, check=True, timeout=300)
    lines = subprocess.run([nm, "-P", str(built)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [(kind, name) for name, kind, *_ in (line.split() for line in lines)]


def test_no_weak_symbols(symbols: list[tuple[str, str]]) -> None:
    assert [name for kind, name in symbols if kind in "WwVvu"] == []


def test_one_table_is_all_that_is_given(symbols: list[tuple[str, str]]) -> None:
    given = [(kind, name) for kind, name in symbols if kind.isupper() and kind != "U"]
    assert len(given) == 1, given
    kind, name = given[0]
    assert kind in "DR", "data only: a function could run on a processor that lacks the instructions"
    assert name.endswith("TableE")


def test_nothing_is_taken_from_the_cpp_library(symbols: list[tuple[str, str]]) -> None:
    assert {name for kind, name in symbols if kind == "U"} <= C_FUNCTIONS


def test_flags_are_found() -> None:
    assert "-mavx2" in flags("avx2")
    assert "-mavx512f" in flags("avx512")
