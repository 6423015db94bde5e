"""Training end to end on tiny videos: what it writes, how it resumes, how ranks and accumulation agree, bad input."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import HANG
from tests.tiny_runs import interrupted_after, launch, records, run, tiny, tool, weights, without_times
from video_gn.config import parse_config
from video_gn.data import dataset
from video_gn.data.augment import gather_clips, render
from video_gn.data.lists import read_list
from video_gn.data.motion import CLASSES
from video_gn.engine import state
from video_gn.engine.datasets import val_dataset
from video_gn.engine.train import Trainer
from video_gn.errors import UserError
from video_gn.models import build_model
from video_gn.run import checkpoint as ckpt


@pytest.fixture(scope="module")
def trained(tmp_path_factory, videos) -> Path:
    return run(tiny(tmp_path_factory.mktemp("trained"), videos, "data.class_names=classes.txt"))


def test_a_run_folder_can_be_read_without_this_package(trained):
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"last.pt", "previous.pt", "best.pt"}
    assert torch.load(trained / "checkpoints" / "last.pt")["class_names"] == list(CLASSES)
    assert json.loads((trained / "environment.json").read_text())["torch"] == torch.__version__
    log = records(trained)
    # 22 videos, 4 a step: 5 steps an epoch (2 videos left out), logged every 3 steps and at the end of each epoch.
    assert [r["step"] for r in log if r["kind"] == "train"] == [3, 5, 6, 9, 10]
    epochs = [r for r in log if r["kind"] == "epoch"]
    assert [(r["step"], r["epoch"], r["val/videos_scored"]) for r in epochs] == [(5, 1, 11), (10, 2, 11)]
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    assert (state["step"], state["config"]["model"]["width"]) == (10, 8)


def test_tensorboard_shows_the_curves(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    expected = {"train/loss", "train/top1_error", "train/lr", "system/clips_per_second", "system/data_wait"}
    assert expected | {"val/top1_error", "val/top5_error", "system/memory_gib"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("val/top1_error")] == [5, 10]
    shown = {
        tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("config", "model")
    }
    assert "norm: gn" in shown["config"] and "parameters" in shown["model"] and "res5" in shown["model"]


def test_the_same_seed_gives_the_same_weights(trained, tmp_path, videos):
    again = run(tiny(tmp_path, videos, "data.workers=2"))
    assert all(torch.equal(a, b) for a, b in zip(weights(trained).values(), weights(again).values(), strict=True))
    assert without_times(trained) == without_times(again)


def test_rates_follow_the_schedule_from_the_scaled_base(tmp_path, videos):
    """0.02 for 8 clips is 0.01 for the 4 of a step; warm-up over the first of 2 epochs (5 steps each)."""
    options = ["optim.reference_batch=8", "optim.warmup_epochs=1", "train.log_every=1"]
    folder = run(tiny(tmp_path, videos, *options))
    rates = [r["train/lr"] for r in records(folder) if r["kind"] == "train"]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    warmup = [0.1 + 0.9 * step / 5 for step in range(5)] + [1] * 5
    assert rates == pytest.approx([0.01 * c * w for c, w in zip(cosine, warmup, strict=True)], rel=1e-5)


@torch.no_grad()
def test_the_monitored_error_is_that_of_the_net_in_evaluation(trained, videos):
    """Plainly: load last.pt, put each validation clip through it alone, without dropout."""
    state = ckpt.load(trained / "checkpoints" / "last.pt")
    config = parse_config(state["config"])
    model = build_model(config.model)
    model.load_state_dict(state["model"])
    model.eval()
    clips = val_dataset(config, read_list("val.csv", str(videos), 10))
    losses, errors = [], 0
    for k in range(11):
        item = clips[k]
        frames = render(item.frames, item.views, (0.45,) * 3, (0.225,) * 3, item.changes)
        logits = model(gather_clips(frames, torch.from_numpy(item.clip_indices)))
        losses.append(F.cross_entropy(logits, torch.tensor([item.target])).item())
        errors += logits.argmax().item() != item.target
    last = [r for r in records(trained) if r["kind"] == "epoch"][-1]
    assert last["val/loss"] == pytest.approx(sum(losses) / 11, rel=1e-4)
    assert last["val/top1_error"] == pytest.approx(100 * errors / 11, rel=1e-4)


def test_checkpoints_hold_precise_statistics_whether_evaluated_or_not(tmp_path, videos):
    often = run(tiny(tmp_path, videos, "model.norm=bn"))
    (tmp_path / "seldom").mkdir()
    seldom = run(tiny(tmp_path / "seldom", videos, "model.norm=bn", "train.eval_every=5"))
    for name in ("previous.pt", "last.pt"):
        one, other = (ckpt.load(folder / "checkpoints" / name)["model"] for folder in (often, seldom))
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_another_seed_gives_others(trained, tmp_path, videos):
    other = run(tiny(tmp_path, videos, "seed=1"))
    assert not torch.equal(weights(trained)["head.fc.weight"], weights(other)["head.fc.weight"])


def test_an_interrupted_run_resumes_where_it_stopped(trained, tmp_path, videos):
    """Stopped after epoch 1 and a few steps, then run again: weights and log are those of the run never stopped."""
    with interrupted_after(8):
        run(tiny(tmp_path, videos))
    folder = run(tiny(tmp_path, videos))
    assert all(torch.equal(a, b) for a, b in zip(weights(trained).values(), weights(folder).values(), strict=True))
    assert without_times(trained) == without_times(folder)


def test_a_finished_run_is_not_trained_again(trained, videos, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    before = (copy / "log.jsonl").read_bytes(), (copy / "checkpoints" / "last.pt").read_bytes()
    run(tiny(tmp_path, videos))
    assert "already trained for all 2 epochs" in capsys.readouterr().err
    assert before == ((copy / "log.jsonl").read_bytes(), (copy / "checkpoints" / "last.pt").read_bytes())


@pytest.mark.parametrize("passes", ["train.clips_per_gpu=4", "train.clips_per_gpu=1"])
def test_gn_does_not_depend_on_how_a_global_batch_is_cut(trained, tmp_path, videos, passes):
    """Without dropout, which is drawn pass by pass."""
    one = run(tiny(tmp_path, videos, "model.dropout=0", "train.epochs=1"))
    (tmp_path / "other").mkdir()
    other = run(tiny(tmp_path / "other", videos, "model.dropout=0", "train.epochs=1", passes))
    for name, a in weights(one).items():
        torch.testing.assert_close(a, weights(other)[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", ["gn", "bn", "brn"])
def test_checkpointing_activations_changes_nothing(tmp_path, videos, norm):
    """Not a bit, and running statistics and counts do not see the pass that is run again; brn's outputs need them."""
    change = [f"model.norm={norm}", "model.brn_warmup=0", "model.brn_ramp=4"]
    change += ["train.epochs=1", "train.precise_bn_batches=0"]
    kept = run(tiny(tmp_path, videos, *change))
    (tmp_path / "other").mkdir()
    again = run(tiny(tmp_path / "other", videos, *change, "train.checkpoint_stages=[res2, res4]"))
    states = [ckpt.load(folder / "checkpoints" / "last.pt")["model"] for folder in (kept, again)]
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())


def test_checkpointed_stages_keep_less(tmp_path, videos):
    """What autograd keeps of a stage: its blocks' inputs alone."""
    model = build_model(tiny(tmp_path, videos).model)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(1, 3, 8, 32, 32))
        return sum(sizes.values())

    everything = kept()
    model.checkpoint_stages = ["res2", "res3", "res4", "res5"]
    assert kept() < 0.7 * everything


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_compiled_passes_train_the_same(tmp_path, videos, norm, monkeypatch):
    change = [f"model.norm={norm}", "train.epochs=1", "model.dropout=0", "train.precise_bn_batches=0"]
    plain = run(tiny(tmp_path, videos, *change))
    compiled: list[object] = []
    compile_net = torch.compile

    def compile_eagerly(net: object, **options: object) -> object:
        compiled.append(net)
        return compile_net(net, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    (tmp_path / "other").mkdir()
    other = run(tiny(tmp_path / "other", videos, *change, "train.compile=true", "train.checkpoint_stages=[res3]"))
    assert len(compiled) == 1
    for name, a in ckpt.load(plain / "checkpoints" / "last.pt")["model"].items():
        b = ckpt.load(other / "checkpoints" / "last.pt")["model"][name]
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_profile_is_written(tmp_path, videos, capsys):
    folder = run(tiny(tmp_path, videos, "profile=true", "train.eval_every=2"))
    (path,) = folder.glob("profile/*.pt.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 3
    assert names.count("Optimizer.step#SGD.step") == 3
    assert "convolution" in (folder / "profile" / "operators.txt").read_text()
    assert "perfetto" in capsys.readouterr().err


def test_two_clips_of_each_video(trained, tmp_path, videos, monkeypatch):
    """The steps, rates and clips of an epoch stay; half as many training videos are opened."""
    opened = []
    open_video = dataset.open_video
    monkeypatch.setattr(dataset, "open_video", lambda path, decoder: opened.append(path) or open_video(path, decoder))
    folder = run(tiny(tmp_path, videos, "data.clips_per_video=2"))
    training = [path for path in opened if "train" in Path(path).parts]
    assert len(training) == len(set(training)) == 20  # 2 epochs of 20 clips
    assert len(opened) == 20 + 2 * 11
    steps, epochs = ([(r["step"], r["epoch"]) for r in records(f) if r["kind"] == "train"] for f in (trained, folder))
    assert steps == epochs
    assert not torch.equal(weights(trained)["head.fc.weight"], weights(folder)["head.fc.weight"])


@pytest.mark.parametrize("change", [["model.norm=gn", "data.mixup=0.4", "data.cutmix=1"], ["model.norm=bn"]])
def test_two_ranks_train_and_score_as_one(tmp_path, videos, change):
    """The same micro-batches and keys, so even BN (its batch is one), dropout and mixing agree to float tolerance."""
    single = tiny(tmp_path, videos, *change, "train.epochs=1")
    run(single)
    (tmp_path / "two").mkdir()
    tiny(tmp_path / "two", videos)
    arguments = ["tools/train.py", str(tmp_path / "two" / "tiny.yaml"), *change, "train.epochs=1"]
    for process in launch(2, *arguments):
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, err
        assert "Grad strides" not in err  # DDP's warning, about kernels of 1 x 1 x 1
    for name, a in weights(tmp_path / "run").items():
        b = weights(tmp_path / "two" / "run")[name]
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    (one,), (two,) = (
        [r for r in records(folder) if r["kind"] == "epoch"] for folder in (tmp_path / "run", tmp_path / "two" / "run")
    )
    assert one["val/videos_scored"] == two["val/videos_scored"] == 11
    for name in ("val/loss", "epoch/train_loss", "epoch/train_top1_error"):
        assert one[name] == pytest.approx(two[name], rel=1e-3), name


# --- a user's mistakes: one line, exit code 2, nothing overwritten ---


def test_odd_lists_are_warned_about_before_anything_else(tmp_path, videos):
    tiny(tmp_path, videos)
    done = tool("tools/train.py", str(tmp_path / "tiny.yaml"), "data.val_list=train.csv", "train.global_batch=400")
    assert done.returncode == 2
    *warnings, error = done.stderr.splitlines()
    assert any(
        re.match("warning: all .* validation videos are in the training list as well", line) for line in warnings
    )
    assert "fewer than one global batch of 400; set train.clips_per_gpu=" in error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.nrom=gn", "did you mean 'norm'"),
        ("train.epochs=many", "train.epochs"),
        ("data.train_list=absent.csv", "absent.csv"),
        ("model.num_classes=3", "label"),
        ("train.global_batch=400", "fewer than one global batch of 400"),
        ("train.global_batch=5", "not a multiple"),
        ("model.groups=32", "32 groups do not divide a layer's 8 channels"),
        ("data.decoder=decodr", "data.decoder"),
        ("data.crop=4", "data.crop"),
    ],
)
def test_mistakes_in_the_config(tmp_path, videos, override, words):
    tiny(tmp_path, videos)
    done = tool("tools/train.py", str(tmp_path / "tiny.yaml"), override)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_wrong_root_is_told_before_training(tmp_path, videos):
    (tmp_path / "empty").mkdir()
    for name in ("train.csv", "val.csv"):
        shutil.copy(videos / name, tmp_path / "empty" / name)
    with pytest.raises(UserError, match="data.root"):
        run(tiny(tmp_path, videos, f"data.root={tmp_path / 'empty'}"))


def test_the_folder_of_another_experiment_is_left_alone(trained, tmp_path, videos):
    shutil.copytree(trained, tmp_path / "run")
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}
    with pytest.raises(UserError, match=r"another experiment \(model.norm: gn -> bn\)"):
        run(tiny(tmp_path, videos, "model.norm=bn"))
    assert before == {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}


def damaged(videos: Path, folder: Path, *names: str) -> Path:
    """A copy of the videos in which those that match are cut short."""
    shutil.copytree(videos, folder)
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:300])
    return folder


def test_unreadable_training_videos_are_replaced_named_and_counted(tmp_path, videos):
    listed = [line.rsplit(" ", 1)[0] for line in (videos / "train.csv").read_text().splitlines()]
    root = damaged(videos, tmp_path / "videos", listed[3], listed[7])
    folder = run(tiny(tmp_path, root))
    named = [line.split("\t")[0] for line in (folder / "unreadable.txt").read_text().splitlines()]
    assert sorted(Path(p).relative_to(root).as_posix() for p in named) == sorted([listed[3], listed[7]])
    assert [r["step"] for r in records(folder) if r["kind"] == "epoch"] == [5, 10]  # no step was lost


def test_too_many_unreadable_training_videos_end_the_run(tmp_path, videos):
    listed = [line.rsplit(" ", 1)[0] for line in (videos / "train.csv").read_text().splitlines()]
    root = damaged(videos, tmp_path / "videos", *listed[:8])
    with pytest.raises(UserError, match="more than data.max_unreadable 2"):
        run(tiny(tmp_path, root))


def test_an_unreadable_validation_video_is_named_and_not_scored(tmp_path, videos, capsys):
    listed = [line.rsplit(" ", 1)[0] for line in (videos / "val.csv").read_text().splitlines()]
    root = damaged(videos, tmp_path / "videos", listed[5])
    folder = run(tiny(tmp_path, root, "train.epochs=1"))
    (epoch,) = (r for r in records(folder) if r["kind"] == "epoch")
    assert (epoch["val/videos_scored"], epoch["val/videos_unreadable"]) == (10, 1)
    assert f"validation video not scored: {root / listed[5]}" in capsys.readouterr().err


def test_without_a_readable_validation_video_the_run_ends_well(tmp_path, videos, capsys):
    listed = [line.rsplit(" ", 1)[0] for line in (videos / "val.csv").read_text().splitlines()]
    folder = run(tiny(tmp_path, damaged(videos, tmp_path / "videos", *listed), "train.epochs=1"))
    (epoch,) = (r for r in records(folder) if r["kind"] == "epoch")
    assert (epoch["val/videos_scored"], epoch["val/top1_error"]) == (0, None)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.pt"]
    assert "no evaluation has an error" in capsys.readouterr().err


def test_precise_statistics_name_the_videos_that_they_cannot_read(tmp_path, videos):
    """Also those that the epoch's steps left out."""
    options = ["model.norm=bn", "train.epochs=1", "data.max_unreadable=0", "train.global_batch=2", "seed=5"]
    order = dataset.epoch_order(22, 5, 0)
    listed = [line.rsplit(" ", 1)[0] for line in (videos / "train.csv").read_text().splitlines()]
    names = [listed[index] for index in dataset.epoch_order(22, 5, 1)[:1]]
    assert listed[order[0]] not in names
    root = damaged(videos, tmp_path / "videos")
    trainer_step = Trainer.step

    def step(self, *arguments):
        done = trainer_step(self, *arguments)
        if self.step_done == 10:  # the last of the epoch: from here on only the statistics read
            for name in names:
                (root / name).write_bytes(b"cut")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(UserError, match="more than data.max_unreadable 0"):
            run(tiny(tmp_path, root, *options))


def test_best_alone_does_not_put_off_the_next_checkpoint(tmp_path, videos, monkeypatch):
    """A run resumes from last.pt."""
    saved = []
    save = state.save

    def spy(self, writers, *, last=True, best=False):
        before = self.saved_at
        save(self, writers, last=last, best=best)
        saved.append((last, best, self.saved_at > before))

    monkeypatch.setattr(state, "save", spy)
    run(tiny(tmp_path, videos, "checkpoint.every_epochs=5"))
    assert (False, True, False) in saved  # the first epoch's error is the best so far
    assert saved[-1][0] and saved[-1][2]


def test_a_diverged_run_stops(tmp_path, videos):
    with pytest.raises(
        UserError, match=r"11 steps with a loss or gradient that is not finite, more than train.max_bad"
    ):
        run(tiny(tmp_path, videos, "optim.lr=1e6", "model.norm=none", "train.epochs=20"))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_is_not_applied_and_its_videos_are_named(tmp_path, videos, monkeypatch, capsys, what):
    """Infinite clips in the second pass of step 3, or an infinite gradient: nothing but the schedule moves."""
    step = Trainer.step
    states: dict[int, dict] = {}

    def recording(self, passes, epoch, meter):
        def copy():
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            momenta = self.optimizer.state_dict()["state"].values()
            return state | {f"momentum {k}": m["momentum_buffer"].clone() for k, m in enumerate(momenta)}

        if self.step_done == 2:
            states["before"] = copy()
            states["videos"] = [self.feed.train_clips.records[item.index].path for item in self.prefetched.items]
            if what == "gradient":
                fc = self.model.head.fc.weight
                hook = fc.register_hook(lambda gradient: gradient * math.inf)
            else:
                self.prefetched.clips.fill_(math.inf)
        done = step(self, passes, epoch, meter)
        if self.step_done == 2:
            states["after"] = copy()
            if what == "gradient":
                hook.remove()
        return done

    monkeypatch.setattr(Trainer, "step", recording)
    change = ["model.norm=bn", "train.precise_bn_batches=0", "train.epochs=1", "train.max_bad_steps=1"]
    folder = run(tiny(tmp_path, videos, *change, "train.log_every=1"))
    assert states["before"].keys() == states["after"].keys()
    assert all(torch.equal(a, states["after"][name]) for name, a in states["before"].items())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not applied" in line]
    assert line.startswith(
        f"step 3 is not applied, its {'loss is nan' if what == 'loss' else 'gradient is not finite'}"
    )
    named = line.partition("its videos: ")[2].split(", ")
    assert named[:2] == states["videos"] and len(named) == (2 if what == "loss" else 4)
    log = [r for r in records(folder) if r["kind"] == "train"]
    assert [r["system/bad_steps"] for r in log] == [0, 0, 1, 1, 1]
    assert [r["train/loss"] is None for r in log] == [False, False, True, False, False]
    assert math.isfinite(next(r for r in records(folder) if r["kind"] == "epoch")["epoch/train_loss"])
