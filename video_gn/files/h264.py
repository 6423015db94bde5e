"""Videos written as H.264 in MP4, by PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction

import av
import numpy as np

from video_gn.errors import UserError


def check_encoder() -> None:
    """Raise UserError where PyAV cannot write H.264."""
    try:
        av.Codec("libx264", "w")
    except av.codec.codec.UnknownCodecError:
        raise UserError("PyAV's FFmpeg has no libx264; install PyAV's own build (`pip install av`)") from None


def encode(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray | av.VideoFrame],
    fps: Fraction | int,
    x264: Mapping[str, str],
    *,
    threads: int | None = None,
    muxer: Mapping[str, str] | None = None,
) -> None:
    """Write frames of one size to `path`: frame i is shown at i / fps seconds, as 4:2:0.

    Args:
        frames: uint8 RGB (H, W, 3), or frames of PyAV in yuv420p; at least one, H and W even.
        x264: options of the encoder, such as {"crf": "20"}.
        threads: of the encoder; with 1 it writes the same bytes on any machine. None leaves it to FFmpeg.
        muxer: options of the container.

    Raises:
        UserError: PyAV has no encoder.
        OSError: the file cannot be written.
    """
    check_encoder()
    with av.open(os.fspath(path), "w", format="mp4", options=dict(muxer or {})) as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(x264))
        stream.pix_fmt = "yuv420p"
        if threads is not None:
            stream.codec_context.thread_count = threads
        for index, image in enumerate(frames):
            frame = image if isinstance(image, av.VideoFrame) else av.VideoFrame.from_ndarray(image, format="rgb24")
            if index == 0:
                stream.height, stream.width = frame.height, frame.width
            frame.pts, frame.time_base = index, Fraction(1) / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
