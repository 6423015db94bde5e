"""What TensorBoard shows of a test: its numbers, the confusion matrix, and the worst videos with their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter

from video_gn.data.dataset import Clips, TestClips
from video_gn.data.loader import TIMEOUT, Loader
from video_gn.data.targets import Target, labels_of
from video_gn.draw import font, resized, shorten
from video_gn.plots import confusion_figure
from video_gn.tasks import Task

WORST, FRAMES = 12, 6  # videos, frames of each
HEIGHT, LINE = 112, 18  # pixels of a frame and of the text above it


def show_test(
    folder: Path, task: Task, figures: Mapping[str, float | None], step: int, videos: TestClips,
    rows: Mapping[int, np.ndarray], names: Sequence[str], workers: int = 0,
) -> None:  # fmt: skip
    """Write a test into `folder`, which TensorBoard shows as a run beside its training; what was there is replaced.

    Args:
        task: of the network.
        figures: scalars by name, shown as test/NAME.
        videos: the data set that was tested; frames of the worst videos are read from it again.
        rows: scores (K,) of each video that has some, by its index.
        names: of the K classes.
        workers: with 0 this process reads the frames, else one worker does.
    """
    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    targets = {index: videos.records[index].target for index in rows}
    matrix = task.confusion([*targets.values()], [_predicted(task, row) for row in rows.values()])
    worst = sorted(rows, key=lambda index: (task.confidence(rows[index], targets[index]), index))[:WORST]
    with SummaryWriter(str(folder)) as board:
        for name, value in figures.items():
            if value is not None:
                board.add_scalar(f"test/{name}", value, step)
        if matrix is not None:
            figure = confusion_figure(matrix, names)
            board.add_figure("test/confusion", figure, step)
            plt.close(figure)
        batches = Loader(videos, min(workers, 1), TIMEOUT, batch_sampler=[[index] for index in worst])
        if sheet := worst_sheet(task, [(item, rows[item.index]) for (item,) in batches], videos, names):
            board.add_image("test/worst_videos", np.asarray(sheet), step, dataformats="HWC")


def worst_sheet(
    task: Task, scored: Sequence[tuple[Clips, np.ndarray]], videos: TestClips, names: Sequence[str]
) -> Image.Image | None:
    """A line of text and a row of frames a video: what it is, what it was taken for. None without a readable video."""
    lines = [_line(task, item, row, videos, names) for item, row in scored if item.views]
    if not lines:
        return None
    sheet = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), "white")
    top = 0
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    return sheet


def _predicted(task: Task, row: np.ndarray) -> Target:
    return task.parse(task.predicted(row))


def _scored(target: Target, row: np.ndarray, names: Sequence[str]) -> str:
    """Labels with their scores."""
    return ", ".join(f"{names[label]} {row[label]:.2f}" for label in labels_of(target)) or "no label"


def _line(task: Task, item: Clips, row: np.ndarray, videos: TestClips, names: Sequence[str]) -> Image.Image:
    frames = item.frames.numpy()
    chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int)]
    width = max(round(HEIGHT * frames.shape[2] / frames.shape[1]), 1)
    image = Image.new("RGB", (max(len(chosen) * width, 480), LINE + HEIGHT + 4), "white")
    text = f"{_scored(item.target, row, names)}, predicted {_scored(_predicted(task, row), row, names)}"
    text += f"  {videos.records[item.index].path}"
    ImageDraw.Draw(image).text((4, LINE / 2), shorten(text, image.width - 8, 12), "black", font(12), "lm")
    for k, frame in enumerate(chosen):
        image.paste(Image.fromarray(resized(frame, width, HEIGHT)), (k * width, LINE))
    return image
