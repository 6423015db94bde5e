"""How others name the layers of a bottleneck ResNet, and what input their networks take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from video_gn.errors import UserError

Triple = tuple[float, float, float]

MEAN: Triple = (0.45, 0.45, 0.45)
STD: Triple = (0.225, 0.225, 0.225)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

STAGES = (2, 3, 4, 5)
MOST_BLOCKS = 48
"""More blocks than any stage has (ResNet-152: 36)."""

OURS = (
    "stem.conv",
    "stem.norm",
    "res{s}.{b}.conv_{x}",
    "res{s}.{b}.norm_{x}",
    "res{s}.{b}.shortcut.conv",
    "res{s}.{b}.shortcut.norm",
)
"""Layers, with s the stage (2 to 5), b the block, x the place in the block (a, b, c)."""

OUR_HEAD = "head.fc"
HEADS = (
    "head.fc",  # ours; mmpretrain
    "fc",  # torchvision, timm
    "head.projection",  # PySlowFast
    "blocks.6.proj",  # pytorchvideo
    "pred",  # Caffe2
    "cls_head.fc_cls",  # mmaction2
    "classifier.1",  # Hugging Face transformers
    "classifier",
    "head",
)
"""The last linear layer, in the network's own module or in one around it."""

CAFFE2_SUFFIXES = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
"""`riv` holds the variance itself, in spite of its name."""


@dataclass(frozen=True)
class Format:
    """How others name the layers of `OURS`, and what their networks take.

    Fields of a template, beside those of `OURS`: n, the place in the block counted from 1, and i, counted from 0; the
    stage's number as L (1 to 4), Z (0 to 3), P (pytorchvideo's, whose block 2 is the pool) and Q (4 to 7, the place
    among the children of torchvision's ResNet). The input is (x - mean) / std of RGB in [0, 1], or BGR.
    """

    name: str
    layers: tuple[str, ...]
    mean: Triple = MEAN  # in the order of RGB
    std: Triple = STD
    bgr: bool = False
    padded_pool: bool = True
    caffe2: bool = False  # blobs `layer_s`, not `layer.weight`

    @property
    def landmarks(self) -> tuple[str, ...]:
        """Keys by which a network of this format is recognized, the stem's first."""
        ours = ["stem.conv", "res2.0.conv_c"]
        if self is not VIDEO_GN:  # which may have no norms; Caffe2's formats differ in the names of norms only
            ours += ["stem.norm", "res5.0.shortcut.conv"]
        theirs = {name: other for other, name in layer_names(self).items()}
        return tuple(f"{theirs[name]}.weight" for name in ours)


VIDEO_GN = Format("video_gn's names", OURS)
TORCHVISION = Format(
    "torchvision's names (torchvision, timm, GroupNorm-reproduce)",
    (
        "conv1",
        "bn1",
        "layer{L}.{b}.conv{n}",
        "layer{L}.{b}.bn{n}",
        "layer{L}.{b}.downsample.0",
        "layer{L}.{b}.downsample.1",
    ),
    IMAGENET_MEAN,
    IMAGENET_STD,
)
SEQUENTIAL = Format(
    "torchvision's layers by number (nn.Sequential of a ResNet's children)",
    (
        "0",
        "1",
        "{Q}.{b}.conv{n}",
        "{Q}.{b}.bn{n}",
        "{Q}.{b}.downsample.0",
        "{Q}.{b}.downsample.1",
    ),
    IMAGENET_MEAN,
    IMAGENET_STD,
)
TRANSFORMERS = Format(
    "Hugging Face transformers' names",
    (
        "embedder.embedder.convolution",
        "embedder.embedder.normalization",
        "encoder.stages.{Z}.layers.{b}.layer.{i}.convolution",
        "encoder.stages.{Z}.layers.{b}.layer.{i}.normalization",
        "encoder.stages.{Z}.layers.{b}.shortcut.convolution",
        "encoder.stages.{Z}.layers.{b}.shortcut.normalization",
    ),
    IMAGENET_MEAN,
    IMAGENET_STD,
)
MMACTION = Format(
    "mmaction2's names",
    (
        "conv1.conv",
        "conv1.bn",
        "layer{L}.{b}.conv{n}.conv",
        "layer{L}.{b}.conv{n}.bn",
        "layer{L}.{b}.downsample.conv",
        "layer{L}.{b}.downsample.bn",
    ),
    IMAGENET_MEAN,
    IMAGENET_STD,
)
SLOWFAST = Format(
    "PySlowFast's names",
    (
        "s1.pathway0_stem.conv",
        "s1.pathway0_stem.bn",
        "s{s}.pathway0_res{b}.branch2.{x}",
        "s{s}.pathway0_res{b}.branch2.{x}_bn",
        "s{s}.pathway0_res{b}.branch1",
        "s{s}.pathway0_res{b}.branch1_bn",
    ),
)
PYTORCHVIDEO = Format(
    "pytorchvideo's names",
    (
        "blocks.0.conv",
        "blocks.0.norm",
        "blocks.{P}.res_blocks.{b}.branch2.conv_{x}",
        "blocks.{P}.res_blocks.{b}.branch2.norm_{x}",
        "blocks.{P}.res_blocks.{b}.branch1_conv",
        "blocks.{P}.res_blocks.{b}.branch1_norm",
    ),
)
NONLOCAL_NET = Format(
    "video-nonlocal-net's blobs",
    (
        "conv1",
        "res_conv1_bn",
        "res{s}_{b}_branch2{x}",
        "res{s}_{b}_branch2{x}_bn",
        "res{s}_{b}_branch1",
        "res{s}_{b}_branch1_bn",
    ),
    padded_pool=False,
    caffe2=True,
)
DETECTRON = Format(
    "Detectron's Group Norm blobs",
    (
        "conv1",
        "conv1_gn",
        "res{s}_{b}_branch2{x}",
        "res{s}_{b}_branch2{x}_gn",
        "res{s}_{b}_branch1",
        "res{s}_{b}_branch1_gn",
    ),
    mean=(122.7717 / 255, 115.9465 / 255, 102.9801 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    bgr=True,
    caffe2=True,
)
FORMATS = (
    VIDEO_GN,
    TORCHVISION,
    SEQUENTIAL,
    TRANSFORMERS,
    MMACTION,
    SLOWFAST,
    PYTORCHVIDEO,
    NONLOCAL_NET,
    DETECTRON,
)


def rename(state: Mapping[str, Tensor], form: Format, prefix: str = "") -> dict[str, Tensor]:
    """Return the network behind `prefix` in our names (see `our_names`).

    Values are left as they are, but for a head stored as a convolution.
    """
    names = our_names(state, form, prefix)
    return {ours: state[key].flatten(1) if ours == f"{OUR_HEAD}.weight" else state[key] for key, ours in names.items()}


def our_names(keys: Collection[str], form: Format, prefix: str = "") -> dict[str, str]:
    """Return our name of each key of the network behind `prefix`; keys that the format does not know keep their own.

    What is not behind the prefix is left out, but for the head, and so are the layers of a head that is not one layer.
    """
    layers = layer_names(form)
    dotted = {key: dot(key, form) for key in keys}
    head = _find_head(set(dotted.values()), prefix)
    names = {}
    for key, name in dotted.items():
        layer, _, suffix = name.rpartition(".")
        inside = layer.removeprefix(prefix)
        if layer == head:
            names[key] = f"{OUR_HEAD}.{suffix}"
        elif name.startswith(prefix) and inside in layers:
            names[key] = f"{layers[inside]}.{suffix}"
        elif key.startswith(prefix) and (form is VIDEO_GN or not _is_in_head(key.removeprefix(prefix))):
            names[key] = key.removeprefix(prefix)
    return names


def dot(key: str, form: Format) -> str:
    """Return `layer.weight` for a blob `layer_w`; other keys as they are."""
    layer, _, suffix = key.rpartition("_")
    return f"{layer}.{CAFFE2_SUFFIXES[suffix]}" if form.caffe2 and suffix in CAFFE2_SUFFIXES else key


def _find_head(keys: Collection[str], prefix: str) -> str | None:
    """Return the head's name: in the network's module, or in one of those around it."""
    for module in _modules_around(prefix):
        for head in HEADS:
            if f"{module}{head}.weight" in keys:
                return module + head
    return None


def _modules_around(prefix: str) -> Iterator[str]:
    """Yield a.b.c., a.b., a. and the empty prefix for a.b.c."""
    while prefix:
        yield prefix
        prefix = prefix[:-1].rpartition(".")[0]
        prefix += "." if prefix else ""
    yield ""


def _is_in_head(key: str) -> bool:
    return any(key.startswith(f"{head}.") for head in HEADS)


@cache
def layer_names(form: Format) -> dict[str, str]:
    """Return their name of every layer -> ours."""
    names = {}
    for s in STAGES:
        for b in range(MOST_BLOCKS):
            for i, x in enumerate("abc"):
                fields = {"s": s, "b": b, "x": x, "i": i, "n": i + 1}
                fields |= {"L": s - 1, "Z": s - 2, "P": 1 if s == 2 else s, "Q": s + 2}
                for theirs, ours in zip(form.layers, OURS, strict=True):
                    names[theirs.format(**fields)] = ours.format(**fields)
    return names


def fold_input(weights: dict[str, Tensor], form: Format, source: str) -> list[str]:
    """Make conv1 take our input, in place. Return what to say of it.

    Theirs is v = (x - m) / d, ours u = (x - 0.45) / 0.225, so v = (0.225 / d) u + (0.45 - m) / d. The scale goes into
    the kernel. The second term adds to each output channel a constant, which a running mean can take up; not where
    the kernel reaches into the padding, which is 0 in either convention.
    """
    if (form.mean, form.std, form.bgr) == (MEAN, STD, False):
        return ["its input is ours"]
    kernel = weights["stem.conv.weight"].float()
    if kernel.shape[1] != 3:
        raise UserError(f"{source}: conv1 takes {kernel.shape[1]} channels, not RGB; use weights of a network for RGB")
    said = []
    if form.bgr:
        kernel = kernel.flip(1)
        said.append("conv1's input turned from BGR to RGB")
    mean, std = torch.tensor(form.mean), torch.tensor(form.std)
    scale = torch.tensor(STD) / std
    shape = (1, 3) + (1,) * (kernel.dim() - 2)
    weights["stem.conv.weight"] = kernel * scale.view(shape)
    factors = ", ".join(f"{factor:.5g}" for factor in scale.tolist())
    said.append(f"conv1 scaled by {factors} (R, G, B) for the input (x/255 - 0.45) / 0.225")

    shift = kernel.flatten(2).sum(2) @ ((torch.tensor(MEAN) - mean) / std)
    if "stem.norm.running_mean" in weights:
        weights["stem.norm.running_mean"] = weights["stem.norm.running_mean"].float() - shift
        said.append("the offset of the means is in the first running mean (exact but at the image's border)")
    else:
        offset = ", ".join(f"{value:+.3f}" for value in ((torch.tensor(MEAN) - mean) / torch.tensor(STD)).tolist())
        said.append(f"the offset of the means remains: its input is ours plus {offset} (R, G, B)")
    return said
