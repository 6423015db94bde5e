"""The embedded data set: one frame says nothing of the class, flips keep it, and the files are right."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.data import motion
from video_gn.data.motion import CLASSES, render, write_dataset, write_video
from video_gn.errors import UserError

LABELS = range(len(CLASSES))
SEEDS = st.integers(0, 2**64 - 1)
TINY: dict[str, Any] = {"train_videos": 12, "val_videos": 10, "num_frames": 4, "size": 32, "workers": 1}
GOLDEN = [
    [134.0, 118.5, 109.8, 118.2],
    [113.0, 127.1, 121.1, 115.8],
    [114.4, 112.7, 115.7, 135.0],
    [154.1, 122.2, 115.3, 129.7],
]


def track_of(label: int, seed: int, num_frames: int = 48) -> motion.Track:
    return motion.draw_track(label, np.random.default_rng(seed), num_frames)


def flipped(track: motion.Track) -> motion.Track:
    """The track that a horizontal flip of the frames shows (of the mirrored shape)."""
    return track._replace(x=63 - track.x, angle=-track.angle)


def name_of(track: motion.Track) -> str:
    """Names a motion by its kinematics alone, over the whole track: the tests' independent oracle."""
    turns, grows = np.diff(track.angle), np.diff(track.radius)
    vx, vy = np.diff(track.x), np.diff(track.y)
    moving = {name for name, v in (("x", vx), ("y", vy), ("a", turns), ("r", grows)) if np.abs(v).max() > 1e-6}
    if not moving:
        return "still"
    if moving == {"a"}:
        return "spin" if np.ptp(turns) < 1e-9 else "?"
    if moving == {"r"}:  # a sawtooth: all steps but the jumps have one sign
        return "grow" if np.median(grows) > 0 else "shrink"
    if moving == {"x", "y"}:  # two oscillations a quarter of a period apart: constant speed
        return "circle" if np.ptp(np.hypot(vx, vy)) < 1e-6 else "?"
    if len(moving) > 1:
        return "?"
    v = vx if moving == {"x"} else vy
    if np.ptp(v) < 1e-6:
        return "sideways" if moving == {"x"} else ("up" if v[0] < 0 else "down")
    return "sway" if moving == {"x"} else "bob"


@given(SEEDS, st.sampled_from(LABELS))
@settings(max_examples=60, deadline=None)
def test_a_track_and_its_flip_show_the_class(seed: int, label: int) -> None:
    track = track_of(label, seed)
    assert name_of(track) == CLASSES[label]
    assert name_of(flipped(track)) == CLASSES[label]


def direction_of(track: motion.Track) -> float:
    """Sign and rate of the motion: along x, of the angle, of the circle (the cross product of two steps)."""
    (vx, wx), (vy, wy) = np.diff(track.x[:3]), np.diff(track.y[:3])
    return float({"sideways": vx, "spin": np.diff(track.angle)[0], "circle": vx * wy - vy * wx}[name_of(track)])


@pytest.mark.parametrize("name", ["sideways", "spin", "circle"])
def test_both_directions_are_equally_likely(name: str) -> None:
    rates = np.array([direction_of(track_of(CLASSES.index(name), seed)) for seed in range(400)])
    assert 160 < (rates > 0).sum() < 240  # 4 standard deviations of a fair coin
    assert np.median(rates[rates > 0]) == pytest.approx(-np.median(rates[rates < 0]), rel=0.2)


@given(SEEDS, st.sampled_from(LABELS))
@settings(max_examples=20, deadline=None)
def test_the_flipped_frames_are_those_of_the_flipped_track(seed: int, label: int) -> None:
    look, track = motion.draw_look(np.random.default_rng(seed), 64), track_of(label, seed, 6)
    mirrored = look._replace(ground=look.ground[:, ::-1], mirror=-look.mirror)
    frames = motion.draw_frames(flipped(track), mirrored).astype(int)
    np.testing.assert_allclose(frames, motion.draw_frames(track, look)[:, :, ::-1], atol=1)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_the_first_frame_does_not_depend_on_the_class(seed: int) -> None:
    first, *others = (render(label, seed, num_frames=1, size=32) for label in LABELS)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("label", LABELS, ids=CLASSES)
def test_place_angle_and_size_are_uniform_in_a_later_frame(label: int) -> None:
    """Kolmogorov-Smirnov: D sqrt(n) of a uniform sample exceeds 2.2 once in 8,000 times."""
    last = np.array([[column[-1] for column in track_of(label, seed, 18)] for seed in range(600)])
    low, high = motion.RADIUS
    values = (last - [0, 0, 0, low]) / [64, 64, 2 * math.pi, high - low]
    values[:, :3] %= 1
    assert values.min() >= 0 and values.max() <= 1
    ranks = np.arange(1, 601)[:, None] / 600
    distance = np.abs(np.sort(values, axis=0) - ranks + 1 / 1200).max(0) + 1 / 1200
    assert (distance * math.sqrt(600) < 2.2).all()
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.17  # 4 standard deviations


@given(SEEDS, st.sampled_from(LABELS))
@settings(max_examples=60, deadline=None)
def test_a_stride_of_two_frames_does_not_alias(seed: int, label: int) -> None:
    track = track_of(label, seed)
    for values, half_period in (
        (track.x, 32),
        (track.y, 32),
        (track.angle, math.pi / 2),
    ):  # a bar repeats at pi
        assert np.abs(values[2:] - values[:-2]).max() < half_period / 2


def test_a_bar_is_drawn_where_its_track_says() -> None:
    """Area, centre and direction, measured from the pixels' moments, to subpixel accuracy."""
    ground, colour = np.full((64, 64, 3), 0.2), np.full(3, 0.8)
    look = motion.Look(ground, 0, 1, colour, np.zeros((2, 3)))
    x, y = np.array([31.5, 30.2, 33.7]), np.array([31.5, 32.9, 29.4])
    angle, radius = np.array([0.0, 0.5, 2.0]), np.array([10.0, 14.3, 18.6])
    frames = motion.draw_frames(motion.Track(x, y, angle, radius), look)[..., 0]
    mask = (frames / 255.0 - 0.2) / 0.6
    across, down = np.arange(64)[None, None], np.arange(64)[None, :, None]
    area = mask.sum((1, 2))
    np.testing.assert_allclose(area, 2 * 0.68 * radius**2, rtol=0.03)
    cx, cy = (mask * across).sum((1, 2)) / area, (mask * down).sum((1, 2)) / area
    np.testing.assert_allclose([cx, cy], [x, y], atol=0.05)
    dx, dy = across - cx[:, None, None], down - cy[:, None, None]
    xx, yy, xy = ((mask * m).sum((1, 2)) for m in (dx * dx, dy * dy, dx * dy))
    np.testing.assert_allclose(np.sin(np.arctan2(2 * xy, xx - yy) / 2 - angle), 0, atol=0.01)  # modulo pi
    # On the torus: a whole turn around it changes nothing, half a turn moves the picture by half of it.
    there = motion.draw_frames(motion.Track(x + 64, y - 32, angle, radius), look)[..., 0].astype(int)
    np.testing.assert_allclose(there, np.roll(frames, 32, axis=1), atol=1)


def test_render_is_a_pure_function() -> None:
    frames = render(4, 7)
    assert frames.shape == (48, 64, 64, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(render(4, 7), frames)
    np.testing.assert_array_equal(render(4, 7, num_frames=9), frames[:9])
    assert np.abs(render(4, 8).astype(int) - frames).mean() > 3
    assert np.abs(render(5, 7).astype(int) - frames)[20:].mean() > 1


def test_a_changed_renderer_needs_a_new_version() -> None:
    """Means of 16 blocks of one frame, as version 1 drew it: new pixels, new motion.RENDERER."""
    blocks = render(7, 5)[30, :, :, 0].reshape(4, 16, 4, 16).mean((1, 3))
    assert motion.RENDERER == 1
    np.testing.assert_allclose(blocks, GOLDEN, atol=0.5)


def test_the_file_is_inter_coded_h264_of_the_same_frames(tmp_path: Path) -> None:
    frames = render(CLASSES.index("circle"), 3)
    write_video(tmp_path / "a.mp4", frames)
    assert os.listdir(tmp_path) == ["a.mp4"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 30
        decoded = list(container.decode(video=0))
    kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in decoded]
    assert len(kinds) == 48 and kinds.count("I") == 4  # a group of 12
    assert [round(frame.time * 30) for frame in decoded] == list(range(48))
    images = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(int)
    assert np.abs(images - frames).mean() < 2.5
    assert np.abs(images[1:] - frames[:-1]).mean() > 2 * np.abs(images - frames).mean()  # none is a frame late


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    frames = render(CLASSES.index("circle"), 11)
    for index in range(12):
        write_video(tmp_path / f"{index}.mp4", frames)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_failed_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match=r"a.mp4: cannot be written \(no space left\); set data.root to another folder"):
        write_video(tmp_path / "a.mp4", np.zeros((3, 32, 32, 3), np.uint8))
    assert os.listdir(tmp_path) == []

    def no_codec(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", no_codec)
    with pytest.raises(UserError, match="libx264"):
        write_video(tmp_path / "a.mp4", np.zeros((3, 32, 32, 3), np.uint8))


def test_a_place_that_cannot_hold_the_videos(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot make the folder \(File exists\); set data.root"):
        write_dataset(tmp_path / "file", **TINY)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "tiny"
    write_dataset(folder, **TINY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_lists_name_every_file_with_its_class(tiny: Path) -> None:
    assert (tiny / "classes.txt").read_text().split() == list(CLASSES)
    listed = []
    for split, videos in (("train", 12), ("val", 10)):
        rows = list(csv.reader((tiny / f"{split}.csv").open(), delimiter=" "))
        assert [int(label) for _, label in rows] == [*range(10), 0, 1][:videos]
        assert all(path.startswith(f"{split}/{CLASSES[int(label)]}/") for path, label in rows)
        listed += [path for path, _ in rows]
    assert listed[2] == "train/sideways/00002.mp4"
    files = contents(tiny)
    assert sorted(listed) == [name for name in files if name.endswith(".mp4")]
    assert len({files[name] for name in listed}) == 22  # no video twice, nor in both splits
    assert sorted(set(files) - set(listed)) == ["classes.txt", "motion.json", "train.csv", "val.csv"]
    assert json.loads(files["motion.json"]) == {
        "renderer": 1, "train_videos": 12, "val_videos": 10, "num_frames": 4, "size": 32, "seed": 0,
    }  # fmt: skip


def test_processes_and_counts_change_no_video(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_dataset(tmp_path, **(TINY | {"train_videos": 7, "workers": 2}))
    videos = {name: data for name, data in contents(tmp_path).items() if name.endswith(".mp4")}
    assert len(videos) == 17 and videos.items() <= contents(tiny).items()
    assert capfd.readouterr() == ("", "")  # no bar where stderr is not a terminal


def test_a_complete_folder_is_reused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(motion, "write_video", lambda *_: pytest.fail("wrote a video again"))
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    with caplog.at_level(logging.INFO):
        write_dataset(tiny, **TINY)
    assert "reused" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, "seed is 0, not 1"), ({"train_videos": 13}, "train_videos is 12, not 13")],
)
def test_other_parameters_are_refused(tiny: Path, change: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*delete this one"):
        write_dataset(tiny, **(TINY | change))


def test_another_renderer_and_another_data_set_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.csv").write_text("mine.mp4 0\n")
    with pytest.raises(UserError, match="train.csv"):
        write_dataset(tmp_path, **TINY)
    assert (tmp_path / "train.csv").read_text() == "mine.mp4 0\n"
    monkeypatch.setattr(motion, "RENDERER", 2)
    with pytest.raises(UserError, match="renderer is 1, not 2"):
        write_dataset(tiny, **TINY)


@pytest.mark.parametrize("change", [{"size": 33}, {"size": 16}, {"val_videos": 0}, {"num_frames": 0}, {"seed": -1}])
def test_parameters_out_of_range_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(f"{k}={v}" for k, v in change.items())):
        write_dataset(tmp_path / "new", **(TINY | change))
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def fragile(path: Path, frames: np.ndarray) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        write_video(path, frames)
        written.append(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(motion, "write_video", fragile)
        write_dataset(tmp_path, **TINY)
    assert not (tmp_path / "motion.json").exists()
    with pytest.raises(UserError, match="seed is 0, not 1"):  # the five files are of seed 0
        write_dataset(tmp_path, **(TINY | {"seed": 1}))
    stamps = {path: path.stat().st_mtime_ns for path in written}
    write_dataset(tmp_path, **TINY)
    assert {path: path.stat().st_mtime_ns for path in written} == stamps
    assert contents(tmp_path) == contents(tiny)


def test_the_module_does_not_import_torch() -> None:
    code = "import sys, video_gn.data.motion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- two shapes ---


def test_two_shapes_are_drawn_one_over_the_other() -> None:
    """Each pixel is the front shape's, mixed at its edge, or else what a video of the other shape has there."""
    labels = (CLASSES.index("up"), CLASSES.index("spin"))
    rngs = [np.random.default_rng(child) for child in np.random.SeedSequence(11).spawn(4)]
    looks = [motion.draw_look(rngs[0], 64), motion.draw_look(rngs[2], 64)]
    tracks = [motion.draw_track(label, rng, 8) for label, rng in zip(labels, rngs[1::2], strict=True)]
    small = [track._replace(radius=0.7 * track.radius) for track in tracks]
    back = motion.draw_frames(small[0], looks[0]).astype(int)
    front = motion.draw_frames(small[1], looks[1])
    far = np.abs(front - motion.draw_frames(small[1]._replace(radius=1e-6 + 0 * small[1].radius), looks[1]).astype(int))
    outside = far.max(-1) == 0  # the front shape leaves no trace there
    found = motion.render_pair(labels, 11, num_frames=8)
    assert (found.shape, found.dtype) == ((8, 64, 64, 3), np.uint8)
    assert 0.6 < outside.mean() < 0.99
    np.testing.assert_allclose(found[outside], back[outside], atol=1)  # an edge of less than a level
    assert np.abs(found[~outside] - back[~outside]).mean() > 10


def test_the_first_frame_of_two_shapes_does_not_depend_on_the_classes() -> None:
    first, *others = (motion.render_pair(pair, 5, num_frames=1, size=32) for pair in motion.PAIRS)
    assert all(np.array_equal(other, first) for other in others) and len(others) == 44


def test_a_data_set_of_two_labels_per_video(tmp_path: Path) -> None:
    options = {"val_videos": 2, "num_frames": 2, "size": 32, "workers": 1, "progress": False}
    motion.write_dataset(tmp_path, train_videos=45, shapes=2, **options)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    labels = [tuple(map(int, line.split(" ")[1].split(";"))) for line in lines]
    assert len(set(labels)) == 45 and all(a < b for a, b in labels)  # every pair of different motions, once
    names = [Path(line.split(" ")[0]).parent.name for line in lines]
    assert names == [f"{CLASSES[a]}_{CLASSES[b]}" for a, b in labels]
    assert all((tmp_path / line.split(" ")[0]).is_file() for line in lines)
    assert json.loads((tmp_path / "motion.json").read_text())["shapes"] == 2
    motion.write_dataset(tmp_path, train_videos=45, shapes=2, **options)  # reused
    with pytest.raises(UserError, match="shapes is 2, not 1"):
        motion.write_dataset(tmp_path, train_videos=45, **options)


def test_the_description_of_one_shape_is_as_before_there_were_two(tiny: Path) -> None:
    """So that folders of then are reused."""
    assert "shapes" not in json.loads((tiny / "motion.json").read_text())
