"""What importing costs, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers import HANG

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
