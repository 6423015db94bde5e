"""The ranks of a run: one process a device, started by torchrun, or a single process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from video_gn.console import say
from video_gn.distributed.precision import conv3d_hazard
from video_gn.distributed.rendezvous import FIRST_SUM, HELP, Peers, deadline, facts_of, greeting
from video_gn.distributed.signals import Stop
from video_gn.errors import Preempted, UserError
from video_gn.limits import shortage

T = TypeVar("T")

COLLECTIVES = timedelta(minutes=30)
"""For any one collective. Long: the others wait while rank 0 checks lists, fetches weights or writes a checkpoint, and
for the slowest share of an evaluation. Whether a rank still lives is found out apart from it, in seconds (`Peers`)."""


@dataclass(frozen=True)
class World:
    """This process among its peers. Collectives are no-ops for a single process."""

    rank: int
    size: int
    device: torch.device
    peers: Peers | None = field(default=None, repr=False, compare=False)
    """How the ranks hear of each other apart from collectives."""

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
        """Return the values of all ranks, in rank order, on rank 0; elsewhere an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on every rank."""
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
        """Return on all ranks what `call` returns on rank 0; its UserError is raised on all."""
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

    def share(self, stop: Stop) -> None:
        """From now on, what asks one rank to stop asks all of them, a few seconds later and without a collective."""
        if self.peers is not None:
            self.peers.stop = stop

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace, in place, tensors of one dtype by their means over ranks, in one collective."""
        if self.size == 1:
            return
        everything = torch.cat([tensor.flatten() for tensor in tensors]) / self.size
        parts = self.sum(everything).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean_of_moments(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Replace, in place, means and variances of each rank by those of all ranks' data together (equal counts)."""
        for mean, variance in zip(means, variances, strict=True):
            mine = mean.clone()
            mean.copy_(self.sum(mean.clone()) / self.size)
            # Within ranks and between them; E[x^2] - E[x]^2 would cancel to nothing, or less.
            variance.copy_(self.sum(variance + (mine - mean) ** 2) / self.size)


@contextmanager
def world(device: str = "auto", settings: Mapping[str, Any] | None = None) -> Iterator[World]:
    """Join the process group that torchrun's environment variables describe, for the length of a `with`.

    Rank 0 tells who is there. A rank that is lost later ends all processes within a minute.

    Args:
        device: `auto` (a GPU where there is one), `cpu` or `cuda`.
        settings: the config, nested, which must be the same on all ranks.

    Raises:
        UserError: there is no such device; ranks did not come, or differ in settings, code, torch, NCCL or backend.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = _device(device)
    if place.type == "cuda" and rank == 0 and (hazard := conv3d_hazard(torch.__version__)):
        say(hazard)
    if size == 1 or dist.is_initialized():  # one within another shares the group
        yield World(rank, size, place)
        return
    peers = Peers(rank, size)
    ranks = World(rank, size, place, peers)
    backend = "nccl" if place.type == "cuda" else "gloo"
    everyone = peers.meet(facts_of(place, backend, settings or {}))
    with peers.watched():
        try:
            _connect(ranks, peers, backend)
            if ranks.is_main:
                say(greeting(everyone))
            yield ranks
        except Preempted:  # of all ranks together
            dist.destroy_process_group()
            raise
        except UserError as error:
            peers.tell(error)
            raise
        except RuntimeError as error:
            if problem := shortage(error):  # NCCL's, whose ranks exchange data through shared memory, too
                peers.tell(problem)
                raise problem from None
            if any(text in str(error) for text in ("Connection closed by peer", "Connection reset", "ncclRemoteError")):
                say(f"{peers.name}: another rank broke off; its own error, further up or on its host, is the cause")
                time.sleep(5)  # torchrun ends this one meanwhile: a traceback would bury that error
            raise
        # Not after an error: it breaks others off before the error is told, or waits for what they will never do.
        dist.destroy_process_group()


def _device(device: str) -> torch.device:
    """Return the device of this process."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this torch sees no GPU; set device=cpu or device=auto, or check the driver")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(f"local rank {local_rank} has no GPU of its own, this machine has {gpus}; start {gpus} a node")
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place


def _connect(ranks: World, peers: Peers, backend: str) -> None:
    """Open the process group and try it with a first all-reduce, which has a time-out of its own."""
    message = (
        f"{peers.name}: all {ranks.size} ranks are there, but their first all-reduce over {backend} did not end within "
        f"{FIRST_SUM:.0f} s: they do not reach each other's ports, or use the wrong network interface; {HELP}"
    )
    with deadline(FIRST_SUM, message):
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", peers.store), rank=ranks.rank, world_size=ranks.size,
            timeout=COLLECTIVES,
        )  # fmt: skip
        total = int(ranks.sum(torch.ones(1, device=ranks.device)))
    if total != ranks.size:
        raise RuntimeError(f"the first all-reduce of {ranks.size} ones gave {total}")
