"""Inflation: a still video gives the image's logits; every key is accounted for; nothing is loaded by halves."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import NORMS, speak
from video_gn.errors import UserError
from video_gn.models.inflate import inflate, initialize
from video_gn.models.resnet import ResNet


def thin(norm: str, dims: int, num_classes: int = 7, **changes: object) -> ResNet:
    options = {"blocks": (1, 2, 1, 2), "width": 8, "dropout": 0.0} | changes
    return ResNet(num_classes, NORMS[norm], dims=dims, **options)


def replicate_in_time(model: nn.Module) -> None:
    """Let the temporal padding repeat the first and last maps, in place of zeros."""
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv3d)):
        pad, conv.padding = conv.padding[0], (0, *conv.padding[1:])
        conv.register_forward_pre_hook(
            lambda _module, inputs, pad=pad: F.pad(inputs[0], (0, 0, 0, 0, pad, pad), mode="replicate")
        )


def still(images: Tensor, frames: int) -> Tensor:
    return images[:, :, None].expand(-1, -1, frames, -1, -1).contiguous()


def gap(norm: str, stem: str, train: bool, *, replicate: bool = True) -> float:
    """Largest difference of the logits, in units of their largest."""
    torch.manual_seed(0)
    image_net = speak(thin(norm, 2, stem=stem)).train(train)
    clip_net = thin(norm, 3, stem=stem).train(train)
    initialize(clip_net, image_net.state_dict())
    if replicate:
        replicate_in_time(clip_net)
    images = torch.randn(2, 3, 80, 64)
    with torch.no_grad():
        expected, got = image_net(images), clip_net(still(images, 16))
    assert (expected - expected.mean(0)).abs().max() > 1e-2 * expected.abs().max()  # the logits tell the images apart
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("stem", ["dense", "sparse", "slowfast"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_still_video_gives_the_images_logits(norm, stem):
    assert gap(norm, stem, train=False) <= 1e-4


@pytest.mark.parametrize("stem", ["dense", "sparse", "slowfast"])
@pytest.mark.parametrize("norm", ["bn", "brn"])
def test_a_still_video_gives_the_images_logits_with_batch_statistics(norm, stem):
    assert gap(norm, stem, train=True) <= 1e-3


@pytest.mark.parametrize(("norm", "train"), [("bn", False), ("bn", True), ("gn", False)])
def test_zero_padding_in_time_breaks_the_identity(norm, train):
    """By how much: docs/weights.md."""
    assert gap(norm, "dense", train, replicate=False) > 1e-2


@pytest.mark.parametrize("length", [1, 3, 5])
def test_an_inflated_kernel_repeats_the_kernel(length):
    kernel = torch.randn(4, 3, 7, 7)
    inflated = inflate(kernel, length)
    assert inflated.shape == (4, 3, length, 7, 7)
    for t in range(length):
        torch.testing.assert_close(inflated[:, :, t], kernel / length)


@pytest.mark.parametrize("norm", NORMS)
def test_every_key_is_in_one_list_and_holds_what_the_list_says(norm):
    image_net, clip_net = speak(thin(norm, 2)), thin(norm, 3, num_classes=9)
    before = {key: tensor.clone() for key, tensor in clip_net.state_dict().items()}
    state = image_net.state_dict() | {"extra.weight": torch.zeros(1)}
    report = initialize(clip_net, state, drop=("extra.*",))
    after = clip_net.state_dict()
    lists = (report.inflated, report.copied, report.new, report.dropped)
    assert sorted(chain(*lists)) == sorted(before.keys() | state.keys())
    assert (report.new, report.dropped) == (["head.fc.weight", "head.fc.bias"], ["extra.weight"])
    assert set(report.inflated) == {key for key, tensor in before.items() if tensor.dim() == 5}
    for key in report.copied:
        assert torch.equal(after[key], state[key]), key
    for key in report.new:
        assert torch.equal(after[key], before[key]), key
    table = str(report).splitlines()
    assert [line.split()[:2] for line in table] == [
        [name, str(len(keys))] for name, keys in zip(("inflated", "copied", "new", "dropped"), lists, strict=True)
    ]
    assert "stem.conv.weight" in table[0] and "head.fc.weight, head.fc.bias" in table[2] and "extra" in table[3]


def test_the_head_is_kept_where_classes_agree_and_new_as_a_whole_where_not():
    image_net = speak(thin("gn", 2))
    same, other = thin("gn", 3), thin("gn", 3, num_classes=3)
    assert "head.fc.weight" in initialize(same, image_net.state_dict()).copied
    assert torch.equal(same.head.fc.weight, image_net.head.fc.weight)
    assert initialize(other, image_net.state_dict()).new == ["head.fc.weight", "head.fc.bias"]
    state = {key: tensor for key, tensor in image_net.state_dict().items() if not key.startswith("head")}
    assert initialize(same, state).new == ["head.fc.weight", "head.fc.bias"]
    asked = initialize(same, image_net.state_dict(), drop=("head.*",))
    assert asked.new == ["head.fc.weight", "head.fc.bias"] and not asked.dropped


def test_equal_shapes_are_copied_also_between_clip_nets_and_of_other_dtypes():
    source, target = speak(thin("bn", 3)), thin("bn", 3)
    report = initialize(
        target, {key: t.half() if t.is_floating_point() else t for key, t in source.state_dict().items()}
    )
    assert not (report.inflated or report.new or report.dropped)
    assert target.stem.conv.weight.dtype == torch.float32
    torch.testing.assert_close(target.stem.conv.weight, source.stem.conv.weight, rtol=1e-3, atol=1e-4)


def test_batch_norm_counters_may_be_missing_or_too_many():
    state = speak(thin("bn", 2)).state_dict()
    without = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    report = initialize(thin("bn", 3), without)
    assert report.new and all(key.endswith("num_batches_tracked") for key in report.new)
    with pytest.raises(UserError, match="running_mean"):
        initialize(thin("gn", 3), state)
    report = initialize(thin("gn", 3), state, drop=("*.running_*",))
    assert {key.rsplit(".", 1)[1] for key in report.dropped} == {"running_mean", "running_var", "num_batches_tracked"}


def wrong_states() -> dict[str, tuple[dict[str, Tensor], str]]:
    state = thin("gn", 2).state_dict()
    return {
        "homeless": (
            state | {"nonlocal_conv3_1_theta_w": torch.zeros(1)},
            "fit nowhere: 1 (nonlocal_conv3_1_theta_w)",
        ),
        "homeless head": (state | {"head.proj.weight": torch.zeros(1)}, "fit nowhere: 1 (head.proj.weight"),
        "missing": (
            {key: tensor for key, tensor in state.items() if not key.startswith("res3")},
            "get nothing: 21 (res3.0.norm_a.weight, ",
        ),
        "wider": (
            thin("gn", 2, width=16).state_dict(),
            "stem.conv.weight [16, 3, 7, 7] into [8, 3, 5, 7, 7]",
        ),
        "other length": (thin("gn", 3, temporal="c2d").state_dict(), "[8, 3, 1, 7, 7] into [8, 3, 5, 7, 7]"),
        "other norm": (thin("none", 2).state_dict(), "fit nowhere: 23 (stem.conv.bias"),
        "nothing": ({}, "get nothing: "),
    }


@pytest.mark.parametrize("case", wrong_states())
def test_what_does_not_fit_is_named_and_nothing_is_loaded(case):
    state, words = wrong_states()[case]
    model = thin("gn", 3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialize(model, state)
    assert words in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_all_other_shapes_are_named_and_the_setting_that_leaves_keys_out():
    state = thin("gn", 2).state_dict()
    wrong = [key for key in state if key.startswith(("res3.0.conv", "res4.0.norm"))]
    state |= {key: torch.zeros(3) for key in wrong}
    with pytest.raises(UserError) as caught:
        initialize(thin("gn", 3), state)
    assert f"other shapes: {len(wrong)} (" in str(caught.value) and len(wrong) == 9
    assert all(f"{key} [3] into " in str(caught.value) for key in wrong)
    assert "model.init_drop" in str(caught.value)


def test_a_pattern_leaves_a_part_of_the_network_new():
    state = {key: tensor for key, tensor in thin("gn", 2).state_dict().items() if not key.startswith("res5")}
    report = initialize(thin("gn", 3), state, drop=("res5.*",))
    assert report.new and all(key.startswith("res5.") for key in report.new)
