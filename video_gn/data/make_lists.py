"""Make data lists and class names of what is on the disk: Kinetics, UCF-101, or a folder a class."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from video_gn.errors import UserError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
KINETICS_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:_(\d{6})_\d{6})?")  # YouTube id, start and end in seconds
UNLISTABLE = re.compile(r'^["# \t]|[\n\ud800-\udfff]')  # lone surrogates: the name is not UTF-8
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"valid": "val", "validate": "val", "validation": "val", "eval": "val"} | {name: name for name in SPLITS}
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Video:
    """A file of the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    youtube_id: str | None
    start: int | None
    """Seconds, where the file name tells."""


@dataclass
class Lists:
    """What is to be written."""

    classes: list[str]
    lines: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split -> (path, label) of each video found."""
    missing: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split -> names of the videos that an official list has and the disk has not."""
    videos: int = 0
    """Files below the folder."""
    notes: list[str] = field(default_factory=list)


class ClassNames:
    """Class name -> label; spaces and underscores, small and capital letters are the same."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._labels = {self._key(name): label for label, name in enumerate(names)}

    @staticmethod
    def _key(name: str) -> str:
        return name.replace("_", " ").casefold()

    def label(self, name: str) -> int | None:
        """Label of a class or folder name, None for an unknown one."""
        return self._labels.get(self._key(name))

    def hint(self, name: str) -> str:
        """The nearest class name, as a question."""
        near = difflib.get_close_matches(self._key(name), self._labels, n=1, cutoff=0)
        return f"did you mean {self.names[self._labels[near[0]]]!r}?"


def find_videos(root: str) -> list[Video]:
    """All videos below ``root`` in one walk, sorted by path. Follows linked folders, each folder once."""
    videos: list[Video] = []
    seen: set[str] = set()  # real folders: a link to a parent would never end
    show = sys.stderr.isatty()
    for folder, subfolders, files in os.walk(root, onerror=_warn_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        below = Path(os.path.relpath(folder, root)).as_posix()
        for name in files:
            stem, extension = os.path.splitext(name)
            if extension.lower() in EXTENSIONS and not name.startswith("."):
                match = KINETICS_NAME.fullmatch(stem)
                start = int(match[2]) if match and match[2] else None
                path = name if below == "." else f"{below}/{name}"
                if UNLISTABLE.search(path):
                    print(f"warning: {path!r} left out: a list cannot hold that name", file=sys.stderr)
                else:
                    videos.append(Video(path, match[1] if match else None, start))
        if show:
            print(f"\r{len(videos):,} videos", end="", file=sys.stderr, flush=True)
    if show:
        print(file=sys.stderr)
    return sorted(videos, key=lambda video: video.path)


def _warn_unreadable(error: OSError) -> None:
    print(f"warning: cannot read {error.filename}: {error.strerror}", file=sys.stderr)


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
    """Lists of the official csv files of Kinetics-400, 600 or 700 (``label,youtube_id,time_start,time_end,split``).

    A video is known by its file's name, ``ID_START_END`` or ``ID``, in whatever folder below ``root`` it lies; the
    label is the csv's. The class names are those of the csv files, sorted.

    Args:
        classes: file of class names, one a line, where another order is wanted.

    Raises:
        UserError: a csv or class name that cannot be used; no listed video is below ``root``.
    """
    rows, repeated = _read_kinetics(csvs)
    names = ClassNames(_read_names(classes) if classes else sorted({row.label for row in rows}))
    for name in sorted({row.label for row in rows}):
        if names.label(name) is None:
            raise UserError(f"{name!r} is none of the {len(names.names)} classes of {classes}; {names.hint(name)}")
    videos = find_videos(_folder(root))
    by_id: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_id[video.youtube_id or ""].append(video)
    lists = Lists(names.names, videos=len(videos))
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
    return _checked(lists, root, "ID_START_END.mp4 or ID.mp4")


def _read_kinetics(csvs: Sequence[str]) -> tuple[list[Listed], int]:
    """The rows of all files, and how many were left out since an earlier one has the same id and start."""
    rows: dict[tuple[str, int], Listed] = {}
    repeated = 0
    for file in csvs:
        try:
            with open(file, encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                if lacking := set(COLUMNS) - set(reader.fieldnames or ()):
                    raise UserError(f"{file}: has no column {min(lacking)!r}; give the official csv with its header")
                for row in reader:
                    listed = _listed(row, file, reader.line_num)
                    repeated += (listed.youtube_id, listed.start) in rows
                    rows.setdefault((listed.youtube_id, listed.start), listed)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read {file}: {error}; give the official csv") from None
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
    found = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
    if found is None:
        raise UserError(f"{where}: the split {split!r} is none of train, val and test; correct it")
    return Listed(found, label, youtube_id, int(seconds[0][1]), int(seconds[1][1]))


def _choose(row: Listed, same_id: Iterable[Video], taken: set[str]) -> str | None:
    """The file of a row: one whose name tells the start, else of the split's or the class's folder, else the first."""

    def rank(video: Video) -> tuple[bool, bool, bool, str]:
        folders = [part.replace("_", " ") for part in PurePosixPath(video.path).parts[:-1]]
        splits = [SPLIT_NAMES.get(part) for part in folders]
        return video.start is None, row.split not in splits, row.label not in folders, video.path

    fitting = [video for video in same_id if video.start in (None, row.start) and video.path not in taken]
    return min(fitting, key=rank).path if fitting else None


# --- UCF-101 ---


def ucf101(root: str, annotations: str, split: int = 1) -> Lists:
    """Lists of UCF-101's official split 1, 2 or 3: train and test.

    A video is known by its name without extension, so re-encoded copies are found, in whatever folder below ``root``.

    Args:
        annotations: the folder ucfTrainTestlist, with classInd.txt, trainlist01.txt, testlist01.txt, ...

    Raises:
        UserError: an annotation file that cannot be used; no listed video is below ``root``.
    """
    folder = Path(annotations)
    labels = {name: label for label, name in _read_class_index(folder / "classInd.txt")}
    videos = find_videos(_folder(root))
    by_stem: dict[str, str] = {}
    for video in videos:
        by_stem.setdefault(PurePosixPath(video.path).stem.casefold(), video.path)
    lists = Lists(list(labels), videos=len(videos))
    for name in ("train", "test"):
        file = folder / f"{name}list{split:02d}.txt"
        for number, line in enumerate(_read_lines(file), start=1):
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
    return _checked(lists, root, "v_CLASS_gNN_cNN.avi")


def _read_class_index(file: Path) -> list[tuple[int, str]]:
    """(label from 0, name) of each line of classInd.txt."""
    index = []
    for number, line in enumerate(_read_lines(file), start=1):
        label, _, name = line.partition(" ")
        if label != str(number) or not name:
            raise UserError(f"{file}, line {number} is {line[:40]!r}; write `{number} CLASS`")
        index.append((number - 1, name))
    return index


# --- a folder a class ---


def folders(
    root: str,
    *,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    classes: str | None = None,
) -> Lists:
    """Lists of a tree CLASS/[...]/video. One that is split, train/CLASS/..., val/CLASS/..., is taken as it is.

    Which split a video goes to depends on a hash of its path and the seed alone, so it stays there when others
    are added, and the shares are met on average, not exactly.

    Args:
        val, test: shares of the videos.
        group: regular expression; paths in which it matches the same text (its first group, where it has one) go to the
            same split: videos of one scene or person.
        classes: file of class names, one a line, in place of the folders' sorted names: a new folder shifts the labels.

    Raises:
        UserError: shares, an expression or folder names that cannot be used; no video in a folder of a class.
    """
    if not (val >= 0 <= test and val + test < 1):
        raise UserError(f"shares val {val} and test {test}: both at least 0, and their sum below 1; correct them")
    pattern = _compiled(group)
    videos = find_videos(_folder(root))
    parts = {video.path: PurePosixPath(video.path).parts for video in videos}
    is_split = any(p[0] == "train" for p in parts.values()) and all(
        len(p) > 2 and p[0] in SPLIT_NAMES for p in parts.values()
    )
    depth = 1 if is_split else 0  # of the folder that names the class
    inside = [path for path, p in parts.items() if len(p) > depth + 1]
    names = ClassNames(_read_names(classes) if classes else sorted({parts[path][depth] for path in inside}))
    lists = Lists(names.names, videos=len(videos))
    for path in inside:
        label = names.label(parts[path][depth])
        if label is None:
            raise UserError(f"folder {parts[path][depth]!r} is no class of {classes}; {names.hint(parts[path][depth])}")
        split = SPLIT_NAMES[parts[path][0]] if is_split else _drawn(_group(path, pattern), val, test, seed)
        lists.lines[split].append((path, label))
    if is_split:
        lists.notes.append("the folder is split already, and taken as it is")
    if len(inside) < len(videos):
        lists.notes.append(f"videos in no folder of a class, left out: {len(videos) - len(inside):,}")
    return _checked(lists, root, "any video in a folder that is named as its class")


def _drawn(key: str, val: float, test: float, seed: int) -> str:
    """The split of a video or group, by a uniform number in [0, 1) that is made of its key."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if number < test else "val" if number < test + val else "train"


def _compiled(group: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(group) if group else None
    except re.error as error:
        raise UserError(f"--group {group!r} is no regular expression ({error}); correct it") from None


def _group(path: str, pattern: re.Pattern[str] | None) -> str:
    """What is split as one: the text that the pattern finds, without one the path."""
    if pattern is None:
        return path
    match = pattern.search(path)
    if match is None:
        raise UserError(f"{path}: --group {pattern.pattern!r} matches nothing in it; mend the expression or the name")
    return match[1] or "" if pattern.groups else match[0]


# --- what they share ---


def _folder(root: str) -> str:
    if not os.path.isdir(root):
        raise UserError(f"{root}: not a folder; give the folder of the videos")
    return root


def _read_lines(file: Path) -> list[str]:
    """Lines that are not empty, without blanks at their ends."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; give the file as it was published") from None
    return [line for line in lines if line]


def _read_names(file: str) -> list[str]:
    names = _read_lines(Path(file))
    keys = Counter(ClassNames._key(name) for name in names)
    if twice := next((name for name in names if keys[ClassNames._key(name)] > 1), None):
        raise UserError(f"{file} names {twice!r} twice; remove one")
    if not names:
        raise UserError(f"{file} names no class; write one a line")
    return names


def _checked(lists: Lists, root: str, shape: str) -> Lists:
    """`lists`, unless no video was found or two class names differ in letter case or underscores alone."""
    if not any(lists.lines.values()):
        raise UserError(f"none of the {lists.videos:,} videos below {root} can be listed; wanted is {shape}")
    keys = Counter(ClassNames._key(name) for name in lists.classes)
    if twice := [name for name in lists.classes if keys[ClassNames._key(name)] > 1]:
        raise UserError(f"classes {twice[0]!r} and {twice[1]!r} differ in case or underscores alone; merge or rename")
    return lists


def check_out(out: Path, inputs: Sequence[str], force: bool) -> None:
    """Raise UserError where a file would be overwritten; to be asked before the walk, which may take minutes."""
    for file in (out / name for name in (*(f"{split}.csv" for split in SPLITS), "missing.txt", "classes.txt")):
        if not file.exists():
            continue
        if any(os.path.exists(given) and file.samefile(given) for given in inputs):
            if file.name == "classes.txt":
                continue  # it is written again as it is
            raise UserError(f"{file} is the official list that is read and cannot be written; give another --out")
        if not force:
            raise UserError(f"{file} exists and is not overwritten; give another --out, or --force")


def write_lists(lists: Lists, out: Path) -> str:
    """Write SPLIT.csv of each split with videos, classes.txt and, where videos are missing, missing.txt.

    Returns:
        A summary for the terminal.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = {f"{split}.csv": [f"{path} {label}" for path, label in lines] for split, lines in lists.lines.items()}
    texts["classes.txt"] = lists.classes
    texts["missing.txt"] = [f"{split} {name}" for split, names in lists.missing.items() for name in names]
    written = []
    for name, lines in texts.items():
        if lines:
            (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
            written.append(str(out / name))
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier run, that --force replaces
    return "\n".join([_table(lists), *lists.notes, f"wrote {', '.join(written)}"])


def _table(lists: Lists) -> str:
    rows = [["", "listed", "found", "missing", "fewest in a class"]]
    for split in SPLITS:
        found, missing = len(lists.lines[split]), len(lists.missing[split])
        if found + missing:
            counts = Counter(label for _, label in lists.lines[split])
            fewest = min(range(len(lists.classes)), key=lambda label: counts[label])
            share = f" ({100 * missing / (found + missing):.1f} %)" if missing else ""
            cells = [f"{found + missing:,}", f"{found:,}", f"{missing:,}{share}"]
            rows.append([split, *cells, f"{counts[fewest]:,} ({lists.classes[fewest]})"])
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    used = sum(map(len, lists.lines.values()))
    lines.append(
        f"{len(lists.classes):,} classes; files that no list names: {lists.videos - used:,} of {lists.videos:,}"
    )
    return "\n".join(lines)
