"""Make the Kinetics-400 lists ``train.csv`` and ``val.csv`` from a folder of downloaded videos.

Every line is ``path label``, the path relative to VIDEO_ROOT. A video is known by its file name, ``ID.mp4``
or ``ID_START_END.mp4`` (or another suffix of a video), in whatever folder below VIDEO_ROOT it lies. Where the name
tells a start other than the listed one, the file is another part of the YouTube video and is not taken.
The ids not found go into missing_train.txt and missing_val.txt beside the lists. Kinetics-600 and 700:
tools/make_lists.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from video_gn.data.list_files import check_out, write_files
from video_gn.data.listing import ClassNames, left_out_text
from video_gn.data.lists import format_line, read_class_names
from video_gn.data.video_tree import Video, find_videos
from video_gn.errors import UserError

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 400
OUTPUTS = ("train.csv", "val.csv", "missing_train.txt", "missing_val.txt")
MAX_SHOWN = 10  # duplicates printed one by one


@dataclass(frozen=True)
class Listed:
    """A row of an official list."""

    youtube_id: str
    start: int
    label: int


@dataclass
class Split:
    """What was found of one list."""

    lines: list[tuple[str, int]] = field(default_factory=list)
    """(path, label) of the list to write."""
    missing: list[str] | None = None
    """Ids listed but not found; None where no official list tells what there should be."""
    other_start: int = 0
    """How many of the missing are there with another start."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """(path taken, path left) of files with the same id."""

    @property
    def paths(self) -> set[str]:
        """All files that the list knows."""
        return {path for path, _ in self.lines} | {left for _, left in self.duplicates}


def read_listed(file: str, classes: ClassNames) -> list[Listed]:
    """Rows of an official csv (label: a class name) or of our val.csv (label: a number)."""
    rows: dict[str, Listed] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = {"youtube_id", "time_start", "label"} - set(reader.fieldnames or ())
            if lacking:
                raise UserError(f"{file} has no column {min(lacking)!r}; give the official csv with its header")
            for row in reader:
                listed = _listed(row, classes, f"{file}, line {reader.line_num}")
                if listed.youtube_id in rows:
                    raise UserError(f"{file}, line {reader.line_num}: id {listed.youtube_id} twice; remove one row")
                rows[listed.youtube_id] = listed
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {file}: {error}; give the official csv") from None
    return list(rows.values())


def _listed(row: dict[str, str | None], classes: ClassNames, where: str) -> Listed:
    youtube_id, start, name = row["youtube_id"], row["time_start"], row["label"]
    if not youtube_id or not name or not start or not start.isdecimal():
        raise UserError(f"{where}: needs an id, a start in seconds and a label; give the official csv")
    label = int(name) if name.isdecimal() else classes.label(name)
    if label is None or label >= NUM_CLASSES:
        raise UserError(f"{where}: {name!r} is none of the {NUM_CLASSES} classes; {classes.hint(name)}")
    return Listed(youtube_id, int(start), label)


def match_listed(listed: list[Listed], videos: list[Video], folder: str) -> Split:
    """The files of the listed videos, in the list's order.

    Of several files with one id, the one whose name tells the start is taken, then the one below ``folder``,
    then the first by path.
    """
    by_id: dict[str | None, list[Video]] = defaultdict(list)
    for video in videos:
        by_id[video.youtube_id].append(video)
    missing: list[str] = []
    split = Split(missing=missing)
    for row in listed:
        same_id = by_id.get(row.youtube_id, [])
        files = [video for video in same_id if video.start in (None, row.start)]
        if not files:
            missing.append(row.youtube_id)
            split.other_start += bool(same_id)
            continue
        files.sort(key=lambda v: (v.start is None, not v.path.startswith(f"{folder}/"), v.path))
        split.lines.append((files[0].path, row.label))
        split.duplicates += [(files[0].path, other.path) for other in files[1:]]
    return split


def train_by_folder(videos: list[Video], classes: ClassNames, val_ids: set[str]) -> Split:
    """All videos below ``train/`` but those of the validation list; the folder's name is the class."""
    split, taken, unknown = Split(), dict[str, str](), Counter[str]()
    for video in videos:
        if not video.path.startswith("train/") or video.youtube_id in val_ids:
            continue
        folder = PurePosixPath(video.path).parent
        label = classes.label(folder.name)
        if label is None:
            unknown[str(folder)] += 1
        elif video.youtube_id in taken:
            split.duplicates.append((taken[video.youtube_id], video.path))
        else:
            if video.youtube_id:
                taken[video.youtube_id] = video.path
            split.lines.append((video.path, label))
    if "train" in unknown:
        raise UserError(
            f"{unknown['train']:,} videos lie in train/ itself, and no folder tells their class; "
            "give the official list: --train-csv train.csv"
        )
    if unknown:
        name, others = next(iter(unknown)), len(unknown) - 1
        more = f" ({others} more such folders)" if others else ""
        hint = classes.hint(PurePosixPath(name).name)
        raise UserError(f"folder {name!r} names no Kinetics-400 class; {hint} Rename or move it{more}")
    return split


def table(splits: dict[str, Split], videos: list[Video], names: list[str]) -> str:
    """What was found, for the terminal."""
    rows = [["", *splits]]
    cells = [_cells(split, names) for split in splits.values()]
    rows += [[head, *(column[head] for column in cells)] for head in cells[0]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for head, *values in rows:
        lines.append("  ".join([head.ljust(widths[0]), *map(str.rjust, values, widths[1:])]))
    known = set().union(*(split.paths for split in splits.values()))
    unknown = sum(video.path not in known for video in videos)
    lines.append(f"files that no list knows: {unknown:,} of {len(videos):,}")
    duplicates = [pair for split in splits.values() for pair in split.duplicates]
    lines += [f"same id twice: took {taken}, left {left}" for taken, left in duplicates[:MAX_SHOWN]]
    if len(duplicates) > MAX_SHOWN:
        lines.append(f"same id twice: {len(duplicates) - MAX_SHOWN:,} more")
    return "\n".join(lines)


def _cells(split: Split, names: list[str]) -> dict[str, str]:
    found = len(split.lines)
    counts = Counter(label for _, label in split.lines)
    fewest = min(range(len(names)), key=lambda label: counts[label])
    listed, missing = "-", "-"
    if split.missing is not None:
        total, count = found + len(split.missing), len(split.missing)
        listed, missing = f"{total:,}", f"{count:,} ({100 * count / max(total, 1):.1f} %)"
    return {
        "listed": listed,
        "found": f"{found:,}",
        "missing": missing,
        "missing, there with another start": f"{split.other_start:,}",
        "duplicates": f"{len(split.duplicates):,}",
        "fewest in a class": f"{counts[fewest]:,} ({names[fewest]})",
    }


def texts_of(name: str, split: Split) -> dict[str, str]:
    """Return the text of ``NAME.csv`` and, where an official list states what is missing, of ``missing_NAME.txt``."""
    return {
        f"{name}.csv": "".join(f"{format_line(path, label)}\n" for path, label in split.lines),
        f"missing_{name}.txt": "".join(f"{youtube_id}\n" for youtube_id in split.missing or ()),
    }


def make_lists(root: str, out: Path, val_csv: str, train_csv: str | None, force: bool) -> str:
    """Do all of it; returns the table. Raises UserError for whatever the user can mend."""
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder; give the folder of the downloaded videos")
    check_out(out, [val_csv, train_csv] if train_csv else [val_csv], force, OUTPUTS[:2])
    names = read_class_names(str(HERE / "classes.txt"), "", NUM_CLASSES)
    classes = ClassNames(names)
    val = read_listed(val_csv, classes)
    train = read_listed(train_csv, classes) if train_csv else None
    found = find_videos(root, OUTPUTS)
    val_ids = {row.youtube_id for row in val}
    splits = {
        "val": match_listed(val, found.videos, "val"),
        "train": train_by_folder(found.videos, classes, val_ids)
        if train is None
        else match_listed(train, found.videos, "train"),
    }
    if not any(split.lines for split in splits.values()):
        raise UserError(
            f"none of the {len(found.videos):,} videos below {root} is listed; a video is ID.mp4 or "
            "ID_START_END.mp4 (or another suffix of a video), or any name in train/CLASS/: check the folder"
        )
    report = [table(splits, found.videos, names), *left_out_text(found)]
    texts: dict[str, str] = {}
    for name, split in splits.items():
        if split.lines:
            texts |= texts_of(name, split)
        else:
            report.append(f"no {name}.csv written: no {name} video was found")
    return "\n".join([*report, *write_files(out, texts)])


def main(arguments: list[str] | None = None) -> int:
    """Parse and call."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python make_lists.py /videos/k400 --train-csv /videos/k400/annotations/train.csv",
    )
    parser.add_argument("video_root", metavar="VIDEO_ROOT", help="folder of the videos, data.root of the experiments")
    parser.add_argument("--out", metavar="DIR", help="where the lists go (default: VIDEO_ROOT)")
    parser.add_argument(
        "--train-csv",
        metavar="CSV",
        help="official training list; without it all of VIDEO_ROOT/train/CLASS/ is taken",
    )
    parser.add_argument(
        "--val-csv",
        metavar="CSV",
        default=str(HERE / "val.csv"),
        help="validation list (default: the one beside)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite lists that exist")
    args = parser.parse_args(arguments)
    out = Path(args.out or args.video_root)
    try:
        print(make_lists(args.video_root, out, args.val_csv, args.train_csv, args.force))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
