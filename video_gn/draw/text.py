"""Text, bars and videos for pictures of clips."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from video_gn.files import h264
from video_gn.files.atomic import replacing

INK, PAPER, BAR, TRACK = (235, 235, 235), (24, 24, 28), (76, 146, 220), (58, 58, 66)
FPS = 25.0
"""Where a video does not tell its own."""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def shorten(text: str, width: float, size: int) -> str:
    """Return the end of `text` that fits `width` pixels, after an ellipsis where it is cut."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def panel(title: str, bars: Sequence[tuple[str, float]], width: int) -> np.ndarray:
    """Draw a line of text, and below it a bar per (name, score in [0, 1]): uint8 (height, width, 3)."""
    size = min(max(width // 26, 11), 24)
    line = round(1.6 * size)
    image = Image.new("RGB", (width, line * (1 + len(bars)) + size // 2), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((size // 2, line / 2), shorten(title, width - size, size), INK, font(size), "lm")
    left, right = round(0.45 * width), width - size // 2 - round(font(size).getlength("0.00") + size / 2)
    for row, (name, score) in enumerate(bars, 1):
        middle = line * (row + 0.5)
        draw.text((size // 2, middle), shorten(name, left - size, size), INK, font(size), "lm")
        top, bottom = middle - 0.3 * size, middle + 0.3 * size
        draw.rectangle((left, top, right, bottom), TRACK)
        if (end := left + score * (right - left)) >= left + 1:
            draw.rectangle((left, top, end, bottom), BAR)
        draw.text((width - size // 2, middle), f"{score:.2f}", INK, font(size), "rm")
    return np.asarray(image)


def resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return a frame uint8 (h, w, 3) at another size."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float | None) -> None:
    """Write uint8 (H, W, 3) RGB frames of one size as H.264 MP4; odd sides lose nothing, an edge pixel is repeated.

    `path` appears when it is complete. Raises UserError where it cannot be written or PyAV has no libx264.
    """
    even = (np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge") for image in frames)
    rate = Fraction(fps or FPS).limit_denominator(1001)
    with replacing(path, durable=False) as temporary:
        h264.encode(temporary, even, rate, {"crf": "20", "preset": "veryfast"})
