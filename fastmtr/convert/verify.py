"""Every conversion is compared with its source: the model, the engine and the float64 reference on one sample."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr import reference
from fastmtr.convert.examples import Examples, draw
from fastmtr.convert.registry import Conversion
from fastmtr.convert.schemas import schema_of
from fastmtr.errors import ConversionError
from fastmtr.graph import Domain, Graph, Packed

__all__ = [
    "TOLERANCE",
    "ConversionReport",
    "LayerDifference",
    "OutputDifference",
    "VerificationError",
    "verify",
]

TOLERANCE = 1e-5
"""The greatest difference between the engine's and the source's score that is let pass; 2e-6 is typical."""

Scores = Mapping[str, NDArray[Any]]


class OutputDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output is from the source model's.

    Parameters
    ----------
    name : str
    engine : float
        The greatest difference between the engine and the source, of any example: absolute where all of the source's
        values are probabilities, else relative to `scale`.
    reference : float
        The same of the graph in float64.
    scale : float
        1 for probabilities, else the greatest magnitude of the source's values, at least 1.
    """

    name: str
    engine: float
    reference: float
    scale: float


class LayerDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How far a value of the graph (in float64) is from the source's, relative to the greatest magnitude there."""

    value: str
    difference: float


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion was compared with, and how near it came. Kept in the bundle's metadata as ``conversion``.

    Parameters
    ----------
    source : str
        Where the graph comes from.
    examples : dict of str to int
        Rows of the given sample, random rows and edge cases that were compared.
    tolerance : float
    outputs : tuple of OutputDifference
    layers : tuple of LayerDifference
        Inner values in order of evaluation, where the source tells them and an output differed too much.
    notes : tuple of str
        What the conversion chose by itself.
    warnings : tuple of str
        What is strange about the model; see :mod:`fastmtr.convert.guard`.
    """

    source: str
    examples: dict[str, int]
    tolerance: float
    outputs: tuple[OutputDifference, ...]
    layers: tuple[LayerDifference, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def worst(self) -> OutputDifference:
        """The output that differs most."""
        return max(self.outputs, key=lambda o: o.engine if o.engine == o.engine else np.inf)

    def lines(self) -> list[str]:
        """For a person: how near it came, what was chosen, what is strange."""
        worst, rows = self.worst, sum(self.examples.values())
        return [
            f"greatest difference from {self.source}: {worst.engine:.1e} ({worst.name}), over {rows} rows",
            *self.notes,
            *(f"warning: {each}" for each in self.warnings),
        ]

    @property
    def first_departure(self) -> LayerDifference | None:
        """The first inner value that differs by more than the tolerance."""
        return next((each for each in self.layers if not each.difference <= self.tolerance), None)


class VerificationError(ConversionError):
    """The converted model's scores differ from the source's.

    Attributes
    ----------
    report : ConversionReport
    """

    def __init__(self, message: str, report: ConversionReport) -> None:
        super().__init__(message)
        self.report = report


def verify(
    conversion: Conversion,
    *,
    bundle: Path | None = None,
    tolerance: float = TOLERANCE,
    random: int = 64,
    seed: int = 0,
) -> ConversionReport:
    """Compare a conversion with its source.

    The sample, random rows and edge cases (see :func:`fastmtr.convert.examples.draw`) are scored by the source, by the
    engine (each row as a request of its own with one candidate, and all items for the first request), and by the graph
    in float64.

    Parameters
    ----------
    conversion : Conversion
    bundle : Path, optional
        What the engine executes. None: the graph, compiled for this comparison.
    tolerance : float
    random : int
        Random rows.
    seed : int
        Of these.

    Returns
    -------
    ConversionReport

    Raises
    ------
    VerificationError
        An output differs by more than the tolerance, or the source's score of a row depends on the others of its batch.
        The message tells the first inner value that differs, where the source can tell.
    """
    graph = conversion.graph
    examples = draw(graph, conversion.sample, random=random, seed=seed)
    one = {
        domain: each.take([0] * each.n_rows if domain == "request" else range(each.n_rows))
        for domain, each in examples.packed.items()
    }
    given, given_one = conversion.source.score(examples.packed), conversion.source.score(one)
    if bundle is not None:
        found, found_one = _by_engine(graph, bundle, examples.packed)
    else:
        with tempfile.TemporaryDirectory(prefix="fastmtr-") as folder:
            found, found_one = _by_engine(graph, _written(graph, Path(folder)), examples.packed)
    exact = _whole(reference.evaluate(graph, examples.packed), examples)
    outputs = []
    for o in graph.outputs:
        wanted = np.concatenate([given[o.name], given_one[o.name]])
        had = np.concatenate([found[o.name], found_one[o.name]])
        scale = _scale(wanted)
        outputs.append(
            OutputDifference(
                name=o.name,
                engine=_difference(had, wanted) / scale,
                reference=_difference(exact[o.name], given[o.name]) / scale,
                scale=scale,
            )
        )
    report = ConversionReport(
        source=conversion.source.name,
        examples=dict(examples.counts),
        tolerance=tolerance,
        outputs=tuple(outputs),
        notes=(*conversion.notes, *_without_number(given)),
    )
    _check_rows_apart(conversion, examples, given, report)
    if not all(o.engine <= tolerance for o in outputs):
        _refuse(conversion, examples, report)
    return report


def _check_rows_apart(conversion: Conversion, examples: Examples, given: Scores, report: ConversionReport) -> None:
    """A row that stands alone scores what it scores among others."""
    single = conversion.source.score({domain: each.take([0]) for domain, each in examples.packed.items()})
    for name, values in single.items():
        away = _difference(values, given[name][:1]) / _scale(given[name])
        if not away <= report.tolerance:
            raise VerificationError(
                f"{conversion.source.name}: its {name!r} of a row alone differs by {away:.3g} from that of the same "
                "row among others: the model mixes the rows of a batch, so it cannot be scored row by row",
                report,
            )


def _refuse(conversion: Conversion, examples: Examples, report: ConversionReport) -> None:
    layers = tuple(_layers(conversion, examples.packed))
    report = msgspec.structs.replace(report, layers=layers)
    worst = report.worst
    lines = [
        f"{report.source}: the converted scores differ from the model's by up to {worst.engine:.3g} "
        f"(allowed: {report.tolerance:g}); the worst is {worst.name!r}"
    ]
    if worst.reference <= report.tolerance:
        lines.append("the graph agrees with the model in float64, so it is the engine or the compiler that differs")
    elif (first := report.first_departure) is not None:
        before = layers[: layers.index(first)]
        agreed = f"; the {len(before)} values before it agree" if before else ""
        lines.append(f"the first value that departs is {first.value!r}, by {first.difference:.3g}{agreed}")
    elif layers:
        lines.append(f"all {len(layers)} inner values that can be compared agree, so it is how the outputs are made")
    else:
        lines.append("this source tells no inner values to compare")
    lines.append(
        "This is a bug in fastmtr, unless a number of the model is near the limits of float32: please report it"
    )
    raise VerificationError(". ".join(lines), report)


def _layers(conversion: Conversion, packed: Mapping[Domain, Packed]) -> list[LayerDifference]:
    values = reference.evaluate_values(conversion.graph, packed)
    return [
        LayerDifference(value=name, difference=_difference(values[name], theirs) / _scale(theirs))
        for name, theirs in conversion.source.layers(packed).items()
        if name in values and values[name].shape[1:] == theirs.shape[1:]
    ]


def _scale(values: NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return max(1.0, float(np.abs(finite).max(initial=0.0)))


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The greatest, where there is a number to be found."""
    there = np.isfinite(wanted)
    away = np.abs(np.asarray(found, np.float64)[there] - wanted[there])
    return float(np.where(np.isnan(away), np.inf, away).max(initial=0.0))


def _without_number(given: Scores) -> Iterator[str]:
    """Examples that the model itself has no number for, such as a mean of nothing."""
    for name, values in given.items():
        away = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(away) == len(values):
            raise ConversionError(f"output {name!r} of the model itself is NaN or infinite for all examples")
        if len(away):
            yield f"output {name!r} of the model itself is NaN or infinite for {len(away)} of {len(values)} examples"


def _whole(scores: Scores, examples: Examples) -> dict[str, NDArray[Any]]:
    n = next(iter(examples.packed.values())).n_rows
    return {name: np.broadcast_to(values, (n, values.shape[1])) for name, values in scores.items()}


# ---- the engine ------------------------------------------------------------------------------------------------------


def _written(graph: Graph, folder: Path) -> Path:
    from fastmtr.bundle import write_bundle

    return write_bundle(folder / "bundle", schema=schema_of(graph), graph=graph)


def _by_engine(
    graph: Graph, bundle: Path, packed: Mapping[Domain, Packed]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Every output for each row by itself, and for all items and candidates with the first request."""
    from fastmtr import _native

    n = next(iter(packed.values())).n_rows
    request, item, candidate = (_matrices(packed.get(d)) for d in ("request", "item", "candidate"))
    first = _matrices(packed["request"].take([0]) if "request" in packed else None)
    keys = np.arange(n, dtype=np.int64)
    model = _native.Model(str(bundle), without_catalogue=True)
    model.set_catalogue(keys, *item)
    session = _native.Session(model)
    several: list[dict[str, NDArray[Any]]] = []
    for rows, offsets in ((request, np.arange(n + 1)), (first, np.array([0, n]))):
        scores, _ = session.score(
            *rows, offsets.astype(np.int64), keys, candidate_ids=candidate[0], candidate_dense=candidate[1]
        )
        found: dict[str, NDArray[Any]] = {t: scores[:, [j]] for j, t in enumerate(graph.tasks)}
        for o in graph.outputs:
            if o.role == "item":
                found[o.name] = model.item_output(o.name)
            elif o.role == "request":
                values = session.request_output(o.name, *rows)
                found[o.name] = np.broadcast_to(values, (n, values.shape[1]))
        several.append(found)
    return several[0], several[1]


def _matrices(packed: Packed | None) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """As the engine takes them: None where there are no columns."""
    if packed is None:
        return None, None
    return (
        np.ascontiguousarray(packed.ids) if packed.ids.shape[1] else None,
        np.ascontiguousarray(packed.dense) if packed.dense.shape[1] else None,
    )
