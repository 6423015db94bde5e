"""torchcodec where it is right, and PyAV for the rest."""

from __future__ import annotations

import functools
import logging

import numpy as np

from video_gn.data.decode import libraries
from video_gn.data.decode.display import Crop
from video_gn.data.decode.errors import CountCorrected, VideoError
from video_gn.data.decode.pyav import PyAVReader
from video_gn.data.decode.reader import VideoReader
from video_gn.data.decode.torchcodec import TorchcodecReader

logger = logging.getLogger(__name__)


class AutoReader(VideoReader):
    """torchcodec, and PyAV from the first thing that torchcodec cannot do with this file."""

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path, self._data = path, data
        try:
            self._use(TorchcodecReader(path, data))
        except VideoError as error:
            self._use(self._fall_back(error))

    def _use(self, reader: VideoReader) -> None:
        self._reader = reader
        self.decoder, self.num_frames, self.fps = reader.decoder, reader.num_frames, reader.fps
        self.height, self.width = reader.height, reader.width

    def _fall_back(self, error: VideoError) -> VideoReader:
        if libraries.load("pyav") is None:
            raise error
        reader = PyAVReader(error.path, self._data)
        _warn_once(error.path, error.reason)
        return reader

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        try:
            return self._reader._decode(indices, crop, out)
        except CountCorrected:
            self._use(self._reader)
            raise
        except VideoError as error:
            if self.decoder == "pyav":
                raise
            reader = self._fall_back(error)
        try:
            if reader.num_frames == self.num_frames:  # else read says that the count is corrected
                reader._decode(indices, crop, out)
        except CountCorrected:
            self._replace(reader)
            raise
        except VideoError:
            reader.close()  # a damaged file: torchcodec may still read other frames
            raise
        self._replace(reader)

    def _replace(self, reader: VideoReader) -> None:
        self._reader.close()
        self._use(reader)

    def close(self) -> None:
        self._reader.close()


@functools.cache
def _warn_once(path: str, reason: str) -> None:
    logger.warning("%s: torchcodec cannot read it (%s); trying PyAV", path, reason)
