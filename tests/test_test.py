"""The 10-clip test against a plain rewrite of its protocol, on any number of ranks, with files that cannot be read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_train import TINY, launch, tool
from video_gn.config import load_config
from video_gn.data.motion import CLASSES, write_dataset
from video_gn.engine import checkpoint as ckpt
from video_gn.engine import test as testing
from video_gn.errors import UserError
from video_gn.models import build_model

FRAMES, STRIDE, CROP = 8, 2, 32


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with the checkpoint of an untrained net whose scores differ, and its videos."""
    folder = tmp_path_factory.mktemp("tested")
    write_dataset(folder / "videos", train_videos=10, val_videos=7, num_frames=40, size=48, workers=1, progress=False)
    (folder / "tiny.yaml").write_text(TINY.format(out=folder / "run", root=folder / "videos"))
    config = load_config(folder / "tiny.yaml", ["test.clips=4", "test.short_side=48"])
    torch.manual_seed(0)
    model = build_model(config.model)
    nn.init.normal_(model.head.fc.weight, std=1)
    for parameter in model.norm_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    state = {"model": model.state_dict(), "step": 3, "config": config.model_dump(mode="json")}
    ckpt.save(folder / "run" / "checkpoints" / "last.pt", state)
    return folder / "run"


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "last.pt")


def test_the_class_names_are_the_checkpoints(run: Path, tmp_path: Path) -> None:
    """Their file may be gone."""
    state = ckpt.load(Path(checkpoint(run)))
    state["config"]["data"]["class_names"] = "gone.txt"
    names = [name.upper() for name in CLASSES]  # spelled as another file had it
    ckpt.save(tmp_path / "last.pt", {**state, "class_names": names})
    testing.test_checkpoint(tmp_path / "last.pt", ["test.clips=1"])
    (written,) = tmp_path.glob("test_*.csv")
    assert written.read_text().splitlines()[0].endswith(",".join(f"score_{name}" for name in names))


def test_scores_that_are_not_finite_are_no_scores(run: Path, tmp_path: Path) -> None:
    state = ckpt.load(Path(checkpoint(run)))
    state["model"]["head.fc.bias"][3] = torch.nan
    ckpt.save(tmp_path / "last.pt", state)
    with pytest.raises(UserError, match=r"the scores of .* are not finite; test another checkpoint"):
        testing.test_checkpoint(tmp_path / "last.pt")
    assert not list(tmp_path.glob("test_*"))


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / f"test_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"score_{k}"]) for k in range(10)] for row in rows])


def plainly(run: Path, views: str, short_side: int) -> np.ndarray:
    """The protocol without any of the package's data code: decode all, resize all, slide the head by hand."""
    state = torch.load(checkpoint(run), weights_only=True)
    model = build_model(load_config(run.parent / "tiny.yaml").model).eval()
    model.load_state_dict(state["model"])
    result = []
    videos = run.parent / "videos"
    for line in (videos / "val.csv").read_text().splitlines():
        with av.open(str(videos / line.rsplit(" ", 1)[0])) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        if x.shape[-1] != short_side:
            x = F.interpolate(x, (short_side, short_side), mode="bilinear", antialias=True)
        x = (x - 0.45) / 0.225
        low = (short_side - CROP) // 2
        crops = {
            "center": [x[..., low : low + CROP, low : low + CROP]],
            "three": [x, x, x],  # a square frame: all three windows are the frame
            "full": [x],
        }[views]
        softmax = []
        for crop in crops:
            for k in range(4):
                start = round(k * (40 - FRAMES * STRIDE) / 3)
                clip = crop[[start + i * STRIDE for i in range(FRAMES)]].transpose(0, 1)[None]
                with torch.no_grad():
                    maps = model.features(clip)[0].mean(1)  # C, h, w
                    h, w = maps.shape[1:]
                    places = [maps[:, i, j] for i in range(h) for j in range(w)]  # the head's window is 1 at crop 32
                    softmax.append(torch.stack([model.head.fc(p).softmax(0) for p in places]).mean(0))
        result.append(torch.stack(softmax).mean(0).numpy())
    return np.stack(result)


@pytest.mark.parametrize(
    ("views", "short_side", "protocol"),
    [
        ("center", 48, "4-clip center 32"),
        ("three", 48, "4x3 48"),
        ("full", 64, "4-clip full 64"),
        ("full", 48, "4-clip full 48"),
    ],
)
def test_scores_are_those_of_the_protocol(run, views, short_side, protocol):
    result = testing.test_checkpoint(checkpoint(run), [f"test.views={views}", f"test.short_side={short_side}"])
    assert (result.protocol, result.videos_scored, result.videos_listed) == (protocol, 7, 7)
    rows = table(run, protocol.replace(" ", "_"))
    expected = plainly(run, views, short_side)
    np.testing.assert_allclose(scores(rows), expected, atol=2e-5)
    lines = [line.rsplit(" ", 1) for line in (run.parent / "videos" / "val.csv").read_text().splitlines()]
    assert [[row["path"], row["label"]] for row in rows] == lines
    assert [int(row["predicted"]) for row in rows] == expected.argmax(1).tolist()
    labels = np.array([int(label) for _, label in lines])
    saved = json.loads((run / f"test_{protocol.replace(' ', '_')}.json").read_text())
    assert saved["top1"] == pytest.approx(100 * (expected.argmax(1) == labels).mean(), abs=1e-3)
    hits = [label in row.argsort()[-5:] for row, label in zip(expected, labels, strict=True)]
    assert saved["top5"] == pytest.approx(100 * np.mean(hits), abs=1e-3)
    assert {"protocol", "videos_scored", "videos_listed", "mean_class_accuracy"} <= set(saved)


@pytest.mark.parametrize("clips_per_batch", [1, 3, 100])
def test_micro_batches_change_no_score(run, clips_per_batch):
    testing.test_checkpoint(checkpoint(run), ["test.views=three", "test.short_side=48"])
    before = scores(table(run, "4x3_48"))
    options = ["test.views=three", "test.short_side=48", f"test.clips_per_batch={clips_per_batch}"]
    testing.test_checkpoint(checkpoint(run), options)
    np.testing.assert_allclose(scores(table(run, "4x3_48")), before, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_one_score_a_video_on_any_number_of_ranks(run, tmp_path, ranks):
    """7 videos divide by neither 2 nor 3."""
    testing.test_checkpoint(checkpoint(run))
    one = table(run, "4-clip_center_32")
    shutil.copytree(run, tmp_path / "run")
    for rank, process in enumerate(launch(ranks, "tools/test.py", checkpoint(tmp_path / "run"))):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert ("7 of 7 listed" in out) == (rank == 0)
    several = table(tmp_path / "run", "4-clip_center_32")
    assert [row["path"] for row in several] == [row["path"] for row in one]
    np.testing.assert_allclose(scores(several), scores(one), atol=1e-6)


def test_an_unreadable_video_is_named_and_never_replaced(run, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(run.parent / "videos", root)
    shutil.copytree(run, tmp_path / "run")
    testing.test_checkpoint(checkpoint(tmp_path / "run"))
    whole = table(tmp_path / "run", "4-clip_center_32")
    bad = whole[2]["path"]
    (root / bad).write_bytes(b"no video")

    done = tool("tools/test.py", checkpoint(tmp_path / "run"), f"data.root={root}")
    assert done.returncode == 2
    assert "6 of 7 listed" in done.stdout  # the table comes first
    assert "1 of 7 test videos could not be read, more than test.max_unreadable 0" in done.stderr
    assert f"video not scored: {root / bad}" in done.stderr
    rows = table(tmp_path / "run", "4-clip_center_32")
    assert rows[2]["path"] == bad and rows[2]["problem"] and not rows[2]["predicted"]
    assert rows[:2] + rows[3:] == whole[:2] + whole[3:]
    saved = json.loads((tmp_path / "run" / "test_4-clip_center_32.json").read_text())
    assert (saved["videos_scored"], saved["videos_listed"], list(saved["unreadable"])) == (6, 7, [bad])

    allowed = tool("tools/test.py", checkpoint(tmp_path / "run"), f"data.root={root}", "test.max_unreadable=1")
    assert allowed.returncode == 0


def test_bad_checkpoints(run, tmp_path):
    good = Path(checkpoint(run)).read_bytes()
    half = tmp_path / "half.pt"
    half.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        testing.test_checkpoint(half)
    with pytest.raises(UserError, match="no such checkpoint"):
        testing.test_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="weights of another network"):
        testing.test_checkpoint(checkpoint(run), ["model.width=16"])
    with pytest.raises(UserError, match="did you mean 'views'"):
        testing.test_checkpoint(checkpoint(run), ["test.view=full"])
    done = tool("tools/test.py", str(half))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
