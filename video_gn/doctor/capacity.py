"""The machine's limits: shared memory, open files, memory and cores, against what a run takes."""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from video_gn import limits
from video_gn.doctor.check import Line, Target
from video_gn.doctor.folders import sample_files
from video_gn.errors import UserError
from video_gn.limits import GIB, size_text

if TYPE_CHECKING:
    from video_gn.config import Config

TYPICAL_VIDEO = (256, 340, 300)  # height, width, frames, where no video can be read: Kinetics at short side 256
SHM_REMEDY = f"{limits.SHARED_MEMORY_REMEDY[:1].upper()}{limits.SHARED_MEMORY_REMEDY[1:]}."


class Loading(NamedTuple):
    """What the decoding workers of all local ranks take."""

    ranks: int
    workers: int
    """Of one rank."""
    shared: int
    """Bytes in shared memory."""
    files: int
    """Open files of one process."""
    about: str
    """The video that was assumed."""

    @property
    def crew(self) -> str:
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'} x {self.workers} workers"


def machine(target: Target) -> Iterator[Line]:
    """Judge shared memory, open files, memory and cores against what the config's workers need."""
    loading = None if target.config is None else _loading(target, target.config)
    if (space := limits.shared_memory()) is not None:
        yield shared_memory_line(space.free, loading)
    yield open_files_line(*resource.getrlimit(resource.RLIMIT_NOFILE), loading)
    group = cgroup_limits()
    kib = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text())}
    available, total = (min(1024 * kib[key], group.memory) for key in ("MemAvailable", "MemTotal"))
    yield memory_line(available, total, loading)
    yield cores_line(min(len(os.sched_getaffinity(0)), group.cores), loading)


def _loading(target: Target, config: Config) -> Loading:
    import torch

    from video_gn.data.decode import VideoError, open_video
    from video_gn.data.images import ImageReader

    ranks = 1 if config.device == "cpu" else max(torch.cuda.device_count(), 1)
    size, about = TYPICAL_VIDEO, "assumed {} x {}, {} frames"
    images = config.data.kind == "images"
    for path in sample_files(target)[:3] if target.data.is_dir() else []:
        with suppress(VideoError, UserError), ImageReader(str(path)) if images else open_video(path, "pyav") as video:
            size, about = (video.height, video.width, video.num_frames), f"{path.name}: {{}} x {{}}, {{}} frames"
            break
    return loading(config, ranks, *size, about.format(*size))


def loading(config: Config, ranks: int, height: int, width: int, num_frames: int, about: str = "") -> Loading:
    """Return what workers take for videos of one size.

    While a training run evaluates, it has two loaders, each 2 batches ahead.
    """
    import numpy as np

    from video_gn.data.sampling import area_reduction, clip_indices, cut, eval_views, reduction, uniform_starts

    data, test = config.data, config.test
    clip_frames = 1 if data.stride == 0 else min(data.frames, num_frames)
    if data.area is not None:
        clip = clip_frames * 3 * height * width // area_reduction(height, width, data.crop, data.area) ** 2
    else:
        side = min(height, width) * data.crop / data.short_side[0] / reduction(height, width, data.short_side[1])
        clip = clip_frames * 3 * int(side * side)
    starts = uniform_starts(num_frames, data.frames, data.stride, test.clips, test.clip_starts)
    wanted = np.unique([clip_indices(start, data.frames, data.stride, num_frames) for start in starts])
    k = reduction(height, width, test.short_side)
    (_, _, box_height, box_width), _ = cut(eval_views(test.views, height // k, width // k, data.crop, test.short_side))
    clips = 2 * data.workers * 2 * config.train.clips_per_gpu
    shared = max(clips * clip, data.workers * len(wanted) * 3 * box_height * box_width)
    return Loading(ranks, data.workers, ranks * shared, 256 + clips, about)


def shared_memory_line(free: int, loading: Loading | None) -> Line:
    """Judge /dev/shm, through which workers hand over their clips; Docker's default is 64 MiB."""
    text = f"{size_text(free)} free in /dev/shm"
    if loading is None:
        return Line("ok" if free >= GIB else "warning", "shared memory", text, "" if free >= GIB else SHM_REMEDY)
    text += f", {loading.crew} take up to {size_text(loading.shared)} ({loading.about})"
    if free < loading.shared:
        return Line("error", "shared memory", text, SHM_REMEDY)
    return Line("ok", "shared memory", text)


def open_files_line(soft: int, hard: int, loading: Loading | None) -> Line:
    """Judge the limit of open files: a clip on its way from a worker holds one. All of them at once are rare."""
    need = 4096 if loading is None else loading.files
    soft, hard = (2**63 if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    text = "no limit" if soft == 2**63 else f"limit {soft:,}"
    raised = min(hard, limits.OPEN_FILES)
    if soft < raised:
        text += f", which a run raises to {raised:,}"
    text += "" if loading is None else f"; a run takes up to about {need:,}"
    if max(soft, raised) >= need:
        return Line("ok", "open files", text)
    remedy = f"Run `ulimit -n {need}` in the shell before."
    if hard < need:
        remedy = f"Have the administrator raise the hard limit, {hard:,}, or set data.workers lower."
    return Line("warning", "open files", text, remedy)


def memory_line(available: float, total: float, loading: Loading | None) -> Line:
    """Judge the memory against shared memory and, by rule of thumb, 2 GiB per rank."""
    need = 2 * GIB if loading is None else loading.shared + 2 * GIB * loading.ranks
    text = f"{size_text(available)} of {size_text(total)} available"
    if available < need:
        remedy = "Set data.workers or train.clips_per_gpu lower, or end other programs."
        return Line("warning", "memory", f"{text}, {size_text(need)} are wanted", remedy)
    return Line("ok", "memory", text)


def cores_line(cores: float, loading: Loading | None) -> Line:
    """Judge the cores against the number of decoding processes."""
    text = f"{cores:g} usable"
    if loading is None:
        return Line("ok", "cores", text)
    text += f", {loading.crew} decode"
    if loading.ranks * loading.workers > cores:
        remedy = f"Set data.workers={max(int(cores) // loading.ranks, 1)}: more only take turns."
        return Line("warning", "cores", text, remedy)
    return Line("ok", "cores", text)


class Limits(NamedTuple):
    """Of a control group; infinite where there is none."""

    memory: float
    cores: float


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """Return memory (bytes) and cores that this process' control groups (version 2 or 1) and those above allow."""
    memory, cores = [math.inf], [math.inf]
    for line in own.read_text().splitlines() if own.exists() else []:
        _, kinds, path = line.split(":", 2)
        top = root / kinds if kinds else root
        group = top / path.strip("/")
        for place in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
            memory += _read_numbers(place / ("memory.limit_in_bytes" if kinds else "memory.max"))[:1]
            if kinds:
                quota = _read_numbers(place / "cpu.cfs_quota_us") + _read_numbers(place / "cpu.cfs_period_us")
            else:
                quota = _read_numbers(place / "cpu.max")
            if len(quota) == 2 and quota[0] > 0:
                cores.append(quota[0] / quota[1])
    return Limits(min(memory), min(cores))


def _read_numbers(path: Path) -> list[float]:
    """Return the numbers of a control group's file; "max" is infinite."""
    try:
        return [math.inf if word == "max" else float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
