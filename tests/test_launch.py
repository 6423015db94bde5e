"""The launch scripts: exit codes and restarts of torchrun.sh, and what slurm.sbatch asks of SLURM (played by stubs)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import HANG, wait_until

ROOT = Path(__file__).parent.parent
SCRIPT = "tools/launch/torchrun.sh"


def launch(folder: Path, code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """torchrun.sh with a Python program of this text."""
    (folder / "program.py").write_text(code)
    with_defaults = {"PYTHON": sys.executable, "RANKS": "2", "RESTARTS": "2", "PORT": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [SCRIPT, str(folder / "program.py"), str(folder), *arguments],
        cwd=ROOT,
        env=os.environ | with_defaults | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def starts(folder: Path) -> int:
    return len(list(folder.glob("start*")))


def test_a_mistake_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    code = "from video_gn import cli\nfrom video_gn.errors import UserError\nimport os, sys, tempfile\n"
    code += "tempfile.mkstemp(dir=sys.argv[1], prefix='start')\n"
    code += "def main(): raise UserError('no such list')\ncli.run(main)\n"
    process = launch(tmp_path, code)
    error = process.communicate(timeout=HANG)[1]
    assert process.returncode == 2
    assert error.count("error: no such list") == 1
    assert starts(tmp_path) == 2


def test_a_mistake_of_one_rank_is_told_and_not_tried_again(tmp_path: Path) -> None:
    """Rank 0, which waits for it in a collective, breaks off too; its traceback is not what one sees."""
    code = "from video_gn import cli\nfrom video_gn.distributed.world import world\n"
    code += "from video_gn.errors import UserError\nimport sys, tempfile\n"
    code += "tempfile.mkstemp(dir=sys.argv[1], prefix='start')\n"
    code += "def main():\n    with world('cpu') as ranks:\n"
    code += "        if ranks.rank == 1: raise UserError('a worker was lost')\n        ranks.gather(0)\n"
    code += "cli.run(main)\n"
    process = launch(tmp_path, code)
    error = process.communicate(timeout=HANG)[1]
    assert process.returncode == 2
    assert error.count("error: a worker was lost") == 1
    assert "Traceback" not in error
    assert starts(tmp_path) == 2


@pytest.mark.parametrize(("restarts", "ends"), [("0", 75), ("1", 0)])
def test_a_stop_that_came_to_the_ranks_alone_goes_on_while_restarts_are_left(
    tmp_path: Path, restarts: str, ends: int
) -> None:
    """Or to another node's torchrun: what is left of the job starts again from the checkpoint."""
    code = "import os, sys, tempfile\ntempfile.mkstemp(dir=sys.argv[1], prefix='start')\n"
    code += "sys.exit(75 if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else 0)\n"
    process = launch(tmp_path, code, RESTARTS=restarts)
    error = process.communicate(timeout=HANG)[1]
    assert process.returncode == ends, error
    assert starts(tmp_path) == (2 if ends else 4)


@pytest.mark.slow
def test_a_failed_rank_is_started_again(tmp_path: Path) -> None:
    """The first time rank 1 is killed; torchrun stops rank 0, which would wait for ever, and starts both."""
    code = "import os, sys, time, tempfile, signal\n"
    code += "tempfile.mkstemp(dir=sys.argv[1], prefix='start')\n"
    code += "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
    code += "    if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(1000)\n"
    process = launch(tmp_path, code)
    process.communicate(timeout=HANG)
    assert process.returncode == 0
    assert starts(tmp_path) == 4


SAVES = """
import os, signal, sys, time
from pathlib import Path

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(folder / f"start{rank}").touch()
while not asked:
    time.sleep(0.05)
(folder / f"asked{rank}").touch()
while not (folder / "go").exists():
    time.sleep(0.05)
(folder / f"saved{rank}").touch()
sys.exit(75)
"""
"""Ranks whose checkpoint takes until there is a file `go`."""


def wait_for(folder: Path, names: str) -> None:
    """Wait until both ranks have left such a file."""
    wait_until(lambda: len(list(folder.glob(names))) == 2, names)


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_reaches_the_ranks_and_ends_the_job_with_75(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "go").touch()
    process = launch(tmp_path, SAVES)
    wait_for(tmp_path, "start?")
    process.send_signal(number)
    process.communicate(timeout=HANG)
    assert process.returncode == 75
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}


def test_further_signals_cut_no_checkpoint_short(tmp_path: Path) -> None:
    """SLURM's warning, its SIGTERM and a user's: torchrun alone waits for the ranks at two, and leaves at the third."""
    process = launch(tmp_path, SAVES)
    wait_for(tmp_path, "start?")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        wait_for(tmp_path, "asked?")
        time.sleep(0.4)
    assert not list(tmp_path.glob("saved*"))
    (tmp_path / "go").touch()
    assert process.wait(timeout=HANG) == 75
    saved = {path.name for path in tmp_path.glob("saved*")}
    process.communicate(timeout=HANG)  # of ranks left behind, too
    assert saved == {"saved0", "saved1"}


def test_nodes_without_a_head_and_no_command_are_mistakes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    two = subprocess.run([SCRIPT, "x.py"], cwd=ROOT, env=environment | {"NODES": "2"}, capture_output=True, text=True)
    assert (two.returncode, two.stderr) == (2, "error: NODES=2 needs HEAD, the head node's name or address\n")
    usage = subprocess.run([SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert usage.returncode == 2
    assert usage.stderr.startswith("Run a tool on every GPU") and "RESTARTS" in usage.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = launch(tmp_path, "", PORT=str(port), RANKS="1")
        error = process.communicate(timeout=HANG)[1]
    assert process.returncode == 2
    assert error == (
        f"error: localhost:{port} is taken by another program or job on this node; set PORT to a free port, the same "
        "on all nodes\n"
    )


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    """The kernel asks the ranks to stop; they write their checkpoint."""
    process = launch(tmp_path, SAVES)
    wait_for(tmp_path, "start?")
    process.kill()
    wait_for(tmp_path, "asked?")
    (tmp_path / "go").touch()
    wait_for(tmp_path, "saved?")
    process.communicate(timeout=HANG)  # its pipes are closed when the ranks have ended


# --- slurm.sbatch ---


def slurm(folder: Path, srun: str) -> subprocess.Popen[str]:
    """The batch script as SLURM's shell runs it, with a stub `srun` of this text."""
    programs = {
        "scontrol": 'if [[ $1 == show ]]; then printf "n1\\nn2\\n"; else echo "$@" >> asked; fi\n',
        "srun": srun,
    }
    (folder / "bin").mkdir()
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "31234", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "1"}
    return subprocess.Popen(
        ["bash", str(ROOT / "tools/launch/slurm.sbatch"), "tools/train.py", "a b.yaml"],
        cwd=folder,
        env=os.environ | job | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_slurm_starts_torchrun_on_each_node(tmp_path: Path) -> None:
    (tmp_path / "tools" / "launch").mkdir(parents=True)
    script = tmp_path / "tools" / "launch" / "torchrun.sh"
    script.write_text('#!/bin/bash\necho "$NODES $NODE $HEAD $PORT $JOB"\nprintf "<%s>" "$@"\n')
    script.chmod(0o755)
    process = slurm(tmp_path, 'shift; exec "$@"\n')
    output, error = process.communicate(timeout=HANG)
    assert process.returncode == 0, error
    assert output == "2 1 n1 21234 video_gn_31234\n<tools/train.py><a b.yaml>"
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("code", "asked"), [(75, True), (1, False), (2, False)])
def test_slurm_queues_again_what_was_preempted(tmp_path: Path, code: int, asked: bool) -> None:
    process = slurm(tmp_path, f"exit {code}\n")
    process.communicate(timeout=HANG)
    assert process.returncode == code
    assert (tmp_path / "asked").exists() == asked
    if asked:
        assert (tmp_path / "asked").read_text() == "requeue 31234\n"


def test_slurm_passes_its_warning_on_and_waits(tmp_path: Path) -> None:
    """srun is signalled, takes a while, and another task's code hides the 75."""
    process = slurm(
        tmp_path, 'trap "sleep 0.5; touch saved; exit 137" USR1\ntouch up\nwhile true; do sleep 0.05; done\n'
    )
    wait_until((tmp_path / "up").exists)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=HANG)
    assert process.returncode == 137
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text() == "requeue 31234\n"
