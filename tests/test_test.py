"""The 10-clip test against a plain rewrite of its protocol, on any number of ranks, with files that cannot be read."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import HANG, files_up_to, read_only
from tests.tiny_runs import TINY, launch, tool
from video_gn.config import load_config
from video_gn.data.motion import CLASSES, write_dataset
from video_gn.engine import results
from video_gn.engine import test as testing
from video_gn.errors import UserError
from video_gn.models import build_model
from video_gn.run import checkpoint as ckpt

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


@pytest.fixture
def named(run: Path, tmp_path: Path) -> Path:
    """last.pt in a run's folder of its own, of a net that knows its classes by name."""
    state = ckpt.load(Path(checkpoint(run)))
    state["config"]["data"] |= {"class_names": "classes.txt", "workers": 0}
    state["config"]["test"] |= {"clips": 1}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ckpt.save(tmp_path / "run" / "checkpoints" / "last.pt", {**state, "class_names": list(CLASSES)})
    return tmp_path / "run"


def other_root(folder: Path, run: Path, names: Sequence[str], labels: Sequence[int] = (0, 1)) -> Path:
    """A data set of the run's videos with other class names and labels."""
    shutil.copytree(run.parent / "videos" / "val", folder / "val")
    videos = sorted(path.relative_to(folder) for path in folder.rglob("*.mp4"))
    (folder / "val.csv").write_text("".join(f"{path} {label}\n" for path, label in zip(videos, labels, strict=False)))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.mark.parametrize(
    "names",
    [
        CLASSES[1:3],  # a subset, as a tool made its list
        CLASSES[::-1],  # the same names in another order
        ("cat", "dog"),
        (*CLASSES[:9], "another"),
        (*CLASSES[1:], CLASSES[0], "more"),
    ],
)
def test_a_list_of_other_classes_is_refused(run, named, tmp_path, names):
    root = other_root(tmp_path / "other", run, names)
    with pytest.raises(UserError) as caught:
        testing.test_checkpoint(named / "checkpoints" / "last.pt", [f"data.root={root}"])
    label = next(k for k, (ours, theirs) in enumerate(zip(CLASSES, names, strict=False)) if ours != theirs)
    assert f"label {label} is {CLASSES[label]!r} to the network and {names[label]!r} in {root}/classes.txt" in str(
        caught.value
    )
    assert f"its classes are {', '.join(CLASSES[:8])} and 2 more" in str(caught.value)
    assert "tools/make_lists.py --classes FILE" in str(caught.value)
    assert not list(named.glob("test_*"))


@pytest.mark.parametrize(
    "names",
    [
        [name.title() for name in CLASSES],
        CLASSES[:2],  # the first ones: their labels mean the same
        map(str, range(10)),  # no names
        ["up", "", "down"],  # not a file of names
    ],
)
def test_labels_that_mean_the_same_are_scored(run, named, tmp_path, names):
    root = other_root(tmp_path / "other", run, list(names))
    result = testing.test_checkpoint(named / "checkpoints" / "last.pt", [f"data.root={root}"])
    assert result.videos_scored == 2


def test_a_list_without_labels_names_the_tool_for_it(run, named, tmp_path):
    videos = sorted(str(path) for path in (run.parent / "videos").rglob("*.mp4"))[:2]
    (tmp_path / "spaces").mkdir()
    spaced = [shutil.copy(path, tmp_path / "spaces" / f"a b {k}.mp4") for k, path in enumerate(videos)]
    kinetics = "youtube_id,time_start,time_end,split\nAAAAAAAAAAA,1,11,test\n"
    for text in ("\n".join(videos), "path\n" + "\n".join(videos), "\n".join(map(str, spaced)), kinetics):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(UserError, match=r"list.csv has no labels.*tools/predict.py .*last.pt VIDEO"):
            testing.test_checkpoint(named / "checkpoints" / "last.pt", [f"data.test_list={tmp_path / 'list.csv'}"])
    (tmp_path / "list.csv").write_text(f"{videos[0]} up\n")  # has one, of another form
    with pytest.raises(UserError, match="the label 'up' is not an integer"):
        testing.test_checkpoint(named / "checkpoints" / "last.pt", [f"data.test_list={tmp_path / 'list.csv'}"])


def scored(folder: Path) -> dict[str, float]:
    """By name, the JSON files of tests; each has its csv and its folder for TensorBoard."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("test_*.json")}
    assert {path.stem for path in folder.glob("test_*.csv")} == set(found)
    assert {path.name for path in folder.glob("test_*") if path.is_dir()} == set(found)
    return found


def test_no_score_takes_anothers_place(run, named, tmp_path):
    """Other lists, contents of a list, strides, short sides, checkpoints and steps."""
    last, plain = named / "checkpoints" / "last.pt", "test_1-clip_center_32"
    testing.test_checkpoint(last)
    (own,) = scored(named).items()
    assert own[0] == plain
    shutil.copy(last, last.with_name("best.pt"))
    root = other_root(tmp_path / "other", run, CLASSES)
    others = {
        "_train_8x2_short_side_48_last_step_3_": (last, ["data.test_list=train.csv"]),
        "_val_8x1_short_side_48_last_step_3_": (last, ["data.stride=1"]),
        "_val_16x2_short_side_48_last_step_3_": (last, ["data.frames=16"]),
        "_val_8x2_short_side_40_last_step_3_": (last, ["test.short_side=40"]),
        "_val_8x2_short_side_48_best_step_3_": (last.with_name("best.pt"), []),
        "_val_8x2_short_side_48_last_step_3_ ": (last, [f"data.root={root}"]),  # a list of the same name
        "_val_8x2_short_side_48_last_step_3_  ": (last, ["data.mean=[0.5, 0.5, 0.5]"]),
    }
    for path, overrides in others.values():
        testing.test_checkpoint(path, overrides)
    found = scored(named)
    assert found.pop(plain) == own[1]
    assert sorted(name[: len(plain) + len(part.strip())] for part in others for name in found if part.strip() in name)
    assert sorted({name[: -len("0a1b2c3d")] for name in found}) == sorted({plain + part.strip() for part in others})
    assert len(found) == len(others)
    testing.test_checkpoint(last, ["data.stride=1"])  # the same score again
    assert len(scored(named)) == 1 + len(others)

    state = ckpt.load(last)
    ckpt.save(last, {**state, "step": 6})  # the run was trained further: its own test again
    testing.test_checkpoint(last)
    again = scored(named)
    assert again[plain]["step"] == 6
    (before,) = again.keys() - found.keys() - {plain}
    assert before.startswith(f"{plain}_val_8x2_short_side_48_last_step_3_") and again[before] == own[1]


def test_another_root_with_the_same_videos_is_the_same_test(run, named, tmp_path):
    shutil.copytree(run.parent / "videos", tmp_path / "moved")
    last = named / "checkpoints" / "last.pt"
    for overrides in ([f"data.root={tmp_path / 'moved'}"], [], ["test.clips_per_batch=1"], ["test.views=full"]):
        testing.test_checkpoint(last, overrides)
    assert set(scored(named)) == {"test_1-clip_center_32", "test_1-clip_full_48"}


def test_checkpoints_of_one_folder_do_not_share_a_name(named, tmp_path):
    for name in ("a.pt", "b.pt"):
        shutil.copy(named / "checkpoints" / "last.pt", tmp_path / name)
        testing.test_checkpoint(tmp_path / name)
    assert [r["checkpoint"] for r in scored(tmp_path).values()] in (["a.pt", "b.pt"], ["b.pt", "a.pt"])


def test_a_place_that_cannot_be_written_is_said_before_the_work(named, tmp_path, monkeypatch):
    last = named / "checkpoints" / "last.pt"
    with read_only(named), monkeypatch.context() as patch:
        patch.setattr(testing, "score_videos", None)
        with pytest.raises(UserError, match=r"run: cannot be written \(.*\); give --out FOLDER"):
            testing.test_checkpoint(last)
    with files_up_to(500_000), monkeypatch.context() as patch:
        patch.setattr(testing, "score_videos", None)
        with pytest.raises(
            UserError, match=r"run: cannot be written \(File too large\); free space or give --out FOLDER"
        ):
            testing.test_checkpoint(last)
    with read_only(named):
        assert testing.test_checkpoint(last, out=tmp_path / "scores" / "mine").videos_scored == 7
    assert set(scored(tmp_path / "scores" / "mine")) == {"test_1-clip_center_32"}


@pytest.mark.parametrize("broken", ["write_text", "show_test"])
def test_the_table_is_printed_whatever_fails_at_the_end(named, monkeypatch, capsys, broken):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if broken == "show_test":
        monkeypatch.setattr(testing, broken, fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free space or give --out"):
        testing.test_checkpoint(named / "checkpoints" / "last.pt")
    assert "videos scored        7 of 7 listed" in capsys.readouterr().out
    assert bool(list(named.glob("test_*.csv"))) == (broken == "show_test")


def test_top_5_of_5_classes_says_nothing(tmp_path):
    result = results.TestResult(
        "p",
        {"top1": 1.0, "top5": None, "mean_class_accuracy": 1.0},
        1,
        1,
        {},
        1.0,
        1.0,
        "last.pt",
        1,
        "",
        "val.csv",
        "",
        {},
    )
    assert "top-5                     -" in result.table()
    assert result.table().startswith("p, last.pt after step 1, on val.csv\n")


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
        out, err = process.communicate(timeout=HANG)
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
