"""Decoding by PyAV."""

from __future__ import annotations

import importlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Set
from contextlib import closing, suppress
from itertools import chain, dropwhile, islice, pairwise, zip_longest
from typing import Any

import numpy as np

from video_gn.data.decode import libraries, packets
from video_gn.data.decode.display import Crop
from video_gn.data.decode.errors import VideoError
from video_gn.data.decode.reader import VideoReader
from video_gn.data.decode.stream import display_of, open_stream, reading

_SEEK_PAYS = 8  # frames: where a seek skips fewer, decoding them is as fast


class _OutOfStep(Exception):
    """The frames that come out are not those that the packets' timestamps announce, or are damaged."""


class PyAVReader(VideoReader):
    """Seeks by the packets' timestamps as long as the frames that come out bear them, one by one.

    H.264's frames that are not wanted and that no other refers to are not decoded. In a damaged file FFmpeg may
    make something else of a frame then: it mends pictures with others that it has decoded.

    Where timestamps are missing, repeated or those of decoding (AVI), and where frames get lost, frame i is
    the i-th that comes out when the file is decoded from its start.
    """

    decoder = "pyav"

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path = path
        self._data = data
        self._av = libraries.load("pyav")
        self._container: Any = None
        self._rgb = importlib.import_module("av.video.reformatter").VideoReformatter()
        try:
            with reading(self.path):
                self._rewind()
                first = self._index()
        except VideoError:
            self.close()
            raise
        rate = self._stream.average_rate
        if len(self._pts) > 1:
            rate = (self.num_frames - 1) / ((self._pts[-1] - self._pts[0]) * self._stream.time_base)
        self.fps = float(rate) if rate else None
        self._display = display_of(path, self._stream, first, self._rgb)
        self.height, self.width = self._display.size

    def _rewind(self) -> None:
        """Open the file (again): the one way to its start that works in every container."""
        self.close()
        self._container, self._stream = open_stream(self.path, self._data)

    def _index(self) -> Any:
        """Set num_frames and, where they are true, the frames' timestamps. Returns the first frame."""
        index = packets.index_packets(self._container, self._stream, references=True)
        self._pts, self._keyframes, self._unreferenced = index.pts, index.keyframes, index.unreferenced
        if self._pts and not index.proven:
            with suppress(self._av.FFmpegError):  # of a damaged file the packets are counted, and reading raises
                return self._count()
        if self._pts:
            first = next(self._frames(self._keyframe(0)), None)
            if first is not None and first.pts == self._pts[0]:
                self.num_frames = len(self._pts)
                return first
        return self._count()

    def _keyframe(self, index: int) -> int | None:
        """Return the timestamp of the keyframe from which frame `index` can be decoded; None is the file's start."""
        n = bisect_right(self._keyframes, self._pts[index])
        return self._keyframes[n - 1] if n else None

    def _count(self) -> Any:
        """Decode all frames: set num_frames to their number. Returns the first of them.

        Their timestamps remain where they are true: they rise, and are among those that the packets bear.
        """
        frames = self._frames()
        first = next(frames, None)
        if first is None:
            raise VideoError(self.path, "no frame can be decoded")
        times = [first.pts, *(frame.pts for frame in frames)]
        self.num_frames = len(times)
        true = set(self._pts).issuperset(times) and all(earlier < later for earlier, later in pairwise(times))
        self._pts = times if true else []
        shown = set(times)
        self._keyframes = [pts for pts in self._keyframes if true and (pts in shown or pts < times[0])]
        self._unreferenced = frozenset()
        return first

    def _packets(self, keyframe: int | None) -> Iterator[Any]:
        """Return packets from this keyframe or from one before it (None: from the file's start)."""
        if keyframe is not None:
            with suppress(self._av.FFmpegError):  # not every container can seek
                self._container.seek(keyframe, stream=self._stream)
                # Some seek to the middle of things, or to the next keyframe.
                packets = dropwhile(lambda p: not p.is_keyframe, self._demux())
                first = next(packets, None)
                if first is not None and first.pts is not None and first.pts <= keyframe:
                    return chain([first], packets)
        self._rewind()
        return self._demux()

    def _demux(self) -> Iterator[Any]:
        """Yield packets from here on. PyAV 18 loses a packet's memory where its iterator is dropped without close()."""
        with closing(self._container.demux(self._stream)) as packets:
            yield from packets

    def _frames(self, keyframe: int | None = None, skip: Set[int] = frozenset()) -> Iterator[Any]:
        """Yield frames in the order shown, as far as the decoder knows it, without those of the timestamps `skip`."""
        for packet in self._packets(keyframe):
            if packet.pts not in skip:
                yield from packet.decode()

    def _by_timestamp(self, indices: list[int]) -> Iterator[Any]:
        """Yield the frames of sorted indices; seek where that saves decoding. Raises _OutOfStep."""
        runs = [indices[:1]] if indices else []
        for previous, index in pairwise(indices):
            keyframe = self._keyframe(index)
            if keyframe is not None and bisect_left(self._pts, keyframe) - previous > _SEEK_PAYS:
                runs.append([])
            runs[-1].append(index)
        for run in runs:
            yield from self._run(run)

    def _run(self, indices: list[int]) -> Iterator[Any]:
        """Yield the frames of sorted indices, after one seek. Raises _OutOfStep."""
        keyframe = self._keyframe(indices[0])
        n = 0 if keyframe is None else bisect_left(self._pts, keyframe)
        wanted = {self._pts[i] for i in indices}
        skip = self._unreferenced - wanted
        due = [pts for pts in self._pts[n : indices[-1] + 1] if pts not in skip]
        frames = self._frames(keyframe, skip)
        if keyframe is not None:  # of those shown before the keyframe not all can be decoded
            frames = (frame for frame in frames if frame.pts is None or frame.pts >= keyframe)
        for pts, frame in zip_longest(due, islice(frames, len(due))):
            if frame is None or frame.pts != pts or frame.is_corrupt:  # repairs depend on where decoding began
                raise _OutOfStep
            if pts in wanted:
                yield frame

    def _from_start(self, indices: list[int]) -> Iterator[Any]:
        """Return the frames of sorted indices, counted as they come out."""
        chosen = set(indices)
        return (frame for i, frame in enumerate(islice(self._frames(), max(chosen, default=-1) + 1)) if i in chosen)

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        with reading(self.path):
            if indices[-1] < len(self._pts):
                try:
                    return self._fill(out, crop, self._by_timestamp(indices))
                except _OutOfStep:
                    self._count_anew()
            self._fill(out, crop, self._from_start(indices))

    def _count_anew(self) -> None:
        """Trust no timestamp, after they have led to another frame. Raises CountCorrected where the count was wrong."""
        announced = self.num_frames
        self._pts = []
        self._count()
        self._check_count(announced)

    def _fill(self, out: np.ndarray, crop: Crop, frames: Iterator[Any]) -> None:
        for target, frame in zip(out, frames, strict=True):
            target[:] = crop(self._image(frame))

    def _image(self, frame: Any) -> np.ndarray:
        # One reformatter for all. A frame of another size is scaled to that of the first, as FFmpeg does.
        height, width = self._display.stored
        return self._display.apply(self._rgb.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray())

    def frames(self) -> Iterator[np.ndarray]:
        """Yield all frames in a single pass: a file that is decoded from its start for each read is decoded once."""
        given = 0
        with reading(self.path):
            try:
                for frame in self._by_timestamp(list(range(len(self._pts)))):
                    yield self._image(frame)
                    given += 1
            except _OutOfStep:
                self._count_anew()
            for frame in self._from_start(list(range(given, self.num_frames))):
                yield self._image(frame)
                given += 1
            announced, self.num_frames = self.num_frames, given
            self._check_count(announced)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None
