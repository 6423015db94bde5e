"""Networks in which every number matters."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from video_gn.models.resnet import ResNet
from video_gn.norm import NORMS as ALL_NORMS
from video_gn.norm import norm_factory

Model = TypeVar("Model", bound=nn.Module)

NORMS = {name: norm_factory(name, channels_per_group=4, brn_warmup=0, brn_ramp=0) for name in ALL_NORMS}


def speak(model: Model) -> Model:
    """Every number says something: no gamma of zero, no running mean of zero, our logits of order 1."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
        if isinstance(model, ResNet):
            nn.init.normal_(model.head.fc.weight, std=0.1)
    return model
