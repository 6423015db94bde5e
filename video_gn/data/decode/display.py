"""From stored to displayed pixels: display matrix and sample aspect ratio, as FFmpeg's command line applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

SQUARE = Fraction(1)
LARGEST_RATIO = 10  # of a pixel's sides; no camera or disc has more than 3, and players differ in what they believe
SAME_RATIO = Fraction(1, 100)  # a difference from square that nobody sees: scaling to whole pixels leaves as much

_STRIP_BYTES = 2 << 20


@dataclass(frozen=True)
class Display:
    """How a stream's stored frames are displayed."""

    stored: tuple[int, int]
    """Height and width of the stored frames, in pixels."""
    matrix: tuple[int, ...] | None = None
    """Display matrix: 9 numbers in row order, fixed point (ISO/IEC 14496-12, 6.2.2); None where there is none."""
    ratio: Fraction = SQUARE
    """Sample aspect ratio: width of a stored pixel divided by its height."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the displayed frame: square pixels, for which the stored *width* is scaled."""
        height, width = self.stored
        width = max(round(width * self.ratio), 1)
        return (width, height) if rotation(self.matrix) in (90, 270) else (height, width)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn, mirror and stretch a stored frame, uint8 (height, width, 3); it may return a view of it."""
        image = orient(image, self.matrix)
        if image.shape[:2] == self.size:
            return image
        return np.asarray(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Crop:
    """Part of a displayed frame, reduced by a whole factor."""

    box: tuple[int, int, int, int]
    """(top, left, height, width) in pixels after the reduction."""
    reduction: int = 1
    """k: each pixel is the mean of k x k displayed ones; of fewer in the last row and column, at the frame's edge."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Cut it out of a displayed frame, uint8 (height, width, 3)."""
        top, left, height, width = (side * self.reduction for side in self.box)
        part = image[top : top + height, left : left + width]
        return part if self.reduction == 1 else block_means(part, self.reduction)


def block_means(image: np.ndarray, k: int) -> np.ndarray:
    """Return the means of k x k pixels (Pillow's `reduce`), uint8 (ceil(height / k), ceil(width / k), 3)."""
    # In strips: the system would give memory for a 4K image anew each time, which takes longer than the sums.
    rows = k * max(1, _STRIP_BYTES // (k * image.shape[1] * 3))
    strips = (image[top : top + rows] for top in range(0, len(image), rows))
    return np.concatenate([np.asarray(Image.fromarray(strip).reduce(k)) for strip in strips])


def reduced(side: int, reduction: int) -> int:
    """Return the pixels of a side after the reduction: a block at the edge that is not full counts."""
    return -(-side // reduction)


def rotation(matrix: tuple[int, ...] | None) -> int:
    """Return by how many degrees clockwise FFmpeg turns for a matrix, 0 to 359 (`get_rotation` in its fftools).

    0 where the matrix has a column of zeros: it has no angle then.
    """
    if matrix is None:
        return 0
    scales = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if 0 in scales:
        return 0
    degrees = math.degrees(math.atan2(matrix[1] / scales[1], matrix[0] / scales[0]))
    return round_half_away(degrees) % 360


def orient(image: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """Turn and mirror (height, width, 3) as FFmpeg's autorotation (`configure_input_video_filter` in its fftools).

    An angle that is no multiple of 90 degrees turns the picture inside its frame, the corners black.
    """
    if matrix is None or 0 in (math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])):
        return image
    angle = rotation(matrix)
    down, right = (-1 if matrix[4] < 0 else 1), (-1 if matrix[0] < 0 else 1)
    if angle == 0:
        return image[::down]
    if angle == 180:
        return image[::down, ::right]
    if angle == 90:
        return image.swapaxes(0, 1)[:, :: 1 if matrix[3] > 0 else -1]
    if angle == 270:
        return image.swapaxes(0, 1)[::-1, :: -1 if matrix[3] < 0 else 1]
    if angle == 1:  # FFmpeg turns from more than 1 degree on
        return image
    return np.asarray(Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR))


def square_or(ratio: Fraction | None) -> Fraction:
    """Return a sample aspect ratio that can be believed: 1 for none, beyond 1:10 or 10:1, or within 1 % of 1."""
    if ratio is None or not Fraction(1, LARGEST_RATIO) <= ratio <= LARGEST_RATIO:
        return SQUARE
    return SQUARE if abs(ratio - 1) < SAME_RATIO else ratio


def round_half_away(value: float) -> int:
    """Round as C's `round`: half away from zero."""
    return int(value + math.copysign(0.5, value))
