"""A checkpoint of an untrained net whose scores differ, with videos beside it: enough to use a net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tests.tiny_runs import TINY
from video_gn.config import load_config
from video_gn.data.motion import write_dataset
from video_gn.models import build_model
from video_gn.run import checkpoint as ckpt


def write_untrained(folder: Path, overrides: Sequence[str], *, std: float = 1.0, **motions: int) -> Path:
    """Write last.pt, and motions of 40 frames in videos/.

    Args:
        overrides: of the tiny config of the training tests.
        std: of the classifier's weights; larger ones make surer scores.
        motions: train_videos, val_videos and size of `write_dataset`.
    """
    write_dataset(folder / "videos", num_frames=40, workers=1, progress=False, **motions)
    (folder / "tiny.yaml").write_text(TINY.format(out=folder / "run", root=folder / "videos"))
    config = load_config(folder / "tiny.yaml", overrides)
    torch.manual_seed(0)
    model = build_model(config.model)
    nn.init.normal_(model.head.fc.weight, std=std)
    for parameter in model.norm_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    ckpt.save(folder / "last.pt", {"model": model.state_dict(), "step": 3, "config": config.model_dump(mode="json")})
    return folder / "last.pt"
