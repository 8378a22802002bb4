"""Data sets that come with fastmtr, each under its own licence (see the folder's LICENSE and README)."""

from __future__ import annotations

from pathlib import Path

__all__ = ["config_path"]

_FOLDER = Path(__file__).resolve().parent


def config_path(name: str = "kuairand") -> Path:
    """The configuration file of a packaged data set; its data paths are relative to it.

    Raises
    ------
    ConfigError
        There is no such data set.
    """
    from fastmtr.errors import ConfigError

    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"no data set is named {name!r}; there are {sorted(p.stem for p in _FOLDER.glob('*.toml'))}")
    return path
