"""What imports what, what importing costs, and what it leaves alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HANG

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "video_gn"
HEAVY = ("matplotlib", "tensorboard", "torch._dynamo", "torch._inductor")
"""Libraries that take as long as all the rest to import, and that prediction does not use."""
DRAWING = ("video_gn.predict", "video_gn.report", "video_gn.study", "video_gn.show_clips", "video_gn.draw.board")


def run_python(code: str) -> list[str]:
    """Return what a new Python prints, by lines."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_load_imports_what_prediction_needs() -> None:
    code = f"import sys, video_gn.inference; print(*[name for name in {HEAVY} if name in sys.modules], sep='\\n')"
    assert [line for line in run_python(code) if line] == []


@pytest.mark.parametrize("backend", ["svg", "pdf"])
def test_drawing_leaves_the_backend_alone(backend: str) -> None:
    code = f"""
import importlib, sys
import matplotlib
matplotlib.use({backend!r})
for name in ("video_gn.inference", *{DRAWING}, "video_gn.run.plots"):
    importlib.import_module(name)
import numpy as np
from video_gn.draw.figures import confusion_figure, pixels
print(pixels(confusion_figure(np.eye(2, dtype=int), ["a", "b"])).shape)
print("matplotlib.pyplot" in sys.modules, matplotlib.get_backend())
"""
    assert run_python(code) == ["(600, 600, 3)", f"False {backend}"]


# Floors


def floors() -> dict[str, int]:
    """Return the floor of each room, as the table of docs/architecture.md has it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([0-9]+) \| ([^|]*) \|", text, re.MULTILINE)
    return {room: int(number) for number, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


def imported(code: str) -> set[str]:
    """Return the rooms that a module imports, inside functions and for types too."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    assert not any(name.startswith(".") for name in names), "a relative import"
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "video_gn" and len(part) > 1} - {"__version__"}


def faults(modules: dict[str, str], floor: dict[str, int]) -> list[str]:
    """Return "module -> room" for each import, in modules by path, that does not lead down."""
    found = []
    for path, code in modules.items():
        room = path.split("/")[0].removesuffix(".py")
        found += [f"{path} -> {other}" for other in imported(code) if other != room and floor[other] >= floor[room]]
    return sorted(found)


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__"} == floors().keys()


def test_imports_lead_down() -> None:
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    del paths["__init__.py"]
    assert faults({name: path.read_text(encoding="utf-8") for name, path in paths.items()}, floors()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from video_gn.engine import train",
        "from video_gn import engine",
        "import video_gn.engine.train as t",
        "def f():\n    from video_gn.engine.train import Trainer",
        "from video_gn.data.lists import Record\nif TYPE_CHECKING:\n    from video_gn.engine.train import Trainer",
    ],
)
def test_an_import_upwards_is_found(line: str) -> None:
    floor = {"data": 0, "run": 1, "engine": 2}
    assert faults({"run/log.py": line}, floor) == ["run/log.py -> engine"]
    assert faults({"engine/log.py": line}, floor) == []
