"""Networks, built from a config's `model` section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_gn.models.resnet import BLOCKS, ResNet
from video_gn.models.vgg import VGG
from video_gn.norm import NormOptions, norm_factory

if TYPE_CHECKING:  # networks need no pydantic
    from video_gn.config import ModelConfig

Network = ResNet | VGG


def build_model(config: ModelConfig, dims: int = 3) -> Network:
    """The network that a `model` section describes, freshly initialized, for clips (`dims` 3) or images (2)."""
    norm = norm_factory(config.norm, **{key: getattr(config, key) for key in NormOptions.__dataclass_fields__})
    if config.arch == "vgg16":
        return VGG(config.num_classes, norm, width=config.width, dropout=config.dropout)
    return ResNet(
        config.num_classes,
        norm,
        blocks=config.blocks or BLOCKS[config.arch],
        width=config.width,
        temporal=config.temporal,
        stem=config.stem,
        dropout=config.dropout,
        dims=dims,
    )
