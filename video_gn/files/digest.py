"""Files of torch.save with a digest of every byte, and how they are read.

torch.load trusts a file's directory: with one bit of it flipped, it returns a tensor of uninitialized memory. The CRCs
of the zip format cover the members, not the directory. A file of this package therefore ends in a zip comment,
`video_gn sha256 HEX`, the SHA-256 of all bytes before the comment. Other programs ignore a comment: torch.load, zipfile
and unzip open the file as any other.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

PREFIX = b"video_gn sha256 "
COMMENT_SIZE = len(PREFIX) + 64
END_SIZE = 22
"""Bytes of the zip format's "end of central directory", of which the last two are the comment's length."""
CHUNK = 2**20


def save(content: object, file: BinaryIO) -> None:
    """Write `content` as torch.save does, and its digest behind it. `file` is open for reading and writing ("w+b")."""
    torch.save(content, file)
    file.seek(-2, os.SEEK_END)
    file.write(COMMENT_SIZE.to_bytes(2, "little"))  # first: the digest covers the length, too
    file.write(PREFIX + _digest(file, file.tell()))


def load(path: Path) -> Any:
    """Read a file of torch.save onto the CPU, after checking its digest; without running code.

    A file without a digest (of an earlier version, or of another program) is checked by the CRCs of its members.

    Raises:
        ValueError: the file is damaged.
        Exception: what zipfile and torch.load raise for a file that is damaged, or holds more than data.
    """
    with path.open("rb") as file:
        has_digest = _check(file)
    if not has_digest:
        _check_members(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check(file: BinaryIO) -> bool:
    """Return whether there is a digest, after comparing it. Raises ValueError if it differs, or is cut or garbled."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - COMMENT_SIZE - END_SIZE))
    tail = file.read()
    comment = tail[-COMMENT_SIZE:]
    if comment.startswith(PREFIX):
        if comment[len(PREFIX) :] != _digest(file, size - COMMENT_SIZE):
            raise ValueError("its content does not match its SHA-256")
        return True
    end = tail[-END_SIZE:]
    if not end.startswith(b"PK\5\6") or end[-2:] != b"\0\0":  # the end of a zip without a comment, as torch.save writes
        raise ValueError("its end is missing or garbled")
    return False


def _check_members(path: Path) -> None:
    """Raise ValueError if a member's CRC is wrong, or the directory calls a member something else than a plain file."""
    with zipfile.ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise ValueError(f"wrong checksum in {part}")
        for member in archive.infolist():
            if member.is_dir() or member.external_attr:  # torch.load leaves a folder's tensor uninitialized
                raise ValueError(f"{member.filename} is not a plain file")


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, 64 hexadecimal digits; `file` is then at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while size:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            raise ValueError("it became shorter while it was read")
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode("ascii")
