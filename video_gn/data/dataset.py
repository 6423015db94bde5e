"""Records and frame indices become uint8 clips, in the worker processes. A video is decoded once for all its clips."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from video_gn.data.augment import (
    Augmentation,
    Box,
    Change,
    View,
    area_reduction,
    cut,
    draw_changes,
    eval_views,
    random_area_view,
    random_view,
    reduction,
    scaled,
)
from video_gn.data.decode import CountCorrected, VideoError, VideoReader, open_video
from video_gn.data.images import ImageReader
from video_gn.data.lists import Record, video_path
from video_gn.data.sampling import clip_indices, keyed_rng, random_start, uniform_starts
from video_gn.data.targets import Target

TRAIN, VAL, ORDER, DROPOUT, MIXING = range(5)  # streams of random numbers, so that no two draws share a key


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
        """Called by the DataLoader: page-locked frames, for an asynchronous copy to the GPU."""
        return replace(self, frames=self.frames.pin_memory())


@dataclass(frozen=True)
class ClipSpec:
    """How clips are cut (the `data` section of the config explains each value)."""

    frames: int
    stride: int
    crop: int
    short_side: tuple[int, int]
    augmentations: tuple[Augmentation, ...] = ()
    area: tuple[float, float] | None = None


class _Videos(Dataset[Clips]):
    """A list of videos under a root; with `decoder` "image", of images, which are videos of one frame."""

    quarantine: Mapping[str, str] = MappingProxyType({})
    """By path as in the list, why a video is not even opened: it counts as unreadable."""
    reading: np.ndarray | None = None
    """uint8: the path, as in the list, of the video in use, then zeros; a worker shares it with the main process."""

    def __init__(self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec) -> None:
        self.records = records
        self.root = root
        self.decoder = decoder
        self.spec = spec

    @contextmanager
    def _open(self, index: int) -> Iterator[VideoReader]:
        record = self.records[index]
        path = video_path(record, self.root)
        if record.path in self.quarantine:
            raise VideoError(path, f"in quarantine: {self.quarantine[record.path]}")
        self._note(record.path)
        try:
            with open_file(path, self.decoder) as video:
                yield video
        finally:
            self._note("")

    def _note(self, path: str) -> None:
        if self.reading is not None:
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
        with self._open(index) as video:
            try:
                return self._read_random(video, index, key, numbers)
            except CountCorrected:
                if len(numbers) == 1:
                    return self._read_random(video, index, key, numbers)
        return [clips for number in numbers for clips in self._random_clips(index, key, [number])]

    def _read_random(self, video: VideoReader, index: int, key: tuple[int, ...], numbers: Sequence[int]) -> list[Clips]:
        rng = keyed_rng(*key)
        drawn = [self._draw(video, rng) for _ in range(max(numbers) + 1)]
        chosen = [drawn[number] for number in numbers]
        wanted = np.unique([indices for indices, _, _ in chosen])
        frames, views, _ = _read(video, wanted.tolist(), [view for _, view, _ in chosen], self._reduction(video))
        target = self.records[index].target
        return [
            Clips(index, target, *_part(frames.numpy(), wanted, indices, view), changes=changes)
            for (indices, _, changes), view in zip(chosen, views, strict=True)
        ]

    def _draw(self, video: VideoReader, rng: np.random.Generator) -> tuple[list[int], View, tuple[Change, ...]]:
        """Draw frames, view and augmentations of a random clip."""
        spec = self.spec
        start = random_start(video.num_frames, spec.frames, spec.stride, rng)
        if spec.area is None:
            view = random_view(video.height, video.width, spec.crop, spec.short_side, rng)
        else:
            view = random_area_view(video.height, video.width, spec.crop, spec.area, rng)
        changes = draw_changes(spec.augmentations, rng, (view.height, view.width))
        return clip_indices(start, spec.frames, spec.stride, video.num_frames), view, changes

    def _reduction(self, video: VideoReader) -> int:
        """Of the frames in training: for the largest scale that may be drawn, so that all clips of a video share it."""
        if isinstance(video, ImageReader):
            return 1  # it shrinks by itself
        if self.spec.area is None:
            return reduction(video.height, video.width, self.spec.short_side[1])
        return area_reduction(video.height, video.width, self.spec.crop, self.spec.area)

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
        """The clips of a forward pass: the DataLoader calls this, which sees the clips of one video side by side."""
        k = self.clips_per_video
        runs = itertools.groupby(keys, lambda key: (key[0], key[1] // k))
        return [clip for run, group in runs for clip in self._run(*run, [position % k for _, position in group])]

    def _run(self, epoch: int, run: int, numbers: Sequence[int]) -> list[Clips]:
        """The clips of these numbers of the epoch's video number `run`, or of the next one that can be read."""
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


class ValClips(_Videos):
    """One clip a video with training augmentation, the same in every epoch: the monitored error of Figure 7."""

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
        self.views = views
        self.clips = clips
        self.clip_starts = clip_starts
        self.short_side = short_side

    def __getitem__(self, index: int) -> Clips:
        try:
            with self._open(index) as video:
                clips = read_uniform_clips(video, self.clips, self.clip_starts, self.spec, self.views, self.short_side)
        except VideoError as error:
            return self._nothing(index, [error])
        return replace(clips, index=index, target=self.records[index].target)


def open_file(path: str, decoder: str) -> VideoReader:
    """Open a video; with `decoder` "image", an image. Raises as `open_video`."""
    return ImageReader(path) if decoder == "image" else open_video(path, decoder)


def read_uniform_clips(
    video: VideoReader, clips: int, clip_starts: str, spec: ClipSpec, kind: str, short_side: int
) -> Clips:
    """Read the test clips of a video; where reading proves its number of frames wrong, those of the right number.

    Raises VideoError where a frame cannot be read.
    """

    def read() -> Clips:
        starts = uniform_starts(video.num_frames, spec.frames, spec.stride, clips, clip_starts)
        return read_clips(video, starts, spec, kind, short_side)[0]

    try:
        return read()
    except CountCorrected:
        return read()


def read_clips(
    video: VideoReader, starts: Sequence[int], spec: ClipSpec, kind: str, short_side: int
) -> tuple[Clips, Box]:
    """Clips from these frames on, in all evaluation views of a kind, from one decode.

    Returns:
        The clips, of no list (index and target 0), and the rectangle of the source frame that their views enclose.

    Raises:
        VideoError: a frame cannot be read.
    """
    indices = [clip_indices(start, spec.frames, spec.stride, video.num_frames) for start in starts]
    unique, positions = np.unique(indices, return_inverse=True)
    k = 1 if isinstance(video, ImageReader) else reduction(video.height, video.width, short_side)
    views = eval_views(kind, video.height, video.width, spec.crop, short_side)
    frames, views, box = _read(video, unique.tolist(), views, k)
    return Clips(0, 0, frames, positions.reshape(len(starts), -1), views), box


def _read(video: VideoReader, indices: list[int], views: list[View], k: int) -> tuple[Tensor, list[View], Box]:
    """Read frames, cut to what the views enclose and reduced by k.

    Returns:
        The frames; the views relative to them; the rectangle of the source frame that the views enclose.
    """
    if isinstance(video, ImageReader):
        views = video.shrink(views)
    source, _ = cut(views)
    box, views = cut([scaled(view, 1 / k, 1 / k) for view in views])
    return video.read(indices, box, k) if k > 1 else video.read(indices, box), views, source


def _part(
    frames: np.ndarray, numbers: np.ndarray, wanted: list[int], view: View
) -> tuple[Tensor, np.ndarray, list[View]]:
    """Of decoded frames and their sorted numbers what one clip wants: the first fields of `Clips` from `frames` on."""
    unique, positions = np.unique(wanted, return_inverse=True)
    (top, left, height, width), views = cut([view])
    rows = np.searchsorted(numbers, unique)
    part = torch.from_numpy(frames[rows, top : top + height, left : left + width])
    return part, positions.reshape(1, -1), views


@functools.lru_cache(maxsize=2)
def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the videos in an epoch: a permutation that is a function of (seed, epoch)."""
    return keyed_rng(seed, ORDER, epoch).permutation(num_videos)
