"""Two hosts on one machine, network namespaces joined by a cable, through the launch scripts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import HANG, wait_until
from tests.tiny_runs import tiny, weights
from video_gn.data.motion import write_dataset

ROOT = Path(__file__).parent.parent
SUM = """
import os, torch
from video_gn import cli
from video_gn.distributed.world import world
def main():
    with world("cpu", {"seed": SEED}) as ranks:
        print(int(ranks.sum(torch.tensor([10 ** ranks.rank]))))
cli.run(main)
"""
OPTIONS = ["model.dropout=0", "train.global_batch=8", "optim.lr=0.01", "data.flip=0"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=HANG)


class Hosts:
    """Two hosts a and b, 10.77.0.1 and 10.77.0.2, in namespaces of their own."""

    def __init__(self, name: str) -> None:
        self.names = [f"{name}a", f"{name}b"]
        self.started: list[subprocess.Popen[str]] = []

    def open(self) -> None:
        a, b = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "name", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b)
        for number, name in enumerate(self.names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def mend(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "up")

    def pids(self, name: str) -> list[int]:
        """Processes of a host."""
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def kill(self, rank: int) -> None:
        """End a rank's process on host b without warning."""
        for pid in self.pids(self.names[1]):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
        raise AssertionError(f"no rank {rank}")

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        for name in self.names:
            for pid in self.pids(name):  # what the test left behind on its own hosts
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def launch(self, *command: str, ranks: tuple[int, int] = (2, 2), **environment: str) -> list[subprocess.Popen[str]]:
        """torchrun.sh on both hosts."""
        processes = []
        for node, name in enumerate(self.names):
            options = {"NODES": "2", "NODE": str(node), "HEAD": "10.77.0.1", "ADDRESS": f"10.77.0.{node + 1}"}
            options |= {"RANKS": str(ranks[node]), "PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "cable"}
            options |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "RESTARTS": "0"}
            inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
            process = subprocess.Popen(
                [*inside, "tools/launch/torchrun.sh", *command],
                cwd=ROOT,
                env=os.environ | options | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
        self.started += processes
        return processes

    def run(self, *command: str, ranks: tuple[int, int] = (2, 2), **environment: str) -> list[tuple[str, str]]:
        """stdout and stderr of both hosts; both must end well."""
        processes = self.launch(*command, ranks=ranks, **environment)
        said = [process.communicate(timeout=HANG) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(error for _, error in said)
        return said


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no ip command")
    pair = Hosts(f"vgn{os.getpid()}")
    try:
        pair.open()
        subprocess.run(
            ["ip", "netns", "exec", pair.names[0], "unshare", "--uts", "true"], check=True, capture_output=True
        )
    except (subprocess.CalledProcessError, PermissionError) as error:
        pair.close()
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=22, val_videos=11, num_frames=20, size=32, workers=1, progress=False)
    return folder


def alone(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_two_hosts_meet_and_add(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "sum.py").write_text(SUM.replace("SEED", "0"))
    (out_a, err_a), (out_b, _) = hosts.run(str(tmp_path / "sum.py"), ranks=(1, 1))
    assert (out_a.split(), out_b.split()) == (["11"], ["11"])
    a, b = hosts.names
    assert f"2 ranks: torch {torch.__version__}, gloo, video_gn " in err_a
    assert f"  {a}: rank 0 cpu\n  {b}: rank 1 cpu\n" in err_a


@pytest.mark.slow
def test_hosts_that_differ_do_not_start(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "sum.py").write_text(SUM.replace("SEED", 'int(os.environ["NODE"])'))
    processes = hosts.launch(str(tmp_path / "sum.py"), RESTARTS="3")
    errors = [process.communicate(timeout=HANG)[1] for process in processes]
    assert processes[0].returncode == 2, errors[0]  # and the restarts were not used
    assert "the ranks do not agree: seed: 0 (ranks 0, 1), 1 (ranks 2, 3); give all" in errors[0]
    assert processes[1].returncode in (1, 2)


@pytest.mark.slow
def test_two_hosts_train_as_one_process(hosts: Hosts, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "two").mkdir()
    for folder in (tmp_path, tmp_path / "two"):
        tiny(folder, videos)
    alone("tools/train.py", str(tmp_path / "tiny.yaml"), *OPTIONS)
    hosts.run("tools/train.py", str(tmp_path / "two" / "tiny.yaml"), *OPTIONS)
    assert_same_weights(tmp_path / "run", tmp_path / "two" / "run")


@pytest.mark.slow
def test_a_host_cut_off_stops_the_job_which_goes_on_later(hosts: Hosts, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "two").mkdir()
    for folder in (tmp_path, tmp_path / "two"):
        tiny(folder, videos)
    options = [*OPTIONS, "train.epochs=16"]
    command = ["tools/train.py", str(tmp_path / "two" / "tiny.yaml"), *options]
    processes = hosts.launch(*command)
    wait_until((tmp_path / "two" / "run" / "checkpoints" / "last.pt").exists)
    hosts.cut()
    errors = [process.communicate(timeout=HANG)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert f"nothing heard of ranks 2, 3 (host {hosts.names[1]}) for 30 s" in errors[0]
    assert f"nothing heard of rank 0 (host {hosts.names[0]}) for 30 s" in errors[1]
    hosts.mend()
    (_, said), _ = hosts.run(*command)
    assert "resuming after step" in said
    alone("tools/train.py", str(tmp_path / "tiny.yaml"), *options)
    assert_same_weights(tmp_path / "run", tmp_path / "two" / "run")


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_and_the_run_goes_on(hosts: Hosts, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "two").mkdir()
    for folder in (tmp_path, tmp_path / "two"):
        tiny(folder, videos)
    options = [*OPTIONS, "train.epochs=16"]
    processes = hosts.launch("tools/train.py", str(tmp_path / "two" / "tiny.yaml"), *options, RESTARTS="2")
    wait_until((tmp_path / "two" / "run" / "checkpoints" / "last.pt").exists)
    hosts.kill(3)
    errors = [process.communicate(timeout=HANG)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert any("resuming after step" in error for error in errors)  # rank 0 may be on the other host now
    alone("tools/train.py", str(tmp_path / "tiny.yaml"), *options)
    assert_same_weights(tmp_path / "run", tmp_path / "two" / "run")


@pytest.mark.slow
def test_scores_are_the_same_on_any_number_of_ranks(hosts: Hosts, tmp_path: Path, videos: Path) -> None:
    tiny(tmp_path, videos)
    alone("tools/train.py", str(tmp_path / "tiny.yaml"), "train.epochs=1")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.pt")
    (tmp_path / "scores").mkdir()

    def scores() -> str:
        (table,) = (tmp_path / "run").glob("test_10-clip*.csv")
        text = table.read_text()
        table.unlink()
        return text

    alone("tools/test.py", checkpoint)
    one = scores()
    assert len(one.splitlines()) == 12  # a heading and 11 videos
    for ranks in ((1, 1), (2, 1), (2, 2)):
        hosts.run("tools/test.py", checkpoint, ranks=ranks)
        assert scores() == one, ranks
