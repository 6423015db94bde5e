"""Records and frame indices become uint8 clips, in the worker processes. A video is decoded once for all its clips."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from video_gn.data.augment import Colour, View, cut, eval_views, random_area_view, random_colour, random_view
from video_gn.data.decode import VideoError, VideoReader, open_video
from video_gn.data.images import ImageReader
from video_gn.data.lists import Record, video_path
from video_gn.data.sampling import clip_indices, keyed_rng, random_start, uniform_starts

TRAIN, VAL, ORDER, DROPOUT = range(4)  # streams of random numbers, so that no two draws share a key


@dataclass(frozen=True)
class Clips:
    """K clips of one video, as they leave a worker."""

    index: int
    """Of the video in its list."""
    label: int
    frames: Tensor
    """uint8 (U, h, w, 3) RGB: each wanted frame once, cut to what the views enclose."""
    clip_indices: np.ndarray
    """int64 (K, T) into U."""
    views: list[View]
    unreadable: tuple[VideoError, ...] = field(default=())
    """Videos that could not be read on the way; `frames` is empty when none could."""
    colour: Colour | None = None

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
    flip: float
    area: tuple[float, float] | None = None
    colour_jitter: float = 0.0
    lighting: float = 0.0


class _Videos(Dataset[Clips]):
    """A list of videos under a root; with `decoder` "image", of images, which are videos of one frame."""

    def __init__(self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec) -> None:
        self.records = records
        self.root = root
        self.decoder = decoder
        self.spec = spec

    def _open(self, index: int) -> VideoReader:
        path = video_path(self.records[index], self.root)
        return ImageReader(path) if self.decoder == "image" else open_video(path, self.decoder)

    def __len__(self) -> int:
        return len(self.records)

    def _random_clip(self, index: int, rng: np.random.Generator) -> Clips:
        """One clip with training augmentation."""
        spec = self.spec
        with self._open(index) as video:
            start = random_start(video.num_frames, spec.frames, spec.stride, rng)
            if spec.area is None:
                view = random_view(video.height, video.width, spec.crop, spec.short_side, spec.flip, rng)
            else:
                view = random_area_view(video.height, video.width, spec.crop, spec.area, spec.flip, rng)
            colour = random_colour(spec.colour_jitter, spec.lighting, rng)
            indices = clip_indices(start, spec.frames, spec.stride, video.num_frames)
            unique, positions = np.unique(indices, return_inverse=True)
            frames, views = _read(video, unique.tolist(), [view])
        return Clips(index, self.records[index].label, frames, positions.reshape(1, -1), views, colour=colour)

    def _nothing(self, index: int, errors: Sequence[VideoError]) -> Clips:
        empty = torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        no_clips = np.empty((0, self.spec.frames), dtype=np.int64)
        return Clips(index, self.records[index].label, empty, no_clips, [], tuple(errors))


class TrainClips(_Videos):
    """One random clip of the video at a position of an epoch's order; keys are (epoch, position).

    Start, scale, crop and flip are a function of (seed, epoch, video index) alone, so another number of ranks or
    workers sees the same clips. An unreadable video's slot goes to the next video in the epoch's order; after more than
    `max_unreadable` in a row the result is empty.
    """

    def __init__(
        self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec, *, seed: int, max_unreadable: int
    ) -> None:
        super().__init__(records, root, decoder, spec)
        self.seed = seed
        self.max_unreadable = max_unreadable

    def __getitem__(self, key: tuple[int, int]) -> Clips:
        epoch, position = key
        order = epoch_order(len(self.records), self.seed, epoch)
        errors: list[VideoError] = []
        while len(errors) <= self.max_unreadable:
            index = int(order[(position + len(errors)) % len(order)])
            try:
                clips = self._random_clip(index, keyed_rng(self.seed, TRAIN, epoch, index))
                return replace(clips, unreadable=tuple(errors))
            except VideoError as error:
                errors.append(error)
        return self._nothing(int(order[position]), errors)


class ValClips(_Videos):
    """One clip a video with training augmentation, the same in every epoch: the monitored error of Figure 7."""

    def __init__(self, records: Sequence[Record], root: str, decoder: str, spec: ClipSpec, *, seed: int) -> None:
        super().__init__(records, root, decoder, spec)
        self.seed = seed

    def __getitem__(self, index: int) -> Clips:
        try:
            return self._random_clip(index, keyed_rng(self.seed, VAL, index))
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
        spec = self.spec
        try:
            with self._open(index) as video:
                n = video.num_frames
                starts = uniform_starts(n, spec.frames, spec.stride, self.clips, self.clip_starts)
                indices = [clip_indices(start, spec.frames, spec.stride, n) for start in starts]
                unique, positions = np.unique(indices, return_inverse=True)
                views = eval_views(self.views, video.height, video.width, spec.crop, self.short_side)
                frames, views = _read(video, unique.tolist(), views)
        except VideoError as error:
            return self._nothing(index, [error])
        return Clips(index, self.records[index].label, frames, positions.reshape(self.clips, -1), views)


def _read(video: VideoReader, indices: list[int], views: list[View]) -> tuple[Tensor, list[View]]:
    """The frames, cut to what the views enclose, and the views relative to that."""
    if isinstance(video, ImageReader):
        views = video.shrink(views)
    box, views = cut(views)
    return video.read(indices, box), views


@functools.lru_cache(maxsize=2)
def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the videos in an epoch: a permutation that is a function of (seed, epoch)."""
    return keyed_rng(seed, ORDER, epoch).permutation(num_videos)
