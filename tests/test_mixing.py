"""Mixup and CutMix against torchvision's, by counting pixels, and in training: keyed, and equal after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from tests.tiny_runs import interrupted_after, records, run, tiny, weights
from video_gn.config import parse_config
from video_gn.data.mixing import Mix, Mixing
from video_gn.data.motion import write_dataset
from video_gn.data.sampling import DROPOUT, MIXING, keyed_rng
from video_gn.engine.datasets import mixing
from video_gn.errors import UserError
from video_gn.tasks.classification import Classification
from video_gn.tasks.multilabel import MultiLabel

SIZE = (12, 20)


def clips(count: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Clips (count, 3, 2, 12, 20) of noise, channels last in memory as in training."""
    noise = torch.from_numpy(np.random.default_rng(count).normal(size=(count, 3, 2, *SIZE)))
    return noise.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def test_mixup_is_torchvisions() -> None:
    x, targets = clips(), torch.eye(4)
    mixed, soft = Mix(0.3, None)(x, targets)
    transform = v2.MixUp(num_classes=4)
    params = {"lam": 0.3, "batch_size": 4, "labels": targets}
    expected = transform.transform(x.flatten(1, 2), params)  # which takes images of any number of channels
    torch.testing.assert_close(mixed.flatten(1, 2), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(soft, transform.transform(targets, params))
    assert mixed.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(x, clips()) and torch.equal(targets, torch.eye(4))  # its input stays


def test_cutmix_is_torchvisions() -> None:
    x, targets = clips(), torch.eye(4)
    top, left, height, width = 2, 3, 5, 8
    share = 1 - 40 / 240
    mixed, soft = Mix(share, (top, left, height, width))(x, targets)
    transform = v2.CutMix(num_classes=4)
    box = left, top, left + width, top + height
    params = {"box": box, "lam_adjusted": share, "batch_size": 4, "labels": targets}
    assert torch.equal(mixed.flatten(1, 2), transform.transform(x.flatten(1, 2), params))
    torch.testing.assert_close(soft, transform.transform(targets, params))
    assert torch.equal(x, clips())


@given(st.integers(0, 10**6), st.floats(0.05, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2]))
@settings(max_examples=100, deadline=None)
def test_targets_are_shares_of_pixels(seed: int, alpha: float, height: int, width: int, distance: int) -> None:
    """Clip i is all i: the mean of what is mixed is the mean of the targets, whatever was cut off at the border."""
    x = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, height, width)
    for rule in (Mixing(alpha, 0, distance), Mixing(0, alpha, distance)):
        mix = rule.draw(keyed_rng(seed), (height, width))
        assert mix is not None and 0 <= mix.share <= 1
        mixed, soft = mix(x, torch.eye(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), soft @ torch.arange(4.0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        for i in range(4):
            assert set(soft[i].nonzero().flatten().tolist()) <= {i, (i - distance) % 4}


def test_shares_are_of_the_beta_distribution_and_either_kind_by_even_chance() -> None:
    """Beta(a, a) has the variance 1 / (4 (2 a + 1)); a share of area loses some of it at the border."""
    for alpha in (0.2, 1.0):
        drawn = [Mixing(alpha, alpha).draw(keyed_rng(k), (224, 224)) for k in range(4000)]
        mixes = [mix for mix in drawn if mix is not None]
        shares = np.array([mix.share for mix in mixes if mix.box is None])
        assert 1850 < len(shares) < 2150
        assert shares.mean() == pytest.approx(0.5, abs=0.04)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    boxes = [mix.box for mix in mixes if mix.box is not None]
    assert all(min(top, left) >= 0 and top + h <= 224 and left + w <= 224 for top, left, h, w in boxes)
    rows = Counter(top + h > 112 for top, _, h, _ in boxes)
    assert min(rows.values()) > 300


def test_a_draw_is_a_function_of_seed_step_and_position() -> None:
    rule = Mixing(0.2, 1.0)
    keys = [(seed, MIXING, step, position) for seed in (0, 1) for step in range(4) for position in range(4)]
    first, again = ([rule.draw(keyed_rng(*key), SIZE) for key in keys] for _ in range(2))
    assert first == again and len(set(first)) == len(keys)
    assert MIXING != DROPOUT


def test_the_partner_is_of_another_video() -> None:
    """With two clips per video, neighbors in a micro-batch show the same one."""
    tree = {"output_dir": "x", "data": {"mixup": 0.2, "clips_per_video": 2}, "train": {"clips_per_gpu": 6}}
    mix = mixing(parse_config(tree)).draw(keyed_rng(0), SIZE)
    assert mix is not None
    _, soft = mix(clips(6), torch.eye(6))
    videos = [k // 2 for k in range(6)]
    for i, row in enumerate(soft):
        assert {videos[k] for k in row.nonzero().flatten().tolist()} == {videos[i], (videos[i] - 1) % 3}


def test_loss_and_error_with_soft_targets() -> None:
    """The loss is the mixture of the two losses, and a hit counts by its share."""
    task = Classification(3)
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 1])
    _, soft = Mix(0.7, None)(clips(2), task.soft(labels))
    expected = 0.7 * task.loss(logits, labels, training=True) + 0.3 * task.loss(logits, labels.flip(0), training=True)
    torch.testing.assert_close(task.loss(logits, soft, training=True), expected)
    metrics = task.metrics(torch.device("cpu"))
    metrics.update(logits, soft)
    assert metrics.compute()["top1_error"] == pytest.approx(30, abs=1e-4)
    many = MultiLabel(3)
    _, soft = Mix(0.7, None)(clips(2), many.soft(many.collate([(0, 2), (1,)])))
    torch.testing.assert_close(soft, torch.tensor([[0.7, 0.3, 0.7], [0.3, 0.7, 0.3]]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.mixup=0.2", "train.clips_per_gpu=1"], "clips_per_gpu 1 and data.clips_per_video 1; set "),
        (["data.cutmix=1", "train.clips_per_gpu=4", "data.clips_per_video=4"], "set train.clips_per_gpu to 8 or more"),
        (["data.mixup=-0.1"], "data.mixup: Input should be greater than or equal to 0"),
        (["data.cutmix=true"], "stands for yes or no"),
        (["data.random_erasing=1.5"], "data.random_erasing: Input should be less than or equal to 1"),
        (["data.rand_augment=9"], r"rand_augment: 9 is not \[operations, magnitude\]; give such a pair as \[2, 9\]"),
        (["data.rand_augment=[2]"], r"\[2\] is not \[operations, magnitude\]"),
        (["data.rand_augment=[2, 31]"], "data.rand_augment.1: Input should be less than or equal to 30"),
        (["data.rand_augment=[0, 9]"], "data.rand_augment.0: Input should be greater than or equal to 1"),
        (["data.colour_jitter=0.4"], "data.colour_jitter: unknown key .did you mean 'color_jitter'"),
    ],
)
def test_mistakes_end_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_config({"output_dir": "x"}, overrides)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=12, val_videos=4, num_frames=20, size=32, workers=1, progress=False)
    return folder


def test_a_resumed_run_mixes_the_same(tmp_path: Path, videos: Path) -> None:
    """In the middle of an epoch, with workers, and with every augmentation on."""
    for name in ("other", "plain"):
        (tmp_path / name).mkdir()
    strong = ["data.color_jitter=0.4", "data.rand_augment=[2,9]", "data.random_erasing=0.5"]
    mixed = ["data.mixup=0.4", "data.cutmix=1", *strong]
    first = run(tiny(tmp_path, videos, *mixed))
    often = "checkpoint.every_minutes=1e-9"
    with interrupted_after(4):
        run(tiny(tmp_path / "other", videos, *mixed, often, "data.workers=2"))
    second = run(tiny(tmp_path / "other", videos, *mixed))
    assert all(torch.equal(a, weights(second)[name]) for name, a in weights(first).items())
    plain = run(tiny(tmp_path / "plain", videos, *strong))
    assert not torch.equal(weights(plain)["head.fc.weight"], weights(first)["head.fc.weight"])
    errors = [record["epoch/train_top1_error"] for record in records(first) if record["kind"] == "epoch"]
    assert all(0 <= error <= 100 for error in errors)


@pytest.mark.cuda
def test_mixing_waits_for_no_gpu() -> None:
    task, x, labels = Classification(5), clips().cuda(), torch.tensor([0, 4, 2, 1]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed = [Mix(0.3, box)(x, task.soft(labels)) for box in (None, (1, 2, 3, 4))]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (got, soft), box in zip(mixed, (None, (1, 2, 3, 4)), strict=True):
        expected = Mix(0.3, box)(x.cpu(), task.soft(labels.cpu()))
        torch.testing.assert_close((got.cpu(), soft.cpu()), expected)
