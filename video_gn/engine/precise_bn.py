"""Statistics of norms for evaluation and checkpoints: precise BN, and running statistics averaged over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from video_gn.distributed.world import World
from video_gn.models.freeze import frozen_modules
from video_gn.norm.roles import precise_norms, running_statistics, stateful_norms


@torch.no_grad()
def update_precise_bn(
    model: nn.Module,
    clips: Iterator[Tensor],
    number: int,
    autocast: Callable[[], AbstractContextManager],
    quiet: bool | None = True,
    world: World | None = None,
) -> None:
    """Set Batch Norm's running statistics to the moments of its inputs in `number` micro-batches per rank, in training.

    Mean and biased variance are those of all micro-batches of all ranks pooled, each weighted by its size: the
    population statistics of Wu & Johnson 2021 (arXiv 2105.07576), as fvcore estimates them. (video-nonlocal-net takes
    its statistics over 200 iterations, bn_helper.py.) Nothing else changes; without such a norm, no clip is read.

    Args:
        model: put into training mode, unless it is in it. Norms that are in evaluation mode then stay as they are.
        clips: micro-batches, (N, C, *), on the model's device.
        number: micro-batches, the same on all ranks.
        autocast: makes the context of a forward pass.
        quiet: tqdm's `disable`.
        world: the ranks to pool over; None for this process only.
    """
    if not precise_norms(model):
        return
    if not model.training:
        model.train()
    moments = [_Moments(norm) for norm in precise_norms(model)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # for the forward passes to change
    with ExitStack() as hooks:
        for each in moments:
            hooks.enter_context(each.norm.register_forward_pre_hook(each.add))
        # Clips are prepared outside autocast, as in training.
        for batch in tqdm(islice(clips, number), "precise BN", number, leave=False, disable=quiet):
            with autocast():
                functional_call(model, buffers, (batch,))
    for each in moments:
        each.store(world or World(0, 1, torch.device("cpu")))


class _Moments:
    """Count, mean and sum of squared deviations, per channel, of all inputs of a norm so far; float64.

    Two sets of pixels pool by the law of total variance, in the form of Chan et al. (1979):
    n = n_a + n_b, mean = mean_a + (mean_b - mean_a) n_b / n, squares = squares_a + squares_b + (mean_b - mean_a)^2
    n_a n_b / n. All terms of the squares are positive, where E[x^2] - E[x]^2 can fall below zero.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.count = 0.0
        self.mean = torch.zeros_like(norm.get_buffer("running_mean"), dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Pool with an input, (N, C, *) of any floating dtype (a forward pre-hook)."""
        x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        variance, mean = torch.var_mean(x, (0, *range(2, x.dim())), correction=0)
        count = x.numel() / x.shape[1]
        total = self.count + count
        away = mean.double() - self.mean
        self.mean += away * (count / total)
        self.squares += count * variance.double() + away**2 * (self.count * count / total)
        self.count = total

    def store(self, world: World) -> None:
        """Pool over ranks, and give the norm the mean and the biased variance, if it was run at all."""
        total = world.sum(torch.full_like(self.mean, self.count))
        if not total.any():
            return
        mean = world.sum(self.count * self.mean) / total
        squares = world.sum(self.squares + self.count * (self.mean - mean) ** 2)
        self.norm.get_buffer("running_mean").copy_(mean)
        self.norm.get_buffer("running_var").copy_(squares / total)


@torch.no_grad()
def average_running_statistics(model: nn.Module, world: World) -> None:
    """Give all ranks the running statistics of all ranks' data together, in place.

    A `running_mean` and `running_var` of one norm become the moments of all ranks' data, since the ranks' means differ;
    any other running statistic becomes its mean over ranks.
    """
    if world.size == 1:
        return
    frozen = frozen_modules(model)  # the same on all ranks: a mean could move their last bit
    for norm in stateful_norms(model):
        if norm in frozen:
            continue
        statistics = running_statistics(norm)
        if {"running_mean", "running_var"} <= statistics.keys():
            world.mean_of_moments([statistics.pop("running_mean")], [statistics.pop("running_var")])
        for statistic in statistics.values():
            statistic.copy_(world.sum(statistic.clone()) / world.size)
