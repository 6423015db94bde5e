"""Decoding: a video file and frame indices in, uint8 RGB frames out. The only module that imports a decoder.

Frame i is the i-th frame shown, after edit lists, of the stream that FFmpeg calls best, as displayed: turned and
mirrored by its first frame's display matrix as FFmpeg's command line does it, and with square pixels: where the sample
aspect ratio (the container's, else the codec's) is not 1, the stored width is scaled by it. A ratio beyond 1:10 or
10:1, or within 1 % of 1, counts as 1. PQ and HLG are read as if they were SDR, with a warning. Opening a file counts
its frames, where possible without decoding them. Decoders use one thread: loading is parallel over videos. What FFmpeg
makes of a damaged frame counts as that frame.

`auto` is torchcodec for MP4, MOV, Matroska and WebM where it loads, and PyAV for the rest and for files that
torchcodec cannot read. Their limits:

- torchcodec (needs FFmpeg's shared libraries) numbers frames by the packets' timestamps. So it only reads files whose
  packets' headers prove that each holds one frame, and the time of each frame that it returns is compared with the
  time that this index has. In AVI, MPEG-PS and MPEG-TS its numbers are wrong, and it may not read them. In some open
  GOPs it returns another frame, or raises at the last one. It turns by quarter turns only; the rest is done here, with
  what PyAV reads of the first frame.
- pyav: where the headers do not prove the count, opening decodes the file once to count its frames. A file without
  true timestamps, or whose seeks land too late, is decoded from its start for each read.
- decord (no wheel for arm64): takes each display matrix for the container's, and is WRONG where it is the codec's
  (SEI); no AV1; fails at widths of 16 and below; ignores edit lists, and repeats frames
  at the end instead; gives WRONG frames after a seek in open GOPs, HEVC with B-frames, MPEG-TS, MPEG-PS and
  most AVI.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import operator
import os
import re
import stat
import sys
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from itertools import chain, dropwhile, islice, pairwise, zip_longest
from typing import Any, BinaryIO

import numpy as np
import torch

from video_gn.data.display import Crop, Display, reduced, rotation, round_half_away, square_or
from video_gn.data.image_types import image_reason
from video_gn.data.packets import index_packets
from video_gn.data.stores import fetch, is_url
from video_gn.errors import PROGRAMMING_ERRORS, UserError

logger = logging.getLogger(__name__)

DECODERS = ("auto", "torchcodec", "pyav", "decord")

_MODULES = {"torchcodec": "torchcodec.decoders", "pyav": "av", "decord": "decord"}
_REMEDIES = {
    "torchcodec": "`pip install torchcodec` and install FFmpeg's shared libraries (`apt install ffmpeg`)",
    "pyav": "`pip install av`",
    "decord": "`pip install decord` (it has no wheel for arm64)",
}
_MP4 = re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL)
_MATROSKA = b"\x1aE\xdf\xa3"
_FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,mxf,gif,ivf,nut,rm,dv,m4v,h264,hevc,obu,mp3,wav"
_CHUNK = 32  # frames per batch of torchcodec or decord, fewer where they are large
_HELD_BYTES = 128 << 20  # of full frames, while boxes are cut or all of a video are read
_SEEK_PAYS = 8  # frames: where a seek skips fewer, decoding them is as fast


_HDR = {16: "PQ", 18: "HLG"}  # transfer functions, ITU-T H.273, table 3
_MATRIX = "DISPLAYMATRIX"


class VideoError(Exception):
    """A file (`path`, as given) that cannot be read, or not all that was asked of it, and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it pickles
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CountCorrected(VideoError):
    """Decoding has proved the number of frames wrong: `num_frames` of the reader is now right, indices mean others."""


class NotFetched(VideoError):
    """A file of a store that cannot be reached or refuses: nothing is known of the file."""


class VideoReader(AbstractContextManager["VideoReader"]):
    """One open video; a context manager.

    Attributes:
        path: the file, as it was given.
        decoder: what really reads it: "torchcodec", "pyav" or "decord".
        num_frames: N, the frames shown; corrected, with CountCorrected, if decoding proves it wrong.
        height, width: as displayed, in square pixels.
        fps: average frame rate, None where the file does not tell.
    """

    path: str
    decoder: str
    num_frames: int
    height: int
    width: int
    fps: float | None

    def read(
        self, indices: Sequence[int], box: tuple[int, int, int, int] | None = None, reduction: int = 1
    ) -> torch.Tensor:
        """Decode frames, each distinct one once.

        Args:
            indices: frame numbers in [0, num_frames), in any order, repeats allowed.
            box: (top, left, height, width) to cut out, in displayed pixels after the reduction; None is the full frame.
            reduction: k, from 1: each block of k x k displayed pixels, from the top left corner on, becomes one pixel,
                its mean. A frame has ceil(height / k) x ceil(width / k) of them: those at the edge may be smaller.
                Full frames are held at most 128 MiB at a time, at least one.

        Returns:
            uint8 RGB of shape (len(indices), height, width, 3), in the order of `indices`.

        Raises:
            VideoError: if any of these frames cannot be decoded.
            CountCorrected: if num_frames was wrong; it is corrected.
            IndexError: if an index is outside the video.
            ValueError: if the box is empty or not inside the frame, or the reduction is below 1.
        """
        indices = [operator.index(i) for i in indices]
        outside = [i for i in indices if not 0 <= i < self.num_frames]
        if outside:
            raise IndexError(f"{self.path}: index {outside[0]} is not in [0, {self.num_frames}), its frames")
        if reduction < 1:
            raise ValueError(f"{self.path}: reduction {reduction} must be at least 1")
        full = reduced(self.height, reduction), reduced(self.width, reduction)
        top, left, height, width = box = box or (0, 0, *full)
        bottom, right = top + height, left + width
        if not (0 <= top < bottom <= full[0] and 0 <= left < right <= full[1]):
            size = f"{full[0]} x {full[1]}"
            raise ValueError(f"{self.path}: box {box} (top, left, height, width) must be inside {size}")
        wanted = sorted(set(indices))
        frames = torch.empty(len(wanted), height, width, 3, dtype=torch.uint8)
        if wanted:
            announced = self.num_frames
            self._decode(wanted, Crop(box, reduction), frames.numpy())
            self._check_count(announced)
        if wanted == indices:
            return frames
        row = {index: n for n, index in enumerate(wanted)}
        return frames[[row[i] for i in indices]]

    def frames(self) -> Iterator[np.ndarray]:
        """All frames in order, uint8 RGB (height, width, 3). Nothing may be read until the iterator is done.

        At most 128 MiB of frames are held.

        Raises:
            VideoError: if a frame cannot be decoded.
            CountCorrected: if there are others than num_frames announced.
        """
        announced = self.num_frames
        chunk = self._held_frames()
        for start in range(0, announced, chunk):
            yield from self.read(range(start, min(start + chunk, announced))).numpy()

    def _held_frames(self) -> int:
        return max(1, _HELD_BYTES // (self.height * self.width * 3))

    def _check_count(self, announced: int) -> None:
        if self.num_frames != announced:
            raise CountCorrected(self.path, f"announces {announced} frames, and {self.num_frames} can be decoded")

    @abstractmethod
    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        """Fill out (len(indices), h, w, 3) with the crops of these frames: sorted, distinct, at least one."""

    @abstractmethod
    def close(self) -> None:
        """Free the decoder; reading is over."""

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(path: str | os.PathLike[str], decoder: str = "auto") -> VideoReader:
    """Open a video file with one of DECODERS.

    Args:
        path: a file, or an fsspec URL, whose file is held in memory as a whole.

    Raises:
        VideoError: if the file is missing, empty, not a video, or shows no frame; NotFetched if its store fails.
        UserError: if the decoder is unknown or not installed.
    """
    check_decoder(decoder)
    path = os.fspath(path)
    data = read_bytes(path) if is_url(path) else None
    head = _head(path) if data is None else data[:8]
    if head[:7] == b"#EXTM3U" or head == b"ffconcat":
        raise VideoError(path, "a list of other files, not a video")
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        if reason := image_reason(path, file):
            raise VideoError(path, reason)
        if is_mp4 := _MP4.match(head):
            _check_boxes(path, file)
    suits_torchcodec = is_mp4 or head.startswith(_MATROSKA)
    if decoder == "auto" and not (suits_torchcodec and _load("torchcodec")):
        decoder = "pyav"
    if decoder == "torchcodec" and not suits_torchcodec:
        raise VideoError(path, "torchcodec is right in MP4, MOV, Matroska and WebM only; use auto or pyav")
    readers: dict[str, Callable[[str, bytes | None], VideoReader]] = {
        "auto": _AutoReader,
        "torchcodec": _TorchcodecReader,
        "pyav": _PyAVReader,
        "decord": _DecordReader,
    }
    return readers[decoder](path, data)


def read_bytes(url: str) -> bytes:
    """A file of an object store. Raises VideoError where it is missing or empty, NotFetched where it does not come."""
    try:
        data = fetch(url)
    except FileNotFoundError:
        raise VideoError(url, "no such file") from None
    except OSError as error:
        raise NotFetched(url, str(error)) from error
    if not data:
        raise VideoError(url, "empty file (0 bytes)")
    return data


def check_decoder(decoder: str) -> None:
    """Raise UserError if `decoder` is not one of DECODERS or cannot be loaded. Cheap after the first call."""
    if decoder not in DECODERS:
        raise UserError(f"decoder {decoder!r} is unknown; choose one of {', '.join(DECODERS)}")
    module = "pyav" if decoder == "auto" else decoder
    if _load(module) is None:
        raise UserError(f"decoder {module!r} cannot be loaded here; {_REMEDIES[module]}")


@functools.cache
def _load(decoder: str) -> Any:
    """The decoder's module, or None where it cannot be loaded; tried once per process."""
    try:
        module = importlib.import_module(_MODULES[decoder])
        package = importlib.import_module(_MODULES[decoder].partition(".")[0])
    except (ImportError, RuntimeError, OSError) as error:
        logger.info("%s cannot be loaded: %s", decoder, error)
        return None
    if decoder == "torchcodec":
        version = tuple(int(part) for part in re.findall(r"\d+", package.__version__)[:2])
        # Before 0.11 it does not rotate; newer versions can be imported without FFmpeg, and then read no video.
        if version < (0, 11) or getattr(package, "ffmpeg_major_version", 0) is None:
            logger.info("torchcodec %s cannot be used", package.__version__)
            return None
    return module


def _head(path: str) -> bytes:
    """The file's first bytes; VideoError where there are none."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise VideoError(path, "is a pipe; give a file")
        with open(path, "rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise VideoError(path, "no such file") from None
    except IsADirectoryError:
        raise VideoError(path, "is a folder, not a video") from None
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    if not head:
        raise VideoError(path, "empty file (0 bytes)")
    return head


def _check_boxes(path: str, file: BinaryIO) -> None:
    """Raise VideoError if an MP4 or MOV file is cut short: FFmpeg leaves out the lost frames without a word."""
    size, position, fragments = file.seek(0, os.SEEK_END), 0, False
    while position < size:
        file.seek(position)
        header = file.read(16)
        fragments |= header[4:8] == b"moof"
        if fragments and len(header) < 8:  # elsewhere some programs leave a few bytes at the end
            raise VideoError(path, f"cut short after {size:,} bytes")
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        position += length
        if position > size and header[4:8] in (b"mdat", b"moov", b"moof"):
            raise VideoError(path, f"cut short: {size:,} of at least {position:,} bytes")
        if length < 8:  # 0: to the end of the file; else no box
            return


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn a library's complaint about a file into a VideoError with one line of reason.

    Damaged files make the libraries raise nearly anything (PyAV: IndexError, where a stream appears late), except
    PROGRAMMING_ERRORS, which pass through.
    """
    try:
        yield
    except VideoError:
        raise
    except PROGRAMMING_ERRORS as error:
        packages = [module.partition(".")[0] for module in _MODULES.values()]
        versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
        logger.error(
            "%s while reading %s: not a fault of the file, but a bug or a decoder of an unsuitable version (%s here); "
            "`python tools/doctor.py` tries the decoders",
            type(error).__name__,
            path,
            ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        )
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        line = text.strip().splitlines()[0].replace(os.path.abspath(path), "")
        line = re.sub(r"^.*\.(cpp|cc|h):\d+[,:]", "", line)  # where in the library's source it was raised
        raise VideoError(path, " ".join(line.split())) from error


def _open_stream(path: str, data: bytes | None) -> tuple[Any, Any]:
    """Open a file with PyAV. Returns the container and its best video stream. Raises VideoError where there is none."""
    av = _load("pyav")
    file = io.BytesIO(data) if data else os.path.abspath(path)
    # Some tags are not UTF-8: PyAV 19 always opens such files, and has dropped the argument that older ones need.
    tags = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    container = av.open(file, options={"format_whitelist": _FORMATS}, **tags)  # lists of files would lead anywhere
    try:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise VideoError(path, "no video stream")
        if stream.codec_context is None:
            raise VideoError(path, "no decoder for its codec")
    except BaseException:
        container.close()
        raise
    stream.codec_context.thread_count = 1
    return container, stream


def _probe(path: str, data: bytes | None) -> Display:
    """Read by PyAV how frames are displayed. Other decoders know a part of the container's word, and nothing else."""
    check_decoder("pyav")
    with _reading(path):
        container, stream = _open_stream(path, data)
        with container:
            for packet in container.demux(stream):
                with suppress(_load("pyav").FFmpegError):  # damaged: the next may be good
                    for frame in packet.decode():
                        scaler = importlib.import_module("av.video.reformatter").VideoReformatter()
                        return _display(path, stream, frame, scaler)
    raise VideoError(path, "no frame can be decoded")


def _display(path: str, stream: Any, frame: Any, scaler: Any) -> Display:
    """Find how frames are displayed, from the first one. Warns of HDR."""
    if frame.color_trc in _HDR:
        _warn_of_hdr(path, _HDR[frame.color_trc])
    # Frame and side data hold each other until the garbage collector runs: let it be a tiny frame.
    side_data = scaler.reformat(frame, 16, 16, "gray8", interpolation="POINT").side_data
    matrix = np.frombuffer(bytes(side_data[_MATRIX]), np.int32) if _MATRIX in side_data else None
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio  # the container's goes first
    return Display((frame.height, frame.width), matrix if matrix is None else tuple(matrix.tolist()), square_or(ratio))


def _check_stored(path: str, shape: tuple[int, ...], display: Display) -> None:
    if tuple(shape) != display.stored:
        raise VideoError(
            path, f"frames of {shape[0]} x {shape[1]}, but {display.stored[0]} x {display.stored[1]} by PyAV"
        )


_hdr_warned = False


def _warn_of_hdr(path: str, transfer: str) -> None:
    """Once per process, as one such file is rarely the only one."""
    global _hdr_warned
    if not _hdr_warned:
        logger.warning(
            "%s: HDR video (%s), read as if it were SDR: its colors are paler than those of SDR videos; convert such "
            "videos to SDR (FFmpeg's zscale and tonemap filters) if both kinds are used",
            path,
            transfer,
        )
    _hdr_warned = True


class _AutoReader(VideoReader):
    """torchcodec, and PyAV from the first thing that torchcodec cannot do with this file."""

    def __init__(self, path: str, data: bytes | None) -> None:
        self._data = data
        try:
            self._reader: VideoReader = _TorchcodecReader(path, data)
        except VideoError as error:
            self._reader = self._fall_back(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_reader"], name)  # path, decoder, num_frames ... of the reader in use

    def _fall_back(self, error: VideoError) -> VideoReader:
        if _load("pyav") is None:
            raise error
        reader = _PyAVReader(error.path, self._data)
        _warn_once(error.path, error.reason)
        return reader

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        try:
            return self._reader._decode(indices, crop, out)
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
        self._reader = reader

    def close(self) -> None:
        self._reader.close()


@functools.cache
def _warn_once(path: str, reason: str) -> None:
    logger.warning("%s: torchcodec cannot read it (%s); trying PyAV", path, reason)


class _TorchcodecReader(VideoReader):
    """Reads files whose packets hold one frame each, and checks the time of each frame that it gets."""

    decoder = "torchcodec"

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path = path
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": "cpu", "seek_mode": "exact"}
        with _reading(self.path):
            stream, self._seconds = _frame_times(path, data)
            self._video = _load("torchcodec").VideoDecoder(data or os.path.abspath(path), **options)
            found, expected = (self._video.stream_index, len(self._video)), (stream, len(self._seconds))
            if found != expected:
                raise VideoError(path, f"torchcodec finds {found} as (stream, frames), should be {expected}")
            first = self._video.get_frame_at(0)
        self._check_times([0], [first.pts_seconds])
        self.num_frames = len(self._seconds)
        self._display = _probe(path, data)
        self.height, self.width = self._display.size
        self._turns = round_half_away(
            (getattr(self._video.metadata, "rotation", None) or 0.0) / 90
        )  # counter-clockwise, done by it
        _check_stored(path, np.rot90(first.data, -self._turns).shape[:2], self._display)
        self.fps = self._video.metadata.average_fps or None

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        size = min(_CHUNK, self._held_frames())
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            with _reading(self.path):
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
    """Index of the best video stream, and its frames' times in seconds; VideoError where packets do not prove them."""
    container, stream = _open_stream(path, data)
    with container:
        index = index_packets(container, stream)
        if not (index.pts and index.proven):
            raise VideoError(path, "its packets do not show which frames it has")
        return stream.index, [float(pts * stream.time_base) for pts in index.pts]


class _OutOfStep(Exception):
    """The frames that come out are not those that the packets' timestamps announce, or are damaged."""


class _PyAVReader(VideoReader):
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
        self._av = _load("pyav")
        self._container: Any = None
        self._rgb = importlib.import_module("av.video.reformatter").VideoReformatter()
        try:
            with _reading(self.path):
                self._rewind()
                first = self._index()
        except VideoError:
            self.close()
            raise
        rate = self._stream.average_rate
        if len(self._pts) > 1:
            rate = (self.num_frames - 1) / ((self._pts[-1] - self._pts[0]) * self._stream.time_base)
        self.fps = float(rate) if rate else None
        self._display = _display(path, self._stream, first, self._rgb)
        self.height, self.width = self._display.size

    def _rewind(self) -> None:
        """Open the file (again): the one way to its start that works in every container."""
        self.close()
        self._container, self._stream = _open_stream(self.path, self._data)

    def _index(self) -> Any:
        """Set num_frames and, where they are true, the frames' timestamps. Returns the first frame."""
        index = index_packets(self._container, self._stream, references=True)
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
        """Timestamp of the keyframe from which frame `index` can be decoded; None is the file's start."""
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
        """Packets from this keyframe or from one before it (None: from the file's start)."""
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
        """Packets from here on. PyAV 18 loses a packet's memory where its own iterator is dropped without close()."""
        with closing(self._container.demux(self._stream)) as packets:
            yield from packets

    def _frames(self, keyframe: int | None = None, skip: Set[int] = frozenset()) -> Iterator[Any]:
        """Frames in the order shown, as far as the decoder knows it, without those of the timestamps `skip`."""
        for packet in self._packets(keyframe):
            if packet.pts not in skip:
                yield from packet.decode()

    def _by_timestamp(self, indices: list[int]) -> Iterator[Any]:
        """The frames of sorted indices; a seek where it saves decoding. Raises _OutOfStep."""
        runs = [indices[:1]] if indices else []
        for previous, index in pairwise(indices):
            keyframe = self._keyframe(index)
            if keyframe is not None and bisect_left(self._pts, keyframe) - previous > _SEEK_PAYS:
                runs.append([])
            runs[-1].append(index)
        for run in runs:
            yield from self._run(run)

    def _run(self, indices: list[int]) -> Iterator[Any]:
        """The frames of sorted indices, after one seek. Raises _OutOfStep."""
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
        """The frames of sorted indices, counted as they come out."""
        chosen = set(indices)
        return (frame for i, frame in enumerate(islice(self._frames(), max(chosen, default=-1) + 1)) if i in chosen)

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        with _reading(self.path):
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
        """As of every reader, but in one go: a file that is decoded from its start for each read is so once."""
        given = 0
        with _reading(self.path):
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


class _DecordReader(VideoReader):
    decoder = "decord"

    def __init__(self, path: str, data: bytes | None) -> None:
        self.path = path
        decord = _load("decord")
        decord.logging.set_level(decord.logging.QUIET)
        with _reading(self.path):
            self._video = decord.VideoReader(
                io.BytesIO(data) if data else os.path.abspath(path), ctx=decord.cpu(0), num_threads=1
            )
            self.num_frames = len(self._video)
            shape = self._video[0].shape[:2]
            self.fps = self._video.get_avg_fps() or None
        self._display = _probe(path, data)
        self.height, self.width = self._display.size
        turns = -rotation(self._display.matrix) / 90  # decord's: quarter turns only, others are left out
        self._turns = int(turns) if turns == int(turns) else 0
        _check_stored(path, shape[::-1] if self._turns % 2 else shape, self._display)

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        chunk = min(_CHUNK, self._held_frames())
        for start in range(0, len(indices), chunk):
            with _reading(self.path):
                batch = self._video.get_batch(indices[start : start + chunk])
                # pytorchvideo makes decord give tensors, to all of the process.
                pixels = batch.numpy() if isinstance(batch, torch.Tensor) else batch.asnumpy()
            for target, image in zip(out[start:], pixels, strict=False):
                target[:] = crop(self._display.apply(np.rot90(image, -self._turns)))

    def close(self) -> None:
        self._video = None
