"""Tasks against sums by hand, scikit-learn's average precision and literal targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.config import parse_config
from video_gn.distributed.world import World
from video_gn.errors import UserError
from video_gn.tasks import BadTarget, Scored, build_task
from video_gn.tasks.classification import Classification
from video_gn.tasks.multilabel import MultiLabel

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


# --- targets ---


@pytest.mark.parametrize(
    ("text", "target"), [("3;17;42", (3, 17, 42)), ("42;3", (3, 42)), ("0", (0,)), ("", ()), ("1 ; 2", (1, 2))]
)
def test_labels_joined_by_semicolons(text: str, target: tuple[int, ...]) -> None:
    assert MultiLabel(43).parse(text) == target


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3;3", "3 is given twice"),
        ("3;;4", "'' is not an integer"),
        ("43", "43 is outside 0 to 42"),
        ("a", "'a' is not"),
    ],
)
def test_bad_labels(text: str, words: str) -> None:
    with pytest.raises(BadTarget, match=words):
        MultiLabel(43).parse(text)


@given(st.sets(st.integers(0, 20)))
def test_text_is_read_back(labels: set[int]) -> None:
    task = MultiLabel(21)
    target = tuple(sorted(labels))
    assert task.parse(task.text(target)) == target
    assert torch.nonzero(task.collate([target])[0]).flatten().tolist() == sorted(labels)


def test_a_config_names_its_task() -> None:
    tree = {"output_dir": "x", "model": {"num_classes": 7}}
    task = build_task(parse_config(tree))
    assert isinstance(task, Classification) and task.label_smoothing == 0
    task = build_task(parse_config(tree, ["task=multilabel", "multilabel.threshold=0.3"]))
    assert isinstance(task, MultiLabel) and (task.num_classes, task.threshold) == (7, 0.3)
    task = build_task(parse_config(tree, ["classification.label_smoothing=0.1"]))
    assert isinstance(task, Classification) and (task.num_classes, task.label_smoothing) == (7, 0.1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=multi"], "task: Input should be 'classification' or 'multilabel'"),
        (["task=multilabel", "multilabel.threshold=1"], r"multilabel.threshold: .* less than 1 \(got 1\)"),
        (["multilabel.threshold=0.3"], "multilabel.threshold is an option of task multilabel, and task is classific"),
        (["task=multilabel", "classification.label_smoothing=0.1"], "classification.label_smoothing is an option"),
        (["task=multilabel", "data.kind=images", "data.frames=1"], "set task: classification"),
    ],
)
def test_options_of_another_task_are_mistakes(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_config({"output_dir": "x", "test": {"views": "center", "clips": 1}}, overrides)


# --- losses ---


def test_label_smoothing_by_its_definition_and_in_training_only() -> None:
    task = Classification(4, label_smoothing=0.2)
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    soft = F.one_hot(labels, 4) * 0.8 + 0.2 / 4
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.loss(logits, labels, training=True), expected)
    torch.testing.assert_close(
        task.loss(logits, labels, training=False), -logits.log_softmax(1)[range(3), labels].mean()
    )


def test_soft_targets_of_the_labels_themselves_change_nothing() -> None:
    for task, targets in ((Classification(5), [4, 0, 2]), (MultiLabel(5), [(1, 2), (), (0,)])):
        logits, collated = torch.randn(3, 5), task.collate(targets)
        plain, soft = task.metrics(CPU), task.metrics(CPU)
        plain.update(logits, collated)
        soft.update(logits, task.soft(collated))
        torch.testing.assert_close(plain.state, soft.state, rtol=1e-6, atol=1e-6)


def test_binary_cross_entropy_by_hand() -> None:
    logits, target = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert float(MultiLabel(2).loss(logits, target, training=True)) == pytest.approx(expected)


# --- metrics ---


def test_the_error_of_a_soft_target_is_what_the_predicted_class_lacks() -> None:
    metrics = Classification(3).metrics(CPU)
    metrics.update(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.3, 0.7, 0.0]]))
    assert metrics.compute()["top1_error"] == pytest.approx(70)


def test_label_errors_by_hand() -> None:
    metrics = MultiLabel(4).metrics(CPU)
    metrics.update(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]))  # one of four is wrong
    metrics.update(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    values = metrics.compute()
    assert (values["clips"], values["label_error"]) == (2, 37.5)


def test_average_precision_by_hand() -> None:
    """Class 0: positives ranked 1 and 3: (1 + 2/3) / 2. Class 1: its only positive is ranked 2. Class 2 has none."""
    pytest.importorskip("torchmetrics")
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.9, 0.5], [0.1, 0.8, 0.5]], np.float32)
    found = MultiLabel(3).evaluate(scores, [(0,), (), (0,), (1,)])
    assert found["map"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
def test_map_is_scikit_learns(seed: int, videos: int, classes: int) -> None:
    pytest.importorskip("torchmetrics")
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    scores = rng.random((videos, classes)).astype(np.float32)
    holds = rng.random((videos, classes)) < 0.3
    targets = [tuple(np.flatnonzero(row).tolist()) for row in holds]
    expected = [
        100 * metrics.average_precision_score(holds[:, k], scores[:, k]) for k in range(classes) if holds[:, k].any()
    ]
    found = MultiLabel(classes).evaluate(scores, targets)["map"]
    assert found == pytest.approx(np.mean(expected), abs=1e-3) if expected else math.isnan(found)


def test_validation_keeps_all_scores() -> None:
    """In two micro-batches as in one, which sums of average precisions would not give."""
    pytest.importorskip("torchmetrics")
    task = MultiLabel(2)
    logits, targets = torch.randn(6, 2), task.collate([(0,), (1,), (), (0, 1), (1,), ()])
    metrics = task.validation(CPU)
    metrics.update(logits[:4], targets[:4])
    metrics.update(logits[4:], targets[4:])
    metrics.reduce(ALONE)
    expected = task.evaluate(logits.sigmoid().numpy(), [(0,), (1,), (), (0, 1), (1,), ()])["map"]
    assert metrics.compute()["map"] == pytest.approx(expected)


def test_nothing_scored_is_undefined() -> None:
    for task in (Classification(3), MultiLabel(3)):
        values = task.validation(CPU).compute()
        assert values["clips"] == 0 and math.isnan(values[task.monitored.key])
        assert all(map(math.isnan, task.evaluate(np.empty((0, 3), np.float32), []).values()))


def test_average_precision_of_each_class() -> None:
    pytest.importorskip("torchmetrics")
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.9, 0.5], [0.1, 0.8, 0.5]], np.float32)
    found = MultiLabel(3).evaluate_classes(scores, [(0,), (), (0,), (1,)])
    assert found[:2] == pytest.approx([100 * 5 / 6, 50]) and math.isnan(found[2])


def test_the_interval_of_map_is_that_of_videos_drawn_anew() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    holds = rng.random((40, 3)) < 0.4
    scores = (rng.random((40, 3)) + 0.5 * holds).astype(np.float32)
    means = []
    for _ in range(1500):
        drawn = rng.integers(0, 40, 40)
        each = [metrics.average_precision_score(holds[drawn, k], scores[drawn, k]) for k in range(3)]
        means.append(100 * np.mean(each))
    targets = [tuple(np.flatnonzero(row).tolist()) for row in holds]
    found = MultiLabel(3).intervals({"map": 70.0}, 40, Scored(targets, targets, scores))
    assert found["map"] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=1.0)
    assert MultiLabel(3).intervals({"map": None}, 0, Scored([], [], np.empty((0, 3)))) == {}
    assert MultiLabel(3).intervals({"map": None}, 2, Scored([(), ()], [(), ()], np.zeros((2, 3)))) == {}


def test_confusion_is_counted_where_a_video_has_one_label() -> None:
    assert Classification(3).confusion([0, 0, 2], [0, 1, 2]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert MultiLabel(3).confusion([(0, 1)], [()]) is None


# --- words and predictions ---


def test_predictions_as_lists_write_them() -> None:
    scores = np.array([0.2, 0.7, 0.6], np.float32)
    assert Classification(3).predicted(scores) == "1"
    assert MultiLabel(3).predicted(scores) == "1;2"
    assert MultiLabel(3, threshold=0.9).predicted(scores) == ""


def test_confidence_is_lowest_for_the_worst_video() -> None:
    scores = np.array([0.2, 0.7, 0.6], np.float32)
    assert Classification(3).confidence(scores, 2) == pytest.approx(0.6)
    assert MultiLabel(3).confidence(scores, (0, 1)) == pytest.approx(0.2)
    assert MultiLabel(3).confidence(scores, (1,)) == pytest.approx(0.4)
