"""Child processes: none outlives its parent, and none keeps it from ending."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.helpers import HANG, is_running, wait_until
from video_gn.errors import UserError
from video_gn.files import children
from video_gn.files.children import Parent, call_in_child, end_with, kill

FORK = multiprocessing.get_context("fork")


def fails() -> None:
    raise UserError("no such store; name another")


def test_a_call_in_a_child_returns_or_raises() -> None:
    assert call_in_child(os.getppid) == os.getpid()
    assert call_in_child(divmod, 17, 5) == (3, 2)
    with pytest.raises(UserError, match="no such store"):
        call_in_child(fails)
    with pytest.raises(RuntimeError, match="the process for _exit ended with 3"):
        call_in_child(os._exit, 3)
    assert not multiprocessing.active_children()


def parent_of(folder: Path, start: Callable[[Callable[[], None]], None], late: float = 0) -> tuple[BaseProcess, int]:
    """A process with a stopped child; `start` calls what starts the child. Returns the process and the child's id."""

    def child(parent: Parent) -> None:
        (folder / "child").write_text(str(os.getpid()))
        time.sleep(late)
        end_with(parent)
        (folder / "ready").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
        (folder / "resumed").touch()
        time.sleep(HANG)

    def run() -> None:
        start(lambda: FORK.Process(target=child, args=(Parent.current(),)).start())
        time.sleep(HANG)

    process = FORK.Process(target=run)
    process.start()
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text())
    return process, int((folder / "child").read_text())


def in_a_thread(start: Callable[[], None]) -> None:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()


def test_a_stopped_child_ends_with_its_parent(tmp_path: Path) -> None:
    process, child = parent_of(tmp_path, lambda start: start())
    wait_until((tmp_path / "ready").exists)
    process.kill()
    wait_until(lambda: not is_running(child))


def test_a_child_ends_that_looks_for_its_parent_too_late(tmp_path: Path) -> None:
    process, child = parent_of(tmp_path, lambda start: start(), late=0.5)
    process.kill()
    process.join()
    wait_until(lambda: not is_running(child))
    assert not (tmp_path / "ready").exists()


def test_a_child_of_a_thread_outlives_the_thread_but_not_the_process(tmp_path: Path) -> None:
    """Linux would send the signal of a parent's death when the thread ends."""
    process, child = parent_of(tmp_path, in_a_thread)
    wait_until((tmp_path / "ready").exists)
    os.kill(child, signal.SIGCONT)
    wait_until((tmp_path / "resumed").exists)
    assert is_running(child)
    process.kill()
    process.join()
    wait_until(lambda: not is_running(child))


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a lost disk is like that: multiprocessing would join it at the interpreter's exit."""
    process = FORK.Process(target=time.sleep, args=(HANG,), daemon=True)
    process.start()
    with monkeypatch.context() as patch:
        patch.setattr(process, "kill", lambda: None)
        patch.setattr(children, "REAP", 0.1)
        kill([process])
    assert process.is_alive() and process not in multiprocessing.active_children()
    kill([process])
    assert not process.is_alive()
