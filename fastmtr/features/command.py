"""What ``fastmtr transform`` and ``fastmtr check`` do with their arguments."""

from __future__ import annotations

import argparse
import os

from fastmtr.bundle import open_bundle
from fastmtr.errors import SchemaError
from fastmtr.features.pipeline import FeaturePipeline
from fastmtr.features.quality import FeatureCheck
from fastmtr.features.shards import FeatureFiles

__all__ = ["check", "load_pipeline", "transform"]


def load_pipeline(bundle: str | os.PathLike[str]) -> FeaturePipeline:
    """The features of a bundle; SchemaError if it has none of its own."""
    opened = open_bundle(bundle)
    if opened.pipeline_state is None:
        raise SchemaError(f"{bundle} holds no fitted features: its model takes packed inputs")
    return FeaturePipeline.from_state(opened.schema, *opened.pipeline_state)


def transform(options: argparse.Namespace, *, progress: bool) -> FeatureFiles:
    """Pack a table with a bundle's features."""
    return load_pipeline(options.bundle).transform_to(
        options.out,
        source=options.table,
        domains=options.domain or None,
        keep=options.keep,
        missing=options.missing,
        batch_rows=options.batch_rows,
        progress=progress,
        overwrite=options.overwrite,
    )


def check(options: argparse.Namespace, *, progress: bool) -> FeatureCheck:
    """Set a table against what a bundle's features were fitted on."""
    found = load_pipeline(options.bundle).check(options.table, progress=progress)
    if options.html is not None:
        from fastmtr.evaluation.html import render_check

        title = f"Features of {options.table}"
        options.html.write_text(render_check(found, title=title), encoding="utf-8")
    return found
