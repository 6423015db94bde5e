"""Where scalars go: log.jsonl, TensorBoard and the console. The loop emits a dict; nobody else formats it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from video_gn.engine import checkpoint
from video_gn.errors import UserError


class Writers:
    """Writes one run's records; use as a context manager.

    A run that goes on keeps the first `lines` records, which are those before its checkpoint, and drops the later ones,
    which it is about to do again. TensorBoard's file is made anew from them, since a kill takes what was still queued.
    """

    def __init__(self, folder: Path, lines: int = 0) -> None:
        self.path = folder / "log.jsonl"
        kept = read_log(folder)[:lines] if self.path.exists() else []
        checkpoint.write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.lines = len(kept)
        self.log = self.path.open("a", encoding="utf-8")
        stale = list(folder.glob("events.out.tfevents.*"))
        with self._told():
            self.tensorboard = SummaryWriter(str(folder), purge_step=1)  # for a TensorBoard that is showing the run
            for record in kept:
                self._show(record)
            self.tensorboard.flush()
        for path in stale:
            path.unlink()

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Record `values` under `kind` (train, epoch) after `step` optimizer steps.

        In log.jsonl a line holds kind, step, epoch, time (Unix seconds) and the values; in TensorBoard a value's tag is
        its name, which is grouped by a slash (train/loss).

        Raises:
            UserError: the disk is full, or another reason why nothing can be written.
        """
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3)}
        finite = {
            name: float(f"{v:.7g}") if math.isfinite(v) else None for name, v in values.items()
        }  # NaN is not JSON
        with self._told():
            self.log.write(json.dumps(record | finite) + "\n")
            self.log.flush()
            self._show(record | finite)
        self.lines += 1

    def sync(self) -> None:
        """Make the records survive a power cut, before a checkpoint that counts on them."""
        with self._told():
            os.fsync(self.log.fileno())

    def _show(self, record: dict[str, Any]) -> None:
        for name in record.keys() - {"kind", "step", "epoch", "time"}:
            value = math.nan if record[name] is None else record[name]
            self.tensorboard.add_scalar(name, value, record["step"], record["time"])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space and run the same command again"
            ) from None

    def text(self, tag: str, text: str) -> None:
        """Show `text` (Markdown) in TensorBoard's Text tab."""
        self.tensorboard.add_text(tag, text)

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self.log, self.tensorboard):
            with contextlib.suppress(OSError) if error else self._told():
                writer.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log.jsonl; a last line cut short by a kill is left out."""
    records = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records
