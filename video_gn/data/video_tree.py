"""Find the videos below a folder, and say what else is there."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from video_gn.data.formats import SUFFIXES
from video_gn.data.list_files import RECORD

KINETICS_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:_(\d{6})_\d{6})?")  # YouTube id, start and end in seconds
UNLISTABLE = re.compile(r"[\n\ud800-\udfff]")  # lone surrogates: the name is not UTF-8
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found"}
MAX_NAMES = 16  # of one folder by links: bounds the walk where links make a maze

HIDDEN_FOLDERS, HIDDEN_FILES = "hidden folders and folders of the system", "hidden files"
OTHER_FILES = "files that are no videos by their suffix"
NO_FILES = "links to nothing and special files"
UNREADABLE_FOLDERS = "folders that cannot be read"
LOOPS = "links to a folder that contains them"
MAZE = f"folders that have more than {MAX_NAMES} names by links"
UNLISTABLE_NAMES = "names that a list cannot hold (not UTF-8, or with a line break)"
NO_SPLIT, NO_CLASS = "videos in no folder of a split", "videos in no folder of a class"
SECOND_NAMES = "second names of a listed video, by links"
UNNAMED = "videos that no list names"


@dataclass(frozen=True)
class Video:
    """A file of the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    youtube_id: str | None = None
    start: int | None = None
    """Seconds, where the file name states it."""
    linked: bool = False
    """Whether the file, or a folder of its path below the root, is a symbolic link."""


@dataclass
class Found:
    """Videos of a folder, sorted by path, and what is no video of it."""

    root: str
    videos: list[Video] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> paths, relative to the folder."""


def find_videos(root: str, ignored: Iterable[str] = ()) -> Found:
    """Find all files with a suffix of a video below ``root``.

    Links are followed, whatever else leads to the same folder, except to a folder that contains the link.

    Args:
        ignored: names of files right below the root that are not reported: the lists themselves.
    """
    found, visits, ignored = Found(root), Counter[tuple[int, int]](), {*ignored, RECORD}
    show = sys.stderr.isatty()
    pending = deque([("", _parents(root), False)])
    while pending:
        below, parents, linked = pending.popleft()
        try:
            identity = _identity(os.path.join(root, below))
            with os.scandir(os.path.join(root, below)) as scan:
                entries = list(scan)
        except OSError as error:
            found.left_out[UNREADABLE_FOLDERS].append(f"{below or root} ({error.strerror})")
            continue
        visits[identity] += 1
        if identity in parents or visits[identity] > MAX_NAMES:
            found.left_out[LOOPS if identity in parents else MAZE].append(below)
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            by_link = linked or entry.is_symlink()
            kind = _kind(entry)
            if kind == "folder":
                # Own folders first: of a maze of links, what is left out is then a second name.
                (pending.append if by_link else pending.appendleft)((path, parents | {identity}, by_link))
            elif kind is None:
                found.videos.append(_video(path, entry.name, by_link))
            elif path not in ignored:
                found.left_out[kind].append(path)
        if show:
            print(f"\r{len(found.videos):,} videos", end="", file=sys.stderr, flush=True)
    if show:
        print(file=sys.stderr)
    found.videos.sort(key=lambda video: video.path)
    for paths in found.left_out.values():
        paths.sort()
    return found


def _parents(root: str) -> frozenset[tuple[int, int]]:
    """Return the identities of the folders that contain ``root``."""
    return frozenset(_identity(str(parent)) for parent in Path(os.path.realpath(root)).parents)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Return "folder", None for a video, or the reason to leave the entry out."""
    hidden = entry.name.startswith(".") or entry.name.casefold() in SYSTEM
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_folder:
        return HIDDEN_FOLDERS if hidden else "folder"
    if not is_file:
        return NO_FILES
    if hidden:
        return HIDDEN_FILES
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return OTHER_FILES
    return UNLISTABLE_NAMES if UNLISTABLE.search(entry.path) else None


def _video(path: str, name: str, linked: bool) -> Video:
    match = KINETICS_NAME.fullmatch(os.path.splitext(name)[0])
    start = int(match[2]) if match and match[2] else None
    return Video(path, match[1] if match else None, start, linked)


def plain(name: str) -> str:
    """Return a name with composed letters (NFC): a Mac writes "é" as two characters (NFD), others as one."""
    return unicodedata.normalize("NFC", name)
