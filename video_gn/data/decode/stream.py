"""A file's best stream, opened by PyAV, and how its frames are displayed."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from video_gn.data.decode import libraries
from video_gn.data.decode.display import Display, square_or
from video_gn.data.decode.errors import VideoError
from video_gn.errors import PROGRAMMING_ERRORS

logger = logging.getLogger(__name__)

FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,mxf,gif,ivf,nut,rm,dv,m4v,h264,hevc,obu,mp3,wav"
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions, ITU-T H.273, table 3
_MATRIX = "DISPLAYMATRIX"


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn a library's complaint about a file into a VideoError with one line of reason.

    Damaged files make the libraries raise nearly anything (PyAV: IndexError, where a stream appears late), except
    PROGRAMMING_ERRORS, which pass through.
    """
    try:
        yield
    except VideoError:
        raise
    except PROGRAMMING_ERRORS as error:
        logger.error(
            "%s while reading %s: not a fault of the file, but a bug or a decoder of an unsuitable version (%s here); "
            "`python tools/doctor.py` tries the decoders",
            type(error).__name__,
            path,
            ", ".join(f"{name} {version}" for name, version in libraries.loaded().items()),
        )
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        line = text.strip().splitlines()[0].replace(os.path.abspath(path), "")
        line = re.sub(r"^.*\.(cpp|cc|h):\d+[,:]", "", line)  # where in the library's source it was raised
        raise VideoError(path, " ".join(line.split())) from error


def open_stream(path: str, data: bytes | None) -> tuple[Any, Any]:
    """Open a file with PyAV. Returns the container and its best video stream. Raises VideoError where there is none."""
    av = libraries.load("pyav")
    file = io.BytesIO(data) if data else os.path.abspath(path)
    # Some tags are not UTF-8: PyAV 19 always opens such files, and has dropped the argument that older ones need.
    tags = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    container = av.open(file, options={"format_whitelist": FORMATS}, **tags)  # lists of files would lead anywhere
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


def probe(path: str, data: bytes | None) -> Display:
    """Read by PyAV how frames are displayed. Other decoders know a part of the container's word, and nothing else."""
    libraries.check_decoder("pyav")
    with reading(path):
        container, stream = open_stream(path, data)
        with container:
            for packet in container.demux(stream):
                with suppress(libraries.load("pyav").FFmpegError):  # damaged: the next may be good
                    for frame in packet.decode():
                        scaler = importlib.import_module("av.video.reformatter").VideoReformatter()
                        return display_of(path, stream, frame, scaler)
    raise VideoError(path, "no frame can be decoded")


def display_of(path: str, stream: Any, frame: Any, scaler: Any) -> Display:
    """Find how frames are displayed, from the first one. Warns of HDR."""
    if frame.color_trc in _HDR:
        _warn_of_hdr(path, _HDR[frame.color_trc])
    # Frame and side data hold each other until the garbage collector runs: let it be a tiny frame.
    side_data = scaler.reformat(frame, 16, 16, "gray8", interpolation="POINT").side_data
    matrix = np.frombuffer(bytes(side_data[_MATRIX]), np.int32) if _MATRIX in side_data else None
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio  # the container's goes first
    return Display((frame.height, frame.width), matrix if matrix is None else tuple(matrix.tolist()), square_or(ratio))


def check_stored(path: str, shape: tuple[int, ...], display: Display) -> None:
    if tuple(shape) != display.stored:
        raise VideoError(
            path, f"frames of {shape[0]} x {shape[1]}, but {display.stored[0]} x {display.stored[1]} by PyAV"
        )


_hdr_warned = False


def _warn_of_hdr(path: str, transfer: str) -> None:
    """Warn once per process, as one such file is rarely the only one."""
    global _hdr_warned
    if not _hdr_warned:
        logger.warning(
            "%s: HDR video (%s), read as if it were SDR: its colors are paler than those of SDR videos; convert such "
            "videos to SDR (FFmpeg's zscale and tonemap filters) if both kinds are used",
            path,
            transfer,
        )
    _hdr_warned = True
