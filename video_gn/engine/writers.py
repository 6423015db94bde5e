"""Where scalars go: log.jsonl, TensorBoard and the console. The loop emits a dict; nobody else formats it."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Writers:
    """Writes one run's records; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.log = (folder / "log.jsonl").open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(folder))

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Record `values` under `kind` (train, val, epoch) after `step` optimizer steps.

        In log.jsonl a line holds kind, step, epoch, time (Unix seconds) and the values; in TensorBoard a value's tag is
        its name, which is grouped by a slash (train/loss).
        """
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3)}
        finite = {name: round(v, 6) if math.isfinite(v) else None for name, v in values.items()}  # NaN is not JSON
        self.log.write(json.dumps(record | finite) + "\n")
        self.log.flush()
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def text(self, tag: str, text: str) -> None:
        """Show `text` (Markdown) in TensorBoard's Text tab."""
        self.tensorboard.add_text(tag, text)

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()
        self.tensorboard.close()


def say(text: str) -> None:
    """A console line, above any progress bar, on stderr: stdout is for results."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
