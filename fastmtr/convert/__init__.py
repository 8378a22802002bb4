"""From trained models to graphs."""

from fastmtr.convert import fastmtr_models as _fastmtr_models  # noqa: F401 - registers its converters
from fastmtr.convert.registry import convert, register

__all__ = ["convert", "register"]
