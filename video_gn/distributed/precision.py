"""In which precision and on how many threads a device computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch


def share_cores(device: torch.device, workers: int) -> None:
    """Leave, on a CPU, cores to the decoding processes: threads that fight over a core slow each other many times over.

    OMP_NUM_THREADS, if set, stands.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, cores - min(workers, cores // 2)))


def autocast(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """Return a callable that gives the context of a forward pass in `precision`."""
    dtype = autocast_dtype(precision, device)
    half = torch.bfloat16 if dtype == torch.float32 else dtype  # where it is off, the type says nothing
    return partial(torch.autocast, device.type, half, enabled=dtype != torch.float32)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return what `precision` means on a device: `auto` is bf16 on GPUs that compute in it, else fp32."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def conv3d_hazard(version: str) -> str | None:
    """Return a warning for torch versions whose Conv3d is bad on GPUs (pytorch #166122, #166643, #163539)."""
    if version.split(".")[:2] != ["2", "9"]:
        return None
    return (
        f"warning: torch {version} has a slow, memory-hungry Conv3d, wrong in bf16 with cuDNN below 9.15; "
        "use another torch version"
    )
