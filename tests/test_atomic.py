"""Atomic writes: on read-only and full disks, of long names, after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import files_up_to, read_only
from video_gn.errors import UserError
from video_gn.files import atomic
from video_gn.files.atomic import check_writable, fitting_name, is_temporary, replacing, write_bytes, write_text


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a.txt", "ü\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xbc\r\n"
    write_bytes(tmp_path / "a.txt", b"\0")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"\0"
    with replacing(tmp_path / "new" / "b", parents=True) as temporary:
        temporary.write_bytes(b"b")
        assert is_temporary(temporary) and not (tmp_path / "new" / "b").exists()
    assert (tmp_path / "new" / "b").read_bytes() == b"b"


@pytest.mark.parametrize("length", [1, 242, 251, 255])
def test_names_up_to_the_longest_are_written(tmp_path, length):
    name = ("t" * 251 + ".mp4")[-length:]
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\); shorten the name or give --out"):
        write_text(tmp_path / ("t" * 256), "x", "give --out")
    assert not list(tmp_path.iterdir())


def test_names_made_of_names_fit():
    assert fitting_name("a", ".csv") == "a.csv" and fitting_name("a" * 251, ".csv") == "a" * 251 + ".csv"
    names = [fitting_name(stem, ".timeline.csv") for stem in ("t" * 251 + "a", "t" * 251 + "b", "é" * 125)]
    assert len(set(names)) == 3 and all(240 < len(name.encode()) <= 255 for name in names)


@pytest.mark.parametrize(
    "write", [lambda file: file.write(bytes(9000)), lambda file: torch.save(torch.zeros(9000), file)]
)
def test_a_full_disk_leaves_the_older_file(tmp_path, write):
    (tmp_path / "a.pt").write_bytes(b"older")
    with (
        files_up_to(4096),
        pytest.raises(
            UserError, match=r"a\.pt: cannot be written \(File too large\); free space or give another --out"
        ),
        replacing(tmp_path / "a.pt", "give another --out") as temporary,
        temporary.open("wb") as file,
    ):
        write(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"] and (tmp_path / "a.pt").read_bytes() == b"older"


def test_errors_that_are_not_of_writing_pass_and_nothing_stays(tmp_path):
    for error in (ValueError("mine"), RuntimeError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(tmp_path / "a") as temporary:
            temporary.touch()
            raise error
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder(tmp_path):
    (tmp_path / "ro").mkdir()
    with read_only(tmp_path / "ro"):
        with pytest.raises(
            UserError, match=r"ro/a: cannot be written \(Operation not permitted\); choose another place"
        ):
            write_text(tmp_path / "ro" / "a", "x")
        with pytest.raises(UserError, match=r"ro: cannot be written \(Operation not permitted\); give --out"):
            check_writable(tmp_path / "ro", 0, "give --out")


def test_a_read_only_disk_refuses_the_clean_up_too(tmp_path, monkeypatch):
    """As Linux does, even of what is not there."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"a: cannot be written \(Read-only file system\)"):
        write_text(tmp_path / "a", "x")


def test_room_is_checked(tmp_path, monkeypatch):
    check_writable(tmp_path, 2**21)
    assert not list(tmp_path.iterdir())
    with files_up_to(4096), pytest.raises(UserError, match="cannot be written .*; free space or give --out"):
        check_writable(tmp_path, 2**20, "give --out")
    with pytest.raises(UserError, match="MiB are free and about 1,099,511,627,776.0 MiB are needed; free space or"):
        check_writable(tmp_path, 2**60)
    with pytest.raises(UserError, match=r"absent: cannot be written \(No such file or directory\)"):
        check_writable(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_is_known(tmp_path):
    code = (
        "import sys, time\nfrom video_gn.files.atomic import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n    temporary.touch()\n    print(flush=True)\n    time.sleep(900)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.csv")], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    assert is_temporary(left) and left.suffix == ".csv" and left != atomic.temporary_path(tmp_path / "a.csv")
    assert not is_temporary(tmp_path / "a.csv") and not is_temporary(tmp_path / ".config.yaml")
