"""Unreadable training videos: each is named once, and too many end the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from video_gn.console import say
from video_gn.data.decode import VideoError
from video_gn.engine.distributed import World
from video_gn.errors import UserError


class Unreadable:
    """Collects a run's unreadable videos over all ranks; names each once, on the console and in a file.

    The file holds path, tab, reason. A run that goes on counts afresh (a file may have been mended) but adds no name to
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
            self._name(self.pending)
            self.pending = {}
            self._check()

    def share(self) -> None:
        """Exchange with the other ranks (all must call) and name what is new. Raises on all ranks beyond the limit."""
        shares = self.world.all_gather(self.pending)
        self.pending = {}
        self._name({path: reason for share in shares for path, reason in share.items()})
        self._check()

    def _name(self, errors: dict[str, str]) -> None:
        new = {path: reason for path, reason in errors.items() if path not in self.paths}
        self.paths |= new.keys()
        if not new or not self.world.is_main:
            return
        known = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        in_file = {line.split("\t")[0] for line in known}
        with self.file.open("a", encoding="utf-8") as file:
            for path, reason in new.items():
                say(f"unreadable training video, its slot goes to the next: {path}: {reason}")
                if path not in in_file:
                    file.write(f"{path}\t{reason}\n")

    def _check(self) -> None:
        if len(self.paths) > self.limit:
            raise UserError(
                f"{len(self.paths)} unreadable training videos, more than data.max_unreadable {self.limit}, such as "
                f"{sorted(self.paths)[0]}; see {self.file}, mend the list or raise the limit"
            )
