"""What many tests share: waiting for something, and the processes of others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

HANG = 900.0
"""Seconds: the limit for whatever a test waits for. It is there against a hang, and says nothing about speed."""


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until `condition` holds, and fail after HANG."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {HANG:.0f} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of one that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def session(leader: int) -> list[int]:
    """Return the processes of a session that run, or are stopped: of a leader that is gone, too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def children(pid: int) -> list[int]:
    """Return the processes that this one has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
