"""Decoding by torchcodec."""

from __future__ import annotations

import os

import numpy as np

from video_gn.data.decode import libraries, packets
from video_gn.data.decode.display import Crop, round_half_away
from video_gn.data.decode.errors import VideoError
from video_gn.data.decode.reader import CHUNK, VideoReader
from video_gn.data.decode.stream import check_stored, open_stream, probe, reading


class TorchcodecReader(VideoReader):
    """Reads files whose packets hold one frame each, and checks the time of each frame that it gets."""

    decoder = "torchcodec"

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path = path
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": "cpu", "seek_mode": "exact"}
        with reading(self.path):
            stream, self._seconds = _frame_times(path, data)
            self._video = libraries.load("torchcodec").VideoDecoder(data or os.path.abspath(path), **options)
            found, expected = (self._video.stream_index, len(self._video)), (stream, len(self._seconds))
            if found != expected:
                raise VideoError(path, f"torchcodec finds {found} as (stream, frames), should be {expected}")
            first = self._video.get_frame_at(0)
        self._check_times([0], [first.pts_seconds])
        self.num_frames = len(self._seconds)
        self._display = probe(path, data)
        self.height, self.width = self._display.size
        self._turns = round_half_away(
            (getattr(self._video.metadata, "rotation", None) or 0.0) / 90
        )  # counter-clockwise, done by it
        check_stored(path, np.rot90(first.data, -self._turns).shape[:2], self._display)
        self.fps = self._video.metadata.average_fps or None

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        size = min(CHUNK, self._held_frames())
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            with reading(self.path):
                batch = self._video.get_frames_at(chunk)
            self._check_times(chunk, batch.pts_seconds.tolist())
            for target, image in zip(out[start:], batch.data.numpy(), strict=False):
                target[:] = crop(self._display.apply(np.rot90(image, -self._turns)))

    def _check_times(self, indices: list[int], seconds: list[float]) -> None:
        for index, seen in zip(indices, seconds, strict=True):
            if abs(seen - self._seconds[index]) > 1e-6:
                raise VideoError(
                    self.path, f"frame {index} comes at {seen:.3f} s, should at {self._seconds[index]:.3f} s"
                )

    def close(self) -> None:
        self._video = None


def _frame_times(path: str, data: bytes | None) -> tuple[int, list[float]]:
    """Return the best video stream's index and its frames' times in seconds. Raises VideoError if unproven."""
    container, stream = open_stream(path, data)
    with container:
        index = packets.index_packets(container, stream)
        if not (index.pts and index.proven):
            raise VideoError(path, "its packets do not show which frames it has")
        return stream.index, [float(pts * stream.time_base) for pts in index.pts]
