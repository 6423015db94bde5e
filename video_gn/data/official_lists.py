"""Lists by the official files of Kinetics-400, 600 and 700 and of UCF-101."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from video_gn.data.listing import OUTPUTS, ClassNames, Lists, check_folder, checked, read_lines, read_names
from video_gn.data.splits import SPLIT_WORDS, split_of
from video_gn.data.video_tree import Video, find_videos
from video_gn.errors import UserError
from video_gn.files.tables import foreign_table

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


# --- Kinetics ---


@dataclass(frozen=True)
class Listed:
    """A row of Kinetics' official csv."""

    split: str
    label: str
    """The class's name."""
    youtube_id: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The file's official name, without extension."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"


def kinetics(root: str, csvs: Sequence[str], classes: str | None = None) -> Lists:
    """Return lists of Kinetics' official csv files (400, 600 or 700; ``label,youtube_id,time_start,time_end,split``).

    A video is known by its file's name, ``ID_START_END`` or ``ID``, in whatever folder below ``root`` it lies; the
    label is the csv's. The class names are those of the csv files, sorted.

    Args:
        classes: file of class names, one per line, where another order is wanted.

    Raises:
        UserError: a csv or class name that cannot be used; no listed video is below ``root``.
    """
    rows, repeated = _read_kinetics(csvs)
    names = ClassNames(read_names(classes) if classes else sorted({row.label for row in rows}))
    for name in sorted({row.label for row in rows}):
        if names.label(name) is None:
            raise UserError(f"{name!r} is none of the {len(names.names)} classes of {classes}; {names.hint(name)}")
    found = find_videos(check_folder(root), OUTPUTS)
    by_id: dict[str, list[Video]] = defaultdict(list)
    for video in found.videos:
        by_id[video.youtube_id or ""].append(video)
    lists = Lists(names.names, found)
    taken: set[str] = set()
    elsewhere = []  # in a folder that is named as another class
    for row in rows:
        label = names.label(row.label)
        assert label is not None  # checked above
        path = _choose(row, by_id.get(row.youtube_id, []), taken)
        if path is None:
            lists.missing[row.split].append(f"{row.name} {row.label}")
            continue
        taken.add(path)
        lists.lines[row.split].append((path, label))
        if names.label(PurePosixPath(path).parent.name) not in (None, label):
            elsewhere.append(path)
    if repeated:
        lists.notes.append(f"rows of the csv that repeat an earlier one: {repeated:,}")
    if elsewhere:
        lists.notes.append(
            f"videos in another class's folder than the csv says: {len(elsewhere):,}, such as {elsewhere[0]}"
        )
    return checked(lists, root, "ID_START_END.mp4 or ID.mp4")


def _read_kinetics(csvs: Sequence[str]) -> tuple[list[Listed], int]:
    """Return the rows of all files, and how many were left out since an earlier one has the same id and start."""
    rows: dict[tuple[str, int], Listed] = {}
    repeated = 0
    for file in csvs:
        with foreign_table(file, "give the official csv") as table:
            if lacking := set(COLUMNS) - set(table.fieldnames or ()):
                raise UserError(f"{file}: has no column {min(lacking)!r}; give the official csv with its header")
            for row in table:
                listed = _listed(row, file, table.line_num)
                repeated += (listed.youtube_id, listed.start) in rows
                rows.setdefault((listed.youtube_id, listed.start), listed)
    return list(rows.values()), repeated


def _listed(row: dict[str, str | None], file: str, line: int) -> Listed:
    label, youtube_id, start, end = (row[column] or "" for column in COLUMNS)
    where = f"{file}, line {line}"
    seconds = [re.fullmatch(r"([0-9]{1,6})(?:\.0*)?", text) for text in (start, end)]
    if not label or not youtube_id or seconds[0] is None or seconds[1] is None:
        raise UserError(f"{where}: needs a label, an id, a start and an end in seconds; give the official csv")
    if label.isdecimal():
        raise UserError(f"{where}: the label {label} is a number; give the official csv, which has names")
    split = row.get("split") or Path(file).stem
    words = re.findall(r"[a-z]+", split.lower())
    found = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)
    if found is None:
        raise UserError(f"{where}: the split {split!r} is none of train, val and test; correct it")
    return Listed(found, label, youtube_id, int(seconds[0][1]), int(seconds[1][1]))


def _choose(row: Listed, same_id: Iterable[Video], taken: set[str]) -> str | None:
    """Return a row's file: one whose name tells the start, else of the split's or class's folder, else the first."""

    def rank(video: Video) -> tuple[bool, bool, bool, str]:
        parts = PurePosixPath(video.path).parts[:-1]
        splits = [stated[0] for part in parts if (stated := split_of(part))]
        in_class = ClassNames.key(row.label) in map(ClassNames.key, parts)
        return video.start is None, row.split not in splits, not in_class, video.path

    fitting = [video for video in same_id if video.start in (None, row.start) and video.path not in taken]
    return min(fitting, key=rank).path if fitting else None


# --- UCF-101 ---


def ucf101(root: str, annotations: str, split: int = 1) -> Lists:
    """Return lists of UCF-101's official split 1, 2 or 3: train and test.

    A video is known by its name without extension, so re-encoded copies are found, in whatever folder below ``root``.

    Args:
        annotations: the folder ucfTrainTestlist, with classInd.txt, trainlist01.txt, testlist01.txt, ...

    Raises:
        UserError: an annotation file that cannot be used; no listed video is below ``root``.
    """
    folder = Path(annotations)
    labels = {name: label for label, name in _read_class_index(folder / "classInd.txt")}
    found = find_videos(check_folder(root), OUTPUTS)
    by_stem: dict[str, str] = {}
    for video in found.videos:
        by_stem.setdefault(PurePosixPath(video.path).stem.casefold(), video.path)
    lists = Lists(list(labels), found)
    for name in ("train", "test"):
        file = folder / f"{name}list{split:02d}.txt"
        for number, line in enumerate(read_lines(file), start=1):
            listed, _, given = line.partition(" ")
            class_name = PurePosixPath(listed).parent.name
            label = labels.get(class_name)
            if label is None:
                raise UserError(f"{file}, line {number}: {class_name!r} is no class of classInd.txt; correct one")
            if given and given != str(label + 1):  # the official labels begin at 1
                raise UserError(f"{file}, line {number}: label {given}, classInd.txt says {label + 1}; correct one")
            path = by_stem.get(PurePosixPath(listed).stem.casefold())
            if path is None:
                lists.missing[name].append(listed)
            else:
                lists.lines[name].append((path, label))
    return checked(lists, root, "v_CLASS_gNN_cNN.avi")


def _read_class_index(file: Path) -> list[tuple[int, str]]:
    """(label from 0, name) of each line of classInd.txt."""
    index = []
    for number, line in enumerate(read_lines(file), start=1):
        label, _, name = line.partition(" ")
        if label != str(number) or not name:
            raise UserError(f"{file}, line {number} is {line[:40]!r}; write `{number} CLASS`")
        index.append((number - 1, name))
    return index
