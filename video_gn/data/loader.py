"""Workers, the exact split over ranks, and batches on the device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from video_gn.data.augment import gather_clips, render
from video_gn.data.dataset import Clips, TestClips, TrainClips, ValClips


@dataclass(frozen=True)
class Batch:
    """Clips on the device."""

    clips: Tensor
    """(N, 3, T, H, W), of images (N, 3, H, W), channels last in memory; empty when nothing could be read."""
    labels: Tensor
    """int64 (N,): one clip and view a video."""
    items: list[Clips]
    """What the workers sent, unreadable videos included."""


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, position) of this rank's forward passes, from `first_step` to `last_step`, over all epochs.

    A step takes the next `global_batch` positions of the epoch, cut into passes of `clips_per_gpu`; pass m goes
    to rank m mod ranks. So the same clips meet in a norm's batch whatever the number of ranks. The remainder of an
    epoch that fills no global batch is left out.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        first_step: int,
        last_step: int,
        *,
        clips_per_gpu: int,
        global_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.steps = range(first_step, last_step)
        self.clips_per_gpu = clips_per_gpu
        self.global_batch = global_batch
        self.passes = range(rank, global_batch // clips_per_gpu, ranks)

    def __len__(self) -> int:
        return len(self.steps) * len(self.passes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            for index in self.passes:
                first = step_of_epoch * self.global_batch + index * self.clips_per_gpu
                yield [(epoch, position) for position in range(first, first + self.clips_per_gpu)]


def train_loader(dataset: TrainClips, batches: TrainBatches, workers: int, device: torch.device) -> DataLoader[Clips]:
    """Loader of this rank's training passes; yields lists of `Clips`."""
    return _loader(dataset, batches, workers, device)


def eval_loader(
    dataset: ValClips | TestClips, videos_per_batch: int, workers: int, device: torch.device, rank: int, ranks: int
) -> DataLoader[Clips]:
    """Loader of this rank's videos rank, rank + ranks, ...: each video on one rank, none twice."""
    mine = range(rank, len(dataset), ranks)
    batches = [list(mine[i : i + videos_per_batch]) for i in range(0, len(mine), videos_per_batch)]
    # A test video's frames are hundreds of MB: few wait in line. A validation batch is small.
    prefetch = 1 if isinstance(dataset, TestClips) else 2
    return _loader(dataset, batches, workers, device, prefetch)


def _loader(
    dataset: torch.utils.data.Dataset, batches: Iterable[list], workers: int, device: torch.device, prefetch: int = 2
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=list,  # clips differ in size until the device has resized them
        pin_memory=device.type == "cuda",
    )


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
    ) -> None:
        self.loader = loader
        self.dims = dims
        self.dtype = dtype
        self.device = device
        self.mean = mean
        self.std = std
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        if self.device.type != "cuda":
            while (items := self._next(batches)) is not None:
                yield self._assemble(items)
            return
        stream = torch.cuda.Stream(self.device)
        ready = self._prefetch(batches, stream)
        while ready is not None:
            torch.cuda.current_stream(self.device).wait_stream(stream)
            for tensor in (ready.clips, ready.labels):
                tensor.record_stream(torch.cuda.current_stream(self.device))
            yield ready  # the caller queues its work on the GPU; the next batch is made beside it
            ready = self._prefetch(batches, stream)

    def _prefetch(self, batches: Iterator[list[Clips]], stream: torch.cuda.Stream) -> Batch | None:
        items = self._next(batches)
        if items is None:
            return None
        with torch.cuda.stream(stream):
            return self._assemble(items)

    def _next(self, batches: Iterator[list[Clips]]) -> list[Clips] | None:
        begin = time.perf_counter()
        items = next(batches, None)
        self.waited += time.perf_counter() - begin
        return items

    def _assemble(self, items: list[Clips]) -> Batch:
        read = [item for item in items if item.views]
        clips = [self._clips(item) for item in read]
        labels = torch.tensor([item.label for item in read], dtype=torch.int64).to(self.device, non_blocking=True)
        return Batch(torch.cat(clips) if clips else torch.empty(0, device=self.device), labels, items)

    def _clips(self, item: Clips) -> Tensor:
        frames = render(
            item.frames.to(self.device, non_blocking=True), item.views, self.mean, self.std, item.colour, self.dtype
        )
        clips = gather_clips(frames, torch.from_numpy(item.clip_indices).to(self.device, non_blocking=True))
        return clips if self.dims == 3 else clips.squeeze(2)
