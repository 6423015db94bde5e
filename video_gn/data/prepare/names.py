"""A list of videos, the names of their prepared files, and the list of those."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from video_gn.data.lists import KINETICS_COLUMNS, Record, find_list, read_list, video_path
from video_gn.data.targets import parse_several
from video_gn.errors import UserError
from video_gn.files.atomic import fitting_name
from video_gn.files.tables import foreign_table


def read_records(list_path: str, root: str) -> tuple[Path, list[Record]]:
    """Return the list's own path and its records. Labels are not looked at, so they get no range and no class names."""
    file = find_list(list_path, root)
    names: set[str] = set()
    with suppress(UserError), foreign_table(file, "") as table:
        if KINETICS_COLUMNS.issubset(table.fieldnames or ()):  # its labels are names
            names = {(row["label"] or "").strip() for row in table}
    parse = partial(parse_several, num_classes=10**18)
    return file, read_list(str(file), root, 10**18, sorted(names), absolute_paths=True, parse=parse)


@dataclass(frozen=True, slots=True)
class Video:
    """One video to prepare."""

    source: str
    """Its file, as it is opened."""
    name: str
    """The same for all ways to write its path: relative to the root, absolute outside of it."""
    path: str
    """Of the prepared file, relative to the folder of prepared files."""


def plan(records: Sequence[Record], root: str) -> list[Video]:
    """Say where each record's prepared file goes: its own path with the suffix .mp4, always below the folder.

    Outside of the root the complete path is kept. Where only the suffix tells two sources apart, those that are not
    .mp4 keep it before the new one (a.avi.mp4). Two spellings of one path get the same file.

    Raises:
        UserError: two sources would still be one file.
    """
    top = os.path.abspath(root)
    videos = []
    for record in records:
        full = os.path.abspath(os.path.join(top, record.path))
        inside = os.path.commonpath([top, full]) == top
        name = os.path.relpath(full, top) if inside else full
        videos.append(Video(video_path(record, root), name, _as_mp4(os.path.splitext(name.lstrip("/"))[0])))
    sharing = Counter(path for _, path in {(video.name, video.path) for video in videos})
    videos = [
        replace(video, path=_as_mp4(video.name.lstrip("/")))
        if sharing[video.path] > 1 and not video.name.endswith(".mp4")
        else video
        for video in videos
    ]
    taken: dict[str, str] = {}
    for video in videos:
        check_same(video, taken.setdefault(video.path, video.name))
    return videos


def _as_mp4(path: str) -> str:
    """Return the path with .mp4 at its end; a name that would be longer than file systems allow is cut."""
    folder, name = os.path.split(path)
    return os.path.join(folder, fitting_name(name, ".mp4"))


def check_same(video: Video, name: str) -> None:
    """Raise UserError where a prepared file is that of another source, `name`."""
    if name != video.name:
        raise UserError(
            f"{video.name} and {name} would both become {video.path}; rename one, or prepare them into two folders"
        )


def new_list(file: Path, records: Sequence[Record], videos: Sequence[Video], bad: dict[str, str]) -> str:
    """Return the text of the list with the new paths and without the bad videos; all else stays."""
    lines: list[str | None] = list(file.read_bytes().decode("utf-8").split("\n"))
    seen: Counter[str] = Counter()
    for record, video in zip(records, videos, strict=True):
        line = lines[record.line - 1]
        assert line is not None
        # A path may stand once in a list; "./" is another spelling for the second line of the same video.
        path = "./" * seen[video.path] + video.path
        seen[video.path] += 1
        if record.path in bad:
            lines[record.line - 1] = None
        elif path != record.path:
            lines[record.line - 1] = _with_path(line, record.path, path)
    return "\n".join(line for line in lines if line is not None)


def _with_path(line: str, old: str, new: str) -> str:
    """Return a line of a list with another path, quoted where it was or has to be."""
    quoted_old, quoted_new = ('"' + path.replace('"', '""') + '"' for path in (old, new))
    if quoted_old in line:
        return line.replace(quoted_old, quoted_new, 1)
    if old not in line:
        raise UserError(f"{line.strip()!r}: a row of Kinetics' csv cannot name {new!r}; write the list as `path label`")
    return line.replace(old, quoted_new if new[0] in '"# \t' else new, 1)
