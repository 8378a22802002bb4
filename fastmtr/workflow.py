"""From a configuration to a bundle: what ``fastmtr train`` and ``fastmtr demo`` do, step by step."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr.bundle import Bundle, Catalogue, PipelineState, Seen, write_bundle
from fastmtr.config import Config
from fastmtr.convert import convert
from fastmtr.datasets import DataSet
from fastmtr.errors import ConversionError, SchemaError
from fastmtr.evaluation.baselines import item_times_user_mean, logistic_regression, popular_items, popularity
from fastmtr.evaluation.evaluate import (
    Comparison,
    TaskQuality,
    choose_thresholds,
    compare_with_single_task,
    evaluate,
    relevant_items,
    retrieval_quality,
)
from fastmtr.evaluation.report import Report, make_report
from fastmtr.models import ModelConfig, MultiTaskModel, build_model
from fastmtr.ranker import Ranker
from fastmtr.training.samples import Prepared, Samples
from fastmtr.training.trainer import TrainResult, predict, train

__all__ = [
    "TOLERANCE",
    "Fitted",
    "check_same_features",
    "compare",
    "describe_model",
    "engine_difference",
    "finish",
    "fit",
    "judge",
    "judge_retrieval",
    "save",
    "stored_thresholds",
    "train_bundle",
]

TOLERANCE = 1e-5
"""The greatest difference between a score of the engine and of torch that is let pass."""

# What is shown (10), and what retrieval hands to ranking (500).
_CUTS = (10, 50, 100, 500)


@dataclass(frozen=True)
class Fitted:
    """A trained model.

    Attributes
    ----------
    model : MultiTaskModel
    result : TrainResult
    scores : array of float32, shape (test samples, tasks)
        By torch.
    thresholds : dict of task to float
        Chosen on the validation samples.
    """

    model: MultiTaskModel
    result: TrainResult
    scores: NDArray[np.float32]
    thresholds: Mapping[str, float]


def fit(config: Config, prepared: Prepared, *, progress: bool = False) -> Fitted:
    """Train the configuration's model and score the test samples."""
    model = build_model(config.model, prepared.pipeline.inputs, schema=config.schema, seed=config.training.seed)
    result = train(model, prepared, config=config.training, progress=progress)
    catalogue = prepared.catalogue.packed
    valid = predict(model, prepared.valid, catalogue=catalogue)
    thresholds = choose_thresholds(valid, prepared.valid, schema=config.schema)
    return Fitted(model, result, predict(model, prepared.test, catalogue=catalogue), thresholds)


def judge(config: Config, prepared: Prepared, fitted: Fitted, *, linear: bool = True) -> dict[str, list[TaskQuality]]:
    """The test quality of the model and of the baselines, by name, the model first.

    Parameters
    ----------
    linear : bool
        With a logistic regression on the same inputs, which takes longer than the other baselines.
    """
    baselines: dict[str, Callable[[Prepared, Samples], NDArray[np.float32]]] = {}
    if linear:
        baselines["logistic regression"] = logistic_regression
    baselines |= {"item mean x user mean": item_times_user_mean, "item popularity": popularity}
    schema, test = config.schema, prepared.test
    main = evaluate(fitted.scores, test, schema=schema, thresholds=fitted.thresholds, intervals=True)
    found: dict[str, list[TaskQuality]] = {config.model.type: main}
    for name, baseline in baselines.items():
        thresholds = choose_thresholds(baseline(prepared, prepared.valid), prepared.valid, schema=schema)
        found[name] = evaluate(baseline(prepared, test), test, schema=schema, thresholds=thresholds)
    return found


def compare(
    config: Config, prepared: Prepared, *, seeds: int, on_model: Callable[[str], None] | None = None
) -> Comparison:
    """One model for all tasks against a model a task, over so many seeds."""
    return compare_with_single_task(
        prepared, config.model, trainer=config.training, seeds=range(seeds), on_model=on_model
    )


def save(
    out: str | os.PathLike[str],
    *,
    config: Config,
    prepared: Prepared,
    fitted: Fitted,
    report: Report | None = None,
    item_memory: int | Literal["auto"] = "auto",
    most_users: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Compile the model and write the bundle, with the users who met most items if there are to be fewer."""
    users, seen = prepared.users, prepared.seen
    if most_users is not None and most_users < len(users.keys):
        met = np.diff(seen.offsets)
        chosen = np.sort(np.argsort(-met, kind="stable")[:most_users])
        users = Catalogue(users.keys[chosen], users.packed.take(chosen))
        rows = [seen.of(int(user)) for user in chosen]
        seen = Seen(np.concatenate([[0], np.cumsum(met[chosen])]), np.concatenate([*rows, np.empty(0, np.int64)]))
    return write_bundle(
        out,
        schema=config.schema,
        graph=convert(fitted.model).graph,
        pipeline_state=prepared.pipeline.state(),
        catalogue=prepared.catalogue,
        users=users,
        seen=seen,
        fusion=config.fusion.to_plan(config.schema),
        item_memory=item_memory,
        metadata={"retrieval": msgspec.to_builtins(config.retrieval), "model": describe_model(config.model)},
        report=None if report is None else report.to_json(),
        overwrite=overwrite,
    )


def engine_difference(ranker: Ranker, prepared: Prepared, scores: NDArray[np.float32]) -> float:
    """The greatest difference between the engine's and torch's score of any test sample and task.

    Raises
    ------
    ConversionError
        It is above :data:`TOLERANCE`.
    """
    engine = ranker.predict(prepared.test, items=prepared.catalogue.keys)
    if not engine.size:
        return 0.0
    difference = np.abs(engine - scores)
    worst = float(difference.max())
    if not worst <= TOLERANCE:
        row, column = np.unravel_index(np.nanargmax(difference), difference.shape)
        raise ConversionError(
            f"the compiled scores differ from torch's by up to {worst:.3g} (allowed: {TOLERANCE:g}); the worst is task "
            f"{prepared.schema.tasks[column].name!r} of test sample {row}. This is a bug in fastmtr: please report it"
        )
    return worst


def judge_retrieval(ranker: Ranker, prepared: Prepared, *, task: str, most: int = 2000) -> dict[str, dict[str, float]]:
    """How many of a user's positives in the test samples are found in the whole catalogue, by retrieval alone, by
    retrieval and ranking, and by popularity.

    Items that the user met before are left out of candidates and positives alike. Each user's request is that of the
    user's first test sample.

    Parameters
    ----------
    most : int
        Users, taken at even distances if there are more.

    Returns
    -------
    dict of method to metrics
    """
    users, relevant = relevant_items(prepared.test, schema=prepared.schema, task=task)
    seen = [prepared.seen.of(int(user)) for user in users]
    fresh = [np.setdiff1d(items, met) for items, met in zip(relevant, seen, strict=True)]
    with_fresh = np.flatnonzero([len(items) > 0 for items in fresh])
    if not len(with_fresh):
        raise SchemaError(f"no user has a positive of task {task!r} in the test samples that was not met before")
    chosen = with_fresh[np.linspace(0, len(with_fresh) - 1, min(most, len(with_fresh))).astype(int)]
    seen, fresh = [seen[i] for i in chosen], [fresh[i] for i in chosen]
    rows, first = np.unique(prepared.test.user_rows, return_index=True)
    requests = prepared.test.request.take(first[np.searchsorted(rows, users[chosen])])

    k = max(_CUTS)
    found = {}
    found["retrieval"], _ = ranker.retriever.search(ranker.user_vectors(requests), k=k, exclude=seen)
    keys = ranker.items
    order = np.argsort(keys)
    ranked = ranker.recommend(requests, k=k, retrieve=k, exclude=[keys[met] for met in seen])
    found["retrieval, then ranking"] = np.full((len(chosen), k), -1, np.int64)
    for row, ranking in zip(found["retrieval, then ranking"], ranked, strict=True):
        row[: len(ranking)] = order[np.searchsorted(keys, ranking.items, sorter=order)]
    popular = popular_items(prepared, task=task)
    lists = np.full((len(chosen), k), -1, np.int64)
    for i, met in enumerate(seen):
        head = popular[: k + len(met)]
        left = head[~np.isin(head, met)][:k]
        lists[i, : len(left)] = left
    found["most popular"] = lists
    return retrieval_quality(found, fresh, ks=_CUTS)


def train_bundle(
    data: DataSet,
    *,
    out: str | os.PathLike[str],
    title: str,
    item_memory: int | Literal["auto"] = "auto",
    most_users: int | None = None,
    seeds: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """All of it: prepare, train, judge, compile, check the engine against torch, write.

    Parameters
    ----------
    data : DataSet
        From :func:`fastmtr.datasets.load`.
    out : path
        The bundle to write. Nothing is written there unless the engine agrees with torch.
    title : str
        Of the report.
    most_users : int, optional
        Keep only so many users in the bundle, those who met most items.
    seeds : int
        At least 2: compare with single-task models over so many seeds.
    say : callable
        Told what is done now.
    """
    config = data.config
    say("preparing data")
    prepared = data.prepare(progress=progress)
    say(f"training {describe_model(config.model)}")
    fitted = fit(config, prepared, progress=progress)
    say("judging the model and the baselines")
    quality = judge(config, prepared, fitted)
    comparison = None
    if seeds >= 2:
        say(f"comparing with single-task models, {seeds} seeds")
        comparison = compare(config, prepared, seeds=seeds, on_model=lambda what: say(f"  {what}"))
    say("compiling, and checking the engine against torch")
    return finish(
        config,
        prepared,
        fitted,
        quality,
        comparison,
        out=out,
        title=title,
        item_memory=item_memory,
        most_users=most_users,
        overwrite=overwrite,
    )


def finish(
    config: Config,
    prepared: Prepared,
    fitted: Fitted,
    quality: Mapping[str, Sequence[TaskQuality]],
    comparison: Comparison | None,
    *,
    out: str | os.PathLike[str],
    title: str,
    item_memory: int | Literal["auto"] = "auto",
    most_users: int | None = None,
    overwrite: bool = False,
) -> Report:
    """Compile, check the engine against torch, judge retrieval with the engine, and write bundle and report."""
    retrieval, task = None, None
    with tempfile.TemporaryDirectory(prefix="fastmtr-") as scratch:
        trial = save(Path(scratch) / "bundle", config=config, prepared=prepared, fitted=fitted, item_memory=item_memory)
        ranker = Ranker.load(trial)
        difference = engine_difference(ranker, prepared, fitted.scores)
        if config.model.two_tower is not None:
            binary = [t.name for t in config.schema.tasks if t.kind == "binary"]
            task = config.model.two_tower.task or binary[0]
            retrieval = judge_retrieval(ranker, prepared, task=task)
    report = make_report(
        title=title,
        model=describe_model(config.model),
        parameters=sum(p.numel() for p in fitted.model.parameters()),
        main=config.model.type,
        prepared=prepared,
        training=fitted.result,
        scores=fitted.scores,
        quality=quality,
        retrieval=retrieval,
        retrieval_task=task,
        comparison=comparison,
    )
    report = msgspec.structs.replace(report, engine_rows=len(prepared.test.item_rows), engine_difference=difference)
    save(
        out,
        config=config,
        prepared=prepared,
        fitted=fitted,
        report=report,
        item_memory=item_memory,
        most_users=most_users,
        overwrite=overwrite,
    )
    return report


def check_same_features(ranker: Ranker, prepared: Prepared) -> None:
    """SchemaError unless the data were packed as the bundle's were."""
    from fastmtr.features import FeaturePipeline

    state = ranker.bundle.pipeline_state
    same = state is not None and ranker.schema == prepared.schema
    if state is not None and same:
        same = _same_state(prepared.pipeline.state(), FeaturePipeline.from_state(prepared.schema, *state).state())
    if not same or not np.array_equal(ranker.items, prepared.catalogue.keys):
        raise SchemaError(
            "the configuration's data are not those that this bundle was trained on: schema, fitted features or "
            "catalogue differ; give the configuration and the data of the training"
        )


def _same_state(ours: PipelineState, theirs: PipelineState) -> bool:
    """Whether two pipelines learned the same. Numbers may differ a little: sums were rounded otherwise."""

    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-9)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.shape == b.shape and np.allclose(a, b, rtol=1e-9 if a.dtype.kind == "f" else 0, atol=0)
        return bool(a == b)

    return alike(ours[0]["features"], theirs[0]["features"]) and alike(ours[1], theirs[1])


def stored_thresholds(bundle: Bundle) -> dict[str, float]:
    """The thresholds of the bundle's report; empty without one."""
    if bundle.report is None:
        return {}
    report = Report.from_json(bundle.report)
    found = {q.task: q.metrics.get("threshold") for q in report.quality[report.main]}
    return {task: threshold for task, threshold in found.items() if threshold is not None}


def describe_model(model: ModelConfig) -> str:
    """The model in a few words."""
    layers = {
        "shared_bottom": f"SharedBottom, bottom {list(model.bottom)}",
        "mmoe": f"MMoE, {model.experts} experts {list(model.expert)}",
        "ple": f"PLE, {model.levels} levels, {model.shared_experts} shared and {model.task_experts} own experts a task "
        f"{list(model.expert)}",
        "esmm": "ESMM",
    }
    head = "" if model.two_tower is None else f", two-tower head of width {model.two_tower.dim}"
    return f"{layers[model.type]}, towers {list(model.tower)}{head}"
