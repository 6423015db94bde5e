"""What all tools share: how their help looks and how a user's mistake ends. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from video_gn.errors import Preempted, UserError

EXIT_CODES = """\
exit codes: 0 done, 1 a bug (traceback), 2 a mistake in the command, config or data,
75 stopped by SIGTERM or SIGUSR1 with a checkpoint (the same command resumes), 130 interrupted"""


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a tool's parser; `text`, its docstring, is its help as it is written, with the exit codes at the end."""
    return argparse.ArgumentParser(
        description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(main: Callable[[], None]) -> None:
    """Call a tool's main; a UserError becomes one line on stderr and exit code 2, a Preempted 75."""
    _wait_passively()
    try:
        main()
    except UserError as error:
        if error.told:  # by a rank whose process group is open: taken down after another's, it can abort the process
            sys.stdout.flush()
            sys.stderr.flush()
            if os.environ.get("RANK") == "0":
                time.sleep(2)  # the store may go with this process: let the others see in it that this is told
            os._exit(2)
        _let_rank_0_speak()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stop:
        if os.environ.get("RANK", "0") == "0":  # all ranks stop together
            print(stop, file=sys.stderr)
        sys.exit(75)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _wait_passively() -> None:
    """Let OpenMP's threads sleep where they wait; it reads this when torch, which no tool has imported yet, loads it.

    By default they spin, and where other work shares the cores a step takes several times as long
    (docs/benchmarks.md). A value of the user's stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _let_rank_0_speak() -> None:
    """All ranks of a host may make one mistake: torchrun ends the others in their sleep once the first has told it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)
