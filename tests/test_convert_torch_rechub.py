"""torch-rechub's models, trained a little on real impressions: the engine gives their scores."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from conversion_data import ENTITIES, LABELS, edge_rows, few_steps, greatest_difference, impressions, vocabulary

import fastmtr
from fastmtr.compiler import compile_graph
from fastmtr.errors import ConversionError

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed")

from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import matching, multi_task, ranking

torch.set_num_threads(1)
MLP = {"dims": [24, 16], "activation": "relu", "dropout": 0.1}
TOWERS = [{"dims": [8], "activation": a} for a in ("relu", "prelu", "leakyrelu")]


def sparse(name: str) -> SparseFeature:
    return SparseFeature(name, vocabulary(name), 8)


def clicked(pooling: str) -> SequenceFeature:
    return SequenceFeature("clicked", vocabulary("clicked"), 8, pooling=pooling, shared_with="video_id", padding_idx=0)


def features() -> list[object]:
    """Sparse, dense and sequence features."""
    ids = [sparse(name) for name in ("user_id", "tab", "hour", "video_id", "author_id")]
    return [*ids, clicked("mean"), DenseFeature("duration"), DenseFeature("numbers", 2)]


def ids() -> list[object]:
    return features()[:6]


USER, ITEM = ["user_id", "clicked"], ["video_id", "author_id"]


def named(names: list[str]) -> list[object]:
    return [f for f in ids() if f.name in names]


def din(**attention: object) -> torch.nn.Module:
    return ranking.DIN(
        named(["user_id", "hour"]),
        [clicked("concat")],
        named(["video_id"]),
        {"dims": [16]},
        {"dims": [12], **attention},
    )


def youtube_dnn() -> torch.nn.Module:
    negatives = SequenceFeature("negatives", vocabulary("video_id"), 8, pooling="concat", shared_with="video_id")
    params = {"dims": [16, 8]}
    return matching.YoutubeDNN(named(USER), named(["video_id"]), [negatives], params, temperature=0.05)


MODELS = {
    "SharedBottom": lambda: multi_task.SharedBottom(features(), ["classification"] * 3, MLP, TOWERS),
    "MMOE": lambda: multi_task.MMOE(features(), ["classification"] * 3, 4, MLP, TOWERS),
    "PLE": lambda: multi_task.PLE(features(), ["classification"] * 3, 2, 2, 1, MLP, TOWERS),
    "ESMM": lambda: multi_task.ESMM(named(["user_id", "hour"]), named(ITEM), {"dims": [16]}, {"dims": [16]}),
    "AITM": lambda: multi_task.AITM(features(), 3, MLP, TOWERS),
    "WideDeep": lambda: ranking.WideDeep(features(), features(), MLP),
    "DeepFM": lambda: ranking.DeepFM(features(), ids(), MLP),
    "DCN": lambda: ranking.DCN(features(), 2, MLP),
    "DCNv2": lambda: ranking.DCNv2(features(), 2, MLP, low_rank=4, num_experts=2),
    "DCNv2 stacked": lambda: ranking.DCNv2(features(), 2, MLP, "stacked", use_low_rank_mixture=False),
    "DIN": lambda: din(activation="dice"),
    "DIN softmax": lambda: din(activation="prelu", use_softmax=True),
    "DSSM": lambda: matching.DSSM(named(USER), named(ITEM), {"dims": [16, 8]}, {"dims": [12, 8]}),
    "YoutubeDNN": youtube_dnn,
}


@lru_cache
def trained(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    arrays, labels = impressions()
    inputs = {k: torch.from_numpy(v) for k, v in arrays.items()}
    if name == "YoutubeDNN":
        return trained_youtube_dnn(model, inputs)
    few_steps(model, inputs, labels)
    return model


def trained_youtube_dnn(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.nn.Module:
    """With the softmax over an item and three negatives."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    negatives = torch.randint(1, vocabulary("video_id"), (len(inputs["video_id"]), 3))
    for start in range(0, 1000, 250):
        batch = {k: v[start : start + 250] for k, v in {**inputs, "negatives": negatives}.items()}
        scores = model(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long)).backward()
        optimizer.step()
    return model.eval()


def converted(name: str) -> fastmtr.Conversion:
    model = trained(name)
    own = name in ("ESMM", "DIN", "DIN softmax", "DSSM", "YoutubeDNN")  # says what its features are functions of
    sample = {k: v for k, v in edge_rows().items() if k in ENTITIES}
    return fastmtr.convert(model, sample=sample, inputs=None if own else ENTITIES)


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_models_scores(name: str) -> None:
    conversion = converted(name)
    assert greatest_difference(conversion, conversion.sample) <= 1e-5
    one = {domain: packed.take([0]) for domain, packed in conversion.sample.items()}
    assert greatest_difference(conversion, one) <= 1e-5
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
    assert LABELS
