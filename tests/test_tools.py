"""The tools as a person meets them: help, results, the demo's four steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HANG
from tests.tiny_runs import tool

ROOT = Path(__file__).parent.parent
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


ALL_HELP = """
import contextlib, io, json, runpy, sys
shown = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            code = runpy.run_path(f"tools/{name}", run_name="__main__") and None
        except SystemExit as end:
            code = end.code
    shown[name] = [code, text.getvalue(), sorted({"torch", "numpy", "av"} & set(sys.modules))]
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown() -> dict[str, list]:
    """Exit code, text and heavy imports of each tool's help: of one process for all."""
    command = [sys.executable, "-c", ALL_HELP, *TOOLS]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=HANG)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TOOLS)
def test_help_has_an_example_and_imports_no_torch(shown, name):
    code, text, heavy = shown[name]
    assert (code, heavy) == (0, [])
    assert f"python tools/{name}" in text
    assert "exit codes" in text


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux's OpenMP says of itself")
@pytest.mark.parametrize(("given", "taken"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_tool_sleep_while_they_wait(given, taken):
    """As the OpenMP that PyTorch loads says; a value of the user's stays."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    command = [sys.executable, "tools/model_info.py", "configs/demo/demo.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=HANG)
    assert re.search(r"OMP_WAIT_POLICY\s*=\s*'(\w+)'", done.stderr)[1] == taken


def test_model_info():
    config = "configs/kinetics400/i3d_r50_gn_32x2_8clips.yaml"
    info = json.loads(tool("tools/model_info.py", config, "--json").stdout)
    assert (info["parameters"], round(info["gmacs"], 1)) == (28_043_472, 32.8)
    text = tool("tools/model_info.py", config).stdout
    assert "28.04 M" in text and "8 x 55 x 55" in text


def test_the_demo_in_small_and_again(tmp_path):
    arguments = ["tools/demo.py", "--train-videos", "20", "--val-videos", "10"]
    arguments += [
        f"data.root={tmp_path / 'motion'}",
        f"output_dir={tmp_path / 'demo'}",
        "train.epochs=1",
        "data.workers=0",
    ]
    first = tool(*arguments)
    assert first.returncode == 0, first.stderr
    for words in ("top-1", "top-5", "10 of 10 listed", "clips/s", "curves.png", "tensorboard --logdir"):
        assert words in first.stdout
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "demo").glob("test_*.json"))) == 1
    again = tool(*arguments)
    assert again.returncode == 0, again.stderr
    assert "already trained" in again.stderr
    assert again.stdout == first.stdout  # the same score and speed: it was not measured again


def test_an_unexpected_file_is_a_line_and_exit_code_2(tmp_path):
    for arguments in (
        ("tools/train.py", str(tmp_path / "absent.yaml")),
        ("tools/model_info.py", str(tmp_path)),
        ("tools/plot_curves.py", str(tmp_path)),
        ("tools/test.py", str(ROOT / "README.md")),
    ):
        done = tool(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
