"""Features: declared in the schema, fitted once, saved in the bundle, the same for a table and for one request."""

from fastmtr.features.engines import warm_up
from fastmtr.features.pipeline import FeaturePipeline
from fastmtr.features.shards import read_features

__all__ = ["FeaturePipeline", "read_features", "warm_up"]
