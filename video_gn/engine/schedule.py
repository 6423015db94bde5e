"""The learning rate as a pure function of the epoch."""

from __future__ import annotations

import math

from video_gn.config import OptimConfig


def lr_factor(optim: OptimConfig, epoch: float, epochs: float) -> float:
    """Return what the base learning rate is multiplied by at a fractional epoch of a run of `epochs`.

    `steps`: times `decay` at each milestone reached. `cosine`: from 1 to 0. During the warm-up the result rises
    linearly from `warmup_start` times to once the schedule's own value.
    """
    if optim.schedule == "steps":
        factor = optim.decay ** sum(epoch >= milestone for milestone in optim.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if epoch < optim.warmup_epochs:
        factor *= optim.warmup_start + (1 - optim.warmup_start) * epoch / optim.warmup_epochs
    return factor
