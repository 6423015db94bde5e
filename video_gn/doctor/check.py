"""One check: its lines, and what becomes of it when it raises, crashes or hangs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from video_gn.errors import UserError
from video_gn.files.risky import ChildCrashed, ChildLate, stream

if TYPE_CHECKING:
    from video_gn.config import Config

Status = Literal["ok", "warning", "error"]


class Line(NamedTuple):
    """One finding."""

    status: Status
    name: str
    text: str
    remedy: str = ""
    """A sentence to act on; of an OK line a hint."""


class Target(NamedTuple):
    """What the checks are for."""

    data: Path
    output: Path
    config: Config | None = None


class Check(NamedTuple):
    """One entry of `CHECKS`."""

    name: str
    run: Callable[[Target], Iterable[Line]]
    seconds: float
    remedy: str
    """Where it raises, crashes or takes longer than `seconds`."""
    needs_torch: bool = True


def run_check(check: Check, target: Target) -> Iterator[Line]:
    """Yield the lines of one check; an exception, a crash and a hang are an error line."""
    try:
        yield from stream(partial(_lines, check, target), check.seconds)
    except ChildLate:
        yield Line("error", check.name, f"no answer within {check.seconds:g} s", check.remedy)
    except ChildCrashed as crash:
        how = str(crash) if (crash.code or 0) < 0 else "ended without an answer"
        text = f"{how}: {crash.last_line:.160}" if crash.last_line else how
        yield Line("error", check.name, text, check.remedy)


def _lines(check: Check, target: Target) -> Iterator[Line]:
    """Yield what the check finds, and a line for what it raises."""
    try:
        yield from check.run(target)
    except UserError as error:
        yield user_error_line(check.name, error)
    except Exception as error:
        yield Line("error", check.name, one_line(error), check.remedy)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def user_error_line(name: str, error: UserError) -> Line:
    """Return an error line; the remedy is what follows the message's last semicolon."""
    text, semicolon, remedy = str(error).rpartition("; ")
    if not semicolon:
        return Line("error", name, str(error), "Correct the config or the list, then run this again.")
    return Line("error", name, text, f"{remedy[:1].upper()}{remedy[1:].rstrip('.')}.")


def text_of(line: Line, colour: bool) -> str:
    """Return a line for a person, with its remedy below."""
    word = {"ok": "OK", "warning": "warning", "error": "error"}[line.status].ljust(7)
    if colour:
        word = f"\x1b[{ ({'ok': 32, 'warning': 33, 'error': 31}[line.status]) }m{word}\x1b[0m"
    text = f"{word}  {line.name:<18}  {line.text}"
    return f"{text}\n{'':29}-> {line.remedy}" if line.remedy else text


def colours() -> bool:
    """Return whether stdout shows colors: a terminal, and no NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
