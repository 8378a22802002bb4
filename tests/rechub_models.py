"""torch-rechub's models over the impressions of :mod:`conversion_data`: shared by the tests and the benchmark."""

from __future__ import annotations

from functools import lru_cache

import torch
from conversion_data import ENTITIES, edge_rows, few_steps, impressions, vocabulary
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import matching, multi_task, ranking

import fastmtr

__all__ = ["MODELS", "converted", "trained"]

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


def sparse_ids() -> list[object]:
    return features()[:5]


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
    "AFM": lambda: ranking.AFM(sparse_ids(), 8, 4),
    "AutoInt": lambda: ranking.AutoInt(sparse_ids(), [DenseFeature("duration")], num_layers=2, num_heads=2),
    "FiBiNet": lambda: ranking.FiBiNet(sparse_ids(), MLP),
    "EDCN": lambda: ranking.EDCN(sparse_ids(), 2, MLP),
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
