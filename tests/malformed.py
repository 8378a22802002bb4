"""Changes to a plan that make it wrong, for tests of what the engine refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmtr import BundleError
from fastmtr._native import Model

__all__ = ["Plan", "put", "refused", "remove", "step"]

Plan = dict[str, Any]


def refused(path: Path, message: str = "") -> None:
    with pytest.raises(BundleError, match=message):
        Model(path)


def step(plan: Plan, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in plan["steps"] if s["name"] == name)
    return found


def put(path: str, value: Any) -> Callable[[Plan], None]:
    """Replace one value: ``steps/first.item/weights/w``; a step is found by its name."""

    def change(plan: Plan) -> None:
        at: Any = plan
        *way, last = path.split("/")
        for part in way:
            at = step(plan, part) if at is plan["steps"] else at[int(part) if isinstance(at, list) else part]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def remove(path: str, key: str) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        at: Any = plan
        for part in path.split("/") if path else []:
            at = step(plan, part) if at is plan["steps"] else at[int(part) if isinstance(at, list) else part]
        del at[key]

    return change
