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
from video_gn.console import say
from video_gn.errors import UserError
from video_gn.files.atomic import write_text
from video_gn.run import checkpoint

EVENTS = "events.out.tfevents.*"
EPOCH = "system/epoch"  # TensorBoard's axis is the step
CONFIG = "config/text_summary"  # the tag that SummaryWriter.add_text makes of `config`
KINDS = {"train": "train", "system": "train", "epoch": "epoch", "val": "epoch", "percentiles": "epoch"}
"""Of a tag's group, the kind of the records that have it; else summary."""


class Writers:
    """Writes one run's records; use as a context manager.

    A run that resumes keeps the first `lines` records, which are those before its checkpoint, and drops the later ones,
    which it is about to do again. TensorBoard's file is made anew from them, since a kill takes what was still queued.
    """

    def __init__(self, folder: Path, lines: int = 0) -> None:
        self.path = folder / "log.jsonl"
        kept = read_log(folder)[:lines] if lines and self.path.exists() else []
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept), checkpoint.ELSEWHERE)
        self.lines = len(kept)
        self.log = self.path.open("a", encoding="utf-8")
        stale = [path for path in folder.glob(EVENTS) if not path.is_dir()]
        with self._reported():
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
        finite = {name: _rounded(value) for name, value in values.items()}
        with self._reported():
            self.log.write(json.dumps(record | finite) + "\n")
            self.log.flush()
            self._show(record | finite)
        self.lines += 1

    def sync(self) -> None:
        """Make the records survive a power cut, before a checkpoint that counts on them."""
        with self._reported():
            os.fsync(self.log.fileno())

    def _show(self, record: dict[str, Any]) -> None:
        values = {name: value for name, value in record.items() if name not in ("kind", "step", "epoch", "time")}
        for name, value in {**values, EPOCH: record["epoch"]}.items():
            self.tensorboard.add_scalar(name, math.nan if value is None else value, record["step"], record.get("time"))

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
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
            with contextlib.suppress(OSError) if error else self._reported():
                writer.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log.jsonl, else those of its event files. Lines that are not records are named.

    A last line that was cut short by a kill is left out without a word.

    Raises:
        FileNotFoundError: there are neither.
        UserError: log.jsonl cannot be read.
    """
    path = folder / "log.jsonl"
    if not path.exists():
        if not any(folder.glob(EVENTS)):
            raise FileNotFoundError(path)
        return _read_events(folder)
    *lines, cut = _read_lines(path)
    records = [_parse(line) for line in lines]
    if strange := [number for number, record in enumerate(records, 1) if record is None]:
        say(f"warning: {path}: {len(strange)} lines are not records and left out, line {strange[0]} first")
    return [record for record in (*records, _parse(cut)) if record is not None]


def restore_log(folder: Path, lines: int) -> None:
    """Make log.jsonl begin with the `lines` records before a checkpoint, from the event files where it does not.

    Does nothing where it does. Else what is wrong is named, and log.jsonl and the event files are set aside.

    Raises:
        UserError: log.jsonl cannot be read or written.
    """
    path = folder / "log.jsonl"
    found = [_parse(line) for line in (_read_lines(path) if path.exists() else [])[:lines]]
    logged = [record for record in found if record is not None]
    if len(logged) == lines:
        return
    shown = _read_events(folder)[:lines] if any(folder.glob(EVENTS)) else []
    kept = max(logged, shown, key=len)
    state = (
        f"holds {len(logged)} of the {lines} records before the checkpoint"
        if path.exists()
        else f"is missing, {lines} records"
    )
    restored = f"{len(kept)} are restored from TensorBoard's files" if kept is shown else "the others are lost"
    aside = [checkpoint.set_aside(path, "set_aside")] if os.path.lexists(path) else []
    for events in sorted(folder.glob(EVENTS)):  # by a name that TensorBoard does not read
        aside.append(events.rename(events.with_name(events.name.replace("tfevents", "set_aside"))))
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept), checkpoint.ELSEWHERE)
    there = f"; what was there is now {', '.join(file.name for file in aside)}" if aside else ""
    say(f"warning: {path} {state}; {restored}{there}")


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a log, the last one without its end; bytes that are not UTF-8 are replaced."""
    try:
        return path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move it away or make it readable") from None


def _parse(line: str) -> dict[str, Any] | None:
    """Return a line's record (a kind, and numbers or nulls by name); None if it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    counted = all(isinstance(record.get(name), (int, float)) for name in ("step", "epoch"))
    numbers = all(value is None or isinstance(value, (int, float)) for name, value in record.items() if name != "kind")
    return record if counted and numbers else None


def read_config(folder: Path) -> Config:
    """Return a run's resolved config: config.yaml, else the text in its event files.

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
    """Return records from TensorBoard's scalars, which are float32: a kind's values of one moment are a record."""
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
                record[tag] = _rounded(e.value)
    order = ("train", "epoch", "summary")
    return sorted(records.values(), key=lambda record: (record["step"], order.index(record["kind"])))


def _rounded(value: float) -> float | None:
    """Return a value as it is logged, to 7 digits; None if it is not finite, which JSON cannot say."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _events(folder: Path) -> EventAccumulator:
    try:
        return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    except OSError as error:  # a folder of such a name, or no permission
        raise UserError(f"{folder}: cannot read its event files ({error.strerror}); move the bad one away") from None
