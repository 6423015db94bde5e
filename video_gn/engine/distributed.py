"""The ranks of a run: one process a device, started by torchrun, or a single process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from video_gn.console import say
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

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def first(self, call: Callable[[], T]) -> T:
        """What `call` returns on rank 0, on all ranks; its UserError is raised on all."""
        value: T | None = None
        problem: str | None = None
        if self.is_main:
            try:
                value = call()
            except UserError as error:
                problem = str(error)
        value, problem = self.broadcast((value, problem))
        if problem is not None:
            raise UserError(problem)
        return value  # type: ignore[return-value]

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
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"local rank {local_rank} has no GPU of its own, this machine has {gpus}; start {gpus} a node"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    if place.type == "cuda" and rank == 0 and (hazard := conv3d_hazard(torch.__version__)):
        say(hazard)
    opens = size > 1 and not dist.is_initialized()  # one within another shares the group
    if opens:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        if opens:
            dist.destroy_process_group()


def share_cores(device: torch.device, workers: int) -> None:
    """On a CPU, leave cores to the decoding processes: threads that fight over a core slow each other many times over.

    OMP_NUM_THREADS, if set, stands.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, cores - min(workers, cores // 2)))


def autocast(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """A callable that gives the context of a forward pass in `precision`."""
    enabled = autocast_dtype(precision, device) == torch.bfloat16
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What `precision` (`auto`, `fp32`, `bf16`) means on a device: `auto` is bf16 on GPUs that compute in it."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16 = precision == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def conv3d_hazard(version: str) -> str | None:
    """A warning for torch versions whose Conv3d is known to be bad on GPUs (pytorch #166122, #166643, #163539)."""
    if version.split(".")[:2] != ["2", "9"]:
        return None
    return (
        f"warning: torch {version} has a slow, memory-hungry Conv3d, wrong in bf16 with cuDNN below 9.15; "
        "use another torch version"
    )
