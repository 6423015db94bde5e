"""Runs that are killed or asked to stop, in processes of their own, and started again: as if nothing had happened."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny_runs import ROOT, records, run, tiny, without_times
from video_gn.engine.train import Trainer
from video_gn.run import checkpoint as ckpt

# A process a run, which forks from one that has imported all: a start takes no time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._inductor", "video_gn.engine.train", "tests.test_resume"])

NET = ["model.norm=bn", "train.precise_bn_batches=0"]  # Batch Norm's running statistics are part of the state
OFTEN = "checkpoint.every_minutes=1e-9"  # after each step


# --- what happens at which moment: each is called in the run's process before training ---


def at_step(step: int, what: Callable[[], None]) -> None:
    """In the middle of a step: the gradient is there, the weights have not moved."""
    agree = Trainer._agree

    def patched(self: Trainer, losses: list) -> Any:
        if self.step_done == step:
            what()
        return agree(self, losses)

    Trainer._agree = patched  # type: ignore[method-assign]


def at_evaluation(number: int, what: Callable[[], None]) -> None:
    """After the first batch of evaluation `number`."""
    evaluate, calls = Trainer.evaluate, [0]

    def patched(self: Trainer) -> Any:
        calls[0] += 1
        if calls[0] == number:
            self.model.register_forward_hook(lambda *_: what())
        return evaluate(self)

    Trainer.evaluate = patched  # type: ignore[method-assign]


def at_call(name_of_module: str, name: str, number: int, what: Callable[[], None]) -> None:
    """Before call `number` of a module's function."""
    module = importlib.import_module(name_of_module)
    real, calls = getattr(module, name), [0]

    def patched(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            what()
        return real(*arguments, **options)

    setattr(module, name, patched)


def half_written(number: int, what: Callable[[], None]) -> None:
    """When half of checkpoint `number` is in its file."""
    save, calls = torch.save, [0]

    def patched(state: Any, file: Any) -> None:
        calls[0] += 1
        save(state, file)
        if calls[0] == number:
            file.truncate(file.tell() // 2)
            what()

    torch.save = patched


def spoil_batch(step: int) -> None:
    """Infinite clips."""
    real = Trainer.step

    def patched(self: Trainer, *arguments: Any) -> Any:
        if self.step_done == step:
            assert self.prefetched is not None
            self.prefetched.clips.fill_(torch.inf)
        return real(self, *arguments)

    Trainer.step = patched  # type: ignore[method-assign]


def fill_disk() -> None:
    """No file grows beyond 100 kB, a sixth of a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ask_twice() -> None:
    ask_by_usr1()
    ask()


def ask_by_usr1() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


# --- running ---


def tool(arguments: list[str], place: dict[str, str], moment: tuple | None) -> None:
    """Runs tools/train.py in this process; what it says goes to a file beside the config."""
    with Path(arguments[0]).with_name("said.txt").open("a") as file:
        os.dup2(file.fileno(), 2)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    os.environ.update(place)
    if moment is not None:
        moment[0](*moment[1:])
    sys.argv = ["tools/train.py", *arguments]
    runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


def start(folder: Path, videos: Path, *overrides: str, moment: tuple | None = None, place: Any = None) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    tiny(folder, videos)
    arguments = [str(folder / "tiny.yaml"), *overrides]
    process = PROCESSES.Process(target=tool, args=(arguments, place or {}, moment))
    process.start()
    return process


def finish(*arguments: Any, **options: Any) -> int | None:
    process = start(*arguments, **options)
    process.join()
    return process.exitcode


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def curves(folder: Path) -> dict[str, list]:
    """TensorBoard's."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("system/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same(folder: Path, other: Path) -> None:
    """Bitwise the same last.pt and best.pt; the same log but for times."""
    assert without_times(folder) == without_times(other)
    assert curves(folder) == curves(other)
    for name in ("last.pt", "best.pt"):
        one, two = (ckpt.load(path / "checkpoints" / name) for path in (folder, other))
        for state in (one, two):
            del state["config"]
        assert_equal(one, two, name)


def assert_equal(one: Any, two: Any, place: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), place
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), place
        for key in one:
            assert_equal(one[key], two[key], f"{place} {key}")
    elif isinstance(one, list):
        assert len(one) == len(two), place
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{place} {k}")
    else:
        assert one == two, place


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(folder, videos, *NET) == 0
    return folder / "run"


STATE = "video_gn.engine.state"
KILLS = {
    # 2 epochs of 5 steps; with OFTEN checkpoints 1 to 4 are of steps 1 to 4, 5 and 6 are best.pt and last.pt of step 5.
    "in a step": ([OFTEN], (at_step, 7, die)),
    "half a checkpoint written": ([OFTEN], (half_written, 3, die)),
    "in the evaluation": ([OFTEN], (at_evaluation, 2, die)),
}
MORE_KILLS = {
    "in the first step of all": ([OFTEN], (at_step, 0, die)),
    "in a step, long after the last checkpoint": ([], (at_step, 8, die)),
    "half of best.pt written": ([], (half_written, 1, die)),
    "between best.pt and last.pt": ([], (half_written, 2, die)),
    "between the moves of a checkpoint": ([OFTEN], (at_call, "os", "replace", 9, die)),
    "in the evaluation, long after the last checkpoint": ([], (at_evaluation, 2, die)),
    "between epochs, before the checkpoint": ([], (at_call, STATE, "save", 1, die)),
    "between the log line and its checkpoint": ([OFTEN], (at_call, STATE, "_write", 3, die)),
    "after the last log line": ([OFTEN], (at_call, STATE, "save", 10, die)),
}


def slow(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("moment", [*KILLS, *slow(MORE_KILLS)])
def test_a_killed_run_ends_as_one_never_stopped(tmp_path: Path, videos: Path, unbroken: Path, moment: str) -> None:
    overrides, kill = (KILLS | MORE_KILLS)[moment]
    assert finish(tmp_path, videos, *NET, *overrides, moment=kill) == -signal.SIGKILL
    assert finish(tmp_path, videos, *NET, *overrides) == 0
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_time(tmp_path: Path, videos: Path, unbroken: Path, seed: int) -> None:
    """Once or more often, until a start lives to the end; decoding processes and all."""
    options = [*NET, OFTEN, "data.workers=1"]
    rng = random.Random(seed)
    kills = 0
    for seconds in [rng.uniform(0, 3) for _ in range(rng.randint(1, 3))]:
        process = start(tmp_path, videos, *options)
        time.sleep(seconds)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert finish(tmp_path, videos, *options) == 0
    assert_same(tmp_path / "run", unbroken)


STOPS = {  # moment, and the step of the checkpoint
    "in a step": ((at_step, 6, ask), 7),
    "in the last evaluation": ((at_evaluation, 2, ask), 10),
}
MORE_STOPS = {
    "by SIGUSR1": ((at_step, 6, ask_by_usr1), 7),
    "in an epoch's last step": ((at_step, 4, ask), 5),
    "in the first evaluation": ((at_evaluation, 1, ask), 5),
}


@pytest.mark.parametrize("moment", [*STOPS, *slow(MORE_STOPS)])
def test_a_run_that_is_asked_to_stop_goes_on_later(tmp_path: Path, videos: Path, unbroken: Path, moment: str) -> None:
    asking, step = (STOPS | MORE_STOPS)[moment]
    assert finish(tmp_path, videos, *NET, moment=asking) == 75
    assert ckpt.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == step
    assert finish(tmp_path, videos, *NET) == 0
    assert_same(tmp_path / "run", unbroken)


def test_asked_twice_is_asked_once(tmp_path: Path, videos: Path) -> None:
    """SLURM's SIGUSR1 and torchrun's SIGTERM may both come; neither cuts the checkpoint short."""
    assert finish(tmp_path, videos, moment=(at_step, 6, ask_twice)) == 75
    assert ckpt.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 7
    assert said(tmp_path).count("going to stop") == 1


def test_nothing_else_is_random(tmp_path: Path, videos: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no generator's state is saved: whatever it is before a step or an evaluation, the run is the same."""
    for name in ("step", "end_epoch"):
        real = getattr(Trainer, name)

        def scrambled(self: Trainer, *arguments: Any, real: Any = real) -> Any:
            seed = int.from_bytes(os.urandom(4), "little")
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return real(self, *arguments)

        monkeypatch.setattr(Trainer, name, scrambled)
    run(tiny(tmp_path, videos, *NET))
    assert_same(tmp_path / "run", unbroken)


def test_a_bit_flipped_checkpoint_is_told_and_the_one_before_taken(
    tmp_path: Path,
    videos: Path,
    unbroken: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = [*NET, OFTEN, "checkpoint.keep=3"]
    assert finish(tmp_path, videos, *options, moment=(at_step, 8, die)) == -signal.SIGKILL
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    flipped = bytearray(last.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    last.write_bytes(flipped)
    capfd.readouterr()
    run(tiny(tmp_path, videos, *options))
    lines = capfd.readouterr().err
    assert "last.pt: damaged" in lines and "going on from previous.pt, after step 7" in lines
    assert_same(tmp_path / "run", unbroken)


def ranks(folder: Path, videos: Path, *overrides: str, moments: Any = (None, None)) -> list[int | None]:
    """Exit codes of two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    places = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [
        start(folder, videos, *overrides, moment=moment, place=place)
        for place, moment in zip(places, moments, strict=True)
    ]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_two_ranks_stop_at_one_step_and_keep_their_own_statistics(tmp_path: Path, videos: Path) -> None:
    """Batch Renorm trains by each rank's running statistics. One rank alone is asked."""
    options = ["model.norm=brn", "model.brn_warmup=0", "model.brn_ramp=4", "train.epochs=1"]
    assert ranks(tmp_path / "whole", videos, *options) == [0, 0]
    assert ranks(tmp_path / "cut", videos, *options, moments=(None, (at_step, 1, ask))) == [75, 75]
    state = ckpt.load(tmp_path / "cut" / "run" / "checkpoints" / "last.pt")
    assert state["step"] == 2
    means = [share["buffers"]["stem.norm.running_mean"] for share in state["loop"]["ranks"]]
    assert not torch.equal(*means)
    assert ranks(tmp_path / "cut", videos, *options) == [0, 0]
    assert_same(tmp_path / "cut" / "run", tmp_path / "whole" / "run")


def test_one_rank_s_bad_batch_is_passed_over_by_both(tmp_path: Path, videos: Path) -> None:
    options = ["model.norm=bn", "train.precise_bn_batches=0", "train.epochs=1", "train.log_every=1"]
    assert ranks(tmp_path, videos, *options, moments=(None, (spoil_batch, 2))) == [0, 0]
    log = [record for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert [record["system/bad_steps"] for record in log] == [0, 0, 1, 1, 1]
    assert [record["train/loss"] is None for record in log] == [False, False, True, False, False]
    state = ckpt.load(tmp_path / "run" / "checkpoints" / "last.pt")["model"]
    assert all(value.isfinite().all() for value in state.values())
    (line,) = [line for line in said(tmp_path).splitlines() if "not applied" in line]
    assert line.startswith("step 3 is not applied, its loss is nan; its videos: ")
    assert line.count(".mp4") == 2  # of rank 1's pass


def test_a_full_disk_ends_the_run_and_leaves_a_whole_checkpoint(tmp_path: Path, videos: Path, unbroken: Path) -> None:
    assert finish(tmp_path, videos, *NET, OFTEN, moment=(at_step, 6, fill_disk)) == 2
    assert said(tmp_path).splitlines()[-1].startswith("error: ")
    assert "last.pt: cannot be written (File too large); free space" in said(tmp_path).splitlines()[-1]
    assert ckpt.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 6
    assert finish(tmp_path, videos, *NET, OFTEN) == 0
    assert_same(tmp_path / "run", unbroken)
