"""A test in TensorBoard: which videos are shown, and their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from video_gn.data.dataset import Clips, TestClips
from video_gn.data.loader import TIMEOUT, Loader

WORST = 12  # videos


def show_test(
    folder: Path, figures: Mapping[str, float | None], step: int, videos: TestClips, rows: Mapping[int, np.ndarray],
    names: Sequence[str], workers: int = 0,
) -> None:  # fmt: skip
    """Write a test into `folder`, which TensorBoard shows as a run beside its training; what was there is replaced.

    Args:
        figures: scalars by name, shown as test/NAME.
        videos: the data set that was tested; frames of the worst videos are read from it again.
        rows: scores (K,) of each video that has some, by its index.
        names: of the K classes.
        workers: with 0 this process reads the frames, else one worker does.
    """
    from video_gn.draw.board import video_row, write_test  # here: matplotlib and TensorBoard take a while to import

    labels = {index: videos.records[index].label for index in rows}
    matrix = np.zeros((len(names), len(names)), np.int64)
    for index, row in rows.items():
        matrix[labels[index], row.argmax()] += 1
    worst = sorted(rows, key=lambda index: (rows[index][labels[index]], index))[:WORST]
    batches = Loader(videos, min(workers, 1), TIMEOUT, batch_sampler=[[index] for index in worst])
    items = [item for (item,) in batches if item.views]  # without those that can no longer be read
    drawn = [video_row(item.frames.numpy(), _text(item, rows[item.index], videos, names)) for item in items]
    write_test(folder, figures, step, matrix, names, drawn)


def _text(item: Clips, row: np.ndarray, videos: TestClips, names: Sequence[str]) -> str:
    """Return what a video is, what it was taken for, and its path."""
    best = int(row.argmax())
    text = f"{names[item.label]} {row[item.label]:.2f}, predicted {names[best]} {row[best]:.2f}"
    return f"{text}  {videos.records[item.index].path}"
