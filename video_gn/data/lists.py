"""Read and check a data list: one video per line, ``path label``, or ``path,3;17`` with any number of labels.

The label is what follows the last separator, so a path may contain spaces, commas and any letter; the
separator is a run of spaces or tabs, or a comma with or without blanks around it. A path in double quotes is
read as in csv: without them, a doubled quote inside is one; a label may be in double quotes, too. Where a video may
have no label, its line ends in a comma, in the quotes around its path, or is a path without blanks and commas. UTF-8
with or without a byte order mark, LF or CRLF. Empty lines and lines that start with ``#`` are skipped, and so is a
header whose last column is ``label`` or ``labels``. Lists in other programs' forms are refused, with the form's name
(`list_forms`).

Kinetics' official csv is known by its header ``label,youtube_id,time_start,time_end,split[,is_cc]``, in any
order: its videos are ``ID_START_END.mp4`` right below the root, its labels names of classes (or numbers). For
videos in folders of their classes, or with other names, ``data_lists/kinetics400/make_lists.py`` makes lists of
what is on the disk.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from video_gn.console import say
from video_gn.data import list_forms, stores
from video_gn.data.targets import SEPARATOR, BadTarget, Target, parse_one, text_of
from video_gn.errors import UserError
from video_gn.files.children import call_in_child

BLANKS = " \t"  # the separators beside the comma; every other character may stand in a path
INTEGER = re.compile(r"-?[0-9]{1,18}")
LABELS = re.compile(r'("?)[-0-9;]*\1')
JOINED = re.compile(r"(?:(?<=[ \t,\"])|^)-?[0-9]+(?:[ \t]*;[ \t]*-?[0-9]+)+(?=\"?$)")
HEADERS = ("label", "labels")
QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"(?!")(.*)', re.DOTALL)
AFTER_QUOTED = re.compile(r"(?:[ \t]*,[ \t]*|[ \t]+)([^ \t,]+)")
KINETICS_COLUMNS = {"label", "youtube_id", "time_start", "time_end"}
SECONDS = re.compile(r"[0-9]{1,6}")
MAX_SHOWN = 20  # faults told one by one
THREADS, FILES_A_TASK = 64, 64  # a look at a network disk is all waiting
URLS_LOOKED_AT = 16  # of a list: a request each
FORMS_LOOKED_AT = 5  # of the files that are not there, to find out in which form the list is


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a list."""

    path: str
    """As the list names it, with forward slashes; this is what score files print."""
    target: Target
    """What the line says of the video."""
    line: int = field(default=0, compare=False)
    """Its number in the list, from 1; 0 where there is no list."""


class _BadLine(Exception):
    """What is wrong with one line, and the remedy."""


def find_list(list_path: str, root: str) -> Path:
    """Return the list's own path: as given, else under ``root``, where no URL. Raises UserError naming both places."""
    places = [Path(list_path)] if stores.is_url(root) else [Path(list_path), Path(root) / list_path]
    for place in places:
        if place.is_file():
            return place
    tried = " nor ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"no file {list_path!r}: there is neither {tried}; correct the path or set data.root")


def read_list(
    list_path: str,
    root: str,
    num_classes: int,
    class_names: list[str] | None = None,
    *,
    absolute_paths: bool = False,
    parse: Callable[[str], Target] | None = None,
) -> list[Record]:
    """Return the records of a list in the order of its lines; see the module's text for the format.

    Args:
        class_names: by label; what Kinetics' official csv needs and no other list.
        absolute_paths: whether entries may lie outside of ``root``: be absolute, or URLs, or lead out of it by ``..``.
        parse: reads what follows a path, as a task does; without it, that is one label. Raises BadTarget.

    Raises:
        UserError: a missing, empty or non-UTF-8 file, Kinetics' csv without ``class_names``; or all of its bad lines:
            with a target that cannot be read, such as a label that is not an integer in [0, num_classes) or (Kinetics)
            a class name, with an unbalanced quote, with a path that appears twice or leaves ``root``.
    """
    parse = parse or partial(parse_one, num_classes=num_classes)
    file = find_list(list_path, root)
    numbered = enumerate((raw.strip(BLANKS) for raw in _read_lines(file)), start=1)
    lines = [(number, line) for number, line in numbered if line and line[0] != "#"]
    columns = _columns(lines[0][1]) if lines else []
    fields: Callable[[str], tuple[str, str]] = _fields
    if KINETICS_COLUMNS.issubset(columns):
        if class_names is None:
            raise UserError(f"{file} is a csv of Kinetics, with names for labels; set data.class_names to their file")
        fields = _kinetics_fields(columns, class_names)
        lines = lines[1:]
    elif len(columns) > 1 and columns[-1] in HEADERS:
        lines = lines[1:]
    records = _records(file, lines, fields, parse, num_classes, None if absolute_paths else root)
    if not records:
        raise UserError(f"{file} lists no video; write one per line, as `path label`")
    return records


def format_line(path: str, target: Target) -> str:
    """Return the line of a list that `read_list` reads as this path and target; the path has no line break."""
    text = text_of(target)
    bare = path == path.strip(BLANKS) and path[0] not in '#"' and path[-1] not in ",;"
    bare = bare and bool(text or not list_forms.ENDS_IN_LABEL.search(path))
    quoted = path if bare else '"' + path.replace('"', '""') + '"'
    return f"{quoted} {text}" if text else f"{quoted},"


def name_some(names: Sequence[str]) -> str:
    """Return the first 20 of the names, and how many more there are."""
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


def video_path(record: Record, root: str) -> str:
    """Where the video lies, a path or URL: the record's path under ``root``; an absolute path or a URL stays."""
    if stores.is_url(root) and not os.path.isabs(record.path) and not stores.is_url(record.path):
        return stores.join(root, record.path)
    return record.path if stores.is_url(record.path) else os.path.join(root, record.path)


def read_class_names(path: str | None, root: str, num_classes: int) -> list[str]:
    """Class names by label: one a line, in a file tried as given and then under ``root``.

    Without a file (None) the names are "0", "1", and so on. Raises UserError for a missing or non-UTF-8 file,
    an empty line between names, a name that stands twice and a number of names that is not ``num_classes``.
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
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} names {twice!r} twice: each class has one line; remove one")
    if len(names) != num_classes:
        raise UserError(f"{file} names {len(names)} classes but model.num_classes is {num_classes}; make the two agree")
    return names


def check_files(records: list[Record], root: str, list_path: str) -> None:
    """Look for the file of every record; a bar on a terminal where that takes more than 2 seconds.

    A missing file is a fault of the list, unlike one that is there and cannot be decoded (data.max_unreadable).
    Of a root that is a URL, 16 files are looked for.

    Raises:
        UserError: how many files are missing, and the first 20 with their line numbers; a store cannot be reached.
    """
    if not stores.is_url(root):
        missing = _missing(records, root)
    else:
        if len(records) > URLS_LOOKED_AT:
            say(f"{list_path}: of {len(records):,} files in {root}, {URLS_LOOKED_AT} are looked for")
            records = [records[i * len(records) // URLS_LOOKED_AT] for i in range(URLS_LOOKED_AT)]
        # In a process of its own: a store's client has threads, whose locks a worker forked from here might wait for.
        missing = call_in_child(_missing, records, root)
    if missing:
        shown = name_some([f"line {record.line} ({record.path!r})" for record in missing])
        raise UserError(
            f"{list_path}: {len(missing):,} of {len(records):,} files are not there: {shown}; "
            f"{_remedy(missing, root, list_path)}"
        )


def _remedy(missing: list[Record], root: str, list_path: str) -> str:
    """Return what to write or set so that the files are found, by some of those that are not."""
    general = f"correct data.root ({root!r}) or the list"
    if stores.is_url(root):
        return general
    some = missing[:: math.ceil(len(missing) / FORMS_LOOKED_AT)]
    if folder := list_forms.other_root([record.path for record in some], root, list_path):
        return f"they are in {folder!r}, and data.root is {root!r}; set data.root={folder}"
    forms = [list_forms.form_of_path(record.path, root) for record in some]
    if forms[0] is None or None in forms:
        return general
    form, instead = forms[0]
    return f"{form}; write `{format_line(instead, some[0].target)}` in line {some[0].line}, and the others alike"


def _missing(records: list[Record], root: str) -> list[Record]:
    """Those of the records whose file is not there."""

    def absent(some: list[Record]) -> list[Record]:
        return [record for record in some if not _is_file(video_path(record, root))]

    tasks = [records[i : i + FILES_A_TASK] for i in range(0, len(records), FILES_A_TASK)]
    missing: list[Record] = []
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(records), desc="looking for files", unit="file", delay=2, leave=False, disable=None) as bar,
    ):
        for some, found in zip(tasks, pool.map(absent, tasks), strict=True):
            missing += found
            bar.update(len(some))
    return missing


def _is_file(path: str) -> bool:
    if not stores.is_url(path):
        return os.path.isfile(path)
    try:
        stores.fetch_new(path, first=1)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot reach {path}: {error}; check data.root, the network and the store's keys") from None
    return True


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


def _records(
    file: Path,
    lines: list[tuple[int, str]],
    fields: Callable[[str], tuple[str, str]],
    parse: Callable[[str], Target],
    num_classes: int,
    root: str | None,
) -> list[Record]:
    """Numbered lines -> records, none outside of `root`. Raises UserError for all bad lines at once."""
    records: list[Record] = []
    first_seen: dict[str, int] = {}  # path -> line number
    faults: list[str] = []
    for number, line in lines:
        try:
            path, text = fields(line)
            if not path:
                raise _BadLine("a path and a label are needed; write `path label`")
            target = parse(text)
            if root is not None and _leaves(path, root):
                raise _BadLine("the path leaves data.root; write it relative to that, or set data.absolute_paths=true")
            earlier = first_seen.setdefault(path, number)
            if earlier != number:
                raise _BadLine(f"the path already stands in line {earlier}; remove one of the two")
            records.append(Record(path, target, number))
        except (_BadLine, BadTarget) as fault:
            found = f"line {number} ({line[:60]!r}): {fault}"
            if isinstance(fault, BadTarget) and fault.of_list:
                raise UserError(f"{file}, {found}") from None
            faults.append(found)
    if faults:
        if form := list_forms.form_of_lines([line for _, line in lines]):
            name, first, instead = form
            raise UserError(f"{file}: {name}; write `{instead}` in line {lines[first][0]}, and the others alike")
        if list_forms.labels_from_one(_integers(lines, fields), num_classes):
            raise UserError(
                f"{file}: labels begin at 0, and these are 1 to {num_classes} for model.num_classes {num_classes}; "
                "subtract 1 from each"
            )
        more = f" | and {len(faults) - MAX_SHOWN:,} more bad lines" if len(faults) > MAX_SHOWN else ""
        raise UserError(f"{file}, {' | '.join(faults[:MAX_SHOWN])}{more}")
    return records


def _integers(lines: list[tuple[int, str]], fields: Callable[[str], tuple[str, str]]) -> list[int]:
    """Return the labels of all lines; none where one is not an integer."""
    try:
        texts = [fields(line)[1] for _, line in lines]
        return [int(label) for text in texts if text for label in text.split(SEPARATOR)]
    except (_BadLine, ValueError):
        return []


def _columns(header: str) -> list[str]:
    """Return the words of a header; of another line, something that is none."""
    return [word.strip('"') for word in re.split(r"[ \t]*,[ \t]*|[ \t]+", header)]


def _fields(line: str) -> tuple[str, str]:
    """Return the path of a line without whitespace at its ends, and the text of its target, which may be empty."""
    line = JOINED.sub(lambda labels: labels[0].replace(" ", "").replace("\t", ""), line)
    if line[0] == '"':
        return _quoted_fields(line)
    cut = line.replace(",", " ").replace("\t", " ").rfind(" ")
    path, text = line[: max(cut, 0)].rstrip(BLANKS), line[cut + 1 :]
    if line[cut] != "," and path.endswith(","):  # "path, label"
        path = path[:-1].rstrip(BLANKS)
    if cut < 0 and not LABELS.fullmatch(text) and not list_forms.SEMICOLON.fullmatch(text):  # a path only
        return text, ""
    if not text and list_forms.ENDS_IN_LABEL.search(path):
        raise _BadLine('a comma follows the label; remove it, or put the path in quotes: `"path",`')
    return path, _unquoted(text)


def _quoted_fields(line: str) -> tuple[str, str]:
    quoted = QUOTED.fullmatch(line)
    if quoted is None:
        raise _BadLine('a quote is not closed; write `"path" label`, a quote inside the path twice')
    path, rest = quoted[1].replace('""', '"'), quoted[2]
    after = AFTER_QUOTED.fullmatch(rest)
    if rest.strip(", \t") and after is None:
        raise _BadLine(f'{rest[:20]!r} follows the quoted path; write `"path" label`, a quote inside the path twice')
    return path, _unquoted(after[1]) if after else ""


def _unquoted(text: str) -> str:
    """Labels without the double quotes around them; other text as it is."""
    return text.strip('"') if LABELS.fullmatch(text) and len(text) != 1 else text


def _kinetics_fields(columns: list[str], class_names: list[str]) -> Callable[[str], tuple[str, str]]:
    """Return what reads a row of Kinetics' csv, as `_fields` does a line."""
    labels = {name: str(label) for label, name in enumerate(class_names)}

    def fields(line: str) -> tuple[str, str]:
        try:
            values = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise _BadLine(f"not a row of csv ({error}); correct it") from None
        if len(values) != len(columns):
            raise _BadLine(f"{len(values)} fields and not the header's {len(columns)}; correct the row")
        row = dict(zip(columns, values, strict=True))
        youtube_id, start, end, name = (row[key].strip() for key in ("youtube_id", "time_start", "time_end", "label"))
        if not youtube_id or not SECONDS.fullmatch(start) or not SECONDS.fullmatch(end):
            raise _BadLine("a youtube_id, a start and an end in whole seconds are needed; correct the row")
        if name not in labels and not INTEGER.fullmatch(name):
            raise _BadLine(f"{name[:40]!r} is no name of data.class_names; correct one of the two")
        return f"{youtube_id}_{int(start):06d}_{int(end):06d}.mp4", labels.get(name, name)

    return fields


def _leaves(path: str, root: str) -> bool:
    """Whether a path leads out of the root, by what is written: links are followed wherever they lead."""
    if stores.is_url(path):
        return True
    if stores.is_url(root):  # stores have no folders to go up from; with "::" fsspec would read something else
        return path[0] == "/" or "::" in path or ".." in path.split("/")
    if path[0] != "/" and ".." not in path:
        return False
    top = os.path.abspath(root).rstrip("/") + "/"
    return not f"{os.path.normpath(os.path.join(top, path))}/".startswith(top)
