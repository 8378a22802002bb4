"""Data sets by configuration file, and the one that comes with fastmtr (its data under their own licence).

``fastmtr/datasets/kuairand_pure`` holds real impressions of a short-video app; see the LICENSE and README there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastmtr.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.config import Config
    from fastmtr.training.samples import Prepared

__all__ = ["DataSet", "config_path", "kuairand", "load"]

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DataSet:
    """A configuration and the tables it names.

    Attributes
    ----------
    config : Config
    log : pyarrow.Table
    users, items : pyarrow.Table, optional
    """

    config: Config
    log: pa.Table
    users: pa.Table | None
    items: pa.Table | None

    def prepare(self, *, progress: bool = False) -> Prepared:
        """Clean, label, split and encode as the configuration says; see :func:`fastmtr.training.samples.prepare`."""
        from fastmtr.training.samples import prepare

        config = self.config
        return prepare(
            config.schema,
            self.log,
            users=self.users,
            items=self.items,
            tasks=config.tasks,
            split=config.split,
            cleaning=config.cleaning,
            history=config.history,
            item_label=config.data.item_label,
            progress=progress,
        )


def load(path: str | os.PathLike[str]) -> DataSet:
    """Read a configuration file and its tables.

    Raises
    ------
    ConfigError
        The configuration is wrong, or a file that it names is not there.
    SchemaError
        A table cannot be read.
    """
    from fastmtr.config import load_config
    from fastmtr.tables import load_tables

    config = load_config(path)
    return DataSet(config, *load_tables(config.data, folder=Path(path).parent))


def kuairand() -> DataSet:
    """14 days of impressions of the Kuaishou app: 228,329 rows, click, long view, like, follow and comment.

    A slice of KuaiRand-Pure (C. Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly
    Exposed Videos, CIKM 2022, doi:10.1145/3511808.3557624), CC BY-SA 4.0.
    """
    return load(config_path("kuairand"))


def config_path(name: str = "kuairand") -> Path:
    """The configuration file of a packaged data set.

    Raises
    ------
    ConfigError
        There is no such data set.
    """
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"no data set is named {name!r}; there are {sorted(p.stem for p in _FOLDER.glob('*.toml'))}")
    return path
