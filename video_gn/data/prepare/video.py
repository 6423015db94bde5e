"""One video: decoded completely, and re-encoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from video_gn.data.decode import CountCorrected, VideoError, open_video
from video_gn.files import h264
from video_gn.files.atomic import remove_leftovers, replacing

ELSEWHERE = "give another folder"
# Chosen by measurement, see docs/preparing.md. Without its macroblock tree x264 writes the same file each time.
X264 = {"preset": "veryfast", "tune": "fastdecode", "crf": "24", "g": "16", "bf": "0", "mbtree": "0"}
FPS_RANGE, DEFAULT_FPS = (1, 240), Fraction(25)  # the default without a source's, or where that is no camera's


def encode_video(source: str, target: Path, short_side: int) -> dict[str, Any]:
    """Re-encode `source` as `target`, which appears when it is complete and has been reopened.

    Returns:
        The columns of MANIFEST from `source_bytes` on.

    Raises:
        VideoError: `source` cannot be read to its end, or what was written has other frames.
        UserError: `target` cannot be written.
    """
    remove_leftovers(target)
    with open_video(source) as video:
        status = os.stat(source)
        fps = frame_rate(video.fps)
        height, width = prepared_size(video.height, video.width, short_side)
        with replacing(target, ELSEWHERE, parents=True, durable=False) as partial:
            try:
                _write(partial, video.frames(), height, width, fps)
            except CountCorrected:  # now that the number of frames is right
                _write(partial, video.frames(), height, width, fps)
            expected = (video.num_frames, height, width)
            with open_video(partial) as written:
                found = (written.num_frames, written.height, written.width)
            if found != expected:
                raise VideoError(source, f"prepared as {expected} (frames, height, width), but reads as {found}")
            data = partial.read_bytes()
    return {
        "source_bytes": status.st_size,
        "source_mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(data).hexdigest(),
        "frames": expected[0],
        "fps": round(float(fps), 6),
        "width": expected[2],
        "height": expected[1],
        "bytes": len(data),
    }


def check_video(source: str) -> dict[str, Any]:
    """Decode every frame. Returns the columns of REPORT between path and problem; duration in seconds.

    Raises VideoError where `source` cannot be read to its end.
    """
    with open_video(source) as video:
        try:
            frames = sum(1 for _ in video.frames())
        except CountCorrected:  # now that the number of frames is right
            frames = sum(1 for _ in video.frames())
        fps = round(float(video.fps), 6) if video.fps else ""
        duration = round(frames / video.fps, 3) if video.fps else ""
        return {"frames": frames, "fps": fps, "width": video.width, "height": video.height, "duration": duration}


def prepared_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width, even as H.264 needs; the short side is at most `short_side`: nothing is enlarged."""
    scale = min(1.0, short_side / min(height, width))
    height, width = (max(2, 2 * min(round(side * scale / 2), side // 2)) for side in (height, width))
    return height, width


def frame_rate(fps: float | None) -> Fraction:
    """Return the rate to write, in frames per second: the source's average, where it is that of a camera."""
    if fps is None or not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:  # nan is not, either
        return DEFAULT_FPS
    return Fraction(fps).limit_denominator(1001)  # 29.97 is 30000/1001


def _write(path: Path, images: Iterable[np.ndarray], height: int, width: int, fps: Fraction) -> None:
    scaler = VideoReformatter()
    scaled = (
        scaler.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        for image in images
    )
    # The matrix is that of the conversion above, written down so that no player has to guess it from the size.
    x264 = {**X264, "colorspace": "smpte170m"}
    h264.encode(path, scaled, fps, x264, threads=1, muxer={"movflags": "+faststart"})
