"""Errors and accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOP5_CLASSES = 6
"""Fewest classes with a top-5 figure: of five, the label is always among the best five."""


class Meter:
    """Sums of loss, top-1 and top-5 errors over clips; stays on the device until it is read."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1 errors, top-5 errors, clips

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch: logits (N, K), labels (N,); `loss` is their mean cross-entropy if it is already known."""
        logits = logits.detach().float()
        if loss is None:
            loss = F.cross_entropy(logits, labels)
        count = len(labels)
        wrong1, wrong5 = (count - hits.sum() for hits in topk_hits(logits, labels))
        if logits.shape[1] < TOP5_CLASSES:
            wrong5 = torch.full_like(loss.detach(), math.nan)
        self.sums += torch.stack([loss.detach().double() * count, wrong1, wrong5, torch.full_like(wrong1, count)])


@dataclass(frozen=True)
class Averages:
    """What a `Meter` says: mean cross-entropy, errors in percent, number of clips.

    All but the number are NaN if the loss is not finite; the top-5 error is with fewer than TOP5_CLASSES.
    """

    loss: float
    top1_error: float
    top5_error: float
    clips: int

    @classmethod
    def of(cls, sums: Tensor) -> Averages:
        loss, wrong1, wrong5, clips = sums.tolist()  # sync point: waits for the device
        if clips == 0 or not math.isfinite(loss):  # logits that are not finite have no best class
            return cls(float("nan"), float("nan"), float("nan"), int(clips))
        return cls(loss / clips, 100 * wrong1 / clips, 100 * wrong5 / clips, int(clips))


def topk_hits(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the label is the best, and among the best 5 classes: two bool tensors (N,) of scores (N, K)."""
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return top[:, 0], top.any(1)


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in per cent."""

    top1: float
    top5: float
    mean_class: float
    """Mean over the classes that occur of the class's own top-1."""


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracies of scores (N, K) against labels (N,); NaN without videos, top-5 with K < TOP5_CLASSES, too."""
    if len(labels) == 0:
        return Accuracy(float("nan"), float("nan"), float("nan"))
    hit1, hit5 = (hits.numpy() for hits in topk_hits(torch.from_numpy(scores), torch.from_numpy(labels)))
    classes = [hit1[labels == label].mean() for label in np.unique(labels)]
    top5 = 100 * float(hit5.mean()) if scores.shape[1] >= TOP5_CLASSES else math.nan
    return Accuracy(100 * float(hit1.mean()), top5, 100 * float(np.mean(classes)))
