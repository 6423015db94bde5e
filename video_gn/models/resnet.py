"""ResNet for clips (I3D and C2D; section 4.3, the baseline is video-nonlocal-net's) and for images (section 4.1).

One code for both: shapes are (N, C, T, H, W) with `dims` 3, (N, C, H, W) with `dims` 2, where the temporal part of
every kernel, stride and pool falls away. The parts are named as in the papers: stem, res2 to res5, head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.models.network import Network
from video_gn.models.stem import folded_conv3d
from video_gn.norm import NormFactory, normalize

try:
    from video_gn.models import max_pool
except ImportError:  # no Triton for this platform
    max_pool = None  # type: ignore[assignment]

Size = tuple[int, int, int]

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}

# (temporal stride of conv1, pool kernel, pool stride, pool padding)
STEMS: dict[str, tuple[int, Size, Size, Size]] = {
    "dense": (2, (2, 3, 3), (2, 2, 2), (0, 0, 0)),  # 32x2, 64x1: video-nonlocal-net's resnet_video_org.py
    "sparse": (1, (1, 3, 3), (1, 2, 2), (0, 0, 0)),  # 8x8: resnet_video.py
    "slowfast": (1, (1, 3, 3), (1, 2, 2), (0, 1, 1)),  # PySlowFast, pytorchvideo and 2D nets pad the pool: 56 for 55
}


class Conv3d(nn.Conv3d):
    """Convolution with a stride, of few channels; on a GPU as one of stride 1 over blocks of pixels.

    cuDNN has no fast kernel for 3 channels. Forward and weight gradient of conv1 of 8 clips of 32 x 224 x 224 take
    2.5 ms folded and 12.5 ms as they are (H200, bf16, cuDNN 9.19).
    """

    def forward(self, x: Tensor) -> Tensor:
        if _on_gpu(x):
            return folded_conv3d(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]
        return super().forward(x)


class MaxPool3d(nn.MaxPool3d):
    """Max-pool; on a GPU, channels last, by kernels that keep a byte per output and whose gradient is deterministic."""

    def forward(self, x: Tensor) -> Tensor:
        if max_pool is None or not _on_gpu(x) or not x.is_contiguous(memory_format=torch.channels_last_3d):
            return super().forward(x)
        sizes = (_triple(value) for value in (self.kernel_size, self.stride, self.padding))
        return max_pool.max_pool(x, *sizes)[0]


def _on_gpu(x: Tensor) -> bool:
    """Return whether x is there, and is not of a program that is exported for elsewhere."""
    return x.is_cuda and not torch.compiler.is_exporting() and not torch.jit.is_tracing()


def _triple(value: int | tuple[int, ...]) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value)


CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
FIRST_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}
MAX_POOL: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: MaxPool3d}


class Stem(nn.Module):
    """conv1 7x7, norm, ReLU, max-pool."""

    def __init__(self, width: int, kind: str, temporal_kernel: int, norm: NormFactory, dims: int) -> None:
        super().__init__()
        stride, pool_kernel, pool_stride, pool_padding = STEMS[kind]
        self.norm = norm(width)
        self.conv = _conv(3, width, (temporal_kernel, 7, 7), (stride, 2, 2), self.norm, dims, FIRST_CONV)
        self.pool = MAX_POOL[dims](pool_kernel[-dims:], pool_stride[-dims:], pool_padding[-dims:])

    def norms(self) -> list[nn.Module]:
        return [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(normalize(self.norm, self.conv(x), relu=True))


class Bottleneck(nn.Module):
    """relu(shortcut(x) + f(x)), f = t x 1 x 1 -> 1 x 3 x 3 (with the spatial stride) -> 1 x 1 x 1, each with its norm.

    `last_norm` is the norm whose gamma starts at zero, so that the block starts as its shortcut (section 4.1).
    """

    def __init__(
        self, channels_in: int, width: int, temporal_kernel: int, stride: int, norm: NormFactory, dims: int
    ) -> None:
        super().__init__()
        channels_out = 4 * width
        spatial = (1, stride, stride)
        self.norm_a, self.norm_b, self.norm_c = norm(width), norm(width), norm(channels_out)
        self.conv_a = _conv(channels_in, width, (temporal_kernel, 1, 1), (1, 1, 1), self.norm_a, dims)
        self.conv_b = _conv(width, width, (1, 3, 3), spatial, self.norm_b, dims)
        self.conv_c = _conv(width, channels_out, (1, 1, 1), (1, 1, 1), self.norm_c, dims)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            shortcut_norm = norm(channels_out)
            shortcut_conv = _conv(channels_in, channels_out, (1, 1, 1), spatial, shortcut_norm, dims)
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", shortcut_conv)
            self.shortcut.add_module("norm", shortcut_norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.norm_c

    def norms(self) -> list[nn.Module]:
        shortcut = [] if self.shortcut is None else [self.shortcut.get_submodule("norm")]
        return [self.norm_a, self.norm_b, self.norm_c, *shortcut]

    def forward(self, x: Tensor) -> Tensor:
        y = normalize(self.norm_a, self.conv_a(x), relu=True)
        y = normalize(self.norm_b, self.conv_b(y), relu=True)
        y = self.conv_c(y)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return normalize(self.norm_c, y, residual=shortcut)


class Head(nn.Module):
    """Dropout, FC."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, *, K) of averages (N, *, C) of the last map."""
        return self.fc(self.dropout(x))


class ResNet(Network):
    """ResNet of bottleneck blocks over clips or images.

    Args:
        num_classes: K.
        norm: makes the norm of a given number of channels (`video_gn.norm.norm_factory`, or a callable of your own).
        blocks: number of blocks of res2, res3, res4, res5.
        width: channels of the stem.
        temporal: `i3d` or `c2d`; says nothing for images.
        stem: `dense`, `sparse` or `slowfast`; for images it says how the pool is padded.
        dropout: probability, before the FC.
        dims: 3 for clips, 2 for images.
    """

    stages = ("stem", "res2", "pool2", "res3", "res4", "res5")
    head: Head

    def __init__(
        self,
        num_classes: int,
        norm: NormFactory,
        *,
        blocks: Sequence[int] = BLOCKS["resnet50"],
        width: int = 64,
        temporal: str = "i3d",
        stem: str = "dense",
        dropout: float = 0.5,
        dims: int = 3,
    ) -> None:
        super().__init__()
        if temporal not in ("i3d", "c2d") or stem not in STEMS:
            raise ValueError(f"temporal {temporal!r} must be i3d or c2d, stem {stem!r} one of {', '.join(STEMS)}")
        i3d = temporal == "i3d"
        widths = [width * 2**k for k in range(4)]  # of res2 to res5; a stage's output has 4 times as many channels
        self.pool_padding = STEMS[stem][3][1]
        self.min_frames = 2 * STEMS[stem][0] * STEMS[stem][2][0] if dims == 3 else 1  # conv1, the stem's pool, pool2
        self.stem = Stem(width, stem, 5 if i3d else 1, norm, dims)
        self.res2 = _stage(2, blocks[0], width, widths[0], i3d, norm, dims)
        self.res3 = _stage(3, blocks[1], 4 * widths[0], widths[1], i3d, norm, dims)
        self.res4 = _stage(4, blocks[2], 4 * widths[1], widths[2], i3d, norm, dims)
        self.res5 = _stage(5, blocks[3], 4 * widths[2], widths[3], i3d, norm, dims)
        self.pool2 = MaxPool3d((2, 1, 1), (2, 1, 1)) if dims == 3 else nn.Identity()
        self.head = Head(4 * widths[3], num_classes, dropout)
        self._initialize()

    def feature_size(self, side: int) -> int:
        """Cells of the last map along a side of `side` pixels: the head's window for a net trained at that crop."""
        side = _out_size(side, 7, 2, 3)
        side = _out_size(side, 3, 2, self.pool_padding)
        for _ in range(3):
            side = _out_size(side, 3, 2, 1)
        return side

    def classify(self, x: Tensor, window: int | None = None) -> Tensor:
        """Return logits, as `forward` does, of the last stage's output: average pool, dropout, FC."""
        if window is None:
            return self.head(x.flatten(2).mean(2))
        x = x if x.dim() == 5 else x[:, :, None]
        frames, height, width = x.shape[2:]
        x = F.avg_pool3d(x, (frames, min(window, height), min(window, width)), stride=1)
        return self.head(x.flatten(2).transpose(1, 2))

    def blocks(self) -> Iterator[Bottleneck]:
        """All bottleneck blocks, input to output."""
        return (module for module in self.modules() if isinstance(module, Bottleneck))

    def norms(self) -> Iterator[nn.Module]:
        parts: list[Stem | Bottleneck] = [self.stem, *self.blocks()]
        return (norm for part in parts for norm in part.norms())

    def last_norms(self) -> Iterator[nn.Module]:
        return (block.last_norm for block in self.blocks())

    @torch.no_grad()
    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # Caffe2's MSRAFill
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.fc.weight, std=0.01)
        nn.init.zeros_(self.head.fc.bias)
        for norm in self.last_norms():
            gamma = getattr(norm, "weight", None)
            if gamma is not None:
                nn.init.zeros_(gamma)


def _stage(stage: int, count: int, channels: int, width: int, i3d: bool, norm: NormFactory, dims: int) -> nn.Sequential:
    """`count` blocks; the first takes `channels` and, after res2, halves the map."""
    blocks = []
    for block in range(count):
        temporal_kernel = 3 if i3d and is_inflated(stage, block) else 1
        stride = 2 if block == 0 and stage > 2 else 1
        blocks.append(Bottleneck(channels, width, temporal_kernel, stride, norm, dims))
        channels = 4 * width
    return nn.Sequential(*blocks)


def is_inflated(stage: int, block: int) -> bool:
    """Whether a block's first kernel is 3x1x1 in I3D: all of res2, even blocks of res3 and res4, odd ones of res5."""
    if stage == 2:
        return True
    return block % 2 == (1 if stage == 5 else 0)


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: Size,
    stride: Size,
    norm: nn.Module,
    dims: int,
    classes: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = CONV,
) -> nn.Conv2d | nn.Conv3d:
    """Convolution padded to keep the size at stride 1; the norm's beta serves as its bias, where there is a norm."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    bias = isinstance(norm, nn.Identity)
    return classes[dims](channels_in, channels_out, kernel[-dims:], stride[-dims:], padding[-dims:], bias=bias)  # type: ignore[arg-type]


def _out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1
