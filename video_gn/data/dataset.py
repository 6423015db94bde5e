"""Records and frame indices become uint8 clips, in the worker processes. A video is decoded once for all its clips."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from video_gn.data.augment import Change
from video_gn.data.decode import CountCorrected, VideoError, VideoReader, open_video
from video_gn.data.images import ImageReader
from video_gn.data.lists import Record, video_path
from video_gn.data.sampling import (
    ORDER,
    TRAIN,
    VAL,
    Box,
    ClipSpec,
    Reading,
    View,
    clips_from,
    draw_clips,
    keyed_rng,
    uniform_clips,
)
from video_gn.data.targets import Target

T = TypeVar("T")
Plan = Callable[[VideoReader], tuple[Reading, T]]
"""Says what to read of an open video, and what the frames are for."""


@dataclass(frozen=True)
class Clips:
    """K clips of one video, as they leave a worker."""

    index: int
    """Of the video in its list."""
    target: Target
    frames: Tensor
    """uint8 (U, h, w, 3) RGB: each wanted frame once, cut to what the views enclose."""
    clip_indices: np.ndarray
    """int64 (K, T) into U."""
    views: list[View]
    unreadable: tuple[VideoError, ...] = field(default=())
    """Videos that could not be read on the way; `frames` is empty when none could."""
    changes: tuple[Change, ...] = ()
    """Augmentations, as drawn for these clips."""

    def pin_memory(self) -> Clips:
        """Return clips with page-locked frames, for an asynchronous copy to the GPU. The DataLoader calls this."""
        return replace(self, frames=self.frames.pin_memory())


class _Videos(Dataset[Clips]):
    """A list of videos under a root; with `decoder` "image", of images, which are videos of one frame."""

    quarantine: Mapping[str, str] = MappingProxyType({})
    """By path as in the list, why a video is not even opened: it counts as unreadable."""
    reading: np.ndarray | None = None
    """uint8: the path, as in the list, of the video in use, then zeros; a worker shares it with the main process."""

    def __init__(self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec) -> None:
        self.records = records
        self.root = root
        self.paths = [video_path(record, root) for record in records]
        self.decoder = decoder
        self.spec = spec

    def _open(self, index: int) -> VideoReader:
        record, path = self.records[index], self.paths[index]
        if record.path in self.quarantine:
            raise VideoError(path, f"in quarantine: {self.quarantine[record.path]}")
        if self.reading is not None:
            self._note(record.path)
        return open_file(path, self.decoder)

    def _read(self, index: int, plan: Plan[T], again: bool = True) -> tuple[Tensor, T]:
        """Read what `plan` wants of a video. Raises as `read_planned`."""
        try:
            return read_planned(partial(self._open, index), plan, again)
        finally:
            if self.reading is not None:
                self._note("")

    def _note(self, path: str) -> None:
        """Write down which video is in use; "" for none."""
        assert self.reading is not None
        name = np.frombuffer(os.fsencode(path)[: len(self.reading)], np.uint8)
        self.reading[: len(name)] = name
        self.reading[len(name) :] = 0

    def __len__(self) -> int:
        return len(self.records)

    def _random_clips(self, index: int, key: tuple[int, ...], numbers: Sequence[int] = (0,)) -> list[Clips]:
        """Return the clips of these numbers, of those that the key's generator draws in turn: one decode.

        Where reading proves the number of frames wrong, each clip is on its own, so that it does not depend on those
        that are read with it: if its own frames prove that, it is drawn again, from the same key and the right number.
        """
        plan = partial(draw_clips, spec=self.spec, key=key, numbers=numbers)
        try:
            frames, drawn = self._read(index, plan, again=len(numbers) == 1)
        except CountCorrected:
            if len(numbers) == 1:
                raise
            return [clips for number in numbers for clips in self._random_clips(index, key, [number])]
        packed = []
        for rows, indices, view, changes in drawn:
            # Its own frames, and its own rectangle of them.
            top, left, height, width = view.box
            own = torch.from_numpy(frames.numpy()[rows, top : top + height, left : left + width])
            views = [replace(view, box=(0, 0, height, width))]
            packed.append(Clips(index, self.records[index].target, own, indices, views, changes=changes))
        return packed

    def _nothing(self, index: int, errors: Sequence[VideoError]) -> Clips:
        empty = torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        no_clips = np.empty((0, self.spec.frames), dtype=np.int64)
        return Clips(index, self.records[index].target, empty, no_clips, [], tuple(errors))


class TrainClips(_Videos):
    """Random clips; a key is (epoch, position). Clips of one video that are fetched together are one decode.

    With k = `clips_per_video`, the positions j k ... j k + k - 1 of an epoch are k clips of one video, and k epochs go
    through one order of the N videos, of which epoch e takes part e mod k of k equal parts. So k epochs of M <= N
    positions (k divides M) meet M videos, each once and in k clips; the next k epochs leave out another N - M.

    Start, scale, crop and augmentations are drawn for each clip anew, as a function of (seed, e // k, video index, clip
    number) only, so another number of ranks or workers sees the same clips. A clip whose frames prove the video's
    number of frames wrong is drawn again, from the same key and the right number. An unreadable video's slot, with all
    its clips, goes to the next video in the order; after more than `max_unreadable` in a row the clips are empty.
    """

    def __init__(
        self,
        records: Sequence[Record],
        root: str,
        decoder: str,
        spec: ClipSpec,
        *,
        seed: int,
        max_unreadable: int,
        clips_per_video: int = 1,
    ) -> None:
        super().__init__(records, root, decoder, spec)
        self.seed = seed
        self.max_unreadable = max_unreadable
        self.clips_per_video = clips_per_video

    def __getitem__(self, key: tuple[int, int]) -> Clips:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Clips]:
        """Return the clips of a micro-batch: the DataLoader calls this, which sees a video's clips side by side."""
        k = self.clips_per_video
        runs = itertools.groupby(keys, lambda key: (key[0], key[1] // k))
        return [clip for run, group in runs for clip in self._run(*run, [position % k for _, position in group])]

    def _run(self, epoch: int, run: int, numbers: Sequence[int]) -> list[Clips]:
        """Return these clips, by number, of the epoch's video number `run`, or of the next one that can be read."""
        cycle, part = divmod(epoch, self.clips_per_video)
        order = epoch_order(len(self), self.seed, cycle)
        slot = part * (len(order) // self.clips_per_video) + run
        errors: list[VideoError] = []
        while len(errors) <= self.max_unreadable:
            index = int(order[(slot + len(errors)) % len(order)])
            try:
                first, *others = self._random_clips(index, (self.seed, TRAIN, cycle, index), numbers)
                return [replace(first, unreadable=tuple(errors)), *others]
            except VideoError as error:
                errors.append(error)
        index = int(order[slot])
        return [self._nothing(index, errors), *(self._nothing(index, ()) for _ in numbers[1:])]


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, position) of this rank's micro-batches, from `first_step` to `last_step`, over all epochs.

    A step takes the next `global_batch` positions of the epoch, in micro-batches of `clips_per_gpu`; number m goes to
    rank m mod ranks. So the same clips meet in a norm's batch whatever the number of ranks. The remainder of an
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


class ValClips(_Videos):
    """One clip per video with training augmentation, the same in every epoch: the monitored error of Figure 7."""

    def __init__(self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec, *, seed: int) -> None:
        super().__init__(records, root, decoder, spec)
        self.seed = seed

    def __getitem__(self, index: int) -> Clips:
        try:
            return self._random_clips(index, (self.seed, VAL, index))[0]
        except VideoError as error:
            return self._nothing(index, [error])


class TestClips(_Videos):
    """All test clips and views of a video, from one decode."""

    def __init__(
        self,
        records: Sequence[Record],
        root: str,
        decoder: str,
        spec: ClipSpec,
        *,
        views: str,
        clips: int,
        clip_starts: str,
        short_side: int,
    ) -> None:
        super().__init__(records, root, decoder, spec)
        self.plan = partial(
            uniform_clips, clips=clips, clip_starts=clip_starts, spec=spec, kind=views, short_side=short_side
        )

    def __getitem__(self, index: int) -> Clips:
        try:
            frames, clips = self._read(index, self.plan)
        except VideoError as error:
            return self._nothing(index, [error])
        return Clips(index, self.records[index].target, frames, clips.clip_indices, clips.views)


def open_file(path: str, decoder: str) -> VideoReader:
    """Open a video; with `decoder` "image", an image. Raises as `open_video`."""
    return ImageReader(path) if decoder == "image" else open_video(path, decoder)


def read_planned(open_reader: Callable[[], VideoReader], plan: Plan[T], again: bool = True) -> tuple[Tensor, T]:
    """Open a video, plan what to read of it, and read that.

    Where reading proves its number of frames wrong, `plan` is asked `again`, with the right one.

    Returns:
        The frames, uint8 (U, h, w, 3), and what the plan says of them.

    Raises:
        VideoError: it cannot be opened, or a frame not be read; CountCorrected, where not asked again.
    """
    with open_reader() as video:
        reading, what = plan(video)
        try:
            return video.read(*reading), what
        except CountCorrected:
            if not again:
                raise
        reading, what = plan(video)
        return video.read(*reading), what


def read_clips(
    video: VideoReader, starts: Sequence[int], spec: ClipSpec, kind: str, short_side: int
) -> tuple[Clips, Box]:
    """Read the clips from these frames on, in all evaluation views of a kind, in one decode.

    Returns:
        The clips, of no list (index and target 0), and the rectangle of the source frame that their views enclose.

    Raises:
        VideoError: a frame cannot be read.
    """
    reading, clips = clips_from(video, starts, spec, kind, short_side)
    return Clips(0, 0, video.read(*reading), clips.clip_indices, clips.views), clips.source


@functools.lru_cache(maxsize=2)
def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the videos in an epoch: a permutation that is a function of (seed, epoch)."""
    return keyed_rng(seed, ORDER, epoch).permutation(num_videos)
