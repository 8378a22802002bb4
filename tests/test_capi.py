"""Programs outside Python, in C and C++, against the installed header and library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HandmadeModel
from small_ranker import make_bundle

import fastmtr
from fastmtr._native import Model, Session

NATIVE = Path(__file__).parent / "native"
OUTSIDE = Path(__file__).parent / "outside_cmake"


def compiled(source: str, standard: str, variable: str, names: tuple[str, ...], folder: Path) -> Path:
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        pytest.skip(f"needs a compiler: none of {', '.join(names)} is installed")
    library = Path(fastmtr.get_library())
    program = folder / source.replace(".", "_")
    command = [*compiler.split(), standard, "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{fastmtr.get_include()}"]
    command += [
        str(NATIVE / source),
        "-o",
        str(program),
        f"-L{library.parent}",
        "-lfastmtr",
        f"-Wl,-rpath,{library.parent}",
    ]
    subprocess.run(command, check=True, timeout=120)
    return program


def run(program: Path, *arguments: object) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_answers(program: Path, handmade: HandmadeModel, bundle: Path, folder: Path) -> None:
    """The program gets a batch in a file of plain numbers, and prints what Python then compares bit by bit."""
    ids, dense = handmade.requests(2)
    items = handmade.catalogue["keys"][[4, 9, 9, 30, 71]]
    offsets = np.array([0, 2, 5])
    place, retrieved = handmade.candidates(5)
    numbers = [2, 5, *ids.ravel(), *dense.ravel(), *offsets, *items, *place.ravel(), *retrieved.ravel()]
    batch = folder / "batch.txt"
    batch.write_text(" ".join(float(n).hex() if isinstance(n, np.floating) else str(n) for n in numbers))
    lines = run(program, bundle, batch).splitlines()

    session = Session(Model(bundle))
    candidate = {"candidate_ids": place, "candidate_dense": retrieved}
    scores, fused = session.score(ids, dense, offsets, items, **candidate)
    positions, _, _, counts = session.rank(ids, dense, offsets, items, k=2, **candidate)
    assert lines[0] == f"fastmtr {fastmtr.__version__}, 2 tasks, 100 items"
    found = [[float.fromhex(n) for n in line.split()] for line in lines[1:6]]
    assert found == np.column_stack([scores, fused]).astype(float).tolist()
    assert [line.split() for line in lines[6:8]] == [
        [str(c), *map(str, p)] for c, p in zip(counts, positions, strict=True)
    ]
    assert lines[8] == (
        "FMTR_ERROR_SCHEMA: item 123456789 (candidate 0) is not in the catalogue of 100 items; "
        "leave them out, or ask for unknown items to be skipped"
    )
    assert lines[9].startswith("FMTR_ERROR_BUNDLE: /nonexistent is no bundle")
    if "cpp" in program.name:
        assert lines[10:] == [
            "version 2, 101 items, row 3 kept, last 424242",
            "1 deleted, 100 vectors",
            "FMTR_ERROR_STALE: the catalogue is version 3, the call expects version 1: "
            "read its size and keys again, then call again",
            "explained 1, profiled 1",
            "100 scores of the whole catalogue, 4 numbers of a user",
        ]


@pytest.mark.parametrize(
    ("source", "standard", "variable", "names"),
    [
        ("embed.c", "-std=c99", "CC", ("cc", "gcc", "clang")),
        ("embed.cpp", "-std=c++17", "CXX", ("c++", "g++", "clang++")),
    ],
)
def test_a_program_outside_scores_alike(
    handmade: HandmadeModel,
    bundle: Path,
    tmp_path: Path,
    source: str,
    standard: str,
    variable: str,
    names: tuple[str, ...],
) -> None:
    check_answers(compiled(source, standard, variable, names, tmp_path), handmade, bundle, tmp_path)


def test_a_cmake_project_outside_scores_alike(handmade: HandmadeModel, bundle: Path, tmp_path: Path) -> None:
    """``find_package(fastmtr)`` with nothing but the folder that the installed package names."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    if cmake is None:
        pytest.skip("needs cmake")
    options = [f"-Dfastmtr_DIR={fastmtr.get_cmake_dir()}", "-DCMAKE_BUILD_TYPE=Debug"]
    quiet: dict[str, Any] = {"check": True, "timeout": 120, "stdout": subprocess.DEVNULL}
    subprocess.run([cmake, "-S", OUTSIDE, "-B", tmp_path, "-G", "Unix Makefiles", *options], **quiet)
    subprocess.run([cmake, "--build", tmp_path], **quiet)
    for name in ("embed_c", "embed_cpp"):
        check_answers(tmp_path / name, handmade, bundle, tmp_path)


def test_misuse_of_the_c_functions(bundle: Path, tmp_path: Path) -> None:
    """Null pointers, wrong sizes and structs of another version get a status, not a crash."""
    program = compiled("misuse.c", "-std=c99", "CC", ("cc", "gcc", "clang"), tmp_path)
    assert run(program, bundle).splitlines()[-1].endswith("0 failed")


def test_only_the_documented_functions_are_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    lines = subprocess.run(
        [nm, "-D", "--defined-only", fastmtr.get_library()], capture_output=True, text=True, check=True
    ).stdout
    header = Path(fastmtr.get_include(), "fastmtr.h").read_text()
    exported = {line.split()[-1] for line in lines.splitlines()}
    assert exported == set(re.findall(r"FMTR_API[^;]*?\b(fmtr_\w+)\(", header))


def test_a_service_from_raw_values(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "raw")
    lines = run(compiled("service.cpp", "-std=c++17", "CXX", ("c++", "g++", "clang++"), tmp_path), bundle).splitlines()
    best = fastmtr.Ranker.load(bundle).rank({"user": 104, "age": 0.25}, None, context={"place": "home"}, k=5)
    found = [line.split() for line in lines[:5]]
    assert [int(key) for key, _ in found] == list(best.items)
    assert [float.fromhex(score) for _, score in found] == [float(score) for score in best.fused]
    assert lines[5:] == [
        "FMTR_ERROR_SCHEMA: column 'age' should hold numbers, found the text 'young'",
        "1 encoded",
    ]
