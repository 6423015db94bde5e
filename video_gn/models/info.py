"""What a network costs: parameters, multiply-adds, memory, and the shape of each stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from video_gn.config import Config
from video_gn.models import Network, build_network


def describe(config: Config) -> dict[str, Any]:
    """Measure the config's network for one training clip (or image) on the meta device (nothing is computed).

    Returns:
        `parameters`: their count. `trainable`: the count of those that are not frozen. `frozen`: names of frozen parts.
        `gmacs`: 1e9 multiply-adds of the convolutions and the FC, forward.
        `activation_mib`: what autograd keeps for the backward pass of one clip in fp32, MiB.
        `input` and `stages`: [T, H, W] of the clip and of each stage's output ([H, W] of images).
    """
    with torch.device("meta"):
        model = build_network(config)
        size = (config.data.frames, config.data.crop, config.data.crop)
        clip = torch.empty(1, 3, *size[-config.dims :])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen": list(model.frozen),
        "gmacs": _multiply_adds(model, clip) / 1e9,
        "activation_mib": _saved_bytes(model, clip) / 2**20,
        "input": list(clip.shape[2:]),
        "stages": _stage_shapes(model, clip),
    }


def _multiply_adds(model: Network, clip: Tensor) -> int:
    counter = FlopCounterMode(display=False)  # counts convolutions and matrix products alone: 2 FLOPs a multiply-add
    with counter, torch.no_grad():
        model.eval()(clip)
    return counter.get_total_flops() // 2


def _saved_bytes(model: Network, clip: Tensor) -> int:
    """Bytes a clip of the distinct storages that autograd saves, parameters and buffers left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []  # holds them, so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(clip.expand(2, *clip.shape[1:]).clone())  # two: Batch Norm refuses one clip on a 1x1x1 map
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(size for key, size in sizes.items() if key not in own) // 2


def _stage_shapes(model: Network, clip: Tensor) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    with torch.no_grad():
        model.eval()
        for stage in model.stages:
            clip = model.layer(stage)(clip)
            shapes[stage] = list(clip.shape[2:])
    return shapes


def table(info: dict[str, Any]) -> str:
    """Return `describe`'s result for a person."""
    lines = [
        f"parameters   {info['parameters'] / 1e6:.2f} M{frozen_in_words(info)}",
        f"GMACs        {info['gmacs']:.2f} (one clip, forward; convolutions and FC)",
        f"activations  {info['activation_mib']:.0f} MiB kept for the backward pass of one clip in fp32",
        "",
        "stage    T x H x W",
    ]
    shapes = {"input": info["input"], **info["stages"]}
    return "\n".join(lines + [f"{name:8} {' x '.join(map(str, shape))}" for name, shape in shapes.items()])


def frozen_in_words(info: dict[str, Any]) -> str:
    """Return what of `describe`'s network is frozen, to follow the count of parameters; nothing if nothing is."""
    if not info["frozen"]:
        return ""
    return f"; frozen: {', '.join(info['frozen'])}; trained: {info['trainable']:,} parameters"
