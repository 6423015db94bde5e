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

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from video_gn.config import Config, load_config, parse_config
from video_gn.engine import checkpoint
from video_gn.errors import UserError

EVENTS = "events.out.tfevents.*"
EPOCH = "system/epoch"  # TensorBoard's axis is the step
CONFIG = "config/text_summary"  # the tag that SummaryWriter.add_text makes of `config`
KINDS = {"train": "train", "system": "train", "epoch": "epoch", "val": "epoch", "percentiles": "epoch"}
"""Of a tag's group, the kind of the records that have it; else summary."""


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
        stale = list(folder.glob(EVENTS))
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
        its name, which is grouped by a slash (train/loss), and the epoch is system/epoch.

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
        values = {name: value for name, value in record.items() if name not in ("kind", "step", "epoch", "time")}
        for name, value in {**values, EPOCH: record["epoch"]}.items():
            self.tensorboard.add_scalar(name, math.nan if value is None else value, record["step"], record["time"])

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
    """The records of a run's log.jsonl, without a last line cut short by a kill; else those of its event files.

    Raises:
        FileNotFoundError: there are neither.
    """
    path = folder / "log.jsonl"
    if not path.exists() and any(folder.glob(EVENTS)):
        return _read_events(folder)
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def read_config(folder: Path) -> Config:
    """A run's resolved config: config.yaml, else the text in its event files.

    Raises:
        UserError: there is neither, or it is no config.
    """
    if (folder / "config.yaml").exists() or not any(folder.glob(EVENTS)):
        return load_config(folder / "config.yaml")
    events = _events(folder)
    if CONFIG not in events.Tags()["tensors"]:
        raise UserError(f"{folder}: no config.yaml, and no config in its event files; copy it from the run")
    text = events.Tensors(CONFIG)[-1].tensor_proto.string_val[0].decode()
    return parse_config(yaml.safe_load(text.split("```")[1]), source=f"{folder}: the config in its event files")


def _read_events(folder: Path) -> list[dict[str, Any]]:
    """Records from TensorBoard's scalars, which are float32: a kind's values of one moment are a record."""
    events = _events(folder)
    tags = events.Tags()["scalars"]
    epochs = {(e.wall_time, e.step): e.value for e in events.Scalars(EPOCH)} if EPOCH in tags else {}
    records: dict[tuple[str, float, int], dict[str, Any]] = {}
    for tag in tags:
        kind = KINDS.get(tag.split("/")[0], "summary")
        for e in events.Scalars(tag):
            if tag != EPOCH and (epoch := epochs.get((e.wall_time, e.step))) is not None:  # else another program's
                begun = {"kind": kind, "step": e.step, "epoch": round(epoch, 4), "time": e.wall_time}
                record = records.setdefault((kind, e.wall_time, e.step), begun)
                record[tag] = e.value if math.isfinite(e.value) else None
    order = ("train", "epoch", "summary")
    return sorted(records.values(), key=lambda record: (record["step"], order.index(record["kind"])))


def _events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
