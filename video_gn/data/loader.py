"""Workers, the exact split over ranks, and batches on the device."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import queues
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from video_gn import limits
from video_gn.console import say
from video_gn.data.augment import gather_clips, render
from video_gn.data.dataset import Clips, TestClips, TrainClips, ValClips
from video_gn.data.decode import VideoError
from video_gn.errors import UserError
from video_gn.files.children import Parent, end_with, kill

LONGEST_PATH = 4096  # bytes; PATH_MAX of Linux
LONGEST_MESSAGE = 4096  # bytes
TIMEOUT = 300.0  # seconds
GRACE = 5.0
"""Seconds that workers have to end by themselves, amid the decoding of a video perhaps, before they are killed."""


@dataclass(frozen=True)
class Batch:
    """Clips on the device."""

    clips: Tensor
    """(N, 3, T, H, W), of images (N, 3, H, W), channels last in memory; empty when nothing could be read."""
    targets: Tensor
    """Of the N clips, as the task collates them; one clip and view per video."""
    items: list[Clips]
    """What the workers sent, unreadable videos included."""


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, position) of this rank's forward passes, from `first_step` to `last_step`, over all epochs.

    A step takes the next `global_batch` positions of the epoch, cut into passes of `clips_per_gpu`; pass m goes
    to rank m mod ranks. So the same clips meet in a norm's batch whatever the number of ranks. The remainder of an
    epoch that fills no global batch is left out.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        first_step: int,
        last_step: int,
        *,
        clips_per_gpu: int,
        global_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.steps = range(first_step, last_step)
        self.clips_per_gpu = clips_per_gpu
        self.global_batch = global_batch
        self.passes = range(rank, global_batch // clips_per_gpu, ranks)

    def __len__(self) -> int:
        return len(self.steps) * len(self.passes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            for index in self.passes:
                first = step_of_epoch * self.global_batch + index * self.clips_per_gpu
                yield [(epoch, position) for position in range(first, first + self.clips_per_gpu)]


class WorkerLost(UserError):
    """A worker process crashed or hung. `videos`: the paths, as in the list, that it (they) had in use."""

    def __init__(self, what: str, videos: Sequence[str]) -> None:
        super().__init__(
            f"{what}; in flight: {', '.join(videos) or 'no video'}; start again (training then checks these first), or "
            "name them in data.quarantine"
        )
        self.videos = list(videos)


class Loader(DataLoader):
    """A DataLoader that knows which videos its workers have in use, so that `WorkerLost` can name them.

    Its workers end with this process, and with the iteration: at once by themselves, or killed after `GRACE`.

    Raises:
        UserError: too little shared memory, or too few open files (also while iterated over).
    """

    known: ClassVar[list[Loader]] = []
    """Those being iterated over, and those left since the last one began: an error may have left them."""

    def __init__(self, dataset: torch.utils.data.Dataset, workers: int, timeout: float, **options: Any) -> None:
        if workers:
            limits.raise_open_files()
        with naming_videos():
            self.pids = torch.zeros(workers, dtype=torch.int64).share_memory_()
            self.paths = torch.zeros(workers, LONGEST_PATH, dtype=torch.uint8).share_memory_()
            self.messages = torch.zeros(workers, LONGEST_MESSAGE, dtype=torch.uint8).share_memory_()
        self.processes: list[BaseProcess] = []
        self.left = False
        # Forked, whatever the default: a fork server and its workers outlived a killed run (tests/test_resume.py).
        context = "fork" if workers and sys.platform == "linux" else None
        super().__init__(
            dataset,
            num_workers=workers,
            timeout=timeout if workers else 0,
            multiprocessing_context=context,
            collate_fn=_hand_over,
            **options,
        )

    def __iter__(self) -> Iterator[list[Clips]]:  # type: ignore[override]
        Loader.known = [loader for loader in Loader.known if not loader.left] + [self]
        self.left = False
        self.worker_init_fn = partial(_start_worker, Parent.current(), self.pids, self.paths, self.messages)
        space = limits.shared_memory()
        with naming_videos(starting=True):
            batches = super().__iter__()
        self.processes = getattr(batches, "_workers", [])
        try:
            while True:
                with naming_videos():
                    items = next(batches, None)
                if items is None:
                    return
                if space is not None and self.processes:
                    self._compare(items, space)
                    space = None  # once, with the first batch
                yield items
        finally:
            self.left = True
            _end(batches, self.processes)

    def in_use(self) -> dict[int, str]:
        """Path of the video that each worker has in use ("" for none), by process id."""
        return {pid: path for pid, path in zip(self.pids.tolist(), _texts(self.paths), strict=True) if pid}

    def message(self) -> str:
        """Return what a worker that gave up wrote; "" if none did."""
        return next(filter(None, _texts(self.messages)), "")

    def _compare(self, items: list[Clips], space: limits.Space) -> None:
        """Warn, before the first step, where the batches that workers may prepare ahead do not fit in shared memory."""
        batch = sum(item.frames.untyped_storage().nbytes() for item in items if isinstance(item, Clips))
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        need = ranks * self.num_workers * (self.prefetch_factor or 0) * batch
        if need > space.free and os.environ.get("LOCAL_RANK", "0") == "0":
            say(
                f"warning: {limits.SHM} has {limits.size_text(space.free)} free, and the batches of {ranks} x "
                f"{self.num_workers} workers can take {limits.size_text(need)}; {limits.SHARED_MEMORY_REMEDY}"
            )


def _texts(rows: Tensor) -> list[str]:
    return [os.fsdecode(row.numpy().tobytes().rstrip(b"\0")) for row in rows]


def _end(batches: Any, workers: Sequence[BaseProcess]) -> None:
    """End torch's iterator and its workers, those by force that are not gone after `GRACE`: hung, or stopped."""
    if not workers:
        return
    killer = threading.Timer(GRACE, kill, [workers])
    killer.daemon = True
    if any(worker.is_alive() for worker in workers):  # else the interpreter may be ending, where no thread can start
        killer.start()
    try:
        with suppress(RuntimeError):  # torch raises it, wherever it waits, about each worker that is killed
            batches._shutdown_workers()
    finally:
        killer.cancel()
        kill(workers)


@atexit.register  # after multiprocessing, and so called before: that would wait without limit for the same workers
def _kill_left_workers() -> None:
    """Kill the workers of loaders that an error has left half iterated over."""
    left = [worker for loader in Loader.known for worker in loader.processes if not loader.left]
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
        message = next((loader.message() for loader in Loader.known if loader.message()), str(error))
        if problem := limits.shortage(message):
            raise problem from None
        what = str(error).split("\n")[0].strip(" .\0")
        if not what.startswith("DataLoader "):
            raise
        in_use = {pid: path for loader in Loader.known for pid, path in loader.in_use().items()}
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


def _hand_over(items: list[Clips]) -> list[Clips]:
    """Return a batch as it is: clips differ in size until the device has resized them.

    In a worker their frames are put into shared memory, here rather than by torch in a thread whose errors are lost.

    Raises:
        UserError: there is too little shared memory, or a video could not be opened for want of open files: the video
            is not to blame for that.
    """
    try:
        for item in items:
            if isinstance(item, Clips):
                for error in item.unreadable:
                    if os.strerror(errno.EMFILE) in error.reason:
                        raise error
                if get_worker_info() is not None:
                    item.frames.share_memory_()
    except (VideoError, RuntimeError) as error:
        raise limits.shortage(error) or error from None
    return items


def train_loader(
    dataset: TrainClips, batches: TrainBatches, workers: int, device: torch.device, timeout: float = TIMEOUT
) -> Loader:
    """Loader of this rank's training passes; yields lists of `Clips`.

    Args:
        timeout: seconds that the caller waits for a batch before it takes the workers for hung.
    """
    return _loader(dataset, batches, workers, device, timeout)


def eval_loader(
    dataset: ValClips | TestClips,
    videos_per_batch: int,
    workers: int,
    device: torch.device,
    rank: int,
    ranks: int,
    timeout: float = TIMEOUT,
) -> Loader:
    """Loader of this rank's videos rank, rank + ranks, ...: each video on one rank, none twice."""
    mine = range(rank, len(dataset), ranks)
    batches = [list(mine[i : i + videos_per_batch]) for i in range(0, len(mine), videos_per_batch)]
    # A test video's frames are hundreds of MB: few wait in line. A validation batch is small.
    prefetch = 1 if isinstance(dataset, TestClips) else 2
    return _loader(dataset, batches, workers, device, timeout, prefetch)


def _loader(
    dataset: torch.utils.data.Dataset,
    batches: Iterable[list],
    workers: int,
    device: torch.device,
    timeout: float,
    prefetch: int = 2,
) -> Loader:
    return Loader(
        dataset,
        workers,
        timeout,
        batch_sampler=batches,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
    )


def collate_labels(labels: Sequence[int]) -> Tensor:
    """Return class labels as int64 (N,)."""
    return torch.tensor(labels, dtype=torch.int64)


class DeviceBatches:
    """Iterates over a loader's batches on the device, one ahead: on a GPU, copy and resize run on a side stream.

    `waited` is the time in seconds that the caller spent waiting for data.
    """

    def __init__(
        self,
        loader: Iterable[list[Clips]],
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        dims: int = 3,
        dtype: torch.dtype = torch.float32,
        collate: Callable[[Sequence[Any]], Tensor] = collate_labels,
    ) -> None:
        self.loader = loader
        self.dims = dims
        self.dtype = dtype
        self.device = device
        self.mean = mean
        self.std = std
        self.collate = collate
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        if self.device.type != "cuda":
            while (items := self._next(batches)) is not None:
                yield self._assemble(items)
            return
        stream = torch.cuda.Stream(self.device)
        ready = self._prefetch(batches, stream)
        while ready is not None:
            # The one after it is under way before the caller queues its work on this one: nothing there waits for it.
            following = self._prefetch(batches, stream)
            batch, rendered = ready
            main = torch.cuda.current_stream(self.device)
            main.wait_event(rendered)
            for tensor in (batch.clips, batch.targets):
                tensor.record_stream(main)
            yield batch
            ready = following

    def _prefetch(
        self, batches: Iterator[list[Clips]], stream: torch.cuda.Stream
    ) -> tuple[Batch, torch.cuda.Event] | None:
        """Return the next batch, which `stream` is rendering, and the event that it is rendered."""
        items = self._next(batches)
        if items is None:
            return None
        with torch.cuda.stream(stream):
            batch = self._assemble(items)
            return batch, stream.record_event()

    def _next(self, batches: Iterator[list[Clips]]) -> list[Clips] | None:
        begin = time.perf_counter()
        items = next(batches, None)
        self.waited += time.perf_counter() - begin
        return items

    def _assemble(self, items: list[Clips]) -> Batch:
        read = [item for item in items if item.views]
        clips = [self._clips(item) for item in read]
        targets = self.collate([item.target for item in read]).to(self.device, non_blocking=True)
        return Batch(torch.cat(clips) if clips else torch.empty(0, device=self.device), targets, items)

    def _clips(self, item: Clips) -> Tensor:
        frames = render(
            item.frames.to(self.device, non_blocking=True), item.views, self.mean, self.std, item.changes, self.dtype
        )
        clips = gather_clips(frames, torch.from_numpy(item.clip_indices).to(self.device, non_blocking=True))
        return clips if self.dims == 3 else clips.squeeze(2)
