"""Data lists: what is read, what is refused and in which words."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from video_gn.data.list_forms import form_of_lines, form_of_path
from video_gn.data.lists import (
    Record,
    check_files,
    find_list,
    format_line,
    read_class_names,
    read_list,
    video_path,
)
from video_gn.data.targets import parse_several
from video_gn.engine.datasets import list_warnings
from video_gn.errors import UserError


def read(
    folder: Path,
    content: bytes | str,
    num_classes: int = 400,
    class_names: list[str] | None = None,
    absolute_paths: bool = False,
) -> list[Record]:
    data = content.encode() if isinstance(content, str) else content
    (folder / "list.csv").write_bytes(data)
    return read_list("list.csv", str(folder), num_classes, class_names, absolute_paths=absolute_paths)


def refusal(folder: Path, content: bytes | str, num_classes: int = 10, class_names: list[str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        read(folder, content, num_classes, class_names)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.mp4 3", "a.mp4", 3),
        ("a.mp4\t3", "a.mp4", 3),
        ("a.mp4,3", "a.mp4", 3),
        ("a.mp4, 3", "a.mp4", 3),
        ("a.mp4 ,3", "a.mp4", 3),
        ("a.mp4  \t 3  ", "a.mp4", 3),
        ("air drumming/a b.mp4 1", "air drumming/a b.mp4", 1),
        ("one, two, ü.mp4,399", "one, two, ü.mp4", 399),
        ("one, two 7.mp4 0", "one, two 7.mp4", 0),
        ("12 12", "12", 12),
        ("a\x85b\u2028c\x0bd.mp4 5", "a\x85b\u2028c\x0bd.mp4", 5),  # str.splitlines would cut here
        ("abs/ü#.mp4 007", "abs/ü#.mp4", 7),
        ('"a b.mp4" 0', "a b.mp4", 0),
        ('"a, b.mp4",1', "a, b.mp4", 1),
        ('"a.mp4"\t , 2 ', "a.mp4", 2),
        ('"the ""best"", 2.mp4" 3', 'the "best", 2.mp4', 3),
        ('"""",4', '"', 4),
        ('"# no comment " 5', "# no comment ", 5),
        ('the "best".mp4 6', 'the "best".mp4', 6),  # quotes count in front alone
    ],
)
def test_one_line(tmp_path: Path, line: str, path: str, label: int) -> None:
    assert read(tmp_path, line) == [Record(path, label)]


def test_bom_crlf_comments_and_empty_lines(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfz.mp4 1\r\n\r\n# a comment 3\r\n   \t\r\n  # another\r\na.mp4 0\r\n"
    assert read(tmp_path, content) == [Record("z.mp4", 1), Record("a.mp4", 0)]


@pytest.mark.parametrize(
    ("content", "number", "line", "rule"),
    [
        ("a.mp4 1\nb.mp4\n", 2, "b.mp4", "a path and a label are needed"),
        ("a.mp4 1\n\n 3\n", 3, "3", "a path and a label are needed"),
        ("a.mp4,\n", 1, "a.mp4,", "a path and a label are needed"),
        (", 3\n", 1, ", 3", "a path and a label are needed"),
        ("path,class\n", 1, "path,class", "'class' is not an integer"),
        ("a.mp4 1\npath,label\n", 2, "path,label", "'label' is not an integer"),
        ("label\n", 1, "label", "a path and a label are needed"),
        ("a b.mp4\n", 1, "a b.mp4", "'b.mp4' is not an integer"),
        ("a.mp4 1.0\n", 1, "a.mp4 1.0", "'1.0' is not an integer"),
        ("a.mp4 ٣\n", 1, "a.mp4 ٣", "'٣' is not an integer"),
        ("# c\na.mp4 10\n", 2, "a.mp4 10", "10 is outside 0 to 9"),
        ("a.mp4 -1\n", 1, "a.mp4 -1", "-1 is outside 0 to 9"),
        ("a.mp4 1\nb.mp4 2\na.mp4 1\n", 3, "a.mp4 1", "already stands in line 1"),
        ("a.mp4 1\nb.mp4 2\nb.mp4,1\n", 3, "b.mp4,1", "already stands in line 2"),
        ('a.mp4 1\n"a.mp4",1\n', 2, '"a.mp4",1', "already stands in line 1"),
        ('"a b.mp4 0\n', 1, '"a b.mp4 0', "a quote is not closed"),
        ('"a""b.mp4 0\n', 1, '"a""b.mp4 0', "a quote is not closed"),
        ('"a.mp4"" 0\n', 1, '"a.mp4"" 0', "a quote is not closed"),
        ('" 0\n', 1, '" 0', "a quote is not closed"),
        ('"a" b.mp4 0\n', 1, '"a" b.mp4 0', "' b.mp4 0' follows the quoted path"),
        ('"a.mp4"0\n', 1, '"a.mp4"0', "'0' follows the quoted path"),
        ('"a.mp4",,0\n', 1, '"a.mp4",,0', "',,0' follows the quoted path"),
        ('"a b.mp4"\n', 1, '"a b.mp4"', "a path and a label are needed"),
        ('"",3\n', 1, '"",3', "a path and a label are needed"),
        ('"a b.mp4" x\n', 1, '"a b.mp4" x', "'x' is not an integer"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, content: str, number: int, line: str, rule: str) -> None:
    message = refusal(tmp_path, content)
    assert message.startswith(f"{tmp_path / 'list.csv'}, line {number} ({line!r}): ")
    assert rule in message
    assert " | " not in message


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'a.mp4 1\nb.mp4\nc.mp4 x\n\n"d.mp4 1\ne.mp4 40\nf.mp4 2\na.mp4 1\n')
    assert message == (
        f"{tmp_path / 'list.csv'}, line 2 ('b.mp4'): a path and a label are needed; write `path label`"
        " | line 3 ('c.mp4 x'): the label 'x' is not an integer; write `path label`, comments start with #"
        ' | line 5 (\'"d.mp4 1\'): a quote is not closed; write `"path" label`, a quote inside the path twice'
        " | line 6 ('e.mp4 40'): the label 40 is outside 0 to 9; correct it or set model.num_classes"
        " | line 8 ('a.mp4 1'): the path already stands in line 1; remove one of the two"
    )


@given(st.lists(st.booleans(), min_size=1, max_size=60))
@example([False] * 20)
@example([True] + [False] * 21)
def test_each_bad_line_is_told_up_to_20(good: list[bool]) -> None:
    content = "".join(f"{number}.mp4 {1 if ok else 'bad'}\n" for number, ok in enumerate(good, start=1))
    bad = [number for number, ok in enumerate(good, start=1) if not ok]
    with tempfile.TemporaryDirectory() as folder:
        if not bad:
            assert [record.line for record in read(Path(folder), content)] == list(range(1, len(good) + 1))
            return
        message = refusal(Path(folder), content)
    assert [int(number) for number in re.findall(r"line (\d+) \('\1.mp4 bad'\)", message)] == bad[:20]
    more = re.search(r"and (\d+) more bad lines$", message)
    assert (more and int(more[1])) == (len(bad) - 20 if len(bad) > 20 else None)


@pytest.mark.parametrize("content", ["x" * 10_000, '"' * 10_001, '"' + 'x""' * 10_000, '"x"' + " " * 10_000 + "x y"])
def test_long_line_is_cut(tmp_path: Path, content: str) -> None:
    message = refusal(tmp_path, content)
    assert f"line 1 ({content[:60]!r}): " in message
    assert len(message) < len(str(tmp_path)) + 250


def test_line_numbers_count_every_line(tmp_path: Path) -> None:
    records = read(tmp_path, "\ufeff# comment\r\n\r\npath,label\r\na.mp4 1\r\n\r\nb.mp4 2")
    assert [(record.path, record.target, record.line) for record in records] == [("a.mp4", 1, 4), ("b.mp4", 2, 6)]


@pytest.mark.parametrize("header", ["path,label", "path label", '"path","label"', "file , label", "id,name,label"])
def test_header_is_skipped(tmp_path: Path, header: str) -> None:
    assert read(tmp_path, f"# comment\n{header}\na.mp4,1\n") == [Record("a.mp4", 1)]
    assert "lists no video" in refusal(tmp_path, header)


# Kinetics' official csv

NAMES = ["abseiling", "air drumming", "bending, back", "massaging person's head", "7"]
HEADER = "label,youtube_id,time_start,time_end,split"


@pytest.mark.parametrize(
    ("header", "row", "path", "label"),
    [
        (f"{HEADER},is_cc", "abseiling,0wR5jVB-WPk,417,427,val,0", "0wR5jVB-WPk_000417_000427.mp4", 0),
        (HEADER, '"air drumming",-_BBBBBBBBB,0,10,train', "-_BBBBBBBBB_000000_000010.mp4", 1),
        (HEADER, "massaging person's head,AAAAAAAAAAA,7,17,train", "AAAAAAAAAAA_000007_000017.mp4", 3),
        (HEADER, '"bending, back",#AAAAAAAAAA,123456,123466,train', "#AAAAAAAAAA_123456_123466.mp4", 2),
        (HEADER, "7,AAAAAAAAAAA,1,2,train", "AAAAAAAAAAA_000001_000002.mp4", 4),
        (
            "youtube_id,time_start,time_end,label",
            "AAAAAAAAAAA,1,2,3",
            "AAAAAAAAAAA_000001_000002.mp4",
            3,
        ),  # our val.csv
    ],
)
def test_kinetics_csv(tmp_path: Path, header: str, row: str, path: str, label: int) -> None:
    records = read(tmp_path, f"\ufeff{header}\r\n{row}\r\n", 5, NAMES)
    assert [(record.path, record.target, record.line) for record in records] == [(path, label, 2)]


def test_bad_kinetics_rows(tmp_path: Path) -> None:
    content = f"""{HEADER}
abseiling,AAAAAAAAAAA,1,11,train
abselling,BBBBBBBBBBB,1,11,train
abseiling,CCCCCCCCCCC,1.5,11,train
abseiling,,1,11,train
bending, back,DDDDDDDDDDD,1,11,train
"abseiling,EEEEEEEEEEE,1,11,train
9,FFFFFFFFFFF,1,11,train
air drumming,AAAAAAAAAAA,1,11,train
"""
    message = refusal(tmp_path, content, 5, NAMES)
    faults = [fault.partition(": ")[2] for fault in message.split(" | ")]
    rules = [
        "'abselling' is no name of data.class_names",
        "a youtube_id, a start and an end in whole seconds are needed",
        "a youtube_id, a start and an end in whole seconds are needed",
        "6 fields and not the header's 5",
        "not a row of csv",
        "the label 9 is outside 0 to 4",
        "the path already stands in line 2",
    ]
    assert [fault[: len(rule)] for fault, rule in zip(faults, rules, strict=True)] == rules
    assert re.findall(r"line (\d) \(", message) == list("3456789")


def test_kinetics_csv_needs_class_names(tmp_path: Path) -> None:
    assert "set data.class_names" in refusal(tmp_path, f"{HEADER}\nabseiling,AAAAAAAAAAA,1,11,train\n")


def test_the_official_validation_list(shared_data: Path) -> None:
    lists = shared_data / "lists"
    names = read_class_names("kinetics400_classes.txt", str(lists), 400)
    records = read_list("kinetics-400_val.csv", str(lists), 400, names)
    assert len(records) == 19_906
    assert records[0] == Record("0wR5jVB-WPk_000417_000427.mp4", 0)
    assert {record.target for record in records} == set(range(400))


# Files and their bytes


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", b"\xef\xbb\xbf"])
def test_empty_list(tmp_path: Path, content: bytes | str) -> None:
    with pytest.raises(UserError, match=r"list\.csv lists no video"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["a.mp4 1\nü.mp4 2\n".encode("latin-1"), "a 1\nb 2\n".encode("utf-16")])
def test_not_utf8(tmp_path: Path, content: bytes) -> None:
    number = 1 if content[:2] == b"\xff\xfe" else 2
    with pytest.raises(UserError, match=rf"list\.csv, line {number} is not UTF-8"):
        read(tmp_path, content)


any_path = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)
# The limits without quotes: no blank at the ends, no # or " in front, no comma at the end (a separator).
paths = any_path.filter(lambda path: path == path.strip(" \t") and path[0] not in '#"\ufeff' and path[-1] != ",")


@given(
    st.dictionaries(paths, st.integers(0, 399), min_size=1, max_size=20),
    st.sampled_from([" ", "\t", ",", "  ", " , "]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_round_trip(labels: dict[str, int], separator: str, newline: str, encoding: str) -> None:
    text = "".join(f"{path}{separator}{label}{newline}" for path, label in labels.items())
    with tempfile.TemporaryDirectory() as folder:
        records = read(Path(folder), text.encode(encoding), absolute_paths=True)
    assert records == [Record(path, label) for path, label in labels.items()]


@given(
    st.dictionaries(any_path, st.integers(0, 399), min_size=1, max_size=20),
    st.sampled_from([" ", "\t", ",", "  ", " , "]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_round_trip_in_quotes(labels: dict[str, int], separator: str, newline: str) -> None:
    text = io.StringIO()
    for path, label in labels.items():
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=separator).writerow([path])
        text.write(f"{label}{newline}")
    with tempfile.TemporaryDirectory() as folder:
        records = read(Path(folder), text.getvalue(), absolute_paths=True)
    assert records == [Record(path, label) for path, label in labels.items()]


words = [
    b"a",
    b" ",
    b",",
    b"\t",
    b"\r",
    b"#",
    b"-",
    b"1",
    b"9" * 30,
    b"\xc3",
    b"\n",
    b'"',
    b"\0",
    b"label",
    b"a,b,1,2,c",
]
lines = st.lists(st.sampled_from(words)).map(b"".join)


@given(st.sampled_from([b"", b"path,label\n", HEADER.encode() + b"\n"]), st.binary() | lines)
def test_any_bytes_give_records_or_a_user_error(header: bytes, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            records = read(Path(folder), header + content, 10, ["a", *"bcdefghij"])
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert records
            assert all(record.path and 0 <= record.target < 10 for record in records)
            numbers = [record.line for record in records]
            assert numbers == sorted(set(numbers)) and numbers[0] >= 1


def test_a_list_as_long_as_kinetics(tmp_path: Path) -> None:
    text = "".join(f"train/air drumming/{i:011}_000010_000020.mp4 {i % 400}\n" for i in range(240_000))
    (tmp_path / "train.csv").write_text(text)
    records = read_list("train.csv", str(tmp_path), 400)
    assert len(records) == 240_000
    assert records[-1] == Record("train/air drumming/00000239999_000010_000020.mp4", 399)


def test_list_as_given_comes_before_the_one_under_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (root / "list.csv").write_text("root.mp4 1\n")
    assert find_list("list.csv", str(root)) == root / "list.csv"
    (here / "list.csv").write_text("here.mp4 1\n")
    assert find_list("list.csv", str(root)) == Path("list.csv")
    assert read_list("list.csv", str(root), 2) == [Record("here.mp4", 1)]
    assert find_list(str(root / "list.csv"), "elsewhere") == root / "list.csv"


def test_list_not_found_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"neither none.csv nor {re.escape(str(tmp_path / 'none.csv'))}"):
        find_list("none.csv", str(tmp_path))
    with pytest.raises(UserError, match="no file"):  # a folder is no list
        find_list(str(tmp_path), "")


def test_video_path() -> None:
    assert video_path(Record("train/a b.mp4", 0), "/data") == "/data/train/a b.mp4"
    assert video_path(Record("/other/a.mp4", 0), "/data") == "/other/a.mp4"


def test_class_names(tmp_path: Path) -> None:
    assert read_class_names(None, str(tmp_path), 3) == ["0", "1", "2"]
    (tmp_path / "names.txt").write_bytes("\ufeffair drumming\r\ntai chi\r\n\r\n".encode())
    assert read_class_names("names.txt", str(tmp_path), 2) == ["air drumming", "tai chi"]
    with pytest.raises(UserError, match="names 2 classes but model.num_classes is 3"):
        read_class_names("names.txt", str(tmp_path), 3)
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match="line 2 is empty"):
        read_class_names("names.txt", str(tmp_path), 2)
    with pytest.raises(UserError, match="neither absent.txt nor"):
        read_class_names("absent.txt", str(tmp_path), 2)


def test_all_missing_files_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [Record(f"{number} ü.mp4", 0, number) for number in range(1, 301)]
    for record in records:
        (tmp_path / record.path).touch()  # an empty file is there: that it cannot be decoded is told later
    check_files(records, str(tmp_path), "train.csv")
    check_files([], str(tmp_path), "train.csv")

    (tmp_path / "7 ü.mp4").unlink()
    (tmp_path / "299 ü.mp4").unlink()
    (tmp_path / "299 ü.mp4").mkdir()  # a folder is no file
    odd = Record("a\0b" + "x" * 5000, 0, 301)
    with pytest.raises(UserError) as error:
        check_files([*records, odd], str(tmp_path), "train.csv")
    assert str(error.value) == (
        "train.csv: 3 of 301 files are not there: line 7 ('7 ü.mp4'), line 299 ('299 ü.mp4'), "
        f"line 301 ({odd.path!r}); correct data.root ({str(tmp_path)!r}) or the list"
    )
    assert capsys.readouterr().err == ""  # no bar where stderr is no terminal


def test_missing_files_beyond_20_are_counted(tmp_path: Path) -> None:
    records = [Record(f"{number}.mp4", 0, number) for number in range(1, 2001)]
    with pytest.raises(
        UserError, match=r"2,000 of 2,000 files are not there.* and 1,980 more; correct data\.root"
    ) as error:
        check_files(records, str(tmp_path / "x"), "train.csv")
    told = re.findall(r"line (\d+) \('\1.mp4'\)", str(error.value))
    assert told == [str(number) for number in range(1, 21)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with a/1.mp4, a/2 b.MP4, frames of a video in a/frames1, and one whose name is not ASCII."""
    root = tmp_path / "root"
    for name in ("a/1.mp4", "a/2 b.MP4", "a/frames1/img_00001.jpg", "a/frames1/img_00002.jpg", "caf\xe9/3.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


NUMBERS, INDEX, QUOTES = "a number more stands between", "(an index column; pandas", "quotes or commas are around"
WINDOWS, FRAMES = r"separated by \ as in Windows", "is a folder of frames, and videos are read"


@pytest.mark.parametrize(
    ("lines", "forms", "instead"),
    [
        ("a/frames1 0", [FRAMES, "-i ROOT/a/frames1/img_%05d.jpg ROOT/a/frames1.mp4"], "a/frames1.mp4 0"),
        ("a/frames1/ 0", [FRAMES], "a/frames1.mp4 0"),
        ("a/frames1 163 0", [NUMBERS, FRAMES], "a/frames1.mp4 0"),
        ("a/frames1 1 163 2", [NUMBERS, FRAMES], "a/frames1.mp4 2"),
        ("a/1.mp4 163 0", [NUMBERS, "a second label"], "a/1.mp4 0"),
        ("a/1.mp4 0 2", [NUMBERS], "a/1.mp4 2"),
        ("a/1.mp4 0,2", [NUMBERS], "a/1.mp4 2"),
        ("a/1.mp4,0.0,10.0,2", [NUMBERS], "a/1.mp4 2"),
        (",path,label\n0,a/1.mp4,0\n1,a/2 b.MP4,1", [INDEX], "a/1.mp4 0"),
        ("0\ta/1.mp4\t0", [INDEX], "a/1.mp4 0"),
        (',path,label\n0,"a/2 b.MP4",0', [INDEX, QUOTES], "a/2 b.MP4 0"),
        ("0 a/frames1 163 2", [NUMBERS, INDEX, FRAMES], "a/frames1.mp4 2"),
        (r"a\1.mp4 0", [WINDOWS], "a/1.mp4 0"),
        (r"a\2 b.MP4,0", [WINDOWS], "a/2 b.MP4 0"),
        (r'"C:\videos\a\1.mp4",0', [WINDOWS, "'C:/videos' is not a folder in data.root"], "a/1.mp4 0"),
        ("D:/a/1.mp4 0", ["'D:' is not a folder in data.root"], "a/1.mp4 0"),
        ("other/root/a/1.mp4 0", ["'other/root' is not a folder in data.root"], "a/1.mp4 0"),
        ("'a/1.mp4', 0", [QUOTES], "a/1.mp4 0"),
        ("a/1.mp4,,0", [QUOTES], "a/1.mp4 0"),
        ("a/1 0", ["the suffix is left out"], "a/1.mp4 0"),
        ("a/2 b 1", ["the suffix is left out"], "a/2 b.MP4 1"),
        ("a/1.avi 0", ["the suffix is another one"], "a/1.mp4 0"),
        ("A/1.MP4 0", ["letter case differs"], "a/1.mp4 0"),
        ("a/2%20b.MP4 0", ["written as in a URL"], "a/2 b.MP4 0"),
        ("cafe\u0301/3.mp4 0", ["accents are written in another form"], "caf\xe9/3.mp4 0"),
        ("a 0", ["'a' is a folder, and a video is a file"], "a/VIDEO.mp4 0"),
    ],
)
def test_the_form_of_another_program_is_named(videos: Path, lines: str, forms: list[str], instead: str) -> None:
    file = videos.parent / "train.csv"
    file.write_text(lines + "\n")
    records = read_list(str(file), str(videos), 400)
    with pytest.raises(UserError) as error:
        check_files(records, str(videos), str(file))
    message = str(error.value).replace(str(videos), "ROOT")
    assert all(form in message for form in forms), message
    assert f"; write `{instead}` in line {records[0].line}" in message
    assert "correct data.root" not in message and "files are not there" in message


@pytest.mark.parametrize(
    ("lines", "name", "number", "instead"),
    [
        ("0 a/1.mp4", "the labels come first", 1, "a/1.mp4 0"),
        ("0 a/2 b.MP4\n1 a/1.mp4", "the labels come first", 1, "a/2 b.MP4 0"),
        ("label,path\n3,a/1.mp4", "the labels come first", 2, "a/1.mp4 3"),
        ("a/1.mp4;0\na/2 b.MP4; 1", "the columns are separated by semicolons", 1, "a/1.mp4 0"),
        ("path;label\na/1.mp4;0", "the columns are separated by semicolons", 2, "a/1.mp4 0"),
        ('"a/1.mp4,0"', "quotes are around the lines", 1, "a/1.mp4 0"),
        ('"a/2 b.MP4 0"', "quotes are around the lines", 1, "a/2 b.MP4 0"),
    ],
)
def test_lines_in_another_order(tmp_path: Path, lines: str, name: str, number: int, instead: str) -> None:
    message = refusal(tmp_path, lines + "\n")
    assert message.startswith(f"{tmp_path / 'list.csv'}: {name}; write `{instead}` in line {number}")


def test_labels_may_be_quoted(tmp_path: Path) -> None:
    assert read(tmp_path, '"path","label"\n"a b.mp4","3"\nc.mp4,"0"\n') == [Record("a b.mp4", 3), Record("c.mp4", 0)]
    assert "the label '\"x\"' is not an integer" in refusal(tmp_path, 'a.mp4,"x"\n')


def test_labels_that_begin_at_1(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.mp4 1\nb.mp4 2\nc.mp4 3\n", num_classes=3)
    assert "labels begin at 0, and these are 1 to 3 for model.num_classes 3; subtract 1 from each" in message
    assert "outside 0 to 2" in refusal(tmp_path, "a.mp4 0\nb.mp4 3\n", num_classes=3)
    assert "outside 0 to 2" in refusal(tmp_path, "a.mp4 1\nb.mp4 4\n", num_classes=3)


@pytest.mark.parametrize(
    ("train", "val", "names", "expected"),
    [
        ([0, 1], [0, 1], "ab", []),
        ([0, 0], [0], "a", ["model.num_classes is 1"]),
        ([1, 2], [1], "012", ["class 0 (0) has no training video: labels begin at 0", "set model.num_classes=2"]),
        ([0, 1], [1], list(map(str, range(400))), ["is 400, and the training list's labels are 0 to 1; set .*=2"]),
        ([0, 1], [2], "abc", ["1 of 3 classes have no training video: c; add videos"]),
        ([0, 3], [1], "0123", ["2 of 4 classes have no training video: 1, 2;"]),
    ],
)
def test_odd_lists_are_warned_about(train: list[int], val: list[int], names: list[str], expected: list[str]) -> None:
    records = [Record(f"t{n}.mp4", label, n + 1) for n, label in enumerate(train)]
    others = [Record(f"v{n}.mp4", label, n + 1) for n, label in enumerate(val)]
    warnings = list_warnings(records, others, list(names))
    assert len(warnings) == bool(expected)
    assert all(re.search(re.escape(part).replace(r"\.\*", ".*"), warnings[0]) for part in expected)


def test_videos_of_both_lists_are_warned_about() -> None:
    train = [Record(f"{n}.mp4", n, n + 1) for n in range(3)]
    assert list_warnings(train, [Record("3.mp4", 0)], "abc") == []
    (warning,) = list_warnings(train, train, "abc")
    assert warning.startswith("all 3 validation videos are in the training list as well, such as 0.mp4: ")
    (warning,) = list_warnings(train, [Record("a/../1.mp4", 1), Record("3.mp4", 0)], "abc")
    assert warning.startswith("1 of 2 validation videos are in the training list")


def test_where_the_files_are_is_named(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list's folder, a folder in data.root, the one around it, the current one."""
    records = [Record("a/1.mp4", 0, 1), Record("a/2 b.MP4", 1, 2)]
    (videos / "lists").mkdir()
    for root, list_path in ((videos.parent, "train.csv"), (videos / "a", "x.csv"), (videos / "x", f"{videos}/x.csv")):
        with pytest.raises(UserError, match=f"; set data.root={re.escape(str(videos))}$"):
            check_files(records, str(root), list_path)
    monkeypatch.chdir(videos)
    with pytest.raises(UserError, match=r"they are in '.', and data.root is '/nowhere'; set data.root=.$"):
        check_files(records, "/nowhere", "x.csv")


def test_one_lost_file_is_no_other_form(videos: Path) -> None:
    records = [Record("a/frames1", 0, 1), Record("a/lost.mp4", 0, 2), Record("a/1.mp4", 0, 3)]
    with pytest.raises(UserError, match=r"2 of 3 files are not there: .*; correct data\.root"):
        check_files(records, str(videos), "train.csv")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_path_has_a_form_or_none(path: str, more: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        form_of_path(f"{path}/{more}", root)
        form_of_lines([path, more])


def test_absolute_paths_are_looked_for_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    check_files([Record(str(tmp_path / "a.mp4"), 0, 1)], "/nowhere", "train.csv")


@pytest.mark.parametrize("root", ["/data/k400", "/data/k400/", "s3://bucket/k400", "https://host/k400/"])
@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        ("a.mp4", False),
        ("./a.mp4", False),
        ("..a/b..mp4", False),
        ("../a.mp4", True),
        ("a/../../k400x/b.mp4", True),
        ("../root/b.mp4", True),
        ("/etc/passwd", True),
        ("//data/k400/a.mp4", True),
        ("/root/a.mp4", True),
        ("https://host/k400/a.mp4", True),
        ("file:///etc/passwd", True),
    ],
)
def test_paths_that_leave_the_root(tmp_path: Path, root: str, path: str, leaves: bool) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"ok.mp4 0\n{path} 1\n")
    if leaves:
        with pytest.raises(UserError, match=r"line 2 .* leaves data.root; .* or set data.absolute_paths=true"):
            read_list(str(file), root, 2)
    assert [r.path for r in read_list(str(file), root, 2, absolute_paths=leaves)] == ["ok.mp4", path]


def test_a_folder_may_be_left_within_the_root(tmp_path: Path) -> None:
    assert read(tmp_path, "a/../b.mp4 1") == [Record("a/../b.mp4", 1)]
    with pytest.raises(UserError, match="leaves data.root"):  # a store would take it for a name
        read_list(str(tmp_path / "list.csv"), "s3://bucket", 2)


def test_absolute_paths_inside_the_root_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, f"{tmp_path}/a/../b.mp4 1") == [Record(f"{tmp_path}/a/../b.mp4", 1)]
    assert "leaves data.root" in refusal(tmp_path, f"{tmp_path}x/b.mp4 1")


def test_no_other_store_hides_in_a_path(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a::file:///etc/passwd 0\n")
    with pytest.raises(UserError, match="leaves data.root"):
        read_list(str(tmp_path / "list.csv"), "s3://bucket", 1)


parts = st.lists(st.sampled_from(["..", ".", "", "a", "b c", "...", "r", "etc"]), min_size=1, max_size=9)


@given(parts)
def test_what_is_read_lies_below_the_root(parts: list[str]) -> None:
    """The oracle goes from folder to folder."""
    path, root = "/".join(parts), "/deep/down/r"
    top = ["deep", "down", "r"]
    place = [] if path.startswith("/") else top
    for part in parts:
        if part == "..":
            place = place[:-1]
        elif part not in ("", "."):
            place = [*place, part]
    inside = place[: len(top)] == top
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "list.csv")
        file.write_text('"' + path + '",0\n')
        try:
            records = read_list(str(file), root, 1)
        except UserError as error:
            assert not inside or (not path and "a path and a label are needed" in str(error))
        else:
            assert inside and records == [Record(path, 0)]


def test_urls_of_videos() -> None:
    assert video_path(Record("a b.mp4", 0), "https://host/k") == "https://host/k/a%20b.mp4"
    assert video_path(Record("https://other/a.mp4", 0), "s3://bucket") == "https://other/a.mp4"
    assert video_path(Record("https://other/a.mp4", 0), "/data") == "https://other/a.mp4"
    assert video_path(Record("/data/a.mp4", 0), "s3://bucket") == "/data/a.mp4"


def test_lists_of_real_videos(shared_data: Path) -> None:
    root = str(shared_data / "ucf101_6")
    train, test = read_list("train.csv", root, 6), read_list("test.csv", root, 6)
    assert (len(train), len(test)) == (529, 202)
    check_files(train + test, root, "train.csv")
    names = read_class_names("classes.txt", root, 6)
    assert all(f"/{names[record.target]}/" in record.path for record in train + test)


def test_a_class_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("run\nwalk\nrun\n")
    with pytest.raises(UserError, match="'run' twice"):
        read_class_names("classes.txt", str(tmp_path), 3)


# Several labels per video


def several(folder: Path, content: str, num_classes: int = 10) -> list[Record]:
    (folder / "list.csv").write_text(content)
    parse = partial(parse_several, num_classes=num_classes)
    return read_list("list.csv", str(folder), num_classes, parse=parse)


@pytest.mark.parametrize(
    ("line", "path", "labels"),
    [
        ("a.mp4,3;7;2", "a.mp4", (2, 3, 7)),
        ("a b.mp4 3;7", "a b.mp4", (3, 7)),
        ("a.mp4\t1;2", "a.mp4", (1, 2)),
        ("a.mp4 , 1 ; 2", "a.mp4", (1, 2)),
        ("a, b.mp4,1; 2", "a, b.mp4", (1, 2)),
        ('"a, b.mp4" 1 ; 2', "a, b.mp4", (1, 2)),
        ('"a.mp4","1;2"', "a.mp4", (1, 2)),
        ("a;b.mp4,4", "a;b.mp4", (4,)),
        ("a 1;2.mp4 5;6", "a 1;2.mp4", (5, 6)),
        ("a b.mp4,", "a b.mp4", ()),
        ("a b.mp4 ,", "a b.mp4", ()),
        ("a.mp4", "a.mp4", ()),
        ('"a b.mp4"', "a b.mp4", ()),
        ('"a b.mp4",""', "a b.mp4", ()),
        ('"clip 7",', "clip 7", ()),
    ],
)
def test_one_line_of_several_labels(tmp_path: Path, line: str, path: str, labels: tuple[int, ...]) -> None:
    assert several(tmp_path, line) == [Record(path, labels)]
    assert several(tmp_path, f"path,labels\n{line}\nz.mp4,0") == [Record(path, labels), Record("z.mp4", (0,))]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("a.mp4,3;3", "the label 3 is given twice; remove one"),
        ("a.mp4,3;10", "the label 10 is outside 0 to 9; correct it or set model.num_classes"),
        ("a.mp4,-1", "the label -1 is outside 0 to 9"),
        ("a.mp4,3;", "the label '' is not an integer; write `path,3;17`"),
        ("a.mp4,1;;2", "the label '' is not an integer"),
        ("a.mp4,1;x", "the label 'x' is not an integer"),
        ("a.mp4,1|2", "the label '1|2' is not an integer"),
        ("a.mp4,1.0;2", "the label '1.0' is not an integer"),
        ("a b.mp4", "the label 'b.mp4' is not an integer"),
        ("a.mp4,3;7,", "a comma follows the label; remove it"),
        (",3;4", "a path and a label are needed"),
    ],
)
def test_bad_line_of_several_labels_is_named(tmp_path: Path, line: str, rule: str) -> None:
    with pytest.raises(UserError) as error:
        several(tmp_path, f"# first\n{line}\nz.mp4,0;2\n")
    assert str(error.value).startswith(f"{tmp_path / 'list.csv'}, line 2 ({line!r}): {rule}")
    assert " | " not in str(error.value)


def test_forms_of_lists_of_several_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"separated by semicolons; write `a\.mp4 3` in line 1"):
        several(tmp_path, "a.mp4;3\nb.mp4;4\n")
    with pytest.raises(UserError, match=r"labels begin at 0, and these are 1 to 10 .* subtract 1"):
        several(tmp_path, "a.mp4,1;2\nb.mp4,10;3\nc.mp4,\n")


@pytest.mark.parametrize("content", ["a.mp4,3\nb.mp4,3;7;2\n", "a.mp4,\nb.mp4 0;4\n", 'x.mp4\n"b.mp4", 1 ; 2\n'])
def test_several_labels_for_one_name_the_task(tmp_path: Path, content: str) -> None:
    message = refusal(tmp_path, content)
    assert ", line 2 (" in message and "is several labels" in message and message.endswith("set task: multilabel")
    assert " | " not in message


@given(st.dictionaries(any_path, st.sets(st.integers(0, 99)), min_size=1, max_size=10))
@example({"a 7": set(), "b,": {1}, "c;": {2, 3}, "d,7": set(), '"': set(), " 3": {0}})
def test_lines_of_targets_are_read_back(labels: dict[str, set[int]]) -> None:
    records = [Record(path, tuple(sorted(of))) for path, of in labels.items()]
    text = "".join(f"{format_line(record.path, record.target)}\n" for record in records)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "list.csv").write_bytes(text.encode())
        parse = partial(parse_several, num_classes=100)
        assert read_list("list.csv", folder, 100, absolute_paths=True, parse=parse) == records


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([(0, 1), (2,), ()], [(0, 1, 2)], []),
        ([(0, 1), (1,)], [(0, 1, 2)], ["1 of 3 classes have no training video: c"]),
        ([(0, 1), (1, 2), (1,)], [(0, 1, 2)], ["every training video has b, so there is nothing to tell it from"]),
        (
            [(0, 1), (2,), ()],
            [(2,)],
            ["2 of 3 classes have no validation video, and the mean is over the others: a, b"],
        ),
    ],
)
def test_odd_lists_of_several_labels_are_warned_about(
    train: list[tuple[int, ...]], val: list[tuple[int, ...]], expected: list[str]
) -> None:
    records = [Record(f"t{n}.mp4", target, n + 1) for n, target in enumerate(train)]
    others = [Record(f"v{n}.mp4", target, n + 1) for n, target in enumerate(val)]
    warnings = list_warnings(records, others, "abc")
    assert len(warnings) == len(expected)
    assert all(warning.startswith(words) for warning, words in zip(warnings, expected, strict=True))
