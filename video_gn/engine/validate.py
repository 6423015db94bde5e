"""The monitored number: one clip per video of the validation list."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from tqdm import tqdm

from video_gn.console import say
from video_gn.data.loader import DeviceBatches
from video_gn.distributed.signals import Stop
from video_gn.distributed.world import World
from video_gn.errors import Preempted
from video_gn.tasks import Task


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: DeviceBatches,
    task: Task,
    world: World,
    stop: Stop,
    *,
    autocast: Callable[[], AbstractContextManager],
    memory_format: torch.memory_format,
    quiet: bool | None,
) -> tuple[dict[str, float], int]:
    """Score this rank's share of the validation clips, on all ranks together.

    Returns:
        What the task's metrics compute over all ranks, and the number of videos that could not be read (each is named
        on the console).

    Raises:
        Preempted: a rank was asked to stop; on all ranks.
    """
    model.eval()
    metrics = task.validation(world.device)
    unreadable = 0
    for batch in tqdm(batches, "validating", len(batches), leave=False, disable=quiet):
        # A scheduler gives little time: what is left is not scored.
        if stop.requested:
            break
        # Evaluation never substitutes a video: one that cannot be read is named and missing.
        for error in (error for item in batch.items for error in item.unreadable):
            unreadable += 1
            say(f"validation video not scored: {error}")
        # The others are scored as they are, without gradients.
        if len(batch.targets):
            with autocast():
                logits = model(batch.clips.contiguous(memory_format=memory_format))
            metrics.update(logits, batch.targets)
    metrics.reduce(world)
    counts = torch.tensor([unreadable, stop.requested], device=world.device)
    unreadable, stopped = world.sum(counts).tolist()  # sync point: once per evaluation
    if stopped:
        raise Preempted
    return metrics.compute(), unreadable
