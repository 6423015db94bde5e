"""Unreadable videos: counted by path, named once, limited."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import run_ranks
from tests.numbered_videos import numbered, write
from video_gn.config import Config, parse_config
from video_gn.data.decode import VideoError
from video_gn.data.workers import WorkerLost
from video_gn.distributed.world import World
from video_gn.engine.datasets import read_records, read_train_records, test_dataset, train_dataset, val_dataset
from video_gn.engine.health import Unreadable, check_in_flight, keep_in_flight
from video_gn.errors import UserError

test_dataset.__test__ = False  # type: ignore[attr-defined]

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def errors(*paths: str) -> list[VideoError]:
    return [VideoError(path, f"reason of {path}") for path in paths]


def test_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unreadable.txt"
    unreadable = Unreadable(file, 10, ALONE)
    unreadable.add([])
    assert not file.exists()
    unreadable.add(errors("a.mp4", "ü b.mp4", "a.mp4"))
    unreadable.add(iter(errors("ü b.mp4", "c.mp4")))
    expected = "a.mp4\treason of a.mp4\nü b.mp4\treason of ü b.mp4\nc.mp4\treason of c.mp4\n"
    assert file.read_text(encoding="utf-8") == expected
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "a.mp4: reason of a.mp4",
        "ü b.mp4: reason of ü b.mp4",
        "c.mp4: reason of c.mp4",
    ]


def test_a_run_that_goes_on_adds_no_name_twice(tmp_path: Path) -> None:
    file = tmp_path / "unreadable.txt"
    Unreadable(file, 1, ALONE).add(errors("a.mp4"))
    again = Unreadable(file, 1, ALONE)
    again.add(errors("a.mp4"))
    assert len(file.read_text().splitlines()) == 1
    with pytest.raises(UserError, match="2 unreadable training videos"):
        again.add(errors("b.mp4"))


def test_the_limit_is_of_different_videos(tmp_path: Path) -> None:
    file = tmp_path / "unreadable.txt"
    unreadable = Unreadable(file, 2, ALONE)
    for _ in range(3):
        unreadable.add(errors("a.mp4", "b.mp4"))
    with pytest.raises(UserError) as caught:
        unreadable.add(errors("a.mp4", "c.mp4", "d.mp4"))
    message = str(caught.value)
    assert message.startswith("4 unreadable training videos, more than data.max_unreadable 2, such as a.mp4; ")
    assert str(file) in message
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4  # all are named before the run ends


def test_a_limit_of_zero(tmp_path: Path) -> None:
    unreadable = Unreadable(tmp_path / "unreadable.txt", 0, ALONE)
    unreadable.add([])
    with pytest.raises(UserError, match=r"^1 unreadable"):
        unreadable.add(errors("a.mp4"))


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.lists(st.sampled_from("abcdef"), max_size=4), max_size=6), limit=st.integers(0, 6))
def test_it_ends_with_the_batch_that_exceeds_the_limit(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], limit: int
) -> None:
    unreadable = Unreadable(tmp_path_factory.mktemp("run") / "unreadable.txt", limit, ALONE)
    seen: set[str] = set()
    for batch in batches:
        seen |= set(batch)
        if len(seen) > limit:
            with pytest.raises(UserError):
                unreadable.add(errors(*batch))
            break
        unreadable.add(errors(*batch))
    assert unreadable.paths == seen


SHARE = """
import json, sys
from pathlib import Path
from video_gn.data.decode import VideoError
from video_gn.distributed.world import world
from video_gn.engine.health import Unreadable
from video_gn.errors import UserError

folder, told = Path(sys.argv[1]), []
with world("cpu") as ranks:
    unreadable = Unreadable(folder / "unreadable.txt", 2, ranks)
    unreadable.add([VideoError("same.mp4", "cut"), VideoError(f"only {ranks.rank}.mp4", "cut")])
    for _ in range(2):
        try:
            unreadable.share()
            told.append("went on")
        except UserError as error:
            told.append(str(error).split(",")[0])
(folder / f"{ranks.rank}.json").write_text(json.dumps(told))
"""


def test_ranks_count_together(tmp_path: Path) -> None:
    """Two files each, one of them the same: three together, told on both ranks, each named once."""
    run_ranks(SHARE, 2, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == ["3 unreadable training videos"] * 2
    lines = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert sorted(lines) == ["only 0.mp4\tcut", "only 1.mp4\tcut", "same.mp4\tcut"]


def test_a_rank_beyond_the_limit_names_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It raises by itself, without the others; rank 0 has named one before."""
    file = tmp_path / "unreadable.txt"
    file.write_text("a.mp4\tcut\n")
    unreadable = Unreadable(file, 2, World(rank=1, size=2, device=ALONE.device))
    unreadable.add(errors("a.mp4", "b.mp4"))
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"^3 unreadable training videos"):
        unreadable.add(errors("c.mp4"))
    assert file.read_text() == "a.mp4\tcut\nb.mp4\treason of b.mp4\nc.mp4\treason of c.mp4\n"
    assert capsys.readouterr().err.count("c.mp4: reason of c.mp4\n") == 1


# ---- videos that were in flight ----


def test_the_videos_of_a_lost_worker_are_kept(tmp_path: Path) -> None:
    """Of each time, as torch's own error tells it too; nothing else leaves a file."""
    for error in (UserError("a bad list"), RuntimeError("out of memory"), KeyboardInterrupt()):
        with pytest.raises(type(error)), keep_in_flight(tmp_path):
            raise error
    with pytest.raises(WorkerLost, match="in flight: no video"), keep_in_flight(tmp_path):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
    assert not (tmp_path / "in_flight.txt").exists() or (tmp_path / "in_flight.txt").read_text() == ""
    for _ in range(2):
        with pytest.raises(WorkerLost), keep_in_flight(tmp_path):
            raise WorkerLost("DataLoader timed out", ["sub/a b.mp4", "ü.mp4"])
    assert (tmp_path / "in_flight.txt").read_text(encoding="utf-8") == "sub/a b.mp4\nü.mp4\n" * 2


def test_what_was_in_flight_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good video, garbage, one that is gone, and a pipe without a writer, which would hang whoever opens it."""
    root, run = tmp_path / "root", tmp_path / "run"
    (root / "sub").mkdir(parents=True)
    run.mkdir()
    check_in_flight(run, str(root), "pyav", 1, ALONE)  # nothing was in flight
    assert not list(run.iterdir())
    write(root / "sub" / "good.mp4", map(numbered, range(5)))
    (root / 'bad, "ü".mp4').write_bytes(b"not a video")
    os.mkfifo(root / "pipe.mp4")
    (run / "in_flight.txt").write_text("sub/good.mp4\n")
    check_in_flight(run, str(root), "pyav", 60, ALONE)  # alone at first, as it waits for the imports
    assert not list(run.iterdir())
    names = ["sub/good.mp4", 'bad, "ü".mp4', "gone.mp4", "pipe.mp4", "gone.mp4"]
    (run / "in_flight.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (run / "quarantine.csv").write_text("path,reason\nbefore.mp4,crash\n")
    check_in_flight(run, str(root), "pyav", 5, ALONE)
    assert [path.name for path in run.iterdir()] == ["quarantine.csv"]
    lines = (run / "quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["path,reason", "before.mp4,crash"]
    rows = dict(sorted(line.rsplit(",", 1) for line in lines[2:]))
    assert list(rows) == ['"bad, ""ü"".mp4"', "gone.mp4", "pipe.mp4"]
    assert (rows["gone.mp4"], rows["pipe.mp4"]) == ("no such file", "is a pipe; give a file")
    told = capsys.readouterr().err
    assert "\n4 videos were in flight" in told and told.count("sub/good.mp4: good\n") == 2


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Four videos, of which report.csv names one and a path that is in no list, and the run's quarantine another."""
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.mp4", map(numbered, range(3)))
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 1\nc.mp4 2\nd.mp4 3\n")
    (tmp_path / "report.csv").write_text("path,frames,problem\na.mp4,3,\nb.mp4,,cut off\nz.mp4,,gone\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "quarantine.csv").write_text("path,reason\nd.mp4,SIGSEGV\n")
    names = {name: "list.csv" for name in ("train_list", "val_list", "test_list")}
    data = {"root": str(tmp_path), **names, "quarantine": "report.csv", "crop": 32, "short_side": [32, 32]}
    tree = {"output_dir": str(tmp_path / "run"), "model": {"num_classes": 4}, "data": {**data, "decoder": "pyav"}}
    return parse_config(tree | {"test": {"short_side": 32, "clips": 1, "views": "center"}})


def test_quarantine_is_left_out_of_training(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    records = read_train_records(config, ALONE)
    assert [record.path for record in records] == ["a.mp4", "c.mp4", "d.mp4"]
    assert capsys.readouterr().err == "1 of 4 training videos left out: report.csv\n"
    clips = train_dataset(config, records)  # what a worker was lost with keeps its place in the order
    reasons = {e.path.rpartition("/")[2]: e.reason for n in range(3) for e in clips[0, n].unreadable}
    assert reasons == {"d.mp4": "in quarantine: SIGSEGV"}


def test_quarantine_is_not_scored(config: Config) -> None:
    """All are listed, none is replaced; the run's own quarantine is for the run."""
    records = read_records(config, "list.csv", ALONE)
    assert len(records) == 4
    for clips, bad in ((val_dataset(config, records), {1, 3}), (test_dataset(config, records), {1})):
        items = [clips[n] for n in range(4)]
        assert [item.index for item in items] == [0, 1, 2, 3]
        assert {n for n, item in enumerate(items) if not item.views} == bad
        assert [e.reason for e in items[1].unreadable] == ["in quarantine: cut off"]


def test_a_missing_file_in_quarantine_is_no_fault_of_the_list(config: Config, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").unlink()
    assert len(read_records(config, "list.csv", ALONE)) == 4
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UserError, match="1 of 3 files are not there: line 1"):
        read_records(config, "list.csv", ALONE)


def test_bad_quarantines(config: Config, tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    for text, message in (
        ("path,problem\n" + "".join(f"{name}.mp4,cut\n" for name in "abcd"), "all 4 training videos are in data.quar"),
        ("file,reason\n", "no columns path and problem"),
    ):
        report.write_text(text)
        with pytest.raises(UserError, match=message):
            read_train_records(config, ALONE)
    report.unlink()
    with pytest.raises(UserError, match=r"no file 'report\.csv'"):
        read_train_records(config, ALONE)
