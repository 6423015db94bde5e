"""Which frames a clip has, and which rectangles of them the network sees: pure arithmetic, no video needed.

N is the number of frames of a video, T the frames of a clip, s its stride. A clip occupies T * s frames; indices wrap
modulo N, so a short video is repeated from its start (video-nonlocal-net, customized_video_io.cc:683-703).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from video_gn.data.augment import Augmentation, Change
    from video_gn.data.decode import VideoReader


TRAIN, VAL, ORDER, DROPOUT, MIXING = range(5)  # streams of random numbers, so that no two draws share a key


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a generator, a pure function of its key, e.g. (seed, epoch, video index); no two keys share one."""
    return np.random.default_rng((len(key), *key))  # the length, since NumPy pads a key with zeros


def dropout_seeds(seed: int, step: int, positions: Iterable[int]) -> list[int]:
    """Return the seeds of what is random on the device in the micro-batches at these positions of a global batch."""
    return [int(keyed_rng(seed, DROPOUT, step, position).integers(2**62)) for position in positions]


def clip_indices(start: int, frames: int, stride: int, num_frames: int) -> list[int]:
    """Frame indices (start + i s) mod N for i < T.

    With N = 10, T = 4, s = 2 and start 5 (f: in the clip):

        frame   0 1 2 3 4 5 6 7 8 9
                . f . . . f . f . f     5, 7, 9, then 11 mod 10 = 1
    """
    return [(start + i * stride) % num_frames for i in range(frames)]


def random_start(num_frames: int, frames: int, stride: int, rng: np.random.Generator) -> int:
    """Training: uniform over 0 ... N - T s, ends included (stride 0: over all frames); 0 for a shorter video.

    With N = 10, T = 4, s = 2 the clip occupies 8 frames and starts at 0, 1 or 2 (f: in the clip, x: passed over):

        frame   0 1 2 3 4 5 6 7 8 9
        start 0 f x f x f x f x . .
        start 2 . . f x f x f x f x
    """
    last = num_frames - max(frames * stride, 1)
    return int(rng.integers(0, last, endpoint=True)) if last > 0 else 0


def uniform_starts(num_frames: int, frames: int, stride: int, clips: int, mode: str = "spread") -> list[int]:
    """Start frames of K test clips, regularly over the video.

    `spread`: round(k (N - T s) / (K - 1)) where N >= T s, from the first to the last valid start; else floor(k N / K).
    One clip starts at (N - T s) // 2. `baseline`: int(k N / K), whose last clips wrap.

    With N = 10, T = 2, s = 2, K = 3 (each clip occupies 4 frames):

        frame   0 1 2 3 4 5 6 7 8 9
        clip 0  f x f x . . . . . .     spread: starts 0, 3, 6
        clip 1  . . . f x f x . . .     baseline: starts 0, 3, 6 as well; with K = 4 its last is 7,
        clip 2  . . . . . . f x f x     which reads frames 7 and 9
    """
    if mode not in ("spread", "baseline"):
        raise ValueError(f"clip starts {mode!r} are not known; choose spread or baseline")
    last = num_frames - max(frames * stride, 1)
    if mode == "baseline" or last < 0:
        return [k * num_frames // clips for k in range(clips)]
    if clips == 1:
        return [last // 2]
    return [round(k * last / (clips - 1)) for k in range(clips)]


# Rectangles

SMALLEST_ASPECT = 3 / 4

Box = tuple[int, int, int, int]
"""(top, left, height, width), pixels."""


@dataclass(frozen=True)
class View:
    """A rectangle of the source frame, and the size in pixels at which the network sees it."""

    box: Box
    height: int
    width: int


def reduction(height: int, width: int, short_side: int) -> int:
    """Return k: k x k pixels of a frame become their mean before it is scaled to `short_side`; 1 up to twice that.

    k is the largest whole factor that leaves the frame larger than it is wanted. So what is held of a video is bounded
    by the views: at most 2 x 2 pixels for each of theirs.
    """
    return max(1, (min(height, width) - 1) // short_side)


def area_reduction(height: int, width: int, crop: int, area: tuple[float, float]) -> int:
    """Return k as `reduction`, for the smallest window that `random_area_view` may draw: none is enlarged by it."""
    smallest = min(math.sqrt(area[0] * height * width * SMALLEST_ASPECT), height, width)
    return max(1, math.ceil(smallest / crop) - 1)


def random_view(height: int, width: int, crop: int, short_side: tuple[int, int], rng: np.random.Generator) -> View:
    """Draw a training view: short side scaled to a random integer of `short_side`, random crop x crop window.

    All ends are included. The window is rounded to integer source pixels.
    """
    scale = int(rng.integers(*short_side, endpoint=True)) / min(height, width)
    top = int(rng.integers(0, max(round(height * scale) - crop, 0), endpoint=True))
    left = int(rng.integers(0, max(round(width * scale) - crop, 0), endpoint=True))
    box = _source_box(top, left, crop, crop, scale, height, width)
    return View(box, crop, crop)


def random_area_view(height: int, width: int, crop: int, area: tuple[float, float], rng: np.random.Generator) -> View:
    """Draw a view of a random share `area` of the frame, aspect 3/4 to 4/3, as fb.resnet.torch does for images.

    Ten tries to fit; then the largest centered square.
    """
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = rng.uniform(SMALLEST_ASPECT, 1 / SMALLEST_ASPECT)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h, endpoint=True))
            left = int(rng.integers(0, width - w, endpoint=True))
            return View((top, left, h, w), crop, crop)
    side = min(height, width)
    return View(((height - side) // 2, (width - side) // 2, side, side), crop, crop)


def eval_views(kind: str, height: int, width: int, crop: int, short_side: int) -> list[View]:
    """Return the views of a test frame, short side scaled to `short_side`.

    `center`: the middle crop x crop window. `three`: short_side x short_side windows at 0, 1, 2 times
    (long side - short_side) // 2 along the longer side. `full`: the whole frame.
    """
    scale = short_side / min(height, width)
    scaled_height, scaled_width = round(height * scale), round(width * scale)
    if kind == "full":
        return [View((0, 0, height, width), scaled_height, scaled_width)]
    if kind not in ("center", "three"):
        raise ValueError(f"views {kind!r} are not known; choose center, three or full")
    if kind == "center":
        corners = [((scaled_height - crop) // 2, (scaled_width - crop) // 2)]
        side = crop
    else:
        down, right = (scaled_height - short_side) // 2, (scaled_width - short_side) // 2
        corners = [(k * down, k * right) for k in range(3)]
        side = short_side
    return [View(_source_box(top, left, side, side, scale, height, width), side, side) for top, left in corners]


def scaled(view: View, down: float, right: float) -> View:
    """Return the view in whole pixels of a frame whose height is `down` times and width `right` times as large."""
    top, left, height, width = view.box
    box_top, box_left = round(top * down), round(left * right)
    bottom, box_right = round((top + height) * down), round((left + width) * right)
    return replace(view, box=(box_top, box_left, max(bottom - box_top, 1), max(box_right - box_left, 1)))


def cut(views: Sequence[View]) -> tuple[Box, list[View]]:
    """Return the smallest box that encloses all views, and the views relative to it."""
    top = min(view.box[0] for view in views)
    left = min(view.box[1] for view in views)
    bottom = max(view.box[0] + view.box[2] for view in views)
    right = max(view.box[1] + view.box[3] for view in views)
    moved = [replace(v, box=(v.box[0] - top, v.box[1] - left, v.box[2], v.box[3])) for v in views]
    return (top, left, bottom - top, right - left), moved


def _source_box(top: int, left: int, height: int, width: int, scale: float, full_height: int, full_width: int) -> Box:
    """Return the window of a frame scaled by `scale`, in whole pixels of the source, inside the frame."""
    box_height = min(max(round(height / scale), 1), full_height)
    box_width = min(max(round(width / scale), 1), full_width)
    box_top = min(round(top / scale), full_height - box_height)
    box_left = min(round(left / scale), full_width - box_width)
    return box_top, box_left, box_height, box_width


# Plans: what is read of a video, from its number of frames and their size


@dataclass(frozen=True)
class ClipSpec:
    """How clips are cut (the `data` section of the config explains each value)."""

    frames: int
    stride: int
    crop: int
    short_side: tuple[int, int]
    augmentations: tuple[Augmentation, ...] = ()
    area: tuple[float, float] | None = None


class Reading(NamedTuple):
    """The arguments of `VideoReader.read`."""

    indices: list[int]
    """Frames that a clip wants: sorted, each once."""
    box: Box
    """What the views enclose, in pixels after the reduction."""
    reduction: int = 1


class RandomClip(NamedTuple):
    """A clip as drawn for training or validation."""

    rows: np.ndarray
    """int64 (U,): its frames, each once, among those that are read."""
    clip_indices: np.ndarray
    """int64 (1, T) into its frames."""
    view: View
    """Relative to the box that is read."""
    changes: tuple[Change, ...]


class UniformClips(NamedTuple):
    """Clips in evaluation views, all of which show each clip."""

    clip_indices: np.ndarray
    """int64 (K, T) into the frames that are read."""
    views: list[View]
    """Relative to the box that is read."""
    source: Box
    """The rectangle of the source frame that the views enclose."""


def draw_clips(
    video: VideoReader, spec: ClipSpec, key: Sequence[int], numbers: Sequence[int] = (0,)
) -> tuple[Reading, list[RandomClip]]:
    """Draw random clips of a video, those of these numbers, of the ones that the key's generator draws in turn."""
    rng = keyed_rng(*key)
    indices, views, changes = [], [], []
    for _ in range(max(numbers) + 1):
        start = random_start(video.num_frames, spec.frames, spec.stride, rng)
        if spec.area is None:
            view = random_view(video.height, video.width, spec.crop, spec.short_side, rng)
        else:
            view = random_area_view(video.height, video.width, spec.crop, spec.area, rng)
        indices.append(clip_indices(start, spec.frames, spec.stride, video.num_frames))
        views.append(view)
        changes.append(tuple((each, each.draw(rng, (view.height, view.width))) for each in spec.augmentations))
    # All clips of a video share the reduction, that of the largest scale which may be drawn.
    if video.shrinks:
        k = 1
    elif spec.area is None:
        k = reduction(video.height, video.width, spec.short_side[1])
    else:
        k = area_reduction(video.height, video.width, spec.crop, spec.area)
    _, box, moved = _enclosed(video, [views[number] for number in numbers], k)
    read = np.unique([indices[number] for number in numbers])
    clips = []
    for number, view in zip(numbers, moved, strict=True):
        unique, positions = np.unique(indices[number], return_inverse=True)
        clips.append(RandomClip(np.searchsorted(read, unique), positions.reshape(1, -1), view, changes[number]))
    return Reading(read.tolist(), box, k), clips


def clips_from(
    video: VideoReader, starts: Sequence[int], spec: ClipSpec, kind: str, short_side: int
) -> tuple[Reading, UniformClips]:
    """Choose the clips that begin at these frames, in all evaluation views of a kind."""
    indices = [clip_indices(start, spec.frames, spec.stride, video.num_frames) for start in starts]
    unique, positions = np.unique(indices, return_inverse=True)
    k = 1 if video.shrinks else reduction(video.height, video.width, short_side)
    source, box, views = _enclosed(video, eval_views(kind, video.height, video.width, spec.crop, short_side), k)
    return Reading(unique.tolist(), box, k), UniformClips(positions.reshape(len(starts), -1), views, source)


def uniform_clips(
    video: VideoReader, clips: int, clip_starts: str, spec: ClipSpec, kind: str, short_side: int
) -> tuple[Reading, UniformClips]:
    """Choose the test clips of a video, in all evaluation views of a kind."""
    starts = uniform_starts(video.num_frames, spec.frames, spec.stride, clips, clip_starts)
    return clips_from(video, starts, spec, kind, short_side)


def _enclosed(video: VideoReader, views: Sequence[View], k: int) -> tuple[Box, Box, list[View]]:
    """Return what views enclose, in source pixels and after the reduction k; the views relative to the latter."""
    if video.shrinks:
        views = video.shrink(views)
    source, _ = cut(views)
    box, moved = cut([scaled(view, 1 / k, 1 / k) for view in views])
    return source, box, moved
