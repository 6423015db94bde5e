"""Losses, errors and accuracies against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.tasks.classification import Classification, TopErrors, topk_hits

CPU = torch.device("cpu")


def metrics(classes: int = 10) -> TopErrors:
    return Classification(classes).metrics(CPU)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return Classification(scores.shape[1]).evaluate(scores, labels.tolist())


def ranked(places: list[int], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels: the label of row i is i mod `classes`, and has the `places[i]`-th best score (0: the best)."""
    labels = torch.arange(len(places)) % classes
    scores = torch.zeros(len(places), classes)
    for row, (label, place) in enumerate(zip(labels.tolist(), places, strict=True)):
        others = [-float(rank) for rank in range(classes) if rank != place]
        scores[row, label] = -float(place)
        scores[row, [c for c in range(classes) if c != label]] = torch.tensor(others)
    return scores, labels


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """-log softmax of each row's label, in Python's floats."""
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return [math.log(sum(math.exp(x) for x in row)) - row[label] for row, label in rows]


def test_meter_over_batches_of_different_sizes() -> None:
    meter = metrics()
    losses: list[float] = []
    for places in ([0, 4, 5], [1], [0, 0, 6, 9, 3, 2, 5]):  # 11 clips: 8 not the best, 4 not among the best 5
        logits, labels = ranked(places, 10)
        meter.update(logits, labels)
        losses += cross_entropy(logits, labels)
    averages = meter.compute()
    assert averages["clips"] == 11
    assert averages["loss"] == pytest.approx(sum(losses) / 11)
    assert averages["top1_error"] == pytest.approx(800 / 11)
    assert averages["top5_error"] == pytest.approx(400 / 11)


def test_a_known_loss_is_a_mean_over_its_batch() -> None:
    meter = metrics(6)
    for places, loss in (([0, 1, 0], 2.0), ([1], 6.0)):
        logits, labels = ranked(places, 6)
        meter.update(logits.requires_grad_(), labels, torch.tensor(loss, requires_grad=True))
    assert meter.compute() == {
        "loss": 3.0,
        "top1_error": 50.0,
        "top5_error": 0.0,
        "clips": 4,
    }
    assert not meter.state.requires_grad


def test_meter_takes_half_precision() -> None:
    meter = metrics()
    logits, labels = ranked([0, 1, 2, 3], 6)
    meter.update(logits.bfloat16(), labels)
    assert meter.compute()["loss"] == pytest.approx(sum(cross_entropy(logits, labels)) / 4)


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    """Ranks add their sums up: the four numbers must be additive."""
    parts = [ranked([0, 7], 8), ranked([1, 0, 5], 8)]
    meters = [metrics(), metrics(), metrics()]
    for meter, part in zip(meters, parts, strict=False):
        meter.update(*part)
        meters[2].update(*part)
    torch.testing.assert_close(meters[0].state + meters[1].state, meters[2].state)
    assert meters[2].state[1:].tolist() == [3, 2, 5]


def test_empty_meter() -> None:
    averages = metrics().compute()
    assert averages["clips"] == 0
    assert all(math.isnan(value) for value in (averages["loss"], averages["top1_error"], averages["top5_error"]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_no_error(bad: float) -> None:
    """Whose largest is class 0, as it happens."""
    meter = metrics()
    meter.update(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1]))
    meter.update(torch.tensor([[bad, bad, bad]]), torch.tensor([0]))
    averages = meter.compute()
    assert averages["clips"] == 2
    assert math.isnan(averages["top1_error"]) and math.isnan(averages["top5_error"])


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_up_to_five_classes_have_no_top5_error(classes: int) -> None:
    scores, labels = ranked([classes - 1] * 3, classes)
    best, among_five = topk_hits(scores, labels)
    assert best.tolist() == [classes == 1] * 3
    assert among_five.tolist() == [True] * 3


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6])
def test_up_to_five_classes_have_no_top5_figure(classes: int) -> None:
    """NaN here, null in log.jsonl and test_*.json, "-" in tables."""
    logits, labels = ranked([0] * 3, classes)
    meter = metrics(classes)
    meter.update(logits, labels)
    averages, result = meter.compute(), accuracy(logits.numpy(), labels.numpy())
    assert (averages["top1_error"], result["top1"]) == (0, 100)
    assert [math.isnan(value) for value in (averages["top5_error"], result["top5"])] == [classes < 6] * 2


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.integers(0, 11), min_size=1, max_size=20))
def test_hits_are_places(places: list[int]) -> None:
    best, among_five = topk_hits(*ranked(places, 12))
    assert best.tolist() == [place == 0 for place in places]
    assert among_five.tolist() == [place < 5 for place in places]


def test_accuracies_by_hand() -> None:
    """Class 0: 3 of 4 right; class 2: 0 of 1; class 6: 1 of 1; the classes without a video do not count."""
    scores = np.zeros((6, 7), np.float32)
    labels = np.array([0, 0, 0, 0, 2, 6])
    scores[[0, 1, 2], 0] = 1
    scores[3] = [1, 7, 6, 5, 4, 3, 2]  # label last: not among 5
    scores[4] = [5, 4, 3, 2, 1, 0, 0]  # label third
    scores[5, 6] = 0.1
    result = accuracy(scores, labels)
    assert result["top1"] == pytest.approx(400 / 6)
    assert result["top5"] == pytest.approx(500 / 6)
    assert result["mean_class_accuracy"] == pytest.approx((75 + 0 + 100) / 3)


def test_accuracy_of_nothing() -> None:
    result = accuracy(np.zeros((0, 5), np.float32), np.zeros(0, np.int64))
    assert all(math.isnan(value) for value in (result["top1"], result["top5"], result["mean_class_accuracy"]))
