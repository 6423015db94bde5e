"""Lists checked by decoding every file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from video_gn.data.decode import VideoError
from video_gn.data.lists import video_path
from video_gn.data.prepare.names import read_records
from video_gn.data.prepare.processes import in_children, with_bar
from video_gn.data.prepare.video import check_video
from video_gn.errors import UserError
from video_gn.files.tables import Row, foreign_table, read_table, row_text, write_table

REPORT = ("path", "frames", "fps", "width", "height", "duration", "problem")
JOURNAL = (*REPORT, "bytes", "mtime_ns")
ELSEWHERE = "give another file after the list"


def check_list(
    list_path: str, report: Path | None, root: str, *, jobs: int | None = None, time_limit: float = 600
) -> tuple[str, dict[str, str]]:
    """Decode every video of a list; write a csv (REPORT) with one row per video, in the list's order.

    What an interrupted check has found is in a hidden file next to the report: the next one decodes those videos again
    that had a problem or have changed since, and those that were not reached.

    Args:
        report: the csv; None is LIST.report.csv next to the list.
        root, jobs, time_limit: as in `prepare_list`.

    Returns:
        A line of numbers, and the problems found, by their paths in the list.

    Raises:
        UserError: a bad list, or the report cannot be written.
    """
    begun = time.monotonic()
    file, records = read_records(list_path, root)
    report = report or file.with_name(f"{file.stem}.report.csv")
    if report.resolve() == file.resolve() or not os.access(report.parent, os.W_OK) or report.is_dir():
        raise UserError(f"cannot write the report {report}; give another file after the list")
    journal = report.with_name(f".{report.name}.begun")
    known = {row["path"]: row for row in read_table(journal, JOURNAL) if not row["problem"]}
    sources = [video_path(record, root) for record in records]
    rows: list[Row] = []
    for record, source in zip(records, sources, strict=True):
        row = {"path": record.path, "problem": "", **_size_and_time(source)}
        found = known.get(record.path, {})
        rows.append(found if row.items() <= found.items() else row)
    todo = [index for index, row in enumerate(rows) if "frames" not in row]
    write_table(journal, JOURNAL, (row for row in rows if "frames" in row), ELSEWHERE)
    results = in_children(check_video, [(sources[index],) for index in todo], jobs, time_limit)
    with open(journal, "a", encoding="utf-8", newline="") as file_of_rows:
        for number, result in with_bar(results, len(todo), "checking"):
            row = rows[todo[number]]
            row |= {"problem": result.reason} if isinstance(result, VideoError) else result
            file_of_rows.write(row_text(row, JOURNAL))
            file_of_rows.flush()  # from here on a kill cannot lose it
    write_table(report, REPORT, rows, ELSEWHERE)
    journal.unlink()
    bad = {row["path"]: row["problem"] for row in rows if row["problem"]}
    before = f" ({len(rows) - len(todo)} of them before)" if len(todo) < len(rows) else ""
    text = f"{len(rows) - len(bad)} good{before}, {len(bad)} with problems"
    return f"{text}; {time.monotonic() - begun:.0f} s; {report}", bad


def _size_and_time(source: str) -> Row:
    """Return what tells whether a file has changed; empty where it is gone or on a server."""
    try:
        status = os.stat(source)
    except OSError:
        return {"bytes": "", "mtime_ns": ""}
    return {"bytes": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}


def read_report(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the problems, by path as in the list, that a report of `check_list` or a quarantine.csv names.

    Raises:
        UserError: the file is missing or is neither of them.
    """
    with foreign_table(path, "make it with tools/prepare.py --check") as table:
        columns = table.fieldnames or ()
        column = "problem" if "problem" in columns else "reason"
        if "path" not in columns or column not in columns:
            raise UserError(f"{path} has no columns path and problem; give a report of tools/prepare.py --check")
        return {row["path"]: row[column] for row in table if row["path"] and row[column]}
