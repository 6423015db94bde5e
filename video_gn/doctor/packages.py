"""Packages: their versions, and whether torch computes."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from video_gn.doctor.check import Line, Status, Target, one_line

TORCH_REMEDY = "Install torch anew, with the command that pytorch.org's selector gives for this driver."


def floors() -> dict[str, str]:
    """Return the minimum version by package: of setup.py, or of the installed copy; without developers' packages."""
    setup = Path(__file__).parents[2] / "setup.py"
    if setup.is_file():
        text = setup.read_text(encoding="utf-8").partition('"dev"')[0]
    else:
        required = importlib.metadata.requires("video_gn") or []
        text = " ".join(line for line in required if '"dev"' not in line)
    return dict(re.findall(r"([A-Za-z][\w-]*)(?:<[\d.]+,)?>=([\d.]+)", text))


def versions(target: Target) -> Iterator[Line]:
    """Give a line to Python, torch and what decodes, and one to all the others that are in order."""
    yield version_line("Python", "3.10", platform.python_version(), needed=True)
    others = []
    for package, floor in floors().items():
        optional = package in ("torchcodec", "decord")
        line = version_line(package, floor, _installed(package), needed=not optional or asks_for(target, package))
        if line.status == "ok" and package not in ("torch", "torchvision", "torchcodec", "av", "decord"):
            others.append(f"{package} {line.text}")
        else:
            yield line
    yield Line("ok", "triton", _installed("triton") or "not installed; only kernels on a GPU need it")
    if others:
        yield Line("ok", "others", ", ".join(others))


def version_line(package: str, floor: str, version: str | None, needed: bool) -> Line:
    """Judge a version (None: not installed) against the minimum."""
    bad: Status = "error" if needed else "warning"
    remedy = "Use a newer Python." if package == "Python" else f"Run `pip install '{package}>={floor}'`."
    if version is None and not needed:
        return Line("ok", package, f"not installed (optional; {floor} or newer)")
    if version is None:
        return Line("error", package, f"not installed; {floor} or newer is needed", remedy)
    if _numbers(version) < _numbers(floor):
        return Line(bad, package, f"{version} is older than {floor}", remedy)
    return Line("ok", package, version)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """Return [2, 15, 0] for 2.15.0+cu132."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def asks_for(target: Target, decoder: str) -> bool:
    return target.config is not None and target.config.data.decoder == decoder


def torch_works(target: Target) -> Iterator[Line]:
    """Import torch and compute with it; call an operator of torchvision, which a build for another torch lacks."""
    import torch

    error = conv3d_error(torch.device("cpu"), torch.float32)
    if not error <= 0.02:  # NaN is wrong, too
        yield Line("error", "torch", f"Conv3d is off by {error:.0%} on the CPU", TORCH_REMEDY)
    else:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
        yield Line("ok", "torch", f"computes; its build is {build}, {torch.get_num_threads()} CPU threads")
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        yield Line("ok", "torchvision ops", "work")
    except Exception as problem:
        remedy = f"Install it and torch {torch.__version__} with one command of pytorch.org's selector, as one build."
        yield Line("error", "torchvision ops", one_line(problem), remedy)


def conv3d_error(device: Any, dtype: Any) -> float:
    """Return a small Conv3d's largest difference from the CPU's in float64, as a fraction of the largest output."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 4, 28, 28, generator=numbers).to(memory_format=torch.channels_last_3d)
    weight = torch.randn(32, 16, 3, 3, 3, generator=numbers).to(memory_format=torch.channels_last_3d)
    clip, weight = (tensor.to(dtype) for tensor in (clip, weight))  # rounding the input is no fault of the device
    truth = torch.conv3d(clip.double(), weight.double(), padding=1)
    output = torch.conv3d(clip.to(device), weight.to(device), padding=1).double().cpu()
    return float((output - truth).abs().max() / truth.abs().max())
