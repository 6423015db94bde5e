"""Calls that crash or hang, in processes of their own."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import HANG, is_running, wait_until
from video_gn.errors import UserError
from video_gn.files.risky import ChildCrashed, ChildLate, call_each, stream


def test_each_call_has_an_answer_of_its_own() -> None:
    calls = ["6 * 7", "__import__('os').kill(__import__('os').getpid(), 11)", "__import__('os')._exit(3)", "None"]
    found = dict(call_each(eval, [(call,) for call in calls], 2, HANG))
    assert (found[0], found[3], str(found[1]), str(found[2])) == (
        42,
        None,
        "crashed (SIGSEGV)",
        "crashed (exit code 3)",
    )
    ((index, late),) = call_each(time.sleep, [(1000,)], 1, 0.5)
    assert index == 0 and isinstance(late, ChildLate)
    assert list(call_each(eval, [], None, 1)) == []


@pytest.mark.parametrize(("jobs", "seconds"), [(0, 1), (1, 0), (1, float("nan"))])
def test_no_job_or_no_time_is_a_user_error(jobs: int, seconds: float) -> None:
    with pytest.raises(UserError, match="give at least one job and some time"):
        list(call_each(eval, [("1",)], jobs, seconds))


def work(ending: str) -> Iterator[object]:
    """Yield two answers, the first None, and then end in one of four ways."""
    os.write(1, b"not seen\n")
    Path(tempfile.mkdtemp(), "scratch").touch()
    yield None
    yield os.getpid()
    os.write(2, b"last words\n\n")
    if ending == "hang":
        time.sleep(1000)
    elif ending == "exit":
        os._exit(0)
    elif ending == "crash":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("ending", ["well", "hang", "exit", "crash"])
def test_answers_come_until_the_end(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[object] = []
    try:
        for answer in stream(partial(work, ending), 5 if ending == "hang" else HANG):
            found.append(answer)
    except (ChildLate, ChildCrashed) as error:
        found.append(error)
    assert found[0] is None and found[1] != os.getpid()
    if ending == "hang":
        assert isinstance(found[2], ChildLate)
    elif ending != "well":
        assert isinstance(found[2], ChildCrashed)
        assert (found[2].code, found[2].last_line) == ({"exit": 0, "crash": -9}[ending], "last words")
    assert len(found) == (2 if ending == "well" else 3)
    assert capfd.readouterr().out == "" and not list(tmp_path.iterdir())


def test_whoever_stops_listening_ends_the_process() -> None:
    answers = stream(partial(work, "hang"), HANG)
    assert next(answers) is None
    pid = next(answers)
    assert isinstance(pid, int) and is_running(pid)
    answers.close()  # type: ignore[attr-defined]
    wait_until(lambda: not is_running(pid))
