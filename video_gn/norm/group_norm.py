"""Group Norm with its special cases, and `normalize`: a norm, a norm and ReLU, or a norm, residual add and ReLU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from video_gn.errors import UserError
from video_gn.norm import NormFactory
from video_gn.norm.options import NormOptions

try:
    from video_gn.norm import fused
except ImportError:  # no Triton for this platform
    fused = None  # type: ignore[assignment]


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of axes."""
SHIFT_EVERY = 4
"""One pixel of this many per axis goes into the shift. By Chebyshev's inequality the mean of a sample of 1 / 64 is
within 8 sigma of the mean, whatever the values: near enough for float32."""


class GroupNorm(nn.GroupNorm):
    """Group Norm (equation 7) for (N, C, *); with one group Layer Norm, with C groups Instance Norm.

    On a GPU with Triton it is a fused kernel (`video_gn.norm.fused`) that keeps x's dtype under autocast and takes
    ReLU and residual with it; elsewhere, and in an exported program, it is PyTorch's operators, which on a CPU
    `channels_last_group_norm` replaces for the memory formats in which they are inaccurate.
    """

    def forward(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Return the norm of x, in its shape; with `relu` max(norm, 0), with a `residual` max(norm + residual, 0)."""
        if self._fuses(x, residual):
            relu = relu or residual is not None
            return fused.apply(x, self.weight, self.bias, residual, self.num_groups, self.eps, relu)
        return _then(self._by_operators(x), relu, residual)

    def _by_operators(self, x: Tensor) -> Tensor:
        inaccurate = x.device.type == "cpu" and x.dtype != torch.float64 and x.ndim in CHANNELS_LAST
        if not inaccurate or x.shape[1] != self.num_channels or x.stride(1) > x.stride(2):
            return super().forward(x)
        if x.is_contiguous():  # one pixel or one channel: in both formats at once, so let it be the accurate one
            return super().forward(x.flatten().view(x.shape))
        return channels_last_group_norm(x, self.weight, self.bias, self.num_groups, self.eps)

    def _fuses(self, x: Tensor, residual: Tensor | None) -> bool:
        if fused is None or not x.is_cuda or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return False
        fits = self.bias is not None and x.shape[1:2] == (self.num_channels,)
        alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        return fits and alike and fused.supports(x, self.num_groups)  # PyTorch accepts, or refuses, the rest


def channels_last_group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return the Group Norm of x, (N, C, H, W) or (N, C, T, H, W), in its shape and dtype, channels last.

    PyTorch's CPU kernel for these formats takes E[x^2] - E[x]^2 in float32, with one running sum per channel: at mean
    100 and sigma 1 the result is off by 0.1, and on a map of 16 x 112 x 112 by 1e-4 whatever the mean. Group Norm does
    not change when a constant is subtracted from a group. So subtract one near the group's mean first; then sum in
    `torch.mean`'s cascade. The gradient is PyTorch's kernel's, at the shifted values, where it is accurate.
    """
    # A compiler differentiates and fuses the operators itself.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or not torch.is_grad_enabled():
        return _shifted_group_norm(x, weight, bias, groups, eps)[0]
    return _ChannelsLast.apply(x, weight, bias, groups, eps)[0]


def _shifted_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the norm of x, and in float32 x less the shift, and its mean and 1 / sigma (N, G)."""
    ones, axes = [1] * (x.ndim - 2), tuple(range(2, x.ndim))

    def per_group(pixels: Tensor) -> Tensor:
        return pixels.mean(axes).unflatten(1, (groups, -1)).mean(2)

    def per_channel(of_groups: Tensor) -> Tensor:
        return of_groups.repeat_interleave(x.shape[1] // groups, 1).unflatten(1, (-1, *ones))

    # The shift is a constant: no gradient goes through it, and none is missing.
    every: tuple[Any, ...] = (..., *[slice(None, None, SHIFT_EVERY)] * len(axes))
    few = x.detach()[every]
    shifted = x.float() - per_channel(per_group(few.float()))
    shifted = shifted.contiguous(memory_format=CHANNELS_LAST[x.ndim])

    # Equation 2, near zero, where the difference of the two means costs no digits.
    mean = per_group(shifted)
    variance = per_group(shifted.square()) - mean.square()
    rstd = (variance.clamp(min=0) + eps).rsqrt()

    # Equations 1 and 6 in one pass.
    scale = per_channel(rstd)
    if weight is not None:
        scale = scale * weight.float().unflatten(0, (-1, *ones))
    offset = -per_channel(mean) * scale
    if bias is not None:
        offset = offset + bias.float().unflatten(0, (-1, *ones))
    return torch.addcmul(offset, shifted, scale).to(x.dtype), shifted, mean, rstd


class _ChannelsLast(torch.autograd.Function):
    """`_shifted_group_norm`, with PyTorch's fused gradient."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> tuple[Tensor, ...]:
        return _shifted_group_norm(x, weight, bias, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, weight, _, ctx.groups, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        weight, shifted, mean, rstd = ctx.saved_tensors
        batch, channels = shifted.shape[:2]
        pixels = shifted.shape[2:].numel()
        gradients = torch.ops.aten.native_group_norm_backward(
            dy.to(shifted.dtype).contiguous(memory_format=CHANNELS_LAST[dy.ndim]),
            shifted, mean, rstd, None if weight is None else weight.float(),
            batch, channels, pixels, ctx.groups, ctx.needs_input_grad[:3],
        )  # fmt: skip
        return (*gradients, None, None)


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
