"""Shared memory and open files: what workers need of the system, raised where possible and named where it is short.

Imports no torch.
"""

from __future__ import annotations

import os
import re
import resource
from contextlib import suppress
from errno import EMFILE, ENOSPC
from typing import NamedTuple

from video_gn.errors import UserError

SHM = "/dev/shm"
OPEN_FILES = 65536
"""Wanted at most: more would only cost the programs that close all numbers one by one."""
ABOUT_SHARED_MEMORY = re.compile(r"shared memory ?\(shm\)|shared memory object|/dev/shm/")
"""In messages of torch and NCCL. Not in those of kernels, whose shared memory is another."""
MIB, GIB = 2**20, 2**30


class Space(NamedTuple):
    """Bytes of a file system."""

    free: int
    total: int


def shared_memory() -> Space | None:
    """Return the space in /dev/shm; None on a system without it."""
    try:
        status = os.statvfs(SHM)
    except OSError:
        return None
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def raise_open_files() -> None:
    """Raise this process's limit of open files, which its children inherit, as far as the hard limit allows."""
    soft, hard = (_finite(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    wanted = min(hard, OPEN_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):  # macOS reports a hard limit that its kernel does not allow
            _, unchanged = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, unchanged))


def _finite(limit: int) -> int:
    return 2**63 - 1 if limit == resource.RLIM_INFINITY else limit


def size_text(size: float) -> str:
    """Format bytes for a person."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.1f} MiB"


def shortage(error: BaseException | str) -> UserError | None:
    """Return the user error behind one of torch or the system: too few open files, too little shared memory.

    None is another error.
    """
    text = " ".join(str(error).split())
    if os.strerror(EMFILE) in text or "items of ancillary data" in text:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return UserError(
            f"too many open files: the limit is {soft:,} per process, and each clip on its way from a worker holds "
            f"one; {open_files_remedy()}"
        )
    if ABOUT_SHARED_MEMORY.search(text) or (isinstance(error, OSError) and error.errno == ENOSPC):
        space = shared_memory()
        room = f"{size_text(space.free)} of {size_text(space.total)} are free in {SHM}" if space else f"no {SHM}"
        return UserError(
            f"too little shared memory, through which workers and GPUs exchange data: {room} ({text:.200}); "
            f"{SHARED_MEMORY_REMEDY}"
        )
    return None


def open_files_remedy() -> str:
    """Return what to do about too low a limit: `ulimit` where the hard limit leaves room."""
    hard = _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if hard >= OPEN_FILES:
        return f"run `ulimit -n {OPEN_FILES}` in the shell before, or lower data.workers"
    return (
        f"the hard limit is {hard:,}: have the administrator raise it (`ulimit -Hn`, limits.conf; Docker: --ulimit "
        f"nofile={OPEN_FILES}), or lower data.workers or train.clips_per_gpu"
    )


SHARED_MEMORY_REMEDY = (
    "give it more (Docker: --shm-size=16g or --ipc=host), lower data.workers or train.clips_per_gpu, or set "
    "data.workers=0 to decode in the main process"
)
