"""TensorBoard's view of a test: scalars, the confusion matrix, and videos as rows of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter

from video_gn.draw.figures import confusion_figure, pixels
from video_gn.draw.text import font, resized, shorten

FRAMES = 6  # of each video
HEIGHT, LINE = 112, 18  # pixels of a frame and of the text above it


def write_test(
    folder: Path,
    scalars: Mapping[str, float | None],
    step: int,
    matrix: np.ndarray | None,
    classes: Sequence[str],
    worst: Sequence[Image.Image],
) -> None:
    """Write a test into `folder`, which TensorBoard shows as a run; what was there is replaced.

    Args:
        scalars: by name, shown as test/NAME; None is left out.
        matrix: counts int (K, K) by label and predicted label; None where a task has none.
        classes: names of the K classes.
        worst: the worst videos, as `video_row` draws them; may be empty.
    """
    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    with SummaryWriter(str(folder)) as board:
        for name, value in scalars.items():
            if value is not None:
                board.add_scalar(f"test/{name}", value, step)
        if matrix is not None:  # not by add_figure, which imports pyplot
            board.add_image("test/confusion", pixels(confusion_figure(matrix, classes)), step, dataformats="HWC")
        if worst:
            board.add_image("test/worst_videos", np.asarray(stacked(worst)), step, dataformats="HWC")


def video_row(frames: np.ndarray, text: str) -> Image.Image:
    """Draw a line of text above FRAMES evenly spaced frames of a video, uint8 (T, H, W, 3)."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int)]
    width = max(round(HEIGHT * frames.shape[2] / frames.shape[1]), 1)
    image = Image.new("RGB", (max(len(chosen) * width, 480), LINE + HEIGHT + 4), "white")
    ImageDraw.Draw(image).text((4, LINE / 2), shorten(text, image.width - 8, 12), "black", font(12), "lm")
    for k, frame in enumerate(chosen):
        image.paste(Image.fromarray(resized(frame, width, HEIGHT)), (k * width, LINE))
    return image


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Return images one below the other, on white."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet
