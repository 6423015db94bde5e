"""A run's folder: made, reopened for the same experiment, left alone for any other."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import video_gn
from video_gn.config import Config, Section, load_config, parse_config
from video_gn.errors import UserError
from video_gn.run import checkpoint as ckpt
from video_gn.run.folder import environment, open_run, save_last
from video_gn.run.log import Writers

LISTS = {"train": "aa", "val": "bb"}
RECORD = '{"kind": "epoch", "step": 5, "epoch": 1.0, "time": 1.8e9, "val/top1_error": 40.0}\n'

# Another valid value of every key; a key that is added to the config must be added to one of the two.
FIXED: dict[str, Any] = {
    "seed": 1,
    "classification.label_smoothing": 0.1,
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
    "data.color_jitter": 0.4,
    "data.rand_augment": (2, 9),
    "data.random_erasing": 0.25,
    "data.mixup": 0.2,
    "data.cutmix": 1.0,
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
    "optim.name": "adamw",
    "optim.betas": (0.9, 0.95),
    "optim.clip_norm": 1.0,
    "optim.ema_decay": 0.999,
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
    "train.cuda_graph": False,
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
        "loop": {"log_lines": 1},
    }
    save_last(folder, state, keep=2)
    ckpt.save(folder / "checkpoints" / "best.pt", state)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of a run of the default config, with two checkpoints and a log."""
    folder = tmp_path / "runs" / "ü 1"
    assert open_run(config(folder), LISTS) is None
    save(config(folder), folder, step=4)
    save(config(folder), folder, step=5)
    (folder / "log.jsonl").write_text(RECORD)
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
    # data.kind and task are fixed too, but have no other value that is valid by itself. multilabel.threshold, which is
    # free, has one with task: multilabel only.
    assert keys() - {"output_dir", "resume", "data.kind", "task", "multilabel.threshold"} == FIXED.keys() | FREE.keys()
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
    assert contents(run)["log.jsonl"] == RECORD.encode()


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


# --- a folder that is not as the run left it ---


def resume(of: Config, capsys: pytest.CaptureFixture[str]) -> tuple[ckpt.Checkpoint, list[str]]:
    """What a run resumes from, and the lines that it says."""
    capsys.readouterr()
    state = open_run(of, LISTS)
    assert state is not None
    return state, capsys.readouterr().err.splitlines()


@pytest.fixture
def logged(run: Path) -> Path:
    """The same run with 13 records, in log.jsonl and in TensorBoard's file, and 2 more after its checkpoint."""
    with Writers(run) as writers:
        for step in range(1, 16):
            writers.write("train", step, step / 5, {"train/loss": 1 / step})
    for name in ("last.pt", "previous.pt"):
        state = torch.load(run / "checkpoints" / name, weights_only=True)
        ckpt.save(run / "checkpoints" / name, state | {"loop": {"log_lines": 13}})
    return run


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LOGS: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: path.unlink(), "is missing, 13 records"),
    "a dangling link": (lambda path: (path.unlink(), path.symlink_to("/absent")), "is missing, 13 records"),
    "empty": (lambda path: path.write_bytes(b""), "holds 0 of the 13 records before the checkpoint"),
    "shorter": (lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:3])), "holds 3 of the 13"),
    "not UTF-8": (lambda path: path.write_bytes("grüße\n".encode("utf-16") * 30), "holds 0 of the 13 records"),
    "of one bad byte": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"st\xffp": 4')),
        "12 of",
    ),
    "of other JSON": (lambda path: path.write_text('{"step": 5}\n[]\n3\nnull\n' * 9), "holds 0 of the 13 records"),
    "of brackets": (lambda path: path.write_text("[" * 100_000 + "\n" + "{" * 9), "holds 0 of the 13 records"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "holds 0 of the 13 records"),
}


@pytest.mark.parametrize("what", LOGS)
@pytest.mark.parametrize("events", [True, False])
def test_a_log_that_lacks_records_is_named_and_restored(
    logged: Path, capsys: pytest.CaptureFixture[str], what: str, events: bool
) -> None:
    """From TensorBoard's file, which a new start would delete; nothing is thrown away."""
    path, (damage, named) = logged / "log.jsonl", LOGS[what]
    expected = records(path)[:13]
    damage(path)
    (board,) = logged.glob("events.*")
    curves, damaged = board.read_bytes(), path.read_bytes() if path.exists() else None
    if not events:
        board.unlink()
    state, (line,) = resume(config(logged), capsys)
    assert state["step"] == 5
    assert line.startswith(f"warning: {path} ") and named in line
    if events:
        assert "; 13 are restored from TensorBoard's files; what was there is now " in line
        (kept,) = logged.glob("events.out.set_aside.*")
        assert kept.read_bytes() == curves
        assert records(path) == [record | {"time": pytest.approx(record["time"])} for record in expected]
    else:
        assert "the others are lost" in line
    if damaged is not None:
        assert (logged / "log.jsonl.set_aside").read_bytes() == damaged
    with Writers(logged, 13) as writers:
        assert writers.lines == (13 if events else {"shorter": 3, "of one bad byte": 12}.get(what, 0))
    assert resume(config(logged), capsys)[1] == [] if events else True


def test_an_intact_log_is_left_as_it_is(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (logged / "log.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # cut by a kill, after the checkpoint
    before = contents(logged)
    assert resume(config(logged), capsys)[1] == []
    assert {name: contents(logged)[name] for name in before if "log" in name or "events" in name} == {
        name: value for name, value in before.items() if "log" in name or "events" in name
    }


@pytest.mark.parametrize("keep_folder", [True, False])
@pytest.mark.parametrize("best", [True, False])
def test_a_run_that_lost_its_checkpoints_is_not_trained_again(logged: Path, keep_folder: bool, best: bool) -> None:
    for path in list((logged / "checkpoints").iterdir()):
        if path.name != "best.pt" or not best or not keep_folder:
            path.unlink()
    if not keep_folder:
        (logged / "checkpoints").rmdir()
    message = refused(config(logged))
    assert "a run that has lost its checkpoints; put checkpoints/last.pt back" in message
    assert "to train from scratch, choose another output_dir or delete the folder" in message
    assert ("copy best.pt to last.pt" in message) == (best and keep_folder)


@pytest.mark.parametrize("name", ["log.jsonl", "events.out.tfevents.1.host"])
def test_curves_without_checkpoints_are_not_written_over(tmp_path: Path, name: str) -> None:
    """Of a version that did not mark its folders, or copied without the checkpoints."""
    open_run(config(tmp_path), LISTS)
    (tmp_path / name).write_text(RECORD)
    assert open_run(config(tmp_path), LISTS) is None  # killed before its first checkpoint
    (tmp_path / "checkpoints").rmdir()
    assert "has lost its checkpoints" in refused(config(tmp_path))


@pytest.mark.parametrize("what", ["missing", "garbage", "a folder", "a dangling link"])
def test_best_is_named_and_written_again(run: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    best = run / "checkpoints" / "best.pt"
    best.unlink()
    if what == "garbage":
        best.write_bytes(b"garbage")
    elif what == "a folder":
        (best / "sub").mkdir(parents=True)
    elif what == "a dangling link":
        best.symlink_to("/absent")
    state, (line,) = resume(config(run), capsys)
    assert state["best_error"] == math.inf  # any error is better
    assert line.startswith(f"warning: {best}") and "the next evaluation, if there is one, writes it again" in line
    assert not os.path.lexists(best)
    assert os.path.lexists(best.with_name("best.pt.damaged")) == (what != "missing")


def test_a_run_without_an_evaluation_has_no_best(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "best.pt").unlink()
    for name in ("last.pt", "previous.pt"):
        state = torch.load(run / "checkpoints" / name, weights_only=True)
        ckpt.save(run / "checkpoints" / name, state | {"best_error": math.inf})
    assert resume(config(run), capsys)[1] == []


def test_the_last_checkpoint_as_a_dangling_link(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoints" / "last.pt"
    last.unlink()
    last.symlink_to("/elsewhere/last.pt")
    state, lines = resume(config(run), capsys)
    assert state["step"] == 4
    assert "a link to /elsewhere/last.pt, which is missing" in lines[0]
    assert lines[1] == "going on from previous.pt, after step 4"
    last.symlink_to("/elsewhere/last.pt")
    (run / "checkpoints" / "previous.pt").unlink()
    assert "no checkpoint is intact" in refused(config(run))


def test_stray_names_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "previous_old.pt").write_bytes(b"mine")
    state, (line,) = resume(config(run), capsys)
    assert state["step"] == 5
    assert line == f"{run / 'checkpoints' / 'previous_old.pt'}: not a name that a run writes; left alone"


@pytest.mark.parametrize(
    "name",
    [
        *("log.jsonl", "config.yaml", "environment.json", "unreadable.txt", "checkpoints/previous.pt"),
    ],
)
def test_a_folder_in_place_of_a_file_is_named_before_training(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name / "sub").mkdir(parents=True)
    assert f"{name} is a folder, and the run writes a file of that name; move it away" in refused(config(run))


def test_a_folder_in_place_of_the_last_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in range(2):
        (run / "checkpoints" / "last.pt").unlink(missing_ok=True)
        (run / "checkpoints" / "last.pt" / str(count)).mkdir(parents=True)
        state, lines = resume(config(run), capsys)
        assert state["step"] == 4 and "last.pt: a folder, not a checkpoint" in lines[0]
    assert (run / "checkpoints" / "last.pt.damaged" / "0").is_dir()
    assert (run / "checkpoints" / "last.pt.damaged_2" / "1").is_dir()


def test_a_missing_config_is_named_and_written_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").unlink()
    state, (line,) = resume(config(run), capsys)
    assert state["step"] == 5
    assert line == f"warning: {run / 'config.yaml'} is missing; written again from this command"
    assert load_config(run / "config.yaml") == config(run)
    (run / "config.yaml").unlink()
    assert "holds another experiment (optim.lr: 0.01 -> 0.02)" in refused(config(run, ("optim.lr", 0.02)))
