"""TensorBoard itself, opened on the folder of a run that was trained and tested."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import HANG, wait_until
from tests.tiny_runs import run as train_run
from tests.tiny_runs import tiny
from video_gn.data.motion import write_dataset
from video_gn.engine.test import test_checkpoint as score


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    videos = folder / "videos"
    write_dataset(videos, train_videos=10, val_videos=10, num_frames=20, size=32, workers=1, progress=False)
    options = ["data.class_names=classes.txt", "train.percentiles_of=res5", "train.epochs=1", "test.clips=2"]
    folder = train_run(tiny(folder, videos, *options))
    score(folder / "checkpoints" / "last.pt")
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Of a TensorBoard that shows the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--port", "0", "--load_fast", "false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = []
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                pytest.fail("".join(said))
        finally:
            server.kill()


def get(address: str, page: str) -> Any:
    with urllib.request.urlopen(address.rstrip("/") + page, timeout=HANG) as answer:
        return json.load(answer)


def test_it_shows_the_run_and_its_test(address: str, run: Path) -> None:
    runs: dict[str, Any] = {}
    wait_until(lambda: runs.update(get(address, "/data/plugin/scalars/tags")) or len(runs) == 2)  # it reads behind
    assert set(runs) == {".", "test_2-clip_center_32"}
    tags = set(runs["."])
    assert {tag.split("/")[0] for tag in tags} == {"train", "epoch", "val", "system", "summary", "percentiles"}
    for expected in ("train/loss", "train/lr", "val/top1_error", "system/epoch", "system/clips_per_second"):
        assert expected in tags
    assert {f"percentiles/res5/p{p:02d}" for p in (1, 20, 80, 99)} <= tags
    assert set(runs["test_2-clip_center_32"]) == {"test/top1", "test/top5", "test/mean_class_accuracy"}

    images = get(address, "/data/plugin/images/tags")
    assert {tag for tags in images.values() for tag in tags} == {"test/confusion", "test/worst_videos"}
    texts = get(address, "/data/plugin/text/tags")
    assert {tag for tags in texts.values() for tag in tags} == {"config/text_summary", "model/text_summary"}
    (shown,) = get(address, "/data/plugin/text/text?run=.&tag=config/text_summary")
    assert "percentiles_of: res5" in shown["text"]

    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["val/top1_error"]) for line in log if "val/top1_error" in line]
    points = get(address, "/data/plugin/scalars/scalars?run=.&tag=val/top1_error")
    assert [(step, value) for _, step, value in points] == [(s, pytest.approx(v, rel=1e-6)) for s, v in expected]
