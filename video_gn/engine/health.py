"""What may go wrong in training and is survived, up to a limit: skipped steps and unreadable videos, each named.

A video that crashes a worker or makes it hang ends the run; before the run resumes, the videos in flight are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from video_gn.console import say
from video_gn.data.dataset import open_file
from video_gn.data.decode import NotFetched, VideoError
from video_gn.data.lists import Record, video_path
from video_gn.data.workers import WorkerLost, naming_videos
from video_gn.distributed.world import World
from video_gn.errors import UserError
from video_gn.files.tables import RFC_4180, csv_text

IN_FLIGHT, QUARANTINE = "in_flight.txt", "quarantine.csv"  # in a run's folder


class SkippedSteps:
    """Counts the steps whose loss or gradient was not finite; none of them was applied."""

    def __init__(self, limit: int, world: World) -> None:
        self.limit = limit
        self.world = world
        self.count = 0

    def report(self, step: int, losses: Sequence[Tensor], videos: Sequence[list[str]]) -> None:
        """Name the videos of a skipped step; all ranks call this. Raises UserError beyond the limit.

        Args:
            step: its number, from 1.
            losses: scalars, of each of this rank's micro-batches.
            videos: paths of each of these micro-batches' videos.
        """
        self.count += 1
        mine = list(zip(torch.stack(list(losses)).tolist(), videos, strict=True))
        micro_batches = [each for share in self.world.all_gather(mine) for each in share]
        bad = [each for each in micro_batches if not math.isfinite(each[0])]
        what = f"its loss is {bad[0][0]}" if bad else "its gradient is not finite"
        named = ", ".join(name for _, names in bad or micro_batches for name in names)
        if self.world.is_main:
            say(f"step {step} is not applied, {what}; its videos: {named}")
        if self.count > self.limit:
            raise UserError(
                f"{self.count} steps with a loss or gradient that is not finite, more than train.max_bad_steps "
                f"{self.limit}; lower optim.lr, add optim.warmup_epochs or look at the videos"
            )


class TooManyUnreadable(UserError):
    """More than data.max_unreadable training videos; of several ranks, perhaps this one alone has met it."""


class Unreadable:
    """Collects a run's unreadable videos over all ranks; names each once, on the console and in a file.

    The file holds path, tab, reason. A resumed run counts afresh (a file may have been repaired) but adds no name to
    the file twice.
    """

    def __init__(self, file: Path, limit: int, world: World) -> None:
        self.file = file
        self.limit = limit
        self.world = world
        self.paths: set[str] = set()
        self.pending: dict[str, str] = {}

    def add(self, errors: Iterable[VideoError]) -> None:
        """Note what this rank met; raises UserError when that alone is beyond the limit."""
        for error in errors:
            if error.path not in self.paths:
                self.pending.setdefault(error.path, error.reason)
        if self.pending and (self.world.size == 1 or len(self.paths) + len(self.pending) > self.limit):
            self._name(self.pending, aloud=True)
            self.pending = {}
            self._check()

    def share(self) -> None:
        """Exchange with the other ranks (all must call) and name what is new. Raises on all ranks beyond the limit."""
        shares = self.world.all_gather(self.pending)
        self.pending = {}
        self._name({path: reason for share in shares for path, reason in share.items()}, self.world.is_main)
        self._check()

    def _name(self, errors: dict[str, str], aloud: bool) -> None:
        new = {path: reason for path, reason in errors.items() if path not in self.paths}
        self.paths |= new.keys()
        if not new or not aloud:
            return
        known = self.file.read_text(encoding="utf-8", errors="replace").splitlines() if self.file.exists() else []
        in_file = {line.split("\t")[0] for line in known}
        with self.file.open("a", encoding="utf-8") as file:
            for path, reason in new.items():
                say(f"unreadable training video, its slot goes to the next: {path}: {reason}")
                if path not in in_file:
                    file.write(f"{path}\t{reason}\n")

    def _check(self) -> None:
        if len(self.paths) > self.limit:
            raise TooManyUnreadable(
                f"{len(self.paths)} unreadable training videos, more than data.max_unreadable {self.limit}, such as "
                f"{sorted(self.paths)[0]}; see {self.file}, mend the list or raise the limit"
            )


@contextmanager
def keep_in_flight(folder: Path) -> Iterator[None]:
    """Put this around training: where a worker is lost, the videos that it had in use go into the run's folder."""
    try:
        with naming_videos():
            yield
    except WorkerLost as lost:
        with suppress(OSError), (folder / IN_FLIGHT).open("a", encoding="utf-8", newline="") as file:
            file.write("".join(f"{path}\n" for path in lost.videos))
        raise


def check_in_flight(folder: Path, root: str, decoder: str, seconds: float, world: World) -> None:
    """Decode, on rank 0, what was in flight when this run lost a worker; call it on all ranks before training.

    Each video has a process of its own and `seconds`. The bad ones go into the run's quarantine.csv (path,reason): they
    count as unreadable from now on, until they are deleted from it.
    """
    if world.first((folder / IN_FLIGHT).exists):
        world.first(lambda: _check_in_flight(folder, root, decoder, seconds))


def _check_in_flight(folder: Path, root: str, decoder: str, seconds: float) -> None:
    from video_gn.data.prepare import in_children  # with PyAV, which not every run needs

    text = (folder / IN_FLIGHT).read_bytes().decode("utf-8", "replace")
    paths = sorted(set(text.split("\n")) - {""})
    say(f"{len(paths)} videos were in flight when a worker of this run was lost; checking them")
    calls = [(video_path(Record(path, 0), root), decoder) for path in paths]
    bad = {}
    for index, result in in_children(_decode, calls, None, seconds):
        said = "good"
        if isinstance(result, VideoError):
            said = result.reason
            if not isinstance(result, NotFetched):
                bad[paths[index]] = said
        say(f"{paths[index]}: {said}")
    if bad:
        _add_rows(folder / QUARANTINE, bad)
    (folder / IN_FLIGHT).unlink()


def _decode(path: str, decoder: str) -> None:
    """Decode a video to its end, in a child process."""
    with open_file(path, decoder) as video:
        for _ in video.frames():
            pass


def _add_rows(file: Path, bad: dict[str, str]) -> None:
    header = [] if file.exists() else [("path", "reason")]
    with file.open("a", encoding="utf-8", newline="") as lines:
        lines.write(csv_text([*header, *bad.items()], RFC_4180))
