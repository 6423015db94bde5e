"""Files before they are decoded: their bytes, and what their first ones say."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from video_gn.data.decode.errors import NotFetched, VideoError
from video_gn.data.stores import fetch


def read_bytes(url: str) -> bytes:
    """Read a file of an object store. Raises VideoError where it is missing or empty, NotFetched where that fails."""
    try:
        data = fetch(url)
    except FileNotFoundError:
        raise VideoError(url, "no such file") from None
    except OSError as error:
        raise NotFetched(url, str(error)) from error
    if not data:
        raise VideoError(url, "empty file (0 bytes)")
    return data


def first_bytes(path: str) -> bytes:
    """Return a file's first bytes. Raises VideoError where there are none."""
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


def check_boxes(path: str, file: BinaryIO) -> None:
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
