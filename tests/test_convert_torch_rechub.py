"""torch-rechub's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

import numpy as np
import pytest
from conversion_data import ENTITIES, edge_rows, vocabulary

import fastmtr
from fastmtr.compiler import compile_graph
from fastmtr.convert.verify import verify
from fastmtr.errors import ConversionError

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed")

from rechub_models import MODELS, converted, trained


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    conversion = converted(name)
    assert verify(conversion).worst.engine <= 1e-5
    scores = conversion.source.score(conversion.sample)
    assert min(scores[t].std() for t in conversion.graph.tasks) > 1e-4, "the scores say something"


@pytest.mark.parametrize("name", ["MMOE", "DCNv2", "WideDeep", "AITM"])
def test_first_layers_are_split(name: str) -> None:
    """What depends on the user alone is done once a request, and the item's share of the first layers is stored."""
    plan = compile_graph(converted(name).graph, n_items=1000).plan
    request = [step for step in plan["steps"] if step["op"] == "affine" and step["domain"] == "request"]
    item = [step for step in plan["steps"] if step["op"] == "affine" and step["domain"] == "item"]
    assert request
    assert item


def test_padding_and_tables_come_from_the_features() -> None:
    inputs = {i.name: i for i in converted("MMOE").graph.inputs}
    assert inputs["clicked"].padding == 0
    assert inputs["clicked"].rows == inputs["video_id"].rows == vocabulary("video_id")
    assert [i.domain for i in (inputs["user_id"], inputs["tab"], inputs["video_id"])] == ["request", "request", "item"]


def test_two_towers_are_a_retrieval_head() -> None:
    outputs = {o.name: o.role for o in converted("YoutubeDNN").graph.outputs}
    assert outputs == {"score": "task", "user_vector": "request", "item_vector": "item"}


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConversionError, match="needs sample=: its feature 'clicked' is a sequence"):
        fastmtr.convert(trained("MMOE"), inputs=ENTITIES)
    with pytest.raises(ConversionError, match="the sample lacks the features"):
        fastmtr.convert(trained("MMOE"), inputs=ENTITIES, sample={"user_id": np.zeros(3, int)})
    with pytest.raises(ConversionError, match=r"what are the inputs \['user_id', .*functions of\?"):
        fastmtr.convert(trained("MMOE"), sample=edge_rows())


def test_a_sample_is_drawn_where_no_feature_is_a_sequence() -> None:
    conversion = fastmtr.convert(trained("ESMM"), tasks=["cvr", "ctr", "ctcvr"])
    assert conversion.graph.tasks == ("cvr", "ctr", "ctcvr")
    assert conversion.sample is not None
