"""VGG-16 for images, with a norm after each convolution (the paper's section 4.1, last part)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.errors import UserError
from video_gn.models.network import Network
from video_gn.norm import NormFactory, normalize

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""(channels in units of the width, convolutions) of each stage; a 2x2 max-pool ends it."""


class VGG(Network):
    """13 convolutions 3x3 in 5 stages, then FC, FC, FC with dropout.

    Args:
        num_classes: K.
        norm: makes the norm of a given number of channels.
        width: channels of the first stage (64); the hidden FCs have 64 times as many.
        dropout: probability, after each hidden FC.
    """

    stages = ("conv1", "conv2", "conv3", "conv4", "conv5")

    def __init__(self, num_classes: int, norm: NormFactory, *, width: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv, self.norm = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for factor, count in STAGES:
            for _ in range(count):
                self.norm.append(norm(factor * width))
                bias = isinstance(self.norm[-1], nn.Identity)
                self.conv.append(nn.Conv2d(channels, factor * width, 3, padding=1, bias=bias))
                channels = factor * width
        self.pool = nn.AdaptiveAvgPool2d(7)  # changes nothing at 224
        self.fc = nn.ModuleList([nn.Linear(channels * 49, 64 * width), nn.Linear(64 * width, 64 * width)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64 * width, num_classes)
        self._initialize()

    def layer(self, stage: str) -> Callable[[Tensor], Tensor]:
        """Return what runs the convolutions of a stage and the pool that ends it."""
        return partial(self._convolve, self.position(stage))

    def _convolve(self, number: int, x: Tensor) -> Tensor:
        first = sum(count for _, count in STAGES[:number])
        for index in range(first, first + STAGES[number][1]):
            x = normalize(self.norm[index], self.conv[index](x), relu=True)
        return F.max_pool2d(x, 2)

    def classify(self, x: Tensor, window: int | None = None) -> Tensor:
        """Return logits (N, K) of the last map; with `window`, (N, 1, K) of a map of that size."""
        if window is not None and x.shape[2:] != (window, window):
            raise UserError(
                f"VGG takes images of one size (last map {window}), not {tuple(x.shape[2:])}; use test.views=center"
            )
        x = self.pool(x).flatten(1)
        for fc in self.fc:
            x = self.dropout(F.relu(fc(x), inplace=True))
        return self.head(x) if window is None else self.head(x)[:, None]

    def feature_size(self, side: int) -> int:
        """Cells of the last map along a side of `side` pixels."""
        return side // 32

    def norms(self) -> Iterator[nn.Module]:
        return iter(self.norm)

    @torch.no_grad()
    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
