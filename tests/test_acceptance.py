"""The accuracies that the documents promise, by the commands that they give (minutes each: make test-slow)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HANG

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def score(run: Path) -> dict:
    (path,) = run.glob("test_*.json")
    return json.loads(path.read_text())


def command(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, check=True, timeout=4 * HANG
    )  # each trains for minutes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One embedded data set for both nets."""
    return tmp_path_factory.mktemp("demo") / "motion"


def test_the_demo_learns_motions(tmp_path, data):
    command("tools/demo.py", f"data.root={data}", f"output_dir={tmp_path}")
    result = score(tmp_path)
    assert (result["protocol"], result["videos_scored"], result["videos_listed"]) == ("10-clip center 56", 200, 200)
    assert result["top1"] >= 80


def test_a_single_frame_does_not(tmp_path, data):
    command("tools/demo.py", f"data.root={data}", f"output_dir={tmp_path}", "data.stride=0")
    assert score(tmp_path)["top1"] <= 20


def test_two_labels_per_video_are_learned(tmp_path):
    command(
        *("tools/demo.py", "--shapes", "2", "--config", "configs/custom/motion_multilabel.yaml"),
        *("--train-videos", "1350", "--val-videos", "225", f"data.root={tmp_path / 'pairs'}"),
        f"output_dir={tmp_path / 'run'}",
    )
    result = score(tmp_path / "run")
    assert (result["protocol"], result["videos_scored"], result["videos_listed"]) == ("10-clip center 56", 225, 225)
    assert result["map"] >= 80


def test_real_videos_from_scratch(tmp_path, shared_data):
    root = shared_data / "ucf101_6"
    lists = ["data.train_list=train.csv", "data.val_list=test.csv", "data.test_list=test.csv", "model.num_classes=6"]
    config = "configs/custom/small_gn.yaml"
    command("tools/train.py", config, f"data.root={root}", *lists, f"output_dir={tmp_path}")
    command("tools/test.py", tmp_path / "checkpoints" / "last.pt")
    result = score(tmp_path)
    assert (result["videos_scored"], result["videos_listed"]) == (202, 202)
    assert result["top1"] >= 75
