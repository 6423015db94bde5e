"""Damaged and odd videos: each gives exactly the frames that the index rule says, or is reported with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("av")

from tests import bad_videos
from tests.bad_videos import Look, Truth, look, look_at_all, number_of
from video_gn.data import prepare
from video_gn.data.dataset import TestClips, TrainClips, ValClips
from video_gn.data.decode import DECODERS as NAMES
from video_gn.data.decode import VideoError, libraries
from video_gn.data.lists import Record
from video_gn.data.sampling import ClipSpec

TestClips.__test__ = False  # type: ignore[attr-defined]
DECODERS = [
    pytest.param(name, marks=pytest.mark.skipif(name != "auto" and libraries.load(name) is None, reason=f"no {name}"))
    for name in NAMES
]
SECONDS = 120  # for all files, of 3 on an idle machine
WRONG_IN_DECORD = {"b_frames.ts", "cut.ts", "edit_list.mp4"}  # as the text of data/decode/ says


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def truths(folder: Path) -> dict[str, Truth]:
    return bad_videos.make(folder)


def looks_of(folder: Path, names: list[str], decoder: str, tmp_path: Path) -> dict[str, Look | str]:
    """What a decoder makes of the files, in a process that may crash and has a time limit."""
    progress = tmp_path / "progress"
    ((_, looks),) = prepare.in_children(look_at_all, [(str(folder), names, decoder, str(progress))], 1, SECONDS)
    assert not isinstance(looks, VideoError), f"{decoder} at {progress.read_text(encoding='utf-8')}: {looks.reason}"
    return looks


def fault(seen: Look | str, truth: Truth, may_refuse: bool) -> str | None:
    """What is wrong with it, if anything is."""
    if isinstance(seen, str):
        told = seen.strip() and "\n" not in seen
        return None if told and (may_refuse or truth.damaged or not truth.frames) else f"refused: {seen!r}"
    announced, found = seen
    read = {i: number for i, number in found.items() if isinstance(number, int)}
    if list(found) != list(range(announced)) or announced == 0:
        return f"{announced} frames announced, {len(found)} found"
    if not truth.damaged and not (len(read) == announced == len(truth.frames)) and not (may_refuse and not read):
        return f"{announced} frames announced, {len(read)} read, not {len(truth.frames)}"
    if announced > len(truth.frames):
        return f"{announced} frames announced of {len(truth.frames)}"
    if truth.concealed:
        return None
    if truth.gaps:
        numbers = list(read.values())
        return None if numbers == sorted(set(numbers)) else f"numbers {numbers}"
    wrong = {i: number for i, number in read.items() if number != truth.frames[i]}
    return f"wrong frames {wrong}" if wrong else None


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_right_frames_or_a_reason(folder: Path, truths: dict[str, Truth], decoder: str, tmp_path: Path) -> None:
    """auto and pyav read everything that is sound; the others may refuse, and are never silently wrong (decord is)."""
    names = [name for name in truths if decoder != "decord" or name not in WRONG_IN_DECORD]
    looks = looks_of(folder, names, decoder, tmp_path)
    may_refuse = decoder not in ("auto", "pyav")
    faults = {name: fault(looks[name], truths[name], may_refuse) for name in names}
    assert {name: what for name, what in faults.items() if what} == {}
    assert sum(isinstance(seen, tuple) for seen in looks.values()) > 20  # not all refused


@pytest.mark.parametrize(
    ("seen", "truth", "wrong"),
    [
        ("no video stream", Truth([]), False),
        ("", Truth([]), True),
        ("no video stream", Truth([0, 1]), True),
        ((2, {0: 0, 1: 1}), Truth([0, 1]), False),
        ((2, {0: 0, 1: 1}), Truth([]), True),
        ((1, {0: 0}), Truth([0, 1]), True),
        ((2, {0: 0, 1: "lost"}), Truth([0, 1]), True),
        ((2, {0: 0, 1: "lost"}), Truth([0, 1], damaged=True), False),
        ((2, {0: 1, 1: "lost"}), Truth([0, 1], damaged=True), True),
        ((2, {0: 0, 1: 0}), Truth([0, 1, 2], damaged=True, gaps=True), True),
        ((2, {0: 0, 1: 2}), Truth([0, 1, 2], damaged=True, gaps=True), False),
        ((3, {0: 0, 1: 1}), Truth([0, 1, 2], damaged=True), True),
    ],
)
def test_the_judge(seen: Look | str, truth: Truth, wrong: bool) -> None:
    assert bool(fault(seen, truth, may_refuse=False)) == wrong


def test_test_clips_of_the_corpus(folder: Path, truths: dict[str, Truth]) -> None:
    """Two clips of 8 frames at stride 2, one at each end; a video that cannot be read is not scored, with a reason."""
    spec = ClipSpec(frames=8, stride=2, crop=32, short_side=(32, 32))
    records = [Record(name, 0) for name in truths]
    options = {"views": "full", "clips": 2, "clip_starts": "spread", "short_side": 32}
    clips = TestClips(records, str(folder), "auto", spec, **options)  # type: ignore[arg-type]
    scored = 0
    for index, truth in enumerate(truths.values()):
        item, name = clips[index], records[index].path
        assert item.index == index
        if not item.views:
            assert not truth.frames or truth.damaged, name
            (error,) = item.unreadable
            assert error.path == str(folder / name) and error.reason.strip()
            continue
        scored += 1
        assert truth.frames and not item.unreadable, name
        numbers = [number_of(frame) for frame in item.frames.numpy()]
        n = len(truth.frames)
        if not truth.damaged:
            wanted = [(start + 2 * j) % n for start in (0, max(n - 16, 0)) for j in range(8)]
            assert [numbers[i] for i in item.clip_indices.flatten()] == [truth.frames[i] for i in wanted], name
    assert scored >= 20


def test_training_names_what_it_leaves_out(folder: Path, truths: dict[str, Truth]) -> None:
    """Validation never gives another video's clip; training gives one, and names what it could not read."""
    spec = ClipSpec(frames=8, stride=2, crop=32, short_side=(32, 32))
    refused = [name for name, truth in truths.items() if not truth.frames]
    records = [Record(name, 0) for name in [*refused, "whole.mp4"]]
    val = ValClips(records, str(folder), "auto", spec, seed=0)
    assert [bool(val[n].views) for n in range(len(records))] == [False] * len(refused) + [True]
    train = TrainClips(records, str(folder), "auto", spec, seed=0, max_unreadable=len(refused))
    items = [train[0, n] for n in range(len(records))]
    assert {item.index for item in items} == {len(refused)}
    assert {error.path for item in items for error in item.unreadable} == {str(folder / name) for name in refused}


@pytest.mark.parametrize("decoder", DECODERS[:3])
def test_real_damaged_videos(shared_data: Path, decoder: str, tmp_path: Path) -> None:
    """No crash and no hang; what is announced is read or refused."""
    names = sorted(str(path.relative_to(shared_data)) for path in (shared_data / "damaged_videos").iterdir())
    for name, seen in looks_of(shared_data, names, decoder, tmp_path).items():
        assert seen if isinstance(seen, str) else len(seen[1]) >= min(seen[0], 20) > 0, name


def test_look_reads_each_frame(folder: Path, truths: dict[str, Truth]) -> None:
    assert look(folder / "whole.mp4", "pyav") == (40, {i: i for i in range(40)})
