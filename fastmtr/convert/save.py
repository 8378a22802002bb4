"""From a conversion to a verified bundle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from fastmtr.bundle import Catalogue, write_bundle
from fastmtr.convert.guard import ModelWarning, suspicions
from fastmtr.convert.registry import Conversion
from fastmtr.convert.schemas import schema_of
from fastmtr.convert.verify import TOLERANCE, verify
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Domain, Graph, Packed
from fastmtr.schema import Schema

__all__ = ["save"]


def save(
    conversion: Conversion,
    path: str | os.PathLike[str],
    *,
    schema: Schema | None = None,
    pipeline: FeaturePipeline | None = None,
    catalogue: Catalogue | None = None,
    users: Catalogue | None = None,
    items: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
    fusion: Mapping[str, Any] | None = None,
    item_memory: int | Literal["auto"] = "auto",
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Path:
    """Write a bundle, if its scores are those of the source model.

    Parameters
    ----------
    conversion : Conversion
    path : path
        The bundle's directory.
    schema : Schema, optional
        None: features are the inputs, tasks the outputs (binary if all values are probabilities).
    pipeline : FeaturePipeline, optional
        Fitted, where the model's inputs are those of the pipeline: then raw features can be scored.
    catalogue, users : Catalogue, optional
        The items, and known users, with their packed inputs. None: those of the sample, by `items` and `groups`.
    items, groups : array of shape (N,), optional
        The key of the item, and of the user, of each row of the sample. Of several rows with one key the last counts.
    labels : mapping of task to array of shape (N,), optional
        Of the sample, to find inputs that give them away.
    fusion, item_memory, overwrite
        As of :func:`~fastmtr.write_bundle`.
    tolerance : float
        Between the engine's and the source's probabilities.

    Returns
    -------
    Path
        The bundle. Its metadata has the :class:`~fastmtr.convert.verify.ConversionReport` as ``conversion``.

    Raises
    ------
    ConversionError
        The scores differ by more than the tolerance; nothing is written.
    SchemaError, BundleError
        As of :func:`~fastmtr.write_bundle`.

    Warns
    -----
    ModelWarning
        Something about the model is strange, such as a constant output.
    """
    graph, sample = conversion.graph, conversion.sample
    scores = None if sample is None else conversion.source.score(sample)
    if schema is None:
        schema = schema_of(graph, scores)
    found: tuple[str, ...] = ()

    def metadata(bundle: Path) -> dict[str, Any]:
        nonlocal found
        report = verify(conversion, bundle=bundle, tolerance=tolerance)
        found = suspicions(graph, sample=sample, scores=scores, labels=labels)
        report = msgspec.structs.replace(report, warnings=found)
        return {"model": report.source, "conversion": msgspec.to_builtins(report)}

    made = write_bundle(
        path,
        schema=schema,
        graph=graph,
        pipeline_state=None if pipeline is None else pipeline.state(),
        catalogue=_sampled(graph, "item", sample, items) if catalogue is None else catalogue,
        users=_sampled(graph, "request", sample, groups) if users is None else users,
        fusion=fusion,
        item_memory=item_memory,
        metadata=metadata,
        overwrite=overwrite,
    )
    for each in found:
        warnings.warn(each, ModelWarning, stacklevel=2)
    return made


def _sampled(
    graph: Graph, domain: Domain, sample: Mapping[Domain, Packed] | None, keys: ArrayLike | None
) -> Catalogue | None:
    """What the sample tells of each item or user."""
    if sample is None or keys is None:
        return None
    given = np.asarray(keys)
    n = next(iter(sample.values())).n_rows
    if given.shape != (n,):
        raise SchemaError(f"the sample has {n} rows, but there are keys of shape {given.shape}, one for each expected")
    known, last = np.unique(given[::-1], return_index=True)
    nothing = Packed(np.empty((n, 0), np.int32), np.empty((n, 0), np.float32))
    packed = sample.get(domain, nothing)
    if packed is nothing and any(i.domain == domain for i in graph.inputs):
        raise ConversionError(f"the sample has no {domain} inputs")
    return Catalogue(known, packed.take(n - 1 - last))
