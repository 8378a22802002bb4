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
from fastmtr.features.past import HistoryRules
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
    history : HistoryRules
        How histories and past rates are made from the log.
    model : ModelConfig
    training : TrainerConfig
    retrieval : RetrievalConfig
    fusion : Fusion
    """

    data: DataRules
    schema: Schema
    split: SplitRules
    tasks: TaskRules = TaskRules()
    cleaning: CleaningRules = CleaningRules()
    history: HistoryRules = HistoryRules()
    model: ModelConfig = ModelConfig(type="mmoe")
    training: TrainerConfig = TrainerConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    fusion: Fusion = Fusion()

    def __post_init__(self) -> None:
        self.fusion.to_plan(self.schema)
        head = self.model.two_tower
        binary = [t.name for t in self.schema.tasks if t.kind == "binary"]
        if head is not None and head.task is not None and head.task not in binary:
            raise ConfigError(f"model.two_tower.task: must be a binary task, one of {binary}; found {head.task!r}")


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
        raise ConfigError(
            f"{file} does not exist{f'; did you mean {file.parent / near[0]}?' if near else ''}"
        ) from None
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
    wrong = _misspelt(tree, inspect.type_info(Config), "")
    if wrong:
        raise ConfigError(f"{name}: " + "; ".join(wrong))
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error, tree)}") from error
    if folder is not None:
        for key in ("log", "users", "items"):
            path = getattr(config.data, key)
            if path is not None and not (Path(folder) / path).is_file():
                raise ConfigError(
                    f"{name}: data.{key}: there is no file {Path(folder) / path} "
                    "(paths are relative to the configuration file)"
                )
    return config


def _misspelt(value: Any, kind: inspect.Type, path: str) -> list[str]:
    """Keys and choices below `path` that do not exist, with what was meant; types are checked afterwards."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        # Everywhere a value or nothing.
        kind = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        found = []
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            if key in fields:
                found += _misspelt(inner, fields[key], where)
                continue
            found.append(f"unknown key {where!r}; {_meant(key, list(fields))}")
        return found
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return [each for key, inner in value.items() for each in _misspelt(inner, kind.value_type, f"{path}.{key}")]
    if isinstance(kind, inspect.VarTupleType | inspect.ListType) and isinstance(value, list):
        return [each for i, v in enumerate(value) for each in _misspelt(v, kind.item_type, f"{path}[{i}]")]
    if isinstance(kind, inspect.LiteralType) and isinstance(value, str) and value not in kind.values:
        return [f"{path}: {value!r} is no choice; {_meant(value, list(kind.values))}"]
    return []


def _meant(word: str, known: list[Any]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(str, sorted(known)))}"


def _explain(error: msgspec.ValidationError, tree: dict[str, Any]) -> str:
    """The same with the key's name in front and the value that was found."""
    found = re.fullmatch(r"(?s)(.*?)(?: - at `\$(.*)`)?", str(error))
    assert found is not None
    problem, path = found[1], (found[2] or "").lstrip(".")
    if isinstance(error.__cause__, FastMTRError):
        return problem if not path or problem.startswith(f"{path}: ") else f"{path}: {problem}"
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        return f"key '{path}{'.' if path else ''}{missing[1]}' is missing"
    problem = problem[0].lower() + problem[1:].replace("`", "").replace("object", "table")
    path = path.split("[...]")[0]  # msgspec does not tell which value of a table it was
    if not path:
        return problem
    value = _at(tree, path)
    shown = "" if value is None else f"; found {value!r}"
    return f"{path}: {problem}{shown}"


def _at(tree: Any, path: str) -> Any:
    """The value at a path such as ``schema.features[0].kind``; None where it cannot be followed."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            tree = tree[name] if name else tree[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return tree
