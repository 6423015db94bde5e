"""What a network costs, against the published numbers and counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from video_gn.config import Config, DataConfig, ModelConfig
from video_gn.models.info import describe, table

DENSE_STAGES = {
    "stem": [8, 55, 55],
    "res2": [8, 55, 55],
    "pool2": [4, 55, 55],
    "res3": [4, 28, 28],
    "res4": [4, 14, 14],
    "res5": [4, 7, 7],
}


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return describe(Config(output_dir="unused"))


def tiny(norm: str, **model: Any) -> dict[str, Any]:
    """Stem and four blocks, width 4, on clips of 16 frames of 64 x 64."""
    section = ModelConfig(
        blocks=(1, 1, 1, 1), width=4, norm=norm, channels_per_group=2, num_classes=5, **{"dropout": 0.0} | model
    )
    data = DataConfig(frames=16, crop=64, short_side=(64, 64))
    return describe(Config(output_dir="unused", model=section, data=data))


# (channels in, channels out, kernel volume, cells of the output) of the tiny net's convolutions: conv1; then a, b, c
# and shortcut of a block of each stage. 16 x 64 x 64 -> conv1 8 x 32 x 32 -> pool 4 x 15 x 15 -> pool2 2 x 15 x 15.
TINY_CONVOLUTIONS = [
    (3, 4, 5 * 7 * 7, 8 * 32 * 32),
    *[(4, 4, 3, 4 * 225), (4, 4, 9, 4 * 225), (4, 16, 1, 4 * 225), (4, 16, 1, 4 * 225)],
    *[(16, 8, 3, 2 * 225), (8, 8, 9, 2 * 64), (8, 32, 1, 2 * 64), (16, 32, 1, 2 * 64)],
    *[(32, 16, 3, 2 * 64), (16, 16, 9, 2 * 16), (16, 64, 1, 2 * 16), (32, 64, 1, 2 * 16)],
    *[(64, 32, 1, 2 * 16), (32, 32, 9, 2 * 4), (32, 128, 1, 2 * 4), (64, 128, 1, 2 * 4)],
]


def test_the_papers_network(paper: dict[str, Any]) -> None:
    assert round(paper["parameters"] / 1e6, 2) == 28.04
    assert round(paper["gmacs"], 2) == 32.83
    assert paper["input"] == [32, 224, 224]
    assert paper["stages"] == DENSE_STAGES
    assert list(paper["stages"]) == list(DENSE_STAGES)  # input to output


@pytest.mark.parametrize(
    ("frames", "stem", "gmacs", "shapes"),
    [
        (64, "dense", 65.66, {"stem": [16, 55, 55], "res5": [8, 7, 7]}),
        (8, "sparse", 28.11, {"stem": [8, 55, 55], "pool2": [4, 55, 55], "res5": [4, 7, 7]}),
    ],
)
def test_other_clips(paper: dict[str, Any], frames: int, stem: str, gmacs: float, shapes: dict[str, list[int]]) -> None:
    config = Config(output_dir="unused", model=ModelConfig(stem=stem), data=DataConfig(frames=frames))
    info = describe(config)
    assert round(info["gmacs"], 2) == gmacs
    assert info["parameters"] == paper["parameters"]
    assert {name: info["stages"][name] for name in shapes} == shapes


def test_parameters_by_hand() -> None:
    weights = sum(inputs * outputs * kernel for inputs, outputs, kernel, _ in TINY_CONVOLUTIONS)
    channels = sum(outputs for _, outputs, _, _ in TINY_CONVOLUTIONS)
    assert tiny("gn")["parameters"] == weights + 2 * channels + 128 * 5 + 5  # gamma and beta; FC
    assert tiny("none")["parameters"] == weights + channels + 128 * 5 + 5  # biases; FC


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_multiply_adds_by_hand(norm: str) -> None:
    products = sum(inputs * outputs * kernel * cells for inputs, outputs, kernel, cells in TINY_CONVOLUTIONS)
    assert tiny(norm)["gmacs"] == pytest.approx((products + 128 * 5) / 1e9, rel=1e-12)


def test_kept_activations_by_hand() -> None:
    """Bytes that the backward pass needs: 4 a float, 8 an index of a max-pool."""
    clip, conv1 = 3 * 16 * 64 * 64, 4 * 8 * 1024
    pools = (4 * 4 * 225) * (4 + 8) + (16 * 2 * 225) * (4 + 8)  # outputs, which are inputs of convolutions, and indices
    kept = 0
    for block in range(4):  # a and b after their ReLU, and the block's output, which is as large as c's
        kept += sum(outputs * cells for _, outputs, _, cells in TINY_CONVOLUTIONS[1 + 4 * block : 4 + 4 * block])
    without_norm = 4 * (clip + conv1 + kept + 128) + pools  # 128: the FC's input
    assert tiny("none")["activation_mib"] * 2**20 == without_norm

    inputs = 4 * sum(outputs * cells for _, outputs, _, cells in TINY_CONVOLUTIONS)  # each norm keeps its input
    statistics = 8 * sum(outputs // 2 for _, outputs, _, _ in TINY_CONVOLUTIONS)  # mean and 1 / deviation of each group
    assert tiny("gn")["activation_mib"] * 2**20 == without_norm + inputs + statistics


def test_dropout_keeps_a_mask() -> None:
    more = tiny("gn", dropout=0.5)["activation_mib"] - tiny("gn")["activation_mib"]
    assert 0 < more * 2**20 <= 128 * 4


def test_table(paper: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in table(paper).splitlines()]
    assert "parameters 28.04 M" in lines
    assert any(line.startswith("GMACs 32.83 ") for line in lines)
    assert [line for line in lines if line.startswith(("input", "stem", "res", "pool"))] == [
        "input 32 x 224 x 224",
        "stem 8 x 55 x 55",
        "res2 8 x 55 x 55",
        "pool2 4 x 55 x 55",
        "res3 4 x 28 x 28",
        "res4 4 x 14 x 14",
        "res5 4 x 7 x 7",
    ]


def test_sync_bn_costs_the_same_in_a_process_group() -> None:
    """As at the start of a run of several ranks."""
    alone = tiny("sync_bn")
    assert alone == tiny("bn")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert tiny("sync_bn") == alone
    finally:
        torch.distributed.destroy_process_group()
