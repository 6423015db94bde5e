"""The split of an epoch over steps, passes and ranks, and batches against torchvision's arithmetic."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from tests.helpers import HANG, children, is_running, session, wait_until
from video_gn.data import workers as workers_module
from video_gn.data.augment import Flip
from video_gn.data.dataset import Clips, TestClips, TrainBatches, TrainClips, ValClips
from video_gn.data.decode import VideoError
from video_gn.data.lists import Record
from video_gn.data.loader import Batch, DeviceBatches, Loader, _loader, eval_loader, train_loader
from video_gn.data.sampling import ClipSpec, View
from video_gn.data.workers import WorkerLost, naming_videos
from video_gn.errors import UserError
from video_gn.files.children import call_in_child
from video_gn.limits import Space

ROOT = Path(__file__).parent.parent
RULE = settings(max_examples=50, deadline=None)
CPU = torch.device("cpu")
TestClips.__test__ = False  # type: ignore[attr-defined]
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.225, 0.25)
Key = tuple[int, int]


def passes(
    steps: range, steps_per_epoch: int, clips_per_gpu: int, global_batch: int, rank: int = 0, ranks: int = 1
) -> list[list[Key]]:
    sampler = TrainBatches(
        steps_per_epoch,
        steps.start,
        steps.stop,
        clips_per_gpu=clips_per_gpu,
        global_batch=global_batch,
        rank=rank,
        ranks=ranks,
    )
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def test_passes_by_hand() -> None:
    """Two steps an epoch of 8 clips, 2 a pass: rank 1 of 2 has the passes 1 and 3."""
    assert passes(range(1, 3), 2, 2, 8, rank=1, ranks=2) == [
        [(0, 10), (0, 11)],
        [(0, 14), (0, 15)],
        [(1, 2), (1, 3)],
        [(1, 6), (1, 7)],
    ]
    assert passes(range(1), 5, 4, 8) == [[(0, 0), (0, 1), (0, 2), (0, 3)], [(0, 4), (0, 5), (0, 6), (0, 7)]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
@RULE
def test_the_ranks_share_each_step_exactly(
    clips: int, passes_a_rank: int, ranks: int, per_epoch: int, first: int, count: int
) -> None:
    """Over all ranks, step s takes each position of [r B, (r + 1) B) of its epoch once, r its number in the epoch."""
    batch = clips * passes_a_rank * ranks
    steps = range(first, first + count)
    shares = [passes(steps, per_epoch, clips, batch, rank, ranks) for rank in range(ranks)]
    assert [len(share) for share in shares] == [count * passes_a_rank] * ranks
    for i, step in enumerate(steps):
        mine = slice(i * passes_a_rank, (i + 1) * passes_a_rank)
        taken = [key for share in shares for one in share[mine] for key in one]
        place = step % per_epoch * batch
        assert sorted(taken) == [(step // per_epoch, place + j) for j in range(batch)]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9))
@RULE
def test_the_same_clips_meet_whatever_the_ranks(clips: int, factor: int, per_epoch: int, first: int) -> None:
    """The sets of a forward pass, and the order of clips in each, for 1, 2 and 4 ranks."""
    batch = clips * 4 * factor
    met = []
    for ranks in (1, 2, 4):
        each = [passes(range(first, first + 3), per_epoch, clips, batch, rank, ranks) for rank in range(ranks)]
        # round r of accumulation runs one pass on each rank at a time
        met.append([share[r] for r in range(len(each[0])) for share in each])
        assert all(len(one) == clips for one in met[-1])
    assert met[0] == met[1] == met[2]


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.integers(1, 4), st.integers(0, 8))
@RULE
def test_a_resume_goes_on_where_the_run_was(
    clips: int, passes_a_rank: int, ranks: int, per_epoch: int, done: int
) -> None:
    batch = clips * passes_a_rank * ranks
    for rank in range(ranks):
        whole = passes(range(8), per_epoch, clips, batch, rank, ranks)
        assert passes(range(done, 8), per_epoch, clips, batch, rank, ranks) == whole[done * passes_a_rank :]


def test_nothing_is_left_to_do() -> None:
    assert passes(range(4, 4), 2, 2, 8) == []


class Indices(Dataset):
    """Items are their own keys."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7))
@RULE
def test_each_video_is_evaluated_once(videos: int, ranks: int, per_batch: int) -> None:
    """Odd counts and more ranks than videos included: no padding, no double."""
    seen: list[int] = []
    for rank in range(ranks):
        batches = list(eval_loader(Indices(videos), per_batch, 0, CPU, rank, ranks))  # type: ignore[arg-type]
        mine = [index for batch in batches for index in batch]
        assert mine == list(range(rank, videos, ranks))
        assert all(len(batch) == per_batch for batch in batches[:-1])
        assert all(0 < len(batch) <= per_batch for batch in batches)
        seen += mine
    assert sorted(seen) == list(range(videos))


def test_eval_loaders_know_their_length() -> None:
    lengths = [len(eval_loader(Indices(7), 2, 0, CPU, rank, 3)) for rank in range(3)]  # type: ignore[arg-type]
    assert lengths == [2, 1, 1]
    assert len(eval_loader(Indices(2), 4, 0, CPU, 3, 4)) == 0  # type: ignore[arg-type]


class Processes(Indices):
    """Items are the ids of the processes that read them."""

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_workers_are_processes() -> None:
    def readers(workers: int) -> set[int]:
        loader = eval_loader(Processes(8), 1, workers, CPU, 0, 1)  # type: ignore[arg-type]
        return {pid for batch in loader for pid in batch}

    assert readers(0) == {os.getpid()}
    assert len(readers(2) - {os.getpid()}) == 2


def item_of(index: int, seed: int = 0, clips: int = 1) -> Clips:
    """A cut of its own size, one view of random place and flip, frames wanted in any order and again."""
    rng = np.random.default_rng((seed, index))
    height, width = rng.integers(12, 30, 2).tolist()
    view = View((1, 2, height - 3, width - 5), 8, 8)
    flip = bool(rng.integers(2))
    frames = torch.from_numpy(rng.integers(0, 256, (5, height, width, 3), dtype=np.uint8))
    return Clips(index, 100 + index, frames, rng.integers(0, 5, (clips, 4)), [view], changes=((Flip(0.5), flip),))


def unreadable(index: int) -> Clips:
    empty = torch.empty(0, 0, 0, 3, dtype=torch.uint8)
    none = np.empty((0, 4), dtype=np.int64)
    return Clips(index, 100 + index, empty, none, [], (VideoError(f"{index}.mp4", "empty file (0 bytes)"),))


def reference(item: Clips) -> Tensor:
    """The clips of an item by torchvision: (K, 3, T, H, W)."""
    (view,) = item.views
    images = item.frames.permute(0, 3, 1, 2).float() / 255
    images = tv.resized_crop(images, *view.box, [view.height, view.width], antialias=True)
    images = tv.normalize(tv.hflip(images) if item.changes[0][1] else images, list(MEAN), list(STD))
    return images[torch.from_numpy(item.clip_indices)].transpose(1, 2)


def check_batches(batches: list[Batch], lists: list[list[Clips]], device: torch.device) -> None:
    assert len(batches) == len(lists)
    for batch, items in zip(batches, lists, strict=True):
        read = [item for item in items if item.views]
        assert [item.index for item in batch.items] == [item.index for item in items]
        assert batch.targets.tolist() == [item.target for item in read]
        assert batch.targets.dtype == torch.int64
        assert len(batch.clips) == len(read)
        assert batch.clips.device.type == batch.targets.device.type == device.type
        assert batch.clips.dtype == torch.float32
        if read:
            assert batch.clips.shape == (len(read), 3, 4, 8, 8)
            assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)
            expected = torch.cat([reference(item) for item in read])
            torch.testing.assert_close(batch.clips.cpu(), expected, rtol=0, atol=2e-5)


LISTS = [
    [item_of(0), item_of(1), item_of(2)],
    [item_of(3)],
    [unreadable(4), item_of(5), unreadable(6)],  # some cannot be read: their labels go too
    [unreadable(7), unreadable(8)],
    [item_of(9), item_of(10)],
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", range(6))
def test_batches_on_the_device(device: str, count: int) -> None:
    """Each batch once and in order, clips with their own labels, an empty batch where nothing could be read."""
    batches = DeviceBatches(LISTS[:count], torch.device(device), MEAN, STD)
    check_batches(list(batches), LISTS[:count], torch.device(device))
    check_batches(list(batches), LISTS[:count], torch.device(device))  # again: as often as it is iterated over


@pytest.mark.parametrize("device", DEVICES)
def test_batches_stay_right_while_they_are_used(device: str) -> None:
    """A batch is not overwritten by those that are made ahead of it."""
    lists = [[item_of(i), item_of(i + 1)] for i in range(0, 24, 2)]
    kept = []
    for batch in DeviceBatches(lists, torch.device(device), MEAN, STD):
        kept.append(batch)
        assert torch.isfinite(batch.clips).all()
    check_batches(kept, lists, torch.device(device))


def test_a_batch_holds_all_clips_of_an_item() -> None:
    item = item_of(3, clips=3)
    (batch,) = DeviceBatches([[item, item_of(4)]], CPU, MEAN, STD)
    torch.testing.assert_close(batch.clips, torch.cat([reference(item), reference(item_of(4))]), rtol=0, atol=2e-5)


def test_an_error_of_the_loader_is_not_swallowed() -> None:
    def broken() -> Iterator[list[Clips]]:
        yield LISTS[0]
        raise RuntimeError("a worker died")

    batches = iter(DeviceBatches(broken(), CPU, MEAN, STD))
    assert len(next(batches).targets) == 3
    with pytest.raises(RuntimeError, match="a worker died"):
        next(batches)


def test_time_spent_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes 1 s in the loader and none elsewhere: 2 batches and the end are 3 s."""
    now = [0.0]
    monkeypatch.setattr("video_gn.data.loader.time.perf_counter", lambda: now[0])

    class Slow:
        def __iter__(self) -> Iterator[list[Clips]]:
            for items in LISTS[:2]:
                now[0] += 1
                yield items
            now[0] += 1

    batches = DeviceBatches(Slow(), CPU, MEAN, STD)
    assert batches.waited == 0
    for _ in batches:
        now[0] += 100  # the step's own time
    assert batches.waited == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of moving noise, one of them broken."""
    av = pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for n in range(7):
        with av.open(str(folder / f"{n}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr0"
            for image in rng.integers(0, 256, (9 + n, 40, 48, 3), dtype=np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    (folder / "7.mkv").write_bytes(b"not a video")
    return folder


SPEC = ClipSpec(frames=4, stride=2, crop=32, short_side=(36, 48), augmentations=(Flip(0.5),))
RECORDS = [Record(f"{n}.mkv", n) for n in range(8)]


def test_worker_processes_change_nothing(folder: Path) -> None:
    """Two epochs of training passes and an evaluation: 0 and 2 workers give the same batches in the same order."""
    train = TrainClips(RECORDS, str(folder), "pyav", SPEC, seed=0, max_unreadable=3)
    val = ValClips(RECORDS, str(folder), "pyav", SPEC, seed=0)
    steps = TrainBatches(2, 0, 4, clips_per_gpu=2, global_batch=4)

    def batches(workers: int) -> list[Batch]:
        loaders = (train_loader(train, steps, workers, CPU), eval_loader(val, 3, workers, CPU, 0, 1))
        return [batch for loader in loaders for batch in DeviceBatches(loader, CPU, MEAN, STD)]

    alone, helped = batches(0), batches(2)
    assert [len(batch.items) for batch in alone] == [2] * 8 + [3, 3, 2]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(one.targets, other.targets)
        reports = [
            [(item.index, [(e.path, e.reason) for e in item.unreadable]) for item in batch.items]
            for batch in (one, other)
        ]
        assert reports[0] == reports[1]
    # labels are the videos' own: label n is video n
    assert all(item.target == item.index for batch in alone for item in batch.items)
    # an epoch takes each position once; the broken video's slot goes to another
    for epoch in (alone[:4], alone[4:8]):
        indices = [item.index for batch in epoch for item in batch.items]
        assert len(indices) == 8
        assert set(indices) == set(range(7))
        assert sum(len(item.unreadable) for batch in epoch for item in batch.items) == 1
    assert [item.index for batch in alone[8:] for item in batch.items] == list(range(8))
    assert [len(batch.targets) for batch in alone[8:]] == [3, 3, 1]


def test_the_ranks_together_see_the_clips_of_one(folder: Path) -> None:
    """Pixels too: what rank r of 2 gets is what one rank gets in its passes r, r + 2, ..."""
    train = TrainClips(RECORDS[:7], str(folder), "pyav", SPEC, seed=0, max_unreadable=3)

    def clips(rank: int, ranks: int) -> list[Tensor]:
        steps = TrainBatches(1, 3, 5, clips_per_gpu=2, global_batch=4, rank=rank, ranks=ranks)
        return [b.clips for b in DeviceBatches(train_loader(train, steps, 0, CPU), CPU, MEAN, STD)]

    one, (first, second) = clips(0, 1), (clips(0, 2), clips(1, 2))
    assert len(one) == 4
    assert all(torch.equal(a, b) for a, b in zip(one[0::2], first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one[1::2], second, strict=True))


def test_several_clips_of_a_video_in_a_batch(folder: Path) -> None:
    """Two a video: the same batches from 0 and 2 workers and by 2 ranks; a label for each clip; one decode for both."""
    train = TrainClips(RECORDS[:7], str(folder), "pyav", SPEC, seed=0, max_unreadable=3, clips_per_video=2)

    def batches(workers: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
        steps = TrainBatches(1, 0, 4, clips_per_gpu=2, global_batch=4, rank=rank, ranks=ranks)
        return list(DeviceBatches(train_loader(train, steps, workers, CPU), CPU, MEAN, STD))

    alone = batches(0)
    assert len(alone) == 8
    for batch in alone:
        assert len(batch.clips) == len(batch.items) == 2
        assert batch.targets.tolist() == [item.index for item in batch.items]
        assert batch.items[0].index == batch.items[1].index
        assert not torch.equal(batch.clips[0], batch.clips[1])
        expected = torch.cat([reference(item) for item in batch.items])
        torch.testing.assert_close(batch.clips, expected, rtol=0, atol=2e-5)
    assert len({batch.items[0].index for batch in alone[:4]}) == 4  # two epochs of 4 clips
    others = (batches(2), [b for pair in zip(batches(0, 0, 2), batches(0, 1, 2), strict=True) for b in pair])
    for other in others:
        for one, two in zip(alone, other, strict=True):
            assert torch.equal(one.clips, two.clips)
            assert torch.equal(one.targets, two.targets)


def test_a_training_loader_keeps_its_workers() -> None:
    """One loader, one set of processes, for all epochs."""
    steps = TrainBatches(1, 0, 6, clips_per_gpu=2, global_batch=4)
    batches = list(train_loader(Processes(4), steps, 2, CPU))  # type: ignore[arg-type]
    assert len(batches) == 12
    assert len({pid for batch in batches for pid in batch} - {os.getpid()}) == 2


def test_a_mistake_that_a_worker_finds_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind of loader: torch would give the worker's traceback as the error's text."""
    pytest.importorskip("fsspec")
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # what torch waits for workers' end
    copies = folder / "0.mkv" / "copies"
    monkeypatch.setenv("VIDEO_GN_COPIES", str(copies))
    root = f"file://{folder}"
    train = TrainClips(RECORDS, root, "pyav", SPEC, seed=0, max_unreadable=3)
    val = ValClips(RECORDS, root, "pyav", SPEC, seed=0)
    test = TestClips(RECORDS, root, "pyav", SPEC, views="center", clips=1, clip_starts="uniform", short_side=32)
    steps = TrainBatches(2, 0, 4, clips_per_gpu=2, global_batch=4)
    for loader in (train_loader(train, steps, 1, CPU), *(eval_loader(each, 1, 1, CPU, 0, 1) for each in (val, test))):
        with pytest.raises(UserError) as caught:
            next(iter(loader))
        expected = f"{copies}: cannot make the folder (Not a directory); correct VIDEO_GN_COPIES, or unset it"
        assert str(caught.value) == expected


# ---- lost workers ----


class Deadly(ValClips):
    """Video 3 does something to the process that reads it."""

    def __init__(self, what: str, videos: int = 9) -> None:
        super().__init__([Record(f"sub/vidéo {n}.mp4", 0) for n in range(videos)], "/data", "pyav", SPEC, seed=0)
        self.what = what

    def __getitem__(self, index: int) -> Clips:
        with self._open(index):
            if index == 3:
                getattr(self, self.what)()
        if self.reading is not None:
            self._note("")
        return index  # type: ignore[return-value]

    def is_killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def crashes(self) -> None:
        ctypes.string_at(0)

    def exits(self) -> None:
        os._exit(3)

    def hangs(self) -> None:
        time.sleep(1000)

    def hangs_in_c(self) -> None:
        ctypes.CDLL(None).sleep(1000)

    def hangs_with_the_lock(self) -> None:
        """No thread and no signal handler of Python's runs."""
        ctypes.PyDLL(None).sleep(1000)

    def is_stopped(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def raises(self) -> None:
        raise RuntimeError("a bug")

    def reads(self) -> None:
        pass


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No files are needed, and a worker that hangs is given up at once."""
    gc.collect()  # loaders of tests before, whose dead workers torch would tell of again
    monkeypatch.setattr("video_gn.data.dataset.open_video", lambda path, decoder: nullcontext())
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(workers_module, "GRACE", 1.0)


def loader_of(what: str, timeout: float = HANG) -> Loader:
    return eval_loader(Deadly(what), 1, 2, CPU, 0, 1, timeout)


def started(loader: Loader) -> list[int]:
    """The two workers, when both are at work."""
    wait_until(lambda: len(loader.workers.in_use()) == 2)
    return list(loader.workers.in_use())


HANGS = ["hangs", "hangs_in_c", "hangs_with_the_lock", "is_stopped"]


@pytest.mark.parametrize("what", ["is_killed", "crashes", "exits", *HANGS])
def test_a_lost_worker_ends_the_loop_and_names_its_video(
    what: str, nothing_opens: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A hang also leaves the stack of each worker on stderr."""
    loader = loader_of(what)
    batches = iter(loader)
    with pytest.raises(WorkerLost) as caught:
        next(batches)  # of the worker that does not hang: what the other one read may not be sent any more
        wait_until(lambda: what not in HANGS or "sub/vidéo 3.mp4" in loader.workers.in_use().values())
        batches.gi_frame.f_locals["batches"]._timeout = 1  # a hang is what is there now; a start may take longer
        list(batches)
    assert not [pid for pid in loader.workers.in_use() if is_running(pid)]
    assert caught.value.videos == ["sub/vidéo 3.mp4"]
    message = str(caught.value)
    assert message.startswith("DataLoader ") and "; in flight: sub/vidéo 3.mp4; start again" in message
    if what in HANGS:
        assert "timed out after 1 seconds" in message
    if what.startswith("hangs"):
        error = capfd.readouterr().err
        assert error.count("Current thread") == 2 and f" in {what}\n" in error
        assert ", sub/vidéo 3.mp4, is at:" in error and ", no video, is at:" in error


def test_a_death_while_the_main_process_computes(nothing_opens: None) -> None:
    """torch raises it there, where no batch is waited for; naming_videos around it all still knows the video."""
    with pytest.raises(WorkerLost) as caught, naming_videos():
        for _ in loader_of("is_killed"):
            time.sleep(HANG)  # ended by torch's signal handler
    assert caught.value.videos == ["sub/vidéo 3.mp4"]


def test_another_error_is_left_as_it_is(nothing_opens: None) -> None:
    """Of a worker and of the loop's body; the next loader works."""
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker process"):
        list(loader_of("raises"))
    with pytest.raises(RuntimeError, match="CUDA"), naming_videos():
        for _ in loader_of("reads"):
            raise RuntimeError("CUDA error")
    assert [index for (index,) in loader_of("reads")] == list(range(9))


def test_workers_heed_no_signal_but_their_parents(nothing_opens: None) -> None:
    """A scheduler that preempts a job signals all of its processes; the main one finishes its step and ends them."""
    loader = loader_of("reads")
    batches = iter(loader)
    indices = [next(batches)[0]]
    workers = started(loader)
    subprocess.run(["kill", "-s", "TERM", *map(str, workers)], check=True)
    subprocess.run(["kill", "-s", "USR1", *map(str, workers)], check=True)
    indices += [index for (index,) in batches]
    assert indices == list(range(9))


@pytest.mark.parametrize("what", HANGS)
def test_a_hung_worker_ends_with_the_loader(what: str, nothing_opens: None) -> None:
    loader = loader_of(what)
    batches = iter(loader)
    next(batches)
    workers = started(loader)
    wait_until(lambda: "sub/vidéo 3.mp4" in loader.workers.in_use().values())
    del batches
    assert not [pid for pid in workers if is_running(pid)]


def run_of(what: str) -> BaseProcess:
    """Start a process that reads, and leads a session by which its workers are found when it is gone."""

    def lead() -> None:
        os.setsid()
        for _ in loader_of(what):
            time.sleep(HANG)

    process = multiprocessing.get_context("fork").Process(target=lead)
    process.start()
    return process


@pytest.mark.parametrize("what", ["reads", *HANGS])
def test_no_worker_outlives_a_killed_run(what: str, nothing_opens: None) -> None:
    run = run_of(what)
    assert run.pid is not None
    wait_until(lambda: len(session(run.pid)) == 3)
    run.kill()
    run.join()
    wait_until(lambda: not session(run.pid))


@pytest.mark.parametrize("late", [0, 0.5])
def test_no_worker_outlives_a_run_that_is_killed_at_the_fork(
    late: float, nothing_opens: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the workers have asked who their parent is: by chance, and for certain."""
    begin = workers_module._start_worker

    def begin_late(*arguments: Any) -> None:
        time.sleep(late)
        begin(*arguments)

    monkeypatch.setattr(workers_module, "_start_worker", begin_late)
    for number in [1, 2] if late else [1, 1, 1, 2, 2, 2]:
        run = run_of("reads")
        assert run.pid is not None
        wait_until(lambda pid=run.pid, number=number: len(children(pid)) == number)
        run.kill()
        run.join()
        wait_until(lambda pid=run.pid: not session(pid))


def test_a_run_that_fails_beside_a_hung_worker_ends() -> None:
    """The error is raised where no batch is waited for, and keeps the loader alive to the interpreter's end."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from contextlib import nullcontext\nfrom tests.test_loader import loader_of, wait_until\n"
        "from video_gn import cli\nfrom video_gn.data import dataset\nfrom video_gn.errors import UserError\n"
        "dataset.open_video = lambda path, decoder: nullcontext()\n"
        "def main():\n"
        "    global batches\n"
        "    loader = loader_of('hangs_with_the_lock')\n"
        "    batches = iter(loader)\n"
        "    next(batches)\n"
        "    wait_until(lambda: 'sub/vidéo 3.mp4' in loader.workers.in_use().values())\n"
        "    raise UserError('a mistake')\n"
        "cli.run(main)\n"
    )
    command = [sys.executable, "-c", script, str(ROOT)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        _, error = run.communicate(timeout=HANG)
    assert (run.returncode, error) == (2, "error: a mistake\n")
    assert not session(run.pid)


def test_no_video_is_in_use_between_reads(nothing_opens: None) -> None:
    loader = loader_of("reads")
    batches = iter(loader)
    for _ in range(9):
        next(batches)
    started(loader)
    assert list(loader.workers.in_use().values()) == ["", ""]


def test_the_main_process_needs_no_timeout() -> None:
    """Without workers, torch takes none."""
    assert list(eval_loader(Indices(3), 1, 0, CPU, 0, 1, 5.0)) == [[0], [1], [2]]  # type: ignore[arg-type, comparison-overlap]


# ---- too little shared memory, too few open files ----


class Still(Indices):
    """Batches of 64 x 64 clips; every number of them is an open file on its way."""

    def __getitem__(self, index: int) -> Clips:
        return item_of(index)


def read_with(files: tuple[int, int], workers: int = 2) -> int:
    """The number of batches of 24 clips that are read under this limit, (soft, hard), above the files open now."""
    present = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (present + files[0], present + files[1]))
    return len(list(eval_loader(Still(240), 24, workers, CPU, 0, 1)))  # type: ignore[arg-type]


def test_open_files_are_raised_to_the_hard_limit() -> None:
    assert call_in_child(read_with, (12, 3000)) == 10


@pytest.mark.parametrize("files", [2, 8, 12, 20, 30, 40])
def test_too_few_open_files_are_named(files: int) -> None:
    """Whether it is the main process or a worker that has none left, and at its start or later."""
    with pytest.raises(UserError, match=r"too many open files: the limit is \d+ per process.* the hard limit is \d+"):
        call_in_child(read_with, (files, files))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_is_not_to_blame_for_too_few_open_files(workers: int) -> None:
    class Unopened(Indices):
        def __getitem__(self, index: int) -> Clips:
            error = VideoError("a.mp4", "[Errno 24] Too many open files: 'a.mp4'")
            return replace(unreadable(index), unreadable=(error,))

    with pytest.raises(UserError, match="too many open files: the limit is"):
        list(eval_loader(Unopened(3), 1, workers, CPU, 0, 1))  # type: ignore[arg-type]


def read_with_shared_memory(size: str) -> int | None:
    """The number of batches of 60 clips that are read with a /dev/shm of this size; None where none can be mounted."""
    if ctypes.CDLL(None).unshare(0x00020000):  # CLONE_NEWNS: mounts of its own
        return None
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
    return len(list(eval_loader(Still(240), 60, 2, CPU, 0, 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["4k", "20k", "200k"])
def test_a_small_shared_memory_is_named(size: str) -> None:
    """Docker's 64 MiB, in small: full from the start, or with the first batch; not after minutes of nothing."""
    with pytest.raises(UserError) as caught:
        if call_in_child(read_with_shared_memory, size) is None:
            pytest.skip("no mount namespaces here")
    message = str(caught.value)
    assert message.startswith("too little shared memory") and " MiB are free in /dev/shm" in message
    assert "--shm-size=16g or --ipc=host" in message and "data.workers=0" in message


def test_room_for_what_is_prepared_ahead_is_compared(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """4 clips of 1,000 bytes each, of 2 workers with 2 batches each, on 8 ranks of this machine: 128,000 bytes."""
    item = replace(item_of(0), frames=torch.zeros(1, 10, 100, 1, dtype=torch.uint8))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    loader = _loader(Still(8), [[0]], 2, CPU, 60)  # type: ignore[arg-type]
    loader._compare([item] * 4, Space(128_000, 1 << 30))
    assert capfd.readouterr().err == ""
    loader._compare([item] * 4, Space(127_999, 1 << 30))
    assert (
        "warning: /dev/shm has 0.1 MiB free, and the batches of 8 x 2 workers can take 0.1 MiB"
        in capfd.readouterr().err
    )
    monkeypatch.setenv("LOCAL_RANK", "1")  # rank 0 has said it
    loader._compare([item] * 4, Space(0, 1 << 30))
    assert capfd.readouterr().err == ""
