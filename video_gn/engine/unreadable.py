"""Unreadable training videos: each is named once, and too many end the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from video_gn.data.decode import VideoError
from video_gn.engine.writers import say
from video_gn.errors import UserError


class Unreadable:
    """Names each unreadable video once, on the console and in a file (path, tab, reason); counts the different ones.

    A run that goes on counts afresh (a file may have been mended) but adds no name to the file twice.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self.file = file
        self.limit = limit
        self.paths: set[str] = set()
        known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.in_file = {line.split("\t")[0] for line in known}

    def add(self, errors: Iterable[VideoError]) -> None:
        """Raises UserError when more than `limit` different videos could not be read."""
        for error in errors:
            if error.path in self.paths:
                continue
            self.paths.add(error.path)
            say(f"unreadable training video, its slot goes to the next: {error}")
            if error.path in self.in_file:
                continue
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{error.path}\t{error.reason}\n")
        if len(self.paths) > self.limit:
            raise UserError(
                f"{len(self.paths)} unreadable training videos, more than data.max_unreadable {self.limit}; "
                f"see {self.file}, mend the list or raise the limit"
            )
