"""Worker processes: how they start and end, which videos they have in use, and what becomes of their errors."""

from __future__ import annotations

import atexit
import errno
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import queues
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from video_gn import limits
from video_gn.console import say
from video_gn.errors import UserError
from video_gn.files.children import Parent, end_with, kill

LONGEST_PATH = 4096  # bytes; PATH_MAX of Linux
LONGEST_MESSAGE = 4096  # bytes
GRACE = 5.0
"""Seconds that workers have to end by themselves, amid the decoding of a video perhaps, before they are killed."""


class WorkerLost(UserError):
    """A worker process crashed or hung. `videos`: the paths, as in the list, that it (they) had in use."""

    def __init__(self, what: str, videos: Sequence[str]) -> None:
        super().__init__(
            f"{what}; in flight: {', '.join(videos) or 'no video'}; start again (training then checks these first), or "
            "name them in data.quarantine"
        )
        self.videos = list(videos)


class Workers:
    """What is known of a loader's worker processes: they write it into memory that they share with the main process."""

    known: ClassVar[list[Workers]] = []
    """Those of loaders being iterated over, and of those left since the last one began: an error may have left them."""

    def __init__(self, number: int) -> None:
        if number:
            limits.raise_open_files()
        with naming_videos():
            self.pids = torch.zeros(number, dtype=torch.int64).share_memory_()
            self.paths = torch.zeros(number, LONGEST_PATH, dtype=torch.uint8).share_memory_()
            self.messages = torch.zeros(number, LONGEST_MESSAGE, dtype=torch.uint8).share_memory_()
        self.processes: list[BaseProcess] = []
        self.left = False

    def begin(self) -> Callable[[int], None]:
        """Begin an iteration; returns what a worker process calls first of all."""
        Workers.known = [workers for workers in Workers.known if not workers.left] + [self]
        self.left = False
        return partial(_start_worker, Parent.current(), self.pids, self.paths, self.messages)

    def end(self, batches: Any) -> None:
        """End torch's iterator and its workers, those by force that are not gone after `GRACE`: hung, or stopped."""
        self.left = True
        if not self.processes:
            return
        killer = threading.Timer(GRACE, kill, [self.processes])
        killer.daemon = True
        if any(worker.is_alive() for worker in self.processes):  # else the interpreter may be ending: no new threads
            killer.start()
        try:
            with suppress(RuntimeError):  # torch raises it, wherever it waits, about each worker that is killed
                batches._shutdown_workers()
        finally:
            killer.cancel()
            kill(self.processes)

    def in_use(self) -> dict[int, str]:
        """Return the path of the video that each worker has in use ("" for none), by process id."""
        return {pid: path for pid, path in zip(self.pids.tolist(), _texts(self.paths), strict=True) if pid}

    def message(self) -> str:
        """Return what a worker that gave up wrote; "" if none did."""
        return next(filter(None, _texts(self.messages)), "")


def _texts(rows: Tensor) -> list[str]:
    return [os.fsdecode(row.numpy().tobytes().rstrip(b"\0")) for row in rows]


@atexit.register  # after multiprocessing, and so called before: that would wait without limit for the same workers
def _kill_left_workers() -> None:
    """Kill the workers of loaders that an error has left half iterated over."""
    left = [worker for workers in Workers.known for worker in workers.processes if not workers.left]
    if left and left[0]._parent_pid == os.getpid():  # type: ignore[attr-defined]
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
        kill(left)


@contextmanager
def naming_videos(starting: bool = False) -> Iterator[None]:
    """Turn torch's errors about its workers into `WorkerLost`; the stacks of workers that hang go to stderr.

    A UserError of a worker, of which torch makes one with the complete traceback as text, gets its own text back.
    Too little shared memory and too few open files become UserErrors.

    A `Loader` does so while one waits for its batch. But the death of a worker is raised wherever the main thread
    happens to be: put this around all that runs beside a loader.
    """
    try:
        yield
    except UserError as error:
        if not str(error).startswith("Caught UserError in DataLoader worker"):
            raise
        raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]) from None
    except OSError as error:
        if starting or error.errno == errno.EMFILE:  # a full disk is no business of the workers
            raise limits.shortage(error) or error from None
        raise
    except RuntimeError as error:
        message = next((workers.message() for workers in Workers.known if workers.message()), str(error))
        if problem := limits.shortage(message):
            raise problem from None
        what = str(error).split("\n")[0].strip(" .\0")
        if not what.startswith("DataLoader "):
            raise
        in_use = {pid: path for workers in Workers.known for pid, path in workers.in_use().items()}
        lost = set(in_use)
        if "timed out" in what:
            _dump_stacks(in_use)
        else:
            lost -= {process.pid for process in multiprocessing.active_children()}
        raise WorkerLost(what, sorted({in_use[pid] for pid in lost} - {""})) from None


def _dump_stacks(in_use: dict[int, str]) -> None:
    for pid, path in in_use.items():
        say(f"worker {pid}, {path or 'no video'}, is at:")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
        time.sleep(0.2)  # it writes by itself


def _start_worker(parent: Parent, pids: Tensor, paths: Tensor, messages: Tensor, worker: int) -> None:
    """Prepare a worker process: called in it, first of all."""
    end_with(parent)
    faulthandler.register(signal.SIGUSR2, file=2)
    # A scheduler that ends a job sends these to all of its processes; the main process decides.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a worker ends with the job's signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
    # Threads of multiprocessing send the batches. It prints their errors; the main process would wait in vain.
    sys.excepthook = lambda _, error, __: _give_up(messages[worker], error)
    queues.Queue._on_queue_feeder_error = staticmethod(lambda error, _: _give_up(messages[worker], error))  # type: ignore[attr-defined]
    paths[worker] = messages[worker] = 0  # of the one before
    pids[worker] = os.getpid()
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr]
    dataset.reading = paths[worker].numpy()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent == os.getppid():
        pass  # of somebody else, while the parent lives
    os._exit(0)


def _give_up(row: Tensor, error: BaseException) -> NoReturn:
    """End this worker, which cannot send a batch, and leave the error to the main process."""
    if limits.shortage(error) is None:
        traceback.print_exception(error)
    message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:LONGEST_MESSAGE]
    row[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    os._exit(1)
