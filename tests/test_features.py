"""Features against the net's own logits and hooks; what a kill, another rank or a bad file leaves in the folder."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import HANG
from tests.tiny_runs import launch
from tests.untrained import write_untrained
from video_gn import features, inference
from video_gn.config import load_config
from video_gn.data import dataset
from video_gn.data.decode import open_video
from video_gn.data.workers import WorkerLost
from video_gn.errors import UserError
from video_gn.features import extract_features, pooled, read_index, read_shard
from video_gn.files.atomic import temporary_path
from video_gn.models import build_model
from video_gn.run import checkpoint as ckpt

VIDEOS, CLIPS = 7, 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint of an untrained net, 7 videos beside it, and a list of them with labels that the net lacks."""
    folder = tmp_path_factory.mktemp("features")
    overrides = [f"test.clips={CLIPS}", "test.short_side=48"]
    checkpoint = write_untrained(folder, overrides, train_videos=10, val_videos=VIDEOS, size=48)
    paths = [line.rsplit(" ", 1)[0] for line in (folder / "videos" / "val.csv").read_text().splitlines()]
    (folder / "videos" / "new.csv").write_text("".join(f"{path} {1000 + k}\n" for k, path in enumerate(paths)))
    return checkpoint


def extract(trained: Path, out: Path, **options) -> features.Features:
    return extract_features(trained, "new.csv", out, **options)


def rows_of(out: Path) -> dict[str, np.ndarray]:
    """By path, a video's features (R, C), read as a stranger would: csv and NumPy alone."""
    result = {}
    with (out / "index.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        array = np.load(out / line["shard"])["features"]
        following = [int(r["row"]) for r in lines if r["shard"] == line["shard"] and int(r["row"]) > int(line["row"])]
        result[line["path"]] = array[int(line["row"]) : min(following, default=len(array))]
    return result


def clips_of(trained: Path, path: str) -> torch.Tensor:
    """The 4 clips of a video, middle crop 32 of 48, by hand: (4, 3, 8, 32, 32)."""
    with open_video(str(trained.parent / "videos" / path), "auto") as video:
        frames = video.read(list(range(40)), (0, 0, 48, 48)).float() / 255
    frames = ((frames - 0.45) / 0.225)[:, 8:40, 8:40].permute(3, 0, 1, 2)
    return torch.stack([frames[:, start : start + 16 : 2] for start in (0, 8, 16, 24)])


def test_features_times_the_head_are_the_logits(trained, tmp_path):
    done = extract(trained, tmp_path / "out")
    assert (done.videos, done.listed, done.channels, done.unreadable) == (VIDEOS, VIDEOS, 256, {})
    model = inference.load(trained, "cpu").model
    for path, rows in rows_of(tmp_path / "out").items():
        assert rows.shape == (CLIPS, 256) and rows.dtype == np.float32
        expected = model(clips_of(trained, path))
        logits = torch.from_numpy(rows) @ model.head.fc.weight.T + model.head.fc.bias
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_the_index_names_paths_and_labels_of_the_list(trained, tmp_path):
    extract(trained, tmp_path / "out", videos_per_shard=3, per="video")
    lines = (tmp_path / "out" / "index.csv").read_text().splitlines()
    listed = [line.split() for line in (trained.parent / "videos" / "new.csv").read_text().splitlines()]
    shards = [f"features_0000{k // 3}.npz" for k in range(VIDEOS)]
    assert lines[0] == "path,label,shard,row,clips"
    assert lines[1:] == [f"{path},{label},{shards[k]},{k % 3},4" for k, (path, label) in enumerate(listed)]


@pytest.mark.parametrize("stage", ["stem", "res2", "res3"])
def test_a_stage_is_the_mean_of_its_hooked_output(trained, tmp_path, stage):
    extract(trained, tmp_path / "out", stage=stage, per="video", form="npz")
    model = inference.load(trained, "cpu").model
    seen: list[torch.Tensor] = []
    module = model.stem if stage == "stem" else list(model.get_submodule(stage).children())[-1]
    module.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    for path, rows in rows_of(tmp_path / "out").items():
        model(clips_of(trained, path))
        expected = seen.pop().mean((0, 2, 3, 4))  # over clips, frames and places
        np.testing.assert_allclose(rows[0], expected, atol=1e-5, rtol=1e-4)


def test_views_are_averaged(trained, tmp_path):
    """Of square frames the three crops of 48 are one and the same."""
    extract(trained, tmp_path / "three", overrides=["test.views=three"])
    extract(trained, tmp_path / "full", overrides=["test.views=full", "test.clips_per_batch=3"])
    full = rows_of(tmp_path / "full")
    for path, rows in rows_of(tmp_path / "three").items():
        np.testing.assert_allclose(rows, full[path], atol=1e-5)


def test_images_and_2d_nets(trained):
    model = build_model(load_config(trained.parent / "tiny.yaml").model, dims=2).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.head.fc(pooled(model, x, "res5")), model(x))


def test_a_killed_run_goes_on_behind_its_last_shard(trained, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    extract(trained, whole, videos_per_shard=2)
    write_text = features.write_text

    def killed_after_two_shards(path, text, elsewhere):
        if (out / "features_00002.npz").exists():  # written, and not yet in the index
            raise KeyboardInterrupt
        write_text(path, text, elsewhere)

    monkeypatch.setattr(features, "write_text", killed_after_two_shards)
    with pytest.raises(KeyboardInterrupt):
        extract(trained, out, videos_per_shard=2)
    assert len(read_index(out)) == 4
    monkeypatch.undo()
    calls: list[int] = []
    monkeypatch.setattr(features, "pooled", lambda *args: (calls.append(1), pooled(*args))[1])
    assert extract(trained, out, videos_per_shard=2).videos == VIDEOS
    assert len(calls) == 3  # the other videos, one pass each
    for name in ("index.csv", "features_00002.npz", "features_00003.npz"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert extract(trained, out).videos == VIDEOS and len(calls) == 3


def test_other_features_in_the_same_folder_are_refused(trained, tmp_path):
    extract(trained, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for options, words in (
        ({"stage": "res4"}, "stage \\(res5, now res4\\)"),
        ({"per": "video"}, "per \\(clip, now video\\)"),
        ({"overrides": ["test.clips=2"]}, "clips.number \\(4, now 2\\)"),
        ({"overrides": ["test.views=full"]}, "views.kind \\(center, now full\\)"),
        ({"overrides": ["model.groups=2"]}, "model.groups \\(4, now 2\\)"),  # the weights are the same
        ({"overrides": ["data.decoder=pyav"]}, "decoder \\(auto, now pyav\\)"),
    ):
        with pytest.raises(UserError, match=f"holds features of another {words}.*name a new folder"):
            extract(trained, tmp_path / "out", **options)
    state = ckpt.load(trained)
    state["model"]["head.fc.bias"][0] += 1
    ckpt.save(tmp_path / "other.pt", state)
    with pytest.raises(UserError, match="another weights \\([0-9a-f]{8}, now [0-9a-f]{8}\\); name"):
        extract(tmp_path / "other.pt", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        extract(trained, tmp_path / "mine")


def test_a_folder_that_a_kill_left_is_gone_on_with_and_a_damaged_one_refused(trained, tmp_path):
    (tmp_path / "out").mkdir()
    temporary_path(tmp_path / "out" / "features.json").write_text('{"weig')  # of the very first write
    assert extract(trained, tmp_path / "out", per="video").videos == VIDEOS
    for content in (b'{"weights": "12', b"[1]", b"\xff"):
        (tmp_path / "out" / "features.json").write_bytes(content)
        with pytest.raises(UserError, match="features.json: damaged.*; name a new folder"):
            extract(trained, tmp_path / "out", per="video")
    with pytest.raises(UserError, match="cannot make the folder \\(File exists\\); name another"):
        extract(trained, tmp_path / "out" / "index.csv")


def test_a_worker_that_dies_or_hangs_is_a_line(trained, tmp_path, monkeypatch):
    def kill_a_worker(*_):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(HANG)  # torch raises it wherever the main thread is: here

    with monkeypatch.context() as patch:
        patch.setattr(features, "pooled", kill_a_worker)
        with pytest.raises(WorkerLost, match="DataLoader worker .* killed by signal.*; start again"):
            extract(trained, tmp_path / "out", overrides=["data.workers=1"])
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(dataset.TestClips, "__getitem__", lambda *_: time.sleep(HANG))
    with pytest.raises(WorkerLost, match="DataLoader timed out after 1.0 seconds"):
        extract(trained, tmp_path / "out", overrides=["data.workers=1", "data.timeout=1"])


def test_safetensors_and_the_example_of_the_docs(trained, tmp_path, root):
    pytest.importorskip("safetensors")
    extract(trained, tmp_path / "out", videos_per_shard=3)
    extract(trained, tmp_path / "safe", form="safetensors", videos_per_shard=3)
    for number in range(3):
        a = read_shard(tmp_path / "out" / f"features_0000{number}.npz")
        assert np.array_equal(a, read_shard(tmp_path / "safe" / f"features_0000{number}.safetensors"))
    example = re.findall(r"```python\n(.*?)```", (root / "docs" / "features.md").read_text(), flags=re.DOTALL)[0]
    names: dict = {}
    exec(example.replace("features/val", str(tmp_path / "out")), names)
    expected = np.stack([rows.mean(0) for rows in rows_of(tmp_path / "out").values()])
    np.testing.assert_allclose(names["videos"], expected, atol=1e-6)
    assert names["labels"] == [1000 + k for k in range(VIDEOS)]


def test_ranks_and_unreadable_videos(trained, tmp_path):
    """7 videos on 2 ranks, one of them bad: the same shards as a single process writes, and exit code 2."""
    shutil.copytree(trained.parent / "videos", tmp_path / "videos")
    listed = [line.split()[0] for line in (tmp_path / "videos" / "new.csv").read_text().splitlines()]
    good = (tmp_path / "videos" / listed[3]).read_bytes()
    (tmp_path / "videos" / listed[3]).write_bytes(b"no video")
    out = tmp_path / "out"
    root = f"data.root={tmp_path / 'videos'}"
    command = ["tools/extract_features.py", str(trained), "new.csv", str(out), root, "--shard", "3"]
    for rank, process in enumerate(launch(2, *command)):
        stdout, stderr = process.communicate(timeout=HANG)
        if rank == 0:
            assert process.returncode == 2, stderr
            assert "6 of 7 videos, 256 features each" in stdout
            assert "1 of 7 videos could not be read, more than test.max_unreadable 0" in stderr
    rows = rows_of(out)
    assert list(rows) == [path for path in listed if path != listed[3]]
    extract(trained, tmp_path / "single")
    single = rows_of(tmp_path / "single")
    for path, values in rows.items():
        np.testing.assert_allclose(values, single[path], atol=1e-5)
    (tmp_path / "videos" / listed[3]).write_bytes(good)  # mended: the same command adds it
    extract(trained, out, overrides=[root])
    assert [row.path for row in read_index(out)] == [*rows, listed[3]]
    np.testing.assert_allclose(rows_of(out)[listed[3]], single[listed[3]], atol=1e-5)


def test_mistakes(trained, tmp_path):
    with pytest.raises(UserError, match="stage 'res6' is not known; choose one of stem, res2"):
        extract(trained, tmp_path / "out", stage="res6")
    with pytest.raises(UserError, match="absent.csv"):
        extract_features(trained, "absent.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
