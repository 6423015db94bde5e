"""Where scalars go: log.jsonl, TensorBoard and the console. The loop emits a dict; nobody else formats it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from video_gn.engine import checkpoint


class Writers:
    """Writes one run's records; use as a context manager.

    A run that goes on after `step` first drops the records of later steps, which it is about to do again.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        path = folder / "log.jsonl"
        if path.exists():
            checkpoint.write_text(path, "".join(_lines_until(path, step)))
        self.log = path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Record `values` under `kind` (train, epoch) after `step` optimizer steps.

        In log.jsonl a line holds kind, step, epoch, time (Unix seconds) and the values; in TensorBoard a value's tag is
        its name, which is grouped by a slash (train/loss).
        """
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3)}
        finite = {
            name: float(f"{v:.7g}") if math.isfinite(v) else None for name, v in values.items()
        }  # NaN is not JSON
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


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log.jsonl; a last line cut short by a kill is left out."""
    records = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _lines_until(path: Path, step: int) -> Iterator[str]:
    for record in read_log(path.parent):
        if record["step"] <= step:
            yield json.dumps(record) + "\n"
