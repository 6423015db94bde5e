"""Shared memory and open files: which errors mean that there is too little, and what is done about it."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from video_gn import limits
from video_gn.files.children import call_in_child


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)"), "shm"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: File exists (17)"), "shm"),
        (RuntimeError("NCCL error: Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)"), "shm"),
        (OSError(errno.ENOSPC, "No space left on device"), "shm"),  # a semaphore of multiprocessing
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "files"),
        (RuntimeError("received 0 items of ancillary data"), "files"),
        (OSError(errno.EMFILE, "Too many open files", "clip.mp4"), "files"),
        (RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"), None),  # a kernel's
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), None),
    ],
)  # fmt: skip
def test_errors_of_too_little(error: Exception, expected: str | None) -> None:
    problem = limits.shortage(error)
    if expected is None:
        assert problem is None
    elif expected == "shm":
        assert "too little shared memory" in str(problem) and "free in /dev/shm" in str(problem)
        assert "--shm-size=16g or --ipc=host" in str(problem) and "data.workers=0" in str(problem)
    else:
        assert "too many open files: the limit is " in str(problem) and "ulimit" in str(problem)


def limit_after(soft: int, hard: int) -> tuple[tuple[int, int], str]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits.raise_open_files()
    return resource.getrlimit(resource.RLIMIT_NOFILE), limits.open_files_remedy()


def test_open_files_are_raised_as_far_as_one_may() -> None:
    assert call_in_child(limit_after, 64, 300)[0] == (300, 300)
    assert call_in_child(limit_after, 300, 300)[0] == (300, 300)
    assert "the hard limit is 300: have the administrator raise it" in call_in_child(limit_after, 64, 300)[1]


def test_room_is_that_of_df() -> None:
    space = limits.shared_memory()
    assert space is not None
    status = os.popen("df -B1 --output=size /dev/shm").read().split()
    assert space.total == int(status[1]) and 0 <= space.free <= space.total
