"""From uint8 frames to network input: resize, augmentations, normalization, clips.

The worker draws what the augmentations need; the arithmetic on pixels runs on the device, which no line here waits for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from video_gn.data.sampling import Box, View

if TYPE_CHECKING:
    from video_gn.config import DataConfig
    from video_gn.data.dataset import Clips

FRAMES_AT_ONCE = 32


class Augmentation(Protocol):
    """A random change of a clip's pixels, the same one for all of its frames. A value: compares and pickles."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Any:
        """Return the parameters for a clip of `size` (height, width): a function of the generator. In the worker."""

    def apply(self, pixels: Tensor, params: Any) -> Tensor:
        """Return changed pixels: float32 RGB (T, 3, H, W) in [0, 255]; values may leave that range. On the device."""

    def describe(self, params: Any) -> str:
        """Return what `apply` does in a few words; "" for nothing."""


Change = tuple[Augmentation, Any]
"""An augmentation and the parameters that were drawn for a clip."""


def augmentations(data: DataConfig, *, validation: bool = False) -> tuple[Augmentation, ...]:
    """Return the augmentations of a config's `data` section in the order in which they are drawn and applied.

    A new one is one class, one field of `DataConfig` and one line here, at the end: draws before it stay as they are.
    `validation`: only what the one validation clip per video has, too, as in Figure 7.
    """
    chosen: list[Augmentation] = [Flip(data.flip)]
    if data.color_jitter or data.lighting:
        chosen += [ColorJitter(data.color_jitter), Lighting(data.lighting)]
    if validation:
        return tuple(chosen)
    if data.rand_augment is not None:
        from video_gn.data.rand_augment import RandAugment  # torchvision's transforms import slowly

        chosen.append(RandAugment(*data.rand_augment))
    if data.random_erasing:
        chosen.append(RandomErasing(data.random_erasing, data.mean))
    return tuple(chosen)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right by chance."""

    probability: float

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> bool:
        return bool(rng.random() < self.probability)

    def apply(self, pixels: Tensor, params: bool) -> Tensor:
        return pixels.flip(-1) if params else pixels

    def describe(self, params: bool) -> str:
        return "flipped" if params else ""


@dataclass(frozen=True)
class ColorJitter:
    """Multiply brightness, contrast and saturation by factors uniform in 1 +- strength, in random order.

    As fb.resnet.torch's ColorJitter. Contrast is that of all frames together.
    """

    strength: float

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[tuple[str, float], ...]:
        names = [("brightness", "contrast", "saturation")[k] for k in rng.permutation(3)]
        factors = tuple((name, float(rng.uniform(1 - self.strength, 1 + self.strength))) for name in names)
        return factors if self.strength else ()

    def apply(self, pixels: Tensor, params: tuple[tuple[str, float], ...]) -> Tensor:
        for name, factor in params:
            if name == "brightness":
                pixels = pixels * factor
            else:
                red, green, blue = pixels.unbind(1)
                gray = red * 0.299 + green * 0.587 + blue * 0.114
                pixels = pixels * factor + (1 - factor) * (gray.mean() if name == "contrast" else gray[:, None])
        return pixels

    def describe(self, params: tuple[tuple[str, float], ...]) -> str:
        return "colors changed" if params else ""


# Principal components of ImageNet's RGB values: standard deviations, and the axes as columns (fb.resnet.torch).
LIGHTING_STD = np.array([0.2175, 0.0188, 0.0045])
LIGHTING_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True)
class Lighting:
    """Add a color drawn along the principal axes of ImageNet's colors, as fb.resnet.torch's Lighting."""

    strength: float
    """Standard deviation, in those of ImageNet."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[float, float, float]:
        """Return the color, RGB of [0, 1]."""
        red, green, blue = LIGHTING_AXES @ (rng.normal(0, 1, 3) * self.strength * LIGHTING_STD)
        return float(red), float(green), float(blue)

    def apply(self, pixels: Tensor, params: tuple[float, float, float]) -> Tensor:
        if not any(params):
            return pixels
        channels = zip(pixels.unbind(1), params, strict=True)
        return torch.stack([channel + 255 * shift for channel, shift in channels], 1)

    def describe(self, params: tuple[float, float, float]) -> str:
        return "colors changed" if any(params) else ""


@dataclass(frozen=True)
class RandomErasing:
    """Cover a random rectangle with one color by chance (Zhong et al. 2020), the same one in all frames.

    The rectangle is drawn as torchvision's RandomErasing draws it.
    """

    probability: float
    color: tuple[float, float, float]
    """RGB of [0, 1]: the data's mean, which is 0 to the network."""
    area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest share of the frame."""
    aspect: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Box | None:
        """Return the rectangle; None by chance, or where none fits in ten tries."""
        if rng.random() >= self.probability:
            return None
        for _ in range(10):
            area = rng.uniform(*self.area) * size[0] * size[1]
            aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < size[0] and 0 < width < size[1]:
                top = int(rng.integers(0, size[0] - height, endpoint=True))
                left = int(rng.integers(0, size[1] - width, endpoint=True))
                return top, left, height, width
        return None

    def apply(self, pixels: Tensor, params: Box | None) -> Tensor:
        if params is None:
            return pixels
        top, left, height, width = params
        pixels = pixels.clone()
        pixels[..., top : top + height, left : left + width] = _rgb(self.color, pixels.device)
        return pixels

    def describe(self, params: Box | None) -> str:
        return f"{params[3]} x {params[2]} px erased" if params else ""


def render(
    frames: Tensor,
    views: Sequence[View],
    mean: Sequence[float],
    std: Sequence[float],
    changes: Sequence[Change] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resize, augment and normalize.

    Args:
        frames: uint8 (U, h, w, 3) RGB, on any device.
        views: V views of one output size, boxes relative to `frames`.
        mean, std: of RGB in [0, 1].
        changes: drawn augmentations, applied in order after the resize.
        dtype: of the result (the arithmetic is float32).

    Returns:
        (V, U, height, width, 3) of `dtype`.
    """
    center, deviation = (_rgb(tuple(values), frames.device) for values in (mean, std))
    size = views[0].height, views[0].width
    rendered = torch.empty(len(views), len(frames), *size, 3, dtype=dtype, device=frames.device)
    for view, out in zip(views, rendered, strict=True):
        # A few frames at a time: in float32 they are large at the source's size.
        parts: Iterable[Tensor] = (_resized(part, view) for part in frames.split(FRAMES_AT_ONCE))
        if changes:  # which are of the clip, not of a part of it
            pixels = torch.cat(list(parts)) if len(frames) > FRAMES_AT_ONCE else next(iter(parts))
            for augmentation, params in changes:
                pixels = augmentation.apply(pixels, params)
            parts = pixels.split(FRAMES_AT_ONCE)
        for part, target in zip(parts, out.split(FRAMES_AT_ONCE), strict=True):
            target.copy_(((part - center) / deviation).permute(0, 2, 3, 1))
    return rendered


def network_input(
    item: Clips,
    device: torch.device,
    mean: Sequence[float],
    std: Sequence[float],
    dims: int = 3,
    dtype: torch.dtype = torch.float32,
    at_once: int | None = None,
    layout: torch.memory_format = torch.preserve_format,
) -> Iterator[Tensor]:
    """Return what the network gets of the clips that a worker sent: the only way from one to the other.

    Args:
        device: of the result.
        dims: 3 for clips, 2 for images.
        at_once: clips per forward pass, each in all views, so that not all of a video's are held; None for all.
        layout: memory format of the result; as they come, clips are channels last.

    Returns:
        Iterator of (V K, 3, T, H, W) or (V K, 3, H, W) of `dtype`, view by view.
    """
    frames = render(item.frames.to(device, non_blocking=True), item.views, mean, std, item.changes, dtype)
    clip_indices = torch.from_numpy(item.clip_indices).to(device, non_blocking=True)
    return map(
        partial(gather_clips, frames, dims=dims, layout=layout),
        clip_indices.split(at_once or max(len(clip_indices), 1)),
    )


def gather_clips(
    frames: Tensor, clip_indices: Tensor, dims: int = 3, layout: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Return clips (V K, 3, T, H, W); with `dims` 2, where T is 1, images (V K, 3, H, W).

    Args:
        frames: (V, U, H, W, 3).
        clip_indices: into U, (K, T).
        layout: memory format of the result; as they come, clips are channels last.
    """
    clips = frames[:, clip_indices].flatten(0, 1).permute(0, 4, 1, 2, 3)
    return (clips if dims == 3 else clips.squeeze(2)).to(frames.dtype, memory_format=layout)


def _resized(frames: Tensor, view: View) -> Tensor:
    """uint8 (U, h, w, 3) -> float32 (U, 3, height, width) in [0, 255]."""
    top, left, height, width = view.box
    pixels = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    # In one step: a float tensor in the frames' own layout would be copied once more to be scaled.
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if (height, width) == (view.height, view.width):
        return pixels
    return F.interpolate(pixels, (view.height, view.width), mode="bilinear", antialias=True)


@functools.lru_cache(maxsize=64)
def _rgb(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return RGB in [0, 1] as (3, 1, 1) in [0, 255]; kept, since copying it to a GPU waits for the GPU."""
    return torch.tensor(values, device=device)[:, None, None] * 255
