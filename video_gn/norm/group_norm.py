"""Group Norm, and the one place where the nets ask for a norm, a norm and ReLU, or a norm, residual add and ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from video_gn.norm import fused
except ImportError:  # no Triton for this platform
    fused = None  # type: ignore[assignment]


class GroupNorm(nn.GroupNorm):
    """Group Norm (equation 7) for (N, C, *); with one group Layer Norm, with C groups Instance Norm.

    On a GPU with Triton it is a fused kernel (`video_gn.norm.fused`) that keeps x's dtype under autocast and takes
    ReLU and residual with it; elsewhere, and in an exported program, it is PyTorch's operators.
    """

    def forward(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """The norm of x; with `relu` max(norm, 0), with a `residual` of x's shape max(norm + residual, 0)."""
        if self._fuses(x, residual):
            relu = relu or residual is not None
            return fused.group_norm(x, self.weight, self.bias, residual, self.num_groups, self.eps, relu)[0]
        return _then(super().forward(x), relu, residual)

    def _fuses(self, x: Tensor, residual: Tensor | None) -> bool:
        if fused is None or not x.is_cuda or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return False
        fits = self.bias is not None and x.shape[1:2] == (self.num_channels,)
        alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        return fits and alike and fused.supports(x, self.num_groups)  # PyTorch takes, or refuses, the rest


def normalize(norm: nn.Module, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
    """norm(x); with `relu` relu(norm(x)), with a `residual` relu(norm(x) + residual). Fused where the norm can.

    A norm with hooks is run by itself, so that they see its output and gradient and not the ReLU's.
    """
    hooked = bool(norm._forward_hooks or norm._backward_hooks or norm._backward_pre_hooks)
    if isinstance(norm, GroupNorm) and not hooked:
        return norm(x, relu=relu, residual=residual)
    return _then(norm(x), relu, residual, inplace=not hooked)  # a hook may keep what it saw


def _then(y: Tensor, relu: bool, residual: Tensor | None, inplace: bool = True) -> Tensor:
    if residual is not None:
        return F.relu(y + residual, inplace=True)
    return F.relu(y, inplace=inplace) if relu else y
