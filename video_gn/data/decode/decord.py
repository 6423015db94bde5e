"""Decoding by decord."""

from __future__ import annotations

import io
import os

import numpy as np
import torch

from video_gn.data.decode import libraries
from video_gn.data.decode.display import Crop, rotation
from video_gn.data.decode.reader import CHUNK, VideoReader
from video_gn.data.decode.stream import check_stored, probe, reading


class DecordReader(VideoReader):
    decoder = "decord"

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path = path
        decord = libraries.load("decord")
        decord.logging.set_level(decord.logging.QUIET)
        with reading(self.path):
            self._video = decord.VideoReader(
                io.BytesIO(data) if data else os.path.abspath(path), ctx=decord.cpu(0), num_threads=1
            )
            self.num_frames = len(self._video)
            shape = self._video[0].shape[:2]
            self.fps = self._video.get_avg_fps() or None
        self._display = probe(path, data)
        self.height, self.width = self._display.size
        turns = -rotation(self._display.matrix) / 90  # decord's: quarter turns only, others are left out
        self._turns = int(turns) if turns == int(turns) else 0
        check_stored(path, shape[::-1] if self._turns % 2 else shape, self._display)

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        chunk = min(CHUNK, self._held_frames())
        for start in range(0, len(indices), chunk):
            with reading(self.path):
                batch = self._video.get_batch(indices[start : start + chunk])
                # pytorchvideo makes decord give tensors, to all of the process.
                pixels = batch.numpy() if isinstance(batch, torch.Tensor) else batch.asnumpy()
            for target, image in zip(out[start:], pixels, strict=False):
                target[:] = crop(self._display.apply(np.rot90(image, -self._turns)))

    def close(self) -> None:
        self._video = None
