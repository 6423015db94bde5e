"""The commands of docs/own_videos.md, run as they stand (minutes: make test-slow)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from video_gn.data.motion import write_dataset

ROOT = Path(__file__).parent.parent


def commands() -> str:
    text = (ROOT / "docs" / "own_videos.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_every_tool_of_the_quick_start_is_there() -> None:
    tools = re.findall(r"^python (tools/\w+\.py)", commands(), re.MULTILINE)
    assert tools == [
        f"tools/{name}.py" for name in ("make_lists", "doctor", "show_clips", "train", "test", "report", "predict")
    ]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A working copy with six classes in my_videos: real videos where there are some, else motions."""
    for name in ("tools", "configs", "video_gn"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        videos = request.getfixturevalue("shared_data") / "ucf101_6" / "videos"
    except pytest.skip.Exception:
        write_dataset(tmp_path / "motion", train_videos=1000, val_videos=1)
        videos = tmp_path / "motion" / "train"
    for source in sorted(videos.iterdir())[:6]:
        shutil.copytree(source, tmp_path / "my_videos" / source.name)
    return tmp_path


@pytest.mark.slow
def test_the_quick_start(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "runs" / "my_videos"
    score = json.loads((run / "test_10-clip_center_96.json").read_text())
    assert score["videos_scored"] == score["videos_listed"] > 100
    assert score["top1"] > 65  # chance is 17 %
    assert f"{score['top1']:.2f}" in (run / "report.html").read_text()
    assert (folder / "clips.png").exists()
    video, rank, name, _ = done.stdout.splitlines()[-2].split("\t")
    assert video.startswith("my_videos/") and rank == "1"
    assert name in [path.name for path in (folder / "my_videos").iterdir()]
    assert len(list((folder / "predictions").iterdir())) == 2
