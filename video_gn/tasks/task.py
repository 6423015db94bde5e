"""The seam between a task and everything else: how targets are read, which loss is minimized, how videos are scored.

Loop, test, curves, studies, reports and predictions ask a `Task` and know no labels, softmax or top-1 themselves. A
new task is one module with a class of this protocol and one line in `TASKS` (video_gn/tasks/__init__.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from video_gn.data.targets import BadTarget, Target
from video_gn.distributed.world import World

Interval = tuple[float, float]
"""The ends of a 95 % confidence interval, in percent."""


@dataclass(frozen=True)
class Figure:
    """A number that a task reports, in percent."""

    key: str
    """As in score files (top1) and, behind train/, epoch/train_ or val/, in the log (top1_error)."""
    name: str
    """What people call it."""
    higher_is_better: bool = True
    error: str | None = None
    """Key in the log of 100 minus it, where the log has that instead."""
    minimum_classes: int = 1
    """Fewest classes with which it says something."""


class Scored(NamedTuple):
    """The N videos that a test scored."""

    targets: list[Target]
    predicted: list[Target]
    scores: np.ndarray
    """float32 (N, K)."""


__all__ = ["BadTarget", "Figure", "Interval", "Metrics", "Scored", "Target", "Task", "percent"]


class Metrics(Protocol):
    """Running sums over clips; they stay on the device until they are read, and add over micro-batches and ranks."""

    state: Tensor
    """float64 sums, whose last element counts clips; checkpoints hold it."""

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor | None = None) -> None:
        """Add a micro-batch: logits (N, K), collated targets; `loss` is their mean where it is known already."""

    def reduce(self, world: World) -> None:
        """Add the other ranks' share, in place, on all ranks."""

    def compute(self) -> dict[str, float]:
        """Return `loss` and the task's percentages by key, NaN where they are undefined, and `clips`. A sync point."""


class Task(Protocol):
    """What a video's target is, how logits are compared with it, and how it all is called."""

    name: str
    num_classes: int
    monitored: Figure
    """What best.pt follows, as `Metrics.compute` gives it for the validation list."""
    training: tuple[str, ...]
    """Keys of `Metrics.compute` that are logged of training steps and epochs."""
    curves: tuple[tuple[str, str], ...]
    """(tag in log.jsonl, title of the axis) of what plots show against epochs: training, then validation."""
    scores: tuple[Figure, ...]
    """The numbers of a test, in the order of its table; the first is the one that a study compares."""
    by_class: Figure | None
    """What `evaluate_classes` gives of each class; None where the confusion matrix says it."""
    probability: str
    """What `probabilities` computes: softmax, sigmoid."""
    exclusive: bool
    """Whether exactly one label holds for each video, so that the best class is what is predicted."""

    def parse(self, text: str) -> Target:
        """Read a list's text of a target. Raises BadTarget."""

    def text(self, target: Target) -> str:
        """Return a target as lists and score files write it."""

    def collate(self, targets: Sequence[Target]) -> Tensor:
        """Return the targets of N clips as one tensor, of which row i is of clip i."""

    def soft(self, targets: Tensor) -> Tensor:
        """Return collated targets as float32 (N, K), which may be averaged (mixup, CutMix)."""

    def loss(self, logits: Tensor, targets: Tensor, *, training: bool) -> Tensor:
        """Return the mean loss of logits float32 (N, K) and collated or soft targets, a scalar.

        `training`: with what regularizes training only, such as label smoothing.
        """

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return scores in [0, 1] of logits (..., K), float32; the scores of a video's views and clips are averaged."""

    def metrics(self, device: torch.device) -> Metrics:
        """Return empty sums for training steps."""

    def validation(self, device: torch.device) -> Metrics:
        """Return empty metrics for a validation list; `compute` has the monitored number, too."""

    def describe(self, values: dict[str, float]) -> str:
        """Return what `Metrics.compute` gave as words for the console, such as `error 12.5 % (top-5 1.2 %)`."""

    def evaluate(self, scores: np.ndarray, targets: Sequence[Target]) -> dict[str, float]:
        """Return the numbers of a test by key: scores float32 (N, K) of N videos; NaN where undefined."""

    def evaluate_classes(self, scores: np.ndarray, targets: Sequence[Target]) -> list[float]:
        """Return `by_class` of each class, in percent, NaN where undefined; empty without `by_class`."""

    def intervals(self, values: Mapping[str, float | None], videos: int, scored: Scored | None) -> dict[str, Interval]:
        """Return 95 % confidence intervals by key.

        Args:
            values: what `evaluate` gave, None where undefined.
            videos: how many they are of.
            scored: these videos, where more is known than the values.
        """

    def confusion(self, targets: Sequence[Target], predicted: Sequence[Target]) -> np.ndarray | None:
        """Return counts int64 (K, K) by label and predicted label; None where a video may have several labels."""

    def predicted(self, scores: np.ndarray) -> str:
        """Return what scores (K,) say, as `text` writes it; ties go to the smaller label."""

    def confidence(self, scores: np.ndarray, target: Target) -> float:
        """Return how sure scores (K,) are of the target: the worst videos of a test come first by it."""


def percent(part: float, of: float) -> float:
    """Return 100 part / of; NaN of nothing."""
    return 100 * part / of if of else float("nan")
