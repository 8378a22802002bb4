"""Changes to a plan that make it wrong, for tests of what the engine refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import seal

from fastmtr import BundleError
from fastmtr._native import Model

__all__ = ["Plan", "put", "refused", "refused_plan", "remove", "step"]

Plan = dict[str, Any]


def refused(path: Path, message: str = "") -> None:
    with pytest.raises(BundleError, match=message):
        Model(path)


def refused_plan(bundle: Path, change: Callable[[Plan], None], message: str) -> None:
    """The bundle's plan is refused once it is changed so."""
    plan = json.loads((bundle / "plan.json").read_text())
    change(plan)
    (bundle / "plan.json").write_text(json.dumps(plan))
    refused(seal(bundle), message)


def step(plan: Plan, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in plan["steps"] if s["name"] == name)
    return found


def _walk(plan: Plan, way: list[str]) -> Any:
    at: Any = plan
    for part in way:
        at = step(plan, part) if at is plan["steps"] else at[int(part) if isinstance(at, list) else part]
    return at


def put(path: str, value: Any) -> Callable[[Plan], None]:
    """Replace one value: ``steps/first.item/weights/w``; a step is found by its name."""

    def change(plan: Plan) -> None:
        *way, last = path.split("/")
        at = _walk(plan, way)
        at[int(last) if isinstance(at, list) else last] = value

    return change


def remove(path: str, key: str) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        del _walk(plan, path.split("/") if path else [])[key]

    return change
