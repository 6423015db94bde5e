"""The path of the data is straight, by tools/dev/trace_path.py; the README names the files that it goes through."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "video_gn"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_path", ROOT / "tools" / "dev" / "trace_path.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demo")
    script.write_demo(str(folder))
    return str(folder)


def test_changes_of_file_are_counted(script: ModuleType) -> None:
    files = ["a.py", "a.py", "b.py", "data/decode/c.py", "data/decode/d.py", "b.py", "b.py", "a.py"]
    trace = script.Trace(script.Call(file, "f") for file in files)
    assert (trace.places, trace.changes) == (["a.py", "b.py", "data/decode/"], 4)
    assert trace.strict == (4, 5)


def test_calls_are_those_of_this_package_in_order(script: ModuleType) -> None:
    """Called from numpy or from a comprehension, too; what returns is no call."""
    from video_gn.data.sampling import keyed_rng, uniform_starts

    calls = script.record(lambda: (keyed_rng(1), sorted([3, 1], key=lambda n: uniform_starts(10, n, 1, 2)[0])))
    assert [call for call in calls if "listcomp" not in call.function] == [
        ("data/sampling.py", "keyed_rng"),
        ("data/sampling.py", "uniform_starts"),
        ("data/sampling.py", "uniform_starts"),
    ]


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_the_path_is_straight(script: ModuleType, demo: str, decoder: str) -> None:
    """Of files and changes of file few: per micro-batch of 2 clips, per step, and per video of the 10-clip test.

    One change of a micro-batch is the backward pass of Group Norm in a channels-last format.
    """
    micro_batch, step = script.trace_training(demo, [f"data.decoder={decoder}"])
    assert (len(micro_batch.places) <= 10, micro_batch.changes <= 31) == (True, True), str(micro_batch)
    assert (len(step.places) <= 14, step.changes <= 42) == (True, True), str(step)
    video = script.trace_test(demo, [f"data.decoder={decoder}"])
    assert (len(video.places) <= 10, video.changes <= 30) == (True, True), str(video)


def test_the_readme_names_each_file_from_the_command_to_the_loss(script: ModuleType, demo: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"^From the command to the loss: (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    command, *named = re.findall(r"`([^`]+)`", paragraph)
    assert (ROOT / command).is_file()
    assert [name for name in named if not (PACKAGE / name).exists()] == []
    micro_batch, _ = script.trace_training(demo)
    assert sorted(named) == sorted(micro_batch.places)
