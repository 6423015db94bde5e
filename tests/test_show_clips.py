"""The contact sheet shows the decoded pixels that a config asks for, and says what they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_runs import TINY, tool
from video_gn import show_clips as module
from video_gn.config import Config, load_config
from video_gn.data.decode import open_video
from video_gn.data.motion import write_dataset
from video_gn.data.sampling import MIXING, keyed_rng
from video_gn.draw.text import PAPER
from video_gn.engine.datasets import mixing
from video_gn.errors import UserError
from video_gn.show_clips import Section, Strip, sheet, show_clips, shown, statistics

FRAMES = 40


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=4, val_videos=2, num_frames=FRAMES, size=32, workers=1, progress=False)
    return folder


@pytest.fixture()
def config_file(tmp_path, videos) -> Path:
    """Clips of 8 frames, stride 2, that are the videos' own pixels: no scale, no flip."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(out=tmp_path / "run", root=videos))
    return path


def config(path: Path, *overrides: str) -> Config:
    plain = ["data.short_side=[32,32]", "data.flip=0", "data.class_names=classes.txt", "test.clips=4"]
    return load_config(path, [*plain, *overrides])


@pytest.fixture()
def drawn(monkeypatch) -> list[Section]:
    """The sections of the sheets that a test draws."""
    sections: list[Section] = []

    def spy(parts):
        sections.extend(parts)
        return sheet(parts)

    monkeypatch.setattr(module, "sheet", spy)
    return sections


def decoded(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return video.read(range(video.num_frames)).numpy()


def test_the_sheet_shows_the_decoded_pixels(config_file, videos, tmp_path, drawn):
    out = show_clips(config(config_file), tmp_path / "new" / "sheet.png", train=3, test=1, frames=8)
    training, testing = drawn
    assert len(training.strips) == 3 and len(testing.strips) == 4
    paths = set()
    for strip in training.strips:
        name, label, path, *how = strip.title.split()
        paths.add(path)
        assert path.split("/")[1] == name and label == f"({['up', 'down', 'sideways', 'still'].index(name)})"
        assert " ".join(how) == "32 x 32 px to 32"
        video = decoded(videos / path)
        starts = [s for s in range(FRAMES - 16 + 1) if np.array_equal(video[s : s + 16 : 2], strip.frames)]
        assert starts  # eight decoded frames, every second one
    assert len(paths) == 3
    video = decoded(videos / testing.heading.split()[6])
    for number, (start, strip) in enumerate(zip((0, 8, 16, 24), testing.strips, strict=True), 1):
        assert strip.title == f"clip {number} of 4: frames {start} to {start + 14} of 40, stride 2"
        np.testing.assert_array_equal(strip.frames, video[start : start + 16 : 2])
    with Image.open(out) as image:
        assert image.format == "PNG"
        cell = np.asarray(image.convert("RGB"))[68 + 26 : 68 + 26 + 112, 4 : 4 + 112]
    assert np.abs(cell.mean((0, 1)) - training.strips[0].frames[0].mean((0, 1))).max() < 2


def test_it_says_what_the_augmentation_did(config_file, tmp_path, drawn):
    settings = ["data.flip=1", "data.color_jitter=0.3", "data.short_side=[64,64]", "test.views=three"]
    show_clips(config(config_file, *settings), tmp_path / "x.png", train=1, test=1)
    assert drawn[0].strips[0].title.endswith("16 x 16 px to 32, flipped, colors changed")
    assert [strip.title.rsplit("   ", 1)[1] for strip in drawn[1].strips] == [
        f"view {view} of 3" for view in (1, 2, 3) for _ in range(4)
    ]


def test_it_names_what_was_drawn(config_file, tmp_path, drawn):
    """The words are those of the values that the pixels are made with."""
    settings = ["data.flip=0.5", "data.rand_augment=[1,20]", "data.random_erasing=0.5", "data.color_jitter=0.1"]
    show_clips(config(config_file, *settings), tmp_path / "x.png", train=4, test=0)
    plain, erased = 114.75, 0
    for strip in drawn[0].strips:
        words = strip.title.split("   ")[2]
        assert re.match(
            r"32 x 32 px to 32, (flipped, )?colors changed, [a-z ]+( [+-]0\.7)?(, \d+ x \d+ px erased)?$", words
        )
        if found := re.search(r"(\d+) x (\d+) px erased", words):
            width, height = map(int, found.groups())
            flat = (np.abs(strip.frames - plain) < 1).all((0, 3))  # the mean, as bytes, in all frames
            assert flat.sum() >= width * height
            erased += 1
    assert erased


def test_pairs_of_mixed_clips_are_named_with_their_shares(config_file, tmp_path, drawn):
    """Micro-batches of two, four clips per step: a clip is the sum of the parts that its title names."""
    rule = mixing(config(config_file, "data.mixup=0.4", "data.cutmix=1"))
    show_clips(config(config_file), tmp_path / "x.png", train=4, test=0)
    show_clips(config(config_file, "data.mixup=0.4", "data.cutmix=1"), tmp_path / "x.png", train=3, test=0)
    plain, mixed = (section.strips for section in drawn)
    assert len(mixed) == 3 and drawn[1].note.startswith("network input: 3 x ")
    for number, strip in enumerate(mixed):
        first = number - number % 2
        mix = rule.draw(keyed_rng(0, MIXING, 0, number // 2), (32, 32))
        pair = {" ".join(other.title.split("   ")[:2]): other.frames for other in plain[first : first + 2]}
        assert strip.title == plain[number].title
        kind, text = strip.note.split(": ", 1)
        assert kind == ("CutMix" if mix.box else "mixup")
        parts = dict(part.split(" of ")[::-1] for part in text.split(", "))
        assert parts.keys() == pair.keys()
        assert sum(map(float, parts.values())) == pytest.approx(1, abs=0.011)
        own = pair[" ".join(plain[number].title.split("   ")[:2])]
        assert float(parts[" ".join(plain[number].title.split("   ")[:2])]) == pytest.approx(mix.share, abs=0.006)
        if mix.box is None:
            expected = sum(float(share) * pair[name] for name, share in parts.items())
            assert np.abs(strip.frames - expected).max() < 4
        else:
            assert (strip.frames == own).all(3).mean() >= mix.share - 0.01


def test_a_clip_without_a_partner_is_not_mixed(config_file, videos, tmp_path, drawn):
    """Where its micro-batch lacks a clip, training ends."""
    (videos / "bad.mp4").write_bytes(b"not a video")
    good = (videos / "train.csv").read_text().splitlines()[0]
    (tmp_path / "list.csv").write_text(f"bad.mp4 0\n{good}\n")
    settings = [f"data.train_list={tmp_path / 'list.csv'}", "data.max_unreadable=0", "data.mixup=1"]
    show_clips(config(config_file, *settings), tmp_path / "x.png", train=2, test=0)
    assert [(strip.title.split("   ")[2], strip.note) for strip in drawn[0].strips] == [("32 x 32 px to 32", "")]


def test_a_seed_draws_other_clips(config_file, tmp_path, drawn):
    for seed in (0, 0, 1):
        show_clips(config(config_file, f"seed={seed}"), tmp_path / "x.png", train=4, test=0)
    first, again, other = drawn
    for a, b in zip(first.strips, again.strips, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert any(not np.array_equal(a.frames, b.frames) for a, b in zip(first.strips, other.strips, strict=True))


def test_what_cannot_be_read_is_said(config_file, videos, tmp_path, drawn, capsys):
    (videos / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "list.csv").write_text("bad.mp4 0\n")
    lists = [f"data.{name}_list={tmp_path / 'list.csv'}" for name in ("train", "test")]
    with pytest.raises(UserError, match="no clip to draw"):
        show_clips(config(config_file, *lists), tmp_path / "x.png")
    assert "not drawn: " in capsys.readouterr().err
    show_clips(config(config_file, lists[1]), tmp_path / "x.png", train=1)
    assert drawn[-1].note == "cannot be read" and not drawn[-1].strips


def test_shown_undoes_the_normalization(config_file):
    settings = config(config_file, "data.mean=[0.5,0.25,0]", "data.std=[0.5,0.25,0.1]")
    clip = torch.zeros(3, 5, 1, 1)
    clip[0], clip[1, 4], clip[2, 4] = 1, -1, 99
    frames = shown(clip, settings, 3)
    assert frames[:, 0, 0].tolist() == [
        [255, 64, 0],
        [255, 64, 0],
        [255, 0, 255],
    ]  # frames 0, 2, 4; beyond white is white
    assert len(shown(clip, settings, 50)) == 5


def test_statistics_are_by_color():
    clips = torch.stack([torch.full((2, 1, 2), value) for value in (0.0, 1.0, -2.0)])[None]
    clips[0, 0, 0] = 2.0
    assert statistics([clips]) == (
        "network input: 1 x 3 x 2 x 1 x 2, normalized R G B mean 1.00 1.00 -2.00, std 1.15 0.00 0.00, "
        "from -2.00 to 2.00"
    )


def test_single_images_stand_beside_each_other():
    strips = [Strip("a title that is far too long for one image", np.full((1, 10, 10, 3), 200, np.uint8))] * 9
    image = np.asarray(sheet([Section("heading", "note", strips)]))
    bright = (image[:, :, 0] == 200).any(0)
    assert np.diff(bright.astype(int)).clip(0).sum() == 8  # eight a row
    assert image.shape[0] == 4 * 17 + 2 * (112 + 26 + 4) and tuple(image[-1, -1]) == PAPER


def test_images(tmp_path, drawn):
    for name, value in (("cat", 50), ("dog", 180)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((40, 60, 3), value + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "images.yaml").write_text(
        "model: {blocks: [1, 1, 1, 1], width: 8, groups: 4, num_classes: 2}\n"
        "data: {kind: images, train_list: images, val_list: images, test_list: images, frames: 1, crop: 32,\n"
        "       short_side: [32, 40]}\n"
        "test: {views: center, clips: 1, short_side: 32}\n"
    )
    show_clips(load_config(tmp_path / "images.yaml", [f"data.root={tmp_path}"]), tmp_path / "x.png", train=4)
    assert len(drawn[0].strips) == 4 and drawn[1].strips[0].title == "image"
    for strip in (*drawn[0].strips, *drawn[1].strips):
        assert strip.frames.shape == (1, 32, 32, 3) and strip.frames.min() >= 50
    assert {int(strip.frames[0, 0, 0, 0]) for strip in drawn[0].strips} == {50, 51, 180, 181}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("clips.xyz", r"clips\.xyz: not the name of a picture; end it in \.png"),
        ("clips", "clips: not the name of a picture"),
        ("clips.psd", r"clips\.psd: not the name of a picture"),  # Pillow reads it, and does not write it
        ("file/clips.png", r"file/clips\.png: cannot be written \(File exists\); give another --out"),
    ],
)
def test_a_place_that_cannot_hold_the_sheet(config_file, tmp_path, out, words):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        show_clips(config(config_file), tmp_path / out, train=1, test=0)
    assert not list(tmp_path.glob("clips*"))


def test_the_tool_prints_the_file(config_file, tmp_path):
    out = tmp_path / "sheet.png"
    done = tool("tools/show_clips.py", str(config_file), "--train", "2", "test.clips=2", "--out", str(out))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert out.exists()
