"""The features of one table by the arrays and by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.graph import Domain, Packed
from fastmtr.schema import Schema
from fastmtr.tables import read_table


def both(
    schema: Schema, fitted: pa.Table, given_table: pa.Table, *, domain: Domain = "candidate", **options: Any
) -> list[Packed | str]:
    """What the arrays and what Numba make of a table, or the errors that they raise."""
    return both_of(FeaturePipeline(schema).fit(interactions=fitted), given_table, domain=domain, **options)


def both_of(
    pipeline: FeaturePipeline, table: pa.Table, *, domain: Domain = "candidate", **options: Any
) -> list[Packed | str]:
    """The same of a pipeline that is fitted. Numba must have packed every feature that is not refused."""
    results: list[Packed | str] = []
    for engine in ("arrays", "numba"):
        try:
            results.append(pipeline.transform(domain, table, engine=engine, **options))  # type: ignore[arg-type]
        except SchemaError as error:
            results.append(str(error))
    if isinstance(results[0], Packed):
        assert left_to_arrays(pipeline, table, domain=domain) == set()
    return results


def left_to_arrays(pipeline: FeaturePipeline, table: pa.Table, *, domain: Domain) -> set[str]:
    """The features of a table of some rows that Numba does not pack."""
    from fastmtr.features.numba_batch import fill

    given = read_table(table)
    places = {i.name: i for i in pipeline.inputs if i.domain == domain and given.num_rows}
    into = pipeline.transform(domain, given, engine="arrays")
    return places.keys() - fill(pipeline, given, into=into, places=places, threads=1)


def assert_same(results: list[Packed | str]) -> None:
    """The same ids and bits, or the same error."""
    arrays, compiled = results
    if isinstance(arrays, str) or isinstance(compiled, str):
        assert arrays == compiled
        return
    np.testing.assert_array_equal(arrays.ids, compiled.ids)
    np.testing.assert_array_equal(arrays.dense.view(np.uint32), compiled.dense.view(np.uint32))
