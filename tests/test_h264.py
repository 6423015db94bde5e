"""H.264 as it is written, decoded again by PyAV; FFmpeg's absence of an encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

import av

from tests.helpers import smooth
from video_gn.errors import UserError
from video_gn.files import h264

LOSSLESS = {"crf": "4", "preset": "ultrafast"}


@pytest.mark.parametrize("fps", [30, Fraction(30000, 1001), Fraction(12, 5)])
@pytest.mark.parametrize("kind", ["arrays", "frames of PyAV"])
def test_frames_come_back_at_their_times(tmp_path: Path, fps: Fraction | int, kind: str) -> None:
    images = [smooth(48, 64, seed) for seed in range(5)]
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
    given = images if kind == "arrays" else [frame.reformat(format="yuv420p") for frame in frames]
    h264.encode(tmp_path / "x", iter(given), fps, LOSSLESS, threads=1)
    with av.open(str(tmp_path / "x"), format="mp4") as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(decoded) == 5
    for index, (frame, image) in enumerate(zip(decoded, images, strict=True)):
        assert frame.pts * frame.time_base == pytest.approx(float(index / Fraction(fps)), abs=1e-4)
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - image).mean() < 4


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in "ab":
        h264.encode(tmp_path / name, [smooth(48, 64, 1)] * 9, 25, {"mbtree": "0"}, threads=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: str) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr(av, "Codec", unknown)
    with pytest.raises(UserError, match="no libx264; install PyAV's own build"):
        h264.encode(tmp_path / "x", [smooth(48, 64, 1)], 25, {})
    assert not list(tmp_path.iterdir())
