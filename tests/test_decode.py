"""Each frame of the videos written here carries its own number: reads are checked against the truth."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import pickle
import random
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import field_coded
from tests.numbered_videos import (
    BACKENDS,
    H,
    W,
    backend,
    numbered,
    numbers,
    remux,
    shaded,
    shape_pixels,
    turn,
    without_frame,
    write,
)
from video_gn.data.decode import CountCorrected, VideoError, VideoReader, libraries, open_video, packets
from video_gn.data.decode.display import Crop, block_means
from video_gn.data.decode.packets import is_unreferenced
from video_gn.data.decode.pyav import PyAVReader
from video_gn.errors import UserError

av = pytest.importorskip("av")

B_FRAMES = {"g": "250", "bf": "3", "b-adapt": "0", "sc_threshold": "0"}
FILES = {  # name: (frames, codec, options)
    "long_gop.mp4": (60, "libx264", B_FRAMES),
    "short_gop.mp4": (60, "libx264", {**B_FRAMES, "g": "12"}),
    "short_gop.mkv": (60, "libx264", {**B_FRAMES, "g": "12"}),
    "open_gop.mp4": (
        60,
        "libx264",
        {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"},
    ),
    "intra.mp4": (40, "mjpeg", {}),
    "no_b_frames.avi": (60, "mpeg4", {"g": "12", "bf": "0"}),
    "b_frames.avi": (60, "libx264", B_FRAMES),  # its timestamps are those of decoding
    "program_stream.mpg": (60, "mpeg2video", {"g": "12", "bf": "2"}),
    "transport_stream.ts": (60, "libx264", {**B_FRAMES, "g": "20"}),
    "raw.h264": (60, "libx264", B_FRAMES),  # no timestamps at all
    "one_frame.mp4": (1, "libx264", {}),
}
NOT_FOR_TORCHCODEC = {name for name in FILES if not name.endswith(("mp4", "mkv"))}
NOT_FOR_TORCHCODEC |= {"open_gop.mp4"}  # torchcodec 0.17 over FFmpeg 5.1 cannot read its last frame
# Frames, height and width as `ffprobe -count_frames` gives them, with rotation and sample aspect ratio applied.
REAL = {
    "odd_videos/RATRACE_wave_f_nm_np1_fr_goo_37.avi": (72, 240, 560),
    "odd_videos/SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": (74, 240, 320),
    "odd_videos/TrumanShow_wave_f_nm_np1_fr_med_26.avi": (48, 240, 432),
    "odd_videos/av1.mkv": (60, 256, 340),
    "odd_videos/gap_5s.mp4": (280, 256, 340),
    "odd_videos/h264_10bit.mp4": (280, 256, 340),
    "odd_videos/long_gop_bframes.mp4": (280, 256, 340),
    "odd_videos/name with space, comma & ünïcode.mp4": (280, 256, 427),  # 340 pixels of 64:51
    "odd_videos/nineteen_frames_0.68s.mp4": (19, 256, 340),
    "odd_videos/odd_171x129_444.mp4": (280, 129, 171),
    "odd_videos/rotated_90.mov": (3, 568, 320),
    "odd_videos/start_pts_10s.mp4": (280, 256, 340),
    "odd_videos/v_SoccerJuggling_g23_c01.avi": (240, 240, 320),
    "odd_videos/v_SoccerJuggling_g24_c01.avi": (251, 240, 320),
    "odd_videos/vfr.mkv": (280, 256, 340),
    "odd_videos/vfr.mp4": (280, 256, 340),
    "odd_videos/vp9.webm": (90, 256, 340),
    "kinetics_clips/abseiling_k400.mp4": (250, 256, 454),
    "kinetics_clips/flipping_a_pancake.mkv": (310, 240, 426),
    "kinetics_clips/R6llTwEh07w.mp4": (303, 256, 340),
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write(folder / name, map(numbered, range(n)), codec, options)
        for name, (n, codec, options) in FILES.items()
    }


# ---- the right frames ----


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_the_one_asked_for(videos, name, decoder) -> None:
    n = FILES[name][0]
    try:
        with open_video(videos[name], decoder) as video:
            assert (video.num_frames, video.height, video.width) == (n, H, W)
            assert video.decoder in ("pyav", "torchcodec") and video.path == str(videos[name])
            frames = video.read(range(n))
            again = video.read([n - 1])
    except VideoError as error:
        assert decoder == "torchcodec" and name in NOT_FOR_TORCHCODEC, error
        return
    assert frames.shape == (n, H, W, 3) and frames.dtype == torch.uint8
    assert numbers(frames) == list(range(n)) and numbers(again) == [n - 1]


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_random_indices(videos, name, decoder) -> None:
    if decoder == "torchcodec" and name in NOT_FOR_TORCHCODEC:
        pytest.skip("known limit of torchcodec")
    n = FILES[name][0]
    with open_video(videos[name], decoder) as video:

        @settings(max_examples=12, deadline=None, derandomize=True)
        @given(st.lists(st.integers(0, n - 1), min_size=1, max_size=9))
        def check(indices: list[int]) -> None:
            assert numbers(video.read(indices)) == indices  # unsorted and repeated as they come

        check()


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_unsorted_and_repeated_indices(videos, decoder) -> None:
    indices = [40, 3, 3, 59, 0, 40, 12, 11]
    with open_video(videos["short_gop.mp4"], decoder) as video:
        assert numbers(video.read(indices)) == indices
        assert video.read([]).shape == (0, H, W, 3)
        assert numbers(video.read(np.array([5, 4]))) == [5, 4]


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("name", ["intra.mp4", "long_gop.mp4"])
def test_a_box_is_cut_out(tmp_path, decoder, name) -> None:
    shades = np.add.outer(np.arange(H), np.arange(W))[..., None].repeat(3, -1).astype(np.uint8) + 30
    path = write(tmp_path / name, [shades] * 3, *FILES[name][1:])
    with open_video(path, decoder) as video:
        for top, left, height, width in [(0, 0, H, W), (10, 20, 30, 40), (63, 95, 1, 1), (0, 1, 64, 1)]:
            frames = video.read([2, 0], box=(top, left, height, width))
            assert frames.shape == (2, height, width, 3)
            truth = torch.from_numpy(shades[top : top + height, left : left + width]).float()
            assert (frames.float() - truth).abs().mean() < 4  # of 255: the codec's loss; a shift by 2 pixels is more


@pytest.mark.parametrize("box", [(0, 0, H + 1, W), (0, 0, H, W + 1), (-1, 0, 5, 5), (0, 0, 0, 5), (60, 90, 5, 5)])
def test_a_box_outside_the_frame_is_refused(videos, box) -> None:
    with (
        open_video(videos["long_gop.mp4"]) as video,
        pytest.raises(ValueError, match="must be inside 64 x 96"),
    ):
        video.read([0], box)


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("index", [-1, 60])
def test_an_index_outside_the_video_is_refused(videos, decoder, index) -> None:
    outside = pytest.raises(IndexError, match=rf"{index} is not in \[0, 60\)")
    with open_video(videos["long_gop.mp4"], decoder) as video, outside:
        video.read([0, index])


def test_the_frame_rate(videos) -> None:
    for decoder in ("auto", "pyav"):
        for name in ("long_gop.mp4", "short_gop.mkv", "no_b_frames.avi", "b_frames.avi", "one_frame.mp4"):
            with open_video(videos[name], decoder) as video:
                assert video.fps == pytest.approx(25, rel=1e-3)


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize(
    ("matrix", "shape", "corner"),  # where the top left corner of the stored picture is shown
    [
        ((1, 0, 0, 1), (H, W), (0, 0)),
        ((0, 1, -1, 0), (W, H), (0, -1)),
        ((-1, 0, 0, -1), (H, W), (-1, -1)),
        ((0, -1, 1, 0), (W, H), (-1, 0)),
    ],
)
def test_rotation_is_applied(tmp_path, decoder, matrix, shape, corner) -> None:
    image = np.zeros((H, W, 3), np.uint8)
    image[:16, :16] = 255
    path = write(tmp_path / "turned.mp4", [image] * 3)
    turn(path, *matrix)
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == shape
        frame = video.read([1])[0]
        assert frame.shape == (*shape, 3)
        corners = {(y, x): int(frame[y, x, 0]) for y in (0, -1) for x in (0, -1)}
        assert corners[corner] > 200 and sum(value > 200 for value in corners.values()) == 1
        y, x = (0 if c == 0 else size - 16 for c, size in zip(corner, shape, strict=True))
        assert video.read([2], box=(y, x, 16, 16)).float().mean() > 240  # the box is in displayed pixels


@pytest.fixture(scope="session")
def edited(videos, tmp_path_factory) -> Path:
    """Frames 23 to 59 of a video; an edit list hides those before, which are needed to decode them."""

    def earlier(_, packet):
        packet.pts -= 23 * 512  # 512 ticks a frame: frames 0 to 22 now lie before time 0
        packet.dts -= 23 * 512
        return packet

    return remux(videos["long_gop.mp4"], tmp_path_factory.mktemp("edited") / "edited.mp4", earlier)


@pytest.mark.parametrize("decoder", BACKENDS)
def test_frames_before_an_edit_list_are_not_counted(edited, decoder) -> None:
    with open_video(edited, decoder) as video:
        assert video.num_frames == 37
        assert numbers(video.read(range(37))) == list(range(23, 60))
        assert numbers(video.read([5])) == [28]


def test_pyav_decodes_from_the_start_only_where_timestamps_are_not_true(videos, edited, monkeypatch) -> None:
    counted = []
    count = PyAVReader._count
    monkeypatch.setattr(PyAVReader, "_count", lambda self: counted.append(self.path) or count(self))
    for path in [*videos.values(), edited]:
        with open_video(path, "pyav") as video:
            video.read([video.num_frames - 1, video.num_frames // 2])
    assert counted == [str(videos[name]) for name in ("b_frames.avi", "raw.h264")]


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("cut", [5, 11, 14])
def test_an_edit_list_inside_an_open_gop(tmp_path, codec, cut, decoder) -> None:
    """torchcodec gives the keyframe for the leading pictures of the first keyframe that is shown."""
    option = f"{codec[3:]}-params"
    params = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:log-level=0"
    source = write(tmp_path / "source.mp4", map(numbered, range(48)), codec, {option: params})

    def earlier(_, packet):
        packet.pts -= cut * 512
        packet.dts -= cut * 512
        return packet

    path = remux(source, tmp_path / "cut.mp4", earlier)
    for index in range(48 - cut):
        with open_video(path, decoder) as video:
            assert video.num_frames == 48 - cut
            assert numbers(video.read([index])) == [index + cut]
    with open_video(path, decoder) as video:
        assert numbers(torch.from_numpy(np.stack(list(video.frames())))) == list(range(cut, 48))


STRUCTURES = {
    "fields": ["fields"] * 40,
    "mixed": (["frame"] * 3 + ["fields"] * 2 + ["pair"] * 3) * 5,
    "pairs": ["pair"] * 40,
    "frames": ["frame"] * 40,  # interlaced, but none coded by fields
}


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_fields_are_not_frames(tmp_path, name, suffix, decoder) -> None:
    path = field_coded.write(tmp_path / f"{name}.{suffix}", STRUCTURES[name])
    grays = np.array([(field_coded.luma(i) - 16) * 255 / 219 for i in range(40)])  # of limited range

    def seen(frames: np.ndarray) -> list[int]:
        return [int(np.abs(grays - frame.mean()).argmin()) for frame in frames]

    with open_video(path, decoder) as video:
        assert (video.num_frames, video.fps) == (40, pytest.approx(25, rel=0.01))
        assert seen(np.stack(list(video.frames()))) == list(range(40))
    for indices in ([0, 2, 4, 6, 8], [39], [7, 3, 20], [30, 31, 32]):
        with open_video(path, decoder) as video:
            assert seen(video.read(indices).numpy()) == indices


@pytest.mark.parametrize("decoder", BACKENDS)
def test_the_best_stream_is_read_not_the_first(tmp_path, decoder) -> None:
    with av.open(str(tmp_path / "two.mkv"), "w") as out:
        streams = [out.add_stream("libx264", rate=25) for _ in range(2)]
        streams[0].disposition, streams[1].disposition = 0, av.stream.Disposition.default.value
        for stream, (height, width) in zip(streams, [(32, 48), (H, W)], strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(30):
            for stream in streams:
                image = numbered(i if stream is streams[1] else 200, stream.height, stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    with open_video(tmp_path / "two.mkv", decoder) as video:
        assert (video.height, video.width) == (H, W)
        assert numbers(video.read([7, 29])) == [7, 29]


WITHOUT_FRAME = (11, 23)  # the last before a keyframe: no other frame refers to them


@pytest.fixture(scope="session")
def dropped(tmp_path_factory) -> dict[str, Path]:
    """Frames 0 to 39 of MPEG-4 without two: their packets are there, as after a camera that has dropped frames."""
    folder = tmp_path_factory.mktemp("dropped")

    def drop(n, packet):
        return without_frame(packet) if n in WITHOUT_FRAME else packet

    paths = {}
    for suffix in ("avi", "mp4", "mkv", "ts"):  # a .ts has its headers in the packets
        name = f"source.{'ts' if suffix == 'ts' else 'mkv'}"
        source = write(folder / name, map(numbered, range(40)), "mpeg4", {"g": "12", "bf": "0"})
        paths[suffix] = remux(source, folder / f"dropped.{suffix}", drop)
    return paths


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts"])
def test_packets_without_frames_are_not_counted(dropped, suffix, decoder) -> None:
    shown = [i for i in range(40) if i not in WITHOUT_FRAME]
    with open_video(dropped[suffix], decoder) as video:
        assert (video.num_frames, video.decoder) == (38, "pyav")
        assert numbers(torch.from_numpy(np.stack(list(video.frames())))) == shown
    for index in (37, 22, 12, 11, 10):
        with open_video(dropped[suffix], decoder) as video:
            assert numbers(video.read([index])) == [shown[index]]


@pytest.fixture
def trusting(monkeypatch) -> None:
    """Headers that prove one frame per packet, whatever they say."""
    index = packets.index_packets
    monkeypatch.setattr(packets, "index_packets", lambda *args, **kwargs: replace(index(*args, **kwargs), proven=True))


def test_pyav_corrects_a_wrong_count_when_it_is_noticed(dropped, trusting) -> None:
    shown = [i for i in range(40) if i not in WITHOUT_FRAME]
    for wanted in ([11, 39], [20, 23], [12, 11, 10]):
        with open_video(dropped["mkv"], "pyav") as video:
            assert video.num_frames == 40
            with pytest.raises(CountCorrected, match="announces 40 frames, and 38 can be decoded"):
                video.read(wanted)
            assert video.num_frames == 38
            assert numbers(video.read(range(38))) == shown


def test_auto_corrects_a_wrong_count_when_it_is_noticed(dropped, trusting) -> None:
    with open_video(dropped["mkv"]) as video:
        with pytest.raises(CountCorrected, match="announces 40 frames, and 38 can be decoded"):
            video.read([11])
        assert (video.num_frames, video.decoder) == (38, "pyav")


def test_a_change_of_size_is_scaled_to_the_first_frame(tmp_path) -> None:
    parts = [
        write(tmp_path / f"{h}.h264", map(numbered, [n] * 5, [h] * 5, [w] * 5)) for n, h, w in [(9, H, W), (6, 96, 144)]
    ]
    path = tmp_path / "grows.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path, "pyav") as video:
        frames = video.read(range(video.num_frames))
    assert frames.shape == (10, H, W, 3) and numbers(frames) == [9] * 5 + [6] * 5


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("name", ["short_gop.mp4", "b_frames.avi", "one_frame.mp4"])
def test_all_frames_in_one_go(videos, name, decoder, monkeypatch) -> None:
    if decoder in ("torchcodec", "decord") and name in NOT_FOR_TORCHCODEC:
        pytest.skip("known limit of these")
    monkeypatch.setattr("video_gn.data.decode.reader._HELD_BYTES", 7 * H * W * 3)  # 7 frames at a time
    with open_video(videos[name], decoder) as video:
        assert numbers(torch.from_numpy(np.stack(list(video.frames())))) == list(range(FILES[name][0]))
        assert torch.equal(video.read([0]), torch.from_numpy(np.stack([next(video.frames())])))


def test_pyav_reads_all_frames_from_one_start(videos, monkeypatch) -> None:
    with open_video(videos["b_frames.avi"], "pyav") as video:
        starts = []
        rewind = video._rewind
        monkeypatch.setattr(video, "_rewind", lambda: starts.append(0) or rewind())
        monkeypatch.setattr("video_gn.data.decode.reader._HELD_BYTES", H * W * 3)
        assert sum(1 for _ in video.frames()) == 60 and len(starts) == 1


@pytest.mark.parametrize("known", [True, False])
def test_other_frames_than_announced(dropped, trusting, known) -> None:
    """Two of 40 packets hold no frame, which shows when they are come across."""
    with open_video(dropped["mkv"], "pyav") as video:
        if not known:
            video._pts = []
        with pytest.raises(CountCorrected, match="announces 40 frames, and 38 can be decoded"):
            list(video.frames())
        assert video.num_frames == 38
        assert len(list(video.frames())) == 38


def _with_time(path: Path, number: int, pts: int) -> Path:
    """Give the frame shown as `number` another presentation time: its PES header (13818-1, 2.4.3.7) is changed."""

    def field(time: int) -> bytes:
        high, middle, low = time >> 30, time >> 15 & 0x7FFF, time & 0x7FFF
        return bytes([0x31 | high << 1]) + (middle << 1 | 1).to_bytes(2, "big") + (low << 1 | 1).to_bytes(2, "big")

    with av.open(str(path)) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size)
    data = path.read_bytes()
    assert data.count(field(times[number])) == 1
    path.write_bytes(data.replace(field(times[number]), field(times[0] + pts)))
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_a_wrong_time_in_a_transport_stream(videos, tmp_path, request, trusted) -> None:
    """Frame 45 says that it is shown between 29 and 30, before it is decoded: the order is that of decoding."""
    path = _with_time(remux(videos["short_gop.mp4"], tmp_path / "early.ts", lambda n, p: p), 45, 29 * 3600 + 1)
    if trusted:
        request.getfixturevalue("trusting")
    with open_video(path, "pyav") as video:
        assert video.num_frames == 60
        assert numbers(torch.from_numpy(np.stack(list(video.frames())))) == list(range(60))
    for index in [29, 30, 31, 40, 44, 45, 46] if not trusted else []:
        with open_video(path, "pyav") as video:
            assert numbers(video.read([index])) == [index]


def test_readers_that_find_out_while_reading() -> None:
    class Lossy(VideoReader):
        path, num_frames, height, width = "lossy.mp4", 9, 64, 96

        def _decode(self, indices, box, out) -> None:
            self.num_frames = 5

        def close(self) -> None: ...

    with pytest.raises(VideoError, match="announces 9 frames, and 5 can be decoded"):
        list(Lossy().frames())


# ---- H.264's frames that no other refers to ----


@pytest.mark.parametrize("name", ["long_gop.mp4", "short_gop.mkv", "open_gop.mp4"])
def test_frames_that_nobody_needs_are_not_decoded(videos, name, monkeypatch) -> None:
    # What FFmpeg's own decoder gives when it leaves them out.
    with av.open(str(videos[name])) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        referenced = {frame.pts for frame in container.decode(video=0)}
    with open_video(videos[name], "pyav") as video:
        pts = list(video._pts)
        assert video._unreferenced == set(pts) - referenced and len(video._unreferenced) > 15
        skipped = []
        frames = video._frames
        monkeypatch.setattr(video, "_frames", lambda keyframe, skip: skipped.append(skip) or frames(keyframe, skip))
        for i in range(60):
            assert numbers(video.read([i])) == [i]
            assert skipped[i] == video._unreferenced - {pts[i]}
        assert video._pts == pts  # never out of step


@pytest.mark.parametrize(
    ("name", "skips"), [("intra.mp4", False), ("short_gop.mp4", True), ("transport_stream.ts", False)]
)
def test_only_h264_with_sizes_is_looked_into(videos, name, skips) -> None:
    with open_video(videos[name], "pyav") as video:
        assert bool(video._unreferenced) == skips


def test_real_frames_are_the_same_where_frames_are_skipped(shared_data) -> None:
    skipping = 0
    for name in REAL:
        with open_video(shared_data / name, "pyav") as video:
            indices = list(range(min(9, video.num_frames - 1), min(video.num_frames, 50), 2))
            frames = video.read(indices)
            skipping += bool(video._unreferenced)
            video._unreferenced = set()
            assert torch.equal(frames, video.read(indices)), name
    assert skipping > 5


def test_units_whose_sizes_do_not_add_up_are_decoded() -> None:
    needed = {
        b"\0\0\0\2\x01x": True,  # a slice that no frame refers to
        b"\0\0\0\2\x06x\0\0\0\2\x01x": True,  # with supplemental information before it
        b"\0\0\0\2\x41x": False,  # referred to
        b"\0\0\0\2\x01x\0\0\0\2\x41x": False,  # a second field that is
        b"\0\0\0\2\x01x\0\0\0\1\x68": False,  # a picture parameter set
        b"\0\0\0\3\x01x": False,  # cut
        b"\0\0\0\2\x01x\0": False,
        b"\0\0\0\0\x01": False,  # no end
    }
    assert {data: is_unreferenced(data, 4) for data in needed} == needed
    assert is_unreferenced(b"\0\2\x01x", 2) and is_unreferenced(b"\2\x01x", 1)


@pytest.mark.skipif(libraries.load("decord") is None, reason="no decord")
def test_decord_may_give_tensors(videos) -> None:
    """pytorchvideo sets decord's bridge for the whole process."""
    import decord

    decord.bridge.set_bridge("torch")
    try:
        with open_video(videos["short_gop.mp4"], "decord") as video:
            assert numbers(video.read([40, 3])) == [40, 3]
    finally:
        decord.bridge.set_bridge("native")


# ---- files that cannot be read ----


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_unreadable_files(tmp_path, decoder) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "garbage.mp4").write_bytes(random.Random(0).randbytes(20_000))
    with av.open(str(tmp_path / "audio.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
    whole = write(tmp_path / "whole.mp4", map(numbered, range(30))).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # without its index
    reasons = {
        "missing.mp4": "no such file",
        "empty.mp4": "empty file (0 bytes)",
        "folder.mp4": "is a folder, not a video",
    }
    for name in [*reasons, "garbage.mp4", "audio.wav", "half.mp4"]:
        path = str(tmp_path / name)
        with pytest.raises(VideoError) as caught:
            open_video(path, decoder)
        assert caught.value.path == path and str(caught.value) == f"{path}: {caught.value.reason}"
        assert caught.value.reason == reasons.get(name, caught.value.reason)
        assert caught.value.reason.strip() and "\n" not in caught.value.reason
        assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_tags_that_are_not_utf8(tmp_path, decoder, container) -> None:
    path = tmp_path / f"tags.{container}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        out.metadata["title"] = stream.metadata["title"] = "une journee"
        for i in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        out.mux(stream.encode())
    data = path.read_bytes()
    assert b"une journee" in data
    path.write_bytes(data.replace(b"une journee", "une journée".encode("latin-1")))
    if container == "avi" and decoder == "torchcodec":
        return  # it may not read them
    with open_video(path, decoder) as video:
        assert numbers(video.read(range(4))) == [0, 1, 2, 3]


def _open_of_another_version(file, mode="r"):
    raise AssertionError("is not called with these arguments")


def _raise(error: Exception):
    def call(*_: object, **__: object):
        raise error

    return call


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_open_of_another_version, TypeError, "unexpected keyword argument"),
        (_raise(AttributeError("no attribute 'streams'")), AttributeError, "streams"),
        (_raise(NameError("name 'av' is not defined")), NameError, "not defined"),
        (_raise(ImportError("cannot import name 'open'")), ImportError, "cannot import"),
    ],
)
def test_a_bug_or_a_library_with_another_api_is_not_a_bad_video(
    videos, monkeypatch, caplog, decoder, change, error, message
) -> None:
    monkeypatch.setattr(av, "open", change)
    with pytest.raises(error, match=message):
        open_video(videos["short_gop.mp4"], decoder)
    (record,) = caplog.records
    assert "not a fault of the file" in record.getMessage() and f"av {av.__version__}" in record.getMessage()


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_a_bug_while_frames_are_read_is_not_a_bad_video(videos, monkeypatch, decoder) -> None:
    with open_video(videos["short_gop.mp4"], decoder) as video:
        monkeypatch.setattr(Crop, "__call__", lambda self: None)
        with pytest.raises(TypeError):
            video.read([3])


def test_a_cover_picture_is_no_video(tmp_path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        sound, cover = out.add_stream("mp3", rate=44100), out.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = H, W, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        out.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44100
        out.mux(sound.encode(samples))
        out.mux(sound.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(path, "pyav")


@pytest.mark.parametrize("decoder", BACKENDS)
def test_a_cut_file_reads_what_it_promises(videos, tmp_path, decoder) -> None:
    data = videos["short_gop.mkv"].read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    with open_video(tmp_path / "cut.mkv", decoder) as video:
        assert 20 < video.num_frames < 50
        got = numbers(video.read(range(video.num_frames)))
    assert got == sorted(set(got)) and got[:20] == list(range(20))


@pytest.mark.parametrize("decoder", ["auto", "pyav"])  # torchcodec refuses the file
def test_damage_in_the_middle_never_shortens_or_shifts_a_read(tmp_path, decoder) -> None:
    path = write(
        tmp_path / "damaged.mp4",
        map(numbered, range(60)),
        "libx264",
        {"g": "12", "bf": "0", "sc_threshold": "0"},
    )
    with av.open(str(path)) as container:
        packet = next(p for n, p in enumerate(container.demux(video=0)) if n == 30)
        at, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    with open_video(path, decoder) as video:
        n = video.num_frames
        for i in range(60):
            if 30 <= i < 36:
                with pytest.raises(VideoError):
                    video.read([24, i])  # what is left of a group of pictures cannot be trusted
            else:
                assert numbers(video.read([i])) == [i]
        assert video.num_frames == n == 60


DAMAGED = (
    "audio_only",
    "bitflips_payload",
    "five_frames",
    "last_frame_corrupt",
    "one_frame",
    "random_bytes",
    "trunc_half_as_is",
    "trunc_header_only_1k",
    "zero_byte",
    "zeroed_40k_middle",
)


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_videos_read_what_they_promise_or_say_why(shared_data, name, decoder) -> None:
    try:
        with open_video(shared_data / "damaged_videos" / f"{name}.mp4", decoder) as video:
            n = video.num_frames
            frames = video.read([n - 1, 0, n // 2], box=(0, 0, 16, 16))
            assert frames.shape == (3, 16, 16, 3)
        assert name in (
            "bitflips_payload",
            "five_frames",
            "one_frame",
            "zeroed_40k_middle",
            "last_frame_corrupt",
        )
    except VideoError as error:
        assert error.reason and "\n" not in error.reason
        assert name not in ("five_frames", "one_frame")


# ---- real videos ----


@pytest.mark.parametrize("name", REAL)
def test_backends_agree_on_real_videos(shared_data, name) -> None:
    n, height, width = REAL[name]
    indices = [n - 1, 0, n // 2, n // 2 + 1]
    read = {}
    for decoder in ("auto", "pyav", "torchcodec"):
        if decoder == "torchcodec" and (libraries.load(decoder) is None or name.endswith("avi")):
            continue
        with open_video(shared_data / name, decoder) as video:
            assert (video.num_frames, video.height, video.width) == (n, height, width)
            read[decoder] = video.read(indices).float()
    for frames in read.values():
        assert (frames - read["pyav"]).abs().mean((1, 2, 3)).max() <= 1  # of 255


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("name", [name for name in REAL if name.startswith("odd_videos")])
def test_all_ways_to_read_agree_with_decoding_in_order(shared_data, name, decoder) -> None:
    """frames(), read() of all and of some, each by a reader that knows nothing yet."""
    with av.open(str(shared_data / name)) as container:
        ratio = container.streams.video[0].sample_aspect_ratio or 1
        truth = [_small(_displayed(frame, ratio)) for frame in container.decode(video=0)]
    n = len(truth)
    with open_video(shared_data / name, decoder) as video:
        assert video.num_frames == n
        frames = [_small(frame) for frame in video.frames()]
    assert len(frames) == n and all(map(_alike, frames, truth))
    rng = random.Random(0)
    for indices in [[n - 1], [n // 2], *([rng.randrange(n) for _ in range(k)] for k in (1, 1, 3, 3))]:
        with open_video(shared_data / name, decoder) as video:
            frames = [_small(frame) for frame in video.read(indices).numpy()]
        assert all(map(_alike, frames, [truth[i] for i in indices])), indices


def _displayed(frame, ratio) -> np.ndarray:
    """As displayed: upright, with square pixels."""
    image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    if abs(ratio - 1) < 0.01:
        return image
    return np.asarray(Image.fromarray(image).resize((round(image.shape[1] * ratio), image.shape[0]), Image.BILINEAR))


def _small(image: np.ndarray) -> np.ndarray:
    return image[::4, ::4].astype(int)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).mean() <= 1)  # of 255


# ---- choice of decoder ----


def _pretend(monkeypatch, **modules) -> None:
    load = libraries.load
    monkeypatch.setattr(libraries, "load", lambda name: modules[name] if name in modules else load(name))


def test_auto_is_pyav_where_torchcodec_does_not_load(videos, monkeypatch, caplog) -> None:
    _pretend(monkeypatch, torchcodec=None)
    with open_video(videos["long_gop.mp4"]) as video:
        assert video.decoder == "pyav" and numbers(video.read([30])) == [30]
    assert not caplog.records


def test_auto_is_pyav_for_containers_that_torchcodec_misreads(videos, broken, caplog) -> None:
    for name in ("no_b_frames.avi", "program_stream.mpg", "transport_stream.ts", "raw.h264"):
        with open_video(videos[name]) as video:
            assert video.decoder == "pyav"
        with pytest.raises(VideoError, match="use auto or pyav"):
            open_video(videos[name], "torchcodec")
    with open_video(videos["long_gop.mp4"]) as video:
        assert video.decoder == "torchcodec"
    assert not caplog.records


@pytest.mark.parametrize("decoder", ["torchcodec", "pyav", "decord"])
def test_a_decoder_that_is_not_installed(videos, monkeypatch, decoder) -> None:
    _pretend(monkeypatch, torchcodec=None, pyav=None, decord=None)
    package = {"pyav": "av"}.get(decoder, decoder)
    with pytest.raises(UserError, match=f"'{decoder}' cannot be loaded here; `pip install {package}`"):
        open_video(videos["long_gop.mp4"], decoder)


def test_an_unknown_decoder(videos) -> None:
    with pytest.raises(UserError, match="'opencv' is unknown; choose one of auto, torchcodec, pyav, decord"):
        open_video(videos["long_gop.mp4"], "opencv")


@pytest.mark.parametrize("error", [ImportError("no"), RuntimeError("Could not load libtorchcodec"), OSError("libav")])
def test_a_failing_import_is_tried_once(monkeypatch, error) -> None:
    tries = []

    def fail(name: str):
        tries.append(name)
        raise error

    monkeypatch.setattr(libraries.importlib, "import_module", fail)
    load = functools.cache(libraries.load.__wrapped__)
    assert load("torchcodec") is None and load("torchcodec") is None
    assert len(tries) == 1


class _Broken:
    """A stand-in for torchcodec's decoder that opens files, and fails to read frames from the tenth on."""

    metadata = types.SimpleNamespace(average_fps=25.0)
    stream_index, first = 0, 0.0

    def __init__(self, path: str, **_: object) -> None:
        if "unopened" in path:
            raise RuntimeError("open, /src/Decoder.cpp:41, Could not open input file: Invalid data\ntrace")

    def __len__(self) -> int:
        return 60

    def get_frame_at(self, index: int):
        return types.SimpleNamespace(pts_seconds=self.first, data=torch.zeros(H, W, 3, dtype=torch.uint8))

    def get_frames_at(self, indices: list[int]):
        if max(indices) >= 10:
            raise RuntimeError("decode_av_frame, /src/Decoder.cpp:1493, no more frames left to decode.")
        data = torch.stack([torch.from_numpy(numbered(i)) for i in indices])
        return types.SimpleNamespace(pts_seconds=torch.tensor([i / 25 for i in indices]), data=data)


@pytest.fixture
def broken(monkeypatch) -> None:
    _pretend(monkeypatch, torchcodec=types.SimpleNamespace(VideoDecoder=_Broken))


def test_a_file_that_torchcodec_cannot_open_goes_to_pyav_and_the_log_once(videos, tmp_path, broken, caplog) -> None:
    path = tmp_path / "unopened.mp4"
    path.write_bytes(videos["long_gop.mp4"].read_bytes())
    for _ in range(2):
        with open_video(path) as video:
            assert video.decoder == "pyav" and numbers(video.read([59])) == [59]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage() and "(Could not open input file: Invalid data)" in record.getMessage()
    with pytest.raises(VideoError, match=r"unopened\.mp4: Could not open input file: Invalid data$"):
        open_video(path, "torchcodec")


def test_a_frame_that_torchcodec_cannot_read_comes_from_pyav(videos, broken, caplog) -> None:
    with open_video(videos["long_gop.mp4"]) as video:
        assert numbers(video.read([9, 2])) == [9, 2]
        assert (video.decoder, video.num_frames) == ("torchcodec", 60) and not caplog.records
        assert numbers(video.read([50, 2])) == [50, 2]
        assert (video.decoder, video.num_frames) == ("pyav", 60) and len(caplog.records) == 1


def test_a_wrong_frame_from_torchcodec_is_noticed(videos, monkeypatch) -> None:
    class Late(_Broken):
        first = 0.8

    class Short(_Broken):
        def __len__(self) -> int:
            return 59

    class Stuck(_Broken):
        def get_frames_at(self, indices: list[int]):
            batch = super().get_frames_at(indices)
            return types.SimpleNamespace(pts_seconds=batch.pts_seconds.clamp(max=0.1), data=batch.data)

    _pretend(monkeypatch, torchcodec=types.SimpleNamespace(VideoDecoder=Late))
    with pytest.raises(VideoError, match=r"frame 0 comes at 0\.800 s, should at 0\.000 s"):
        open_video(videos["long_gop.mp4"], "torchcodec")
    monkeypatch.setattr(libraries.load("torchcodec"), "VideoDecoder", Short)
    with pytest.raises(VideoError, match=r"finds \(0, 59\) as \(stream, frames\), should be \(0, 60\)"):
        open_video(videos["long_gop.mp4"], "torchcodec")
    monkeypatch.setattr(libraries.load("torchcodec"), "VideoDecoder", Stuck)
    with open_video(videos["long_gop.mp4"], "torchcodec") as video:
        assert numbers(video.read([0, 1, 2])) == [0, 1, 2]
        with pytest.raises(VideoError, match=r"frame 4 comes at 0\.100 s, should at 0\.160 s"):
            video.read([4])
    with open_video(videos["long_gop.mp4"]) as video:
        assert numbers(video.read([4])) == [4] and video.decoder == "pyav"


# ---- resources ----


def test_the_error_pickles() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "no such file")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "no such file", "a.mp4: no such file")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_no_file_stays_open(videos, tmp_path, decoder) -> None:
    (tmp_path / "garbage.mp4").write_bytes(bytes(5000))

    def use() -> int:
        with open_video(videos["short_gop.mp4"], decoder) as video:
            video.read([50, 3])
        with pytest.raises(VideoError):
            open_video(tmp_path / "garbage.mp4", decoder)
        return len(os.listdir("/proc/self/fd"))

    first = use()
    assert [use() for _ in range(5)] == [first] * 5


def test_reading_keeps_no_memory(videos) -> None:
    """What malloc has given out and not got back, after glibc; one packet per read is 150 bytes."""

    class Info(ctypes.Structure):
        _fields_ = [(f"field{n}", ctypes.c_size_t) for n in range(10)]  # mallinfo2(3): the 8th is in use

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("needs glibc 2.33")
    mallinfo2.restype = Info

    def use(reads: int) -> int:
        for _ in range(reads):
            with open_video(videos["short_gop.mkv"], "pyav") as video:
                video.read([3, 40])
        gc.collect()
        return mallinfo2().field7

    before = use(20)
    assert use(100) - before < 100 * 100


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_cut_mp4_whose_index_is_whole_is_refused(tmp_path, decoder):
    """FFmpeg leaves out the frames that are lost, as if the video were shorter."""
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
        for frame in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    content = whole.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with open_video(whole, decoder) as video:
        assert video.num_frames == 20
    for name, end in (("cut.mp4", len(content) // 2), ("last.mp4", len(content) - 1)):
        (tmp_path / name).write_bytes(content[:end])
        with pytest.raises(VideoError, match=f"cut short: {end:,} of at least {len(content):,} bytes"):
            open_video(tmp_path / name, decoder)
    (tmp_path / "old.mov").write_bytes(content.replace(b"ftyp", b"free", 1)[: len(content) // 2])  # begins without ftyp
    with pytest.raises(VideoError, match="cut short"):
        open_video(tmp_path / "old.mov", decoder)
    (tmp_path / "more.mp4").write_bytes(content + b"and something that is no box at all")
    with open_video(tmp_path / "more.mp4", decoder) as video:
        assert video.num_frames == 20


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_fragmented_mp4_cut_between_fragments(tmp_path, decoder):
    whole = tmp_path / "whole.mp4"
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(str(whole), "w", options=options) as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "10"})
        stream.width = stream.height = 64
        for k in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * k, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    content = whole.read_bytes()
    with open_video(whole, decoder) as video:
        assert video.num_frames == 30
    fragment = content.rindex(b"moof") - 4
    (tmp_path / "cut.mp4").write_bytes(content[: fragment + 5])
    with pytest.raises(VideoError, match="cut short"):
        open_video(tmp_path / "cut.mp4", decoder)


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
def test_a_list_of_other_files_is_no_video(tmp_path, videos, decoder):
    """FFmpeg would open what it names, wherever that is."""
    if decoder == "decord":
        pytest.importorskip("decord")
    target = videos["short_gop.mp4"]
    for name, text in (
        ("x.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"),
        ("x.mp4", f"ffconcat version 1.0\nfile '{target.name}'\n"),
    ):
        (target.parent / name).write_text(text)
        with pytest.raises(VideoError, match="a list of other files"):
            open_video(target.parent / name, decoder)


def test_only_formats_of_videos_are_opened(tmp_path):
    """FFmpeg's text formats lead to other files or show text as pictures."""
    (tmp_path / "x.mp4").write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n")
    with pytest.raises(VideoError):
        open_video(tmp_path / "x.mp4")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="pipe"):
        open_video(tmp_path / "pipe.mp4")


# ---- displayed pixels: orientation, sample aspect ratio, reduction, HDR, files that are images ----

MIRRORS = {  # display matrix (a, b, c, d), what it does to stored pixels (h, w, 3)
    "as stored": ((1, 0, 0, 1), lambda x: x),
    "left-right": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half turn": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "counter-clockwise": ((0, -1, 1, 0), lambda x: np.rot90(x)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "antitransposed": ((0, -1, -1, 0), lambda x: np.rot90(x.transpose(1, 0, 2), 2)),
    "half turn, twice as large": ((-2, 0, 0, -2), lambda x: x[::-1, ::-1]),
    # FFmpeg looks at angle and signs, and makes a sample aspect ratio of unequal scales.
    "half turn, scaled to 2:3": ((-2, 0, 0, -3), lambda x: shaded(64, 64)[::-1, ::-1]),
    "clockwise, scaled to 1:2": ((0, 2, -1, 0), lambda x: np.rot90(shaded(64, 48), -1)),
    "sheared, without an angle": ((1, 0, 0.5, 1), lambda x: shaded(64, 107)),
    "zeros": ((0, 0, 0, 0), lambda x: x),
    "a column of zeros": ((-1, 0, 0, 0), lambda x: x),
}
ODD_ANGLES = {"30 degrees": (0.866, 0.5, -0.5, 0.866), "200 degrees": (-0.94, -0.342, 0.342, -0.94)}
ODD_ANGLES |= {"sheared": (1, 0.5, 0.5, 1), "60 degrees": (0.5, 0.866, -0.866, 0.5), "of rank 1": (1, 1, 1, 1)}


def difference(image: torch.Tensor, expected: np.ndarray) -> float:
    assert image.shape == expected.shape
    return float(np.abs(image.numpy().astype(float) - expected).mean())


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("name", MIRRORS)
def test_all_orientations(tmp_path, decoder, name) -> None:
    matrix, change = MIRRORS[name]
    path = write(tmp_path / "video.mp4", [shaded()] * 3)
    turn(path, *matrix)
    expected = change(shaded())
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == expected.shape[:2]
        assert video.decoder == decoder or decoder == "auto"
        assert difference(video.read([1])[0], expected) < 3  # the codec's loss; the nearest other is 17 away
        assert difference(video.read([2], (5, 7, 20, 30))[0], expected[5:25, 7:37]) < 3
        assert difference(torch.from_numpy(next(video.frames()).copy()), expected) < 3


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("name", ODD_ANGLES)
def test_other_angles_turn_the_picture_inside_its_frame_as_ffmpegs_filter(tmp_path, decoder, name) -> None:
    a, b, c, d = ODD_ANGLES[name]
    path = write(tmp_path / "video.mp4", [shaded()] * 3)
    turn(path, a, b, c, d)
    angle = round(np.degrees(np.arctan2(b / np.hypot(b, d), a / np.hypot(a, c))))
    graph = av.filter.Graph()
    source = av.VideoFrame.from_ndarray(shaded(), format="rgb24")
    graph.link_nodes(
        graph.add_buffer(width=W, height=H, format=source.format, time_base=Fraction(1, 25)),
        graph.add("rotate", f"{angle}*PI/180"),
        graph.add("buffersink"),
    ).configure()
    graph.push(source)
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == (H, W)
        assert difference(video.read([1])[0], graph.pull().to_ndarray(format="rgb24")) < 5


def _filtered(source: Path, target: Path, bits: str) -> Path:
    """Copy through one of FFmpeg's bitstream filters."""
    with av.open(str(source)) as given_, av.open(str(target), "w") as out:
        video = given_.streams.video[0]
        stream = out.add_stream_from_template(video)
        change = av.bitstream.BitStreamFilterContext(bits, video, stream)
        for packet in given_.demux(video):
            for changed in change.filter(packet):
                changed.stream = stream
                out.mux(changed)
    return target


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize(
    ("how", "change"),
    [("rotate=90", lambda x: np.rot90(x)), ("flip=horizontal", lambda x: x[:, ::-1])],
)
def test_an_orientation_that_the_codec_bears(tmp_path, decoder, how, change) -> None:
    source = write(tmp_path / "source.mp4", [shaded()] * 3)
    path = _filtered(source, tmp_path / "turned.mp4", f"h264_metadata=display_orientation=insert:{how}")
    with open_video(path, decoder) as video:
        assert difference(video.read([1])[0], change(shaded())) < 3


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize(
    ("container", "width"),  # of 96 stored pixels
    [
        ((3, 2), 144),
        ((16, 15), 102),  # 102.4: PAL's discs and tapes
        ((8, 9), 85),  # 85.3: NTSC's; the width shrinks, the height is never changed
        ((1, 2), 48),
        ((10, 1), 960),
        ((1, 1), 96),
        ((2048, 2043), 96),  # within 1 %
        ((11, 1), 96),  # nonsense
        ((1, 1000), 96),
        ((1000, 1), 96),
    ],
)
def test_the_width_is_scaled_so_that_pixels_are_square(tmp_path, decoder, container, width) -> None:
    path = shape_pixels(tmp_path / "video.mp4", container)  # the container's goes before the codec's
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == (64, width)
        assert difference(video.read([1])[0], shaded(64, width)) < 3
        assert difference(video.read([1], (3, 20, 30, 25))[0], shaded(64, width)[3:33, 20:45]) < 3


@pytest.mark.parametrize("decoder", BACKENDS)
def test_the_codecs_ratio_counts_where_the_container_has_none(tmp_path, decoder) -> None:
    path = shape_pixels(tmp_path / "video.mp4", (0, 1))
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == (64, 128)
    with open_video(shape_pixels(tmp_path / "video.h264"), "pyav") as video:
        assert (video.height, video.width) == (64, 128)


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_the_stored_width_of_a_turned_video_is_its_displayed_height(tmp_path, decoder) -> None:
    path = shape_pixels(tmp_path / "video.mp4", (3, 2))
    turn(path, 0, 1, 1, 0)
    with open_video(path, decoder) as video:
        assert (video.height, video.width) == (144, 64)
        assert difference(video.read([1])[0], shaded(64, 144).transpose(1, 0, 2)) < 3


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
@pytest.mark.parametrize("k", [1, 2, 5, 32, 100])
def test_a_reduction_is_the_mean_of_blocks(videos, decoder, k) -> None:
    with open_video(videos["short_gop.mp4"], decoder) as video:
        frame = video.read([9])[0].numpy().astype(float)
        rows, columns = -(-H // k), -(-W // k)
        expected = np.array(
            [[frame[y * k : y * k + k, x * k : x * k + k].mean((0, 1)) for x in range(columns)] for y in range(rows)]
        )
        got = video.read([9, 4], reduction=k)
        assert got.shape == (2, rows, columns, 3)
        assert np.abs(got[0].numpy() - expected).max() <= 1  # rounded
        box = (
            rows // 2,
            columns // 3,
            rows - rows // 2,
            columns - columns // 3,
        )  # up to the edge, where blocks are cut
        part = video.read([9], box, k)[0]
        assert torch.equal(part, got[0, box[0] :, box[1] :])
        with pytest.raises(ValueError, match=f"must be inside {rows} x {columns}"):
            video.read([9], (0, 0, rows + 1, columns), k)
        with pytest.raises(ValueError, match="reduction 0 must be at least 1"):
            video.read([9], reduction=0)


def test_a_large_image_is_reduced_in_strips() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1300, 1000, 3), dtype=np.uint8)
    expected = image[:1296].reshape(162, 8, 125, 8, 3).mean((1, 3))
    assert np.abs(block_means(image, 8)[:162] - expected).max() <= 1
    assert np.abs(block_means(image, 8)[162] - image[1296:].reshape(4, 125, 8, 3).mean((0, 2))).max() <= 1


@pytest.mark.parametrize("decoder", BACKENDS)
def test_few_large_frames_are_held(videos, decoder, monkeypatch) -> None:
    monkeypatch.setattr("video_gn.data.decode.reader._HELD_BYTES", 2 * H * W * 3)
    with open_video(videos["long_gop.mp4"], decoder) as video:
        if video.decoder == "torchcodec":
            asked, given_ = [], video._reader._video if decoder == "auto" else video._video
            fake = types.SimpleNamespace(get_frames_at=lambda i: asked.append(len(i)) or given_.get_frames_at(i))
            monkeypatch.setattr(video._reader if decoder == "auto" else video, "_video", fake)
        assert numbers(video.read(range(7), reduction=2)) == list(range(7))
        if video.decoder == "torchcodec":
            assert max(asked) == 2


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG"), ("bt709", None)])
def test_hdr_is_warned_of_once_per_process(tmp_path, decoder, transfer, name, monkeypatch, caplog) -> None:
    monkeypatch.setattr("video_gn.data.decode.stream._hdr_warned", False)
    options = {"x264-params": f"transfer={transfer}:colorprim=bt2020:colormatrix=bt2020nc"}
    paths = [write(tmp_path / f"{k}.mp4", [shaded()] * 2, "libx264", options) for k in range(2)]
    for path in paths:
        with open_video(path, decoder) as video:
            video.read([0])
    warnings = [record.getMessage() for record in caplog.records if "HDR" in record.getMessage()]
    assert [str(paths[0]) in text and f"({name})" in text for text in warnings] == ([True] if name else [])


def test_an_image_is_called_what_it_is(tmp_path) -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), 50 * k, np.uint8)) for k in range(4)]
    for name, what in {
        "a.jpg": "a JPEG image, not a video; give a video, or use a network that was trained on images",
        "a.png": "a PNG image, not a video",
        "a.webp": "a WebP image, not a video",
        "a.bmp": "a BMP image, not a video",
        "a.ppm": "a PPM image, not a video",
        "a.tiff": "a TIFF image, not a video",
    }.items():
        frames[0].save(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "video.mp4")  # its name does not matter
        with pytest.raises(VideoError, match=f"video.mp4: {what}"):
            open_video(tmp_path / "video.mp4")
    for name, what in {
        "moving.webp": "an animated WebP, which FFmpeg does not",
        "moving.png": "an animated PNG",
    }.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(VideoError, match=what):
            open_video(tmp_path / name)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with open_video(tmp_path / "moving.gif") as video:
        assert video.num_frames == 4
    write(tmp_path / "raw.mjpeg", [shaded()] * 3, "mjpeg")
    with pytest.raises(VideoError, match=r"raw Motion JPEG.*ffmpeg -f mjpeg -i \S*raw\.mjpeg -c copy"):
        open_video(tmp_path / "raw.mjpeg")
