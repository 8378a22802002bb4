"""torch-rechub's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

import numpy as np
import pytest
from conversion_data import ENTITIES, check_first_layers, check_scores, edge_rows, vocabulary

import fastmtr
from fastmtr.errors import ConversionError

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed")

from rechub_models import MODELS, converted, trained


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    check_scores(converted(name))


@pytest.mark.parametrize("name", ["MMOE", "DCNv2", "WideDeep", "AITM"])
def test_first_layers_are_split(name: str) -> None:
    check_first_layers(converted(name).graph)


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
