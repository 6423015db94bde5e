"""Train, val and test: where a folder states them already, and how they are drawn where it does not."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from video_gn.errors import UserError

SPLITS = ("train", "val", "test")
SPLIT_WORDS = (
    dict.fromkeys(("train", "training", "trainval"), "train")
    | dict.fromkeys(("val", "valid", "validate", "validation", "validating", "eval", "evaluation", "dev"), "val")
    | dict.fromkeys(("test", "testing", "tests"), "test")
)
FILLERS = "set|sets|data|dataset|video|videos|clip|clips|split|splits|file|files|folder|raw"
WORD = re.compile(r"[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # trainVideos: train, Videos
JOINED = re.compile(rf"({'|'.join(SPLIT_WORDS)})({FILLERS})?")


@dataclass(frozen=True)
class Layout:
    """The places of the split's and the class's folder in a path, counted from 0."""

    class_level: int
    split_level: int | None = None
    """None: no folder names a split."""
    splits: dict[str, str] = field(default_factory=dict)
    """Folder at `split_level` -> train, val or test."""
    doubtful: str | None = None
    """A folder named as a split that is taken for a class."""


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a folder's name states, and its other words; None where it states none or two.

    Numbers and words such as "set" and "videos" do not count: `Train`, `train_videos`, `testSet2` and `hmdb_val` state
    a split, the last one with ("hmdb",) as other words. "trainval" and "train_val" are train.
    """
    splits, rest = set(), []
    for word in WORD.findall(CAMEL.sub(" ", unicodedata.normalize("NFC", name))):
        word = word.casefold()
        if match := JOINED.fullmatch(word):
            splits.add(SPLIT_WORDS[match[1]])
        elif not re.fullmatch(FILLERS, word):
            rest.append(word)
    if splits == {"train", "val"}:
        splits = {"train"}
    return (splits.pop(), tuple(rest)) if len(splits) == 1 else None


def arrange(paths: Sequence[tuple[str, ...]]) -> Layout:
    """Say which folders of the paths are the splits and which the classes.

    A level is one of splits where folders with class folders in them state two different splits by the same other words
    (train_videos and val_videos), or where all of them state one (train, and nothing beside it). Folders around it, or
    around the classes, that have no other beside them do not count: dataset/train/CLASS/video, dataset/CLASS/video.
    Splits may also be named inside all folders: CLASS/train/video, or PART/train/CLASS/video where all parts share two
    folders or more in their splits.

    Args:
        paths: each video's folders and file name.

    Raises:
        UserError: the folders state splits, and hold no folder per class.
    """
    level = 0
    for level in range(_first_fork(paths, 0) + 1):
        splits = _splits(paths, level)
        if splits:
            inside = [path for path in paths if len(path) > level + 1 and path[level] in splits]
            return Layout(_first_fork(inside, level + 1), level, splits)
    names = sorted({path[level] for path in paths if len(path) > level + 1})
    if len(names) > 1 and all(len(path) > level + 2 for path in paths if len(path) > level + 1):
        inner = {path[level + 1] for path in paths if len(path) > level + 1}
        splits = _named_alike(inner)
        if len(set(splits.values())) > 1 and len(splits) == len(inner):
            below: dict[str, set[str]] = {name: set() for name in names}  # folders in the splits
            for path in paths:
                if len(path) > level + 3:
                    below[path[level]].add(path[level + 2])
            is_class = len(set.intersection(*below.values())) < 2  # CLASS/train/video, else PART/train/CLASS/video
            return Layout(level if is_class else level + 2, level + 1, splits)
    doubtful = next((name for name in names if split_of(name) and _has_folders(paths, level, name)), None)
    return Layout(level, doubtful=doubtful if len(names) > 1 else None)


def _splits(paths: Sequence[tuple[str, ...]], level: int) -> dict[str, str]:
    """Return folder -> split where the folders at this level are splits, else nothing."""
    names = {path[level] for path in paths if len(path) > level + 1}
    splits = _named_alike(names)
    several, all_of_them = len(set(splits.values())) > 1, bool(splits) and len(splits) == len(names)
    if not (several or all_of_them):
        return {}
    if any(_has_folders(paths, level, name) for name in splits):
        return splits
    if several and all_of_them:
        raise UserError(
            f"folders {', '.join(map(repr, sorted(splits)))} are splits and hold no folder per class, so no class is "
            "known; sort the videos into SPLIT/CLASS/, or write lists of lines `path label`"
        )
    return {}


def _named_alike(names: Iterable[str]) -> dict[str, str]:
    """Return name -> split of the names with the same other words, those that state the most splits."""
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        if stated := split_of(name):
            alike[stated[1]][name] = stated[0]
    return max(alike.values(), key=lambda splits: len(set(splits.values())), default={})


def _has_folders(paths: Sequence[tuple[str, ...]], level: int, name: str) -> bool:
    return any(len(path) > level + 2 and path[level] == name for path in paths)


def _first_fork(paths: Sequence[tuple[str, ...]], level: int) -> int:
    """Return the first level from `level` on with two folders; `level` where there is none.

    Not past a folder in which more videos lie directly than in folders: that one is a class.
    """
    for fork in range(level, max(map(len, paths), default=0)):
        inside = [path for path in paths if len(path) > fork + 1]
        names = {(split_of(path[fork]) or (None, path[fork]))[1] for path in inside}  # val/val_videos/CLASS, too
        if len(names) > 1:
            return fork
        if 2 * sum(len(path) > fork + 2 for path in inside) <= len(inside):
            return level
    return level


# --- drawing ---


def draw_splits(
    labels: Mapping[str, int], groups: Mapping[str, str], *, val: float, test: float, seed: int
) -> dict[str, str]:
    """Draw the split of each video, class by class, so that more videos move as few as possible.

    A group is what stays in one split: a video, or all videos of one scene or person. The groups of a class are put in
    the order of the SHA-256 of "SEED/GROUP". Of the class's n videos the first round(val n), at least one, are for
    validation, the next round(test n), at least one, for the test, the others for training. Each class keeps a group
    for training, and for the test where it has three: the video of a class that has one is for training.

    A group of several videos is passed over where the number is nearer without it; if so none was taken, it is the
    smallest. Where groups are single videos and `test` is 0, one more video moves at most one other.

    Args:
        labels: path -> label.
        groups: path -> group.
        val, test: shares of each class's videos; 0 draws none.

    Returns:
        Path -> train, val or test.
    """
    draw = _Draw(labels, groups, seed)
    for split, share, later in (("val", val, test > 0), ("test", test, False)):
        for label in sorted(draw.members) if share else ():
            draw.fill(split, label, max(int(share * draw.total[label] + 0.5), 1), later)
    return {path: draw.split.get(groups[path], "train") for path in labels}


class _Draw:
    """Groups on their way into the splits."""

    def __init__(self, labels: Mapping[str, int], groups: Mapping[str, str], seed: int) -> None:
        self.split: dict[str, str] = {}  # of each group that was drawn
        self.sizes: dict[str, Counter[int]] = defaultdict(Counter)  # group -> videos of each label
        for path, label in labels.items():
            self.sizes[groups[path]][label] += 1
        self.total = Counter(labels.values())
        self.members: dict[int, list[str]] = defaultdict(list)  # label -> its groups in order
        for group in sorted(self.sizes, key=lambda group: (_digest(group, seed), group)):
            for label in self.sizes[group]:
                self.members[label].append(group)
        self.free = {label: len(groups) for label, groups in self.members.items()}  # groups not drawn
        self.taken: dict[str, Counter[int]] = defaultdict(Counter)  # split -> videos of each label

    def fill(self, split: str, label: int, quota: int, later: bool) -> None:
        """Take groups of a class until `quota` videos of it are in the split; keep one for a split that comes later."""
        taken = self.taken[split]
        for group in self.members[label]:
            nearer = abs(taken[label] + self.sizes[group][label] - quota) < quota - taken[label]
            if nearer and self._may_go(group, later):
                self._take(group, split)
        possible = [group for group in self.members[label] if self._may_go(group, later)]
        if not taken[label] and possible:
            self._take(min(possible, key=lambda group: self.sizes[group][label]), split)

    def _may_go(self, group: str, later: bool) -> bool:
        kept = {label: 1 + (later and len(self.members[label]) > 2) for label in self.sizes[group]}
        return group not in self.split and all(self.free[label] > kept[label] for label in kept)

    def _take(self, group: str, split: str) -> None:
        self.split[group] = split
        self.taken[split] += self.sizes[group]
        for label in self.sizes[group]:
            self.free[label] -= 1


def _digest(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', group)}".encode()).digest()
