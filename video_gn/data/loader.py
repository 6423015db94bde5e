"""Workers, the exact split over ranks, and batches on the device."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from video_gn.console import say
from video_gn.data.augment import gather_clips, render
from video_gn.data.dataset import Clips, TestClips, TrainClips, ValClips
from video_gn.errors import UserError

LONGEST_PATH = 4096  # bytes; PATH_MAX of Linux
TIMEOUT = 300.0  # seconds


@dataclass(frozen=True)
class Batch:
    """Clips on the device."""

    clips: Tensor
    """(N, 3, T, H, W), of images (N, 3, H, W), channels last in memory; empty when nothing could be read."""
    labels: Tensor
    """int64 (N,): one clip and view a video."""
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
    """A DataLoader that knows which videos its workers have in use, so that `WorkerLost` can name them."""

    known: ClassVar[list[Loader]] = []
    """Those being iterated over, and those left since the last one began: an error may have left them."""

    def __init__(self, dataset: torch.utils.data.Dataset, workers: int, timeout: float, **options: Any) -> None:
        self.pids = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.paths = torch.zeros(workers, LONGEST_PATH, dtype=torch.uint8).share_memory_()
        self.left = False
        options["worker_init_fn"] = partial(_start_worker, self.pids, self.paths)
        # Forked, whatever the default: a fork server and its workers outlived a killed run (tests/test_resume.py).
        context = "fork" if workers and sys.platform == "linux" else None
        super().__init__(
            dataset, num_workers=workers, timeout=timeout if workers else 0, multiprocessing_context=context, **options
        )

    def __iter__(self) -> Iterator[list[Clips]]:  # type: ignore[override]
        Loader.known = [loader for loader in Loader.known if not loader.left] + [self]
        self.left = False
        batches = super().__iter__()
        try:
            while True:
                with naming_videos():
                    items = next(batches, None)
                if items is None:
                    return
                yield items
        finally:
            self.left = True

    def in_use(self) -> dict[int, str]:
        """Path of the video that each worker has in use ("" for none), by process id."""
        paths = [os.fsdecode(row.numpy().tobytes().rstrip(b"\0")) for row in self.paths]
        return {pid: path for pid, path in zip(self.pids.tolist(), paths, strict=True) if pid}


@contextmanager
def naming_videos() -> Iterator[None]:
    """Turn torch's errors about its workers into `WorkerLost`; the stacks of workers that hang go to stderr.

    A UserError of a worker, of which torch makes one with the whole traceback as text, gets its own text back.

    A `Loader` does so while one waits for its batch. But the death of a worker is raised wherever the main thread
    happens to be: put this around all that runs beside a loader.
    """
    try:
        yield
    except UserError as error:
        if not str(error).startswith("Caught UserError in DataLoader worker"):
            raise
        raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]) from None
    except RuntimeError as error:
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


def _start_worker(pids: Tensor, paths: Tensor, worker: int) -> None:
    """Runs in a worker, first of all."""
    faulthandler.register(signal.SIGUSR2, file=2)
    # A scheduler that ends a job sends these to all of its processes; the main process decides.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a worker ends with the job's signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    paths[worker] = 0  # of the one before
    pids[worker] = os.getpid()
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr]
    dataset.reading = paths[worker].numpy()


def _obey_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent == os.getppid():
        pass  # of somebody else, while the parent lives
    os._exit(0)


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
        collate_fn=list,  # clips differ in size until the device has resized them
        pin_memory=device.type == "cuda",
    )


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
    ) -> None:
        self.loader = loader
        self.dims = dims
        self.dtype = dtype
        self.device = device
        self.mean = mean
        self.std = std
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        if self.device.type != "cuda":
            while (items := self._next(batches)) is not None:
                yield self._assemble(items)
            return
        stream = torch.cuda.Stream(self.device)
        ready = self._prefetch(batches, stream)
        while ready is not None:
            torch.cuda.current_stream(self.device).wait_stream(stream)
            for tensor in (ready.clips, ready.labels):
                tensor.record_stream(torch.cuda.current_stream(self.device))
            yield ready  # the caller queues its work on the GPU; the next batch is made beside it
            ready = self._prefetch(batches, stream)

    def _prefetch(self, batches: Iterator[list[Clips]], stream: torch.cuda.Stream) -> Batch | None:
        items = self._next(batches)
        if items is None:
            return None
        with torch.cuda.stream(stream):
            return self._assemble(items)

    def _next(self, batches: Iterator[list[Clips]]) -> list[Clips] | None:
        begin = time.perf_counter()
        items = next(batches, None)
        self.waited += time.perf_counter() - begin
        return items

    def _assemble(self, items: list[Clips]) -> Batch:
        read = [item for item in items if item.views]
        clips = [self._clips(item) for item in read]
        labels = torch.tensor([item.label for item in read], dtype=torch.int64).to(self.device, non_blocking=True)
        return Batch(torch.cat(clips) if clips else torch.empty(0, device=self.device), labels, items)

    def _clips(self, item: Clips) -> Tensor:
        frames = render(
            item.frames.to(self.device, non_blocking=True), item.views, self.mean, self.std, item.colour, self.dtype
        )
        clips = gather_clips(frames, torch.from_numpy(item.clip_indices).to(self.device, non_blocking=True))
        return clips if self.dims == 3 else clips.squeeze(2)
