"""Starting from other weights: images to clips, other classes, a slower body, frozen Batch Norm."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.tiny_runs import TINY, TINY_IMAGES, run
from video_gn.config import load_config
from video_gn.data.motion import CLASSES
from video_gn.errors import UserError
from video_gn.run import checkpoint as ckpt


def train(folder: Path, template: str, root: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The last weights of a tiny run."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(template.format(out=folder / "run", root=root))
    run(load_config(folder / "tiny.yaml", overrides))
    return ckpt.load(folder / "run" / "checkpoints" / "last.pt")["model"]


FROM_IMAGES = ["train.epochs=1", "optim.body_lr=0", "optim.norm_weight_decay=0", "model.dropout=0"]


def test_clips_start_from_the_inflated_images_and_body_lr_0_keeps_them(tmp_path, tree, videos, capsys):
    images = train(tmp_path / "images", TINY_IMAGES, tree, "train.epochs=1")
    source = f"model.init_from={tmp_path / 'images' / 'run' / 'checkpoints' / 'last.pt'}"
    clips = train(tmp_path / "clips", TINY, videos, *FROM_IMAGES, source)
    for key, value in images.items():
        if key.startswith("head."):
            continue
        expected = value
        if value.dim() == 4:
            length = clips[key].shape[2]
            expected = value[:, :, None].repeat(1, 1, length, 1, 1) / length
        torch.testing.assert_close(clips[key], expected, msg=lambda m, k=key: f"{k}: {m}")
    assert clips["head.fc.weight"].shape == (10, 256)  # 3 classes became 10: the head is new, and it is trained
    told = capsys.readouterr().err
    for word in ("inflated", "copied", "new", "head.fc.weight"):
        assert word in told


def test_a_resumed_run_does_not_start_again_from_the_weights(tmp_path, tree, videos):
    train(tmp_path / "images", TINY_IMAGES, tree, "train.epochs=1")
    source = tmp_path / "images" / "run" / "checkpoints" / "last.pt"
    first = train(tmp_path / "clips", TINY, videos, "train.epochs=1", f"model.init_from={source}")
    source.unlink()  # not needed any more
    config = load_config(tmp_path / "clips" / "tiny.yaml", ["train.epochs=2", f"model.init_from={source}"])
    last = ckpt.load(run(config) / "checkpoints" / "last.pt")["model"]
    assert not torch.equal(first["head.fc.weight"], last["head.fc.weight"])


def lists(folder: Path, videos: Path, names: Sequence[str]) -> list[str]:
    """Overrides for the videos' lists in a folder where the classes have these names."""
    folder.mkdir()
    for name in ("train.csv", "val.csv"):
        shutil.copy(videos / name, folder)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return [f"data.{split}_list={folder / f'{split}.csv'}" for split in ("train", "val")]


def test_a_label_means_one_class(tmp_path, videos):
    """From training list to validation list, from run to resumed run, and from the weights' head to the run's."""
    other = lists(tmp_path / "other", videos, CLASSES[::-1])
    with pytest.raises(UserError, match="val.csv: label 0 is 'up' to the network and 'sway' in .*classes.txt"):
        train(tmp_path / "a", TINY, videos, other[1])
    with pytest.raises(UserError, match="train.csv: label 0 is 'sway' to the network and 'up' in .*classes.txt"):
        train(tmp_path / "b", TINY, videos, f"data.class_names={tmp_path / 'other' / 'classes.txt'}")
    assert not (tmp_path / "a" / "run").exists() and not (tmp_path / "b" / "run").exists()

    train(tmp_path / "first", TINY, videos, "train.epochs=1")
    last = tmp_path / "first" / "run" / "checkpoints" / "last.pt"
    assert ckpt.load(last)["class_names"] == list(CLASSES)  # of the classes.txt beside the training list
    before = (tmp_path / "first" / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="last.pt: label 0 is 'up' to the network and 'sway' .*another output_dir"):
        run(load_config(tmp_path / "first" / "tiny.yaml", ["train.epochs=2", *other]))
    assert (tmp_path / "first" / "run" / "config.yaml").read_text() == before

    source = f"model.init_from={last}"
    with pytest.raises(
        UserError, match=r"last.pt: label 0 is 'up' to .* and 'sway' .*set model.init_drop=\['head.\*'\]"
    ):
        train(tmp_path / "c", TINY, videos, *other, source)
    train(tmp_path / "d", TINY, videos, "train.epochs=1", *other, source, "model.init_drop=['head.*']")


def test_frozen_batch_norm_keeps_the_trained_statistics(tmp_path, videos):
    trained = train(tmp_path / "bn", TINY, videos, "model.norm=bn", "train.epochs=1")
    source = f"model.init_from={tmp_path / 'bn' / 'run' / 'checkpoints' / 'last.pt'}"
    tuned = train(tmp_path / "frozen", TINY, videos, "model.norm=frozen_bn", "train.epochs=1", source)
    norms = [key for key in tuned if ".norm" in key and not key.endswith("num_batches_tracked")]
    assert len(norms) == 4 * 17  # 1 + 4 x (3 + 1) norms of 4 tensors
    assert all(torch.equal(trained[key], tuned[key]) for key in norms)
    assert not torch.equal(trained["res2.0.conv_a.weight"], tuned["res2.0.conv_a.weight"])


def test_mistakes(tmp_path, videos):
    with pytest.raises(UserError, match="model.init_from"):
        train(tmp_path / "a", TINY, videos, "model.norm=frozen_bn")
    with pytest.raises(UserError, match="absent.pt"):
        train(tmp_path / "b", TINY, videos, "model.init_from=absent.pt")
