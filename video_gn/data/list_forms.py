"""Lists in the forms of other programs: which form it is, and what to write instead."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from video_gn.data.formats import IMAGE_SUFFIXES, SUFFIXES

LABEL_FIRST = re.compile(r"(\d+)[ \t]*[ \t,;][ \t]*(.*[^ \t,;\d\"'].*)")
SEMICOLON = re.compile(
    r"(?!.*[ \t,]\"?-?\d[\d.]*[ \t]*;[\d.; \t]*$)(.*[^ \t;])[ \t]*;[ \t]*(\d+)"
)  # and no labels 3;17
QUOTED_LINE = re.compile(r'"([^"]*[^" \t,;])[ \t]*[ \t,;][ \t]*(\d+)"')
ENDS_IN_LABEL = re.compile(r"[ \t,;]-?\d+$")
MORE_NUMBERS = re.compile(r"""([ \t,;]+["']?-?\d+(\.\d+)?["']?)+$""")
INDEX = re.compile(r"""["']?\d+["']?[ \t,;]+""")
MAX_REPAIRS, MAX_TRIED = 3, 500


def form_of_lines(lines: Sequence[str]) -> tuple[str, int, str] | None:
    """Return the form that all of a list's lines have, the position of the first, 1 after a header, and its remedy.

    Only forms that cannot be read: the label first, semicolons, quotes around the line. None where it is none of them.
    """
    for name, pattern, path, label in (
        ("the labels come first", LABEL_FIRST, 2, 1),
        ("the columns are separated by semicolons", SEMICOLON, 1, 2),
        ("quotes are around the lines", QUOTED_LINE, 1, 2),
    ):
        for start in (0, 1):
            found = [pattern.fullmatch(line) for line in lines[start:]]
            readable = pattern is LABEL_FIRST and any(ENDS_IN_LABEL.search(line) for line in lines[start:])
            if found and (first := found[0]) and all(found) and not readable:
                return name, start, f"{first[path]} {first[label]}"
    return None


def labels_from_one(labels: Sequence[int], num_classes: int) -> bool:
    """Say whether the labels begin at 1 and end at the number of classes: one too many for labels from 0."""
    return bool(labels) and min(labels) == 1 and max(labels) == num_classes


def form_of_path(path: str, root: str) -> tuple[str, str] | None:
    """Return in which form a path whose file is not there is written, and what is there below the root.

    Tries up to three repairs one after the other: numbers before and after the path, backslashes, quotes, folders
    that the root does not have, other letter case, accents and suffixes. None where none of it leads to something.
    """
    tried = {path}
    layer: list[tuple[tuple[str, ...], str]] = [((), path)]
    for _ in range(MAX_REPAIRS + 1):
        for said, candidate in layer:
            if found := _what_is_there(candidate, root):
                form, instead = found
                if said or form:
                    return "; ".join([*said, *form]), instead
        following = []
        for said, candidate in layer:
            for name, repaired in _repairs(candidate, root):
                if repaired and repaired not in tried and len(tried) < MAX_TRIED:
                    tried.add(repaired)
                    following.append(((*said, name), repaired))
        layer = following
    return None


def other_root(paths: Sequence[str], root: str, list_path: str) -> str | None:
    """Return the folder in which all of the files are: the current one, the list's, one around or in the root."""
    folders = [".", os.path.dirname(list_path) or ".", os.path.dirname(os.path.abspath(root))]
    with suppress(OSError, ValueError):
        folders += sorted(entry.path for entry in os.scandir(root) if entry.is_dir())[:100]
    return next((folder for folder in folders if all(os.path.isfile(os.path.join(folder, p)) for p in paths)), None)


def _what_is_there(path: str, root: str) -> tuple[list[str], str] | None:
    """Return ([], path) of a file, what a folder is and a name for a video of it, None where there is neither."""
    place = os.path.join(root, path)
    if os.path.isfile(place):
        return [], path
    if not os.path.isdir(place) or not PurePosixPath(path).name:
        return None
    frames: list[str] = []
    with suppress(OSError):
        frames = sorted(name for name in os.listdir(place) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
    if not frames:
        return [f"{path!r} is a folder, and a video is a file"], f"{path.rstrip('/')}/VIDEO.mp4"
    pattern = re.sub(r"\d+(?=\D*$)", lambda number: f"%0{len(number[0])}d", frames[0])
    command = f"ffmpeg -framerate 25 -i {place.rstrip('/')}/{pattern} {place.rstrip('/')}.mp4"
    return [
        f"{path!r} is a folder of frames, and videos are read: make one of it by `{command}`"
    ], f"{path.rstrip('/')}.mp4"


def _repairs(path: str, root: str) -> Iterator[tuple[str, str]]:
    """Yield what may be wrong with a path, and the path without it."""
    yield (
        "a number more stands between path and label (a number of frames, or a second label: with task: multilabel, "
        "labels are joined by `;`)",
        MORE_NUMBERS.sub("", path),
    )
    yield "a number stands before the path (an index column; pandas: to_csv(..., index=False))", INDEX.sub("", path, 1)
    yield "quotes or commas are around the path", path.strip(" \t,;'\"")
    yield "folders are separated by \\ as in Windows", path.replace("\\", "/")
    yield "the path is written as in a URL", unquote(path)
    for form in ("NFC", "NFD"):
        yield "accents are written in another form (NFC, NFD) than on the disk", unicodedata.normalize(form, path)
    yield "letter case differs from the disk's", _on_disk(path, root) or ""
    stem, suffix = os.path.splitext(path)
    known = suffix.lower() in SUFFIXES
    for other in _suffixes_on_disk(stem if known else path, root):
        yield ("the suffix is another one", stem + other) if known else ("the suffix is left out", path + other)
    parts = PurePosixPath(path).parts
    for number in range(1, len(parts)):
        first = "/".join(parts[:number]).replace("//", "/")
        yield f"{first!r} is not a folder in data.root", "/".join(parts[number:])


def _on_disk(path: str, root: str) -> str | None:
    """Return the path below the root that differs only in letter case; None where there is none."""
    found: list[str] = []
    for part in PurePosixPath(path).parts:
        with suppress(OSError, ValueError):
            names = os.listdir(os.path.join(root, *found))
            if (same := next((name for name in names if name.casefold() == part.casefold()), None)) is not None:
                found.append(part if part in names else same)
                continue
        return None
    return "/".join(found)


def _suffixes_on_disk(stem: str, root: str) -> list[str]:
    """Return the suffixes of the videos that are there under this name."""
    place = Path(root, stem)
    with suppress(OSError, ValueError):
        names = sorted(os.listdir(place.parent))
        return [
            suffix
            for name in names
            if os.path.splitext(name)[0] == place.name and (suffix := os.path.splitext(name)[1]).lower() in SUFFIXES
        ]
    return []
