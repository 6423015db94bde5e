"""The ranks of a run: one process a device, started by torchrun, or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from video_gn.engine.writers import say
from video_gn.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers. Collectives are no-ops for a single process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on rank 0; elsewhere an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean_of_moments(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Replace, in place, means and variances of each rank by those of all ranks' data together (equal counts)."""
        for mean, variance in zip(means, variances, strict=True):
            mine = mean.clone()
            mean.copy_(self.sum(mean.clone()) / self.size)
            # Within ranks and between them; E[x^2] - E[x]^2 would cancel to nothing, or less.
            variance.copy_(self.sum(variance + (mine - mean) ** 2) / self.size)


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the process group that torchrun's environment variables describe, for the length of a `with`.

    Args:
        device: `auto` (a GPU where there is one), `cpu` or `cuda`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this torch sees no GPU; set device=cpu or device=auto, or check the driver")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device != "cpu" and torch.cuda.is_available():
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    if place.type == "cuda" and rank == 0 and (hazard := conv3d_hazard(torch.__version__)):
        say(hazard)
    if size > 1:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        if size > 1:
            dist.destroy_process_group()


def conv3d_hazard(version: str) -> str | None:
    """A warning for torch versions whose Conv3d is known to be bad on GPUs (pytorch #166122, #166643, #163539)."""
    if version.split(".")[:2] != ["2", "9"]:
        return None
    return (
        f"warning: torch {version} has a slow, memory-hungry Conv3d, wrong in bf16 with cuDNN below 9.15; "
        "use another torch version"
    )
