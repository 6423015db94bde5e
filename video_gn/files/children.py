"""Child processes that end with their parent, and that their parent can always end.

A process that hangs while it holds the interpreter's lock, or that is stopped, runs no signal handler and no thread:
only the kernel's SIGKILL ends it.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import process as bookkeeping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
REAP = 10.0
"""Seconds for a killed process to vanish: one that waits for a lost disk cannot even be killed."""


class Parent(NamedTuple):
    """A process that is about to start a child; the child passes it to `end_with`."""

    pid: int
    in_main_thread: bool

    @classmethod
    def current(cls) -> Parent:
        """Describe this process, before the fork: afterwards a child cannot know who its parent was."""
        return cls(os.getpid(), threading.current_thread() is threading.main_thread())


def end_with(parent: Parent, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send `number` to this process, a direct child of `parent`, when the parent ends in whatever way.

    Call it first of all in the child; it exits at once if the parent has ended already. Linux binds this to the
    thread that started the child, which may end long before its process: after a start from another thread than the
    main one, and on other systems, a thread of the child looks for its parent instead, twice per second.
    """
    if not (sys.platform == "linux" and parent.in_main_thread) or ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number):
        threading.Thread(target=_look_for, args=(parent, number), daemon=True).start()
    if os.getppid() != parent.pid:
        os._exit(1)


def _look_for(parent: Parent, number: signal.Signals) -> None:
    while os.getppid() == parent.pid:
        time.sleep(0.5)
    os.kill(os.getpid(), number)


def end_with_client() -> None:
    """End this process, started by way of a fork server, with the process that asked for it.

    By the kernel's account its parent is the server, which lives as long as any child does. But the asking process
    holds the other end of a pipe: the kernel turns the closing of that end into SIGKILL.
    """
    client = multiprocessing.parent_process()
    assert client is not None
    if sys.platform != "linux":
        threading.Thread(target=lambda: client.join() or os._exit(1), daemon=True).start()  # type: ignore[func-returns-value]
        return
    pipe = client.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([pipe], 0):  # closed before the kernel was asked to watch it
        os._exit(1)


def kill(processes: Iterable[BaseProcess]) -> None:
    """End child processes at once, whatever they do, and reap them."""
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    deadline = time.monotonic() + REAP
    for process in alive:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():  # multiprocessing would wait for it at this process's exit, without limit
            bookkeeping._children.discard(process)  # type: ignore[attr-defined]


def call_in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Return what `function` returns in a child process of its own, or raise what it raises.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    # Forked where that is safe; macOS's network libraries do not survive it.
    linux = sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(Parent.current(), sender, function, arguments))
    child.start()
    sender.close()  # so that the child's death is the end of the pipe
    try:
        good, value = receiver.recv()
    except EOFError:
        child.join(REAP)
        raise RuntimeError(f"the process for {function.__name__} ended with {child.exitcode}") from None
    finally:
        kill([child])
        receiver.close()
    if not good:
        raise value
    return value


def _answer(parent: Parent, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with(parent)
    try:
        answer = True, function(*arguments)
    except Exception as error:
        answer = False, error
    with suppress(BrokenPipeError):
        sender.send(answer)
