"""What a run needs of this machine, tried out piece by piece: the work of ``tools/doctor.py``.

`CHECKS` lists the checks. Each is a generator of `Line`s that runs in a forked process of its own with a time limit,
so that a library which crashes or hangs costs one error line. Heavy imports are inside the checks: a torch that cannot
be imported is a finding, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from video_gn.doctor.capacity import SHM_REMEDY, machine
from video_gn.doctor.check import Check as Check
from video_gn.doctor.check import Line as Line
from video_gn.doctor.check import Target as Target
from video_gn.doctor.check import colours as colours
from video_gn.doctor.check import run_check as run_check
from video_gn.doctor.check import text_of as text_of
from video_gn.doctor.decoders import DECODER_REMEDY, decoder
from video_gn.doctor.folders import DISK_REMEDY, labels, lists, output_folder, read_speed
from video_gn.doctor.gpu import gpus
from video_gn.doctor.packages import TORCH_REMEDY, torch_works, versions
from video_gn.doctor.ranks import GLOO_REMEDY, NCCL_REMEDY, all_reduce
from video_gn.errors import UserError

CHECKS = (
    Check("versions", versions, 20, "Run `pip install -e .` in the checkout.", needs_torch=False),
    Check("torch", torch_works, 90, TORCH_REMEDY, needs_torch=False),
    Check("decoder auto", partial(decoder, "auto"), 60, DECODER_REMEDY),
    Check("decoder pyav", partial(decoder, "pyav"), 60, DECODER_REMEDY),
    Check("decoder torchcodec", partial(decoder, "torchcodec"), 60, DECODER_REMEDY),
    Check("decoder decord", partial(decoder, "decord"), 60, DECODER_REMEDY),
    Check("GPU", gpus, 120, "Look at `nvidia-smi`; reboot or update the driver if it fails, too."),
    Check("lists", lists, 120, DISK_REMEDY),
    Check("labels", labels, 120, DISK_REMEDY),
    Check("data folder", read_speed, 60, DISK_REMEDY, needs_torch=False),
    Check("output folder", output_folder, 60, "Set output_dir to a folder on a local disk."),
    Check("machine", machine, 60, SHM_REMEDY),
    Check("all-reduce gloo", partial(all_reduce, "gloo"), 40, GLOO_REMEDY),
    Check("all-reduce nccl", partial(all_reduce, "nccl"), 90, NCCL_REMEDY),
)
"""All checks, in the order of their lines."""


def read_target(path: str | None, overrides: Sequence[str] = ()) -> Target:
    """Return what a command names: a config file with overrides, a folder of videos, or nothing (the current folder).

    Raises:
        UserError: the config is missing or malformed, or there are overrides and no config.
    """
    if path is not None and "=" in path and not os.path.exists(path):
        overrides, path = [path, *overrides], None
    if path is None or os.path.isdir(path):
        if overrides:
            raise UserError(f"{overrides[0]!r} overrides a value of a config and none is named; name one before it")
        return Target(Path(path or "."), Path("."))
    try:
        from video_gn.config import load_config
    except ImportError as error:
        raise UserError(f"cannot read a config here ({error}); run `pip install -e .`, or name no config") from None
    config = load_config(path, overrides)
    return Target(Path(config.data.root), Path(config.output_dir), config)


def examine(target: Target, checks: Sequence[Check] | None = None) -> Iterator[Line]:
    """Yield the lines of all checks (default `CHECKS`) as they are found; without torch, only those that need none."""
    has_torch = True
    left_out = []
    for check in CHECKS if checks is None else checks:
        if check.needs_torch and not has_torch:
            left_out.append(check.name)
            continue
        for line in run_check(check, target):
            yield line
            has_torch &= (line.status, line.name) != ("error", "torch")
        if has_torch and check.name == "torch":
            import torch  # noqa: F401  once, for all the processes that are forked from here
    if left_out:
        yield Line("warning", "left out", ", ".join(left_out), "Repair torch first, then run this again.")
