"""From uint8 frames to network input: which rectangle of the source a view is, and its resize, flip and normalization.

The worker draws the rectangles and cuts what they enclose; the arithmetic on pixels runs on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_AT_ONCE = 32
SMALLEST_ASPECT = 3 / 4

Box = tuple[int, int, int, int]
"""(top, left, height, width), pixels."""


@dataclass(frozen=True)
class View:
    """A rectangle of the source frame, and the size in pixels at which the network sees it."""

    box: Box
    height: int
    width: int
    flip: bool = False


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


def random_view(
    height: int, width: int, crop: int, short_side: tuple[int, int], flip: float, rng: np.random.Generator
) -> View:
    """Training: short side scaled to a random integer of `short_side`, random crop x crop window, flip by chance.

    All ends are included. The window is rounded to whole source pixels.
    """
    scale = int(rng.integers(*short_side, endpoint=True)) / min(height, width)
    top = int(rng.integers(0, max(round(height * scale) - crop, 0), endpoint=True))
    left = int(rng.integers(0, max(round(width * scale) - crop, 0), endpoint=True))
    box = _source_box(top, left, crop, crop, scale, height, width)
    return View(box, crop, crop, flip=bool(rng.random() < flip))


def random_area_view(
    height: int, width: int, crop: int, area: tuple[float, float], flip: float, rng: np.random.Generator
) -> View:
    """Training on images: a random share `area` of the image, aspect 3/4 to 4/3, as fb.resnet.torch draws it.

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
            return View((top, left, h, w), crop, crop, flip=bool(rng.random() < flip))
    side = min(height, width)
    box = ((height - side) // 2, (width - side) // 2, side, side)
    return View(box, crop, crop, flip=bool(rng.random() < flip))


@dataclass(frozen=True)
class Colour:
    """A change of colour, the same for all frames of a clip (fb.resnet.torch's ColorJitter and Lighting)."""

    factors: tuple[tuple[str, float], ...]
    """brightness, contrast and saturation in the order of their use; 1 changes nothing."""
    shift: tuple[float, float, float]
    """Added to RGB in [0, 1]."""


# Principal components of ImageNet's RGB values: standard deviations, and the axes as columns (fb.resnet.torch).
LIGHTING_STD = np.array([0.2175, 0.0188, 0.0045])
LIGHTING_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
GRAY = (0.299, 0.587, 0.114)


def random_colour(jitter: float, lighting: float, rng: np.random.Generator) -> Colour | None:
    """Factors uniform in 1 +- jitter, in random order, and a shift of `lighting` times the principal deviations."""
    if not jitter and not lighting:
        return None
    names = [("brightness", "contrast", "saturation")[k] for k in rng.permutation(3)]
    factors = tuple((name, float(rng.uniform(1 - jitter, 1 + jitter))) for name in names)
    red, green, blue = LIGHTING_AXES @ (rng.normal(0, 1, 3) * lighting * LIGHTING_STD)
    return Colour(factors if jitter else (), (float(red), float(green), float(blue)))


def change_colour(frames: Tensor, colour: Colour) -> Tensor:
    """Apply to RGB in [0, 255], float (..., 3); values may leave that range, as in fb.resnet.torch."""
    for name, factor in colour.factors:
        if name == "brightness":
            frames = frames * factor
        else:
            gray = frames @ torch.tensor(GRAY, device=frames.device)
            towards = gray.mean() if name == "contrast" else gray[..., None]
            frames = frames * factor + (1 - factor) * towards
    return frames + 255 * torch.tensor(colour.shift, device=frames.device)


def eval_views(kind: str, height: int, width: int, crop: int, short_side: int) -> list[View]:
    """The views of a test frame, short side scaled to `short_side`.

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
    """The smallest box that encloses all views, and the views relative to it."""
    top = min(view.box[0] for view in views)
    left = min(view.box[1] for view in views)
    bottom = max(view.box[0] + view.box[2] for view in views)
    right = max(view.box[1] + view.box[3] for view in views)
    moved = [replace(v, box=(v.box[0] - top, v.box[1] - left, v.box[2], v.box[3])) for v in views]
    return (top, left, bottom - top, right - left), moved


def render(
    frames: Tensor,
    views: Sequence[View],
    mean: Sequence[float],
    std: Sequence[float],
    colour: Colour | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resize, flip, change colour and normalize.

    Args:
        frames: uint8 (U, h, w, 3) RGB, on any device.
        views: V views of one output size, boxes relative to `frames`.
        mean, std: of RGB in [0, 1].
        colour: a change of colour, after the resize.
        dtype: of the result (the arithmetic is float32).

    Returns:
        (V, U, height, width, 3) of `dtype`.
    """
    rgb = _rgb(tuple(mean), frames.device), _rgb(tuple(std), frames.device)
    return torch.stack([_render_view(frames, view, *rgb, colour, dtype) for view in views])


def gather_clips(frames: Tensor, clip_indices: Tensor) -> Tensor:
    """Clips (V K, 3, T, H, W), channels last in memory, of frames (V, U, H, W, 3) and indices into U (K, T)."""
    return frames[:, clip_indices].flatten(0, 1).permute(0, 4, 1, 2, 3)


def _render_view(
    frames: Tensor, view: View, mean: Tensor, std: Tensor, colour: Colour | None, dtype: torch.dtype
) -> Tensor:
    """(U, height, width, 3), a few frames at a time: in float they are large at the source's size."""
    top, left, height, width = view.box
    done = []
    for part in frames[:, top : top + height, left : left + width].split(FRAMES_AT_ONCE):
        pixels = part.permute(0, 3, 1, 2).float()
        if (height, width) != (view.height, view.width):
            pixels = F.interpolate(pixels, (view.height, view.width), mode="bilinear", antialias=True)
        if view.flip:
            pixels = pixels.flip(-1)
        pixels = pixels.permute(0, 2, 3, 1)
        if colour is not None:
            pixels = change_colour(pixels, colour)
        done.append(((pixels - mean) / std).to(dtype))
    return torch.cat(done)


@functools.lru_cache(maxsize=64)
def _rgb(values: tuple[float, ...], device: torch.device) -> Tensor:
    """RGB in [0, 1] as a tensor of [0, 255]; kept, since copying it to a GPU waits for the GPU."""
    return torch.tensor(values, device=device) * 255


def _source_box(top: int, left: int, height: int, width: int, scale: float, full_height: int, full_width: int) -> Box:
    """The window of a frame scaled by `scale`, in whole pixels of the source, inside the frame."""
    box_height = min(max(round(height / scale), 1), full_height)
    box_width = min(max(round(width / scale), 1), full_width)
    box_top = min(round(top / scale), full_height - box_height)
    box_left = min(round(left / scale), full_width - box_width)
    return box_top, box_left, box_height, box_width
