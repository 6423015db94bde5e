"""Batch Norm in its three forms: over one rank, over all ranks, frozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.errors import UserError
from video_gn.norm import NormFactory
from video_gn.norm.options import NormOptions


class BatchNorm(nn.BatchNorm3d):
    """PyTorch's Batch Norm over one rank (equation 3), for (N, C, H, W) and (N, C, T, H, W) alike.

    Momentum 0.1 (Caffe2's 0.9).
    """

    precise_statistics = True

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (4, 5):
            raise ValueError(f"Batch Norm takes (N, C, H, W) or (N, C, T, H, W), not shape {tuple(input.shape)}")


class SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's Batch Norm over the micro-batches of all ranks. It trains only on GPUs; evaluation runs on any device.

    Raises:
        UserError: from a training forward pass on the CPU (not when built, so that a config can be read anywhere).
    """

    precise_statistics = True

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.device.type == "cpu":
            raise UserError(
                "norm sync_bn trains only on GPUs, and this forward pass is on the CPU; "
                "train on GPUs, or set model.norm to bn or gn"
            )
        if self.training and input.device.type == "meta":  # only shapes; PyTorch's raises in a process group
            return F.batch_norm(input, None, None, self.weight, self.bias, training=True)
        return super().forward(input)


class FrozenBatchNorm(nn.Module):
    """BN* (section 4.2): y = gamma / sigma (x - mu) + beta with all four constant, in training as in evaluation.

    The constants are buffers with Batch Norm's names, so a trained Batch Norm's state loads; there are no parameters.
    x: (N, C, *); the arithmetic is in float32 at least, the result in x's dtype. Nothing of x's size is saved for the
    backward pass, where Batch Norm in evaluation mode saves x.
    """

    constant_statistics = True

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        shape = (-1, *[1] * (x.ndim - 2))
        scale = self.weight.to(dtype) * (self.running_var.to(dtype) + self.eps).rsqrt()
        # x - mu first: folding mu into beta loses digits where |mu| is large compared with sigma
        centered = x.to(dtype) - self.running_mean.to(dtype).view(shape)
        return torch.addcmul(self.bias.to(dtype).view(shape), centered, scale.view(shape)).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # Batch Norm has it, and here nothing is counted
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def make_bn(options: NormOptions) -> NormFactory:
    """Return the factory of `bn`."""
    return BatchNorm


def make_sync_bn(options: NormOptions) -> NormFactory:
    """Return the factory of `sync_bn`."""
    return SyncBatchNorm


def make_frozen_bn(options: NormOptions) -> NormFactory:
    """Return the factory of `frozen_bn`."""
    return FrozenBatchNorm
