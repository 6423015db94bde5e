"""Other people's weights: real key lists, equal outputs where the other network can be run, no code from a pickle."""

from __future__ import annotations

import argparse
import collections
import gzip
import importlib.util
import io
import math
import os
import pickle
import re
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from tests.networks import NORMS, speak
from tests.tiny_runs import tool
from video_gn.errors import UserError
from video_gn.models.inflate import initialize
from video_gn.models.resnet import BLOCKS, ResNet
from video_gn.models.weights import convert, read_weights
from video_gn.models.weights.formats import SEQUENTIAL, TORCHVISION, rename
from video_gn.models.weights.unpickling import load_pickle
from video_gn.run import checkpoint as ckpt

DETECTRON_BGR = torch.tensor([102.9801, 115.9465, 122.7717])  # its PIXEL_MEANS, of 255


def thin(norm: str, dims: int, **changes: object) -> ResNet:
    """The real number of layers, few channels."""
    return speak(ResNet(7, NORMS[norm], dims=dims, width=8, **changes))


def our_keys(norm: str, dims: int) -> dict[str, Tensor]:
    state = thin(norm, dims).state_dict()
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def caffe2_name(key: str) -> str:
    """The blob of one of our keys, read off the name table of video-nonlocal-net and Detectron."""
    suffix = {"bias": "b", "running_mean": "rm", "running_var": "riv"}
    layer, last = key.rsplit(".", 1)
    if layer == "head.fc":
        return "pred_w" if last == "weight" else "pred_b"
    kind = "" if "conv" in layer else "_bn"
    last = suffix.get(last, "s" if kind else "w")
    if layer.startswith("stem"):
        return f"res_conv1_bn_{last}" if kind else "conv1_w"
    stage, block, rest = layer.split(".", 2)
    return f"{stage}_{block}_branch{'1' if 'shortcut' in rest else '2' + rest[-1]}{kind}_{last}"


def slowfast_name(key: str) -> str:
    if key.startswith("stem."):
        return key.replace("stem.conv", "s1.pathway0_stem.conv").replace("stem.norm", "s1.pathway0_stem.bn")
    if key.startswith("head."):
        return key.replace("head.fc", "head.projection")
    key = re.sub(r"^res(\d)\.(\d+)\.", r"s\1.pathway0_res\2.", key)
    key = key.replace("shortcut.conv", "branch1").replace("shortcut.norm", "branch1_bn")
    return re.sub(r"norm_([abc])", r"branch2.\1_bn", re.sub(r"conv_([abc])", r"branch2.\1", key))


def torchvision_name(key: str) -> str:
    key = key.replace("stem.conv", "conv1").replace("stem.norm", "bn1").replace("head.fc", "fc")
    key = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", key)
    key = key.replace("shortcut.conv", "downsample.0").replace("shortcut.norm", "downsample.1")
    place = {"a": 1, "b": 2, "c": 3}
    key = re.sub("conv_([abc])", lambda match: f"conv{place[match[1]]}", key)
    return re.sub("norm_([abc])", lambda match: f"bn{place[match[1]]}", key)


def transformers_name(key: str) -> str:
    """A key of Hugging Face's ResNetForImageClassification."""
    if key.startswith("head."):
        return key.replace("head.fc", "classifier.1")
    key = re.sub(r"^res(\d)\.(\d+)", lambda match: f"encoder.stages.{int(match[1]) - 2}.layers.{match[2]}", key)
    key = key.replace("stem.", "embedder.embedder.")
    key = re.sub("(conv|norm)_([abc])", lambda match: f"layer.{'abc'.index(match[2])}.{match[1]}", key)
    return "resnet." + key.replace(".conv.", ".convolution.").replace(".norm.", ".normalization.")


def mmaction_name(key: str) -> str:
    """A key of mmaction2's recognizers, whose convolutions and norms are in pairs."""
    if key.startswith("head."):
        return key.replace("head.fc", "cls_head.fc_cls")
    key = re.sub(r"(conv|bn)(\d)\.", lambda match: f"conv{match[2]}.{match[1]}.", torchvision_name(key))
    return "backbone." + key.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")


def numpy_blobs(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {caffe2_name(key): tensor.numpy() for key, tensor in state.items()}


def detectron_blobs(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    blobs = {key.replace("_bn_", "_gn_"): array for key, array in numpy_blobs(state).items()}
    return {key.replace("res_conv1_gn", "conv1_gn"): array for key, array in blobs.items()}


def write(path: Path, content: object, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key in expected:
        assert torch.equal(got[key], expected[key]), key


def largest_difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def pictures() -> tuple[Tensor, Tensor]:
    """RGB in [0, 1] and our input of it."""
    rgb = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return rgb, (rgb - 0.45) / 0.225


def imagenet(rgb: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1)


# --- networks that can be run ---


@pytest.fixture(scope="module")
def torchvision_net() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return speak(models.resnet50()).eval()


@pytest.fixture(scope="module")
def timm_net() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return speak(timm.create_model("resnet50_gn", pretrained=False)).eval()


def ours_for(norm: str) -> ResNet:
    factory = {"bn": nn.BatchNorm2d, "gn": lambda channels: nn.GroupNorm(32, channels)}[norm]
    return ResNet(1000, factory, stem="slowfast", dims=2).eval()


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_logits_equal_those_of_torchvision_and_timm(norm, request):
    theirs = request.getfixturevalue("torchvision_net" if norm == "bn" else "timm_net")
    ours = ours_for(norm)
    report = initialize(ours, rename(theirs.state_dict(), TORCHVISION))
    assert not (report.new or report.dropped or report.inflated)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert largest_difference(ours(x), theirs(x)) <= 1e-4


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_every_weight_of_torchvisions_resnets_has_its_place(arch):
    with torch.device("meta"):
        theirs = getattr(pytest.importorskip("torchvision.models"), arch)().state_dict()
        ours = ResNet(1000, nn.BatchNorm2d, blocks=BLOCKS[arch], stem="slowfast", dims=2).state_dict()
    renamed = rename(theirs, TORCHVISION)
    assert {key: tensor.shape for key, tensor in renamed.items()} == {key: t.shape for key, t in ours.items()}


@torch.no_grad()
def test_torchvision_logits_of_the_same_pictures(torchvision_net):
    """Each network with its own input. Both see pictures padded by themselves, not by each one's zero."""
    weights, said = convert(torchvision_net.state_dict(), "x")
    assert "0.98253, 1.0045, 1 (R, G, B)" in said and "running mean" in said and "model.stem=slowfast" in said
    ours = ours_for("bn")
    initialize(ours, weights)
    rgb, u = pictures()
    got, expected = ours.stem.norm(ours.stem.conv(u)), torchvision_net.bn1(torchvision_net.conv1(imagenet(rgb)))
    inside = (..., slice(2, -1), slice(2, -1))  # 7x7, stride 2, pad 3: two rows before, one after touch the padding
    assert largest_difference(got[inside], expected[inside]) <= 1e-5
    assert largest_difference(got, expected) > 1e-2
    rgb = F.pad(rgb, (3, 3, 3, 3), mode="replicate")
    padding, torchvision_net.conv1.padding = torchvision_net.conv1.padding, (0, 0)
    expected = torchvision_net(imagenet(rgb))
    torchvision_net.conv1.padding = padding
    ours.stem.conv.padding = (0, 0)
    assert largest_difference(ours((rgb - 0.45) / 0.225), expected) <= 1e-4


@torch.no_grad()
def test_timm_differs_by_the_offset_that_is_said(timm_net):
    weights, said = convert(timm_net.state_dict(), "x")
    assert "ours plus -0.156, -0.027, +0.196 (R, G, B)" in said  # (0.45 - m) / 0.225
    rgb, u = pictures()
    offset = torch.tensor([-0.1555556, -0.0266667, 0.1955556]).view(3, 1, 1)
    got, expected = (
        F.conv2d(u + offset, weights["stem.conv.weight"], stride=2),
        F.conv2d(imagenet(rgb), timm_net.conv1.weight, stride=2),
    )
    assert largest_difference(got, expected) <= 1e-5


@torch.no_grad()
def test_pytorchvideo_i3d_from_its_file(tmp_path):
    hub = pytest.importorskip("pytorchvideo.models.hub")
    torch.manual_seed(0)
    theirs = speak(hub.i3d_r50(pretrained=False)).eval()
    ours = ResNet(400, nn.BatchNorm3d, stem="slowfast").eval()
    # as PySlowFast's zoo has it
    torch.save(
        {"model_state": {f"model.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3}, tmp_path / "a.pt"
    )
    weights, said = read_weights(str(tmp_path / "a.pt"))
    assert "pytorchvideo" in said
    report = initialize(ours, weights)
    assert not (report.new or report.dropped or report.inflated)
    clip = torch.randn(1, 3, 8, 64, 64)
    expected = nn.Sequential(*theirs.blocks[:6])(clip)  # its head takes maps of 224 pixels alone
    assert largest_difference(ours.features(clip), expected) <= 1e-4
    assert largest_difference(ours(clip), theirs.blocks[6].proj(expected.mean((2, 3, 4)))) <= 1e-4


# --- files built from the name tables ---


def test_group_norm_reproduce_file(timm_net, tmp_path):
    state = timm_net.state_dict()
    content = {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": {f"module.{key}": tensor for key, tensor in state.items()},
        "best_prec1": torch.tensor(75.9),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "any.name", _use_new_zipfile_serialization=False)  # as in 2018
    weights, said = read_weights(str(tmp_path / "any.name"))
    assert "torchvision's names" in said
    expected = rename(state, TORCHVISION)
    scale = torch.tensor([0.225 / 0.229, 0.225 / 0.224, 1]).view(3, 1, 1)
    torch.testing.assert_close(weights.pop("stem.conv.weight"), expected.pop("stem.conv.weight") * scale)
    assert_same(weights, expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_pyslowfast_file(tmp_path, dims):
    state = thin("bn", dims).state_dict()
    content = {"epoch": 118, "model_state": {slowfast_name(key): tensor for key, tensor in state.items()}}
    content |= {"optimizer_state": {"state": {}}, "cfg": "BN:\n  USE_PRECISE_STATS: true\n"}
    assert {"s5.pathway0_res1.branch2.b_bn.running_var", "s2.pathway0_res0.branch1_bn.bias"} <= content[
        "model_state"
    ].keys()
    content["model_state"]["s3.pathway0_nonlocal1.conv_theta.weight"] = torch.zeros(4, 8, 1, 1, 1)
    torch.save(content, tmp_path / "x.pyth")
    weights, said = read_weights(str(tmp_path / "x.pyth"))
    assert "PySlowFast" in said and "its input is ours" in said
    assert_same(weights, state | {"s3.pathway0_nonlocal1.conv_theta.weight": torch.zeros(4, 8, 1, 1, 1)})
    with pytest.raises(UserError, match="fit nowhere: 1 .s3.pathway0_nonlocal1.conv_theta.weight"):
        initialize(thin("bn", 3), weights)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_video_nonlocal_net_file(tmp_path, dims, wrapped):
    state = our_keys("bn", dims)
    blobs = numpy_blobs(state)
    assert {"conv1_w", "res_conv1_bn_riv", "res4_5_branch2a_bn_s", "res3_0_branch1_bn_rm", "pred_b"} <= blobs.keys()
    blobs["pred_w"] = blobs["pred_w"].reshape(7, 256, *(1,) * dims)
    blobs |= {"conv1_w_momentum": blobs["conv1_w"], "lr": np.float32(0.01), "model_iter": np.array([400000])}
    blobs["nonlocal_conv3_1_theta_w"] = np.zeros((4, 8, 1, 1, 1), "float32")
    weights, said = read_weights(write(tmp_path / "x.pkl", {"blobs": blobs} if wrapped else blobs))
    assert "video-nonlocal-net" in said and "its input is ours" in said and "not padded" in said
    assert weights.pop("nonlocal_conv3_1_theta_w").shape == (4, 8, 1, 1, 1)
    assert_same(weights, state)


def test_blocks_of_batch_norm_without_statistics(tmp_path):
    """video-nonlocal-net's affine networks can be told from Detectron's R-50.pkl by their kernels alone."""
    for dims in (2, 3):
        blobs = {key: a for key, a in numpy_blobs(our_keys("bn", dims)).items() if not key.endswith(("_rm", "_riv"))}
        path = write(tmp_path / "x.pkl", blobs)
        if dims == 2:
            with pytest.raises(UserError, match="strides are on the 1x1"):
                read_weights(path)
            continue
        model = ResNet(7, nn.BatchNorm3d, width=8)
        report = initialize(model, read_weights(path)[0], drop=("*.running_*",))
        assert all(re.search("running_|num_batches", key) for key in report.new)
        assert torch.all(model.stem.norm.running_var == 1) and torch.all(model.stem.norm.running_mean == 0)


@torch.no_grad()
def test_detectron_group_norm_file(tmp_path):
    state = our_keys("gn", 2)
    blobs = detectron_blobs(state)
    assert {"conv1_gn_s", "res5_2_branch2c_gn_b", "res2_0_branch1_gn_s", "res4_5_branch2a_w", "pred_w"} <= blobs.keys()
    weights, said = read_weights(write(tmp_path / "x.pkl", {"blobs": blobs, "cfg": "MODEL:\n"}))
    assert "Detectron" in said and "BGR to RGB" in said and "57.375" in said
    kernel = weights.pop("stem.conv.weight")
    torch.testing.assert_close(kernel, state["stem.conv.weight"].flip(1) * 57.375)
    assert_same(weights, {key: tensor for key, tensor in state.items() if key != "stem.conv.weight"})
    # its network on its input, BGR of 255 minus the means, against ours on ours: they differ by the offset that is said
    assert "plus -0.140, -0.021, +0.205 (R, G, B)" in said
    rgb, u = pictures()
    theirs = 255 * rgb.flip(1) - DETECTRON_BGR.view(3, 1, 1)
    offset = ((114.75 - DETECTRON_BGR) / 57.375).flip(0).view(3, 1, 1)
    expected = F.conv2d(theirs, torch.from_numpy(blobs["conv1_w"]), stride=2)
    assert largest_difference(F.conv2d(u + offset, kernel, stride=2), expected) <= 1e-5


# --- our own files, other sources ---


def test_our_own_checkpoint(tmp_path):
    state = thin("gn", 3).state_dict()
    checkpoint = {"model": state, "optimizer": {}, "step": 42, "config": {"data": {"mean": (0.5,) * 3, "frames": 8}}}
    torch.save(checkpoint, tmp_path / "last.pt")
    weights, said = read_weights(str(tmp_path / "last.pt"))
    assert_same(weights, state)
    assert "step 42" in said and "data.mean=[0.5, 0.5, 0.5]" in said
    torch.save(state, tmp_path / "bare.pt")
    assert_same(read_weights(str(tmp_path / "bare.pt"))[0], state)


def test_an_own_network_of_another_kind_is_read_too(tmp_path):
    torch.save({"model": {"conv.0.weight": torch.ones(1)}, "step": 1, "config": {}}, tmp_path / "vgg.pt")
    assert list(read_weights(str(tmp_path / "vgg.pt"))[0]) == ["conv.0.weight"]


def test_torchvision_and_timm_are_asked_by_name(torchvision_net, timm_net, monkeypatch):
    import timm
    from torchvision import models

    asked = []
    monkeypatch.setattr(models, "get_model", lambda name, weights: asked.append((name, weights)) or torchvision_net)
    bn, _ = read_weights("torchvision:resnet50")
    read_weights("torchvision:resnet50:IMAGENET1K_V1")
    assert asked == [("resnet50", "DEFAULT"), ("resnet50", "IMAGENET1K_V1")]
    assert "res5.2.norm_c.running_var" in bn
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or timm_net)
    gn, _ = read_weights("timm:resnet50_gn.a1h_in1k")
    assert asked[-1] == ("resnet50_gn.a1h_in1k", True)
    assert "res5.2.norm_c.weight" in gn
    other = SimpleNamespace(pretrained_cfg={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: other)
    with pytest.raises(UserError, match=r"timm:x takes mean and std \(\(0.5"):
        read_weights("timm:x")


@pytest.mark.parametrize(("library", "function"), [("torchvision.models", "get_model"), ("timm", "create_model")])
def test_a_library_that_is_absent_or_offline(library, function, monkeypatch):
    module = pytest.importorskip(library)
    source = f"{library.split('.')[0]}:resnet50"

    def offline(*_args, **_kwargs):
        raise OSError("<urlopen error [Errno 111] Connection refused>\nmore")

    monkeypatch.setattr(module, function, offline)
    with pytest.raises(UserError, match=rf"{source}: unavailable \(<urlopen error .*; check the name and the network"):
        read_weights(source)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match="pip install"):
        read_weights(source)


def test_unknown_names_of_torchvision_and_timm():
    for source in ("torchvision:resnot50", "torchvision:resnet50:V9", "timm:resnot50"):
        pytest.importorskip(source.split(":")[0])
        with pytest.raises(UserError, match=f"{source}: unavailable"):
            read_weights(source)


# --- wrappers ---


def before(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def moco(state: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, object]:
    head = {f"fc.{layer}.{kind}": torch.zeros(3, 3) for layer in (0, 2) for kind in ("weight", "bias")}
    query, key = without_head(state) | head, without_head(other) | head
    queue = {"module.queue": torch.zeros(4, 9), "module.queue_ptr": torch.zeros(1)}
    return {"state_dict": before("module.encoder_q.", query) | before("module.encoder_k.", key) | queue}


WRAPPED = {  # what people write, from (the network's weights, another network's) -> content; where it is; what is left
    "epochs": (lambda state, _: {"epoch": 3, "model_state_dict": state, "loss": 0.5}, "model_state_dict", None),
    "compiled": (lambda state, _: before("_orig_mod.", state), "_orig_mod.", None),
    "compiled DDP": (lambda state, _: before("_orig_mod.module.", state), "_orig_mod.module.", None),
    "DDP, compiled": (lambda state, _: before("module._orig_mod.", state), "module._orig_mod.", None),
    "wrapped DDP": (lambda state, _: {"model": before("model.module.", state)}, "model, model.module.", None),
    "net": (lambda state, _: {"net": state, "acc": 93.0}, "net", None),
    "net.": (lambda state, _: before("net.", state), "net.", None),
    "backbone.": (lambda state, _: before("backbone.", state), "backbone.", None),
    "encoder_q.": (lambda state, _: before("encoder_q.", state), "encoder_q.", None),
    "DeepSpeed": (lambda state, _: {"module": before("model.", state)}, "module, model.", None),
    "a name of one's own": (lambda state, _: {"run": {"mine": before("a.b.c.", state)}}, "run, mine, a.b.c.", None),
    "MoCo v2": (
        moco,
        "state_dict, module.encoder_q.",
        "module.encoder_q.fc (4), module.encoder_k (322), module.queue, module.queue_ptr",
    ),
    "Lightning": (
        lambda state, _: {"state_dict": before("model.", state) | {"loss.weight": torch.ones(7)}, "callbacks": {}},
        "state_dict, model.",
        "loss",
    ),
    "compiled and sharded parts": (
        lambda state, _: {
            re.sub(r"(layer\d\.)", r"\1_orig_mod.", re.sub(r"(\.\d\.)", r"\1_fsdp_wrapped_module.", key)): tensor
            for key, tensor in before("net.", state).items()
        },
        "_fsdp_wrapped_module. within names, _orig_mod. within names, net.",
        None,
    ),
    "a module twice": (
        lambda state, _: before("backbone.", without_head(state)) | before("model.0.", without_head(state)),
        "backbone.",
        "model (318)",
    ),
    "its average": (
        lambda state, other: {"state_dict": state, "ema_state_dict": other},
        "state_dict",
        "ema_state_dict",
    ),
    "timm's average": (
        lambda state, other: {"state_dict_ema": other, "state_dict": state},
        "state_dict",
        "state_dict_ema",
    ),
    "only an average": (
        lambda state, _: {"model_ema": {"n_averaged": torch.tensor(3)} | before("module.", state)},
        "model_ema, module.",
        "n_averaged",
    ),
    "DINO": (
        lambda state, other: {"teacher": before("backbone.", other), "student": before("module.backbone.", state)},
        "student, module.backbone.",
        "teacher, backbone.",
    ),
    "optimizer": (
        lambda state, _: {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}, "params": state},
        "params",
        None,
    ),
    "a head of two layers": (
        lambda state, _: without_head(state) | {"fc.1.weight": torch.zeros(5, 256), "fc.1.bias": torch.zeros(5)},
        None,
        "fc (2)",
    ),
    "a head beside": (
        lambda state, _: before("encoder.", without_head(state)) | {"head.weight": state["fc.weight"]},
        "encoder.",
        None,
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_network_is_found_in_any_wrapper(kind):
    wrap, place, left_out = WRAPPED[kind]
    state = thin("bn", 2).state_dict()
    theirs, other = ({torchvision_name(k): t for k, t in s.items()} for s in (state, thin("bn", 2).state_dict()))
    content = wrap(theirs, other)
    weights, said = convert(content, "x")
    parts = said.split("; ")
    assert [part for part in parts if "unwrapped" in part] == ([f"unwrapped from {place}"] if place else [])
    assert [part for part in parts if "left out" in part] == ([f"left out: {left_out}"] if left_out else [])
    has_head = kind not in ("MoCo v2", "a module twice", "a head of two layers")
    assert ("head.fc.weight" in weights) == has_head
    for key, tensor in weights.items():
        if not key.startswith("stem."):
            assert torch.equal(tensor, state[key]), key
    assert len(weights) == len(state) - 2 * (not has_head) - (kind == "a head beside")
    initialize(thin("bn", 3), weights)


def test_our_own_names_behind_a_prefix():
    state = thin("gn", 3).state_dict()
    weights, said = convert({"state_dict": before("net.module.", state)}, "x")
    assert_same(weights, state)
    assert (
        said == f"{len(state)} tensors in video_gn's names, taken as they are; unwrapped from state_dict, net.module."
    )


def test_the_children_of_a_network_by_number():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.resnet50()
        numbered = nn.Sequential(*list(theirs.children())[:-1]).state_dict()
    renamed = rename(before("encoder.", numbered), SEQUENTIAL, "encoder.")
    expected = rename(without_head(theirs.state_dict()), TORCHVISION)
    assert {key: t.shape for key, t in renamed.items()} == {key: t.shape for key, t in expected.items()}


def test_of_several_networks_none_is_taken():
    one, other = ({torchvision_name(k): t for k, t in thin("bn", 2).state_dict().items()} for _ in range(2))
    with pytest.raises(UserError, match=r"x: holds several networks \(rgb and flow, module.\); save the one to take"):
        convert({"flow": before("module.", other), "rgb": one}, "x")


def test_a_file_of_others_with_a_config_and_a_step():
    """They are what a checkpoint of this package has, too."""
    state = thin("bn", 2).state_dict()
    content = {"model": {torchvision_name(k): t for k, t in state.items()}, "config": {}, "step": 3}
    torch.save(content, buffer := io.BytesIO())
    assert_read(buffer.getvalue(), state, "torchvision's names")


def assert_read(content: bytes, state: dict[str, Tensor], word: str) -> None:
    """Every weight behind the stem comes back from a file."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        weights, said = read_weights(file.name)
    assert word in said and weights.keys() == state.keys()
    for key in state:
        assert key.startswith("stem.") or torch.equal(weights[key], state[key]), key


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_weights(zipped):
    """Options of argparse and scores of NumPy, which torch does not read by itself; arrays as weights."""
    state = thin("bn", 2).state_dict()
    arrays = {torchvision_name(key): tensor.numpy() for key, tensor in state.items()}
    content = {"state_dict": arrays, "args": argparse.Namespace(lr=0.1), "best": np.float64(71.5), "n": np.int32(3)}
    torch.save(content, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
    assert_read(buffer.getvalue(), state, "unwrapped from state_dict")


@pytest.mark.parametrize("dims", [2, 3])
def test_mmaction_file(dims):
    state = thin("bn", dims).state_dict()
    theirs = {mmaction_name(key): tensor for key, tensor in state.items()}
    assert {  # of the published i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb
        "backbone.conv1.conv.weight",
        "backbone.conv1.bn.running_var",
        "backbone.layer1.0.downsample.conv.weight",
        "backbone.layer4.2.conv3.bn.num_batches_tracked",
        "cls_head.fc_cls.bias",
    } <= theirs.keys()
    torch.save({"meta": {"epoch": 100}, "state_dict": theirs}, buffer := io.BytesIO())
    assert_read(buffer.getvalue(), state, "mmaction2's names; unwrapped from state_dict, backbone.; conv1 scaled")


# --- safetensors ---


@pytest.mark.parametrize("names", [torchvision_name, transformers_name])
def test_safetensors(names):
    safetensors = pytest.importorskip("safetensors.torch")
    state = thin("bn", 2).state_dict()
    theirs = {names(key): tensor for key, tensor in state.items()}
    assert (
        names is torchvision_name
        or {  # of microsoft/resnet-50
            "resnet.embedder.embedder.convolution.weight",
            "resnet.embedder.embedder.normalization.running_mean",
            "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight",
            "resnet.encoder.stages.3.layers.2.layer.1.normalization.num_batches_tracked",
            "classifier.1.weight",
        }
        <= theirs.keys()
    )
    assert_read(
        safetensors.save(theirs, {"format": "pt"}), state, "torchvision's" if names is torchvision_name else "Hugging"
    )


def test_damaged_safetensors_and_a_missing_library(tmp_path, monkeypatch):
    """Eight bytes of length, JSON, numbers: by hand, so that no library is needed."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    path = tmp_path / "model.safetensors"
    if importlib.util.find_spec("safetensors") is not None:
        for content in (whole[:-1], whole[:30], whole[:9], whole + b"x"):
            path.write_bytes(content)
            with pytest.raises(UserError, match="model.safetensors: damaged"):
                read_weights(str(path))
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="model.safetensors: a safetensors file, .*; pip install safetensors"):
        read_weights(str(path))


# --- what is not weights ---


@pytest.mark.parametrize("network", ["resnet18", "vgg16", "slow_r50", "regnet", "empty"])
def test_another_network_is_not_recognized(network):
    with torch.device("meta"):
        if network in ("resnet18", "vgg16"):
            state = getattr(pytest.importorskip("torchvision.models"), network)().state_dict()
        elif network == "slow_r50":
            state = pytest.importorskip("pytorchvideo.models.hub").slow_r50().state_dict()
        else:
            state = {"stem.conv.weight": torch.zeros(1)} if network == "regnet" else {}
    some = next(iter(state), "no tensors")
    with pytest.raises(UserError, match=rf"no network that is known from its keys \({some}.* PySlowFast's names"):
        convert(state, "x")


def test_weights_of_a_gray_scale_network(torchvision_net):
    state = torchvision_net.state_dict()
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    with pytest.raises(UserError, match="1 channels, not RGB"):
        convert(state, "x")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    state = {torchvision_name(key): tensor for key, tensor in thin("bn", 2).state_dict().items()}
    state["layer1.0.conv1.weight"][0, 0] = math.nan
    state["bn1.running_var"][3] = -math.inf
    with pytest.raises(UserError, match=r"x: NaN or infinity in 2 of 320 .*\(bn1.running_var, layer1.0.conv1.weight\)"):
        convert({"model": state}, "x")
    model = thin("gn", 3).state_dict()
    model["res2.0.norm_a.bias"][0] = math.inf
    torch.save({"model": model, "step": 3, "config": {}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: NaN or infinity in 1 of 161 tensors \(res2.0.norm_a.bias\)"):
        read_weights(str(tmp_path / "last.pt"))


def network_files(path: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """Ways to save a complete network -> what the refusal says."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network = "holds a complete network as pickled objects"
    return {
        "torch.save": (lambda: torch.save(model, path), network),
        "in a dict": (lambda: torch.save({"model": model, "config": {}, "step": 1}, path), network),
        "old format": (lambda: torch.save(model, path, _use_new_zipfile_serialization=False), network),
        "other protocol": (lambda: torch.save(model, path, pickle_protocol=4), network),
        "DataParallel": (lambda: torch.save(nn.DataParallel(model), path), network),
        "pickle.dump": (lambda: path.write_bytes(pickle.dumps(model)), network),
        "weights by pickle.dump": (
            lambda: path.write_bytes(pickle.dumps(model.state_dict())),
            "written by pickle.dump",
        ),
        "TorchScript": (lambda: torch.jit.save(torch.jit.script(model), path), "a TorchScript archive"),
        "trace": (lambda: torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), path), "a TorchScript archive"),
        "torch.export": (
            lambda: torch.export.save(torch.export.export(model, (torch.zeros(1, 2),)), path),
            "a program of torch.export",
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", network_files(Path()))
def test_a_complete_network_is_called_what_it_is(tmp_path, kind):
    """With the remedy, and without torch's colors and its advice to load the file unsafely."""
    path = tmp_path / "model.pt2"
    save, words = network_files(path)[kind]
    save()
    for read in (read_weights, ckpt.load) if "pickle.dump" not in kind else (read_weights,):
        with pytest.raises(UserError, match=f"model.pt2: .*{words}.*save its weights: torch.save") as caught:
            read(path if read is ckpt.load else str(path))
        message = str(caught.value)
        assert message.isprintable() and "weights_only" not in message and "trust" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (b"\x08\x07\x12\x07pytorch", "a protocol buffer, as of ONNX"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS.*git lfs pull"),
        (b'{"metadata": {}, "weight_map": {}}', "JSON, such as the index"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, words):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"model.pth: {words}"):
        read_weights(str(path))


def test_archives_are_called_what_they_are(tmp_path):
    path = tmp_path / "model.pth.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "x.py")
    with pytest.raises(UserError, match="a tar archive; unpack it"):
        read_weights(str(path))
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    with pytest.raises(UserError, match=r"a zip archive of other files \(a.npy\)"):
        read_weights(str(path.with_suffix(".npz")))


class Bomb:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def bombs(mark: Path) -> dict[str, object]:
    return {
        "system": Bomb(os.system, f"touch {mark}"),
        "eval": Bomb(eval, f"open({str(mark)!r}, 'w')"),
        "open": Bomb(open, str(mark), "w"),
        "numpy": Bomb(np.save, str(mark), 1),
        "class": SimpleNamespace(a=1),
        "objects": np.array([None, {}], dtype=object),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", bombs(Path()))
def test_a_pickle_cannot_run_code(tmp_path, kind, protocol):
    mark = tmp_path / "mark"
    blobs = detectron_blobs({"stem.conv.weight": torch.zeros(1)}) | {"conv1_b": bombs(mark)[kind]}
    path = write(tmp_path / "x.pkl", {"blobs": blobs}, protocol)
    with pytest.raises(UserError, match="holds more than arrays and plain values"):
        read_weights(path)
    assert not mark.exists() and not mark.with_name("mark.npy").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_cannot_run_code(tmp_path, zipped):
    mark = tmp_path / "mark"
    torch.save({"a": bombs(mark)["system"]}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds more than"):
        read_weights(str(tmp_path / "x.pt"))
    assert not mark.exists()


def test_damaged_files(tmp_path):
    whole = pickle.dumps(numpy_blobs(our_keys("bn", 2)), protocol=2)
    torch.save({"a": torch.zeros(99)}, buffer := io.BytesIO())
    flipped = bytearray(buffer.getvalue())
    flipped[flipped.find(bytes(99 * 4)) + 50] = 1  # in the middle of the numbers
    contents = (b"", b"conv1_w", whole[:-1], whole[: len(whole) // 2], pickle.dumps([1, 2]))
    contents += (buffer.getvalue()[:-30], bytes(flipped))
    for content in contents:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match="damaged|not weights by name"):
            read_weights(str(tmp_path / "x"))
    with pytest.raises(UserError, match="no such file of weights"):
        read_weights(str(tmp_path / "absent.pkl"))
    with pytest.raises(UserError, match="a folder; give the file of weights in it"):
        read_weights(str(tmp_path))


def python2_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """Protocol 2 as Python 2 and its NumPy wrote it: byte strings, opcode by opcode."""
    out = b"\x80\x02}("
    for name, array in arrays.items():
        out += b"U" + bytes([len(name)]) + name.encode()
        out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        out += b"(K\x01(" + b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"t"
        out += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        out += b"\x89T" + struct.pack("<i", array.nbytes) + array.tobytes() + b"tb"
    return out + b"u."


def test_a_pickle_of_python_2(tmp_path):
    state = our_keys("bn", 3)
    blobs = numpy_blobs(state)
    content = python2_pickle(blobs)
    assert all(np.array_equal(a, blobs[k]) for k, a in pickle.loads(content, encoding="latin1").items())  # it is one
    (tmp_path / "x.pkl").write_bytes(content)
    assert_same(read_weights(str(tmp_path / "x.pkl"))[0], state)


NUMBERS = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i4", ">i8", "|u1", "|b1"])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 5), st.booleans())
def test_arrays_of_any_kind_and_protocol_come_back(tmp_path_factory, data, protocol, columns_first):
    shape = data.draw(hnp.array_shapes(max_dims=5, max_side=3))
    array = data.draw(hnp.arrays(data.draw(NUMBERS), shape))
    array = np.asfortranarray(array) if columns_first else array
    path = tmp_path_factory.mktemp("p") / "x.pkl"
    write(path, collections.OrderedDict(x=array, y=[1, 2.5, "s", None, (True, {})]), protocol)
    content = load_pickle(path)
    got = content["x"].tensor.numpy()
    assert got.dtype == array.dtype.newbyteorder("=") and got.shape == array.shape
    np.testing.assert_array_equal(got, array)
    assert content["y"] == [1, 2.5, "s", None, (True, {})]


# --- the tool ---


def test_convert_weights_tool(tmp_path):
    state = our_keys("gn", 2)
    source, out = write(tmp_path / "R-50-GN.pkl", {"blobs": detectron_blobs(state)}), str(tmp_path / "out.pt")
    Path(out).write_text("mine")
    refused = tool("tools/convert_weights.py", source, out)
    assert (refused.returncode, "--force" in refused.stderr, Path(out).read_text()) == (2, True, "mine")
    done = tool("tools/convert_weights.py", source, out, "--force")
    assert done.returncode == 0, done.stderr
    assert "Detectron" in done.stdout and f"out.pt: {len(state)} tensors" in done.stdout
    weights, said = read_weights(out)
    assert said == f"a converted file: {done.stdout.splitlines()[0]}"
    assert_same(weights, read_weights(source)[0])
    report = initialize(thin("gn", 3), weights)
    assert not (report.new or report.dropped)
    failed = tool("tools/convert_weights.py", str(tmp_path / "absent.pkl"), str(tmp_path / "new.pt"))
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and not (tmp_path / "new.pt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["R-50-GN.pkl", "out.pt"]
