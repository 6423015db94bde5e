"""SIGTERM and SIGUSR1: what schedulers and torchrun send some time before they take a machine away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Whether this process has been asked to stop."""

    requested = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While open, the first of `SIGNALS` sets `requested`; the next one does what it does by default."""
    stop, process = Stop(), os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker, which its parent ends
            return
        stop.requested = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        text = f"{signal.Signals(number).name}: going to stop after this step with a checkpoint; again: at once\n"
        os.write(2, text.encode())  # a handler must not take a stream's lock

    before = {each: signal.signal(each, note) for each in SIGNALS}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
