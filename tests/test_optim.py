"""Batch plan and optimizer against the paper's cells and the update's formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from video_gn.config import Config, ModelConfig, OptimConfig, TrainConfig, parse_config
from video_gn.engine.optim import BatchPlan, build_optimizer, plan_batches
from video_gn.errors import UserError
from video_gn.models import build_model
from video_gn.models.resnet import ResNet

KINETICS_TRAIN = 234643


def config(**train: int | None) -> Config:
    return Config(output_dir="unused", train=TrainConfig(**train))


def thin_model(norm: str) -> ResNet:
    """Stem and four blocks of three convolutions and a shortcut: 17 convolutions, 17 norms, one FC."""
    return build_model(ModelConfig(blocks=(1, 1, 1, 1), width=4, norm=norm, channels_per_group=2, num_classes=3))


@pytest.mark.parametrize(
    ("clips", "ranks", "global_batch", "passes", "lr", "steps"),
    [
        (8, 1, 64, 8, 0.01, 3666),
        (8, 2, 64, 4, 0.01, 3666),
        (8, 4, 64, 2, 0.01, 3666),
        (8, 8, 64, 1, 0.01, 3666),
        (4, 1, 32, 8, 0.005, 7332),
        (4, 2, 32, 4, 0.005, 7332),
        (4, 8, 32, 1, 0.005, 7332),
    ],
)
def test_the_papers_batches(clips: int, ranks: int, global_batch: int, passes: int, lr: float, steps: int) -> None:
    plan = plan_batches(config(clips_per_gpu=clips), KINETICS_TRAIN, ranks)
    assert plan == BatchPlan(clips, global_batch, ranks, passes, pytest.approx(lr), steps)


def test_a_stated_global_batch_and_rate() -> None:
    experiment = Config(
        output_dir="unused",
        train=TrainConfig(clips_per_gpu=3, global_batch=24),
        optim=OptimConfig(lr=0.1, reference_batch=256),
    )
    assert plan_batches(experiment, 24, 2) == BatchPlan(3, 24, 2, 4, pytest.approx(0.009375), 1)


def test_the_plan_in_words() -> None:
    text = str(plan_batches(config(clips_per_gpu=4), 1000, 2))
    assert text == "4 clips/GPU x 2 rank(s) x 4 micro-batch(es) = global batch 32; base lr 0.005; 31 steps/epoch"


@pytest.mark.parametrize(("global_batch", "ranks"), [(None, 3), (12, 1), (16, 4), (4, 1)])
def test_a_global_batch_of_parts_of_passes(global_batch: int | None, ranks: int) -> None:
    batch = 64 if global_batch is None else global_batch
    with pytest.raises(UserError, match=rf"global_batch {batch} is not a multiple of .* 8 x {ranks}; set"):
        plan_batches(config(clips_per_gpu=8, global_batch=global_batch), 1000, ranks)


def test_a_list_shorter_than_a_batch() -> None:
    with pytest.raises(
        UserError, match=r"63 videos, fewer than one .* of 64; set train.clips_per_gpu=8 train.global_batch=56$"
    ):
        plan_batches(config(), 63, 1)
    assert plan_batches(config(), 64, 1).steps_per_epoch == 1


def test_one_mistake_is_one_error() -> None:
    """4 videos: neither the global batch nor a micro-batch fits, and both keys are named at once."""
    with pytest.raises(UserError, match=r"4 videos, .*; set train.clips_per_gpu=4 train.global_batch=4$"):
        plan_batches(config(), 4, 1)
    with pytest.raises(UserError, match=r"is not a multiple of .* = 8 x 3 and .* 40 videos, .*; set .*=8 .*=24$"):
        plan_batches(config(), 40, 3)
    with pytest.raises(UserError, match="8 ranks cannot share 4 videos; start at most 4"):
        plan_batches(config(), 4, 8)


@settings(max_examples=100, deadline=None)
@given(
    clips=st.integers(1, 12),
    global_batch=st.integers(1, 100),
    videos=st.integers(1, 120),
    ranks=st.integers(1, 5),
    clips_per_video=st.integers(1, 3),
)
def test_the_values_in_the_message_work(
    clips: int, global_batch: int, videos: int, ranks: int, clips_per_video: int
) -> None:
    tree = {
        "output_dir": "unused",
        "train": {"clips_per_gpu": clips * clips_per_video, "global_batch": global_batch},
        "data": {"clips_per_video": clips_per_video},
    }
    try:
        plan_batches(parse_config(tree), videos, ranks)
    except UserError as error:
        assume(videos >= ranks * clips_per_video)
        overrides = str(error).partition("; set ")[2].split()
        assert [each.partition("=")[0] for each in overrides] == ["train.clips_per_gpu", "train.global_batch"]
        assert plan_batches(parse_config(tree, overrides), videos, ranks).steps_per_epoch >= 1


@settings(max_examples=50, deadline=None)
@given(clips=st.integers(1, 16), ranks=st.integers(1, 8), passes=st.integers(1, 8), videos=st.integers(1, 5000))
def test_passes_make_up_the_global_batch(clips: int, ranks: int, passes: int, videos: int) -> None:
    global_batch = clips * ranks * passes
    assume(videos >= global_batch)
    plan = plan_batches(config(clips_per_gpu=clips, global_batch=global_batch), videos, ranks)
    assert plan.accumulation_steps == passes
    assert plan.lr == pytest.approx(0.01 / 64 * global_batch)
    assert 0 <= videos - plan.steps_per_epoch * global_batch < global_batch


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_norms_have_their_own_weight_decay(norm: str) -> None:
    model = thin_model(norm)
    optimizer = build_optimizer(model, OptimConfig(), lr=0.01)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    undecayed = {name for name, value in by_name.items() if value == 0}
    assert undecayed == {name for name in by_name if "norm" in name}
    assert len(undecayed) == 2 * 17
    assert {value for name, value in by_name.items() if name not in undecayed} == {1e-4}
    assert len(by_name) - len(undecayed) == 17 + 2
    assert by_name["head.fc.bias"] == 1e-4


def test_without_norms_there_is_no_group_of_theirs() -> None:
    model = thin_model("none")
    body, head = build_optimizer(model, OptimConfig(norm_weight_decay=0.5), lr=0.01).param_groups
    assert (len(body["params"]), len(head["params"])) == (2 * 17, 2)
    assert body["weight_decay"] == head["weight_decay"] == 1e-4


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "none"])
def test_every_parameter_is_optimized_once(norm: str) -> None:
    model = thin_model(norm)
    optimizer = build_optimizer(model, OptimConfig(), lr=0.01)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_by_the_formula(nesterov: bool) -> None:
    """v = m v + (g + wd w); w -= lr ((g + wd w) + m v) with Nesterov's look-ahead, w -= lr v without."""
    model = thin_model("gn")
    optim = OptimConfig(momentum=0.75, nesterov=nesterov, weight_decay=0.25, norm_weight_decay=0.125)
    optimizer = build_optimizer(model, optim, lr=0.5)
    conv, gamma = model.stem.conv.weight, model.stem.norm.weight
    with torch.no_grad():
        conv.fill_(2.0)
        gamma.fill_(-1.0)
    for parameter, weight_decay in ((conv, 0.25), (gamma, 0.125)):
        w, v = parameter.flatten()[0].item(), 0.0
        for gradient in (1.0, -3.0, 0.5):
            parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
            g = gradient + weight_decay * w
            v = 0.75 * v + g
            w -= 0.5 * (g + 0.75 * v if nesterov else v)
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, w))
        parameter.grad = None


def test_the_body_has_its_own_rate() -> None:
    model = thin_model("gn")
    optimizer = build_optimizer(model, OptimConfig(body_lr=0.1), lr=0.01)
    rates = {id(p): group["rate"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if rates[id(p)] == 1} == {"head.fc.weight", "head.fc.bias"}
    assert sorted(set(rates.values())) == [0.1, 1]
