"""`loader`: training clips a second, and the CPU time of a clip, from files to float clips on the device."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from video_gn.benchmark import others
from video_gn.benchmark.common import Call, Table, measure
from video_gn.benchmark.videos import Video, find_videos
from video_gn.data.augment import Flip
from video_gn.data.dataset import TrainBatches, TrainClips
from video_gn.data.lists import Record
from video_gn.data.loader import DeviceBatches, train_loader
from video_gn.data.sampling import ClipSpec

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


def rate_of_clips(videos: list[Video], quick: bool, workers: int, device: torch.device) -> float:
    """Return training clips per second on the device, after the workers' start and the first batches."""
    _, batch = _sizes(quick)
    first = 2 * max(workers, 1)  # batches: what the workers may have prepared ahead
    files = list(itertools.islice(itertools.cycle(videos), (first + max(2 * first, 4)) * batch))
    clips, begin = 0, 0.0
    for number, ready in enumerate(_training_clips(files, quick, workers, device)):
        if number == first:
            begin = time.perf_counter()
        clips += len(ready.clips) * (number > first)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clips / (time.perf_counter() - begin)


def _sizes(quick: bool) -> tuple[ClipSpec, int]:
    """Return what a clip is, and the clips of a micro-batch."""
    sizes = (8, 2, 64, (72, 80)) if quick else (32, 2, 224, (256, 320))
    return ClipSpec(*sizes, augmentations=(Flip(0.5),)), 2 if quick else 8


def _training_clips(files: list[Video], quick: bool, workers: int, device: torch.device) -> DeviceBatches:
    """Return the micro-batches of one epoch over the files."""
    spec, batch = _sizes(quick)
    dataset = TrainClips([Record(v.path, 0) for v in files], "", "auto", spec, seed=0, max_unreadable=0)
    steps = len(files) // batch
    batches = TrainBatches(steps, 0, steps, clips_per_gpu=batch, global_batch=batch)
    return DeviceBatches(train_loader(dataset, batches, workers, device), device, MEAN, STD)


def run(*, videos: Path | None, pyslowfast: Path | None, repeats: int, quick: bool, workers: int) -> list[Table]:
    """Time one pass over the videos, workers' start included; CPU time is that of all processes."""
    torch.set_num_threads(1)
    if workers:  # forked, their CPU time is counted as that of this process's children
        multiprocessing.set_start_method("fork", force=True)
    spec, batch = _sizes(quick)
    clips = 2 * batch if quick else 4 * batch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = list(itertools.islice(itertools.cycle(find_videos(videos, quick)), clips))

    def ours() -> int:
        return sum(len(batch.clips) for batch in _training_clips(files, quick, workers, device))

    def theirs(make: Callable[[], Dataset[Any]]) -> int:
        loader = DataLoader(make(), batch, num_workers=workers, pin_memory=device.type == "cuda")
        return sum(len(sample["video"].to(device, non_blocking=True)) for sample in loader)

    transform = others.training_transform(spec.frames, spec.crop, spec.short_side)
    seconds = spec.frames * spec.stride / files[0].fps
    alternatives: dict[str, Call] = {"ours": ours}
    for decoder in ("pyav", "decord"):
        make: Callable[[], Dataset[Any]] = partial(others.labeled_videos, files, seconds, decoder, None, transform)
        alternatives[f"LabeledVideoDataset, {decoder}"] = partial(theirs, make)
    if pyslowfast is not None:
        make = partial(others.SlowFastClips, pyslowfast, files, spec)
        alternatives["PySlowFast, pyav"] = partial(theirs, make)
    samples = measure(alternatives, repeats, what="training clips")
    rate = {name: 1 / min(sample.wall for sample in its) for name, its in samples.items()}
    title = (
        f"training clips {spec.frames} x {spec.stride} at {spec.crop}, batches of {batch}, {workers} workers, a clip"
    )
    return [Table(title, samples, by="cpu", columns={"most clips/s": rate})]
