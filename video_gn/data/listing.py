"""Lists on their way to the disk: classes, videos by split, what is left out, and the summary of it all."""

from __future__ import annotations

import difflib
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from video_gn.data.formats import IMAGE_SUFFIXES
from video_gn.data.lists import name_some
from video_gn.data.splits import SPLITS
from video_gn.data.video_tree import OTHER_FILES, UNNAMED, Found, plain
from video_gn.errors import UserError

OUTPUTS = (*(f"{split}.csv" for split in SPLITS), "missing.txt", "classes.txt")
MAX_CLASSES, MAX_SUFFIXES = 40, 8  # shown one by one


@dataclass
class Lists:
    """Lists to be written."""

    classes: list[str]
    found: Found
    """The videos below the folder. `left_out` holds, in the end, all of its files that are in no list."""
    lines: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split -> (path, label) of each video found."""
    missing: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split -> names of the videos that an official list has and the disk has not."""
    notes: list[str] = field(default_factory=list)


class ClassNames:
    """Class name -> label; spaces and underscores, small and capital letters, NFC and NFD are the same."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._labels = {self.key(name): label for label, name in enumerate(names)}

    @staticmethod
    def key(name: str) -> str:
        """Return what all spellings of a class's name have in common."""
        return plain(plain(name).replace("_", " ").strip().casefold())

    def label(self, name: str) -> int | None:
        """Return the label of a class or folder name, None for an unknown one."""
        return self._labels.get(self.key(name))

    def hint(self, name: str) -> str:
        """Return the nearest class name, as a question."""
        near = difflib.get_close_matches(self.key(name), self._labels, n=1, cutoff=0)
        return f"did you mean {self.names[self._labels[near[0]]]!r}?"


def check_folder(root: str) -> str:
    if not os.path.isdir(root):
        raise UserError(f"{root}: not a folder; give the folder of the videos")
    return root


def read_lines(file: Path) -> list[str]:
    """Return the lines that are not empty, without whitespace at their ends."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; give the file as it was published") from None
    return [line for line in lines if line]


def read_names(file: str) -> list[str]:
    names = read_lines(Path(file))
    keys = Counter(ClassNames.key(name) for name in names)
    if twice := next((name for name in names if keys[ClassNames.key(name)] > 1), None):
        raise UserError(f"{file} names {twice!r} twice; remove one")
    if not names:
        raise UserError(f"{file} names no class; write one per line")
    return names


def checked(lists: Lists, root: str, shape: str) -> Lists:
    """Return `lists`, with the videos that are in none left out.

    Raises UserError where no video is in a list, or two class names differ only in letter case or underscores.
    """
    found = lists.found
    if not any(lists.lines.values()):
        others = Counter(os.path.splitext(path)[1].lower() for path in found.left_out.get(OTHER_FILES, ()))
        hint = f"; other files: {_tally(others)}" if others else ""
        if any(suffix in IMAGE_SUFFIXES for suffix in others):
            hint += ", of which frames become a video by `ffmpeg -framerate 25 -i CLIP/%05d.jpg CLIP.mp4`"
        raise UserError(f"none of the {len(found.videos):,} videos below {root} can be listed; wanted is {shape}{hint}")
    keys = Counter(ClassNames.key(name) for name in lists.classes)
    if twice := [name for name in lists.classes if keys[ClassNames.key(name)] > 1]:
        raise UserError(f"classes {twice[0]!r} and {twice[1]!r} differ in case or underscores only; merge or rename")
    named = {path for lines in lists.lines.values() for path, _ in lines}.union(*found.left_out.values())
    if unnamed := [video.path for video in found.videos if video.path not in named]:
        found.left_out[UNNAMED] = unnamed
    return lists


# --- the summary ---


def summary(lists: Lists, done: Sequence[str], out: Path) -> str:
    """Return videos per split and class, warnings, notes, what was left out and why, what was `done`, what to set."""
    parts = [_split_table(lists), _class_table(lists), *_warnings(lists), *lists.notes, *left_out_text(lists.found)]
    return "\n".join([*parts, *done, _settings(lists, out, Path(lists.found.root))])


def _split_table(lists: Lists) -> str:
    rows = [["", "listed", "found", "missing", "fewest in a class"]]
    for split in SPLITS:
        found, missing = len(lists.lines[split]), len(lists.missing[split])
        if found + missing:
            counts = Counter(label for _, label in lists.lines[split])
            fewest = min(range(len(lists.classes)), key=lambda label: counts[label])
            share = f" ({100 * missing / (found + missing):.1f} %)" if missing else ""
            cells = [f"{found + missing:,}", f"{found:,}", f"{missing:,}{share}"]
            rows.append([split, *cells, f"{counts[fewest]:,} ({lists.classes[fewest]})"])
    return _aligned(rows)


def _class_table(lists: Lists) -> str:
    """Return the videos of each class and split: of many classes, those with the fewest training videos."""
    splits = [split for split in SPLITS if lists.lines[split]]
    counts = {split: Counter(label for _, label in lists.lines[split]) for split in splits}
    shown = sorted(range(len(lists.classes)), key=lambda label: [counts[split][label] for split in splits])
    shown = sorted(shown[:MAX_CLASSES])
    rows = [[f"{len(lists.classes):,} classes", *splits]]
    rows += [[lists.classes[label], *(f"{counts[split][label]:,}" for split in splits)] for label in shown]
    more = len(lists.classes) - len(shown)
    return _aligned(rows) + (f"\n({more:,} classes with more videos are not shown)" if more else "")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _warnings(lists: Lists) -> list[str]:
    warnings = []
    for split, what in (("train", "training"), ("val", "validation"), ("test", "test")):
        listed = {label for _, label in lists.lines[split]}
        absent = [name for label, name in enumerate(lists.classes) if label not in listed]
        if listed and absent:
            some = f"{len(absent):,} of {len(lists.classes):,} classes have"
            warnings.append(f"warning: {some} no {what} video: {name_some(absent)}")
    if len(lists.classes) == 1:
        warnings.append(f"warning: {lists.classes[0]} is the only class, so there is nothing to learn; add another")
    if not lists.lines["train"]:
        warnings.append("warning: no training video was found, so there is no train.csv")
    return warnings


def left_out_text(found: Found) -> list[str]:
    """Return what was left out, one line per reason."""
    count = sum(map(len, found.left_out.values()))
    lines = [f"left out: {count:,}"] if count else []
    for reason, paths in sorted(found.left_out.items(), key=lambda item: -len(item[1])):
        tally = ""
        if reason == OTHER_FILES:
            tally = f" ({_tally(Counter(os.path.splitext(path)[1].lower() for path in paths))})"
        lines.append(f"  {reason}{tally}: {len(paths):,}, such as {_printable(paths[0])}")
    return lines


def _printable(path: str) -> str:
    return path if path.isprintable() else repr(path)


def _tally(suffixes: Counter[str]) -> str:
    shown = [f"{count:,} {suffix or 'without one'}" for suffix, count in suffixes.most_common(MAX_SUFFIXES)]
    return ", ".join(shown) + (", ..." if len(suffixes) > MAX_SUFFIXES else "")


def _settings(lists: Lists, out: Path, root: Path) -> str:
    """Return what a config needs to be set to for these lists, as it is written on a command line."""
    beside = out.resolve() == root.resolve()
    listed = {split: f"{split}.csv" if beside else str(out / f"{split}.csv") for split in SPLITS if lists.lines[split]}
    held_out = listed.get("val", listed.get("test"))
    values = {
        "data.root": str(root),
        "data.class_names": "classes.txt" if beside else str(out / "classes.txt"),
        "model.num_classes": str(len(lists.classes)),
        "data.train_list": listed.get("train"),
        "data.val_list": held_out,
        "data.test_list": listed.get("test", held_out),
    }
    defaults = {"data.train_list": "train.csv", "data.val_list": "val.csv", "data.test_list": "val.csv"}
    given = [f"{key}={value}" for key, value in values.items() if value is not None and defaults.get(key) != value]
    lines = []
    if held_out is None:
        lines.append(
            "warning: no video is held out, and training needs a data.val_list: give --val a share, or add videos: "
            "a class needs two"
        )
    elif "val" not in listed and "train" in listed:
        lines.append("no split is for validation: test.csv is set for both, so the monitored error is that of the test")
    return "\n".join([*lines, f"set: {shlex.join(given)}"])
