"""What ``fastmtr convert`` does with its arguments."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.convert.verify import ConversionReport
from fastmtr.errors import ConfigError
from fastmtr.schema import Schema

__all__ = ["columns", "load_model", "load_sample", "load_schema", "pair", "report_lines", "split_keys", "split_labels"]

_TABLES = (".parquet", ".csv", ".tsv")
_SAMPLES = (".npz", ".npy", *_TABLES)

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
    """Arrays by name from an .npz file or the columns of a table, or one array from an .npy file; nothing is unpickled.

    Raises
    ------
    ConfigError
        It is another kind of file, or cannot be read.
    """
    if path.suffix not in _SAMPLES:
        raise ConfigError(
            f"{path}: a sample is an .npz file (arrays by name), a table ({', '.join(_TABLES)}), or an .npy file "
            "(one array)"
        )
    try:
        if path.suffix in _TABLES:
            from fastmtr.tables import read_table

            table = read_table(path)
            return {name: _column(name, table.column(name).to_pylist()) for name in table.column_names}
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a sample: {error}") from error


def _column(name: str, values: list[Any]) -> NDArray[Any]:
    """A column of numbers, of text, or of lists of one length."""
    if any(each is None for each in values):
        raise ConfigError(f"column {name!r} of the sample has nulls; fill them as the model's training did")
    lengths = {len(each) for each in values if isinstance(each, list)}
    if len(lengths) > 1:
        raise ConfigError(f"the lists in column {name!r} of the sample have the lengths {sorted(lengths)}; pad them")
    return np.asarray(values)


def load_schema(path: Path) -> Schema:
    """A schema from JSON, or from TOML (its table ``[schema]``, or all of it).

    Raises
    ------
    ConfigError
        It cannot be read, or is no schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".toml":
            return Schema.from_json(text)
        tree = tomllib.loads(text)
        return msgspec.convert(tree.get("schema", tree), Schema)
    except (OSError, ValueError) as error:  # SchemaError and the errors of TOML and msgspec are ValueErrors
        raise ConfigError(f"{path} cannot be read as a schema: {error}") from error


def split_labels(
    sample: Sample | None, tasks: Sequence[str], inputs: Mapping[str, str] | None
) -> tuple[Sample | None, dict[str, NDArray[Any]] | None]:
    """The sample, and the labels in it: the arrays with the name of a task that are no inputs."""
    if not isinstance(sample, dict):
        return sample, None
    labels = {task: sample[task] for task in tasks if task in sample and task not in (inputs or {})}
    return {name: array for name, array in sample.items() if name not in labels}, labels or None


def report_lines(metadata: Mapping[str, Any]) -> list[str]:
    """What a bundle's metadata tells of its conversion; nothing of a bundle that was trained."""
    found = metadata.get("conversion")
    return [] if found is None else msgspec.convert(found, ConversionReport).lines()


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
