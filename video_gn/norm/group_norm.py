"""Group Norm with its special cases, and `normalize`: a norm, a norm and ReLU, or a norm, residual add and ReLU."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.errors import UserError
from video_gn.norm import NormFactory, channels_last
from video_gn.norm.options import NormOptions

try:
    from video_gn.norm import fused
except ImportError:  # no Triton for this platform
    fused = None  # type: ignore[assignment]


class GroupNorm(nn.GroupNorm):
    """Group Norm (equation 7) for (N, C, *); with one group Layer Norm, with C groups Instance Norm.

    On a GPU with Triton it is a fused kernel (`video_gn.norm.fused`) that keeps x's dtype under autocast and takes
    ReLU and residual with it; elsewhere, and in an exported program, it is PyTorch's operators, which on a CPU
    `video_gn.norm.channels_last` replaces for the memory formats in which they are inaccurate.
    """

    def forward(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Return the norm of x, in its shape; with `relu` max(norm, 0), with a `residual` max(norm + residual, 0)."""
        if self._fuses(x, residual):
            relu = relu or residual is not None
            return fused.apply(x, self.weight, self.bias, residual, self.num_groups, self.eps, relu)
        return _then(self._by_operators(x), relu, residual)

    def _by_operators(self, x: Tensor) -> Tensor:
        inaccurate = x.device.type == "cpu" and x.dtype != torch.float64 and x.ndim in channels_last.FORMATS
        if not inaccurate or x.shape[1] != self.num_channels or x.stride(1) > x.stride(2):
            return super().forward(x)
        if x.is_contiguous():  # one pixel or one channel: in both formats at once, so let it be the accurate one
            return super().forward(x.flatten().view(x.shape))
        return channels_last.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)

    def _fuses(self, x: Tensor, residual: Tensor | None) -> bool:
        if fused is None or not x.is_cuda or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return False
        fits = self.bias is not None and x.shape[1:2] == (self.num_channels,)
        alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        return fits and alike and fused.supports(x, self.num_groups)  # PyTorch accepts, or refuses, the rest


def normalize(norm: nn.Module, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
    """Return norm(x); with `relu` relu(norm(x)), with a `residual` relu(norm(x) + residual). Fused where possible.

    x, `residual` and the result: (N, C, *). A norm with hooks is run by itself, so that they see its output and
    gradient and not the ReLU's.
    """
    hooked = bool(norm._forward_hooks or norm._backward_hooks or norm._backward_pre_hooks)
    if isinstance(norm, GroupNorm) and not hooked:
        return norm(x, relu=relu, residual=residual)
    return _then(norm(x), relu, residual, inplace=not hooked)  # a hook may keep what it saw


def _then(y: Tensor, relu: bool, residual: Tensor | None, inplace: bool = True) -> Tensor:
    if residual is not None:
        return F.relu(y + residual, inplace=True)
    return F.relu(y, inplace=inplace) if relu else y


def make_gn(options: NormOptions) -> NormFactory:
    """Return the factory of `gn`."""
    return partial(_group_norm, groups=options.groups, channels_per_group=options.channels_per_group)


def make_ln(options: NormOptions) -> NormFactory:
    """Return the factory of `ln`: one group."""
    return partial(GroupNorm, 1)


def make_in(options: NormOptions) -> NormFactory:
    """Return the factory of `in`: one group per channel."""
    return lambda channels: GroupNorm(channels, channels)


def make_none(options: NormOptions) -> NormFactory:
    """Return the factory of `none`."""
    return lambda channels: nn.Identity()


def _group_norm(channels: int, *, groups: int, channels_per_group: int | None) -> GroupNorm:
    """Return Group Norm of `groups` groups, or of groups of `channels_per_group` channels (equation 7)."""
    if channels_per_group is not None:
        if channels_per_group < 1 or channels % channels_per_group:
            raise UserError(
                f"channels_per_group {channels_per_group} does not divide a layer's {channels} channels; "
                "choose a divisor of model.width"
            )
        groups = channels // channels_per_group
    if groups < 1 or channels % groups:
        raise UserError(
            f"{groups} groups do not divide a layer's {channels} channels; "
            "lower model.groups or set model.channels_per_group"
        )
    return GroupNorm(groups, channels)
