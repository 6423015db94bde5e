"""What all tools share: how a user's mistake ends. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable

from video_gn.errors import UserError

EXIT_CODES = "exit codes: 0 done, 1 a bug (traceback), 2 a mistake in the command, config or data, 130 interrupted"


def run(main: Callable[[], None]) -> None:
    """Call a tool's main; a UserError becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
