"""Losses against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from fastmtr.schema import Task
from fastmtr.training.losses import MultiTaskLoss, in_batch_softmax

TASKS = (Task(name="click"), Task(name="buy", weight=3.0), Task(name="watch", kind="regression", weight=0.5))


def example() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    predictions = {
        "click": torch.tensor([0.3, -1.0]),
        "buy": torch.tensor([2.0, 0.0]),
        "watch": torch.tensor([1.0, 4.0]),
    }
    return predictions, torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]])


def bce(logits: list[float], labels: list[float]) -> float:
    each = [-math.log(1 / (1 + math.exp(-z if y else z))) for z, y in zip(logits, labels, strict=True)]
    return sum(each) / len(each)


def test_the_total_is_weighted_by_the_tasks() -> None:
    total, each = MultiTaskLoss(TASKS)(*example())
    click, buy, watch = bce([0.3, -1.0], [1, 0]), bce([2.0, 0.0], [0, 1]), (4 + 0) / 2
    assert each.tolist() == pytest.approx([click, buy, watch])
    assert total.item() == pytest.approx(click + 3 * buy + 0.5 * watch)


def test_uncertainty_weighting_follows_the_paper() -> None:
    loss = MultiTaskLoss(TASKS, weighting="uncertainty")
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.5, -1.0, 2.0]))
    total, (click, buy, watch) = loss(*example())
    by_hand = math.exp(-0.5) * click + 0.25 + 3 * (math.exp(1.0) * buy - 0.5) + 0.5 * (math.exp(-2.0) * watch / 2 + 1.0)
    assert total.item() == pytest.approx(float(by_hand))
    total.backward()
    assert (loss.log_variance.grad != 0).all()


def test_an_unknown_label_does_not_count() -> None:
    predictions, labels = example()
    predictions = {name: p.requires_grad_() for name, p in predictions.items()}
    labels[1, 0] = torch.nan
    labels[:, 2] = torch.nan
    total, each = MultiTaskLoss(TASKS)(predictions, labels)
    total.backward()
    assert each.tolist() == pytest.approx([bce([0.3], [1]), bce([2.0, 0.0], [0, 1]), 0.0])
    assert predictions["click"].grad[1] == 0
    assert (predictions["watch"].grad == 0).all()


def test_in_batch_softmax_by_hand() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    items = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    log_q = torch.tensor([0.5, 0.25, 0.5]).log()
    item_rows, user_rows = torch.tensor([4, 9, 4]), torch.tensor([0, 1, 2])
    found = in_batch_softmax(users, items, user_rows=user_rows, item_rows=item_rows, log_q=log_q, temperature=0.5)
    # rows 0 and 2 hold the same item: neither is the other's negative
    corrected = users @ items.T / 0.5 - log_q
    first = functional.cross_entropy(corrected[0, :2], torch.tensor(0))
    second = functional.cross_entropy(corrected[1], torch.tensor(1))
    third = functional.cross_entropy(corrected[2, 1:], torch.tensor(1))
    assert found.item() == pytest.approx(float(first + second + third) / 3)
    # the same user chose the items of rows 0 and 1: neither is the other's negative, and row 0 has none left
    found = in_batch_softmax(
        users, items, user_rows=torch.tensor([5, 5, 2]), item_rows=item_rows, log_q=log_q, temperature=0.5
    )
    second = functional.cross_entropy(corrected[1, 1:], torch.tensor(0))
    assert found.item() == pytest.approx(float(second + third) / 3)


def test_in_batch_softmax_of_nothing_is_zero_and_still_has_a_gradient() -> None:
    users, items = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0)
    loss = in_batch_softmax(users, items, user_rows=empty, item_rows=empty, log_q=empty)
    loss.backward()
    assert loss.item() == 0.0


def test_popular_negatives_are_corrected() -> None:
    """With logits that are right, the loss is least when popularity is taken out."""
    torch.manual_seed(0)
    q = torch.tensor([0.7, 0.1, 0.1, 0.1])
    rows = torch.multinomial(q, 4000, replacement=True)
    users = torch.ones(4000, 1)

    def scores_after_training(log_q: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(4, 1, requires_grad=True)
        optimizer = torch.optim.Adam([table], lr=0.05)
        for start in range(0, 4000, 50):
            batch = rows[start : start + 50]
            loss = in_batch_softmax(
                users[:50], table[batch], user_rows=torch.arange(50), item_rows=batch, log_q=log_q[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return table.detach().squeeze(1)

    corrected = scores_after_training(q.log())
    plain = scores_after_training(torch.zeros(4))
    assert (corrected[0] - corrected[1:].mean()) > (plain[0] - plain[1:].mean()) + 0.3
