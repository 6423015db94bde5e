"""Clips of real, losslessly coded videos whose every pixel says which frame, row and column it is."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.config import parse_config
from video_gn.data import dataset as module
from video_gn.data.augment import ColorJitter, Flip, Lighting, augmentations
from video_gn.data.dataset import Clips, TrainClips, ValClips, epoch_order
from video_gn.data.decode import CountCorrected, VideoError
from video_gn.data.lists import Record
from video_gn.data.sampling import ClipSpec, View

av = pytest.importorskip("av")

HEIGHT, WIDTH = 48, 64
LENGTHS = {"long.mkv": 60, "middle.mkv": 37, "short.mkv": 5, "still.mkv": 1, "spare.mkv": 44}
SPEC = ClipSpec(frames=4, stride=2, crop=32, short_side=(36, 48), augmentations=(Flip(0.5),))
FAKE_SPEC = ClipSpec(frames=4, stride=3, crop=20, short_side=(24, 30), augmentations=(Flip(0.5),))
RULE = settings(max_examples=50, deadline=None)


def write_video(path: Path, length: int) -> None:
    """Frame i has red i, green row, blue column; FFV1 in RGB is lossless."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for i in range(length):
            image = np.stack([np.full_like(rows, i), rows, columns], -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, length in LENGTHS.items():
        write_video(folder / name, length)
    (folder / "broken.mkv").write_bytes(b"not a video" * 99)
    (folder / "empty.mkv").write_bytes(b"")
    return folder


def records(*names: str) -> list[Record]:
    """Labels 10, 11, ... in the order of the names."""
    return [Record(name, 10 + i) for i, name in enumerate(names)]


ALL = records(*LENGTHS)


def train(folder: Path, listed: Sequence[Record] = ALL, **changes: Any) -> TrainClips:
    options: dict[str, Any] = {"seed": 0, "max_unreadable": 2, **changes}
    return TrainClips(listed, str(folder), options.pop("decoder", "pyav"), options.pop("spec", SPEC), **options)


def all_clips(folder: Path, listed: Sequence[Record] = ALL, **changes: Any) -> module.TestClips:
    options: dict[str, Any] = {"views": "full", "clips": 3, "clip_starts": "spread", "short_side": 48, **changes}
    return module.TestClips(listed, str(folder), "pyav", options.pop("spec", SPEC), **options)


def shown(clips: Clips) -> list[list[int]]:
    """Frame numbers of each clip as its pixels tell them."""
    red = clips.frames[..., 0]
    assert bool((red == red[:, :1, :1]).all())
    return red[:, 0, 0][torch.from_numpy(clips.clip_indices)].tolist()


def place(clips: Clips) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the cut in the source as the pixels tell it; each frame has the same."""
    height, width = clips.frames.shape[1:3]
    top, left = clips.frames[0, 0, 0, 1:].tolist()
    rows, columns = np.mgrid[top : top + height, left : left + width]
    assert (clips.frames[..., 1].numpy() == rows).all()
    assert (clips.frames[..., 2].numpy() == columns).all()
    return top, left, height, width


def same(one: Clips, other: Clips) -> bool:
    return (
        (one.index, one.target, one.views, one.changes) == (other.index, other.target, other.views, other.changes)
        and torch.equal(one.frames, other.frames)
        and np.array_equal(one.clip_indices, other.clip_indices)
    )


def check_random_clip(clips: Clips, spec: ClipSpec, length: int) -> int:
    """A clip by the rules of training. Returns its start."""
    (frames,) = shown(clips)
    start = frames[0]
    assert frames == [(start + i * spec.stride) % length for i in range(spec.frames)]
    assert start == 0 if length <= spec.frames * spec.stride else start + spec.frames * spec.stride <= length
    assert clips.clip_indices.shape == (1, spec.frames)
    assert clips.clip_indices.dtype == np.int64
    assert clips.frames.dtype == torch.uint8
    assert len(clips.frames) == len(set(frames))  # each frame once
    _, _, height, width = place(clips)
    low, high = spec.short_side
    assert height == width
    assert round(HEIGHT * spec.crop / high) <= height <= round(HEIGHT * spec.crop / low)
    assert [view.box for view in clips.views] == [(0, 0, height, width)]  # the cut is what the view needs
    assert {(view.height, view.width) for view in clips.views} == {(spec.crop, spec.crop)}
    assert clips.unreadable == ()
    return start


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_training_clips_show_the_frames_they_should(folder: Path, decoder: str) -> None:
    clips = train(folder, decoder=decoder)
    assert len(clips) == 5
    for epoch in range(3):
        order = epoch_order(5, 0, epoch)
        for position in range(5):
            item = clips[epoch, position]
            assert item.index == order[position]
            assert item.target == 10 + item.index
            check_random_clip(item, SPEC, LENGTHS[ALL[item.index].path])


def test_training_reaches_every_valid_start_and_both_flips(folder: Path) -> None:
    """11 frames, clips of 4 x 2: starts 0 ... 3."""
    write_video(folder / "eleven.mkv", 11)
    clips = train(folder, records("eleven.mkv"))
    items = [clips[epoch, 0] for epoch in range(60)]
    assert {check_random_clip(item, SPEC, 11) for item in items} == {0, 1, 2, 3}
    assert {flipped(item) for item in items} == {False, True}
    assert len({place(item) for item in items}) > 30


@pytest.mark.parametrize(
    ("name", "frames", "stride", "expected"),
    [
        ("short.mkv", 4, 2, [0, 2, 4, 1]),  # 5 frames wrap
        ("short.mkv", 8, 3, [0, 3, 1, 4, 2, 0, 3, 1]),
        ("still.mkv", 4, 2, [0, 0, 0, 0]),
    ],
)
def test_short_videos_wrap(folder: Path, name: str, frames: int, stride: int, expected: list[int]) -> None:
    spec = ClipSpec(frames, stride, 32, (36, 48), (Flip(0.5),))
    item = train(folder, records(name), spec=spec)[0, 0]
    assert shown(item) == [expected]
    assert len(item.frames) == len(set(expected))
    val = ValClips(records(name), str(folder), "pyav", spec, seed=0)[0]
    assert shown(val) == [expected]


def test_stride_0_repeats_one_frame(folder: Path) -> None:
    spec = ClipSpec(4, 0, 32, (36, 48), (Flip(0.5),))
    clips = train(folder, records("short.mkv"), spec=spec)
    seen = set()
    for epoch in range(40):
        (frames,) = shown(item := clips[epoch, 0])
        assert len(set(frames)) == len(item.frames) == 1
        seen.add(frames[0])
    assert seen == {0, 1, 2, 3, 4}


def test_clips_are_a_function_of_seed_epoch_and_video(folder: Path) -> None:
    """Whatever was read before, and wherever the video stands in the epoch's order or the process."""
    first = train(folder)
    items = {(epoch, first[epoch, p].index): first[epoch, p] for epoch in range(2) for p in range(5)}
    second = train(folder)
    for epoch, position in [(1, 4), (0, 2), (1, 0), (0, 0)]:
        item = second[epoch, position]
        assert same(item, items[epoch, item.index])


def test_other_epochs_and_seeds_give_other_clips(folder: Path) -> None:
    listed = records("long.mkv")  # one video: only the draw can differ
    drawn = [train(folder, listed, seed=seed)[epoch, 0] for seed in (0, 1) for epoch in range(6)]
    assert len({(shown(item)[0][0], place(item), flipped(item)) for item in drawn}) == 12


def test_videos_of_one_epoch_are_drawn_apart(folder: Path) -> None:
    """The same file under many indices: starts, boxes and flips are not copies of each other."""
    listed = [Record("long.mkv", label) for label in range(12)]
    clips = train(folder, listed)
    drawn = [clips[0, position] for position in range(12)]
    assert sorted(item.index for item in drawn) == list(range(12))
    assert len({(shown(item)[0][0], place(item)) for item in drawn}) == 12


def test_validation_clips_follow_the_rules_and_never_change(folder: Path) -> None:
    clips = ValClips(ALL, str(folder), "pyav", SPEC, seed=0)
    again = ValClips(ALL, str(folder), "pyav", SPEC, seed=0)
    other = ValClips(ALL, str(folder), "pyav", SPEC, seed=1)
    assert len(clips) == 5
    for index in (4, 1, 0, 3, 2):
        item = clips[index]
        assert (item.index, item.target) == (index, 10 + index)
        check_random_clip(item, SPEC, LENGTHS[ALL[index].path])
        assert same(item, again[index])
    assert not all(same(clips[index], other[index]) for index in range(5))
    assert not all(same(clips[index], train(folder)[0, p]) for p, index in enumerate(epoch_order(5, 0, 0)))


@pytest.mark.parametrize(
    ("name", "count", "mode", "starts"),
    [
        ("long.mkv", 3, "spread", [0, 26, 52]),  # 60 - 4 * 2 = 52
        ("long.mkv", 1, "spread", [26]),
        ("long.mkv", 3, "baseline", [0, 20, 40]),
        ("middle.mkv", 4, "spread", [0, 10, 19, 29]),  # 9.67, 19.33
        ("short.mkv", 3, "spread", [0, 1, 3]),  # floor(5 k / 3)
        ("still.mkv", 2, "spread", [0, 0]),
        ("middle.mkv", 10, "baseline", [0, 3, 7, 11, 14, 18, 22, 25, 29, 33]),
    ],
)
def test_test_clips_show_the_frames_they_should(
    folder: Path, name: str, count: int, mode: str, starts: list[int]
) -> None:
    item = all_clips(folder, records("still.mkv", name)[1:], clips=count, clip_starts=mode)[0]
    expected = [[(start + i * 2) % LENGTHS[name] for i in range(4)] for start in starts]
    assert shown(item) == expected
    assert item.clip_indices.shape == (count, 4)
    assert item.clip_indices.dtype == np.int64
    assert len(item.frames) == len({frame for clip in expected for frame in clip})  # each frame once
    assert (item.index, item.target, item.unreadable) == (0, 11, ())


@pytest.mark.parametrize(
    ("views", "cut", "expected"),
    [
        ("full", (0, 0, 48, 64), [View((0, 0, 48, 64), 36, 48)]),
        # at short side 36 the frame is 36 x 48; a crop of 32 at (2, 8) is 43 pixels at (3, 11) of the source
        ("center", (3, 11, 43, 43), [View((0, 0, 43, 43), 32, 32)]),
        # 36 x 36 at 0, 6, 12 is 48 x 48 at 0, 8, 16
        ("three", (0, 0, 48, 64), [View((0, left, 48, 48), 36, 36) for left in (0, 8, 16)]),
    ],
)
def test_test_views(folder: Path, views: str, cut: tuple[int, int, int, int], expected: list[View]) -> None:
    spec = ClipSpec(4, 2, 32, (40, 48), (Flip(0.5),))  # the training's short side has no say
    item = all_clips(folder, records("middle.mkv"), spec=spec, views=views, short_side=36)[0]
    assert place(item) == cut
    assert item.views == expected


class FakeReader:
    """A video of 40 frames, 30 x 50, that counts what is asked of it."""

    num_frames, height, width, shrinks = 40, 30, 50, False

    def __init__(self, path: str, decoder: str, log: list[tuple]) -> None:
        self.log = log
        log.append(("open", path, decoder))

    def __enter__(self) -> FakeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append(("close",))

    def read(self, indices: list[int], box: tuple[int, int, int, int], reduction: int = 1) -> torch.Tensor:
        self.log.append(("read", indices, box))
        top, left, height, width = box
        numbers, rows, columns = np.ix_(indices, range(top, top + height), range(left, left + width))
        pixels = np.broadcast_arrays(numbers, rows, columns)
        return torch.from_numpy(np.stack(pixels, -1).astype(np.uint8))


class FakeTrainClips(TrainClips):
    """Of such videos, some of them broken; `log` is what was asked of them."""

    def __init__(self, videos: int, clips_per_video: int = 1, broken: frozenset[int] = frozenset(), **options: Any):
        listed = [Record(str(index), 10 + index) for index in range(videos)]
        options = {"seed": 7, "max_unreadable": 10, **options}
        super().__init__(listed, "", "pyav", FAKE_SPEC, clips_per_video=clips_per_video, **options)
        self.broken = broken
        self.log: list[tuple] = []

    def _open(self, index: int) -> Any:
        if index in self.broken:
            raise VideoError(str(index), "broken")
        return FakeReader(str(index), self.decoder, self.log)


def test_a_video_is_decoded_once_for_all_its_test_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple] = []
    monkeypatch.setattr(module, "open_video", lambda path, decoder: FakeReader(path, decoder, log))
    listed = [Record("a/b.mp4", 7)]
    spec = ClipSpec(frames=4, stride=3, crop=20, short_side=(24, 30), augmentations=(Flip(0.5),))
    clips = module.TestClips(
        listed, "root", "decord", spec, views="three", clips=5, clip_starts="spread", short_side=30
    )
    item = clips[0]
    # starts 0, 7, 14, 21, 28 of 40 - 12 = 28; frames 21 and 28 are wanted twice, 7 * 1 + 3 * 3 = 16 once
    expected = [[start + i * 3 for i in range(4)] for start in (0, 7, 14, 21, 28)]
    once = sorted({frame for clip in expected for frame in clip})
    assert log == [("open", "root/a/b.mp4", "decord"), ("read", once, (0, 0, 30, 50)), ("close",)]
    assert shown(item) == expected


def test_a_training_clip_asks_only_for_its_frames_and_box(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple] = []
    monkeypatch.setattr(module, "open_video", lambda path, decoder: FakeReader(path, decoder, log))
    spec = ClipSpec(
        frames=16, stride=3, crop=20, short_side=(24, 30), augmentations=(Flip(0.5),)
    )  # 48 > 40 frames: wraps
    item = train(Path("root"), [Record("v.mp4", 1)], spec=spec, decoder="auto")[0, 0]
    expected = [i * 3 % 40 for i in range(16)]
    (opened, (_, wanted, box), closed) = log
    assert (opened, closed) == (("open", "root/v.mp4", "auto"), ("close",))
    assert wanted == sorted(expected)  # all distinct, since 3 and 40 are coprime
    assert box[2:] == tuple(item.frames.shape[1:3])
    assert shown(item) == [expected]


def test_an_unreadable_training_video_gives_its_slot_to_the_next_of_the_order(folder: Path) -> None:
    names = ("long.mkv", "broken.mkv", "middle.mkv", "missing.mkv", "spare.mkv")
    reasons = {3: "no such file"}
    clips = train(folder, records(*names))
    for epoch in range(8):
        order = epoch_order(5, 0, epoch).tolist()
        for position in range(5):
            item = clips[epoch, position]
            passed = []
            place_in_order = position
            while order[place_in_order] in (1, 3):
                passed.append(order[place_in_order])
                place_in_order = (place_in_order + 1) % 5
            assert item.index == order[place_in_order]
            assert item.target == 10 + item.index
            assert [error.path for error in item.unreadable] == [str(folder / names[index]) for index in passed]
            for error, index in zip(item.unreadable, passed, strict=True):
                assert error.reason
                assert error.reason == reasons.get(index, error.reason)
            assert shown(item)
            # the substitute's clip is its own one of this epoch
            assert same(item, clips[epoch, place_in_order])


def test_the_slot_after_the_last_is_the_first(folder: Path) -> None:
    """In an epoch whose last video is the broken one, the order goes round."""
    listed = records("broken.mkv", "long.mkv", "middle.mkv")
    epoch = next(e for e in range(99) if epoch_order(3, 0, e)[2] == 0)
    item = train(folder, listed)[epoch, 2]
    assert item.index == epoch_order(3, 0, epoch)[0]
    assert len(item.unreadable) == 1


@pytest.mark.parametrize("max_unreadable", [0, 1, 2])
def test_when_nothing_can_be_read_the_clips_are_empty(folder: Path, max_unreadable: int) -> None:
    listed = records("broken.mkv", "missing.mkv", "empty.mkv")
    clips = train(folder, listed, max_unreadable=max_unreadable)
    order = epoch_order(3, 0, 0)
    assert order.tolist() != [0, 1, 2]
    for position in range(3):
        item = clips[0, position]
        assert (item.index, item.target) == (order[position], 10 + order[position])
        assert item.frames.numel() == 0
        assert item.frames.dtype == torch.uint8
        assert item.clip_indices.shape == (0, 4)
        assert item.views == []
        expected = [listed[order[(position + i) % 3]].path for i in range(max_unreadable + 1)]
        assert [error.path for error in item.unreadable] == [str(folder / path) for path in expected]


def test_no_substitution_with_max_unreadable_0(folder: Path) -> None:
    clips = train(folder, records("broken.mkv", "long.mkv"), max_unreadable=0)
    order = epoch_order(2, 0, 0).tolist()
    assert clips[0, order.index(0)].views == []
    assert clips[0, order.index(1)].index == 1


def test_a_video_that_breaks_while_it_is_read_is_substituted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only what cannot be opened."""
    whole = module.open_video

    def open_video(path: str, decoder: str) -> Any:
        reader = whole(path, decoder)
        if path.endswith("long.mkv"):

            def read(*_: object) -> torch.Tensor:
                raise VideoError(path, "damaged")

            reader.read = read
        return reader

    monkeypatch.setattr(module, "open_video", open_video)
    clips = train(folder, records("long.mkv", "middle.mkv"))
    order = epoch_order(2, 0, 0).tolist()
    item = clips[0, order.index(0)]
    assert item.index == 1
    assert [(error.path, error.reason) for error in item.unreadable] == [(str(folder / "long.mkv"), "damaged")]


@pytest.mark.parametrize("name", ["broken.mkv", "missing.mkv", "empty.mkv"])
def test_evaluation_never_substitutes(folder: Path, name: str) -> None:
    listed = records("long.mkv", name, "middle.mkv")
    val = ValClips(listed, str(folder), "pyav", SPEC, seed=0)
    for clips in (val, all_clips(folder, listed)):
        for index in (0, 2):
            assert clips[index].index == index
            assert clips[index].unreadable == ()
        item = clips[1]
        assert (item.index, item.target) == (1, 11)
        assert item.views == []
        assert item.frames.numel() == 0
        assert [error.path for error in item.unreadable] == [str(folder / name)]
        assert item.unreadable[0].reason


def test_a_video_in_quarantine_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training gives its slot to the next, evaluation does not score it; the reason is told."""
    records = [Record("a.mp4", 0), Record("sub/b.mp4", 1)]
    log: list[Any] = []
    monkeypatch.setattr(module, "open_video", lambda path, decoder: FakeReader(path, decoder, log))
    train = TrainClips(records, "/data", "pyav", SPEC, seed=0, max_unreadable=1)
    val = ValClips(records, "/data", "pyav", SPEC, seed=0)
    options: dict[str, Any] = {"views": "center", "clips": 2, "clip_starts": "spread", "short_side": 36}
    test = module.TestClips(records, "/data", "pyav", SPEC, **options)
    for clips in (train, val, test):
        clips.quarantine = {"sub/b.mp4": "cut off", "c.mp4": "not in the list"}
    taken = [train[0, position] for position in range(2)]
    assert [item.index for item in taken] == [0, 0]
    told = [error for item in [*taken, val[1], test[1]] for error in item.unreadable]
    assert [str(error) for error in told] == ["/data/sub/b.mp4: in quarantine: cut off"] * 3
    assert not val[1].views and not test[1].views and val[0].views and test[0].views
    assert "/data/sub/b.mp4" not in str(log)


def test_only_unreadable_videos_are_forgiven(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program or of the settings does not pass for a broken video."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "open_video", fails)
    for read in (lambda: train(folder)[0, 0], lambda: all_clips(folder)[0]):
        with pytest.raises(ZeroDivisionError):
            read()


def test_paths_are_relative_to_the_root_or_absolute(folder: Path) -> None:
    relative = all_clips(folder, records("short.mkv"))[0]
    absolute = all_clips(Path("/nowhere"), [Record(str(folder / "short.mkv"), 10)])[0]
    assert same(relative, absolute)


@pytest.mark.parametrize("num_videos", [1, 2, 97])
def test_an_epochs_order_is_a_permutation_of_seed_and_epoch(num_videos: int) -> None:
    orders = {(seed, epoch): epoch_order(num_videos, seed, epoch).tolist() for seed in (0, 1) for epoch in range(4)}
    assert all(sorted(order) == list(range(num_videos)) for order in orders.values())
    module.epoch_order.cache_clear()
    assert all(epoch_order(num_videos, *key).tolist() == order for key, order in orders.items())
    if num_videos == 97:
        assert len({tuple(order) for order in orders.values()}) == 8
        assert orders[0, 0] != list(range(97))


def test_an_epoch_takes_each_video_once(folder: Path) -> None:
    clips = train(folder)
    assert sorted(clips[3, position].index for position in range(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("names", [("long.mkv",), ("broken.mkv",), ("broken.mkv", "long.mkv")])
def test_clips_and_data_sets_pickle(folder: Path, names: tuple[str, ...]) -> None:
    """As workers send them."""
    clips = train(folder, records(*names))
    item = clips[0, 0]
    copy = pickle.loads(pickle.dumps(item))
    assert same(copy, item)
    assert [(e.path, e.reason) for e in copy.unreadable] == [(e.path, e.reason) for e in item.unreadable]
    assert same(pickle.loads(pickle.dumps(clips))[0, 0], item)


def flipped(item: Clips) -> bool:
    (flip,) = [params for augmentation, params in item.changes if isinstance(augmentation, Flip)]
    return flip


def drawn(item: Clips) -> tuple:
    """All that is random in a clip."""
    return item.index, shown(item)[0][0], place(item), flipped(item)


def test_one_clip_a_video_is_what_it_always_was() -> None:
    """Values of version 1: a run that goes on, goes on with the clips that it began with."""
    clips = FakeTrainClips(5)
    assert [drawn(clips[key]) for key in [(0, 0), (0, 1), (0, 4), (3, 0), (3, 4)]] == [
        (3, 20, (0, 10, 24, 24), False),
        (1, 3, (2, 23, 23, 23), True),
        (2, 26, (4, 11, 21, 21), False),
        (2, 20, (2, 8, 25, 25), True),
        (3, 9, (0, 30, 20, 20), True),
    ]


JITTERED = (("brightness", 1.2823742366799697), ("contrast", 1.2142122526539598), ("saturation", 0.7610575316061415))
LIT = (-0.005366528193, -0.004031808098, -0.004209502713)
JITTERED_IN_AREA = (
    ("saturation", 0.6560461353138082), ("brightness", 1.3534578746071715), ("contrast", 0.751140105538189)
)  # fmt: skip
LIT_IN_AREA = (-0.028404596536, -0.025640855702, -0.023504986422)


@pytest.mark.parametrize(
    ("area", "jitter", "lighting", "first", "digest"),
    [
        (None, 0, 0, (4, 20, (1, 16, 25, 25), False, (), (0.0, 0.0, 0.0)), "690e281bd6a1a824"),
        (None, 0.4, 0, (4, 20, (1, 16, 25, 25), False, JITTERED, (0.0, 0.0, 0.0)), "a945b12b8f2eb1cf"),
        (None, 0, 0.1, (4, 20, (1, 16, 25, 25), False, (), LIT), "58a42ec47f6be93b"),
        (None, 0.4, 0.1, (4, 20, (1, 16, 25, 25), False, JITTERED, LIT), "28f41a955154bdf5"),
        ((0.2, 1.0), 0, 0, (4, 20, (0, 4, 25, 21), True, (), (0.0, 0.0, 0.0)), "d10be56877ebfca2"),
        ((0.2, 1.0), 0.4, 0, (4, 20, (0, 4, 25, 21), True, JITTERED_IN_AREA, (0.0, 0.0, 0.0)), "c69169ed45be953e"),
        ((0.2, 1.0), 0, 0.1, (4, 20, (0, 4, 25, 21), True, (), LIT_IN_AREA), "6a364440efb3e1c9"),
        ((0.2, 1.0), 0.4, 0.1, (4, 20, (0, 4, 25, 21), True, JITTERED_IN_AREA, LIT_IN_AREA), "ab98e9b697cb9785"),
    ],
)
def test_draws_of_the_code_before_augmentations_were_values(
    monkeypatch: pytest.MonkeyPatch, area: tuple | None, jitter: float, lighting: float, first: tuple, digest: str
) -> None:
    """Two clips per video in six epochs, then validation clips: start, box, flip, factors and shift."""
    monkeypatch.setattr(module, "open_video", lambda path, decoder: FakeReader(path, decoder, []))
    data = parse_config({"output_dir": "x"}, [f"data.color_jitter={jitter}", f"data.lighting={lighting}"]).data
    spec = ClipSpec(4, 3, 20, (24, 30), augmentations(data), area=area)
    clips = FakeTrainClips(6, 2)
    clips.spec = spec
    items = [item for epoch in range(6) for item in clips.__getitems__([(epoch, p) for p in range(6)])]
    val = ValClips([Record(str(index), 0) for index in range(6)], "", "pyav", spec, seed=7)
    rows = []
    for item in [*items, *(val[index] for index in range(6))]:
        params = {type(augmentation): params for augmentation, params in item.changes}
        shift = tuple(round(value, 12) + 0.0 for value in params.get(Lighting, (0.0, 0.0, 0.0)))  # sums may round
        rows.append((*drawn(item), params.get(ColorJitter, ()), shift))
    assert rows[0] == first
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == digest


@given(videos=st.integers(1, 30), k=st.integers(1, 5), data=st.data())
@RULE
def test_k_epochs_meet_each_video_once_in_k_clips(videos: int, k: int, data: st.DataObject) -> None:
    """Whatever the steps take of an epoch, M positions; all N videos where they take them all."""
    k = min(k, videos)
    taken = data.draw(st.integers(1, videos // k)) * k
    clips = FakeTrainClips(videos, k)
    for cycle in range(3):
        epochs = range(cycle * k, cycle * k + k)
        met = [[clips[epoch, position].index for position in range(taken)] for epoch in epochs]
        assert Counter(itertools.chain(*met)) == dict.fromkeys(set(itertools.chain(*met)), k)
        assert len(set(itertools.chain(*met))) == taken
        for indices in met:  # k in a row are one video, from a multiple of k on
            assert [len(set(indices[i : i + k])) for i in range(0, taken, k)] == [1] * (taken // k)


def test_the_videos_left_out_change() -> None:
    """Three videos in parts of one: a pair of epochs leaves out one, and each is left out some time."""
    clips = FakeTrainClips(3, 2)
    left_out = [{0, 1, 2} - {clips[2 * cycle + part, 0].index for part in (0, 1)} for cycle in range(60)]
    assert Counter(itertools.chain(*left_out)).keys() == {0, 1, 2}
    assert all(count > 10 for count in Counter(itertools.chain(*left_out)).values())


class Miscounted(FakeReader):
    """Announces 40 frames, and has 30: that shows when one of the last 10 is read."""

    def read(self, indices: list[int], box: tuple[int, int, int, int], reduction: int = 1) -> torch.Tensor:
        if self.num_frames == 40 and max(indices) >= 30:
            self.num_frames = 30
            raise CountCorrected("0", "announces 40 frames, and 30 can be decoded")
        return super().read(indices, box)


class MiscountedTrainClips(FakeTrainClips):
    def _open(self, index: int) -> Any:
        return Miscounted(str(index), self.decoder, self.log)


def test_a_training_clip_is_drawn_again_from_the_corrected_count() -> None:
    """Its generator begins anew. A clip whose frames are all there stays as it was drawn: nothing else is known."""
    clips = MiscountedTrainClips(3)
    kept = redrawn = 0
    for epoch, position in itertools.product(range(20), range(3)):
        item = clips[epoch, position]
        assert not item.unreadable
        key = (4, 7, 0, epoch, item.index)
        start = np.random.default_rng(key).integers(0, 40 - 12, endpoint=True)
        if start + 9 >= 30:
            start = np.random.default_rng(key).integers(0, 30 - 12, endpoint=True)
            redrawn += 1
        else:
            kept += 1
        assert shown(item) == [[start + i * 3 for i in range(4)]]
    assert kept > 10 and redrawn > 10


@given(k=st.integers(2, 4), epoch=st.integers(0, 9), data=st.data())
@RULE
def test_redrawn_clips_do_not_depend_on_those_fetched_with_them(k: int, epoch: int, data: st.DataObject) -> None:
    """So another number of ranks or workers, or a resumed run, sees the same."""
    clips = MiscountedTrainClips(8, k)
    positions = data.draw(st.permutations(range(8 // k * k)))[: data.draw(st.integers(1, 8))]
    together = clips.__getitems__([(epoch, position) for position in positions])
    assert all(
        same(one, clips[epoch, position]) and drawn(one) == drawn(clips[epoch, position])
        for one, position in zip(together, positions, strict=True)
    )


def test_a_validation_clip_is_drawn_again_from_the_corrected_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_video", lambda path, decoder: Miscounted(path, decoder, []))
    clips = ValClips([Record(str(index), 0) for index in range(20)], "", "pyav", FAKE_SPEC, seed=7)
    redrawn = 0
    for index in range(20):
        start = np.random.default_rng((3, 7, 1, index)).integers(0, 40 - 12, endpoint=True)
        if start + 9 >= 30:
            start = np.random.default_rng((3, 7, 1, index)).integers(0, 30 - 12, endpoint=True)
            redrawn += 1
        assert shown(clips[index]) == [[start + i * 3 for i in range(4)]]
    assert 2 < redrawn < 18


def test_test_clips_are_those_of_the_corrected_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_video", lambda path, decoder: Miscounted(path, decoder, []))
    options = {"views": "full", "clips": 10, "clip_starts": "spread", "short_side": 24}
    item = module.TestClips([Record("0", 5)], "", "pyav", FAKE_SPEC, **options)[0]
    assert shown(item) == [[start + i * 3 for i in range(4)] for start in range(0, 20, 2)]  # of 30 - 12 = 18
    assert (item.target, item.unreadable) == (5, ())


@given(k=st.integers(1, 4), epoch=st.integers(0, 9), data=st.data())
@RULE
def test_clips_do_not_depend_on_those_fetched_with_them(k: int, epoch: int, data: st.DataObject) -> None:
    broken = frozenset(data.draw(st.sets(st.integers(0, 7), max_size=5)))
    clips = FakeTrainClips(8, k, broken)
    positions = data.draw(st.permutations(range(8 // k * k)))[: data.draw(st.integers(1, 8))]
    together = clips.__getitems__([(epoch, position) for position in positions])
    alone = [clips[epoch, position] for position in positions]
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))


def test_clips_of_a_video_are_drawn_one_after_the_other() -> None:
    """By the rules of a clip, from one generator of (seed, pair of epochs, video)."""
    clips = FakeTrainClips(6, 3)
    for epoch, position in [(0, 0), (1, 3), (5, 0)]:
        items = clips.__getitems__([(epoch, position + j) for j in range(3)])
        (index,) = {item.index for item in items}
        rng = np.random.default_rng((4, 7, 0, epoch // 3, index))
        for item in items:
            start = rng.integers(0, 40 - 4 * 3, endpoint=True)
            scale = rng.integers(24, 30, endpoint=True) / 30
            top = rng.integers(0, round(30 * scale) - 20, endpoint=True)
            left = rng.integers(0, round(50 * scale) - 20, endpoint=True)
            side = round(20 / scale)
            box = (min(round(top / scale), 30 - side), min(round(left / scale), 50 - side), side, side)
            assert drawn(item) == (index, start, box, rng.random() < 0.5)
            assert item.views == [View((0, 0, side, side), 20, 20)]
            assert item.target == 10 + index


def test_two_clips_of_a_video_know_nothing_of_each_other() -> None:
    """Two flips: each of the four pairs in a quarter of the draws; starts: seldom equal, of 29."""
    clips = FakeTrainClips(2, 2)
    pairs = [clips.__getitems__([(epoch, 0), (epoch, 1)]) for epoch in range(400)]
    flips = Counter(tuple(flipped(item) for item in pair) for pair in pairs)
    assert len(flips) == 4
    assert all(70 < count < 130 for count in flips.values())
    assert sum(shown(one)[0][0] == shown(other)[0][0] for one, other in pairs) < 40


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_several_clips_of_real_videos(folder: Path, decoder: str) -> None:
    """Each shows the frames and the cut that it should; colors are their own."""
    spec = ClipSpec(4, 2, 32, (36, 48), (Flip(0.5), ColorJitter(0.4), Lighting(0)))
    clips = train(folder, decoder=decoder, spec=spec, clips_per_video=4)
    for epoch in range(4):
        items = clips.__getitems__([(epoch, position) for position in range(4)])
        assert {item.index for item in items} == {epoch_order(5, 0, 0)[epoch]}
        for item in items:
            check_random_clip(item, spec, LENGTHS[ALL[item.index].path])
        assert len({item.changes for item in items}) == 4


def test_a_video_is_decoded_once_for_its_training_clips() -> None:
    clips = FakeTrainClips(4, 2)
    items = clips.__getitems__([(0, position) for position in range(4)])
    for pair, log in ((items[:2], clips.log[:3]), (items[2:], clips.log[3:])):
        frames = {frame for item in pair for frame in shown(item)[0]}
        (top, left, height, width), (top2, left2, height2, width2) = map(place, pair)
        bottom, right = max(top + height, top2 + height2), max(left + width, left2 + width2)
        box = (min(top, top2), min(left, left2), bottom - min(top, top2), right - min(left, left2))
        assert log == [("open", str(pair[0].index), "pyav"), ("read", sorted(frames), box), ("close",)]


@given(k=st.integers(1, 3), epoch=st.integers(0, 5), broken=st.sets(st.integers(0, 8)), limit=st.integers(0, 9))
@RULE
def test_all_clips_of_an_unreadable_video_go_to_the_next_of_the_order(
    k: int, epoch: int, broken: set[int], limit: int
) -> None:
    clips = FakeTrainClips(9, k, frozenset(broken), max_unreadable=limit)
    order = epoch_order(9, 7, epoch // k).tolist()
    for run in range(9 // k):
        items = clips.__getitems__([(epoch, run * k + j) for j in range(k)])
        first = epoch % k * (9 // k) + run
        tries = [order[(first + i) % 9] for i in range(limit + 1)]
        passed = list(itertools.takewhile(lambda index: index in broken, tries))
        readable = len(passed) <= limit
        expected = tries[len(passed)] if readable else tries[0]
        assert [(item.index, item.target, bool(item.views)) for item in items] == [
            (expected, 10 + expected, readable)
        ] * k
        assert [error.path for error in items[0].unreadable] == [str(index) for index in passed]
        assert all(item.unreadable == () for item in items[1:])  # each is told once
