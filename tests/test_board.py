"""What TensorBoard shows of a test, read back by TensorBoard's own reader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_gn.data.dataset import TestClips
from video_gn.data.lists import Record
from video_gn.data.motion import write_dataset
from video_gn.data.sampling import ClipSpec
from video_gn.draw.board import LINE
from video_gn.engine.board import show_test
from video_gn.tasks.classification import Classification


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> TestClips:
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=10, val_videos=10, num_frames=12, size=48, workers=1, progress=False)
    lines = [line.rsplit(" ", 1) for line in (folder / "val.csv").read_text().splitlines()]
    records = [Record(path, int(label), number) for number, (path, label) in enumerate(lines[:4], 1)]
    records[3] = Record("gone.mp4", 1, 4)
    spec = ClipSpec(frames=4, stride=2, crop=48, short_side=(48, 48))
    return TestClips(records, str(folder), "pyav", spec, views="center", clips=2, clip_starts="spread", short_side=48)


def shown(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder), size_guidance={"images": 0})
    board.Reload()
    return board


def test_scalars_confusion_and_worst_videos(videos: TestClips, tmp_path: Path) -> None:
    names = [f"class{k}" for k in range(10)]
    rows = {i: np.full(10, 0.05, np.float32) for i in range(4)}
    for _ in range(2):  # the second replaces the first
        show_test(tmp_path, Classification(10), {"top1": 75.0, "top5": None}, 30, videos, rows, names)
    board = shown(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("test/top1")] == [(30, 75.0)]
    assert set(board.Tags()["images"]) == {"test/confusion", "test/worst_videos"}
    assert "test/top5" not in board.Tags()["scalars"]
    (picture,) = board.Images("test/worst_videos")
    sheet = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    rows_of_frames = sheet.shape[0] / (LINE + 112 + 4)
    assert rows_of_frames == 3  # the video that is gone has no row
    frames = sheet[LINE : LINE + 112, :112]
    assert frames.std() > 1  # a frame, and not blank


def test_nothing_scored(videos: TestClips, tmp_path: Path) -> None:
    show_test(tmp_path, Classification(2), {"top1": None}, 1, videos, {}, ["a", "b"])
    assert shown(tmp_path).Tags()["images"] == ["test/confusion"]
