"""AdamW, gradient clipping, the moving average of weights, label smoothing and fp16 in a training run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.tiny_runs import interrupted_after, run, tiny
from video_gn.config import Config
from video_gn.data.motion import write_dataset
from video_gn.engine.train import Trainer
from video_gn.inference import load
from video_gn.run import checkpoint as ckpt

SHORT = ["train.epochs=1", "model.dropout=0"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=12, val_videos=4, num_frames=20, size=32, workers=1, progress=False)
    return folder


def configured(tmp_path: Path, videos: Path, *overrides: str) -> Config:
    return tiny(tmp_path, videos, *SHORT, *overrides)


def test_the_average_is_that_of_the_weights_after_each_step(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a_1 = w_1, then a = 0.75 a + 0.25 w; it is what is loaded, and the weights themselves are kept beside it."""
    steps: list[torch.Tensor] = []
    update = Trainer._update

    def recorded(self: Trainer) -> None:
        update(self)
        steps.append(self.model.head.fc.weight.detach().clone())

    monkeypatch.setattr(Trainer, "_update", recorded)
    last = run(configured(tmp_path, videos, "optim.ema_decay=0.75")) / "checkpoints" / "last.pt"
    expected = steps[0]
    for weights in steps[1:]:
        expected = 0.75 * expected + 0.25 * weights
    torch.testing.assert_close(load(last, "cpu").model.head.fc.weight.data, expected)
    assert torch.equal(ckpt.load(last)["model"]["head.fc.weight"], steps[-1])


def test_a_resume_has_the_same_average(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "other").mkdir()
    overrides = ["optim.ema_decay=0.9", "model.norm=bn", "optim.name=adamw", "train.epochs=2"]
    first = run(configured(tmp_path, videos, *overrides))
    with interrupted_after(4):
        run(configured(tmp_path / "other", videos, *overrides))
    second = run(configured(tmp_path / "other", videos, *overrides))
    states = [ckpt.load(folder / "checkpoints" / "last.pt") for folder in (first, second)]
    assert all(torch.equal(states[0]["ema"][key], value) for key, value in states[1]["ema"].items())
    moments = [state["optimizer"]["state"] for state in states]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


def test_gradients_are_scaled_down_to_the_limit(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    update = Trainer._update

    def recorded(self: Trainer) -> None:
        update(self)
        norms.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in self.model.parameters() if p.grad is not None))
        )

    monkeypatch.setattr(Trainer, "_update", recorded)
    run(configured(tmp_path, videos, "optim.clip_norm=0.01"))
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 3


def test_label_smoothing_raises_the_training_loss_only(tmp_path: Path, videos: Path) -> None:
    """Of a network that is not trained yet, by the part of the target that lies on the other classes: nothing there."""
    from tests.tiny_runs import records

    (tmp_path / "other").mkdir()
    rates = ["optim.lr=1e-12", "optim.reference_batch=4"]
    plain, smooth = (
        records(run(configured(folder, videos, *rates, *more)))
        for folder, more in ((tmp_path, []), (tmp_path / "other", ["classification.label_smoothing=0.5"]))
    )
    assert plain[-2]["val/loss"] == smooth[-2]["val/loss"]
    assert plain[0]["train/loss"] != smooth[0]["train/loss"]


def test_fp16_trains_with_a_loss_scale(tmp_path: Path, videos: Path) -> None:
    """A step that overflows lowers the scale, and is neither applied nor counted as a bad one."""
    config = configured(tmp_path, videos, "train.precision=fp16", "model.norm=none", "optim.lr=1e-4", "train.epochs=2")
    folder = run(config)
    state = ckpt.load(folder / "checkpoints" / "last.pt")
    assert state["loop"]["scaler"]["scale"] <= 2**16 and state["loop"]["bad_steps"] == 0
    assert all(value.isfinite().all() for value in state["model"].values())
