"""What ``fastmtr convert`` does with its arguments."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import ConfigError

__all__ = ["columns", "load_model", "load_sample", "pair", "split_keys"]

Sample = dict[str, NDArray[Any]] | NDArray[Any]


def load_model(text: str) -> Any:
    """A model by what the command line says.

    Parameters
    ----------
    text : str
        The path of an ONNX file, or ``module:name`` of a Python object: a model, or a function that returns one. The
        working directory is searched for the module, too.

    Raises
    ------
    ConfigError
        There is no such file, module or object.
    """
    if text.endswith(".onnx"):
        if not Path(text).is_file():
            raise ConfigError(f"{text} is not there; expected an ONNX file, or module:name of a Python object")
        return Path(text)
    module, _, name = text.partition(":")
    if not name:
        raise ConfigError(f"expected an ONNX file, or module:name of a Python object, found {text!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"no module is named {error.name!r} in the working directory or among those installed"
        ) from None
    finally:
        sys.path.pop(0)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{module} has no {name!r}")
        found = getattr(found, part)
    is_model = hasattr(found, "forward") or hasattr(found, "predict")
    return found() if callable(found) and (isinstance(found, type) or not is_model) else found


def load_sample(path: Path) -> Sample:
    """Arrays by name from an .npz file, or one array from an .npy file; nothing is unpickled.

    Raises
    ------
    ConfigError
        It is another kind of file, or cannot be read.
    """
    if path.suffix not in (".npz", ".npy"):
        raise ConfigError(f"{path}: a sample is an .npz file (arrays by name) or an .npy file (one array)")
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a sample: {error}") from error


def split_keys(
    sample: Sample | None, names: Mapping[str, str | None], inputs: Mapping[str, str] | None
) -> tuple[Sample | None, dict[str, NDArray[Any]]]:
    """The sample, and the arrays in it that are keys; these are inputs of the model only if `inputs` says so.

    Parameters
    ----------
    sample : dict of arrays, or array, optional
    names : mapping of str to str
        What each array of keys is for, and its name in the sample.
    inputs : mapping of str to str, optional
        As of :func:`fastmtr.convert`.

    Raises
    ------
    ConfigError
        The sample has no array of that name.
    """
    keys: dict[str, NDArray[Any]] = {}
    for what, name in names.items():
        if name is None:
            continue
        if not isinstance(sample, dict) or name not in sample:
            have = list(sample) if isinstance(sample, dict) else "no arrays with names"
            raise ConfigError(f"the sample has no array {name!r}; it has {have}")
        keys[what] = sample[name]
    if isinstance(sample, dict):
        alone = {name for name in names.values() if name is not None and name not in (inputs or {})}
        sample = {name: array for name, array in sample.items() if name not in alone}
    return sample, keys


def pair(text: str) -> tuple[str, str]:
    """``name=value``; ConfigError for anything else."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise ConfigError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def columns(text: str) -> tuple[str, int | tuple[int, int]]:
    """``name=3`` or ``name=3:23``: columns of a matrix; ConfigError for anything else."""
    name, span = pair(text)
    start, _, stop = span.partition(":")
    if not start.isdecimal() or (":" in span and not stop.isdecimal()):
        raise ConfigError(f"expected NAME=FROM or NAME=FROM:TO with whole numbers, found {text!r}")
    return name, (int(start), int(stop)) if stop else int(start)
