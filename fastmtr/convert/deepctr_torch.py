"""Models of DeepCTR-Torch: the packed matrix is cut as the model's own feature columns say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fastmtr.convert.registry import Conversion, Options
from fastmtr.convert.torch_export import convert_model as convert_torch
from fastmtr.convert.torch_export import convert_module
from fastmtr.errors import ConversionError

__all__ = ["convert_model"]

_SAMPLE_ROWS = 64


def convert_model(model: nn.Module, options: Options) -> Conversion:
    """The conversion of a model that takes one packed matrix."""
    index: Mapping[str, tuple[int, int]] | None = getattr(model, "feature_index", None)
    if index is None:
        return convert_torch(model, options)
    columns = _columns(model)
    sample = _drawn(index, columns) if options.sample is None else _packed(options.sample, index)
    padding = {c.name: 0 for c in columns if hasattr(c, "maxlen") and c.length_name is None}
    tasks = options.tasks
    if tasks is None and options.schema is None:
        tasks = getattr(model, "task_names", None)
    chosen = replace(options, sample=sample, columns=dict(index), tasks=tasks)
    return convert_module(model, chosen, name=type(model).__name__, padding=padding)


def _columns(model: Any) -> list[Any]:
    """The model's feature columns, each once."""
    linear = model.linear_model
    given = [
        *linear.sparse_feature_columns,
        *linear.dense_feature_columns,
        *linear.varlen_sparse_feature_columns,
        *model.dnn_feature_columns,
    ]
    return list({column.name: column for column in given}.values())


def _packed(sample: Any, index: Mapping[str, tuple[int, int]]) -> NDArray[np.float32]:
    """Arrays by feature name, or in the order of the features, as the one matrix that the model takes."""
    if isinstance(sample, Mapping):
        missing = [name for name in index if name not in sample]
        if missing:
            raise ConversionError(f"the sample lacks the features {missing}; it has {list(sample)}")
        sample = [sample[name] for name in index]
    if isinstance(sample, Sequence):
        blocks = [np.asarray(block).reshape(len(block), -1) for block in sample]
        return np.concatenate(blocks, axis=1, dtype=np.float32)
    return np.asarray(sample, np.float32)


def _drawn(index: Mapping[str, tuple[int, int]], columns: Sequence[Any]) -> NDArray[np.float32]:
    """A random sample: the feature columns tell everything about their values."""
    rng = np.random.default_rng(0)
    sample = np.zeros((_SAMPLE_ROWS, max(stop for _, stop in index.values())), np.float32)
    for column in columns:
        start, stop = index[column.name]
        size = (_SAMPLE_ROWS, stop - start)
        if hasattr(column, "vocabulary_size"):
            sample[:, start:stop] = rng.integers(0, column.vocabulary_size, size)
        else:
            sample[:, start:stop] = rng.normal(size=size)
        length = getattr(column, "length_name", None)
        if length is not None:
            sample[:, index[length][0]] = rng.integers(0, column.maxlen + 1, _SAMPLE_ROWS)
    return sample
