"""What CuPy compiles: NVRTC and nvcc compile it, where they are, without a GPU; what is said where there is none."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feature_columns import schema_of
from test_features_operators import ROWS, as_table, fitted

from devices import NAMESPACES
from fastmtr.errors import BackendError
from fastmtr.features import FeaturePipeline, cupy_kernels

# What CuPy adds to the options of a module.
BY_CUPY = ("-ftz=true", "--device-as-default-execution-space")
ARCHITECTURES = ("compute_80", "compute_90")


def nvrtc() -> Any:
    """NVIDIA's compiler as a library: of the system, of a CUDA toolkit, or of a wheel."""
    names = [ctypes.util.find_library("nvrtc"), *map(str, Path("/usr/local/cuda/lib64").glob("libnvrtc.so*"))]
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or ()) if wheels else ():
        names += map(str, Path(folder).glob("*/lib/libnvrtc.so*"))
    for name in filter(None, names):
        return ctypes.CDLL(name)
    pytest.skip("libnvrtc is not there; pip install nvidia-cuda-nvrtc brings it")


def compiled_by_nvrtc(library: Any, source: str, options: list[str]) -> str:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def text(what: str) -> str:
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, content)
        return content.value.decode()

    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"features.cu", 0, None, None) == 0
    try:
        words = [option.encode() for option in options]
        status = library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
        assert (status, text("ProgramLog").strip("\0\n ")) == (0, "")
        return text("PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def check_rounding(ptx: str) -> None:
    """Each step is rounded: no product and sum is fused, and no number that is not normal becomes 0."""
    assert re.search(rf"\.entry {cupy_kernels.KERNEL}\(", ptx)
    for instruction in ("mul.rn.f64", "add.rn.f64", "div.rn.f64", "sqrt.rn.f64", "cvt.rn.f32.f64"):
        assert instruction in ptx
    assert not re.findall(r"\b(?:fma|mad)\.\w*\.?f(?:32|64)|\.ftz|\.approx", ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_kernels(architecture: str) -> None:
    options = [*cupy_kernels.OPTIONS, *BY_CUPY, f"-arch={architecture}"]
    check_rounding(compiled_by_nvrtc(nvrtc(), cupy_kernels.source(), options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_kernels(architecture: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if compiler is None:
        pytest.skip("nvcc is not on the PATH")
    source, ptx = tmp_path / "features.cu", tmp_path / "features.ptx"
    source.write_text(cupy_kernels.source())
    options = [*cupy_kernels.OPTIONS, "-ftz=true", f"-arch={architecture}", "--ptx", "-Werror", "all-warnings"]
    subprocess.run([compiler, *options, "-o", ptx, source], check=True, capture_output=True)
    check_rounding(ptx.read_text())


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    pipeline = FeaturePipeline(schema_of(kind="categorical")).fit(interactions=pa.table({"x": ["a"]}))
    with pytest.raises(BackendError, match=r"CuPy, which is not installed; pip install 'fastmtr\[cuda\]'"):
        pipeline.transform("candidate", pa.table({"x": ["a"]}), engine="cupy")


def test_without_a_gpu() -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="CuPy finds none; choose engine='auto'"):
        fitted().transform("candidate", pa.table({"shelf": ["top"]}), engine="cupy")


@pytest.mark.parametrize("xp", NAMESPACES[1:])
@pytest.mark.parametrize("domain", sorted(ROWS))
def test_on_a_gpu(xp: Any, domain: Any) -> None:
    table = as_table([dict.fromkeys(ROWS[domain])] * 70_000)
    found, expected = (fitted().transform(domain, table, engine=engine) for engine in ("cupy", "arrays"))
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, xp.ndarray)
        np.testing.assert_array_equal(mine.get().view(np.uint32), theirs.view(np.uint32))
