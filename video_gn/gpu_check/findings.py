"""What a GPU check finds, and where it runs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_gn.models.resnet import BLOCKS
from video_gn.norm import NormFactory, norm_factory


@dataclass(frozen=True)
class Place:
    """A device, and the size of what is tried on it."""

    device: torch.device
    quick: bool
    """Small sizes, to see that all of it runs."""
    videos: Path | None = None
    """Folder of videos for the sections that read some; None renders them."""
    workers: int = 2

    @property
    def gpu(self) -> bool:
        """Whether the device is one; else kernels run by Triton's interpreter, and nothing is timed for a goal."""
        return self.device.type == "cuda"

    @property
    def goals(self) -> bool:
        """Whether speed counts: at full size on a GPU."""
        return self.gpu and not self.quick

    @property
    def clips(self) -> tuple[int, int, int]:
        """Clips of a micro-batch, frames, and pixels of a side: the paper's, or small ones."""
        return (2, 8, 32) if self.quick else (8, 32, 224)

    @property
    def steps(self) -> int:
        """Optimizer steps of a training run."""
        return 4 if self.quick else 30

    @property
    def net(self) -> dict[str, Any]:
        """Sizes of the net, as `model` of a config names them: R50 I3D's, or those of the smallest one."""
        return {"blocks": (1, 1, 1, 1), "width": 8} if self.quick else {"blocks": BLOCKS["resnet50"], "width": 64}

    def norm(self, name: str) -> NormFactory:
        """Return a norm that fits the net."""
        return norm_factory(name, channels_per_group=4 if self.quick and name == "gn" else None)

    def random(self, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
        """Return normal values around 0.3, channels last."""
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(shape, generator=generator, device=self.device) + 0.3
        return values.to(dtype).contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    section: str
    name: str
    value: str
    ok: bool | None
    """Whether a goal is met; None without a goal."""
    note: str


@dataclass
class Findings:
    """All lines so far; each is printed when it is found."""

    section: str = ""
    lines: list[Finding] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: float | str, *, ok: bool | None = None, note: str = "") -> None:
        """Add a line, and print it."""
        text = value if isinstance(value, str) else f"{value:.4g}"
        line = Finding(self.section, name, text, None if ok is None else bool(ok), note)
        self.lines.append(line)
        verdict = {None: "", True: "ok", False: "MISSED"}[line.ok]
        seconds = time.monotonic() - self.begin
        print(f"{seconds:4.0f} s  {self.section:9}{name:66}{text:>10}  {verdict:7}{note}", flush=True)

    @property
    def missed(self) -> list[Finding]:
        """Lines whose goal is not met."""
        return [line for line in self.lines if line.ok is False]

    def as_json(self) -> list[dict[str, Any]]:
        """All lines as plain values."""
        return [asdict(line) for line in self.lines]


def error(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b|, of all values together; NaN where there is one."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()
