"""Loaders with an exact split over ranks, and batches on the device."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from video_gn import limits
from video_gn.console import say
from video_gn.data.augment import network_input
from video_gn.data.dataset import Clips, TestClips, TrainBatches, TrainClips, ValClips
from video_gn.data.workers import Workers, naming_videos

TIMEOUT = 300.0  # seconds


@dataclass(frozen=True)
class Batch:
    """Clips on the device."""

    clips: Tensor
    """(N, 3, T, H, W), of images (N, 3, H, W), channels last in memory; empty when nothing could be read."""
    targets: Tensor
    """Of the N clips, as the task collates them; one clip and view per video."""
    items: list[Clips]
    """What the workers sent, unreadable videos included."""

    @property
    def indices(self) -> list[int]:
        """Return the videos' indices in their list."""
        return [item.index for item in self.items]


class Loader(DataLoader):
    """A DataLoader that knows which videos its workers have in use, so that `WorkerLost` can name them.

    Its workers end with this process, and with the iteration: at once by themselves, or killed after `workers.GRACE`.

    Raises:
        UserError: too little shared memory, or too few open files (also while iterated over).
    """

    def __init__(self, dataset: torch.utils.data.Dataset, workers: int, timeout: float, **options: Any) -> None:
        self.workers = Workers(workers)
        # Forked, whatever the default: a fork server and its workers outlived a killed run (tests/test_resume.py).
        context = "fork" if workers and sys.platform == "linux" else None
        super().__init__(
            dataset,
            num_workers=workers,
            timeout=timeout if workers else 0,
            multiprocessing_context=context,
            collate_fn=_share if workers else list,
            **options,
        )

    def __iter__(self) -> Iterator[list[Clips]]:  # type: ignore[override]
        self.worker_init_fn = self.workers.begin()
        space = limits.shared_memory()
        with naming_videos(starting=True):
            batches = super().__iter__()
        self.workers.processes = getattr(batches, "_workers", [])
        try:
            with naming_videos():
                for items in batches:
                    # Where a video could not be opened for want of open files, it is not to blame.
                    for item in items:
                        for error in item.unreadable if isinstance(item, Clips) else ():
                            if os.strerror(errno.EMFILE) in error.reason:
                                raise limits.shortage(error) or error
                    if space is not None and self.workers.processes:
                        self._compare(items, space)
                        space = None  # once, with the first batch
                    yield items
        finally:
            self.workers.end(batches)

    def _compare(self, items: list[Clips], space: limits.Space) -> None:
        """Warn, before the first step, where the batches that workers may prepare ahead do not fit in shared memory."""
        batch = sum(item.frames.untyped_storage().nbytes() for item in items if isinstance(item, Clips))
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        need = ranks * self.num_workers * (self.prefetch_factor or 0) * batch
        if need > space.free and os.environ.get("LOCAL_RANK", "0") == "0":
            say(
                f"warning: {limits.SHM} has {limits.size_text(space.free)} free, and the batches of {ranks} x "
                f"{self.num_workers} workers can take {limits.size_text(need)}; {limits.SHARED_MEMORY_REMEDY}"
            )


def _share(items: list[Clips]) -> list[Clips]:
    """Return a worker's batch with its frames in shared memory: not by torch, in a thread whose errors are lost.

    The clips differ in size until the device has resized them, so that they stay a list.

    Raises:
        UserError: there is too little shared memory.
    """
    try:
        for item in items:
            if isinstance(item, Clips):
                item.frames.share_memory_()
    except RuntimeError as error:
        raise limits.shortage(error) or error from None
    return items


def train_loader(
    dataset: TrainClips, batches: TrainBatches, workers: int, device: torch.device, timeout: float = TIMEOUT
) -> Loader:
    """Return the loader of this rank's training micro-batches; yields lists of `Clips`.

    Args:
        timeout: seconds that the caller waits for a batch before it takes the workers for hung.
    """
    return _loader(dataset, batches, workers, device, timeout)


def eval_loader(
    dataset: ValClips | TestClips,
    videos_per_batch: int,
    workers: int,
    device: torch.device,
    rank: int,
    ranks: int,
    timeout: float = TIMEOUT,
) -> Loader:
    """Loader of this rank's videos rank, rank + ranks, ...: each video on one rank, none twice."""
    mine = range(rank, len(dataset), ranks)
    batches = [list(mine[i : i + videos_per_batch]) for i in range(0, len(mine), videos_per_batch)]
    # A test video's frames are hundreds of MB: few wait in line. A validation batch is small.
    prefetch = 1 if isinstance(dataset, TestClips) else 2
    return _loader(dataset, batches, workers, device, timeout, prefetch)


def _loader(
    dataset: torch.utils.data.Dataset,
    batches: Iterable[list],
    workers: int,
    device: torch.device,
    timeout: float,
    prefetch: int = 2,
) -> Loader:
    return Loader(
        dataset,
        workers,
        timeout,
        batch_sampler=batches,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
    )


def collate_labels(labels: Sequence[int]) -> Tensor:
    """Return class labels as int64 (N,)."""
    return torch.tensor(labels, dtype=torch.int64)


class DeviceBatches:
    """Iterates over a loader's batches on the device, one ahead: on a GPU, copy and resize run on a side stream.

    `waited` is the time in seconds that the caller spent waiting for data.
    """

    def __init__(
        self,
        loader: Iterable[list[Clips]],
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        dims: int = 3,
        dtype: torch.dtype = torch.float32,
        collate: Callable[[Sequence[Any]], Tensor] = collate_labels,
    ) -> None:
        self.loader = loader
        self.dims = dims
        self.dtype = dtype
        self.device = device
        self.mean = mean
        self.std = std
        self.collate = collate
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        if self.device.type != "cuda":
            while (items := self._next(batches)) is not None:
                yield self._assemble(items)
            return
        stream = torch.cuda.Stream(self.device)
        ready = self._prefetch(batches, stream)
        while ready is not None:
            # The one after it is under way before the caller queues its work on this one: nothing there waits for it.
            following = self._prefetch(batches, stream)
            batch, rendered = ready
            main = torch.cuda.current_stream(self.device)
            main.wait_event(rendered)
            for tensor in (batch.clips, batch.targets):
                tensor.record_stream(main)
            yield batch
            ready = following

    def _prefetch(
        self, batches: Iterator[list[Clips]], stream: torch.cuda.Stream
    ) -> tuple[Batch, torch.cuda.Event] | None:
        """Return the next batch, which `stream` is rendering, and the event that it is rendered."""
        items = self._next(batches)
        if items is None:
            return None
        with torch.cuda.stream(stream):
            batch = self._assemble(items)
            return batch, stream.record_event()

    def _next(self, batches: Iterator[list[Clips]]) -> list[Clips] | None:
        begin = time.perf_counter()
        items = next(batches, None)
        self.waited += time.perf_counter() - begin
        return items

    def _assemble(self, items: list[Clips]) -> Batch:
        read = [item for item in items if item.views]
        options = (self.device, self.mean, self.std, self.dims, self.dtype)
        targets = self.collate([item.target for item in read]).to(self.device, non_blocking=True)
        clips: list[Tensor] = []
        for item in read:
            clips += network_input(item, *options)
        return Batch(torch.cat(clips) if clips else torch.empty(0, device=self.device), targets, items)
