"""The Network seam: a toy of 30 lines, entered by one line, does what every network does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn import models
from video_gn.config import Config, parse_config
from video_gn.engine.optim import build_optimizer
from video_gn.errors import UserError
from video_gn.features import pooled
from video_gn.inference import gradcam
from video_gn.models import Network, build_network
from video_gn.models.info import describe
from video_gn.norm import NormFactory, normalize


class Part(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.norm, self.conv(x), relu=True)


class Toy(Network):
    stages = ("early", "late")
    min_frames = 4

    def __init__(self, num_classes: int, norm: NormFactory) -> None:
        super().__init__()
        self.early, self.late = Part(3, 8, 2, norm), nn.Sequential(Part(8, 16, 2, norm), Part(16, 16, 1, norm))
        self.head = nn.Linear(16, num_classes)

    def classify(self, x: Tensor, window: int | None = None) -> Tensor:
        logits = self.head(x.flatten(2).mean(2))
        return logits if window is None else logits[:, None]

    def norms(self) -> Iterator[nn.Module]:
        return (part.norm for part in (self.early, *self.late))

    def feature_size(self, side: int) -> int:
        return -(-side // 4)


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "toy", lambda config, norm, dims: Toy(config.num_classes, norm))


def config(*overrides: str) -> Config:
    tree = {
        "output_dir": "runs/toy",
        "model": {"arch": "toy", "norm": "gn", "groups": 4, "num_classes": 5},
        "data": {"frames": 8, "stride": 1, "crop": 32, "short_side": [32, 40]},
    }
    return parse_config(tree, overrides)


def test_table_counts_and_shapes_by_hand() -> None:
    info = describe(config())
    convolutions = 27 * (3 * 8 + 8 * 16 + 16 * 16)
    assert info["parameters"] == convolutions + 2 * (8 + 16 + 16) + 16 * 5 + 5
    assert info["stages"] == {"early": [4, 16, 16], "late": [2, 8, 8]}
    multiply_adds = 27 * (3 * 8 * 4 * 16 * 16 + (8 * 16 + 16 * 16) * 2 * 8 * 8) + 16 * 5
    assert info["gmacs"] == pytest.approx(multiply_adds / 1e9)


def test_gammas_and_betas_have_their_own_weight_decay() -> None:
    model = build_network(config())
    optim = config("optim.weight_decay=0.1", "optim.norm_weight_decay=0.01").optim
    groups = {group["weight_decay"]: group["params"] for group in build_optimizer(model, optim, 0.1).param_groups[:2]}
    assert [p.dim() for p in groups[0.1]] == [5, 5, 5]
    assert sorted(len(p) for p in groups[0.01]) == [8, 8, 16, 16, 16, 16]


def test_features_are_the_mean_of_a_stages_output() -> None:
    model, clips = build_network(config()).eval(), torch.randn(2, 3, 8, 32, 32)
    for stage, channels in (("early", 8), ("late", 16)):
        expected = model.early(clips) if stage == "early" else model.late(model.early(clips))
        found = pooled(model, clips, stage)
        assert found.shape == (2, channels)
        torch.testing.assert_close(found, expected.mean((2, 3, 4)))


def test_gradcam_of_the_last_stage_by_the_heads_weights() -> None:
    """Behind an average pool and a linear layer, dy/dA_c is the layer's weight over the map's number of cells."""
    model, clips = build_network(config()).eval(), torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        output = model.late(model.early(clips))
        weights = model.head.weight[3] / output[0, 0].numel()
        expected = F.relu(torch.einsum("c,ncthw->nthw", weights, output))
    torch.testing.assert_close(gradcam(model, clips, 3, "late"), expected)


@pytest.mark.parametrize("stages", ["early", "late", "early, late"])
def test_recomputed_stages_give_the_same_gradients_and_statistics(stages: str) -> None:
    clips = torch.randn(2, 3, 8, 32, 32)
    states = []
    for overrides in ((), (f"train.checkpoint_stages=[{stages}]",)):
        torch.manual_seed(0)
        model = build_network(config("model.norm=bn", *overrides))
        model(clips).square().sum().backward()
        states.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_it_can_be_exported() -> None:
    model, clips = build_network(config()).eval(), torch.randn(2, 3, 8, 32, 32)
    program = torch.export.export(model, (clips,))
    torch.testing.assert_close(program.module()(clips), model(clips))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.frames=3"], ["data.frames 3", "at least 4"]),
        (["model.arch=toys"], ["'toys'", "resnet50, resnet101, vgg16, toy"]),
        (["train.checkpoint_stages=[res2]"], ["'res2'", "early, late"]),
        (["model.arch=resnet50", "model.groups=32", "data.frames=7"], ["data.frames 7", "stem dense", "at least 8"]),
        (["model.arch=resnet50", "data.frames=1", "model.stem=sparse"], ["data.frames 1", "sparse", "at least 2"]),
        (["model.arch=resnet50", "data.frames=1", "model.stem=slowfast"], ["data.frames 1", "slowfast", "at least 2"]),
        (["model.arch=vgg16"], ["vgg16 is for images", "data.kind: images"]),
    ],
)
def test_what_a_network_cannot_do_is_said(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_network(config(*overrides))
    assert all(word in str(caught.value) for word in words), caught.value
