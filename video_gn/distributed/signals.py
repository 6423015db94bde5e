"""SIGTERM and SIGUSR1: what schedulers and torchrun send some time before they take a machine away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Whether this process, or another rank of its run, has been asked to stop."""

    requested = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While open, `SIGNALS` set `requested` and do nothing else, however often they come.

    SLURM's warning, its SIGTERM and torchrun's may all reach a process: none may cut its checkpoint short. SIGINT and
    SIGKILL end it at once.
    """
    stop, process = Stop(), os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker, which its parent ends
            return
        if stop.requested:
            return
        stop.requested = True
        text = f"{signal.Signals(number).name}: going to stop after this step, with a checkpoint\n"
        os.write(2, text.encode())  # a handler must not take a stream's lock

    before = {each: signal.signal(each, note) for each in SIGNALS}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
