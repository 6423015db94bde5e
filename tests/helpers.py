"""What many tests share: waiting, processes, ranks, full disks and pictures."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

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


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder one into which root may not write either (chattr +i; skip where there is no such flag)."""
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i does not work here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Return a picture without fine detail, so that JPEG and scaling change it little."""
    small = np.random.default_rng(seed).integers(40, 215, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def run_ranks(script: str, size: int, folder: Path, *arguments: str) -> None:
    """Run a Python script, given `folder` and `arguments`, as the ranks of a group; all must end well."""
    codes, errors = end_of_ranks(script, range(size), size, folder, *arguments)
    assert codes == [0] * size, "\n".join(errors)


def end_of_ranks(
    script: str, ranks: Iterable[int], size: int, folder: Path, *arguments: str
) -> tuple[list[int], list[str]]:
    """Start these of the ranks of a group as torchrun would; returns each one's exit code and stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ranks:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", script, str(folder), *arguments]
        environment = {**os.environ, **place, **rendezvous}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=HANG)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors
