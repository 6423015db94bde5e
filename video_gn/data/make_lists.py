"""Make data lists and class names of what is on the disk: Kinetics, UCF-101, or one folder per class."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from video_gn.data import list_files
from video_gn.data.listing import OUTPUTS, ClassNames, Lists, check_folder, checked, read_names, summary
from video_gn.data.lists import format_line
from video_gn.data.official_lists import kinetics, ucf101
from video_gn.data.splits import SPLITS, Layout, arrange, draw_splits
from video_gn.data.video_tree import NO_CLASS, NO_SPLIT, SECOND_NAMES, Found, find_videos, plain
from video_gn.errors import UserError

__all__ = ["check_out", "folders", "kinetics", "ucf101", "write_lists"]


def folders(
    root: str,
    *,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    classes: str | None = None,
) -> Lists:
    """Make the lists of a tree CLASS/[...]/video.

    Splits that the tree states already (train/CLASS/..., Validation/CLASS/..., CLASS/test/...: `splits.arrange`) are
    taken as they are. Without a split for validation or test, `splits.draw_splits` draws them.

    Args:
        val, test: shares of each class's videos.
        group: regular expression; paths in which it matches the same text (its first group, where it has one) go to the
            same split: videos of one scene or person.
        classes: file of class names, one per line, in place of the folders' sorted names: a new folder shifts the
            labels.

    Raises:
        UserError: shares, an expression or folder names that cannot be used; no video in a folder of a class.
    """
    if not (val >= 0 <= test and val + test < 1):
        raise UserError(f"shares val {val} and test {test}: both at least 0, and their sum below 1; correct them")
    pattern = _compiled(group)
    found = find_videos(check_folder(root), OUTPUTS)
    layout = arrange([PurePosixPath(video.path).parts for video in found.videos])
    places = _places(found, layout, os.path.realpath(root))
    names = ClassNames(read_names(classes) if classes else sorted({plain(place.folder) for place in places.values()}))
    labels = {path: _label(place.folder, names, classes) for path, place in places.items()}
    stated = {path: place.split for path, place in places.items() if place.split is not None}
    drawn = set(stated.values()) <= {"train"}
    if drawn:
        groups = {path: _group(path, pattern) for path in labels}
        stated = draw_splits(labels, groups, val=val, test=test, seed=seed)
    lists = Lists(names.names, found)
    for path in sorted(labels):
        lists.lines[stated[path]].append((path, labels[path]))
    lists.notes = _layout_notes(layout, places, drawn)
    spellings = {place.folder for place in places.values()}
    if twice := sorted({plain(name) for name in spellings if name != plain(name) and plain(name) in spellings}):
        lists.notes.append(f"folders of one name in two spellings (NFC and NFD) are one class: {', '.join(twice)}")
    return checked(lists, root, "any video in a folder that is named as its class")


@dataclass(frozen=True)
class Place:
    """Position of a video in the tree."""

    split: str | None
    """As its folder states it."""
    folder: str
    """Of its class."""
    around: str
    """Folder that the class's folder lies in, relative to the root."""
    file: str
    """The file itself, without links."""


def _places(found: Found, layout: Layout, root: str) -> dict[str, Place]:
    """Return path -> place; videos without a split or class and second names of one file go to ``found.left_out``."""
    places: dict[str, Place] = {}
    seen: set[tuple[str | None, str]] = set()
    for video in sorted(found.videos, key=lambda video: video.linked):  # the file's own name before the links
        above = PurePosixPath(video.path).parts[:-1]
        stated = above[layout.split_level : layout.split_level + 1] if layout.split_level is not None else ()
        split = layout.splits.get(stated[0]) if stated else None
        file = os.path.join(root, video.path)
        file = os.path.realpath(file) if video.linked else file
        if layout.split_level is not None and split is None:
            found.left_out[NO_SPLIT].append(video.path)
        elif len(above) <= layout.class_level:
            found.left_out[NO_CLASS].append(video.path)
        elif (split, file) in seen:
            found.left_out[SECOND_NAMES].append(video.path)
        else:
            seen.add((split, file))
            around = "/".join(above[: layout.class_level])
            places[video.path] = Place(split, above[layout.class_level], around, file)
    return places


def _label(folder: str, names: ClassNames, classes: str | None) -> int:
    label = names.label(folder)
    if label is None:
        raise UserError(f"folder {folder!r} is not a class of {classes}; {names.hint(folder)}")
    return label


def _layout_notes(layout: Layout, places: Mapping[str, Place], drawn: bool) -> list[str]:
    """Say how the tree was read, where that is not CLASS/video."""
    notes = []
    if layout.splits:
        stated = ", ".join(f"{name} is {split}" for name, split in sorted(layout.splits.items()))
        notes.append(f"the tree states its splits ({stated}), taken as they are")
        if drawn:
            notes.append("no folder is for validation or test: they are drawn from train")
    around = sorted({place.around for place in places.values()})
    if layout.class_level > (layout.split_level == 0):
        notes.append(f"the classes are the folders in {', '.join(f'{folder}/' for folder in around)}")
    if layout.doubtful:
        notes.append(
            f"warning: folder {layout.doubtful!r} is taken for a class, as no folder of another split is beside it; "
            "if it is a split, move the other folders away"
        )
    by_split: dict[str, set[str]] = defaultdict(set)
    for place in places.values():
        by_split[place.split or "train"].add(place.file)
    for one, other in itertools.combinations([split for split in SPLITS if split in by_split], 2):
        if shared := len(by_split[one] & by_split[other]):
            notes.append(f"warning: {shared:,} files are in {one} and in {other}, by links")
    return notes


def _compiled(group: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(group) if group else None
    except re.error as error:
        raise UserError(f"--group {group!r} is not a regular expression ({error}); correct it") from None


def _group(path: str, pattern: re.Pattern[str] | None) -> str:
    """Return what is split as one: the text that the pattern finds, the path without one."""
    if pattern is None:
        return path
    match = pattern.search(path)
    if match is None:
        raise UserError(
            f"{path}: --group {pattern.pattern!r} matches nothing in it; correct the expression or the name"
        )
    return match[1] or "" if pattern.groups else match[0]


def check_out(out: Path, inputs: Sequence[str], force: bool) -> None:
    """Raise UserError where a list cannot be written or would be replaced (`list_files.check_out`)."""
    list_files.check_out(out, inputs, force, OUTPUTS)


def write_lists(lists: Lists, out: Path) -> str:
    """Write SPLIT.csv of each split with videos, classes.txt and, where videos are missing, missing.txt.

    Returns:
        A summary for the terminal: videos per split and class, what was left out and why, what to set.
    """
    lines = {
        f"{split}.csv": [format_line(path, label) for path, label in lines] for split, lines in lists.lines.items()
    }
    lines["classes.txt"] = lists.classes
    lines["missing.txt"] = [f"{split} {name}" for split, names in lists.missing.items() for name in names]
    done = list_files.write_files(out, {name: "".join(f"{line}\n" for line in of) for name, of in lines.items()})
    return summary(lists, done, out)
