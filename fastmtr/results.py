"""What scoring and ranking give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastmtr.text_table import text_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ranking", "Result", "Scores", "User"]

User: TypeAlias = int | str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """Candidates of one request with their scores.

    Attributes
    ----------
    user : int, str or mapping
        As it was given.
    known_user : bool
        False for a key that the bundle does not have: then the request's features are those of an unseen user, without
        a history. True for a user given by features.
    items : array of int64 (or of str, if the items' keys are text), shape (n,)
        The items' keys.
    fused : array of float32, shape (n,)
    values : array of float32, shape (n, tasks)
        The tasks' scores side by side.
    tasks : tuple of str
        The columns of ``values``.
    """

    user: User
    known_user: bool
    items: NDArray[Any]
    fused: NDArray[np.float32]
    values: NDArray[np.float32]
    tasks: tuple[str, ...]
    _label: Callable[[Any], str] = field(compare=False)

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Each task's scores, shape (n,): a probability for a binary task."""
        return {task: self.values[:, i] for i, task in enumerate(self.tasks)}

    @property
    def labels(self) -> list[str]:
        """How each item is shown."""
        return [self._label(item) for item in self.items.tolist()]

    def __len__(self) -> int:
        return len(self.items)

    def to_pandas(self) -> pd.DataFrame:
        """One row a candidate: ``item``, ``label``, ``fused`` and one column a task."""
        import pandas as pd

        return pd.DataFrame({"item": self.items, "label": self.labels, "fused": self.fused} | self.scores)

    def __repr__(self) -> str:
        user = "user given by features" if isinstance(self.user, Mapping) else f"user {self.user!r}"
        head = f"{type(self).__name__}: {len(self)} items for {user}{'' if self.known_user else ' (unknown)'}"
        return "\n".join([head, *text_table(self._rows(10), left={1})])

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        header, *rows = self._rows(20)
        table = Table(title=f"user {self.user}{'' if self.known_user else ' (unknown)'}", title_justify="left")
        for i, name in enumerate(header):
            table.add_column(Text(name), justify="left" if i == 1 else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def _rows(self, most: int) -> list[list[str]]:
        rows = [["", "item", "fused", *self.tasks]]
        for i, item in enumerate(self.items[:most].tolist()):
            numbers = (self.fused[i], *self.values[i])
            rows.append([str(i + 1), self._label(item), *(f"{number:.4g}" for number in numbers)])
        if len(self) > most:
            rows.append(["", f"... and {len(self) - most} more", "", *("" for _ in self.tasks)])
        return rows


class Scores(Result):
    """What :meth:`Ranker.score` gives: every candidate, in the order in which they were given."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False)
class Ranking(Result):
    """What :meth:`Ranker.rank` and :meth:`Ranker.recommend` give: the best candidates, best first.

    Attributes
    ----------
    rescored : int or None
        Of a certified ranking: how many candidates were scored again in fp32.
    """

    rescored: int | None = field(default=None, compare=False)
