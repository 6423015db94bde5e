"""A short profile of training: where the time of a few steps goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from video_gn.console import say

WAIT, WARMUP, ACTIVE = 3, 1, 3
"""Steps that are passed over, that warm the profiler up, that are traced."""


@contextmanager
def trace(folder: Path, device: torch.device, enabled: bool) -> Iterator[Callable[[], None]]:
    """Give a function to call after each step. With `enabled`, a few early steps are traced into `folder`.

    steps.pt.trace.json.gz opens in https://ui.perfetto.dev, chrome://tracing and TensorBoard's profiler plugin;
    operators.txt is the sum over operators. A run of fewer steps than are passed over has no trace.
    """
    if not enabled:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "steps.pt.trace.json.gz"))
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        (folder / "operators.txt").write_text(profiler.key_averages().table(sort_by=order, row_limit=40) + "\n")
        say(f"traced {ACTIVE} steps into {folder}: open steps.pt.trace.json.gz in https://ui.perfetto.dev")

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    steps = schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
