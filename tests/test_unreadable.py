"""Unreadable videos: counted by path, named once, limited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_distributed import run_ranks
from video_gn.data.decode import VideoError
from video_gn.engine.distributed import World
from video_gn.engine.unreadable import Unreadable
from video_gn.errors import UserError

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
from video_gn.engine.distributed import world
from video_gn.engine.unreadable import Unreadable
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
