"""`step`: time and memory of a training step of the R50 I3D."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.benchmark.common import Table, measure, skip
from video_gn.distributed.precision import autocast, autocast_dtype
from video_gn.distributed.world import world
from video_gn.engine.graph import GraphedPass, Pass
from video_gn.models.resnet import ResNet
from video_gn.norm import NormFactory, NormOptions, norm_factory

STEPS = 5  # in a timing, on a GPU


def run(*, repeats: int, quick: bool, device: str) -> list[Table]:
    """Return one table per batch: 32x2 with 8 clips and 64x1 with 4 clips on a GPU, bf16; on a CPU small ones, fp32."""
    with world(device) as here:
        place = here.device
    full = place.type == "cuda" and not quick
    sizes = [(8, 32, 224), (4, 64, 224)] if full else [(2, 8, 64)] if quick else [(2, 16, 112)]
    return [_table(*size, 32 if quick else 64, place, repeats) for size in sizes]


def _table(clips: int, frames: int, crop: int, width: int, place: torch.device, repeats: int) -> Table:
    def ours(norm: NormFactory) -> nn.Module:
        return ResNet(400, norm, width=width)

    def theirs() -> nn.Module:
        """With our temporal strides: equal work, but for maps of 56 for 55."""
        from pytorchvideo.models.hub import i3d_r50

        last_map = (math.ceil(frames / 8), math.ceil(crop / 32), math.ceil(crop / 32))
        strides = {"stem_conv_stride": (2, 2, 2), "stem_pool_stride": (2, 2, 2)}
        return i3d_r50(stem_dim_out=width, head_pool_kernel_size=last_map, **strides)

    gn, bn, plain = (
        partial(ours, norm)
        for norm in (norm_factory("gn"), norm_factory("bn"), partial(nn.GroupNorm, NormOptions.groups))
    )
    last, contiguous = torch.channels_last_3d, torch.contiguous_format
    nets = {
        "ours, GN": Net(gn, last),
        "ours, GN, graph": Net(gn, last, graph=True),
        "ours, GN, compiled, graph": Net(gn, last, graph=True, compiled=True),
        "ours, BN": Net(bn, last),
        "ours, BN, graph": Net(bn, last, graph=True),
        "ours, BN, compiled, graph": Net(bn, last, graph=True, compiled=True),
        "nn.GroupNorm, contiguous": Net(plain, contiguous),
        "pytorchvideo i3d_r50, BN": Net(theirs, contiguous),
    }
    if place.type != "cuda":
        skip("compiled, graph", "on a GPU only")
        nets = {name: net for name, net in nets.items() if not net.compiled and not net.graph}
    trainings = {name: Training(net, (clips, 3, frames, crop, crop), place) for name, net in nets.items()}
    title = f"training step: {clips} clips of {frames} x {crop} x {crop}, {'bf16' if place.type == 'cuda' else 'fp32'}"
    samples = measure(trainings, repeats, what=title)
    if place.type != "cuda":
        return Table(title, samples, "cpu")  # a CPU is shared
    return Table(
        title,
        samples,
        columns={"peak GiB": {name: trainings[name].peak_gib for name in samples if not nets[name].graph}},
    )


class Net(NamedTuple):
    make: Callable[[], nn.Module]
    layout: torch.memory_format
    graph: bool = False
    """Whether forward and backward pass are replayed from a CUDA graph."""
    compiled: bool = False


class Training:
    """Forward, loss, backward and SGD on the same clips; the first call builds the net and measures its memory."""

    def __init__(self, net: Net, shape: tuple[int, ...], place: torch.device) -> None:
        self.net, self.shape, self.place = net, shape, place
        self.peak_gib = math.nan
        """Of this net's own memory: weights, gradients, momentum, what is kept for the backward pass.

        Of a pass without a graph: a graph's memory is its own, and is not counted."""

    def __call__(self) -> int:
        """Return the number of steps."""
        if self.place.type != "cuda":
            self._step()
            return 1
        if math.isnan(self.peak_gib):
            before = torch.cuda.memory_allocated()
            self._step()  # compiles, and lets cuDNN choose
            torch.cuda.reset_peak_memory_stats()
            self._step()
            self.peak_gib = (torch.cuda.max_memory_allocated() - before) / 2**30
        for _ in range(STEPS):
            self._step()
        return STEPS

    def _step(self) -> None:
        forward_backward, optimizer, clips, labels = self._parts
        optimizer.zero_grad(set_to_none=True)
        forward_backward(clips, labels)
        optimizer.step()

    @cached_property
    def _parts(self) -> tuple[Pass, torch.optim.SGD, Tensor, Tensor]:
        net = self.net.make().to(self.place, memory_format=self.net.layout).train()  # type: ignore[call-overload]
        gpu = self.place.type == "cuda"
        optimizer = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=gpu or None
        )
        clips = torch.randn(self.shape, device=self.place, dtype=autocast_dtype("auto", self.place))
        labels = torch.arange(self.shape[0], device=self.place)
        precision = autocast("auto", self.place)
        forward = torch.compile(net, dynamic=False) if self.net.compiled else net

        def forward_backward(clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with precision():
                logits = forward(clips)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            return logits.detach(), loss.detach()

        run = GraphedPass(forward_backward, net.parameters(), strict=True) if self.net.graph else forward_backward
        return run, optimizer, clips.contiguous(memory_format=self.net.layout), labels
