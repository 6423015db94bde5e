"""The network against pytorchvideo's, and its roles whatever the norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from video_gn.config import ModelConfig
from video_gn.models import build_model
from video_gn.models.resnet import ResNet, is_inflated
from video_gn.norm import norm_factory

THIN = {"blocks": (1, 1, 1, 1), "width": 8, "num_classes": 5, "channels_per_group": 4}


def thin(**changes: object) -> ResNet:
    return build_model(ModelConfig(**(THIN | changes)))  # type: ignore[arg-type]


def from_pytorchvideo(key: str) -> str:
    """Our name of one of pytorchvideo's I3D parameters; its block 2 is the pool."""
    stages = {"0": "stem", "1": "res2", "3": "res3", "4": "res4", "5": "res5", "6": "head"}
    _, number, rest = key.split(".", 2)
    for theirs, ours in (
        ("res_blocks.", ""),
        ("branch2.", ""),
        ("branch1_conv.", "shortcut.conv."),
        ("branch1_norm.", "shortcut.norm."),
        ("proj.", "fc."),
    ):
        rest = rest.replace(theirs, ours)
    return f"{stages[number]}.{rest}"


def test_logits_equal_pytorchvideo_i3d_r50():
    hub = pytest.importorskip("pytorchvideo.models.hub")
    torch.manual_seed(0)
    theirs = hub.i3d_r50(pretrained=False).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():  # running statistics and gammas that say something
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var") or (".norm" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
    ours = build_model(ModelConfig(norm="bn", stem="slowfast")).eval()
    ours.load_state_dict({from_pytorchvideo(key): value for key, value in theirs.state_dict().items()})
    clip = torch.randn(1, 3, 8, 224, 224)
    with torch.no_grad():
        expected, got = theirs(clip), ours(clip)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_every_block_starts_as_its_shortcut_whatever_the_norm(norm):
    model = thin(norm=norm)
    for block in model.blocks():
        assert torch.count_nonzero(block.last_norm.weight) == 0
        assert torch.all(block.norm_a.weight == 1) and torch.all(block.norm_b.weight == 1)
    x = torch.randn(1, 8, 4, 6, 6)
    block = next(model.blocks())
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_norm_parameters_are_all_that_is_neither_conv_nor_fc(norm):
    model = thin(norm=norm)
    plain = {
        id(p) for m in model.modules() if isinstance(m, (nn.Conv3d, nn.Linear)) for p in m.parameters(recurse=False)
    }
    assert {id(p) for p in model.norm_parameters()} == {id(p) for p in model.parameters()} - plain


def test_a_norm_of_the_users_own():
    class Scale(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels))

        def forward(self, x):
            return x * self.weight.view(-1, 1, 1, 1)

    model = ResNet(5, Scale, blocks=(1, 1, 1, 1), width=8)
    assert torch.count_nonzero(next(model.blocks()).last_norm.weight) == 0
    assert len(list(model.norm_parameters())) == 1 + 4 * 3 + 4
    assert model(torch.randn(1, 3, 8, 32, 32)).shape == (1, 5)


def test_without_norm_convolutions_have_a_bias():
    model = thin(norm="none")
    assert model.stem.conv.bias is not None and not list(model.norm_parameters())
    assert thin(norm="gn").stem.conv.bias is None


def test_inflated_kernels_are_those_of_the_baseline():
    expected = {2: [1, 1, 1], 3: [1, 0, 1, 0], 4: [1, 0, 1, 0, 1, 0], 5: [0, 1, 0]}  # facts of resnet_video_org.py
    assert {s: [int(is_inflated(s, b)) for b in range(len(row))] for s, row in expected.items()} == expected
    with torch.device("meta"):
        i3d, c2d = (build_model(ModelConfig(temporal=t)) for t in ("i3d", "c2d"))
    kernels = [[b.conv_a.kernel_size[0] for b in i3d.get_submodule(f"res{s}")] for s in expected]
    assert kernels == [[1 + 2 * on for on in row] for row in expected.values()]
    assert i3d.stem.conv.kernel_size == (5, 7, 7)
    assert {m.kernel_size[0] for m in c2d.modules() if isinstance(m, nn.Conv3d)} == {1}
    assert (c2d.stem.conv.stride, c2d.pool2.stride) == ((2, 2, 2), (2, 1, 1))


def test_fully_convolutional_head():
    model = thin().eval()
    nn.init.normal_(model.head.fc.weight)
    x = torch.randn(2, 3, 8, 96, 128)
    with torch.no_grad():
        maps = model.features(x)
        window = model.feature_size(64)
        assert (window, maps.shape[3:]) == (2, (3, 4))
        logits = model(x, window)
        assert logits.shape == (2, 2 * 3, 5)
        corner = maps[:, :, :, 1:3, 2:4].mean((2, 3, 4))  # the last location
        torch.testing.assert_close(logits[:, -1], model.head.fc(corner))
        torch.testing.assert_close(model(x, 99)[:, 0], model(x))  # a window larger than the map is the whole map


@pytest.mark.parametrize("stem", ["dense", "sparse", "slowfast"])
@pytest.mark.parametrize("side", [32, 64, 112, 171, 224, 256])
def test_feature_size_is_the_size_of_the_features(stem, side):
    with torch.device("meta"):
        model = thin(stem=stem)
        assert model.features(torch.empty(1, 3, 8, side, side)).shape[-1] == model.feature_size(side)


def test_initialization():
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=32, groups=8, num_classes=50))
    conv = model.get_submodule("res5")[0].conv_b
    fan_out = conv.out_channels * 9
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.count_nonzero(model.head.fc.bias) == 0


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, nn.SyncBatchNorm])  # the latter insists on a count
def test_statistics_count_once_where_blocks_run_again(norm):
    torch.manual_seed(0)
    plain = ResNet(4, norm, blocks=(1, 1, 1, 1), width=8, dropout=0)
    again = copy.deepcopy(plain)
    again.checkpoint_stages = ("res2", "res5")
    x = torch.randn(2, 3, 8, 32, 32)
    for net in (plain, again):
        net(x).sum().backward()
    expected = plain.state_dict()
    assert expected["res2.0.norm_a.num_batches_tracked"] == 1
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_norm_factory_is_used_for_every_norm():
    made = []
    ResNet(5, lambda channels: made.append(channels) or norm_factory("ln")(channels), blocks=(1, 1, 1, 1), width=8)
    assert sorted(made) == sorted([8] + [c for w in (8, 16, 32, 64) for c in (w, w, 4 * w, 4 * w)])
