"""One writer per folder: others are refused while it lives, and only then."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, launch, records, run, tiny, tool
from video_gn.config import parse_config
from video_gn.errors import UserError
from video_gn.run import lock
from video_gn.run.lock import LOCK, hold
from video_gn.study import Run, Study, run_study

HOLD = """
import os, sys, time
from pathlib import Path
from video_gn.run.lock import hold

with hold(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker, which outlives the process if that is killed
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, worker_seconds: float = 0.0) -> subprocess.Popen:
    """Another process that holds the folder until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(worker_seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def release(process: subprocess.Popen) -> None:
    process.communicate()
    assert process.returncode == 0


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "a"
    process = holder(folder)
    for _ in range(2):
        with pytest.raises(UserError) as caught, hold(folder):
            pytest.fail("held twice")
        message = str(caught.value)
        assert message.startswith(f"{folder}: in use by process {process.pid} on host {platform.node()} (since 20")
        assert message.endswith(
            "; wait until it ends, end it, or choose another folder (output_dir; --out for a study)"
        )
    with hold(tmp_path / "runs" / "b"):  # another folder
        pass
    release(process)
    with hold(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert capsys.readouterr().err == ""


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with hold(tmp_path / name):
            pass
        with pytest.raises(ZeroDivisionError), hold(tmp_path / name):
            raise ZeroDivisionError
    with hold(tmp_path / "used"):
        (tmp_path / "used" / "log.jsonl").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log.jsonl", "mine", "used"]


def test_a_process_is_kept_from_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with hold(tmp_path):
        for folder in (tmp_path, tmp_path / "link"):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host"), hold(folder):
                pass
        with pytest.raises(AssertionError):  # and still holds it
            holder(tmp_path)


def test_a_killed_holder_s_lock_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At once, though a worker of it still lives."""
    process = holder(tmp_path, worker_seconds=900)
    worker = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True))
    process.kill()
    process.wait()
    os.kill(worker, 0)
    with hold(tmp_path):
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{tmp_path}: taken over from process {process.pid} on host {platform.node()} (since ")
        assert line.endswith("), which ended without releasing it")
        with pytest.raises(AssertionError):
            holder(tmp_path)
    os.kill(worker, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_it_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    script = HOLD.replace("sys.stdin.read()", "time.sleep(1)").replace("os.fork()", "1")
    starts = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    held = 0
    for start in starts:
        _, err = start.communicate()
        held += start.returncode == 0
        assert start.returncode == 0 or "in use by" in err
    assert held >= 1


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "WATCH", 2.0)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("host", ["elsewhere", "here, but the file system has no locks"])
@pytest.mark.parametrize("lives", [True, False])
def test_a_holder_that_the_kernel_does_not_know_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, lives: bool
) -> None:
    """On another host (NFS without locks): its time moves while it lives, whatever its clock."""
    if host != "elsewhere":

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "lockf", no_locks)
    name = host if host == "elsewhere" else platform.node()
    (tmp_path / LOCK).write_text(json.dumps({"host": name, "pid": 7, "since": "Monday"}))
    done = threading.Event()

    def live() -> None:
        for second in range(10**6):
            os.utime(tmp_path / LOCK, (1000 + second, 1000 + second))  # its clock is decades behind
            if done.wait(0.05):
                return

    thread = threading.Thread(target=live)
    if lives:
        thread.start()
    try:
        if lives:
            with (
                pytest.raises(UserError, match=f"in use by process 7 on host {name} \\(since Monday\\)"),
                hold(tmp_path),
            ):
                pass
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7
        else:
            with hold(tmp_path):
                assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
                before = (tmp_path / LOCK).stat().st_mtime_ns
                while (tmp_path / LOCK).stat().st_mtime_ns == before:  # its own sign of life
                    time.sleep(0.05)
    finally:
        done.set()
    said = capsys.readouterr().err
    assert "waiting 2 s for a sign of life" in said
    assert ("taken over from process 7" in said) == (not lives)


@pytest.mark.usefixtures("fast")
def test_after_the_watch_the_kernel_still_guards_it(tmp_path: Path) -> None:
    """Reading the file's time closes descriptors of it, which drops record locks."""
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with hold(tmp_path), pytest.raises(AssertionError):
        holder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0", "{}"])
def test_a_lock_of_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / LOCK).mkdir(parents=True)
    for name in ("file", "file/run", "folder"):
        with pytest.raises(UserError, match="cannot make the run's folder .*; set output_dir"), hold(tmp_path / name):
            pass


# --- in training ---


def test_a_second_training_is_refused_and_the_first_goes_on(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks are one holder; killed, they leave a lock that the next start takes over."""
    tiny(tmp_path, videos)
    folder, config = tmp_path / "run", str(tmp_path / "tiny.yaml")
    ranks = launch(2, "tools/train.py", config, "train.epochs=1000")
    try:
        while not (folder / "log.jsonl").exists() or not records(folder):
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.1)
        second = tool("tools/train.py", config)
        assert second.returncode == 2
        assert f": in use by process {ranks[0].pid} on host" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert all(rank.poll() is None for rank in ranks)
        while not (folder / "checkpoints" / "best.pt").exists():
            time.sleep(0.1)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    run(tiny(tmp_path, videos, "train.epochs=1"))
    assert f"taken over from process {ranks[0].pid} on host" in capsys.readouterr().err
    assert next(record["step"] for record in records(folder) if record["kind"] == "epoch") == 5
    assert not (folder / LOCK).exists()


def test_a_second_study_is_refused(tmp_path: Path) -> None:
    study = Study.model_validate({"config": "demo.yaml", "grid": {"model.norm": ["bn"]}})
    config = parse_config({"output_dir": str(tmp_path / "norm=bn" / "seed0"), "device": "cpu"})
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {process.pid} on host .* --out for a study"):
        run_study(study, [Run({"model.norm": "bn"}, 0, (), config)], tmp_path)
    release(process)
    assert not (tmp_path / "table.md").exists()
