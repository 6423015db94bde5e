"""Other people's weights in video_gn's names, for video_gn's input.

What a file is, is told from its keys, never from its name. docs/weights.md lists what is read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_gn import digest
from video_gn.errors import UserError

Triple = tuple[float, float, float]

MEAN: Triple = (0.45, 0.45, 0.45)
STD: Triple = (0.225, 0.225, 0.225)

STAGES = (2, 3, 4, 5)
MOST_BLOCKS = 48
"""More blocks than any stage has (ResNet-152: 36)."""

WRAPPERS = ("state_dict", "model_state", "model", "blobs")
PREFIXES = ("module.", "model.")

OURS = (
    "stem.conv",
    "stem.norm",
    "res{s}.{b}.conv_{x}",
    "res{s}.{b}.norm_{x}",
    "res{s}.{b}.shortcut.conv",
    "res{s}.{b}.shortcut.norm",
    "head.fc",
)
"""Layers, with s the stage (2 to 5), b the block, x the place in the block (a, b, c)."""

RECOGNIZED_BY = ("stem.conv.weight", "stem.norm.weight", "res2.0.conv_c.weight", "res5.0.shortcut.conv.weight")
"""Weights, in our names, that a file of a bottleneck ResNet has."""


@dataclass(frozen=True)
class Format:
    """How others name the layers of `OURS`, and what their networks take.

    In a template L = s - 1, n is the place in the block counted from 1, P is pytorchvideo's number of the stage (its
    block 2 is the pool). The input is (x - mean) / std of RGB in [0, 1], or BGR.
    """

    name: str
    layers: tuple[str, ...]
    mean: Triple = MEAN  # in the order of RGB
    std: Triple = STD
    bgr: bool = False
    padded_pool: bool = True
    caffe2: bool = False  # blobs `layer_s`, not `layer.weight`


IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

TORCHVISION = Format(
    "torchvision's names (torchvision, timm, GroupNorm-reproduce)",
    (
        "conv1",
        "bn1",
        "layer{L}.{b}.conv{n}",
        "layer{L}.{b}.bn{n}",
        "layer{L}.{b}.downsample.0",
        "layer{L}.{b}.downsample.1",
        "fc",
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
        "head.projection",
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
        "blocks.6.proj",
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
        "pred",
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
        "pred",
    ),
    mean=(122.7717 / 255, 115.9465 / 255, 102.9801 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    bgr=True,
    caffe2=True,
)
FORMATS = (TORCHVISION, SLOWFAST, PYTORCHVIDEO, NONLOCAL_NET, DETECTRON)

CAFFE2_SUFFIXES = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
"""`riv` holds the variance itself, in spite of its name."""


def read_weights(source: str) -> tuple[dict[str, Tensor], str]:
    """Read a network's weights, on the CPU, in this package's names and for its input (x / 255 - 0.45) / 0.225, RGB.

    Args:
        source: a file of torchvision, timm, GroupNorm-reproduce, Detectron (Group Norm), video-nonlocal-net,
            PySlowFast, pytorchvideo or of this package; or `torchvision:resnet50`,
            `torchvision:resnet50:IMAGENET1K_V1`, `timm:resnet50_gn`: those libraries download it.

    Returns:
        The weights, and a sentence on what was recognized and done. Keys without a place keep their own names, so that
        `video_gn.models.inflate.initialize` names them.

    Raises:
        UserError: missing, damaged, not recognized, holding more than data, or not to be had from the library.
    """
    library, _, name = source.partition(":")
    if library == "torchvision" and name:
        return convert(_from_torchvision(name), source)
    if library == "timm" and name:
        return convert(_from_timm(name), source)
    content = _read_file(Path(source))
    if (own := _read_own(content)) is not None:
        return own
    return convert(content, source)


def convert(content: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], str]:
    """What a foreign file holds -> weights in our names for our input, and a sentence. `source` is for the errors."""
    state = _unwrap(content)
    if {"stem.conv.weight", "res2.0.conv_c.weight"} <= state.keys():
        return state, f"{len(state)} tensors in video_gn's names, taken as they are"
    for form in FORMATS:
        weights = rename(state, form)
        if weights.keys() >= set(RECOGNIZED_BY):
            break
    else:
        some = ", ".join(list(state)[:4]) or "no tensors"
        raise UserError(
            f"{source}: no network that is known from its keys ({some} ...); what is read are ResNets of bottleneck "
            f"blocks with {', '.join(form.name for form in FORMATS)}"
        )
    if form is NONLOCAL_NET and "stem.norm.running_mean" not in weights and weights["stem.conv.weight"].dim() == 4:
        raise UserError(
            f"{source}: Batch Norm without its statistics in an image network, as in Detectron's R-50.pkl, whose "
            "strides are on the 1x1 convolutions; convert a file that has the *_rm and *_riv blobs"
        )
    said = [f"{len(weights)} tensors in {form.name}", *_fold_input(weights, form, source)]
    said.append(
        "pool1 is padded there (model.stem=slowfast)"
        if form.padded_pool
        else "pool1 is not padded there (dense, sparse)"
    )
    return weights, "; ".join(said)


def rename(state: Mapping[str, Tensor], form: Format) -> dict[str, Tensor]:
    """Our names for another format's; keys that it does not know keep their own. Values are left as they are, but for
    a head stored as a convolution."""
    layers = _layer_names(form)
    renamed = {}
    for key, tensor in state.items():
        layer, _, suffix = key.rpartition("_" if form.caffe2 else ".")
        if form.caffe2:
            suffix = CAFFE2_SUFFIXES.get(suffix, "")
        ours = f"{layers[layer]}.{suffix}" if layer in layers and suffix else key
        renamed[ours] = tensor.flatten(1) if ours == "head.fc.weight" else tensor
    return renamed


@cache
def _layer_names(form: Format) -> dict[str, str]:
    """Their name of every layer -> ours."""
    names = {}
    for s in STAGES:
        for b in range(MOST_BLOCKS):
            for n, x in enumerate("abc", 1):
                fields = {"s": s, "b": b, "x": x, "n": n, "L": s - 1, "P": 1 if s == 2 else s}
                for theirs, ours in zip(form.layers, OURS, strict=True):
                    names[theirs.format(**fields)] = ours.format(**fields)
    return names


def _fold_input(weights: dict[str, Tensor], form: Format, source: str) -> list[str]:
    """Make conv1 take our input, in place. Returns what to say of it.

    Theirs is v = (x - m) / d, ours u = (x - 0.45) / 0.225, so v = (0.225 / d) u + (0.45 - m) / d. The scale goes into
    the kernel. The second term adds to each output channel a constant, which a running mean can take up; not where
    the kernel reaches into the padding, which is 0 in either convention.
    """
    if (form.mean, form.std, form.bgr) == (MEAN, STD, False):
        return ["its input is ours"]
    kernel = weights["stem.conv.weight"].float()
    if kernel.shape[1] != 3:
        raise UserError(f"{source}: conv1 takes {kernel.shape[1]} channels, not RGB; use weights of a net for RGB")
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


def _read_file(path: Path) -> Mapping[str, Any]:
    """A file of torch.save or a pickle of arrays, told apart by its first bytes."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; give a file, torchvision:NAME or timm:NAME")
    with path.open("rb") as file:
        start = file.read(32)
    torch_legacy = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    read = _read_torch if start.startswith(b"PK") or torch_legacy in start else _read_pickle
    try:
        content = read(path)
    except Exception as error:  # many kinds, for a damaged file or one with objects in it
        raise UserError(
            f"{path}: damaged, or holds more than arrays and plain values ({_reason(error)}); save its weights alone"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name; save its state dict")
    return content


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # else it is older than torch 1.6
    return digest.load(path) if zipped else torch.load(path, map_location="cpu", weights_only=True)


def _read_own(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], str] | None:
    """A checkpoint of this package or a file of tools/convert_weights.py; None for another's."""
    own = "converted" in content or {"config", "step"} <= content.keys()
    if not own or not isinstance(content.get("model"), dict):
        return None
    weights = _unwrap(content["model"])
    if "converted" in content:
        return weights, f"a converted file: {content['converted']}"
    data = content["config"].get("data", {}) if isinstance(content["config"], dict) else {}
    given = "".join(f", data.{key}={list(data[key])}" for key in ("mean", "std") if key in data)
    return weights, f"{len(weights)} tensors of a video_gn checkpoint of step {content['step']}{given}"


def _unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, out of the dicts that hold them and without the prefixes that wrapping models gave them."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {key: value.tensor if isinstance(value, _Array) else value for key, value in content.items()}
    state = {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    state = {key: value for key, value in state.items() if not _is_training_state(key)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_training_state(key: str) -> bool:
    """Caffe2 keeps the optimizer's state among the weights."""
    return key.endswith("_momentum") or key in ("lr", "model_iter")


def _from_torchvision(name: str) -> dict[str, Tensor]:
    model_name, _, weights = name.partition(":")
    try:
        from torchvision.models import get_model
    except ImportError:
        raise UserError(f"torchvision:{name} needs torchvision; pip install torchvision") from None
    try:
        return get_model(model_name, weights=weights or "DEFAULT").state_dict()
    except Exception as error:  # an unknown name, no network, a full disk
        raise _not_to_be_had(f"torchvision:{name}", error) from None


def _from_timm(name: str) -> dict[str, Tensor]:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs timm; pip install timm") from None
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # an unknown name, no weights of that name, no network, a full disk
        raise _not_to_be_had(f"timm:{name}", error) from None
    config: Any = model.pretrained_cfg
    statistics = (tuple(config["mean"]), tuple(config["std"]))
    if statistics != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(f"timm:{name} takes mean and std {statistics}, not ImageNet's; choose another of its weights")
    return model.state_dict()


def _not_to_be_had(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: not to be had ({_reason(error)}); check the name and the network, or give a file on the disk"
    )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:160]


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _Unpickler(file, encoding="latin1").load()  # latin1: Python 2 wrote an array's bytes as a string


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, strings, numbers and arrays of numbers. Of what a pickle may call, it has stand-ins alone."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # its name since NumPy 2
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("numpy", "ndarray"): None,  # an argument of _reconstruct, not looked at
            ("numpy", "dtype"): _DType,
            ("collections", "OrderedDict"): dict,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


class _DType:
    """Stands in for `numpy.dtype` of numbers."""

    def __init__(self, code: str, *_flags: object) -> None:
        if not re.fullmatch("[fiub][1-8]", code):
            raise pickle.UnpicklingError(f"it has an array of dtype {code}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(byte_order)


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct`; what it makes is filled by `__setstate__`."""

    tensor: Tensor | None = None

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, columns_first, data = state
        self.fill(data, dtype, shape, "F" if columns_first else "C")

    def fill(self, data: Any, dtype: _DType, shape: tuple[int, ...], order: Any) -> None:
        raw = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(raw, dtype.numpy).reshape(shape, order=order)
        self.tensor = torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))


def _from_buffer(data: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """`numpy.core.numeric._frombuffer`, of pickle protocol 5."""
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _scalar(dtype: _DType, data: Any) -> _Array:
    return _from_buffer(data, dtype, (), "C")


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`: how Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")
