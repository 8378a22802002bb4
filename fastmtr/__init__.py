"""fastmtr: score multi-task ranking models inside latency-critical services.

What a user calls is here; each name is imported from its module when it is first used, so ``import fastmtr`` is quick
and needs NumPy, msgspec and the native module only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmtr.errors import (
    BackendError,
    BundleError,
    ConfigError,
    ConversionError,
    FastMTRError,
    SchemaError,
    StaleError,
)

if TYPE_CHECKING:
    from fastmtr._native import __version__
    from fastmtr.bundle import Bundle, open_bundle, write_bundle
    from fastmtr.config import Config, load_config
    from fastmtr.convert import Conversion, convert
    from fastmtr.features import FeaturePipeline
    from fastmtr.fusion import Fusion
    from fastmtr.graph import Graph
    from fastmtr.ranker import Ranker
    from fastmtr.results import Ranking, Scores
    from fastmtr.retrieval import Retriever
    from fastmtr.schema import Feature, Schema, Task

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Config",
    "ConfigError",
    "Conversion",
    "ConversionError",
    "FastMTRError",
    "Feature",
    "FeaturePipeline",
    "Fusion",
    "Graph",
    "Ranker",
    "Ranking",
    "Retriever",
    "Schema",
    "SchemaError",
    "Scores",
    "StaleError",
    "Task",
    "__version__",
    "convert",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "info",
    "load_config",
    "open_bundle",
    "write_bundle",
]

_HOME = {
    "Bundle": "bundle",
    "Config": "config",
    "Conversion": "convert",
    "Feature": "schema",
    "FeaturePipeline": "features",
    "Fusion": "fusion",
    "Graph": "graph",
    "Ranker": "ranker",
    "Ranking": "results",
    "Retriever": "retrieval",
    "Schema": "schema",
    "Scores": "results",
    "Task": "schema",
    "__version__": "_native",
    "load_config": "config",
    "open_bundle": "bundle",
    "write_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name == "_native" and find_spec("fastmtr._native") is None:
        raise ImportError(
            f"fastmtr's native module is not in {__path__[0]}: that is a source tree, found before the installed "
            "package. Start Python in another folder (or with -P), or install with pip install -e ."
        )
    if name == "convert":
        return import_module("fastmtr.convert")  # a package that can be called
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtr' has no attribute {name!r}")
    value = getattr(import_module(f"fastmtr.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def info() -> dict[str, Any]:
    """Version, ABI and the instruction sets of the native engine, with the reason where one is not used.

    Returns
    -------
    dict
        What ``fmtr_info`` of the C ABI says.
    """
    import msgspec

    from fastmtr import _native

    found: dict[str, Any] = msgspec.json.decode(_native.info())
    return found


def get_include() -> str:
    """The folder that holds ``fastmtr.h`` and ``fastmtr.hpp``, for programs that embed the engine."""
    return str(_installed("include", "fastmtr.h").parent)


def get_library() -> str:
    """The path of the engine's shared library, which ``get_include()``'s headers describe."""
    return str(_installed("lib", "libfastmtr.so"))


def get_cmake_dir() -> str:
    """The folder with which CMake finds the engine: ``find_package(fastmtr)`` with ``-Dfastmtr_DIR=`` this one.

    The target to link is ``fastmtr::fastmtr``.
    """
    return str(_installed("lib/cmake/fastmtr", "fastmtrConfig.cmake").parent)


def _installed(folder: str, name: str) -> Path:
    from fastmtr import _native

    # Beside the native module: in an editable installation the Python files are somewhere else.
    path = Path(str(_native.__file__)).resolve().parent / folder / name
    if not path.is_file():
        raise FastMTRError(f"{path} is not there: the installation of fastmtr is incomplete; install the wheel again")
    return path
