"""Data lists: what is read, what is refused and in which words."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_gn.data.lists import (
    Record,
    check_some_exist,
    find_list,
    read_class_names,
    read_list,
    video_path,
)
from video_gn.errors import UserError


def read(folder: Path, content: bytes | str, num_classes: int = 400) -> list[Record]:
    data = content.encode() if isinstance(content, str) else content
    (folder / "list.csv").write_bytes(data)
    return read_list("list.csv", str(folder), num_classes)


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
        ("/abs/ü#.mp4 007", "/abs/ü#.mp4", 7),
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
        ("path,label\n", 1, "path,label", "'label' is not an integer"),
        ("a b.mp4\n", 1, "a b.mp4", "'b.mp4' is not an integer"),
        ("a.mp4 1.0\n", 1, "a.mp4 1.0", "'1.0' is not an integer"),
        ("a.mp4 ٣\n", 1, "a.mp4 ٣", "'٣' is not an integer"),
        ("# c\na.mp4 10\n", 2, "a.mp4 10", "10 is outside 0 to 9"),
        ("a.mp4 -1\n", 1, "a.mp4 -1", "-1 is outside 0 to 9"),
        ("a.mp4 1\nb.mp4 2\na.mp4 1\n", 3, "a.mp4 1", "already stands in line 1"),
        ("a.mp4 1\nb.mp4 2\nb.mp4,1\n", 3, "b.mp4,1", "already stands in line 2"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, content: str, number: int, line: str, rule: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, content, num_classes=10)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'list.csv'}, line {number} ({line!r}): ")
    assert rule in message
    assert "more bad" not in message


def test_first_bad_line_and_how_many_more(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2 \('b.mp4'\).*\(and 3 more bad lines\)"):
        read(tmp_path, "a.mp4 1\nb.mp4\nc.mp4 x\nd.mp4 400\ne.mp4 2\na.mp4 1\n")


def test_long_line_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, "x" * 10_000)
    assert "x" * 80 in str(error.value)
    assert "x" * 81 not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", b"\xef\xbb\xbf"])
def test_empty_list(tmp_path: Path, content: bytes | str) -> None:
    with pytest.raises(UserError, match=r"list\.csv lists no video"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["a.mp4 1\nü.mp4 2\n".encode("latin-1"), "a 1\nb 2\n".encode("utf-16")])
def test_not_utf8(tmp_path: Path, content: bytes) -> None:
    number = 1 if content[:2] == b"\xff\xfe" else 2
    with pytest.raises(UserError, match=rf"list\.csv, line {number} is not UTF-8"):
        read(tmp_path, content)


# The format's limits: no newline, no blank at the ends, no # in front, no comma at the end (a separator).
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1).filter(
    lambda path: path == path.strip(" \t") and path[0] not in "#\ufeff" and path[-1] != ","
)


@given(
    st.dictionaries(paths, st.integers(0, 399), min_size=1, max_size=20),
    st.sampled_from([" ", "\t", ",", "  ", " , "]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_round_trip(labels: dict[str, int], separator: str, newline: str, encoding: str) -> None:
    text = "".join(f"{path}{separator}{label}{newline}" for path, label in labels.items())
    with tempfile.TemporaryDirectory() as folder:
        records = read(Path(folder), text.encode(encoding))
    assert records == [Record(path, label) for path, label in labels.items()]


lines = st.lists(st.sampled_from([b"a", b" ", b",", b"\t", b"\r", b"#", b"-", b"1", b"9" * 30, b"\xc3", b"\n"]))


@given(st.binary() | lines.map(b"".join))
def test_any_bytes_give_records_or_a_user_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            records = read(Path(folder), content, num_classes=10)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert records
            assert all(record.path and 0 <= record.label < 10 for record in records)


def test_240_000_lines_are_read_at_once(tmp_path: Path) -> None:
    text = "".join(f"train/air drumming/{i:011}_000010_000020.mp4 {i % 400}\n" for i in range(240_000))
    (tmp_path / "train.csv").write_text(text)
    seconds = []
    for _ in range(3):  # the best of three, with room for a busy machine: about 0.6 s
        start = time.process_time()
        records = read_list("train.csv", str(tmp_path), 400)
        seconds.append(time.process_time() - start)
    assert len(records) == 240_000
    assert min(seconds) < 2.0


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


def test_check_some_exist(tmp_path: Path) -> None:
    records = [Record(f"{i}.mp4", 0) for i in range(100)]
    with pytest.raises(UserError) as error:
        check_some_exist(records, str(tmp_path), "train.csv")
    message = str(error.value)
    assert message.startswith(f"train.csv: none of the 20 videos looked for exists, the first is '{tmp_path}/0.mp4'")
    assert "data.root" in message
    (tmp_path / "1.mp4").touch()  # not looked at: the sample is 0, 5, 10, ...
    with pytest.raises(UserError):
        check_some_exist(records, str(tmp_path), "train.csv")
    (tmp_path / "95.mp4").touch()
    check_some_exist(records, str(tmp_path), "train.csv")
    check_some_exist(records[95:96], str(tmp_path), "train.csv")
    with pytest.raises(UserError, match="none of the 2 videos"):
        check_some_exist(records[:2], str(tmp_path / "x"), "train.csv")


def test_lists_of_real_videos(shared_data: Path) -> None:
    root = str(shared_data / "ucf101_6")
    train, test = read_list("train.csv", root, 6), read_list("test.csv", root, 6)
    assert (len(train), len(test)) == (529, 202)
    check_some_exist(train, root, "train.csv", sample=529)
    assert all(Path(video_path(record, root)).is_file() for record in train + test)
    names = read_class_names("classes.txt", root, 6)
    assert all(f"/{names[record.label]}/" in record.path for record in train + test)
