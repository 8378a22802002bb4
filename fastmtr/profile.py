"""Where the time of a request goes, step by step, as the engine measures it on demand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fastmtr.graph import Domain
from fastmtr.text_table import text_table

if TYPE_CHECKING:
    import pandas as pd

    from fastmtr.compiler import Explanation

__all__ = ["Profile", "StepTime"]

_HEADER = ("step", "operator", "domain", "rows", "us", "predicted us", "share", "GFLOP/s")
_LEFT = range(3)


class StepTime(msgspec.Struct, frozen=True):
    """One step of the plan, in one run of the call.

    Attributes
    ----------
    name, op : str
    domain : {"request", "candidate"}
    calls : float
        Times that it ran, on a tile of rows each.
    rows : float
        Requests, or candidates.
    flops : float
    nanoseconds : float
    predicted : float
        Nanoseconds by the compiler's cost model: for fp32 on one core of the machine that it was made on. NaN where
        nobody asked it.
    """

    name: str
    op: str
    domain: Domain
    calls: float
    rows: float
    flops: float
    nanoseconds: float
    predicted: float = math.nan


class _Measured(msgspec.Struct, frozen=True):
    repeats: int
    requests: int
    candidates: int
    k: int
    threads: int
    isa: str
    precision: str
    nanoseconds: float
    phases: dict[str, float]
    steps: list[StepTime]


@dataclass(frozen=True, repr=False)
class Profile:
    """Times of one call: means over its repeats, summed over the call's threads. ``print`` it.

    The total contains the reading of the clock, twice for each step and tile.

    Attributes
    ----------
    requests, candidates, k : int
        Of the call; k = 0: ``score``, else ``rank``.
    repeats, threads : int
    isa, precision : str
    nanoseconds : float
        Of the whole call in the engine.
    phases : dict of str to float
        Nanoseconds: ``checks`` of the inputs, ``lookup`` of the items' keys, the steps of ``request`` and of
        ``candidates``, ``fusion`` of the tasks' scores, and ``top_k``.
    steps : tuple of StepTime
    """

    requests: int
    candidates: int
    k: int
    repeats: int
    threads: int
    isa: str
    precision: str
    nanoseconds: float
    phases: dict[str, float]
    steps: tuple[StepTime, ...]

    @classmethod
    def from_json(cls, text: str, *, explanation: Explanation | None = None) -> Profile:
        """Read what ``fmtr_profile`` of the C ABI says; ``explanation`` adds what the cost model predicts."""
        found = msgspec.json.decode(text, type=_Measured)
        runs = found.repeats
        predicted = _predictions(explanation, found)
        steps = [
            StepTime(
                s.name,
                s.op,
                s.domain,
                s.calls / runs,
                s.rows / runs,
                s.flops / runs,
                s.nanoseconds / runs,
                next(predicted[s.name, s.op, s.domain], math.nan),
            )
            for s in found.steps
        ]
        return cls(
            requests=found.requests,
            candidates=found.candidates,
            k=found.k,
            repeats=runs,
            threads=found.threads,
            isa=found.isa,
            precision=found.precision,
            nanoseconds=found.nanoseconds / runs,
            phases={name: time / runs for name, time in found.phases.items()},
            steps=tuple(steps),
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row a step: ``step`` (its name) and what else :class:`StepTime` has."""
        import pandas as pd

        return pd.DataFrame([msgspec.structs.asdict(step) for step in self.steps]).rename(columns={"name": "step"})

    def __repr__(self) -> str:
        return "\n".join([self._title(), *text_table([_HEADER, *self._rows()], left=_LEFT)])

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=self._title(), title_justify="left")
        for i, name in enumerate(_HEADER):
            table.add_column(name, justify="left" if i in _LEFT else "right", overflow="fold")
        for row in self._rows():
            table.add_row(*map(Text, row))
        return table

    def _title(self) -> str:
        what = f"rank, best {self.k}" if self.k else "score"
        return (
            f"{what}: {self.requests} request(s), {self.candidates} candidates, {self.nanoseconds / 1e3:.1f} us "
            f"({self.isa}, {self.precision}, {self.threads} thread(s), mean of {self.repeats})"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        """The phases, and below two of them their steps."""
        rows: list[tuple[str, ...]] = []
        for phase, time in self.phases.items():
            domain = {"request": "request", "candidates": "candidate"}.get(phase)
            steps = [s for s in self.steps if s.domain == domain]
            predicted = sum(s.predicted for s in steps) if steps else math.nan
            rows.append((phase, "", "", "", *self._times(time, predicted, sum(s.flops for s in steps))))
            for s in steps:
                times = self._times(s.nanoseconds, s.predicted, s.flops)
                rows.append((f"  {s.name}", s.op, s.domain, f"{s.rows:.0f}", *times))
        return rows

    def _times(self, nanoseconds: float, predicted: float, flops: float) -> tuple[str, str, str, str]:
        share = nanoseconds / max(sum(self.phases.values()), 1)
        rate = f"{flops / nanoseconds:.1f}" if flops and nanoseconds else ""
        model = "" if math.isnan(predicted) else f"{predicted / 1e3:.1f}"
        return f"{nanoseconds / 1e3:.1f}", model, f"{share:.1%}", rate


def _predictions(
    explanation: Explanation | None, found: _Measured
) -> defaultdict[tuple[str, str, str], Iterator[float]]:
    """Nanoseconds of the call's steps; steps of one name in their order."""
    lists: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    if explanation is not None and found.requests:
        each = explanation.predict(round(found.candidates / found.requests))
        for step, seconds in zip(explanation.steps, each, strict=True):
            lists[step.name, step.op, step.domain].append(1e9 * seconds * found.requests)
    ready: defaultdict[tuple[str, str, str], Iterator[float]] = defaultdict(lambda: iter(()))
    ready.update((key, iter(values)) for key, values in lists.items())
    return ready
