"""Instructions of kernels, requests of reference models and raw rows, counted by callgrind; against a baseline.

    python bench/instructions.py             # counts, and fails where one rose by more than 5 %
    python bench/instructions.py --update    # writes the baseline, bench/instructions.json

Instructions are counted, not time: the number is the same in every run, whatever else the machine does. It is that of
one compiler: with another one than the baseline's, nothing is compared, and the command says so. Kernels are those of
AVX2, which valgrind knows. Needs valgrind, cmake, a C++20 compiler and torch.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from feature_rows import raw_rows, schema, write_rows
from workload import MODELS, make_workload

from fastmtr.features import FeaturePipeline

ROOT = Path(__file__).parent.parent
BASELINE = Path(__file__).with_suffix(".json")
MOST = 1.05
CANDIDATES = 64
ROWS = 100


def build(folder: Path) -> tuple[Path, str]:
    """The program, and the compiler that made it."""
    run = ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DFASTMTR_PYTHON=OFF"]
    subprocess.run([*run, "-DFASTMTR_NATIVE_TESTS=ON"], check=True, stdout=subprocess.DEVNULL)
    command = ["cmake", "--build", folder, "--target", "instructions", "--parallel", "2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    described = next(folder.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")).read_text()
    found = [re.search(rf'set\(CMAKE_CXX_COMPILER_{what} "([^"]*)"\)', described) for what in ("ID", "VERSION")]
    return folder / "instructions", " ".join(m[1] for m in found if m)


def count(program: Path, arguments: Sequence[str | Path], folder: Path) -> int:
    """Instructions inside ``measured()``."""
    out = folder / "callgrind.out"
    options = ["--tool=callgrind", "--toggle-collect=measured*", f"--callgrind-out-file={out}"]
    done = subprocess.run(["valgrind", *options, program, *arguments], capture_output=True, text=True, check=False)
    totals = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE) if out.exists() else None
    if done.returncode != 0 or totals is None or int(totals[1]) == 0:
        raise SystemExit(f"{arguments}: nothing was counted: {done.stderr[-500:]}")
    return int(totals[1])


def requests(folder: Path) -> dict[str, list[Path]]:
    """The program's arguments for a request of each reference model."""
    workload = make_workload(n_items=500, embedding_rows=5000)
    found = {}
    for name in MODELS:
        _, graph = workload.build(name)
        bundle = workload.bundle(folder / name, name, graph)
        request = workload.requests(CANDIDATES, count=1)[0]
        file = folder / f"{name}.request"
        parts = np.uint64(CANDIDATES), workload.keys[request.rows], *request.request
        file.write_bytes(b"".join(part.tobytes() for part in parts))
        found[f"request of {CANDIDATES}, {name}"] = [bundle, file]
    return found


def rows(folder: Path) -> dict[str, list[str | Path]]:
    """The program's arguments for rows like Criteo's, which become features."""
    folder.mkdir()
    data = raw_rows(20_000, seed=0)
    write_rows(folder, FeaturePipeline(schema()).fit(interactions=data), data.slice(0, ROWS))
    return {f"{ROWS} raw rows of {data.num_columns} columns": ["--rows", folder]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--build", type=Path, help="a build folder to use and keep")
    given = parser.parse_args(arguments)
    if missing := [tool for tool in ("valgrind", "cmake") if shutil.which(tool) is None]:
        print(f"instructions were not counted: {' and '.join(missing)} not on the PATH")
        return 0
    with tempfile.TemporaryDirectory(prefix="fastmtr-instructions-") as text:
        folder = Path(text)
        program, compiler = build(given.build or folder / "build")
        names = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
        cases: dict[str, Sequence[str | Path]] = (
            {name: [name] for name in names} | requests(folder) | rows(folder / "rows")
        )
        counts = {name: count(program, case, folder) for name, case in cases.items()}
    if given.update:
        BASELINE.write_text(json.dumps({"compiler": compiler, "instructions": counts}, indent=1) + "\n")
    baseline = json.loads(BASELINE.read_text())
    before = baseline["instructions"]
    for name, n in counts.items():
        change = f"{n / before[name] - 1:+.1%}" if name in before else "new"
        print(f"{name:40} {n:>12,} {change:>8}")
    if baseline["compiler"] != compiler:
        print(f"not compared: the baseline is of {baseline['compiler']}, this is {compiler}")
        return 0
    risen = [name for name, n in counts.items() if n > MOST * before.get(name, n)]
    gone = sorted(before.keys() - counts.keys())
    if risen or gone:
        print(f"risen by more than {MOST - 1:.0%}: {risen}; gone: {gone}. If it is meant, --update and say why.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
