"""Tiny runs: their configs, training in this process or by the tools, and what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import HANG
from video_gn.config import Config, load_config
from video_gn.distributed.world import world
from video_gn.engine.train import Trainer, train
from video_gn.run import checkpoint as ckpt

ROOT = Path(__file__).parent.parent
TINY = """
output_dir: {out}
device: cpu
model: {{blocks: [1, 1, 1, 1], width: 8, norm: gn, groups: 4, num_classes: 10, dropout: 0.5}}
data: {{root: {root}, frames: 8, stride: 2, crop: 32, short_side: [32, 40], workers: 0, max_unreadable: 2}}
optim: {{lr: 0.02, reference_batch: 4, schedule: cosine}}
train: {{epochs: 2, clips_per_gpu: 2, global_batch: 4, log_every: 3}}
test: {{views: center, short_side: 32}}
"""
"""Config of videos, to be formatted with `out` and `root`."""
TINY_IMAGES = """
output_dir: {out}
device: cpu
model: {{blocks: [1, 1, 1, 1], width: 8, norm: gn, groups: 4, num_classes: 3, stem: slowfast, dropout: 0}}
data: {{kind: images, root: {root}, train_list: train, val_list: val, test_list: val, frames: 1, crop: 32, workers: 0,
  area: [0.5, 1.0], color_jitter: 0.2, lighting: 0.1}}
optim: {{lr: 0.05, reference_batch: 8, schedule: cosine}}
train: {{epochs: 8, clips_per_gpu: 4, global_batch: 8}}
test: {{views: center, clips: 1, short_side: 36}}
"""
"""The same of images."""


def tiny(tmp_path: Path, videos: Path, *overrides: str) -> Config:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(out=tmp_path / "run", root=videos))
    return load_config(path, overrides)


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Let a training in this block stop as by Ctrl-C before its next step, once it has done `steps`."""
    step = Trainer.step

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.step_done == steps:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        yield


def run(config: Config) -> Path:
    with world(config.device) as ranks:
        train(config, ranks)
    return Path(config.output_dir)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict]:
    noisy = {"time", "system/clips_per_second", "system/data_wait", "system/memory_gib"}
    return [{k: v for k, v in record.items() if k not in noisy} for record in records(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = ckpt.load(folder / "checkpoints" / "last.pt")["model"]
    return {name: value for name, value in model.items() if not name.endswith("num_batches_tracked")}


def launch(ranks: int, *arguments: str) -> list[subprocess.Popen]:
    """Start a tool as torchrun does: one process a rank, its place in environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def tool(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
