"""Console lines of running tools."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line above any progress bar, on stderr: stdout is for results."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
