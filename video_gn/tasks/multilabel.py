"""Any number of labels per video: a sigmoid per class, binary cross-entropy, mean average precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from video_gn.data.targets import Target, parse_several, text_of
from video_gn.distributed.world import World
from video_gn.tasks.intervals import bootstrap_map
from video_gn.tasks.task import Figure, Interval, Scored, percent

NAN = float("nan")


class MultiLabel:
    """The task `multilabel`.

    A list's target is labels joined by `;` (`clip.mp4,3;17;42`), or nothing (`clip.mp4,`) for a video without any.

    Args:
        num_classes: K.
        threshold: score from which a label is predicted.
    """

    name = "multilabel"
    monitored = Figure("map", "mAP")
    training = ("loss", "label_error")
    curves = (("epoch/train_label_error", "training error of labels (%)"), ("val/map", "validation mAP, 1 clip (%)"))
    scores = (Figure("map", "mAP"),)
    by_class = Figure("average_precision", "average precision")
    probability = "sigmoid"
    exclusive = False

    def __init__(self, num_classes: int, *, threshold: float = 0.5) -> None:
        self.num_classes = num_classes
        self.threshold = threshold

    def parse(self, text: str) -> tuple[int, ...]:
        return parse_several(text, self.num_classes)

    def text(self, target: Target) -> str:
        return text_of(target)

    def collate(self, targets: Sequence[Target]) -> Tensor:
        """Label tuples -> float32 (N, K) of zeros and ones."""
        rows = torch.zeros(len(targets), self.num_classes)
        for row, labels in zip(rows, targets, strict=True):
            assert isinstance(labels, tuple)
            row[list(labels)] = 1
        return rows

    def soft(self, targets: Tensor) -> Tensor:
        return targets

    def loss(self, logits: Tensor, targets: Tensor, *, training: bool) -> Tensor:
        """Mean binary cross-entropy over clips and classes."""
        return F.binary_cross_entropy_with_logits(logits, targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoid of each class."""
        return logits.float().sigmoid()

    def metrics(self, device: torch.device) -> LabelErrors:
        return LabelErrors(self, device)

    def validation(self, device: torch.device) -> Precision:
        return Precision(self, device)

    def describe(self, values: dict[str, float]) -> str:
        error = f"label error {values['label_error']:.1f} %"
        return f"mAP {values['map']:.1f} %, {error}" if "map" in values else error

    def evaluate(self, scores: np.ndarray, targets: Sequence[Target]) -> dict[str, float]:
        """Mean over the classes with a positive video of average precision."""
        return {"map": _mean(torch.tensor(self.evaluate_classes(scores, targets)))}

    def evaluate_classes(self, scores: np.ndarray, targets: Sequence[Target]) -> list[float]:
        """Return the average precision of each class, NaN without a positive video."""
        return average_precisions(torch.from_numpy(scores), self.collate(targets)).tolist()

    def intervals(self, values: Mapping[str, float | None], videos: int, scored: Scored | None) -> dict[str, Interval]:
        """Return that of mAP, by a bootstrap over the videos."""
        if scored is None or not any(scored.targets):
            return {}
        return {"map": bootstrap_map(scored.scores, self.collate(scored.targets).numpy() > 0)}

    def confusion(self, targets: Sequence[Target], predicted: Sequence[Target]) -> None:
        return None

    def predicted(self, scores: np.ndarray) -> str:
        """All labels from `threshold` on, which may be none."""
        return self.text(tuple(np.flatnonzero(scores >= self.threshold).tolist()))

    def confidence(self, scores: np.ndarray, target: Target) -> float:
        """Return the least sure decision: the smallest score of a label that holds, 1 - the largest of the others."""
        assert isinstance(target, tuple)
        holds = self.collate([target])[0].numpy() > 0
        return float(np.where(holds, scores, 1 - scores).min())


class LabelErrors:
    """Sums of loss and of labels decided wrongly at the threshold, over clips.

    Where targets are soft, the error of a label is the distance of the decision from its target.
    """

    def __init__(self, task: MultiLabel, device: torch.device) -> None:
        self.task = task
        self.state = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor | None = None) -> None:
        """Add logits and targets (N, K)."""
        logits = logits.detach().float()
        if loss is None:
            loss = self.task.loss(logits, targets, training=False)
        count = len(targets)
        decided = (self.task.probabilities(logits) >= self.task.threshold).float()
        wrong = (decided - targets).abs().mean(1).sum().double()
        self.state += torch.stack([loss.detach().double() * count, wrong, torch.full_like(wrong, count)])

    def reduce(self, world: World) -> None:
        world.sum(self.state)

    def compute(self) -> dict[str, float]:
        loss, wrong, clips = self.state.tolist()  # sync point: waits for the device
        finite = clips > 0 and math.isfinite(loss)
        return {
            "loss": loss / clips if finite else NAN,
            "label_error": percent(wrong, clips) if finite else NAN,
            "clips": clips,
        }


class Precision(LabelErrors):
    """`LabelErrors`, and the scores themselves for mean average precision, which is not a sum."""

    def __init__(self, task: MultiLabel, device: torch.device) -> None:
        super().__init__(task, device)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor | None = None) -> None:
        super().update(logits, targets, loss)
        self.kept.append((self.task.probabilities(logits.detach()), targets))

    def reduce(self, world: World) -> None:
        super().reduce(world)
        mine = [(scores.cpu(), targets.cpu()) for scores, targets in self.kept]
        self.kept = [pair for share in world.all_gather(mine) for pair in share]

    def compute(self) -> dict[str, float]:
        values = super().compute()
        if not math.isfinite(values["loss"]):
            return {**values, "map": NAN}
        scores, targets = (torch.cat(parts).cpu() for parts in zip(*self.kept, strict=True))
        return {**values, "map": _mean(average_precisions(scores, targets))}


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each class in percent, float32 (K,), by torchmetrics.

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K) of zeros and ones. A class without a positive video has NaN.
    """
    from torchmetrics.functional.classification import binary_average_precision  # imports slowly

    return torch.stack(
        [
            100 * binary_average_precision(scores[:, k], targets[:, k].long())
            if targets[:, k].any()
            else torch.tensor(NAN)
            for k in range(scores.shape[1])
        ]
    )


def _mean(precisions: Tensor) -> float:
    return float(precisions.nanmean())
