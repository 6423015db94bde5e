"""Recognize image files by their first bytes, so that an error says what was given in place of a video."""

from __future__ import annotations

import re
import shlex
from typing import BinaryIO

_HEAD = 64
_TYPES = {
    "a JPEG image": rb"\xff\xd8\xff",
    "a PNG image": rb"\x89PNG\r\n\x1a\n",
    "a WebP image": rb"RIFF....WEBP",
    "a BMP image": rb"BM....\0\0\0\0",
    "a TIFF image": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "a PPM image": rb"P[1-7]\s",
    "an AVIF image": rb"....ftypavif",
    "a HEIC image": rb"....ftyp(heic|heix|heim|heis|mif1)",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a Photoshop image": rb"8BPS",
}
_JPEG_AFTER_JPEG = b"\xff\xd9\xff\xd8\xff"  # end of image, start of image


def image_reason(path: str, file: BinaryIO) -> str | None:
    """Say what kind of image a file is and what to do with it; None for what is not an image."""
    file.seek(0)
    head = file.read(_HEAD)
    kind = next((kind for kind, start in _TYPES.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return None
    file.seek(0)
    if kind == "a JPEG image" and b"MPF\0" not in (content := file.read()) and _JPEG_AFTER_JPEG in content:
        return (
            "raw Motion JPEG, which has no timestamps and no container; put it into one without loss: "
            f"ffmpeg -f mjpeg -i {shlex.quote(path)} -c copy VIDEO.mkv"
        )
    if kind == "a WebP image" and head[12:16] == b"VP8X" and head[20] & 2:
        return "an animated WebP, which FFmpeg does not decode; convert it to MP4 or GIF with another program"
    if kind == "a PNG image" and b"acTL" in head:
        return f"an animated PNG; convert it: ffmpeg -i {shlex.quote(path)} VIDEO.mp4"
    return f"{kind}, not a video; give a video, or use a network that was trained on images (data.kind=images)"
