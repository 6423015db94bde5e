"""Activation checkpointing: a block keeps only its input, and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from video_gn.norm.roles import StartingBuffers, recomputes_compiled


def run_again_later(run: Callable[[Tensor], Tensor], x: Tensor, owner: nn.Module) -> Tensor:
    """Return run(x), keeping only x for the backward pass (activation checkpointing).

    No stage is random, so no random state is kept.

    Args:
        owner: holds the norms that `run` uses.
    """
    if torch.compiler.is_compiling() and recomputes_compiled(owner):
        return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
    return _checkpoint_eagerly(run, x, owner)


@torch.compiler.disable
def _checkpoint_eagerly(run: Callable[[Tensor], Tensor], x: Tensor, owner: nn.Module) -> Tensor:
    def contexts() -> tuple[nullcontext[None], StartingBuffers]:  # called before the first of the two forward passes
        return nullcontext(), StartingBuffers(owner)

    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
