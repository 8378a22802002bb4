"""From trained models to graphs: ``fastmtr.convert(model, ...)``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fastmtr.convert.registry import Conversion, Options, Source, convert, register

__all__ = ["Conversion", "Options", "Source", "convert", "register"]


class _CallableModule(ModuleType):
    """This package is also the function of its name, so that ``fastmtr.convert(model)`` converts a model."""

    def __call__(self, model: Any, **options: Any) -> Conversion | Path:
        made: Conversion | Path = convert(model, **options)
        return made


sys.modules[__name__].__class__ = _CallableModule
