"""Csv tables, read by Python's own csv and against literal bytes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from video_gn.errors import UserError
from video_gn.files.tables import RFC_4180, csv_text, foreign_table, read_table, row_text, write_table

COLUMNS = ("path", "reason")
ODD = ["a,b", 'say "x"', "two\nlines", "ü", "", " c ", "#d"]


def test_bytes_of_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", COLUMNS, [{"reason": 'x, "y"', "path": "ü", "other": 1}, {"path": 2}], "")
    assert (tmp_path / "a.csv").read_bytes() == 'path,reason\r\nü,"x, ""y"""\r\n2,\r\n'.encode()
    assert csv_text([["a", 1.5], ["b,", None]]) == 'a,1.5\n"b,",\n'
    assert csv_text([], RFC_4180) == ""


@pytest.mark.parametrize("end", ["\n", RFC_4180])
def test_odd_values_come_back(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_text([COLUMNS, *((value, value) for value in ODD)], end).encode("utf-8"))
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ODD
    assert [row["reason"] for row in read_table(path, COLUMNS)] == ODD
    with foreign_table(path, "give another") as table:
        assert [row["path"] for row in table] == ODD


def test_a_line_without_its_end_was_cut_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert read_table(path, COLUMNS) == []
    write_table(path, COLUMNS, [{"path": "a"}], "")
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(row_text({"path": "b"}, COLUMNS) + '"c')
    assert [row["path"] for row in read_table(path, COLUMNS)] == ["a", "b"]
    with pytest.raises(UserError, match=r"a\.csv does not have the columns path, bytes; restore it"):
        read_table(path, ("path", "bytes"))


@pytest.mark.parametrize("content", [None, b"path\n\xff\n", b"path\n" + b"x" * 200_000 + b"\n"])
def test_a_foreign_table_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    error = pytest.raises(UserError, match=r"^cannot read .*a\.csv: .*; give the official csv$")
    with error, foreign_table(path, "give the official csv") as table:
        list(table)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffpath,label\na,1\n".encode())
    with foreign_table(tmp_path / "a.csv", "") as table:
        assert list(table) == [{"path": "a", "label": "1"}]
        assert table.line_num == 2
