"""The four multi-task models on the packaged data: AUC of each task, beside popularity, and the engine against torch.

    python bench/bench_quality.py [--seed 0]

Every model has the training settings of ``fastmtr/datasets/kuairand.toml``, which were chosen for MMoE.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec
import torch

from fastmtr import Ranker
from fastmtr.datasets import kuairand
from fastmtr.evaluation.report import Table, wide_console
from fastmtr.models import ModelConfig
from fastmtr.workflow import engine_difference, fit, judge, save

MODELS = {
    "shared_bottom": {"bottom": (64, 32)},
    "mmoe": {"experts": 4, "expert": (64, 32)},
    "ple": {"levels": 1, "shared_experts": 2, "task_experts": 1, "expert": (64, 32)},
    "esmm": {"tower": (64, 32)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    data = kuairand()
    prepared = data.prepare()
    tasks = [task.name for task in data.config.schema.tasks]
    rows: list[list[str]] = []
    for name, own in MODELS.items():
        model = msgspec.convert(msgspec.to_builtins(data.config.model) | own | {"type": name}, ModelConfig)
        training = msgspec.structs.replace(data.config.training, seed=seed)
        config = msgspec.structs.replace(data.config, model=model, training=training)
        fitted = fit(config, prepared)
        quality = judge(config, prepared, fitted, linear=name == "esmm")
        with tempfile.TemporaryDirectory() as folder:
            bundle = save(Path(folder) / name, config=config, prepared=prepared, fitted=fitted)
            difference = engine_difference(Ranker.load(bundle), prepared, fitted.scores)
        shown = quality if name == "esmm" else {name: quality[name]}  # the baselines once, at the end
        for method, found in shown.items():
            auc = [f"{each.metrics['auc']:.4f}" for each in found]
            rows.append([method, *auc, f"{difference:.1e}" if method == name else ""])
    title = f"AUC on {prepared.test.n_rows:,} test samples, seed {seed}"
    wide_console().print(Table("quality", title, ["model", *tasks, "engine - torch"], rows))


if __name__ == "__main__":
    main()
