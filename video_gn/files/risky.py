"""Calls that may crash or hang, each in a process of its own: it costs that call only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from video_gn.errors import UserError
from video_gn.files.children import Parent, end_with, end_with_client, kill

T = TypeVar("T")


class ChildLate(Exception):
    """A call that took longer than its limit, in seconds."""


@dataclass
class ChildCrashed(Exception):
    """A process that ended without an answer."""

    code: int | None
    """Its exit code; negative is the number of a signal, None is unknown."""
    last_line: str | None = None
    """The last line that it printed, where that is kept."""

    def __str__(self) -> str:
        code = self.code or 0
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"crashed (exit code {code})"


# ---- many calls ----


@dataclass(frozen=True, slots=True)
class _Child:
    index: int
    process: BaseProcess
    deadline: float


def call_each(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    jobs: int | None,
    seconds: float,
    preload: Sequence[str] = (),
) -> Generator[tuple[int, Any], None, None]:
    """Call `function` with each tuple in a process of its own, `jobs` at a time (None: one per core).

    Yields (index of the call, what it returned) as they come; in place of an answer ChildCrashed or ChildLate.

    Args:
        function: raises nothing; it and its answers pickle.
        seconds: that one call may take.
        preload: modules that are imported once, for all calls.

    Raises:
        UserError: fewer than one job, or no time.
    """
    jobs = os.cpu_count() or 1 if jobs is None else jobs
    if jobs < 1 or not seconds > 0:
        raise UserError(f"{jobs} jobs and a limit of {seconds:g} s cannot work; give at least one job and some time")
    # Children are forks of a server that has imported all and started nothing: 10 ms each, not seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    waiting = enumerate(calls)
    running: dict[Connection, _Child] = {}
    try:
        while True:
            for index, call in islice(waiting, jobs - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(sender, function, call), daemon=True)
                process.start()
                sender.close()  # the child has its own; so its death is the end of the pipe
                running[receiver] = _Child(index, process, time.monotonic() + seconds)
            if not running:
                return
            soonest = min(child.deadline for child in running.values())
            ready = set(wait(list(running), max(0.0, soonest - time.monotonic())))
            now = time.monotonic()
            for receiver in [r for r, child in running.items() if r in ready or child.deadline <= now]:
                child = running[receiver]
                answer = _receive(receiver, child.process) if receiver in ready else ChildLate(seconds)
                _end(running.pop(receiver), receiver)
                yield child.index, answer
    finally:
        for receiver, child in running.items():
            _end(child, receiver)


def _receive(receiver: Connection, process: BaseProcess) -> Any:
    """Return what the child has sent, or ChildCrashed where it ended before."""
    try:
        return receiver.recv()
    except (EOFError, OSError):
        process.join()
    return ChildCrashed(process.exitcode)


def _end(child: _Child, receiver: Connection) -> None:
    kill([child.process])
    receiver.close()


def _answer(sender: Connection, function: Callable[..., Any], call: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    end_with_client()
    sender.send(function(*call))
    os._exit(0)  # whatever threads a decoder may have left


# ---- one call, forked from here, that answers bit by bit ----


def stream(work: Callable[[], Iterable[T]], seconds: float) -> Iterator[T]:
    """Yield what `work` yields in a forked process, with `seconds` in all; it and what it started end with it.

    What it prints and its temporary files vanish.

    Raises:
        ChildLate, ChildCrashed: there is no further answer; one with an exception is of `work` and not caught.
    """
    deadline = time.monotonic() + seconds
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="video-gn-", ignore_cleanup_errors=True) as scratch:
        output = Path(scratch, "output")
        parent, pid = Parent.current(), os.fork()
        if pid == 0:
            end_with(parent)
            _stream(work, sender, output)
        sender.close()
        with suppress(OSError):  # the child does so, too: whoever comes first
            os.setpgid(pid, pid)
        try:
            while receiver.poll(max(deadline - time.monotonic(), 0)):
                if (answer := receiver.recv()) is None:
                    return
                yield answer[0]
            raise ChildLate(seconds)
        except EOFError:
            raise ChildCrashed(_reap(pid), _last_line(output)) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with the processes that it started
            _reap(pid)
            receiver.close()


def _stream(work: Callable[[], Iterable[Any]], sender: Connection, output: Path) -> NoReturn:
    """Send each answer in a tuple and then a None; end without a return to the caller."""
    try:
        os.setpgid(0, 0)
        tempfile.tempdir = str(output.parent)  # emptied by the parent, whatever happens here
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for answer in work():
            sender.send((answer,))
        sender.send(None)
    finally:
        os._exit(0)


def _reap(pid: int, seconds: float = 2.0) -> int | None:
    """Return the exit code; None if it has none yet, as when a dead network disk holds the process."""
    deadline = time.monotonic() + seconds
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
    return None


def _last_line(output: Path) -> str | None:
    lines = output.read_text(errors="replace").split("\n") if output.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
