"""What all benchmarks share: alternatives in turn, their times, the table and the JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from video_gn.console import say
from video_gn.errors import UserError

LIBRARIES = ("torchcodec", "av", "decord", "pytorchvideo", "triton")


@dataclass(frozen=True)
class Sample:
    """One timing of an alternative, seconds an item."""

    wall: float
    cpu: float
    """Of all threads, and of worker processes that have ended."""


Samples = Mapping[str, list[Sample]]
Call = Callable[[], int]
"""Does the work once; returns the number of items (clips, videos, steps) it did."""


@dataclass(frozen=True)
class Table:
    """Alternatives of one task, in milliseconds an item; the first one is what the ratios are to."""

    title: str
    samples: Samples
    by: str = "wall"
    """The time that the ratios compare: `wall` or `cpu`."""
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further figures: column -> alternative -> value."""
    note: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per alternative; `ratio` is the median over repeats, each against the first of its repeat."""
        first = next(iter(self.samples.values()), [])
        rows = []
        for name, samples in self.samples.items():
            row: dict[str, Any] = {"name": name}
            for clock in ("cpu", "wall"):
                times = [1e3 * getattr(sample, clock) for sample in samples]
                figures = zip(("", "_min", "_max"), (statistics.median(times), min(times), max(times)), strict=True)
                row |= {f"{clock}{what}_ms": figure for what, figure in figures}
            pairs = zip(samples, first, strict=True)
            row["ratio"] = statistics.median(getattr(mine, self.by) / getattr(other, self.by) for mine, other in pairs)
            rows.append(row | {column: values[name] for column, values in self.columns.items() if name in values})
        return rows

    def text(self) -> str:
        """For a person."""
        rows = self.rows()
        width = max(len(row["name"]) for row in rows)
        clocks = "".join(f"{clock + ' ms':>10}{'min':>9} -{'max':>8}" for clock in ("CPU", "wall"))
        head = f"{'':{width}}{clocks}{self.by + ' ratio':>12}"
        lines = [self.title, head + "".join(f"{column:>14}" for column in self.columns)]
        for row in rows:
            line = f"{row['name']:{width}}"
            for clock in ("cpu", "wall"):
                middle, low, high = (row[f"{clock}{what}_ms"] for what in ("", "_min", "_max"))
                line += f"{_number(middle):>10}{_number(low):>9} -{_number(high):>8}"
            line += f"{row['ratio']:12.2f}"
            line += "".join(f"{row[column]:14.4g}" if column in row else f"{'-':>14}" for column in self.columns)
            lines.append(line)
        return "\n".join(lines + [self.note] * bool(self.note))


def select(samples: Samples, names: Collection[str]) -> Samples:
    """Return the samples of these alternatives, as far as they were measured, in the order of `names`."""
    return {name: samples[name] for name in names if name in samples}


def host_sample(call: Call) -> Sample:
    """Time a call by the clocks of the process and of the worker processes that ended during it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    items = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall = time.perf_counter() - wall
    return Sample(wall / items, (_cpu_seconds() - cpu) / items)


def measure(
    alternatives: Mapping[str, Call], repeats: int, sample: Callable[[Call], Sample] = host_sample, what: str = ""
) -> Samples:
    """Call each alternative once to warm up; then time all of them in turn, `repeats` times.

    An alternative whose library is not here, or that fails, is left out with a line that says why; one whose name
    begins with "ours" must not fail.
    """
    calls: dict[str, Call] = {}
    bar = tqdm(total=len(alternatives) * (1 + repeats), desc=what, leave=False, disable=None)
    for name, call in alternatives.items():
        try:
            if call() == 0:
                raise RuntimeError("it gave nothing; is its library installed?")
            calls[name] = call
        except Exception as error:
            if name.startswith("ours"):
                raise
            skip(name, error)
        bar.update()
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    names = list(calls)
    for repeat in range(repeats):
        first = repeat % len(names)  # nobody always comes after the same neighbour
        for name in names[first:] + names[:first]:
            samples[name].append(sample(calls[name]))
            bar.update()
    bar.close()
    return samples


def skip(name: str, reason: object) -> None:
    """Say on stderr that an alternative is left out."""
    lines = str(reason).strip().splitlines()
    say(
        f"{name}: left out: {type(reason).__name__ + ': ' if isinstance(reason, Exception) else ''}{''.join(lines[:1])}"
    )


def environment() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    versions = {name: _version(name) for name in ("torch", "torchvision", *LIBRARIES)}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def report(command: str, tables: list[Table], path: Path | None) -> str:
    """Return the text for stdout; write the JSON where a path is given.

    Raises:
        UserError: the JSON cannot be written (the text is printed before).
    """
    about = environment()
    line = ", ".join(f"{name} {value}" for name, value in about.items())
    text = "\n\n".join([line, *(table.text() for table in tables)])
    if path is not None:
        records = [{"title": t.title, "by": t.by, "note": t.note, "rows": t.rows()} for t in tables]
        content = {"command": command, "environment": about, "tables": records}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            print(text)  # what took minutes
            raise UserError(f"--json {path}: cannot be written ({error.strerror}); name another file") from None
    return text


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
