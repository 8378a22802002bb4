"""Features: declared in the schema, fitted once, saved in the bundle, the same for a table and for one request."""

from fastmtr.features.pipeline import FeaturePipeline

__all__ = ["FeaturePipeline"]
