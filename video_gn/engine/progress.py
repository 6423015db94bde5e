"""What a person and TensorBoard see of a running training: log windows, console lines, bars."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from video_gn.console import say
from video_gn.models.info import describe, frozen_in_words, table
from video_gn.run.log import Writers, read_log
from video_gn.tasks import Metrics, Task

if TYPE_CHECKING:
    from video_gn.engine.train import Trainer

MEDIAN_OF = 5
"""Epochs whose median error section 4.1 reports."""


class LogWindow:
    """What is measured between two log lines."""

    def __init__(self, metrics: Metrics, waited: float = 0.0) -> None:
        """Begin a window; `waited` are the seconds that had been spent waiting for data before it."""
        self.metrics = metrics
        self.clips_before = 0  # of `metrics`, on all ranks: those of the process that this one resumes
        self.waited = waited
        self.restart()

    def restart(self) -> None:
        """Start the clock again, after work that is not training."""
        self.begin = time.perf_counter()

    def speed(self, clips: float, waited: float) -> dict[str, float]:
        """Return clips per second over all ranks and the share of time spent waiting for data, by tag.

        Args:
            clips: in the window so far, on all ranks.
            waited: seconds spent waiting for data since the process began.
        """
        seconds = time.perf_counter() - self.begin
        return {
            "system/clips_per_second": (clips - self.clips_before) / seconds,
            "system/data_wait": (waited - self.waited) / seconds,
        }


def training_line(epoch: float, step: int, values: Mapping[str, float], described: str) -> str:
    """Return the console's line for a log window; `described` are the task's numbers in words."""
    return (
        f"epoch {epoch:6.2f}  step {step}  loss {values['train/loss']:.3f}  train {described}  "
        f"lr {values['train/lr']:.2g}  {values['system/clips_per_second']:.1f} clips/s  "
        f"data wait {100 * values['system/data_wait']:.0f} %"
    )


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory that this rank has held, GiB: the GPU allocator's, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def progress_bar(step_done: int, last_step: int, quiet: bool | None) -> tqdm:
    """Return the bar of a run's steps; `quiet` is tqdm's `disable`."""
    return tqdm(desc="training", total=last_step, initial=step_done, unit="step", disable=quiet, smoothing=0.05)


def announce(trainer: Trainer, writers: Writers | None) -> None:
    """Say what is about to be trained, on what and from where; rank 0 calls this."""
    config, feed = trainer.config, trainer.feed
    info = describe(config)
    network = f"{config.model.arch} {config.model.temporal} {config.model.norm}"
    say(f"run {trainer.folder}: {network}, {info['parameters']:,} parameters{frozen_in_words(info)}")
    say(f"{len(feed.train_clips)} training and {len(feed.val_clips)} validation videos; {trainer.plan}")
    if trainer.step_done:
        say(f"resuming after step {trainer.step_done} of {trainer.last_step}")
    if writers is not None:
        writers.text("config", f"```\n{(trainer.folder / 'config.yaml').read_text()}\n```\n{trainer.plan}")
        writers.text("model", f"```\n{table(info)}\n```")


def summarize(folder: Path, task: Task, step: int, epochs: int, writers: Writers) -> None:
    """Write the number that section 4.1 reports: the median of the last 5 epochs' monitored numbers."""
    tag, name = f"val/{task.monitored.key}", task.monitored.name
    records = [record for record in read_log(folder) if record["kind"] == "epoch"]
    found = [record[tag] for record in records if record.get(tag) is not None][-MEDIAN_OF:]
    if not found:
        say(f"no evaluation has an {name}: no validation video was scored, or the loss was not finite")
        return
    median = statistics.median(found)
    writers.write("summary", step, epochs, {f"summary/{tag.replace('/', '_')}_median": median})
    say(f"val {name}, median of the last {len(found)} evaluations: {median:.2f} %")
