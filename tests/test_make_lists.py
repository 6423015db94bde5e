"""tools/make_lists.py on made-up trees of the real shapes; what it writes is read by what training reads."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_lists as tool
from video_gn import cli
from video_gn.data import make_lists
from video_gn.data.lists import Record, read_class_names, read_list
from video_gn.errors import UserError

# The headers and quoting of the published files.
TRAIN = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",AAAAAAAAAAA,10,20,train,0
yoga,-_BBBBBBBBB,7,17,train,0
"massaging person's head",CCCCCCCCCCC,0,10,train,1
yoga,AAAAAAAAAAA,110,120,train,0
"""
VALIDATE = (
    "label,youtube_id,time_start,time_end,split\nyoga,DDDDDDDDDDD,35,45,validate\nyoga,EEEEEEEEEEE,0,10,validate\n"
)


def make_tree(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def run(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the tool."""
    monkeypatch.setattr(sys, "argv", ["make_lists.py", *map(str, arguments)])
    code = 0
    try:
        cli.run(tool.main)
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture
def csvs(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "train.csv").write_text(TRAIN)
    (folder / "validate.csv").write_text(VALIDATE)
    return [folder / "train.csv", folder / "validate.csv"]


@pytest.mark.parametrize(
    "paths",
    [
        [
            "train/air drumming/AAAAAAAAAAA_000010_000020.mp4",
            "train/yoga/-_BBBBBBBBB_000007_000017.mp4",
            "val/yoga/DDDDDDDDDDD_000035_000045.mp4",
        ],
        ["train/air_drumming/AAAAAAAAAAA_000010_000020.mp4", "train/yoga/-_BBBBBBBBB.mp4", "val/yoga/DDDDDDDDDDD.mkv"],
        ["AAAAAAAAAAA_000010_000020.mp4", "-_BBBBBBBBB_000007_000017.webm", "DDDDDDDDDDD_000035_000045.mp4"],
    ],
    ids=["spaces", "underscores", "flat"],
)
def test_kinetics(tmp_path, monkeypatch, capsys, csvs, paths):
    root = make_tree(tmp_path / "k700", *paths, "notes.txt", "unlisted/FFFFFFFFFFF_000000_000010.mp4")
    code, out, err = run(monkeypatch, capsys, "kinetics", root, *csvs)
    assert (code, err) == (0, "")
    names = read_class_names("classes.txt", str(root), 3)
    assert names == ["air drumming", "massaging person's head", "yoga"]
    assert read_list("train.csv", str(root), 3) == [Record(paths[0], 0), Record(paths[1], 2)]
    assert read_list("val.csv", str(root), 3) == [Record(paths[2], 2)]
    assert (root / "missing.txt").read_text().splitlines() == [
        "train CCCCCCCCCCC_000000_000010 massaging person's head",
        "train AAAAAAAAAAA_000110_000120 yoga",  # its other part is there, and is not this one
        "val EEEEEEEEEEE_000000_000010 yoga",
    ]
    cells = [re.split("  +", line.strip()) for line in out.splitlines()[1:3]]
    assert cells == [
        ["train", "4", "2", "2 (50.0 %)", "0 (massaging person's head)"],
        ["val", "2", "1", "1 (50.0 %)", "0 (air drumming)"],
    ]
    assert "files that no list names: 1 of 4" in out
    assert not (root / "test.csv").exists()


def test_kinetics_two_parts_of_one_video_and_copies(tmp_path, csvs):
    root = make_tree(
        tmp_path / "k",
        "AAAAAAAAAAA.mp4",  # tells no part: for the first row that nothing fits better
        "a/AAAAAAAAAAA_000010_000020.mp4",
        "air_drumming/-_BBBBBBBBB.mp4",
        "other/DDDDDDDDDDD.mp4",
        "validation/DDDDDDDDDDD.mp4",
    )
    lists = make_lists.kinetics(str(root), list(map(str, csvs)))
    assert lists.lines["train"] == [
        ("a/AAAAAAAAAAA_000010_000020.mp4", 0),
        ("air_drumming/-_BBBBBBBBB.mp4", 2),  # the csv decides
        ("AAAAAAAAAAA.mp4", 2),
    ]
    assert lists.lines["val"] == [("validation/DDDDDDDDDDD.mp4", 2)]
    assert lists.notes == [
        "videos in another class's folder than the csv says: 1, such as air_drumming/-_BBBBBBBBB.mp4"
    ]


def test_kinetics_classes_file_and_repeated_rows(tmp_path, csvs):
    csvs[1].write_text(VALIDATE + "yoga,AAAAAAAAAAA,10,20,validate\n")  # would be in both splits
    (tmp_path / "names.txt").write_text("yoga\nair_drumming\nmassaging person's head\nzumba\n")
    root = make_tree(tmp_path / "k", "AAAAAAAAAAA_000010_000020.mp4")
    lists = make_lists.kinetics(str(root), list(map(str, csvs)), str(tmp_path / "names.txt"))
    assert lists.lines == {"train": [("AAAAAAAAAAA_000010_000020.mp4", 1)], "val": [], "test": []}
    assert lists.notes == ["rows of the csv that repeat an earlier one: 1"]
    (tmp_path / "names.txt").write_text("yogga\nair drumming\nmassaging person's head\n")
    with pytest.raises(UserError, match="'yoga' is none of the 3 classes of .*did you mean 'yogga'"):
        make_lists.kinetics(str(root), list(map(str, csvs)), str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "no column 'label'"),
        ("label,youtube_id,time_start,split\n", "no column 'time_end'"),
        ("label,youtube_id,time_start,time_end,split\nyoga,AAAAAAAAAAA,x,3,train\n", "line 2: needs a label"),
        ("label,youtube_id,time_start,time_end,split\n,AAAAAAAAAAA,1,3,test\n", "line 2: needs a label"),
        ("label,youtube_id,time_start,time_end,split\n7,AAAAAAAAAAA,1,3,test\n", "label 7 is a number"),
        ("label,youtube_id,time_start,time_end,split\nyoga,AAAAAAAAAAA,1,3,other\n", "'other' is none of train"),
    ],
)
def test_bad_csv_is_one_line(tmp_path, monkeypatch, capsys, text, rule):
    (tmp_path / "bad.csv").write_text(text)
    code, out, err = run(monkeypatch, capsys, "kinetics", tmp_path, tmp_path / "bad.csv")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*bad\.csv.*{rule}.*\n", err)


def ucf_annotations(folder, classes, train, test, newline="\r\n"):
    """ucfTrainTestlist as it is published: labels from 1, only in the training list."""
    folder.mkdir()
    index = {name: number for number, name in enumerate(classes, 1)}
    files = {
        "classInd.txt": [f"{number} {name}" for name, number in index.items()],
        "trainlist01.txt": [f"{path} {index[path.split('/')[0]]}" for path in train],
        "testlist01.txt": list(test),
    }
    for name, lines in files.items():
        (folder / name).write_bytes("".join(line + newline for line in lines).encode())
    return folder


UCF_TRAIN = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "HandstandPushups/v_HandStandPushups_g08_c01.avi"]
UCF_TEST = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "HandstandPushups/v_HandStandPushups_g01_c02.avi"]


def test_ucf101(tmp_path, monkeypatch, capsys):
    notes = ucf_annotations(tmp_path / "ucfTrainTestlist", ["ApplyEyeMakeup", "HandstandPushups"], UCF_TRAIN, UCF_TEST)
    renamed = UCF_TRAIN[1].replace("Stand", "stand").replace(".avi", ".mp4")  # both spellings are about
    root = make_tree(tmp_path / "UCF-101", UCF_TRAIN[0], renamed, UCF_TEST[0])
    code, out, _ = run(monkeypatch, capsys, "ucf101", root, notes, "--out", tmp_path / "lists")
    assert code == 0
    lists = tmp_path / "lists"
    assert read_class_names(str(lists / "classes.txt"), "", 2) == ["ApplyEyeMakeup", "HandstandPushups"]
    assert read_list(str(lists / "train.csv"), str(root), 2) == [Record(UCF_TRAIN[0], 0), Record(renamed, 1)]
    assert read_list(str(lists / "test.csv"), str(root), 2) == [Record(UCF_TEST[0], 0)]
    assert (lists / "missing.txt").read_text() == f"test {UCF_TEST[1]}\n"
    assert not (lists / "val.csv").exists()
    assert "1 (50.0 %)" in out


def test_ucf101_of_real_videos(tmp_path, shared_data):
    source = shared_data / "ucf101_6"
    expected = {
        name: [(r.path, r.label) for r in read_list(f"{name}.csv", str(source), 6)] for name in ("train", "test")
    }
    listed = {name: [f"{p.split('/', 1)[1][:-4]}.avi" for p, _ in lines] for name, lines in expected.items()}
    classes = (source / "classes.txt").read_text().split()
    notes = ucf_annotations(tmp_path / "notes", classes, listed["train"], listed["test"])
    lists = make_lists.ucf101(str(source), str(notes))
    assert (lists.classes, lists.lines["train"], lists.lines["test"]) == (classes, expected["train"], expected["test"])
    assert not any(lists.missing.values())


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("classInd.txt", "1 A\n3 B\n", "line 2 is '3 B'; write `2 CLASS`"),
        ("trainlist01.txt", "A/v_A_g01_c01.avi 2\n", "line 1: label 2, classInd.txt says 1"),
        ("testlist01.txt", "C/v_C_g01_c01.avi\n", "line 1: 'C' is no class"),
    ],
)
def test_bad_ucf_annotations(tmp_path, file, text, rule):
    notes = ucf_annotations(tmp_path / "notes", ["A", "B"], ["A/v_A_g01_c01.avi"], [])
    (notes / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(rule)):
        make_lists.ucf101(str(make_tree(tmp_path / "videos", "A/v_A_g01_c01.avi")), str(notes))


def where(lists):
    return {path: (split, label) for split, lines in lists.lines.items() for path, label in lines}


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 999), min_size=1, max_size=30), st.integers(0, 3))
def test_folders_split_does_not_move_when_videos_are_added(tmp_path_factory, numbers, seed):
    root = make_tree(tmp_path_factory.mktemp("tree"), *(f"b/{n:03}.mp4" for n in numbers), "a/x y.MOV")
    how = {"val": 0.3, "test": 0.3, "seed": seed}
    before = where(make_lists.folders(str(root), **how))
    assert len(before) == len(numbers) + 1
    make_tree(root, *(f"b/{n:03}.mp4" for n in range(0, 999, 41)), "a/deeper/0.avi")
    after = where(make_lists.folders(str(root), **how))
    assert before.items() <= after.items()
    assert after["a/x y.MOV"][1] == 0 and all(label == 1 for path, (_, label) in after.items() if path[0] == "b")


def test_folders_shares_seed_and_groups(tmp_path, monkeypatch):
    paths = [f"{name}/scene{scene:02}_{take}.mp4" for name in "ab" for scene in range(50) for take in range(20)]
    monkeypatch.setattr(make_lists, "find_videos", lambda root: [make_lists.Video(p, None, None) for p in paths])
    lists = make_lists.folders(str(tmp_path), val=0.2, test=0.1)
    assert [len(lists.lines[split]) for split in ("train", "val", "test")] == pytest.approx([1400, 400, 200], abs=60)
    assert where(lists) != where(make_lists.folders(str(tmp_path), val=0.2, test=0.1, seed=1))
    grouped = where(make_lists.folders(str(tmp_path), val=0.5, group=r"scene(\d+)"))
    sides = {path[2:9]: set() for path in paths}
    for path, (split, _) in grouped.items():
        sides[path[2:9]].add(split)
    assert all(len(side) == 1 for side in sides.values()) and set.union(*sides.values()) == {"train", "val"}
    with pytest.raises(UserError, match="matches nothing"):
        make_lists.folders(str(tmp_path), group="person")
    with pytest.raises(UserError, match="no regular expression"):
        make_lists.folders(str(tmp_path), group="(")
    with pytest.raises(UserError, match="below 1"):
        make_lists.folders(str(tmp_path), val=0.6, test=0.4)


def test_folders_that_are_split_already(tmp_path):
    files = ["train/a/1.mp4", "train/b/2.mp4", "valid/a/3.mp4", "test/b/deep/4.mp4"]
    lists = make_lists.folders(str(make_tree(tmp_path, *files)))
    expected = {"train": [("train/a/1.mp4", 0), ("train/b/2.mp4", 1)], "val": [("valid/a/3.mp4", 0)]}
    assert lists.lines == expected | {"test": [("test/b/deep/4.mp4", 1)]}
    assert lists.classes == ["a", "b"]


def test_folders_classes_file_keeps_labels(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, "surfing/1.mp4", "archery/2.mp4", "loose.mp4")
    (tmp_path / "classes.txt").write_text("surfing\narchery\n")
    code, out, err = run(monkeypatch, capsys, "folders", tmp_path, "--classes", tmp_path / "classes.txt", "--val", 0)
    assert (code, err) == (0, "")
    assert (tmp_path / "train.csv").read_text() == "archery/2.mp4 1\nsurfing/1.mp4 0\n"
    assert (tmp_path / "classes.txt").read_text() == "surfing\narchery\n"
    assert "videos in no folder of a class, left out: 1" in out
    make_tree(tmp_path, "archerry/3.mp4")
    arguments = ["folders", tmp_path, "--classes", tmp_path / "classes.txt", "--force"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "'archerry' is no class" in err and "did you mean 'archery'?" in err


def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, "a/1.mp4")
    (tmp_path / "val.csv").write_text("mine\n")
    code, _, err = run(monkeypatch, capsys, "folders", tmp_path, "--val", 0)
    assert code == 2 and "val.csv exists" in err and "--force" in err and not (tmp_path / "train.csv").exists()
    assert run(monkeypatch, capsys, "folders", tmp_path, "--val", 0, "--force")[0] == 0
    assert not (tmp_path / "val.csv").exists()  # a list of another run beside these would mislead
    official = tmp_path / "train.csv"
    official.write_text(TRAIN)
    code, _, err = run(monkeypatch, capsys, "kinetics", tmp_path, official, "--force")
    assert code == 2 and "official list" in err and official.read_text() == TRAIN


def test_nothing_found(tmp_path):
    with pytest.raises(UserError, match="none of the 0 videos"):
        make_lists.folders(str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        make_lists.folders(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="differ in case or underscores"):
        make_lists.folders(str(make_tree(tmp_path, "high_jump/1.mp4", "High jump/2.mp4")))
