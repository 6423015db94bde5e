"""Batch Renormalization (Ioffe 2017, arXiv 1702.03275)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.errors import UserError
from video_gn.norm import NormFactory
from video_gn.norm.options import NormOptions


class BatchRenorm(nn.Module):
    """Batch Norm whose batch statistics are corrected towards the running ones, within bounds.

    In training, with mu_B, sigma_B of the micro-batch and mu, sigma of those before it:

        y = gamma ((x - mu_B) / sigma_B r + d) + beta
        r = clip(sigma_B / sigma, 1 / r_max, r_max),  d = clip((mu_B - mu) / sigma, -d_max, d_max)

    where r and d are constants to the backward pass. In evaluation y = gamma (x - mu) / sigma + beta. The first
    `warmup` training forward passes are Batch Norm's (r = 1, d = 0); over the `ramp` passes after them the bounds open
    linearly, from 1 to `r_max` and from 0 to `d_max`.

    Running statistics are those of one rank. The running variance averages biased variances, since sigma is compared
    with the micro-batch's biased sigma_B (PyTorch's Batch Norm averages unbiased ones; Ioffe averages sigma itself).
    They and the count of passes are buffers with Batch Norm's names, so a trained Batch Norm's state loads, and its
    count then counts towards the warm-up. It is not a `_BatchNorm`, which convert_sync_batchnorm would replace, and has
    no `precise_statistics`: those taken afterwards would not be those that r and d were trained with.

    x: (N, C, *), any floating dtype, kept; statistics are taken in float32 at least.

    Raises:
        UserError: r_max below 1, or d_max, warmup or ramp below 0.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        r_max: float = NormOptions.brn_r_max,
        d_max: float = NormOptions.brn_d_max,
        warmup: int = NormOptions.brn_warmup,
        ramp: int = NormOptions.brn_ramp,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if r_max < 1:
            raise UserError(f"brn_r_max {r_max} is below 1: r is kept in [1 / r_max, r_max]; give 1 or more")
        for name, value in (("d_max", d_max), ("warmup", warmup), ("ramp", ramp)):
            if value < 0:
                raise UserError(f"brn_{name} {value} is negative; give 0 or more")
        self.r_max, self.d_max, self.warmup, self.ramp = r_max, d_max, warmup, ramp
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        r, d = self._step(x)
        # r and d are constants, so this is Batch Norm with gamma' = gamma r and beta' = gamma d + beta
        return F.batch_norm(x, None, None, self.weight * r, self.weight * d + self.bias, training=True, eps=self.eps)

    @torch.no_grad()
    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d of a micro-batch, each (C,), and update statistics and count, with no host-device sync."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, (0, *range(2, x.ndim)), correction=0)
        self.num_batches_tracked.add_(1)
        opened = ((self.num_batches_tracked - self.warmup) / max(self.ramp, 1)).clamp(0, 1)
        r_max, d_max = 1 + opened * (self.r_max - 1), opened * self.d_max
        sigma = (self.running_var + self.eps).sqrt()
        r = ((variance + self.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        d = ((mean - self.running_mean) / sigma).clamp(-d_max, d_max)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        return r, d

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}, ramp={self.ramp}"


def make_brn(options: NormOptions) -> NormFactory:
    """Return the factory of `brn`."""
    return partial(
        BatchRenorm,
        r_max=options.brn_r_max,
        d_max=options.brn_d_max,
        warmup=options.brn_warmup,
        ramp=options.brn_ramp,
    )
