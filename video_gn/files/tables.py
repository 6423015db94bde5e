"""Csv tables: text from rows, and rows from a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from video_gn.errors import UserError
from video_gn.files.atomic import write_text

Row = dict[str, str]

RFC_4180 = "\r\n"
"""Line end of the standard, which spreadsheets write; other tables end their lines as all text files do."""


def csv_text(rows: Iterable[Iterable[object]], end: str = "\n") -> str:
    """Return rows as lines of a csv, values quoted where they need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue()


def csv_rows(path: Path) -> list[list[str]]:
    """Return the rows of a csv that `csv_text` made. Raises OSError, and ValueError where it is not UTF-8 or no csv."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def row_text(row: Mapping[str, object], columns: Sequence[str], end: str = RFC_4180) -> str:
    """Return a row of a table with these columns as a line; a value that it lacks is empty, others are left out."""
    return csv_text([[row.get(column, "") for column in columns]], end)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], elsewhere: str) -> None:
    """Write a table with a header atomically, to be read by `read_table`. Raises UserError where that fails."""
    lines = (row_text(row, columns) for row in rows)
    write_text(path, csv_text([columns], RFC_4180) + "".join(lines), elsewhere, durable=False)


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table that `write_table` began, to which lines may have been added; [] without a file.

    A last line without its end was cut by a kill, and is not a row.

    Raises:
        UserError: it has other columns.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if tuple(table.fieldnames or ()) != tuple(columns):
        raise UserError(f"{path} does not have the columns {', '.join(columns)}; restore it, or name another folder")
    return list(table)


@contextmanager
def foreign_table(path: str | os.PathLike[str], remedy: str) -> Iterator[csv.DictReader[str]]:
    """Open a csv that a person or another program wrote, with or without a byte order mark, and close it again.

    Raises:
        UserError: it is missing, not UTF-8 or not a csv, noticed in the body of the `with`; `remedy` says what to do.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}; {remedy}") from None
