"""One self-contained HTML page about runs: scores, curves, confusions, speed, environment, config differences.

The page fetches nothing and runs no script (its Content-Security-Policy forbids both).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video_gn.files.atomic import replacing
from video_gn.report.document import page
from video_gn.report.read import read_run
from video_gn.run.plots import labels

__all__ = ["page", "read_run", "write_report"]


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page.

    Raises:
        UserError: a folder is not a run's, or holds a file that cannot be read.
    """
    folders = [Path(run).resolve() for run in runs]
    read = [read_run(folder, name) for folder, name in zip(folders, labels(folders), strict=True)]
    out = Path(out)
    text = page(read)
    with replacing(out, "give another --out", parents=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return out
