"""Mixing the clips of a micro-batch and their targets: a stage of its own between the batch and the loss.

What is drawn is a function of the micro-batch's key (seed, step, position in the global batch), so that a resumed run
and one of another number of ranks or workers mix the same clips in the same shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from video_gn.data.sampling import Box


@dataclass(frozen=True)
class Mix:
    """Mix clip i of a micro-batch with clip i - `distance`, the last ones before the first."""

    share: float
    """Share of clip i in the result and in its target."""
    box: Box | None
    """CutMix: the rectangle that shows the other clip in all frames. None: mixup, an average of all pixels."""
    distance: int = 1

    def __call__(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed clips and targets as new tensors; no GPU is waited for.

        Args:
            clips: floating point (N, 3, *, H, W).
            targets: soft targets (N, K).
        """
        others = clips.roll(self.distance, 0)
        if self.box is None:
            mixed = clips.lerp(others, 1 - self.share)
        else:
            top, left, height, width = self.box
            mixed = clips.clone()
            mixed[..., top : top + height, left : left + width] = others[..., top : top + height, left : left + width]
        return mixed, targets.lerp(targets.roll(self.distance, 0), 1 - self.share)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899).

    Where both are on, each micro-batch has an even chance of either.
    """

    mixup: float = 0.0
    """Both parameters of the Beta distribution of a clip's share; 0: off."""
    cutmix: float = 0.0
    """The same for CutMix, of the share of the area."""
    distance: int = 1
    """From a clip to its partner: the clips per video, so that the partner is of another video."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Mix | None:
        """Draw how to mix a micro-batch of clips of `size` (height, width); None where both are off."""
        if not self.mixup and not self.cutmix:
            return None
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        if not cut:
            return Mix(share, None, self.distance)
        box = _random_box(*size, 1 - share, rng)
        # What the frame's border cut off belongs to the clip itself.
        return Mix(1 - box[2] * box[3] / (size[0] * size[1]), box, self.distance)


def _random_box(height: int, width: int, area: float, rng: np.random.Generator) -> Box:
    """Draw a rectangle of this share of the area, of the frame's shape, around a uniform center, and clip it."""
    half_height, half_width = (int(0.5 * area**0.5 * side) for side in (height, width))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(y - half_height, 0), max(x - half_width, 0)
    return top, left, min(y + half_height, height) - top, min(x + half_width, width) - left
