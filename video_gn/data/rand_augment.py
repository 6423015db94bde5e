"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719), with torchvision's operations and their ranges.

Most are torchvision's own. Its affine transforms and its sharpness copy a matrix from the host, which waits for the
GPU: these are written anew, from Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

MAXIMUM = 30
"""The largest magnitude."""

Operation = Callable[[Tensor, float], Tensor]
"""(uint8 (T, 3, H, W), strength in [-1, 1]) -> uint8 of that shape."""


def sample(pixels: Tensor, matrix: tuple[float, float, float, float, float, float]) -> Tensor:
    """Return uint8 (T, 3, H, W), of which position (x, y) shows (a x + b y + c, d x + e y + f), `matrix` being a to f.

    Positions are in pixels from the center. Bilinear; black outside.
    """
    a, b, c, d, e, f = matrix
    height, width = pixels.shape[-2:]
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=pixels.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=pixels.device)[:, None]
    grid = torch.stack([(a * x + b * y + c) * (2 / width), (d * x + e * y + f) * (2 / height)], -1)
    grid = grid.expand(len(pixels), -1, -1, -1)
    sampled = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round().byte()


def shear_x(pixels: Tensor, strength: float) -> Tensor:
    """Shift rows by up to 0.3 of their distance from the top."""
    slope = 0.3 * strength
    return sample(pixels, (1, slope, slope * pixels.shape[-2] / 2, 0, 1, 0))


def shear_y(pixels: Tensor, strength: float) -> Tensor:
    """Shift columns by up to 0.3 of their distance from the left."""
    slope = 0.3 * strength
    return sample(pixels, (1, 0, 0, slope, 1, slope * pixels.shape[-1] / 2))


def translate_x(pixels: Tensor, strength: float) -> Tensor:
    """Shift right by up to 150 / 331 of the width, in integer pixels."""
    return sample(pixels, (1, 0, -int(150 / 331 * pixels.shape[-1] * strength), 0, 1, 0))


def translate_y(pixels: Tensor, strength: float) -> Tensor:
    """Shift down by up to 150 / 331 of the height, in integer pixels."""
    return sample(pixels, (1, 0, 0, 0, 1, -int(150 / 331 * pixels.shape[-2] * strength)))


def rotate(pixels: Tensor, strength: float) -> Tensor:
    """Rotate counterclockwise by up to 30 degrees."""
    angle = math.radians(30 * strength)
    return sample(pixels, (math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0))


def sharpness(pixels: Tensor, strength: float) -> Tensor:
    """Move away from the smoothed frame by up to 0.9 of the difference, or towards it; the border stays."""
    changed = pixels.float()
    inner = changed[..., 1:-1, 1:-1]
    smooth = ((9 * F.avg_pool2d(changed, 3, stride=1) + 4 * inner) / 13).round()  # weights 1, and 5 in the middle
    inner += (smooth - inner) * (-0.9 * strength)
    return changed.clamp(0, 255).byte()


OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda pixels, _: pixels, False),
    "shear x": (shear_x, True),
    "shear y": (shear_y, True),
    "translate x": (translate_x, True),
    "translate y": (translate_y, True),
    "rotate": (rotate, True),
    "brightness": (lambda pixels, strength: tv.adjust_brightness(pixels, 1 + 0.9 * strength), True),
    "saturation": (lambda pixels, strength: tv.adjust_saturation(pixels, 1 + 0.9 * strength), True),
    "contrast": (lambda pixels, strength: tv.adjust_contrast(pixels, 1 + 0.9 * strength), True),
    "sharpness": (sharpness, True),
    "posterize": (lambda pixels, strength: tv.posterize(pixels, 8 - round(4 * strength)), False),
    "solarize": (lambda pixels, strength: tv.solarize(pixels, 255 * (1 - strength)), False),
    "autocontrast": (lambda pixels, _: tv.autocontrast(pixels), False),
    "equalize": (lambda pixels, _: tv.equalize(pixels), False),
}
"""By name: the operation, and whether its strength has a random sign. In the order of torchvision's RandAugment."""


@dataclass(frozen=True)
class RandAugment:
    """Apply random operations of one magnitude, the same ones to all frames of a clip.

    Pixels are rounded to uint8 before the first. Contrast, autocontrast and equalize measure each frame by itself, as
    torchvision does.
    """

    operations: int
    """How many are drawn, with repetition."""
    magnitude: int
    """From 0 to MAXIMUM."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[tuple[str, float], ...]:
        """Return names and strengths of operations."""
        names, drawn = list(OPERATIONS), []
        for _ in range(self.operations):
            name, sign = names[int(rng.integers(len(names)))], -1 if rng.random() < 0.5 else 1
            drawn.append((name, self.magnitude / MAXIMUM * (sign if OPERATIONS[name][1] else 1)))
        return tuple(drawn)

    def apply(self, pixels: Tensor, params: tuple[tuple[str, float], ...]) -> Tensor:
        """float32 (T, 3, H, W) in [0, 255] to integers of that range."""
        changed = pixels.round().clamp(0, 255).byte()
        for name, strength in params:
            changed = OPERATIONS[name][0](changed, strength)
        return changed.float()

    def describe(self, params: tuple[tuple[str, float], ...]) -> str:
        return ", ".join(f"{name} {strength:+.1f}" if OPERATIONS[name][1] else name for name, strength in params)
