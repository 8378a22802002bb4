"""One TOML file that says everything about a training: data, features, tasks, model, retrieval, fusion."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from fastmtr.errors import ConfigError, FastMTRError
from fastmtr.fusion import Fusion
from fastmtr.models.config import ModelConfig
from fastmtr.retrieval import RetrievalConfig
from fastmtr.schema import Schema
from fastmtr.tables import DataRules
from fastmtr.training.cleaning import CleaningRules
from fastmtr.training.splits import SplitRules
from fastmtr.training.tasks import TaskRules
from fastmtr.training.trainer import TrainerConfig

__all__ = ["Config", "load_config", "parse_config"]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A configuration file, section by section; each section's keys are described at its own class.

    Parameters
    ----------
    data : DataRules
        Paths are relative to the configuration file.
    schema : Schema
    tasks : TaskRules
        How labels are made from the log.
    cleaning : CleaningRules
    split : SplitRules
    model : ModelConfig
    training : TrainerConfig
    retrieval : RetrievalConfig
    fusion : Fusion
    """

    data: DataRules
    schema: Schema
    tasks: TaskRules
    split: SplitRules
    cleaning: CleaningRules = CleaningRules()
    model: ModelConfig = ModelConfig(type="mmoe")
    training: TrainerConfig = TrainerConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    fusion: Fusion = Fusion()

    def __post_init__(self) -> None:
        self.fusion.to_plan(self.schema)


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file.

    Raises
    ------
    ConfigError
        The file is missing or no TOML, a key is unknown (the likely one is suggested), missing or of the wrong type, or
        sections contradict each other. The message names file and key.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.toml")], n=1)
        raise ConfigError(f"{file} does not exist{f'; did you mean {file.parent / near[0]}?' if near else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return parse_config(text, name=str(file), folder=file.parent)


def parse_config(text: str, *, name: str = "configuration", folder: str | os.PathLike[str] | None = None) -> Config:
    """Read a configuration from text; as :func:`load_config`.

    Parameters
    ----------
    text : str
        TOML.
    name : str
        How messages call it.
    folder : path, optional
        Where relative data paths start; the files must be there. None: they are not looked for.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    unknown = _unknown_keys(tree, inspect.type_info(Config), "")
    if unknown:
        raise ConfigError(f"{name}: " + "; ".join(unknown))
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error, tree)}") from error
    if folder is not None:
        for key in ("log", "users", "items"):
            path = getattr(config.data, key)
            if path is not None and not (Path(folder) / path).is_file():
                raise ConfigError(
                    f"{name}: data.{key}: there is no file {Path(folder) / path} (paths are relative to the configuration file)"
                )
    return config


def _unknown_keys(value: Any, kind: inspect.Type, path: str) -> list[str]:
    """What is wrong with the keys below `path`; types are checked afterwards."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        # Of a union of structures there is one that may be a table.
        fitting = [t for t in kind.types if isinstance(t, _TABLES if isinstance(value, dict) else _ARRAYS)]
        return _unknown_keys(value, fitting[0], path) if len(fitting) == 1 else []
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        found = []
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            if key in fields:
                found += _unknown_keys(inner, fields[key], where)
                continue
            near = difflib.get_close_matches(key, fields, n=1)
            found.append(f"unknown key {where!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {sorted(fields)}"))
        return found
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return [each for key, inner in value.items() for each in _unknown_keys(inner, kind.value_type, f"{path}.{key}")]
    if isinstance(kind, inspect.VarTupleType | inspect.ListType) and isinstance(value, list):
        return [each for i, v in enumerate(value) for each in _unknown_keys(v, kind.item_type, f"{path}[{i}]")]
    return []


_TABLES = (inspect.StructType, inspect.DictType)
_ARRAYS = (inspect.VarTupleType, inspect.ListType)


def _explain(error: msgspec.ValidationError, tree: dict[str, Any]) -> str:
    """The same with the key's name in front and the value that was found."""
    if isinstance(error.__cause__, FastMTRError) and " - at `$" not in str(error):
        return str(error.__cause__)
    found = re.fullmatch(r"(?s)(.*?)(?: - at `\$(.*)`)?", str(error))
    assert found is not None
    problem, path = found[1], (found[2] or "").lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        return f"key {f'{path}.{missing[1]}' if path else missing[1]!r} is missing"
    problem = problem[0].lower() + problem[1:]
    if not path:
        return problem
    value = _at(tree, path)
    shown = f"; found {value!r}" if isinstance(value, str | int | float | bool) else ""
    return f"{path}: {problem.replace('`', '')}{shown}"


def _at(tree: Any, path: str) -> Any:
    """The value at a path such as ``schema.features[0].kind``; None where it cannot be followed."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        try:
            tree = tree[name] if name else tree[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return tree
