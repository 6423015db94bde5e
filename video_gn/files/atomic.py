"""Atomic writes: a file appears complete under its name, or not at all, and errors end in one line.

A file is written under a short temporary name in the folder of its target, flushed to the disk and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from video_gn.errors import UserError

MAX_NAME = 255  # bytes of a file's name on ext4, XFS, APFS and most others
PROBE = 2**20  # bytes that `check_writable` really allocates: quotas are not in a disk's free space
TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.[0-9]+\.tmp(\.\w{1,8})?")
ELSEWHERE = "choose another place"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(
    path: str | os.PathLike[str], elsewhere: str = ELSEWHERE, *, parents: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the `with` it becomes `path`, in one move.

    After an error `path` is as it was, and the temporary file is gone. An OSError of the body counts as one of writing:
    read nothing there that may fail otherwise.

    Args:
        elsewhere: the remedy where `path` cannot be written, such as "give another --out".
        parents: whether to make its folder where that is missing.
        durable: whether file and name survive a power cut (fsync).

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync_names(path.parent)
    except OSError as error:
        raise write_error(path, error, elsewhere) from None
    except RuntimeError as error:  # torch's writer hides a full disk behind one
        if isinstance(error.__context__, OSError):
            raise write_error(path, error.__context__, elsewhere) from None
        raise
    finally:
        with suppress(OSError):  # read-only disks refuse to remove what is not there
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, elsewhere: str = ELSEWHERE, *, durable: bool = True) -> None:
    """Write `data` to a file, in one move. Raises as `replacing`."""
    with replacing(path, elsewhere, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str, elsewhere: str = ELSEWHERE, *, durable: bool = True) -> None:
    """Write `text` to a file as UTF-8, its line ends as they are, in one move. Raises as `replacing`."""
    write_bytes(path, text.encode("utf-8"), elsewhere, durable=durable)


def make_folder(folder: str | os.PathLike[str], elsewhere: str = ELSEWHERE) -> Path:
    """Make a folder and its parents where they are missing. Raises UserError where that fails."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{os.fspath(folder)}: cannot make the folder ({reason_of(error)}); {elsewhere}") from None
    return Path(folder)


def check_writable(folder: str | os.PathLike[str], bytes_needed: int = 0, elsewhere: str = ELSEWHERE) -> None:
    """Check, before long work, that files of `bytes_needed` in all can be written into an existing folder.

    Raises:
        UserError: there is no such folder, it is read-only, or its disk or quota has too little room.
    """
    folder = Path(folder)
    probe = temporary_path(folder / "probe")
    try:
        with probe.open("wb") as file:
            if bytes_needed:
                _allocate(file.fileno(), min(bytes_needed, PROBE))
        disk = shutil.disk_usage(folder)
    except OSError as error:
        raise write_error(folder, error, elsewhere) from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    if disk.total and disk.free < bytes_needed:  # some network disks have no total
        raise UserError(
            f"{folder}: {disk.free / 2**20:,.1f} MiB are free and about {bytes_needed / 2**20:,.1f} MiB are needed; "
            f"free space or {elsewhere}"
        )


def write_error(path: str | os.PathLike[str], error: OSError, elsewhere: str = ELSEWHERE) -> UserError:
    """Return the UserError of a file or folder that cannot be written: its name, the reason and the remedy."""
    remedies = {errno.ENAMETOOLONG: "shorten the name or ", errno.EISDIR: "move that folder away or "}
    remedy = remedies.get(error.errno or 0, "") + elsewhere
    if error.errno in (*NO_ROOM, errno.EFBIG):
        remedy = f"free space or {elsewhere}"
    return UserError(f"{os.fspath(path)}: cannot be written ({reason_of(error)}); {remedy}")


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read or written, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def temporary_path(path: Path) -> Path:
    """Return this process's temporary name for a file: short however long `path` is, of the same suffix."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    suffix = path.suffix if re.fullmatch(r"\.\w{1,8}", path.suffix, re.ASCII) else ""
    return path.with_name(f".{digest}.{os.getpid()}.tmp{suffix}")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of writes to `path`, where no other process may be writing it."""
    one = temporary_path(path)
    for left in path.parent.glob(one.name.replace(f".{os.getpid()}.", ".*.")):
        with suppress(OSError):
            left.unlink()


def is_temporary(path: Path) -> bool:
    """Tell whether a file is what a killed process has left of a write."""
    return TEMPORARY.fullmatch(path.name) is not None


def fitting_name(stem: str, ending: str) -> str:
    """Return `stem` + `ending`; a stem that would make the name too long is cut, and keeps apart by a hash."""
    room = MAX_NAME - len(os.fsencode(ending))
    raw = os.fsencode(stem)
    if len(raw) <= room:
        return stem + ending
    tail = "~" + hashlib.sha256(raw).hexdigest()[:8]
    return raw[: room - len(tail)].decode("utf-8", "ignore") + tail + ending


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where its disk can: some network disks cannot."""
    with suppress(OSError):
        sync(folder)


def _allocate(descriptor: int, size: int) -> None:
    """Claim bytes of the disk: by writing them, which every file system can."""
    written = 0
    while written < size:
        written += os.write(descriptor, bytes(size - written))
    os.fsync(descriptor)  # network disks report a full quota only then
