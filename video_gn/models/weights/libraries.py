"""Weights that torchvision and timm download by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from video_gn.errors import UserError
from video_gn.models.weights.files import reason
from video_gn.models.weights.formats import IMAGENET_MEAN, IMAGENET_STD


def from_torchvision(name: str) -> dict[str, Tensor]:
    """Return the state dict of `NAME` (its default weights) or `NAME:WEIGHTS`. Raises UserError."""
    model_name, _, weights = name.partition(":")
    try:
        from torchvision.models import get_model
    except ImportError:
        raise UserError(f"torchvision:{name} needs torchvision; pip install torchvision") from None
    try:
        return get_model(model_name, weights=weights or "DEFAULT").state_dict()
    except Exception as error:  # an unknown name, no network, a full disk
        raise _unavailable(f"torchvision:{name}", error) from None


def from_timm(name: str) -> dict[str, Tensor]:
    """Return the state dict of a pre-trained timm model with ImageNet's mean and std. Raises UserError."""
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs timm; pip install timm") from None
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # an unknown name, no weights of that name, no network, a full disk
        raise _unavailable(f"timm:{name}", error) from None
    config: Any = model.pretrained_cfg
    statistics = (tuple(config["mean"]), tuple(config["std"]))
    if statistics != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(f"timm:{name} takes mean and std {statistics}, not ImageNet's; choose another of its weights")
    return model.state_dict()


def _unavailable(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: unavailable ({reason(error)}); check the name and the network, or give a file on the disk"
    )
