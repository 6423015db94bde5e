"""The committed Kinetics-400 lists, and make_lists.py on made-up trees."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from video_gn.data.lists import Record, read_list

LISTS = Path(__file__).resolve().parent.parent / "data_lists" / "kinetics400"
SCRIPT = LISTS / "make_lists.py"

# Rows of the official validation list: id, start, label.
VAL = [("0wR5jVB-WPk", 417, 0), ("3caPS4FHFF8", 36, 0)]
OFFICIAL_TRAIN = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",AAAAAAAAAAA,10,20,train,0
yoga,-_BBBBBBBBB,7,17,train,0
"massaging person's head",CCCCCCCCCCC,0,10,train,1
zumba,DDDDDDDDDDD,5,15,train,0
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_lists", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_lists"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_csv(tmp_path: Path) -> str:
    file = tmp_path / "official" / "train.csv"
    file.parent.mkdir()
    file.write_text(OFFICIAL_TRAIN)
    return str(file)


def make_tree(root: Path, *files: str) -> str:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return str(root)


def rows() -> list[dict[str, str]]:
    with open(LISTS / "val.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# The committed files


def test_classes() -> None:
    names = (LISTS / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) == 400
    assert names == sorted(names)
    known = {
        0: "abseiling",
        6: "arm wrestling",
        129: "flipping pancake",
        153: "hitting baseball",
        398: "yoga",
    }
    assert {label: names[label] for label in known} == known
    assert not any("/" in name for name in names)


def test_val() -> None:
    val = rows()
    assert len(val) == 19_906
    assert list(val[0].values()) == ["0wR5jVB-WPk", "417", "427", "0"]
    counts = Counter(int(row["label"]) for row in val)
    assert set(counts) == set(range(400))
    assert (min(counts.values()), max(counts.values())) == (46, 50)
    ids = {row["youtube_id"] for row in val}
    assert len(ids) == 19_906
    assert all(re.fullmatch(r"[\w-]{11}", youtube_id, re.ASCII) for youtube_id in ids)  # so no path either
    assert all(int(row["time_end"]) - int(row["time_start"]) == 10 for row in val)


@pytest.mark.parametrize("name", ["classes.txt", "val.csv"])
def test_hash_in_sources(name: str) -> None:
    sources = (LISTS / "SOURCES.md").read_text(encoding="utf-8")
    row = next(line for line in sources.splitlines() if line.startswith(f"| `{name}`"))
    assert hashlib.sha256((LISTS / name).read_bytes()).hexdigest() in row


def test_val_is_the_official_list(shared_data: Path) -> None:
    source = shared_data / "lists" / "kinetics-400_val.csv"
    sources = (LISTS / "SOURCES.md").read_text(encoding="utf-8")
    assert hashlib.sha256(source.read_bytes()).hexdigest() in sources
    names = (LISTS / "classes.txt").read_text(encoding="utf-8").splitlines()
    columns = ("youtube_id", "time_start", "time_end")
    with open(source, encoding="utf-8", newline="") as stream:
        official = [(*(row[c] for c in columns), row["label"]) for row in csv.DictReader(stream)]
    assert [(*(row[c] for c in columns), names[int(row["label"])]) for row in rows()] == official


# make_lists.py


@pytest.mark.parametrize(
    ("val_files", "train_files"),
    [
        (
            ["val/abseiling/0wR5jVB-WPk_000417_000427.mp4", "val/abseiling/3caPS4FHFF8_000036_000046.mp4"],
            ["train/air drumming/AAAAAAAAAAA_000010_000020.mp4", "train/yoga/-_BBBBBBBBB_000007_000017.mp4"],
        ),
        (
            ["val/abseiling/0wR5jVB-WPk_000417_000427.MKV", "val/abseiling/3caPS4FHFF8.webm"],
            ["train/air_drumming/AAAAAAAAAAA_000010_000020.avi", "train/yoga/-_BBBBBBBBB.mp4"],
        ),
        (
            ["val/0wR5jVB-WPk_000417_000427.mp4", "val/3caPS4FHFF8_000036_000046.mp4"],
            ["train/AAAAAAAAAAA_000010_000020.mp4", "train/-_BBBBBBBBB_000007_000017.mp4"],
        ),
        (["0wR5jVB-WPk.mp4", "3caPS4FHFF8.mkv"], ["AAAAAAAAAAA.webm", "-_BBBBBBBBB.avi"]),
    ],
    ids=["spaces", "underscores", "flat", "ids"],
)
def test_layouts(
    script: ModuleType, tmp_path: Path, train_csv: str, val_files: list[str], train_files: list[str]
) -> None:
    root = make_tree(tmp_path / "k400", *val_files, *train_files, "notes.txt")
    assert script.main([root, "--train-csv", train_csv]) == 0
    # What training reads is what was written.
    assert read_list("val.csv", root, 400) == [Record(path, 0) for path in val_files]
    assert read_list("train.csv", root, 400) == [Record(train_files[0], 1), Record(train_files[1], 398)]
    assert (tmp_path / "k400" / "missing_train.txt").read_text() == "CCCCCCCCCCC\nDDDDDDDDDDD\n"
    official = [row["youtube_id"] for row in rows()]
    assert (tmp_path / "k400" / "missing_val.txt").read_text().splitlines() == official[2:]


def test_table(script: ModuleType, tmp_path: Path, train_csv: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(
        tmp_path / "k400",
        "train/yoga/-_BBBBBBBBB.mp4",
        "train/yoga/EEEEEEEEEEE.mp4",  # in no list
        "other/AAAAAAAAAAA.mp4",
        "train/AAAAAAAAAAA.webm",  # below train/: taken before the one above
        "a/AAAAAAAAAAA_000010_000020.mp4",  # tells the start: taken before both
        "train/zumba/DDDDDDDDDDD_000100_000110.mp4",  # another part of the video
    )
    assert script.main([root, "--train-csv", train_csv, "--out", str(tmp_path / "new" / "lists")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress where stderr is no terminal
    cells = {line[:33].strip(): re.split(r"  +", line[33:].strip()) for line in captured.out.splitlines()[:7]}
    assert cells == {
        "": ["val", "train"],
        "listed": ["19,906", "4"],
        "found": ["0", "2"],
        "missing": ["19,906 (100.0 %)", "2 (50.0 %)"],
        "missing, there with another start": ["0", "1"],
        "duplicates": ["0", "2"],
        "fewest in a class": ["0 (abseiling)", "0 (abseiling)"],
    }
    assert "files that no list knows: 2 of 6" in captured.out
    assert "took a/AAAAAAAAAAA_000010_000020.mp4, left train/AAAAAAAAAAA.webm" in captured.out
    assert "took a/AAAAAAAAAAA_000010_000020.mp4, left other/AAAAAAAAAAA.mp4" in captured.out
    assert "no val.csv written: no val video was found" in captured.out
    assert sorted(os.listdir(tmp_path / "new" / "lists")) == [".make_lists.json", "missing_train.txt", "train.csv"]


def test_train_without_the_official_list(script: ModuleType, tmp_path: Path) -> None:
    root = make_tree(
        tmp_path / "k400",
        "train/Massaging_person's_head/clip 1.mp4",
        "train/passing American football (in game)/clip 1.mp4",  # no id, so no duplicate
        "train/yoga/AAAAAAAAAAA.mp4",
        "train/zumba/AAAAAAAAAAA_000010_000020.mp4",  # the same id: left
        "train/abseiling/0wR5jVB-WPk_000417_000427.mp4",  # a validation video: not for training
        "train/yoga/._AAAAAAAAAA.mp4",  # what macOS leaves
        "val/abseiling/0wR5jVB-WPk_000417_000427.mp4",
        "elsewhere/yoga/FFFFFFFFFFF.mp4",
    )
    notes = tmp_path / "k400" / "missing_train.txt"
    notes.write_text("mine\n")
    assert script.main([root]) == 0
    assert read_list("train.csv", root, 400) == [
        Record("train/Massaging_person's_head/clip 1.mp4", 196),
        Record("train/passing American football (in game)/clip 1.mp4", 208),
        Record("train/yoga/AAAAAAAAAAA.mp4", 398),
    ]
    assert read_list("val.csv", root, 400) == [Record("val/abseiling/0wR5jVB-WPk_000417_000427.mp4", 0)]
    assert notes.read_text() == "mine\n"


def fails(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert script.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    return captured.err


def test_unknown_class_folder(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path, "train/abseilling/AAAAAAAAAAA.mp4", "train/yoga/BBBBBBBBBBB.mp4")
    message = fails(script, capsys, root)
    assert "'train/abseilling'" in message
    assert "did you mean 'abseiling'?" in message
    assert not (tmp_path / "train.csv").exists()


def test_flat_train_folder_needs_the_official_list(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path, "train/AAAAAAAAAAA_000010_000020.mp4")
    assert "--train-csv" in fails(script, capsys, root)


def test_nothing_found(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "k400", "AAAAAAAAAAA.mp4", "clip.mp4")
    assert "none of the 2 videos below" in fails(script, capsys, root)
    assert sorted(os.listdir(root)) == ["AAAAAAAAAAA.mp4", "clip.mp4"]
    assert "is not a folder" in fails(script, capsys, str(tmp_path / "absent"))


def test_overwrite_only_by_force(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path, "0wR5jVB-WPk.mp4")
    (tmp_path / "val.csv").write_text("mine\n")
    assert "--force" in fails(script, capsys, root)
    assert (tmp_path / "val.csv").read_text() == "mine\n"
    assert script.main([root, "--force"]) == 0
    assert (tmp_path / "val.csv").read_text() == "0wR5jVB-WPk.mp4 0\n"
    assert (tmp_path / "val.csv.bak").read_text() == "mine\n"
    assert script.main([root, "--force"]) == 0
    assert not (tmp_path / "val.csv.bak2").exists()  # this one was the script's own


def test_an_official_list_is_never_overwritten(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path, "AAAAAAAAAAA.mp4")
    official = tmp_path / "train.csv"
    official.write_text(OFFICIAL_TRAIN)
    message = fails(script, capsys, root, "--train-csv", str(official), "--force")
    assert "cannot be written" in message
    assert official.read_text() == OFFICIAL_TRAIN


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "no column"),
        ("label,youtube_id\nyoga,AAAAAAAAAAA\n", "no column 'time_start'"),
        ("label,youtube_id,time_start\nyogga,AAAAAAAAAAA,3\n", "line 2: 'yogga' is none .* mean 'yoga'"),
        ("label,youtube_id,time_start\n400,AAAAAAAAAAA,3\n", "line 2: '400' is none"),
        ("label,youtube_id,time_start\nyoga,AAAAAAAAAAA\n", "line 2: needs an id"),
        ("label,youtube_id,time_start\n1,AAAAAAAAAAA,3\n1,AAAAAAAAAAA,9\n", "line 3: id AAAAAAAAAAA twice"),
    ],
)
def test_bad_official_list(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, rule: str
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(text)
    assert re.search(rf"bad\.csv.*{rule}", fails(script, capsys, str(tmp_path), "--train-csv", str(bad)))


def test_links_are_followed_and_odd_names_quoted(script: ModuleType, tmp_path: Path) -> None:
    make_tree(tmp_path / "disk", "0wR5jVB-WPk.mp4")
    root = tmp_path / "k400"
    make_tree(root, "# odd/3caPS4FHFF8.mp4")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "val").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert script.main([str(root)]) == 0
    assert read_list("val.csv", str(root), 400) == [
        Record("val/0wR5jVB-WPk.mp4", 0),
        Record("# odd/3caPS4FHFF8.mp4", 0),
    ]


def test_help_needs_no_torch() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    code = code.replace("sys.argv[0]", repr(str(SCRIPT)), 1)
    environment = {**os.environ, "PYTHONPATH": str(LISTS.parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "example:\n  python" in done.stdout
    assert done.stdout.endswith("False\n")
