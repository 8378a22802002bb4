"""Raw rows like Criteo's: 13 numbers with nulls and 26 categories, as frequent as Zipf's law has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from fastmtr.features import FeaturePipeline
from fastmtr.schema import Feature, Schema, Task

__all__ = ["CATEGORIES", "HASH_ROWS", "NUMBERS", "raw_rows", "schema", "write_rows"]

# Of the categories of Criteo's display advertising challenge, as its users count them.
CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
NUMBERS = tuple(f"i{i}" for i in range(13))
CATEGORIES = tuple(f"c{i}" for i in range(len(CARDINALITIES)))
HASH_ROWS = 1 << 20


def raw_rows(n: int, *, seed: int, of_text: bool = True) -> pa.Table:
    """Rows with the nulls and the repetitions of a log; categories are texts, or whole numbers without nulls."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for i, name in enumerate(NUMBERS):
        columns[name] = pa.array(np.floor(rng.lognormal(2, 2, n)), mask=rng.random(n) < 0.04 * i)
    for name, cardinality in zip(CATEGORIES, CARDINALITIES, strict=True):
        # The rank of a value by the inverse of Zipf's distribution: P(rank > r) falls with log r.
        ranks = np.floor(np.exp(rng.random(n) * math.log(cardinality + 1))).astype(np.uint64)
        codes = (ranks * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
        if not of_text:
            columns[name] = codes.astype(np.int64)
            continue
        distinct, which = np.unique(codes, return_inverse=True)
        texts = pa.array([f"{code:08x}" for code in distinct.tolist()])
        columns[name] = texts.take(pa.array(which, mask=rng.random(n) < 0.02))
    return pa.table(columns)


def schema(**options: Any) -> Schema:
    """The categories by vocabulary, or with `hash_rows`."""
    numbers = [Feature(name=name, entity="candidate", kind="numeric", scaling="log1p") for name in NUMBERS]
    categories = [Feature(name=name, entity="candidate", kind="categorical", **options) for name in CATEGORIES]
    return Schema(user="user", item="item", features=(*numbers, *categories), tasks=(Task(name="click"),))


def write_rows(folder: Path, pipeline: FeaturePipeline, rows: pa.Table) -> None:
    """Write the pipeline and rows as text, for the programs that include feature_rows.h."""
    state, arrays = pipeline.state()
    (folder / "features.json").write_bytes(msgspec.json.encode(state))
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, folder / "features.safetensors")
    lines = [row.values() for row in rows.to_pylist()]
    cells = [rows.column_names, *(["" if cell is None else str(cell) for cell in line] for line in lines)]
    (folder / "rows.tsv").write_text("".join("\t".join(line) + "\n" for line in cells))
