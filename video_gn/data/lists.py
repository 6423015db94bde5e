"""Read and check a data list: one video a line, ``path label``.

The label is what follows the last separator, so a path may contain spaces, commas and any letter; the
separator is a run of spaces or tabs, or a comma with or without blanks around it. UTF-8 with or without a
byte order mark, LF or CRLF. Empty lines and lines that start with ``#`` are skipped.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from video_gn.errors import UserError

BLANKS = " \t"  # the separators beside the comma; every other character may stand in a path
INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a list."""

    path: str
    """As the list names it, with forward slashes; this is what score files print."""
    label: int
    """0 <= label < num_classes."""


class _BadLine(Exception):
    """What is wrong with one line, and the remedy."""


def find_list(list_path: str, root: str) -> Path:
    """The list's own path: as given, else under ``root``. Raises UserError naming both places tried."""
    places = [Path(list_path), Path(root) / list_path]
    for place in places:
        if place.is_file():
            return place
    tried = " nor ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"no file {list_path!r}: there is neither {tried}; correct the path or set data.root")


def read_list(list_path: str, root: str, num_classes: int) -> list[Record]:
    """The records of a list in the order of its lines; see the module's text for the format.

    Raises UserError for a missing, empty or non-UTF-8 file, a line without a label, a label that is not an
    integer in [0, num_classes), and a path that appears twice: the first bad line, and how many more.
    """
    file = find_list(list_path, root)
    records: list[Record] = []
    first_seen: dict[str, int] = {}  # path -> line number
    problems: list[str] = []
    for number, raw in enumerate(_read_lines(file), start=1):
        line = raw.strip(BLANKS)
        if not line or line[0] == "#":
            continue
        try:
            record = _parse(line, num_classes)
            earlier = first_seen.setdefault(record.path, number)
            if earlier != number:
                raise _BadLine(f"the path already stands in line {earlier}; remove one of the two")
            records.append(record)
        except _BadLine as problem:
            problems.append(f"{file}, line {number} ({line[:80]!r}): {problem}")
    if problems:
        more = f" (and {len(problems) - 1:,} more bad lines)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not records:
        raise UserError(f"{file} lists no video; write one a line, as `path label`")
    return records


def video_path(record: Record, root: str) -> str:
    """Where the video lies: the record's path under ``root``; an absolute path stays as it is."""
    return os.path.join(root, record.path)


def read_class_names(path: str | None, root: str, num_classes: int) -> list[str]:
    """Class names by label: one a line, in a file tried as given and then under ``root``.

    Without a file (None) the names are "0", "1", and so on. Raises UserError for a missing or non-UTF-8 file,
    an empty line between names and a number of names that is not ``num_classes``.
    """
    if path is None:
        return [str(label) for label in range(num_classes)]
    file = find_list(path, root)
    names = [line.strip() for line in _read_lines(file)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        number = names.index("") + 1
        raise UserError(
            f"{file}, line {number} is empty: the line number is the label; remove the line or name the class"
        )
    if len(names) != num_classes:
        raise UserError(f"{file} names {len(names)} classes but model.num_classes is {num_classes}; make the two agree")
    return names


def check_some_exist(records: list[Record], root: str, list_path: str, sample: int = 20) -> None:
    """Raise UserError if none of up to ``sample`` evenly spaced records exists: ``root`` is then wrong."""
    count = min(sample, len(records))
    tried = [video_path(records[k * len(records) // count], root) for k in range(count)]
    if tried and not any(os.path.exists(path) for path in tried):
        raise UserError(
            f"{list_path}: none of the {count} videos looked for exists, the first is {tried[0]!r}; "
            "set data.root to the folder that the list's paths start from"
        )


def _read_lines(file: Path) -> list[str]:
    """Lines of a UTF-8 file. Not str.splitlines, which also cuts at characters that a path may contain."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {number} is not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from None
    return text.replace("\r\n", "\n").split("\n")


def _parse(line: str, num_classes: int) -> Record:
    """A non-empty line without blanks at its ends -> record."""
    cut = line.replace(",", " ").replace("\t", " ").rfind(" ")
    path, text = line[: max(cut, 0)].rstrip(BLANKS), line[cut + 1 :]
    if line[cut] != "," and path.endswith(","):  # "path, label"
        path = path[:-1].rstrip(BLANKS)
    if not path or not text:
        raise _BadLine("a path and a label are needed; write `path label`")
    if not INTEGER.fullmatch(text):
        raise _BadLine(f"the label {text[:20]!r} is not an integer; write `path label`, comments start with #")
    label = int(text)
    if not 0 <= label < num_classes:
        raise _BadLine(f"the label {label} is outside 0 to {num_classes - 1}; correct it or set model.num_classes")
    return Record(path, label)
