"""A test in TensorBoard: which videos are shown, and their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from video_gn.data.dataset import Clips, TestClips
from video_gn.data.loader import TIMEOUT, Loader
from video_gn.data.targets import Target, labels_of
from video_gn.tasks import Task

WORST = 12  # videos


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
    from video_gn.draw.board import video_row, write_test  # here: matplotlib and TensorBoard take a while to import

    targets = {index: videos.records[index].target for index in rows}
    matrix = task.confusion([*targets.values()], [_predicted(task, row) for row in rows.values()])
    worst = sorted(rows, key=lambda index: (task.confidence(rows[index], targets[index]), index))[:WORST]
    batches = Loader(videos, min(workers, 1), TIMEOUT, batch_sampler=[[index] for index in worst])
    items = [item for (item,) in batches if item.views]  # without those that can no longer be read
    drawn = [video_row(item.frames.numpy(), _text(task, item, rows[item.index], videos, names)) for item in items]
    write_test(folder, figures, step, matrix, names, drawn)


def _text(task: Task, item: Clips, row: np.ndarray, videos: TestClips, names: Sequence[str]) -> str:
    """Return what a video is, what it was taken for, and its path."""
    text = f"{_scored(item.target, row, names)}, predicted {_scored(_predicted(task, row), row, names)}"
    return f"{text}  {videos.records[item.index].path}"


def _predicted(task: Task, row: np.ndarray) -> Target:
    return task.parse(task.predicted(row))


def _scored(target: Target, row: np.ndarray, names: Sequence[str]) -> str:
    """Return labels with their scores."""
    return ", ".join(f"{names[label]} {row[label]:.2f}" for label in labels_of(target)) or "no label"
