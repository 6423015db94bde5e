"""A run's folder: made, reopened for the same experiment, left alone for any other."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import video_gn
from video_gn.config import Config, Section, load_config, parse_config
from video_gn.engine import checkpoint as ckpt
from video_gn.engine.runfolder import environment, open_run
from video_gn.errors import UserError

LISTS = {"train": "aa", "val": "bb"}

# Another valid value of every key; a key that is added to the config must be added to one of the two.
FIXED: dict[str, Any] = {
    "seed": 1,
    "model.arch": "resnet101",
    "model.blocks": [1, 1, 1, 1],
    "model.width": 32,
    "model.temporal": "c2d",
    "model.stem": "sparse",
    "model.norm": "bn",
    "model.groups": 16,
    "model.channels_per_group": 4,
    "model.num_classes": 10,
    "model.brn_r_max": 2.0,
    "model.brn_d_max": 1.0,
    "model.brn_warmup": 10,
    "model.brn_ramp": 10,
    "model.init_from": "weights.pt",
    "model.init_drop": ["*.running_*"],
    "model.dropout": 0.0,
    "data.area": [0.08, 1.0],
    "data.colour_jitter": 0.4,
    "data.lighting": 0.1,
    "data.frames": 64,
    "data.stride": 1,
    "data.clips_per_video": 2,
    "data.crop": 112,
    "data.short_side": [256, 256],
    "data.flip": 0.0,
    "data.mean": [0.5, 0.45, 0.45],
    "data.std": [0.225, 0.225, 0.25],
    "data.decoder": "pyav",
    "optim.lr": 0.02,
    "optim.reference_batch": 32,
    "optim.momentum": 0.8,
    "optim.nesterov": False,
    "optim.weight_decay": 0.0,
    "optim.norm_weight_decay": 1e-4,
    "optim.body_lr": 0.1,
    "optim.freeze": ["stem", "res2"],
    "optim.schedule": "cosine",
    "optim.milestones": [41],
    "optim.decay": 0.5,
    "optim.warmup_epochs": 2.0,
    "optim.warmup_start": 0.0,
    "train.clips_per_gpu": 4,
    "train.global_batch": 32,
}
FREE: dict[str, Any] = {
    "device": "cpu",
    "data.root": "/elsewhere",
    "data.absolute_paths": True,
    "data.train_list": "other.csv",
    "data.val_list": "other.csv",
    "train.epochs": 110,
    "train.compile": True,
    "train.checkpoint_stages": ("res2",),
    "profile": True,
    "data.workers": 0,
    "data.max_unreadable": 3,
    "data.timeout": 60.0,
    "data.quarantine": "report.csv",
    "data.test_list": "other.csv",
    "data.class_names": "classes.txt",
    "train.precision": "fp32",
    "train.channels_last": False,
    "train.eval_every": 5,
    "train.log_every": 1,
    "train.max_bad_steps": 3,
    "train.percentiles_of": "res5",
    "train.precise_bn_batches": 0,
    "test.views": "center",
    "test.clips": 1,
    "test.clip_starts": "baseline",
    "test.short_side": 288,
    "test.clips_per_batch": 1,
    "test.max_unreadable": 1,
    "checkpoint.every_epochs": 2,
    "checkpoint.every_minutes": 5.0,
    "checkpoint.keep": 5,
}


def config(folder: Path, *changes: tuple[str, Any]) -> Config:
    return parse_config({"output_dir": str(folder)}, [f"{key}={json.dumps(value)}" for key, value in changes])


def keys(section: type[Section] = Config, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        found |= keys(field.annotation, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def save(of: Config, folder: Path, step: int = 5) -> None:
    """What the loop saves at the end of an epoch."""
    state = {
        "model": {"w": torch.ones(2)},
        "optimizer": {},
        "step": step,
        "best_error": 40.0,
        "config": of.model_dump(mode="json"),
        "lists": LISTS,
        "loop": {},
    }
    ckpt.save_last(folder / "checkpoints", state)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of a run of the default config, with two checkpoints and a log."""
    folder = tmp_path / "runs" / "ü 1"
    assert open_run(config(folder), LISTS) is None
    save(config(folder), folder, step=4)
    save(config(folder), folder, step=5)
    (folder / "log.jsonl").write_text('{"step": 5}\n')
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def refused(of: Config, lists: dict[str, str] = LISTS) -> str:
    """The message with which a folder is refused, after checking that nothing in it has changed."""
    folder = Path(of.output_dir)
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        open_run(of, lists)
    assert contents(folder) == before
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "output_dir" in message
    assert "\n" not in message
    return message


def test_every_key_is_fixed_or_free() -> None:
    # data.kind is fixed too, but has no other value that is valid by itself.
    assert keys() - {"output_dir", "resume", "data.kind"} == FIXED.keys() | FREE.keys()
    assert not FIXED.keys() & FREE.keys()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_new_folder(tmp_path: Path, resume: str) -> None:
    new = config(tmp_path / "a" / "b", ("resume", resume), ("model.width", 32))
    assert open_run(new, LISTS, {"global_batch": 64}) is None
    folder = tmp_path / "a" / "b"
    assert contents(folder).keys() == {"checkpoints", "config.yaml", "environment.json"}
    assert load_config(folder / "config.yaml") == new
    recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert recorded["torch"] == torch.__version__
    assert recorded["video_gn"] == video_gn.__version__
    assert recorded.keys() == {*environment(), "derived"}
    assert recorded["derived"] == {"global_batch": 64}


def test_an_empty_folder_is_new(tmp_path: Path) -> None:
    assert open_run(config(tmp_path), LISTS) is None
    assert (tmp_path / "config.yaml").is_file()


def test_a_start_that_was_killed_is_no_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its steps: before and after each file appears."""

    class Killed(BaseException):
        pass

    for after in range(7):
        calls = [0]

        def dying(real: Any, fatal: int = after, calls: list[int] = calls) -> Any:
            def function(*arguments: Any, **options: Any) -> Any:
                if calls[0] == fatal:
                    raise Killed
                calls[0] += 1
                return real(*arguments, **options)

            return function

        new = config(tmp_path / str(after))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "fsync", dying(os.fsync))
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "mkdir", dying(Path.mkdir))
            open_run(new, LISTS)
        assert open_run(new, LISTS) is None
        assert contents(tmp_path / str(after)).keys() == {"checkpoints", "config.yaml", "environment.json"}
    assert calls == [6]  # the last of these starts was left alone


def test_a_run_without_checkpoints_starts_again(tmp_path: Path) -> None:
    """It was killed in its first epoch."""
    for _ in range(2):
        assert open_run(config(tmp_path), LISTS) is None


def test_a_run_without_checkpoints_is_left_to_its_own_config(tmp_path: Path) -> None:
    open_run(config(tmp_path / "run"), LISTS)
    message = refused(config(tmp_path / "run", ("optim.lr", 0.02)))
    assert "holds another experiment (optim.lr: 0.01 -> 0.02)" in message


def test_a_checkpoint_of_weights_alone_is_no_run(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save({key: state[key] for key in ("model", "config", "step")}, path)
    assert "weights but no training state" in refused(config(run))


def test_the_same_experiment_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = open_run(config(run), LISTS)
    assert state is not None
    assert (state["step"], state["best_error"], state["model"]["w"].tolist()) == (5, 40.0, [1, 1])
    assert capsys.readouterr() == ("", "")
    assert contents(run)["log.jsonl"] == b'{"step": 5}\n'


def test_a_damaged_checkpoint_falls_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "last.pt").write_bytes(b"half")
    state = open_run(config(run), LISTS)
    assert state is not None
    assert state["step"] == 4
    assert "warning: " in capsys.readouterr().err
    (run / "checkpoints" / "previous.pt").write_bytes(b"")
    assert "no checkpoint is intact" in refused(config(run))


@pytest.mark.parametrize("key", FIXED)
def test_another_experiment_is_refused(run: Path, key: str) -> None:
    message = refused(config(run, (key, FIXED[key])))
    old = parse_config(config(run).model_dump(mode="json"))  # as a checkpoint holds it
    new = config(run, (key, FIXED[key]))
    for part in key.split("."):
        old, new = getattr(old, part), getattr(new, part)
    assert f"holds another experiment ({key}: {old} -> {new}); choose another output_dir" in message


def test_all_that_differs_is_named(run: Path) -> None:
    message = refused(config(run, ("model.norm", "bn"), ("optim.lr", 0.1), ("data.workers", 1)))
    assert "(model.norm: gn -> bn; optim.lr: 0.01 -> 0.1)" in message


@pytest.mark.parametrize("key", FREE)
def test_free_values_may_change(run: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    new = config(run, (key, FREE[key]))
    state = open_run(new, LISTS)
    assert state is not None
    assert state["step"] == 5
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"resuming with {key}: ")
    assert output.err.endswith(f" -> {FREE[key]}\n")
    assert load_config(run / "config.yaml") == new


def test_a_moved_folder_goes_on(run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    state = open_run(config(moved), LISTS)
    assert state is not None
    assert state["step"] == 5


def test_never_resume(run: Path) -> None:
    assert "resume is never" in refused(config(run, ("resume", "never")))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "not empty and not a run's folder" in refused(config(tmp_path))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot make the run's folder .*; set output_dir"):
            open_run(config(path), LISTS)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_changed_list(run: Path, name: str) -> None:
    message = refused(config(run), {**LISTS, name: "cc"})
    assert f"the {name} list has changed since this run began" in message
