"""Trains a multi-task model, with early stopping on the validation samples.

The caller's number of torch threads is respected, and the global random state is left as it was. With one seed, one
machine and one number of threads, two trainings give the same weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmtr.errors import ConfigError, FastMTRError, SchemaError
from fastmtr.evaluation.metrics import regression_metrics, roc_auc
from fastmtr.graph import Packed
from fastmtr.models import ESMM, MultiTaskModel, Rows
from fastmtr.schema import Schema, Task
from fastmtr.training.losses import MultiTaskLoss, Weighting, in_batch_softmax
from fastmtr.training.splits import day_of

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fastmtr.training.samples import Prepared, Samples

__all__ = ["EpochRecord", "TrainResult", "TrainerConfig", "predict", "to_rows", "train"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train: the ``[training]`` section of a configuration file.

    Parameters
    ----------
    epochs : int
        At most so many passes over the training samples.
    batch_size : int
    learning_rate : float
        Of Adam.
    embedding_learning_rate : float, optional
        Of the embedding tables, where it should differ.
    embedding_epsilon : float
        Adam's epsilon for the embedding tables. Adam moves a row that few batches read by whole steps, however weak the
        evidence; an epsilon well above the size of the gradients makes steps proportional to it, so that rare ids are
        not learned by heart.
    weight_decay : float
        Decoupled (AdamW), of the layers' weights.
    embedding_decay : float
        L2 penalty on the embeddings that a batch reads, a row counted once a batch. It keeps ids close to zero that
        the model would otherwise learn by heart.
    weighting : {"fixed", "uncertainty"}
        See :class:`~fastmtr.training.losses.MultiTaskLoss`.
    base_rates : bool
        Begin with each tower's last bias at the log odds (mean, for a regression) of its task in the training samples,
        so that rare tasks do not begin with learning that they are rare.
    patience : int
        Stop after so many epochs without a better validation score; the best epoch's weights are kept.
    seed : int
        Of the order of the samples and of dropout.
    """

    epochs: _Positive = 10
    batch_size: _Positive = 2048
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0)] = 1e-3
    embedding_learning_rate: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    embedding_epsilon: Annotated[float, msgspec.Meta(gt=0.0)] = 1e-8
    weight_decay: _NotNegative = 0.0
    embedding_decay: _NotNegative = 0.0
    weighting: Weighting = "fixed"
    base_rates: bool = True
    patience: _Positive = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training: {name} must be at least 1, found {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"training: learning_rate must be above 0, found {self.learning_rate}")


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave.

    Attributes
    ----------
    epoch : int
        From 1.
    loss : float
        Mean training loss: the weighted tasks, the retrieval loss and the embedding penalty.
    task_losses : dict of str to float
        Mean unweighted training loss of each task.
    retrieval_loss : float or None
    valid : dict of str to float
        AUC of each binary task and R2 of each regression task on the validation samples; NaN where not defined.
    score : float
        Their mean, weighted with the tasks' weights: what early stopping looks at.
    seconds : float
    """

    epoch: int
    loss: float
    task_losses: dict[str, float]
    retrieval_loss: float | None
    valid: dict[str, float]
    score: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """The story of a training; the model itself holds the weights of ``best_epoch``."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    seconds: float

    @property
    def best(self) -> EpochRecord:
        """The record of the epoch whose weights the model has."""
        return self.history[self.best_epoch - 1]


def train(
    model: MultiTaskModel,
    prepared: Prepared,
    *,
    config: TrainerConfig | None = None,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place, and leave it in evaluation mode with its best epoch's weights.

    Parameters
    ----------
    model : MultiTaskModel
        Its tasks are trained, which may be fewer than the samples have.
    prepared : Prepared
        Training and validation samples and the catalogue. Without validation samples the last epoch is kept.
    config : TrainerConfig, optional
    progress : bool
        Show a progress bar on standard error.
    on_epoch : callable, optional
        Called with the record of each epoch.

    Raises
    ------
    SchemaError
        There is no training sample, or no positive for the retrieval head.
    FastMTRError
        The loss is not finite any more.
    """
    config = config or TrainerConfig()
    devices = list(range(torch.cuda.device_count())) if next(model.parameters()).is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        return _Training(model, prepared, config).run(progress=progress, on_epoch=on_epoch)


def predict(
    model: MultiTaskModel, samples: Samples, *, catalogue: Packed, batch_size: int = 8192
) -> NDArray[np.float32]:
    """Probabilities (values, for regression tasks) of all samples.

    Parameters
    ----------
    catalogue : Packed
        The items' inputs, which ``samples.item_rows`` counts.

    Returns
    -------
    ndarray of float32, shape (samples, tasks of the model)
    """
    data = _Tensors(samples, catalogue, device=_device(model))
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, data.n, batch_size):
            found = model.probabilities(*data.batch(torch.arange(start, min(start + batch_size, data.n))))
            parts.append(torch.stack(list(found.values()), dim=1).float().cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts) if parts else np.empty((0, len(model.tasks)), np.float32)


def to_rows(packed: Packed, *, device: torch.device | str = "cpu") -> Rows:
    """Packed NumPy inputs as the tensors that models take."""
    return torch.as_tensor(packed.ids, device=device), torch.as_tensor(packed.dense, device=device)


class _Tensors:
    """Samples as tensors, cut into batches of model inputs."""

    def __init__(self, samples: Samples, catalogue: Packed, *, device: torch.device) -> None:
        self.device = device
        self.request = to_rows(samples.request, device=device)
        self.item_ids, self.catalogue_dense = to_rows(catalogue, device=device)
        self.item_rows = torch.as_tensor(samples.item_rows, device=device)
        # An item's numbers may have been others then than they are in the catalogue now.
        self.item_dense = None if samples.item_dense is None else torch.as_tensor(samples.item_dense, device=device)
        self.candidate = None if samples.candidate is None else to_rows(samples.candidate, device=device)
        self.n = self.item_rows.shape[0]

    def batch(self, rows: Tensor) -> tuple[Rows, Rows, Rows | None]:
        rows = rows.to(self.device)
        items = self.item_rows[rows]
        dense = self.catalogue_dense[items] if self.item_dense is None else self.item_dense[rows]
        candidate = None if self.candidate is None else _take(self.candidate, rows)
        return _take(self.request, rows), (self.item_ids[items], dense), candidate


class _Training:
    def __init__(self, model: MultiTaskModel, prepared: Prepared, config: TrainerConfig) -> None:
        samples = prepared.train
        device = _device(model)
        self.model, self.prepared, self.config = model, prepared, config
        self.data = _Tensors(samples, prepared.catalogue.packed, device=device)
        if self.data.n == 0:
            raise SchemaError("there is no training sample; look at the cleaning report and the split's boundaries")
        columns = task_columns(model, prepared.schema)
        self.labels = torch.as_tensor(samples.labels[:, columns], device=device)
        if config.base_rates:
            _start_from_base_rates(model, samples.labels[:, columns])
        self.loss = MultiTaskLoss(model.tasks, weighting=config.weighting).to(device)
        self.optimizer = self._optimizer()
        self.order = np.random.default_rng(config.seed)
        self.retrieval = None if model.two_tower is None else _Retrieval(model, prepared, self.data)

    def _optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        tables = list(self.model.inputs.tables.parameters())
        ids = {id(p) for p in tables}
        layers = [p for p in self.model.parameters() if id(p) not in ids]
        groups = [
            {"params": layers, "weight_decay": c.weight_decay, "lr": c.learning_rate},
            {
                "params": tables,
                "weight_decay": 0.0,
                "lr": c.embedding_learning_rate or c.learning_rate,
                "eps": c.embedding_epsilon,
            },
            {"params": list(self.loss.parameters()), "weight_decay": 0.0, "lr": c.learning_rate},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)

    def run(self, *, progress: bool, on_epoch: Callable[[EpochRecord], None] | None) -> TrainResult:
        start = time.perf_counter()
        history: list[EpochRecord] = []
        best, best_weights = -1, copy.deepcopy(self.model.state_dict())
        has_valid = self.prepared.valid.n_rows > 0
        n_batches = math.ceil(self.data.n / self.config.batch_size)
        with _bar(show=progress, total=self.config.epochs * n_batches) as bar:
            for epoch in range(1, self.config.epochs + 1):
                history.append(self._epoch(epoch, bar))
                if on_epoch is not None:
                    on_epoch(history[-1])
                if not has_valid or best < 0 or _better(history[-1].score, than=history[best].score):
                    best, best_weights = epoch - 1, copy.deepcopy(self.model.state_dict())
                elif epoch - 1 - best >= self.config.patience:
                    break
        self.model.load_state_dict(best_weights)
        self.model.eval()
        return TrainResult(
            history=tuple(history),
            best_epoch=best + 1,
            stopped_early=len(history) < self.config.epochs,
            seconds=time.perf_counter() - start,
        )

    def _epoch(self, epoch: int, bar: _Bar) -> EpochRecord:
        start = time.perf_counter()
        self.model.train()
        total, by_task, retrieval = 0.0, torch.zeros(len(self.model.tasks), device=self.data.device), 0.0
        batches = self._batches()
        pairs = [None] * len(batches) if self.retrieval is None else self.retrieval.batches(len(batches), self.order)
        for rows, chosen in zip(batches, pairs, strict=True):
            loss, each, retrieved = self._step(rows, chosen)
            if not math.isfinite(loss):
                raise FastMTRError(
                    f"training: the loss became {loss} in epoch {epoch}; lower learning_rate (it is "
                    f"{self.config.learning_rate}) and look for extreme values in the numeric features"
                )
            total, by_task, retrieval = (
                total + loss * len(rows),
                by_task + each * len(rows),
                retrieval + retrieved * len(rows),
            )
            bar.advance(f"epoch {epoch}/{self.config.epochs}  loss {loss:.4f}")
        n = self.data.n
        valid = self._validate()
        record = EpochRecord(
            epoch=epoch,
            loss=total / n,
            task_losses={t.name: float(v) / n for t, v in zip(self.model.tasks, by_task, strict=True)},
            retrieval_loss=None if self.retrieval is None else retrieval / n,
            valid=valid,
            score=_score(valid, self.model.tasks),
            seconds=time.perf_counter() - start,
        )
        bar.note(f"valid {record.score:.4f}")
        return record

    def _batches(self) -> list[Tensor]:
        order = torch.from_numpy(self.order.permutation(self.data.n))
        return list(torch.split(order, self.config.batch_size))

    def _step(self, rows: Tensor, pairs: Tensor | None) -> tuple[float, Tensor, float]:
        if len(rows) == 1 and self.model.config.batch_norm:
            # BatchNorm has no variance of one row; only the last batch of an epoch can be that short.
            rows = rows.repeat(2)
        request, item, candidate = self.data.batch(rows)
        labels = self.labels[rows.to(self.data.device)]
        loss, each = self.loss(self.model(request, item, candidate), labels)
        retrieved = 0.0
        if self.retrieval is not None and pairs is not None:
            extra = self.retrieval.loss(pairs)
            retrieved = float(extra.detach())
            loss = loss + self.retrieval.weight * extra
        if self.config.embedding_decay > 0.0:
            loss = loss + self.config.embedding_decay * self._embedding_penalty(request, item, candidate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), each, retrieved

    def _embedding_penalty(self, request: Rows, item: Rows, candidate: Rows | None) -> Tensor:
        """Half the squared norm of the table rows that the batch reads."""
        layer = self.model.inputs
        domains = {"request": request, "item": item, "candidate": candidate}
        read: dict[str, list[Tensor]] = {}
        for each in layer.inputs:
            rows = domains[each.domain]
            if each.kind == "ids" and rows is not None:
                read.setdefault(layer.table_of[each.name], []).append(
                    rows[0][:, each.offset : each.offset + each.width]
                )
        total = torch.zeros((), device=self.data.device)
        for key, parts in read.items():
            weight = layer.tables[key].weight
            assert isinstance(weight, Tensor)
            used = torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype)
            for ids in parts:
                used[ids.flatten().long()] = 1.0
            total = total + 0.5 * (used @ (weight * weight)).sum()
        return total

    def _validate(self) -> dict[str, float]:
        valid = self.prepared.valid
        scores = predict(self.model, valid, catalogue=self.prepared.catalogue.packed)
        labels = valid.labels[:, task_columns(self.model, self.prepared.schema)]
        return {t.name: _quality(t, labels[:, i], scores[:, i]) for i, t in enumerate(self.model.tasks)}


class _Retrieval:
    """The loss of the retrieval head: who chose what, among the choices of one day.

    Items and users carry what was known of them on a day (past rates, counts, histories). Among choices of several days
    the head would learn to match the days, which is easy and useless; so a batch is of one day, and so is ``log q``.
    """

    def __init__(self, model: MultiTaskModel, prepared: Prepared, data: _Tensors) -> None:
        assert model.two_tower is not None
        self.config = model.two_tower.config
        self.weight = self.config.weight
        self.model, self.data = model, data
        names = [t.name for t in model.tasks if t.kind == "binary"]
        task = self.config.task or (names[0] if names else None)
        if task not in names:
            raise ConfigError(
                f"model: two_tower.task must be a binary task of the model, one of {names}; found {task!r}"
            )
        samples = prepared.train
        label = samples.labels[:, [t.name for t in prepared.schema.tasks].index(task)]
        self.positives = np.flatnonzero(label == 1.0)
        if not self.positives.size:
            raise SchemaError(
                f"the retrieval head learns from positives of {task!r}, but the training samples have none"
            )
        self.days = day_of(samples.timestamps[self.positives], prepared.schema)
        self.users = torch.as_tensor(samples.user_rows, device=data.device)
        self.log_q = torch.zeros(data.n, device=data.device)
        self.log_q[self.positives] = torch.as_tensor(self._log_shares(samples), device=data.device)

    def _log_shares(self, samples: Samples) -> NDArray[np.float32]:
        """The logarithm of the share that each positive's item has in the positives of its day."""
        pairs = np.stack([self.days, samples.item_rows[self.positives]])
        _, which, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
        _, day, a_day = np.unique(self.days, return_inverse=True, return_counts=True)
        shares: NDArray[np.float32] = np.log(counts[which.ravel()] / a_day[day]).astype(np.float32)
        return shares

    def batches(self, n: int, generator: np.random.Generator) -> list[Tensor | None]:
        """About all positives once, in n batches of one day each (None where days are short)."""
        size = math.ceil(self.positives.size / n)
        parts: list[NDArray[np.int64]] = []
        for day in np.unique(self.days):
            mine = generator.permutation(self.positives[self.days == day])
            parts += np.array_split(mine, max(1, round(mine.size / size)))
        chosen = [torch.from_numpy(parts[i]) for i in generator.permutation(len(parts))[:n]]
        return [*chosen, *[None] * (n - len(chosen))]

    def loss(self, rows: Tensor) -> Tensor:
        """The sampled softmax of these samples."""
        if len(rows) == 1:
            return torch.zeros((), device=self.data.device)
        request, item, _ = self.data.batch(rows)
        return in_batch_softmax(
            self.model.user_vector(request),
            self.model.item_vector(item),
            user_rows=self.users[rows],
            item_rows=self.data.item_rows[rows],
            log_q=self.log_q[rows],
            temperature=self.config.temperature,
        )


def _start_from_base_rates(model: MultiTaskModel, labels: NDArray[np.float32]) -> None:
    known = ~np.isnan(labels)
    means = np.where(known, labels, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    for i, task in enumerate(model.tasks):
        start = float(means[i])
        if task.kind == "binary":
            # In ESMM a tower gives the rate among the rows where the task's cause happened.
            cause = model.chains[i][-2] if isinstance(model, ESMM) and len(model.chains[i]) > 1 else None
            rate = start if cause is None else start / max(float(means[cause]), 1e-12)
            rate = min(max(rate, 1e-6), 1 - 1e-6)
            start = math.log(rate / (1 - rate))
        tower = model.towers[i]
        assert isinstance(tower, torch.nn.Sequential)
        assert isinstance(tower[-1], torch.nn.Linear)
        torch.nn.init.constant_(tower[-1].bias, start)


def task_columns(model: MultiTaskModel, schema: Schema) -> list[int]:
    """Which label columns of the samples are the model's tasks, in the model's order."""
    names = [t.name for t in schema.tasks]
    return [names.index(t.name) for t in model.tasks]


def _quality(task: Task, label: NDArray[np.float32], score: NDArray[np.float32]) -> float:
    known = ~np.isnan(label)
    if task.kind == "binary":
        return roc_auc(label[known], score[known])
    return regression_metrics(label[known], score[known])["r2"]


def _score(valid: dict[str, float], tasks: tuple[Task, ...]) -> float:
    """The mean over tasks, weighted; tasks where it is not defined do not count."""
    known = [(valid[t.name], t.weight) for t in tasks if math.isfinite(valid[t.name])]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total > 0 else math.nan


def _better(score: float, *, than: float) -> bool:
    return score > than or not math.isfinite(than)


def _take(rows: Rows, chosen: Tensor) -> Rows:
    ids, dense = rows
    return ids[chosen], dense[chosen]


def _device(model: MultiTaskModel) -> torch.device:
    return next(model.parameters()).device


class _Bar:
    """A progress bar, or nothing."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._note = ""
        self._task: TaskID | None = None if progress is None else progress.add_task("training", total=total)

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, description=f"{text}{self._note}")

    def note(self, text: str) -> None:
        self._note = f"  {text}"


def _bar(*, show: bool, total: int) -> _Bar:
    if not show:
        return _Bar(None, total)
    from rich.console import Console
    from rich.progress import Progress

    return _Bar(Progress(console=Console(stderr=True), transient=True), total)
