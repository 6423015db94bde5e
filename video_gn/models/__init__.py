"""Networks by name, built from a config's `model` section."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from video_gn.errors import UserError
from video_gn.models.freeze import parts_to_freeze
from video_gn.models.network import Network
from video_gn.models.resnet import BLOCKS, ResNet
from video_gn.models.vgg import VGG
from video_gn.norm import NormFactory, NormOptions, norm_factory

if TYPE_CHECKING:  # networks need no pydantic
    from video_gn.config import Config, ModelConfig

__all__ = ["NETWORKS", "Network", "build_model", "build_network", "memory_format"]


CONTIGUOUS_FROM = 64
"""Width of a network from which on contiguous tensors are the faster ones on a CPU (docs/benchmarks.md)."""


def _resnet(config: ModelConfig, norm: NormFactory, dims: int) -> ResNet:
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


def _vgg(config: ModelConfig, norm: NormFactory, dims: int) -> VGG:
    if dims != 2:
        raise UserError("model.arch vgg16 is for images; set data.kind: images or another arch")
    return VGG(config.num_classes, norm, width=config.width, dropout=config.dropout)


NETWORKS: dict[str, Callable[[ModelConfig, NormFactory, int], Network]] = {
    "resnet50": _resnet,
    "resnet101": _resnet,
    "vgg16": _vgg,
}
"""What builds the network of each `model.arch`: (model section, norm, dims) -> network."""


def build_model(config: ModelConfig, dims: int = 3) -> Network:
    """Return the network that a `model` section describes, freshly initialized, for clips (`dims` 3) or images (2).

    Raises:
        UserError: an unknown `arch`, or one not for clips or images; groups that do not divide a layer's channels.
    """
    if config.arch not in NETWORKS:
        raise UserError(f"model.arch {config.arch!r} is not known; choose one of {', '.join(NETWORKS)}")
    norm = norm_factory(config.norm, **{key: getattr(config, key) for key in NormOptions.__dataclass_fields__})
    return NETWORKS[config.arch](config, norm, dims)


def build_network(config: Config) -> Network:
    """Return the network of a complete config, with what its other sections ask of it.

    Raises:
        UserError: as `build_model`; the clips are shorter than the network takes; an unknown stage to recompute or
            part to freeze.
    """
    network = build_model(config.model, config.dims)
    if config.data.frames < network.min_frames:
        raise UserError(
            f"data.frames {config.data.frames} is too short for model.arch {config.model.arch} with stem "
            f"{config.model.stem}: at least {network.min_frames}"
        )
    for stage in config.train.checkpoint_stages:
        network.position(stage)
    network.checkpoint_stages = config.train.checkpoint_stages
    network.freeze(parts_to_freeze(network, config.optim))
    return network


def memory_format(config: Config, device: torch.device) -> torch.memory_format:
    """Return the memory format of the weights and of the input on a device, in training, test and use."""
    last = config.train.channels_last
    if last == "auto":
        last = device.type != "cpu" or config.model.width < CONTIGUOUS_FROM
    if not last:
        return torch.contiguous_format
    return torch.channels_last if config.dims == 2 else torch.channels_last_3d
