"""Batch Norm's statistics for evaluation (the baseline takes them over 200 batches, bn_helper.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from video_gn.engine.distributed import World
from video_gn.models.freeze import frozen_modules
from video_gn.norm.batch_renorm import BatchRenorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics, without those that are frozen."""
    frozen = frozen_modules(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return [norm for norm in norms if norm not in frozen]


def update_precise_bn(
    model: nn.Module,
    clips: Iterator[Tensor],
    number: int,
    autocast: Callable[[], AbstractContextManager],
    quiet: bool | None = True,
) -> None:
    """Set running statistics to those of `number` batches of clips together; nothing where there is no Batch Norm.

    Frozen parts of the model keep theirs: in evaluation mode, fvcore passes them by.
    """
    if not batch_norms(model):
        return
    from fvcore.nn.precise_bn import update_bn_stats  # imports slowly, and only Batch Norm needs it

    model.train()
    bar = tqdm(clips, "precise BN", number, leave=False, disable=quiet)
    update_bn_stats(_Autocast(model, autocast), bar, number)
    for norm in batch_norms(model):
        assert norm.running_var is not None
        norm.running_var.clamp_(min=0)  # fvcore's E[x^2] - E[x]^2 in float32 can fall below


class _Autocast(nn.Module):
    """The model under autocast, but not what prepares its clips while the loop waits for them."""

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, clips: Tensor) -> Tensor:
        with self.autocast():
            return self.model(clips)


@torch.no_grad()
def average_running_statistics(model: nn.Module, world: World) -> None:
    """Give all ranks the running statistics of all ranks' data together, Batch Renorm's too."""
    if world.size > 1:
        frozen = frozen_modules(model)  # the same on all ranks: a mean could move their last bit
        norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, BatchRenorm)) and m not in frozen]
        moments = [(m.running_mean, m.running_var) for m in norms]
        pairs = [(mean, var) for mean, var in moments if isinstance(mean, Tensor) and isinstance(var, Tensor)]
        world.mean_of_moments([mean for mean, _ in pairs], [var for _, var in pairs])
