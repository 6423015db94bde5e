"""Decoding: a video file and frame indices in, uint8 RGB frames out. The only room that decodes.

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

import io
import os
import re
from collections.abc import Callable

from video_gn.data.decode import libraries
from video_gn.data.decode.auto import AutoReader
from video_gn.data.decode.decord import DecordReader
from video_gn.data.decode.errors import CountCorrected as CountCorrected
from video_gn.data.decode.errors import NotFetched as NotFetched
from video_gn.data.decode.errors import VideoError as VideoError
from video_gn.data.decode.files import check_boxes, first_bytes
from video_gn.data.decode.files import read_bytes as read_bytes
from video_gn.data.decode.image_types import image_reason
from video_gn.data.decode.libraries import DECODERS as DECODERS
from video_gn.data.decode.libraries import check_decoder as check_decoder
from video_gn.data.decode.pyav import PyAVReader
from video_gn.data.decode.reader import VideoReader as VideoReader
from video_gn.data.decode.torchcodec import TorchcodecReader
from video_gn.data.stores import URL

_MP4 = re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL)
_MATROSKA = b"\x1aE\xdf\xa3"


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
    data = read_bytes(path) if URL.match(path) else None
    head = first_bytes(path) if data is None else data[:8]
    if head[:7] == b"#EXTM3U" or head == b"ffconcat":
        raise VideoError(path, "a list of other files, not a video")
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        if reason := image_reason(path, file):
            raise VideoError(path, reason)
        if is_mp4 := _MP4.match(head):
            check_boxes(path, file)
    suits_torchcodec = is_mp4 or head.startswith(_MATROSKA)
    if decoder == "auto" and not (suits_torchcodec and libraries.load("torchcodec")):
        decoder = "pyav"
    if decoder == "torchcodec" and not suits_torchcodec:
        raise VideoError(path, "torchcodec is right in MP4, MOV, Matroska and WebM only; use auto or pyav")
    readers: dict[str, Callable[[str, bytes | None], VideoReader]] = {
        "auto": AutoReader,
        "torchcodec": TorchcodecReader,
        "pyav": PyAVReader,
        "decord": DecordReader,
    }
    return readers[decoder](path, data)
