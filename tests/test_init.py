"""What ``import fastmtr`` gives, and what it must not bring along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastmtr

HEAVY = ("torch", "pyarrow", "sklearn", "faiss", "matplotlib", "rich", "pandas", "polars", "numba")


@pytest.mark.parametrize(
    "statement", ["import fastmtr", "from fastmtr import Ranker, Schema, open_bundle", "import fastmtr.cli"]
)
def test_importing_needs_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", fastmtr.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fastmtr, name) is not None
    assert name in dir(fastmtr)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'fastmtr' has no attribute 'Rankr'"):
        fastmtr.Rankr  # noqa: B018


def test_source_tree_without_the_native_module_says_so() -> None:
    tree = Path(__file__).parents[1]
    if list((tree / "fastmtr").glob("_native*.so")):
        pytest.skip("this tree has a native module of its own")
    # Without the import hook of an editable installation.
    code = f"import sys; del sys.meta_path[:-3]; sys.path.insert(0, {str(tree)!r}); from fastmtr import _native"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "that is a source tree" in done.stderr
