"""tools/make_lists.py on made-up trees of the real shapes; what it writes is read by what training reads."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_lists as tool
from video_gn import cli
from video_gn.config import parse_config
from video_gn.data import make_lists
from video_gn.data.formats import IMAGE_SUFFIXES, SUFFIXES, SUFFIXES_OF
from video_gn.data.lists import Record, read_class_names, read_list
from video_gn.data.splits import draw_splits, split_of
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
    left_out = out[out.index("left out: 2\n") :].splitlines()[1:3]
    assert sorted(left_out) == [
        "  files that are no videos by their suffix (1 .txt): 1, such as notes.txt",
        "  videos that no list names: 1, such as unlisted/FFFFFFFFFFF_000000_000010.mp4",
    ]
    assert "warning: 1 of 3 classes have no training video: massaging person's head\n" in out
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
        name: [(r.path, r.target) for r in read_list(f"{name}.csv", str(source), 6)] for name in ("train", "test")
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


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True),
    st.integers(0, 400),
    st.sampled_from([0.1, 0.2, 0.5, 0.9]),
    st.integers(0, 3),
)
def test_one_more_video_moves_at_most_one_other(numbers, new, val, seed):
    def draw(numbers):
        paths = {f"{'ab'[n % 2]}/{n:03}.mp4": n % 2 for n in numbers}
        return draw_splits(paths, {path: path for path in paths}, val=val, test=0, seed=seed)

    before = draw(numbers)
    after = draw({*numbers, new})
    assert sum(after[path] != split for path, split in before.items()) <= 1
    assert all(after[path] == split for path, split in before.items() if path[0] != "ab"[new % 2])


@pytest.mark.parametrize(
    ("videos", "val", "test", "expected"),
    [
        (1, 0.2, 0, {"train": 1}),
        (2, 0.2, 0, {"train": 1, "val": 1}),
        (2, 0.2, 0.2, {"train": 1, "val": 1}),
        (3, 0.2, 0.2, {"train": 1, "val": 1, "test": 1}),
        (3, 0.5, 0.4, {"train": 1, "val": 1, "test": 1}),
        (2, 0.9, 0, {"train": 1, "val": 1}),
        (2, 0, 0.1, {"train": 1, "test": 1}),
        (7, 0.2, 0, {"train": 6, "val": 1}),
        (8, 0.2, 0, {"train": 6, "val": 2}),
        (20, 0.2, 0.1, {"train": 14, "val": 4, "test": 2}),
        (20, 0, 0, {"train": 20}),
    ],
)
def test_each_class_is_on_each_side(videos, val, test, expected):
    for seed in range(5):
        labels = {f"{name}/{n}.mp4": label for label, name in enumerate("abc") for n in range(videos)}
        drawn = draw_splits(labels, {path: path for path in labels}, val=val, test=test, seed=seed)
        for label in range(3):
            assert Counter(split for path, split in drawn.items() if labels[path] == label) == expected


def test_which_videos_are_drawn():
    """The rule as the documents state it: the first of the class by the SHA-256 of "SEED/PATH"."""
    paths = [f"caf\N{LATIN SMALL LETTER E WITH ACUTE}/{n}.mp4" for n in range(10)]
    order = sorted(paths, key=lambda path: hashlib.sha256(f"7/{path}".encode()).hexdigest())
    drawn = draw_splits(dict.fromkeys(paths, 0), dict(zip(paths, paths, strict=True)), val=0.3, test=0.2, seed=7)
    assert [path for path in order if drawn[path] == "val"] == order[:3]
    assert [path for path in order if drawn[path] == "test"] == order[3:5]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 7)), st.integers(1, 6), min_size=1),
    st.sampled_from([(0.2, 0), (0.2, 0.2), (0.6, 0.3)]),
)
def test_groups_stay_together_and_classes_keep_training_videos(sizes, shares):
    """Groups that reach over classes, too."""
    labels = {f"{c}/{g}_{n}.mp4": c for (c, g), size in sizes.items() for n in range(size)}
    groups = {path: path.split("/")[1].split("_")[0] for path in labels}
    drawn = draw_splits(labels, groups, val=shares[0], test=shares[1], seed=0)
    sides = defaultdict(set)
    for path, split in drawn.items():
        sides[groups[path]].add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {labels[path] for path, split in drawn.items() if split == "train"} == set(labels.values())


def test_folders_seed_and_groups(tmp_path):
    paths = [f"{name}/scene{scene:02}_{take}.mp4" for name in "ab" for scene in range(5) for take in range(4)]
    root = make_tree(tmp_path, *paths)
    lists = make_lists.folders(str(root), val=0.2, test=0.1)
    assert [len(lists.lines[split]) for split in ("train", "val", "test")] == [28, 8, 4]
    assert where(lists) != where(make_lists.folders(str(root), val=0.2, test=0.1, seed=1))
    grouped = where(make_lists.folders(str(root), val=0.4, group=r"scene(\d+)"))
    sides = {path[2:9]: set() for path in paths}
    for path, (split, _) in grouped.items():
        sides[path[2:9]].add(split)
    assert sorted(map(sorted, sides.values())) == [["train"]] * 3 + [["val"]] * 2
    with pytest.raises(UserError, match="matches nothing"):
        make_lists.folders(str(root), group="person")
    with pytest.raises(UserError, match="not a regular expression"):
        make_lists.folders(str(root), group="(")
    with pytest.raises(UserError, match="below 1"):
        make_lists.folders(str(root), val=0.6, test=0.4)


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        *((name, ("train", ())) for name in ("train", "Train", "TRAIN", "training", "train_videos", "Train2")),
        *((name, ("train", ())) for name in ("trainval", "train_val", "TrainVal", "train-split", "TRAINSET")),
        *((name, ("val", ())) for name in ("val", "valid", "Validation", "VALIDATE", "eval", "dev", "val_clips")),
        *((name, ("test", ())) for name in ("test", "Testing", "tests", "test videos", "03_test")),
        ("hmdb51_val", ("val", ("hmdb",))),
        ("val_station", ("val", ("station",))),
        *((name, None) for name in ("testimony", "festival", "trainer", "strain", "run", "", "42", "train_test")),
    ],
)  # fmt: skip
def test_which_split_a_folder_states(name, stated):
    assert split_of(name) == stated


def split_tree(*folders, classes=("run", "jump"), videos=(1, 2)):
    return [f"{folder}/{name}/{n}.mp4" for folder in folders for name in classes for n in videos]


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        (split_tree("Train", "Val"), (4, 4, 0)),
        (split_tree("TRAIN", "TEST"), (4, 0, 4)),
        (split_tree("training", "testing"), (4, 0, 4)),
        (split_tree("train_videos", "validation", "test_videos"), (4, 4, 4)),
        (split_tree("ucf_train", "ucf_test"), (4, 0, 4)),
        (split_tree("train", "valid", "val"), (4, 8, 0)),
        ([*split_tree("train", "val"), "intro.mp4", "unused/x.mp4", "train/loose.mp4", ".git/a/b.mp4"], (4, 4, 0)),
        (split_tree("train", "val") + split_tree("extra"), (4, 4, 0)),
        (split_tree("test"), (0, 0, 4)),
        (split_tree("Validation"), (0, 4, 0)),
        (split_tree("val", "test"), (0, 4, 4)),
        (split_tree("TRAIN", videos=range(10)), (16, 4, 0)),  # nothing is held out: a fifth of train is
        ([*split_tree("train", videos=range(10)), "test/1.mp4", "test/2.mp4"], (16, 4, 0)),  # labels unknown
        (split_tree("data/train", "data/val"), (4, 4, 0)),
        (split_tree("a/b/train", "a/b/test"), (4, 0, 4)),
        (split_tree("train/videos", "val/videos"), (4, 4, 0)),
        (split_tree("train/train_videos", "val/val_videos"), (4, 4, 0)),
        (["run/train/1.mp4", "run/test/2.mp4", "jump/train/1.mp4", "jump/val/2.mp4"], (2, 1, 1)),
        (split_tree("disk1/train", "disk1/val", "disk2/train", "disk2/val"), (8, 8, 0)),
        (["run/Training/1.mp4", "jump/Training/1.mp4", "jump/Testing/2.mp4"], (2, 0, 1)),
        (split_tree("dataset"), (2, 2, 0)),
        ([*split_tree("videos/dataset"), "videos/intro.mp4"], (2, 2, 0)),
        (["run/a/1.mp4", "run/2.mp4", "jump/b/c/3.mp4", "jump/4.mp4"], (2, 2, 0)),
    ],
)
def test_trees_in_many_forms(tmp_path, files, counts):
    lists = make_lists.folders(str(make_tree(tmp_path, *files)))
    assert lists.classes == ["jump", "run"]
    assert tuple(len(lists.lines[split]) for split in ("train", "val", "test")) == counts
    for path, (_, label) in where(lists).items():
        assert f"{lists.classes[label]}/" in path
    listed = set(where(lists))
    left_out = {path for paths in lists.found.left_out.values() for path in paths}
    assert listed | left_out == {".git" if file.startswith(".git") else file for file in files}
    assert not listed & left_out


@pytest.mark.parametrize(
    "files",
    [
        ["bus/1.mp4", "car/2.mp4", "train/3.mp4"],
        ["bus/1.mp4", "train/3.mp4", "test/3.mp4", "running/4.mp4"],
        ["run/s1/1.mp4", "training/s1/2.mp4"],
        ["train station/a/1.mp4", "test drive/b/2.mp4"],
    ],
)
def test_classes_that_sound_like_splits(tmp_path, files):
    assert make_lists.folders(str(make_tree(tmp_path, *files))).classes == sorted(
        {file.split("/")[0] for file in files}
    )


def test_a_doubtful_class_is_named(tmp_path):
    lists = make_lists.folders(str(make_tree(tmp_path, "train/run/1.mp4", "train/jump/2.mp4", "extra/3.mp4")))
    assert lists.classes == ["extra", "train"] and "warning: folder 'train' is taken for a class" in lists.notes[0]


def test_splits_without_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="'train', 'val' are splits and hold no folder per class"):
        make_lists.folders(str(make_tree(tmp_path, "train/1.mp4", "val/2.mp4")))


def test_what_to_set(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path / "my videos", *split_tree("train", "test"))
    code, out, _ = run(monkeypatch, capsys, "folders", tmp_path / "my videos")
    assert code == 0 and "no split is for validation" in out
    settings = shlex.split(out.splitlines()[-1].removeprefix("set: "))
    config = parse_config({"output_dir": "x"}, settings).data
    for name in (config.train_list, config.val_list, config.test_list):
        assert len(read_list(name, config.root, 2)) == 4
    assert (config.train_list, config.val_list, config.test_list) == ("train.csv", "test.csv", "test.csv")
    assert read_class_names(config.class_names, config.root, 2) == ["jump", "run"]
    make_tree(tmp_path / "my videos", *split_tree("val"))
    _, out, _ = run(monkeypatch, capsys, "folders", tmp_path / "my videos", "--out", tmp_path / "lists")
    config = parse_config({"output_dir": "x"}, shlex.split(out.splitlines()[-1].removeprefix("set: "))).data
    assert [Path(name) for name in (config.train_list, config.val_list, config.test_list)] == [
        tmp_path / "lists" / f"{split}.csv" for split in ("train", "val", "test")
    ]


def test_table_warnings_and_what_is_left_out(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, *split_tree("train"), "val/run/1.mp4", "val/swim/1.MKV", "val/swim/2.mp4")
    make_tree(tmp_path, "train/run/notes.txt", "train/run/._1.mp4", "__MACOSX/train/x.mp4", "train/run/a\nb.mp4")
    (tmp_path / "train/run/gone.mp4").symlink_to("nowhere")
    (tmp_path / "train/run/self.mp4").symlink_to("self.mp4")
    code, out, err = run(monkeypatch, capsys, "folders", tmp_path)
    assert (code, err) == (0, "")
    table = [re.split("  +", line.strip()) for line in out.splitlines()]
    assert ["3 classes", "train", "val"] in table
    assert table[4:7] == [["jump", "2", "0"], ["run", "2", "1"], ["swim", "0", "2"]]
    assert "warning: 1 of 3 classes have no training video: swim\n" in out
    assert "warning: 1 of 3 classes have no validation video: jump\n" in out
    for line in (
        "left out: 6",
        "  files that are no videos by their suffix (1 .txt): 1, such as train/run/notes.txt",
        "  hidden files: 1, such as train/run/._1.mp4",
        "  hidden folders and folders of the system: 1, such as __MACOSX",
        "  links to nothing and special files: 2, such as train/run/gone.mp4",
        "  names that a list cannot hold (not UTF-8, or with a line break): 1, such as 'train/run/a\\nb.mp4'",
    ):
        assert line in out.splitlines()


def test_suffixes_are_those_of_the_formats_that_the_decoder_reads(tmp_path):
    formats = pytest.importorskip("video_gn.data.decode.stream").FORMATS
    assert sorted(SUFFIXES_OF) == sorted(formats.split(","))
    names = [f"{n}{suffix.upper() if n % 2 else suffix}" for n, suffix in enumerate(sorted(SUFFIXES))]
    assert {".mp4", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts", ".ogv", ".gif", ".asf", ".mxf", ".vob"} <= SUFFIXES
    root = make_tree(tmp_path, *(f"{n}/{name}" for n, name in enumerate(names)), "0/sound.mp3", "0/a.jpg")
    assert len(make_lists.folders(str(root)).classes) == len(names)


def test_image_suffixes_are_those_of_images():
    from video_gn.data import images

    assert images.SUFFIXES == IMAGE_SUFFIXES


def test_links(tmp_path):
    root = make_tree(tmp_path / "data", *split_tree("train", "test"))
    (root / "val").symlink_to("test")
    (root / "train" / "run" / "loop").symlink_to("..")
    (root / "train" / "run" / "up").symlink_to(tmp_path)
    (root / "train" / "run" / "again.mp4").symlink_to("1.mp4")
    lists = make_lists.folders(str(root))
    assert [path for path, _ in lists.lines["val"]] == sorted(split_tree("val"))
    assert [path for path, _ in lists.lines["test"]] == sorted(split_tree("test"))
    assert [path for path, _ in lists.lines["train"]] == sorted(split_tree("train"))
    assert lists.found.left_out == {
        "links to a folder that contains them": ["train/run/loop", "train/run/up"],
        "second names of a listed video, by links": ["train/run/again.mp4"],
    }
    assert "warning: 4 files are in val and in test, by links" in lists.notes


def test_a_class_that_is_a_link_to_another(tmp_path):
    root = make_tree(tmp_path, "b/1.mp4", "b/2.mp4", "c/3.mp4")
    (root / "a").symlink_to("b")
    lists = make_lists.folders(str(root))
    assert lists.classes == ["b", "c"] and len(where(lists)) == 3


def test_a_maze_of_links_ends(tmp_path):
    """Each of 12 folders holds a link to each: 12! ways, if all were gone."""
    make_tree(tmp_path, *(f"{n}/{n}.mp4" for n in range(12)))
    for n in range(12):
        for other in range(12):
            (tmp_path / f"{n}/to{other}").symlink_to(f"../{other}")
    lists = make_lists.folders(str(tmp_path))
    assert sorted(path.split("/")[-1] for path in where(lists)) == sorted(f"{n}.mp4" for n in range(12))
    assert all(len(path.split("/")) == 2 for path in where(lists))


def test_one_class_in_two_spellings(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        name = unicodedata.normalize(form, "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
        make_tree(tmp_path, f"{split}/{name}/1.mp4", f"{split}/run/1.mp4")
    lists = make_lists.folders(str(tmp_path))
    assert lists.classes == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "run"]
    assert [[label for _, label in lists.lines[split]] for split in ("train", "val")] == [[0, 1], [0, 1]]
    assert any("NFC and NFD" in note for note in lists.notes)


def test_names_that_need_quotes_are_listed(tmp_path):
    names = ["# a", '"b" c', " d", "e, 1"]
    lists = make_lists.folders(str(make_tree(tmp_path, *(f"{name}/1.mp4" for name in names))), val=0)
    make_lists.write_lists(lists, tmp_path)
    assert sorted(record.path for record in read_list("train.csv", str(tmp_path), 4)) == sorted(
        f"{n}/1.mp4" for n in names
    )


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
    assert "  videos in no folder of a class: 1, such as loose.mp4" in out.splitlines()
    make_tree(tmp_path, "archerry/3.mp4")
    arguments = ["folders", tmp_path, "--classes", tmp_path / "classes.txt", "--force"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "'archerry' is not a class" in err and "did you mean 'archery'?" in err


def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, "a/1.mp4", "a/2.mp4")
    (tmp_path / "val.csv").write_text("mine\n")
    code, _, err = run(monkeypatch, capsys, "folders", tmp_path)
    assert code == 2 and "val.csv exists" in err and "--force" in err and not (tmp_path / "train.csv").exists()
    code, out, _ = run(monkeypatch, capsys, "folders", tmp_path, "--force")
    assert code == 0 and f"kept as {tmp_path / 'val.csv.bak'}" in out
    assert (tmp_path / "val.csv.bak").read_text() == "mine\n" and len(read_list("val.csv", str(tmp_path), 1)) == 1
    official = tmp_path / "official.csv"
    official.write_text(TRAIN)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv").symlink_to("official.csv")
    code, _, err = run(monkeypatch, capsys, "kinetics", tmp_path, official, "--force")
    assert code == 2 and "official list" in err and official.read_text() == TRAIN


def test_force_deletes_what_the_tool_wrote_and_nothing_else(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, *(f"{name}/{n}.mp4" for name in "ab" for n in range(4)))
    assert run(monkeypatch, capsys, "folders", tmp_path, "--test", 0.2)[0] == 0
    assert (tmp_path / "test.csv").exists()
    (tmp_path / "missing.txt").write_text("my notes\n")
    code, out, _ = run(monkeypatch, capsys, "folders", tmp_path, "--force")
    assert code == 0 and f"removed {tmp_path / 'test.csv'}" in out and not (tmp_path / "test.csv").exists()
    assert (tmp_path / "missing.txt").read_text() == "my notes\n" and f"{tmp_path / 'missing.txt'} stays" in out
    assert not list(tmp_path.glob("*.bak"))  # lists of its own are replaced

    for text in ("a/1.mp4 0\n", ""):
        (tmp_path / "test.csv").write_text(text)
        assert run(monkeypatch, capsys, "folders", tmp_path, "--force")[0] == 0
        assert (tmp_path / "test.csv").read_text() == text
    (tmp_path / "val.csv").write_text("a/1.mp4 0\n")  # changed by hand
    (tmp_path / ".make_lists.json").write_text("{")  # and nobody knows any more
    assert run(monkeypatch, capsys, "folders", tmp_path, "--force", "--val", 0)[0] == 0
    assert (tmp_path / "val.csv").read_text() == "a/1.mp4 0\n"
    for _ in range(2):
        (tmp_path / "train.csv").write_text("mine\n")
        assert run(monkeypatch, capsys, "folders", tmp_path, "--force")[0] == 0
    assert [(tmp_path / f"train.csv.{name}").read_text() for name in ("bak2", "bak3")] == ["mine\n"] * 2


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    make_tree(tmp_path, "a/1.mp4")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/lists")):
        code, _, err = run(monkeypatch, capsys, "folders", tmp_path, "--out", out)
        assert code == 2 and "--out" in err and len(err.splitlines()) == 1
    (tmp_path / "val.csv").mkdir()
    code, _, err = run(monkeypatch, capsys, "folders", tmp_path, "--force")
    assert code == 2 and "val.csv is a folder" in err


def test_nothing_found(tmp_path):
    with pytest.raises(UserError, match="none of the 0 videos"):
        make_lists.folders(str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        make_lists.folders(str(tmp_path / "absent"))
    frames = make_tree(tmp_path / "frames", "run/clip1/00001.jpg", "run/clip1/00002.jpg")
    with pytest.raises(UserError, match="none of the 0 videos .*other files: 2 .jpg, of which frames become a video"):
        make_lists.folders(str(frames))
    with pytest.raises(UserError, match="differ in case or underscores"):
        make_lists.folders(str(make_tree(tmp_path / "two", "high_jump/1.mp4", "High jump/2.mp4")))
