"""Headers of packets: which show one frame. Bytes by hand after the standards, and what encoders write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import field_coded
from video_gn.data.decode import packets
from video_gn.data.decode.packets import index_packets

av = pytest.importorskip("av")


def shows_one(codec: str, data: bytes, extradata: bytes = b"") -> bool:
    kind = SimpleNamespace(canonical_name=codec, intra_only=False)
    return packets._one_frame_of(SimpleNamespace(codec=kind, extradata=extradata))(data)


MPEG2 = b"\0\0\1\0\0\x0f\xff\xf8"  # a picture header
EXTENSION = b"\0\0\1\xb5\x8f\xff"  # of picture coding, up to picture_structure


@pytest.mark.parametrize(
    ("codec", "data", "one"),
    [
        ("mpeg2video", MPEG2 + EXTENSION + b"\xf3\x80\0\0\1\1", True),
        ("mpeg2video", MPEG2 + EXTENSION + b"\xf1\x80\0\0\1\1", False),  # a top field
        ("mpeg2video", (MPEG2 + EXTENSION + b"\xf1\x80") + (MPEG2 + EXTENSION + b"\xf2\x80"), True),
        ("mpeg2video", (MPEG2 + EXTENSION + b"\xf1\x80") * 2, False),
        ("mpeg2video", (MPEG2 + EXTENSION + b"\xf3\x80") * 2, False),
        ("mpeg2video", b"\0\0\1\xb5\x14\x8a\0\1\0\0" + MPEG2 + EXTENSION + b"\xf3\x80", True),  # a sequence extension
        ("mpeg2video", b"\0\0\1\xb7", False),
        ("mpeg1video", MPEG2 + b"\0\0\1\1", True),
        ("mpeg1video", MPEG2 + b"\0\0\1\1" + MPEG2, False),
        ("mpeg4", b"\0\0\1\xb6" + bytes([0x56] * 40), True),
        ("mpeg4", b"\0\0\1\xb6\x56\x4f", False),  # not coded
        ("mpeg4", (b"\0\0\1\xb6" + bytes([0x56] * 40)) * 2, False),  # packed
        ("mpeg4", b"\0\0\1\xb2DivX503b1393p", False),
        ("vp8", b"\x10\0\0\x9d\1\x2a", True),
        ("vp8", b"\0\0\0\x9d\1\x2a", False),
        ("vp9", b"\x82\x49\x83\x42\0", True),
        ("vp9", b"\x80\x49\x83\x42\0", False),  # not shown
        ("vp9", b"\x88\0", True),  # shows an earlier one
        ("vp9", b"\xb1\0", True),  # profile 3
        ("vp9", b"\xb2\0", False),
        ("vp9", b"\x80\0\x86\0\0\xc1\2\3\xc1", True),  # a superframe of 2 and 3 bytes: the second is shown
        ("vp9", b"\x82\0\x86\0\0\xc1\2\3\xc1", False),  # both
        ("vp9", b"\x80\0\x84\0\0\xc1\2\3\xc1", False),  # none
        ("hevc", b"\0\0\1\x26\1\x80\0\0\1\x26\1\0", True),  # two slices of an IDR picture
        ("hevc", b"\0\0\1\2\1\x80\0\0\1\2\1\x80", False),
        ("hevc", b"\0\0\1\x4e\1\5", False),  # supplemental information only
        ("hevc", b"\0\0\1\2\1\x80\0\0\1\2\x09\x80", True),  # the second is of another layer
        ("hevc", b"\0\0\1\x20\1\x80", False),  # a broken link
        ("hevc", b"\0\0\1\2\1\x80\0\0\1\x48\1\0", False),  # the end of the sequence
        ("av1", b"\x12\0", True),
        ("theora", b"\0\0", False),  # not looked into
    ],
)
def test_packets(codec: str, data: bytes, one: bool) -> None:
    assert shows_one(codec, data) == one


def test_hevc_without_output_of_earlier_pictures() -> None:
    test = packets._one_frame_of(
        SimpleNamespace(codec=SimpleNamespace(canonical_name="hevc", intra_only=False), extradata=None)
    )
    assert test(b"\0\0\1\x26\1\xc0") and test(b"\0\0\1\2\1\x80")  # the first picture has no earlier ones
    assert not test(b"\0\0\1\x26\1\xc0")


@pytest.mark.parametrize(
    ("structures", "proven"),
    [
        (["frame"] * 4, [True] * 4),
        (["pair"] * 2, [True] * 2),
        (["frame", "fields", "pair"], [True, False, False, True]),
    ],
)
def test_fields_and_frames_of_h264(structures: list[str], proven: list[bool]) -> None:
    coded = field_coded.packets_of(structures)
    test = packets._H264(b"")
    assert [test(data) for data, _ in coded] == proven
    (first, _), (second, _) = field_coded.packets_of(["frame", "fields"])[:2]
    assert not packets._H264(b"")(first[first.rindex(b"\0\0\0\1") :])  # its parameter sets are not known
    assert not packets._H264(b"")(first + second)
    assert not packets._H264(b"")(b"\0\0\0\1\x09\x10") and not packets._H264(b"")(b"")


def _write(path: Path, codec: str, options: dict[str, str], pix_fmt: str = "yuv420p") -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        for _ in range(24):
            picture = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mkv", "libx264", {"x264-params": "slices=3:keyint=8"}),
        ("a.ts", "libx264", {"x264-params": "bframes=2:keyint=8"}),
        ("interlaced.mp4", "libx264", {"x264-params": "interlaced=1"}),
        ("interlaced.ts", "libx264", {"x264-params": "interlaced=1"}),
        ("lists.mp4", "libx264", {"x264-params": "cqm=jvt"}),  # its parameter sets have scaling lists
        ("a.mp4", "libx265", {"x265-params": "log-level=none:keyint=8:open-gop=1"}),
        ("a.mkv", "libx265", {"x265-params": "log-level=none:keyint=8:slices=2"}),
        ("a.ts", "libx265", {"x265-params": "log-level=none:keyint=8"}),
        ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        ("a.ts", "mpeg2video", {"g": "12", "bf": "2", "flags": "+ildct+ilme"}),
        ("a.mkv", "mpeg2video", {"g": "12", "bf": "2"}),
        ("a.ts", "mpeg1video", {"g": "12", "bf": "2"}),
        ("a.mp4", "mpeg4", {"g": "12", "bf": "2"}),
        ("a.webm", "libvpx", {"auto-alt-ref": "0"}),
        ("a.webm", "libvpx-vp9", {"lag-in-frames": "12", "auto-alt-ref": "1"}),
        ("a.avi", "mjpeg", {}),
    ],
)
def test_what_encoders_write_is_proven(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = _write(tmp_path / name, codec, options, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    with av.open(str(path)) as container:
        truth = sorted(frame.pts for frame in container.decode(video=0))
    with av.open(str(path)) as container:
        index = index_packets(container, container.streams.video[0])
    assert (index.proven, index.pts) == (True, truth) and len(truth) == 24
    assert set(index.keyframes) <= set(truth)


def test_vp8s_hidden_frames_are_noticed(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "12", "arnr-maxframes": "0"})
    with av.open(str(path)) as container:
        shown = sum(1 for _ in container.decode(video=0))
    with av.open(str(path)) as container:
        index = index_packets(container, container.streams.video[0])
    assert shown == 24
    assert index.proven == (len(index.pts) == shown)
