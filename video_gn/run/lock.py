"""One writer per folder: a lock that ends with its process, on one host and over network file systems.

Two guards, since neither suffices:

- A POSIX record lock on the folder's `.lock`. The kernel releases it when the process ends, however it ends, and forked
  workers do not inherit it. NFS carries it to other hosts, unless it is mounted with `nolock` or `local_lock`.
- The holder sets the file's time every `BEAT` seconds. Where the file names another host, or the file system has no
  locks, a newcomer watches it: a time that moves is of a living holder. Clocks are not compared.

Readers (test, report, curves) take no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from video_gn.console import say
from video_gn.errors import UserError

if TYPE_CHECKING:
    from video_gn.distributed.world import World

LOCK = ".lock"
BEAT = 5.0
"""Seconds from one sign of life of the holder to the next."""
WATCH = 4 * BEAT
"""Seconds without a sign of life after which a holder on another host has ended."""

_held: set[Path] = set()
"""Folders that this process holds: record locks do not keep a process from itself."""


@contextlib.contextmanager
def hold_on_rank0(folder: Path, world: World) -> Iterator[None]:
    """Hold a folder for all ranks of a job; all ranks call this. Raises UserError on all of them."""
    with contextlib.ExitStack() as stack:
        world.first(lambda: stack.enter_context(hold(folder)))
        yield


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a folder, if it is missing, and hold it for this process; an empty one that it made is removed again.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    made = not folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the run's folder ({error.strerror}); set output_dir") from None
    key, leaving = folder.resolve(), threading.Event()
    _held.add(key)
    beat = threading.Thread(target=_beat, args=(descriptor, leaving), daemon=True)
    beat.start()
    try:
        yield
    finally:
        leaving.set()
        beat.join()
        _held.discard(key)
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)  # before the lock is released: `_acquire` notices it
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _acquire(folder: Path) -> int:
    """Lock the folder's file, write into it who holds it, and return its descriptor."""
    if folder.resolve() in _held:
        raise UserError(_refusal(folder, {"pid": os.getpid(), "host": platform.node()}))
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _lock(descriptor)
            holder = _read(descriptor)
            if locked is None or (locked and holder.get("host") != platform.node()):
                _wait_for_sign_of_life(folder, holder)
                locked = _lock(descriptor)  # again: the kernel dropped it when the other descriptors were closed
            if locked is False:
                raise UserError(_refusal(folder, holder))
            if _is_in_place(descriptor, folder):  # else its holder removed it meanwhile
                if holder:
                    say(f"{folder}: taken over from {_name(holder)}, which ended without releasing it")
                _write(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Return whether the kernel gave the lock; None where the file system has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _is_in_place(descriptor: int, folder: Path) -> bool:
    """Return whether the open file is still the folder's."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False


def _wait_for_sign_of_life(folder: Path, holder: dict[str, object]) -> None:
    """Watch the time of a lock that the kernel does not speak for. Raises UserError if it moves."""
    if not holder:
        return
    say(f"{folder}: in use by {_name(holder)}; waiting {WATCH:.0f} s for a sign of life")
    before, end = _time(folder), time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(BEAT / 5)
        now = _time(folder)
        if now is None:  # released
            return
        if now != before:
            raise UserError(_refusal(folder, holder))


def _time(folder: Path) -> int | None:
    """Return the lock's time (ns), None if it is gone. Opened anew, so that an NFS client asks its server."""
    try:
        with (folder / LOCK).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _read(descriptor: int) -> dict[str, object]:
    """Return who holds the lock, {} if nobody does or it is not known."""
    try:
        holder = json.loads(os.pread(descriptor, 10_000, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _write(descriptor: int) -> None:
    holder = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
    os.fsync(descriptor)


def _beat(descriptor: int, leaving: threading.Event) -> None:
    """Thread: set the lock's time now and then."""
    while not leaving.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _refusal(folder: Path, holder: dict[str, object]) -> str:
    return (
        f"{folder}: in use by {_name(holder)}; wait until it ends, end it, or choose another folder "
        "(output_dir; --out for a study)"
    )


def _name(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    since = f" (since {holder['since']})" if "since" in holder else ""
    return f"process {holder.get('pid')} on host {holder.get('host')}{since}"
