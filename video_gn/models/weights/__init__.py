"""Other people's weights in video_gn's names, for video_gn's input.

What a file is, is decided by its content, never by its name. docs/weights.md lists what is read. `files` opens it,
`unpickling` makes plain data of it, `search` finds the network in it, `formats` knows the names of its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from video_gn.errors import UserError
from video_gn.models.inflate import named
from video_gn.models.weights.files import read_file
from video_gn.models.weights.formats import FORMATS, NONLOCAL_NET, VIDEO_GN, fold_input, our_names, rename
from video_gn.models.weights.libraries import from_timm, from_torchvision
from video_gn.models.weights.search import choose, find_networks, state_dicts, tensors_of

NAMED = 8
"""Names of tensors in a message."""


def read_weights(source: str) -> tuple[dict[str, Tensor], str]:
    """Read a network's weights, on the CPU, in this package's names and for its input (x / 255 - 0.45) / 0.225, RGB.

    Args:
        source: a file with the weights of torchvision, timm, Hugging Face transformers, mmaction2, GroupNorm-reproduce,
            Detectron (Group Norm), video-nonlocal-net, PySlowFast, pytorchvideo or this package, in whatever dicts and
            modules they are wrapped; or `torchvision:resnet50`, `torchvision:resnet50:IMAGENET1K_V1`,
            `timm:resnet50_gn`: those libraries download it.

    Returns:
        The weights, and a sentence on what was recognized, unwrapped, left out and changed. Keys without a place keep
        their own names, so that `video_gn.models.inflate.initialize` names them.

    Raises:
        UserError: missing, damaged, not recognized, several networks, holding more than data, not finite, or not
            available from the library.
    """
    library, _, name = source.partition(":")
    if library == "torchvision" and name:
        return convert(from_torchvision(name), source)
    if library == "timm" and name:
        return convert(from_timm(name), source)
    content = read_file(Path(source))
    if (own := _read_own(content, source)) is not None:
        return own
    return convert(content, source)


def convert(content: Mapping[Any, Any], source: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights in a file's content, in our names and for our input, and a sentence as `read_weights` does.

    `source` is for the errors.
    """
    networks = find_networks(content)
    if not networks:
        raise UserError(_not_recognized(content, source))
    network = choose(networks, source)
    form, state = network.form, network.state
    _check_finite({key: state[key] for key in our_names(state, form, network.prefix)}, source)
    weights = rename(state, form, network.prefix)
    if form is NONLOCAL_NET and "stem.norm.running_mean" not in weights and weights["stem.conv.weight"].dim() == 4:
        raise UserError(
            f"{source}: Batch Norm without its statistics in an image network, as in Detectron's R-50.pkl, whose "
            "strides are on the 1x1 convolutions; convert a file that has the *_rm and *_riv blobs"
        )
    said = [f"{len(weights)} tensors in {form.name}" + (", taken as they are" if form is VIDEO_GN else "")]
    if network.place:
        said.append(f"unwrapped from {network.place}")
    left_out = network.left_out() + [other.place for other in networks if other.state is not state]
    if left_out:
        said.append(f"left out: {named(left_out, NAMED)}")
    if form is not VIDEO_GN:
        said += fold_input(weights, form, source)
        said.append(
            "pool1 is padded there (model.stem=slowfast)"
            if form.padded_pool
            else "pool1 is not padded there (dense, sparse)"
        )
    return weights, "; ".join(said)


def _read_own(content: Mapping[Any, Any], source: str) -> tuple[dict[str, Tensor], str] | None:
    """Return a checkpoint of this package or a file of tools/convert_weights.py; None for another's."""
    marked = "converted" in content or {"config", "step"} <= content.keys()
    if not marked or not isinstance(content.get("model"), dict):
        return None
    if any(network.form is not VIDEO_GN or network.prefix for network in find_networks(content)):
        return None  # others have a config and a step, too
    weights = tensors_of(content["model"])
    _check_finite(weights, source)
    if "converted" in content:
        return weights, f"a converted file: {content['converted']}"
    data = content["config"].get("data", {}) if isinstance(content["config"], dict) else {}
    given = "".join(f", data.{key}={list(data[key])}" for key in ("mean", "std") if key in data)
    return weights, f"{len(weights)} tensors of a video_gn checkpoint of step {content['step']}{given}"


def _not_recognized(content: Mapping[Any, Any], source: str) -> str:
    largest = max((state for _, state in state_dicts(content)), key=len, default={})
    some = ", ".join(list(largest)[:4]) or "no tensors"
    formats = ", ".join(form.name for form in FORMATS)
    return (
        f"{source}: no network that is known from its keys ({some} ...); what is read are ResNets of bottleneck blocks "
        f"with {formats}"
    )


def _check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError where a tensor holds NaN or infinity: such a network gives nothing else, and never recovers."""
    bad = [key for key, tensor in state.items() if not tensor.float().isfinite().all()]
    if bad:
        raise UserError(
            f"{source}: NaN or infinity in {len(bad)} of {len(state)} tensors ({named(bad, NAMED)}); take weights from "
            "before its training diverged"
        )
