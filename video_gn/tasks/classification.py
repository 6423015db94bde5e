"""One label per video: softmax, cross-entropy, top-1 and top-5 (sections 4.1 and 4.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from video_gn.data.targets import Target, parse_one, text_of
from video_gn.distributed.world import World
from video_gn.tasks.intervals import bootstrap_mean_class, wilson
from video_gn.tasks.task import Figure, Interval, Scored

NAN = float("nan")
TOP5_CLASSES = 6
"""Fewest classes with a top-5 number: of five, the label is always among the best five."""


class Classification:
    """The task `classification`.

    Args:
        num_classes: K.
        label_smoothing: share of the training target that is spread evenly over all classes (Szegedy et al. 2016,
            section 7); validation and test use the labels as they are.
    """

    name = "classification"
    monitored = Figure("top1_error", "error", higher_is_better=False)
    training = ("loss", "top1_error")
    curves = (
        ("epoch/train_top1_error", "training error (%)"),
        ("val/top1_error", "validation error, 1 clip (%)"),
    )
    scores = (
        Figure("top1", "top-1", error="top1_error"),
        Figure("top5", "top-5", error="top5_error", minimum_classes=TOP5_CLASSES),
        Figure("mean_class_accuracy", "mean class accuracy"),
    )
    by_class = None
    probability = "softmax"
    exclusive = True

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0) -> None:
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def parse(self, text: str) -> int:
        return parse_one(text, self.num_classes)

    def text(self, target: Target) -> str:
        return text_of(target)

    def collate(self, targets: Sequence[Target]) -> Tensor:
        """Labels -> int64 (N,)."""
        return torch.tensor(targets, dtype=torch.int64)

    def soft(self, targets: Tensor) -> Tensor:
        """int64 (N,) -> one-hot float32 (N, K)."""
        return F.one_hot(targets, self.num_classes).float()

    def loss(self, logits: Tensor, targets: Tensor, *, training: bool) -> Tensor:
        """Mean cross-entropy of logits (N, K) with labels (N,) or soft targets (N, K)."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing if training else 0.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax."""
        return logits.float().softmax(-1)

    def metrics(self, device: torch.device) -> TopErrors:
        return TopErrors(self, device)

    def validation(self, device: torch.device) -> TopErrors:
        return TopErrors(self, device)

    def describe(self, values: dict[str, float]) -> str:
        if "top5_error" not in values:
            return f"error {values['top1_error']:.1f} %"
        top5 = "-" if math.isnan(values["top5_error"]) else f"{values['top5_error']:.1f} %"
        return f"error {values['top1_error']:.1f} % (top-5 {top5})"

    def evaluate(self, scores: np.ndarray, targets: Sequence[Target]) -> dict[str, float]:
        """Return top-1, top-5 and mean class accuracy: the mean over the classes that occur of the class's own top-1.

        Top-5 is NaN with fewer than TOP5_CLASSES classes.
        """
        if not len(targets):
            return {figure.key: NAN for figure in self.scores}
        labels = np.array(targets, dtype=np.int64)
        hit1, hit5 = (hits.numpy() for hits in topk_hits(torch.from_numpy(scores), torch.from_numpy(labels)))
        classes = [hit1[labels == label].mean() for label in np.unique(labels)]
        return {
            "top1": 100 * float(hit1.mean()),
            "top5": 100 * float(hit5.mean()) if scores.shape[1] >= TOP5_CLASSES else NAN,
            "mean_class_accuracy": 100 * float(np.mean(classes)),
        }

    def evaluate_classes(self, scores: np.ndarray, targets: Sequence[Target]) -> list[float]:
        return []

    def intervals(self, values: Mapping[str, float | None], videos: int, scored: Scored | None) -> dict[str, Interval]:
        """Return Wilson's of top-1 and top-5; of mean class accuracy a bootstrap over the videos of each class."""
        shares = {key: values.get(key) for key in ("top1", "top5")}
        found = {key: wilson(round(v * videos / 100), videos) for key, v in shares.items() if v is not None and videos}
        if scored is not None and scored.targets:
            found["mean_class_accuracy"] = bootstrap_mean_class(self.confusion(scored.targets, scored.predicted))
        return found

    def confusion(self, targets: Sequence[Target], predicted: Sequence[Target]) -> np.ndarray:
        matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        np.add.at(matrix, (np.array(targets, dtype=np.int64), np.array(predicted, dtype=np.int64)), 1)
        return matrix

    def predicted(self, scores: np.ndarray) -> str:
        return str(int(scores.argmax()))

    def confidence(self, scores: np.ndarray, target: Target) -> float:
        assert isinstance(target, int)
        return float(scores[target])


class TopErrors:
    """Sums of loss, top-1 errors and top-5 errors over clips.

    Where targets are soft, the error of a clip is 1 minus its target's share of the predicted class (or 5 classes).
    """

    def __init__(self, task: Classification, device: torch.device) -> None:
        self.task = task
        self.state = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor | None = None) -> None:
        """Add logits (N, K) and labels (N,) or soft targets (N, K)."""
        logits = logits.detach().float()
        if loss is None:
            loss = self.task.loss(logits, targets, training=False)
        count = len(targets)
        if targets.dim() == 1:
            wrong = [count - hits.sum() for hits in topk_hits(logits, targets)]
        else:
            shares = targets.gather(1, logits.topk(min(5, logits.shape[1]), dim=1).indices).double()
            wrong = [count - shares[:, 0].sum(), count - shares.sum()]
        self.state += torch.stack([loss.detach().double() * count, *wrong, torch.full_like(wrong[0], count)])

    def reduce(self, world: World) -> None:
        world.sum(self.state)

    def compute(self) -> dict[str, float]:
        loss, wrong1, wrong5, clips = self.state.tolist()  # sync point: waits for the device
        if clips == 0 or not math.isfinite(loss):  # logits that are not finite have no best class
            return {"loss": NAN, "top1_error": NAN, "top5_error": NAN, "clips": clips}
        top5 = 100 * wrong5 / clips if self.task.num_classes >= TOP5_CLASSES else NAN
        errors = {"top1_error": 100 * wrong1 / clips, "top5_error": top5}
        return {"loss": loss / clips, **errors, "clips": clips}


def topk_hits(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether the label is the best, and among the best 5 classes: bool (N,) each, of scores (N, K)."""
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return top[:, 0], top.any(1)
