"""Collectives of real process groups on this machine's CPU, and of a single process."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers import end_of_ranks, run_ranks
from tests.tiny_runs import tiny
from video_gn.distributed.rendezvous import Facts, disagreement, greeting
from video_gn.distributed.world import World, world
from video_gn.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DATA = torch.tensor([[1.0, 10.0], [5.0, 12.0], [0.0, 9.5], [-2.0, 10.5], [7.0, 8.0], [3.0, 11.0]])

SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from video_gn.distributed.world import world

folder, data = Path(sys.argv[1]), torch.tensor(json.loads(sys.argv[2]))
with world("cpu") as ranks:
    rank, size = ranks.rank, ranks.size
    tensor = torch.tensor([rank + 1, 10], dtype=torch.float64)
    returned = ranks.sum(tensor)
    share = data.chunk(size)[rank]
    mean, variance = share.mean(0), share.var(0, unbiased=False)
    second = [torch.full((1,), float(rank)), torch.zeros(1)]
    ranks.mean_of_moments([mean, second[0]], [variance, second[1]])
    gradients = [torch.tensor([[rank, 2.0]]).repeat(3, 1).T, torch.full((2,), 4.0 * rank)]
    ranks.average(gradients)
    result = {
        "average": [gradient.tolist() for gradient in gradients],
        "rank": rank,
        "size": size,
        "is_main": ranks.is_main,
        "device": str(ranks.device),
        "sum": tensor.tolist(),
        "in_place": returned is tensor,
        "gather": ranks.gather({"rank": rank, "text": "ü" * rank}),
        "broadcast": ranks.broadcast([rank, "from rank", rank]),
        "broadcast none": ranks.broadcast(None if rank == 0 else rank),
        "mean": mean.tolist(),
        "variance": variance.tolist(),
        "second": [second[0].item(), second[1].item()],
    }
    if ranks.is_main:
        time.sleep(0.2)
        (folder / "before").touch()
    ranks.barrier()
    result["barrier"] = (folder / "before").exists()
result["left"] = not dist.is_initialized()
(folder / f"{rank}.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module", params=[2, 3])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a group of `param` saw."""
    folder = tmp_path_factory.mktemp("group")
    run_ranks(SCRIPT, request.param, folder, json.dumps(DATA.tolist()))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def test_places(group: list[dict[str, Any]]) -> None:
    size = len(group)
    assert [(seen["rank"], seen["size"]) for seen in group] == [(rank, size) for rank in range(size)]
    assert [seen["is_main"] for seen in group] == [True] + [False] * (size - 1)
    assert all(seen["device"] == "cpu" and seen["left"] for seen in group)


def test_sum(group: list[dict[str, Any]]) -> None:
    assert all(seen["sum"] == [{2: 3, 3: 6}[len(group)], 10 * len(group)] for seen in group)
    assert all(seen["in_place"] for seen in group)


def test_average_of_tensors_in_any_memory_format(group: list[dict[str, Any]]) -> None:
    mean = {2: 0.5, 3: 1.0}[len(group)]
    for seen in group:
        assert seen["average"] == [[[mean] * 3, [2.0] * 3], [4 * mean] * 2]


def test_gather(group: list[dict[str, Any]]) -> None:
    assert group[0]["gather"] == [{"rank": rank, "text": "ü" * rank} for rank in range(len(group))]
    assert all(seen["gather"] == [] for seen in group[1:])


def test_broadcast(group: list[dict[str, Any]]) -> None:
    assert all(seen["broadcast"] == [0, "from rank", 0] for seen in group)
    assert all(seen["broadcast none"] is None for seen in group)


def test_barrier(group: list[dict[str, Any]]) -> None:
    assert all(seen["barrier"] for seen in group)


def test_moments_are_those_of_the_concatenated_data(group: list[dict[str, Any]]) -> None:
    """Column 0: sum 14, squares 88; column 1: sum 61, deviations from 61 / 6 summed by hand below."""
    mean = [14 / 6, 61 / 6]
    column1 = [10, 12, 9.5, 10.5, 8, 11]
    variance = [88 / 6 - (14 / 6) ** 2, sum((x - 61 / 6) ** 2 for x in column1) / 6]
    for seen in group:
        assert seen["mean"] == pytest.approx(mean, rel=1e-5)
        assert seen["variance"] == pytest.approx(variance, rel=1e-4)
        spread = {2: [0.5, 0.25], 3: [1, 2 / 3]}[len(group)]  # ranks 0, 1 (, 2), each constant
        assert seen["second"] == pytest.approx(spread)


def test_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as alone:
        assert alone == World(0, 1, torch.device("cpu"))
        assert alone.is_main
        assert not dist.is_initialized()
        tensor, value = torch.tensor([1.0, 2.0]), object()
        assert alone.sum(tensor) is tensor
        assert tensor.tolist() == [1, 2]
        assert alone.gather(value) == [value]
        assert alone.broadcast(value) is value
        alone.barrier()
        mean, variance = torch.tensor([3.0]), torch.tensor([0.5])
        alone.mean_of_moments([mean], [variance])
        assert (mean.item(), variance.item()) == (3, 0.5)


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="device cuda: this torch sees no GPU; set device=cpu"), world("cuda"):
        pytest.fail("no error")
    with world("auto") as alone:
        assert alone.device == torch.device("cpu")


# --- who is there, and who is gone ---


def fact(host: str = "a", **same: object) -> Facts:
    return Facts(host, "cpu", {"torch": "2.15", "NCCL": None, "backend": "gloo", "video_gn": "1 (x)"} | same)


def test_the_greeting_names_every_rank_and_its_host() -> None:
    gpus = [Facts(host, f"cuda:{i} H200", fact(NCCL="2.28.3").same) for host in "ab" for i in range(2)]
    assert greeting(gpus).splitlines() == [
        "4 ranks: torch 2.15, gloo, NCCL 2.28.3, video_gn 1 (x)",
        "  a: rank 0 cuda:0 H200, rank 1 cuda:1 H200",
        "  b: rank 2 cuda:0 H200, rank 3 cuda:1 H200",
    ]


def test_what_ranks_disagree_on_is_told_with_values_and_ranks() -> None:
    assert disagreement([fact(), fact("b")]) is None
    epochs = [fact(**{"train.epochs": 3 if rank in (1, 4, 5, 6) else 2}) for rank in range(8)]
    assert disagreement(epochs) == (
        "the ranks do not agree: train.epochs: 2 (ranks 0, 2, 3, 7), 3 (ranks 1, 4 to 6); "
        "give all of them the same command, config and code"
    )
    other = disagreement([fact(), fact(video_gn="1 (y)", torch="2.11")])
    assert other is not None
    assert 'torch: "2.15" (rank 0), "2.11" (rank 1); video_gn: "1 (x)" (rank 0), "1 (y)" (rank 1)' in other
    absent = disagreement([fact(), fact(extra=1)])
    assert absent is not None and "extra: null (rank 0), 1 (rank 1)" in absent
    many = disagreement([fact(**{f"key{i}": rank for i in range(9)}) for rank in range(2)])
    assert many is not None and "key4" in many and "key5" not in many and "and 4 more" in many


HASTE = """
import os, sys, time
from pathlib import Path
from video_gn import cli
from video_gn.distributed import rendezvous as peers, world as distributed
peers.ROLL_CALL = peers.SILENCE = distributed.FIRST_SUM = 900  # against a hang: each test sets what it tries
peers.BEAT = 0.2
"""


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    """Ranks 1 and 3 of 4 never start."""
    script = HASTE + (
        "peers.ROLL_CALL = 5\n"
        "Path(sys.argv[1], f'here{os.getpid()}').touch()  # they import torch at different speeds\n"
        "while len(list(Path(sys.argv[1]).glob('here*'))) < 2: time.sleep(0.02)\n"
        "def main():\n    with distributed.world('cpu'): pass\ncli.run(main)"
    )
    codes, errors = end_of_ranks(script, [0, 2], 4, tmp_path)
    assert codes == [2, 2]
    for error in errors:
        assert "ranks 1, 3 of 4 did not come within 5 s" in error


def test_a_port_of_rank_0_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"port {port} is taken by another .*; set MASTER_PORT"), world("cpu"):
            pytest.fail("no error")


def test_a_mistake_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    script = HASTE + (
        "from video_gn.errors import UserError\n"
        "def fail(): raise UserError('no such list')\n"
        "def main():\n    with distributed.world('cpu') as ranks: ranks.first(fail)\n"
        "cli.run(main)"
    )
    codes, errors = end_of_ranks(script, range(2), 2, tmp_path)
    assert codes == [2, 2]
    assert "".join(errors).count("error: no such list\n") == 1


STOP = """
import signal
from video_gn.config import load_config
from video_gn.data.dataset import ValClips
from video_gn.engine.train import train

read, seen = ValClips.__getitem__, []

def get(clips, index):
    seen.append(index)
    if rank == 1 and len(seen) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if rank == 0:
        time.sleep(1)
    return read(clips, index)

def main():
    global rank
    ValClips.__getitem__ = get
    with distributed.world("cpu") as ranks:
        rank = ranks.rank
        train(load_config(sys.argv[2]), ranks)

try:
    cli.run(main)
finally:
    print(len(seen), "videos", file=sys.stderr)
"""


def test_a_stop_of_one_rank_in_an_evaluation_is_all_ranks_stop(tmp_path: Path, videos: Path) -> None:
    """Rank 0 would have 6 videos, a second each."""
    tiny(tmp_path, videos)
    codes, errors = end_of_ranks(HASTE + STOP, range(2), 2, tmp_path, str(tmp_path / "tiny.yaml"))
    assert codes == [75, 75], errors
    assert errors[1].endswith("\n2 videos\n")
    assert errors[0].endswith(("\n2 videos\n", "\n4 videos\n"))
    assert "stopped after step 5 of 10, with a checkpoint" in errors[0]


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_others(tmp_path: Path) -> None:
    """Rank 1 is stopped, its connections stay open: only the missing signs of life tell."""
    script = HASTE + (
        "import signal, threading, torch\n"
        "peers.SILENCE = 6\n"
        "with distributed.world('cpu') as ranks:\n"
        "    if ranks.rank == 1:\n"
        "        end = f'sleep 25; kill -KILL {os.getpid()}'\n"
        "        os.spawnlp(os.P_NOWAIT, 'sh', 'sh', '-c', end)\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    ranks.barrier()\n"
    )
    codes, errors = end_of_ranks(script, range(3), 3, tmp_path)
    assert codes == [1, -9, 1]
    assert "rank 0 on " in errors[0] and "nothing heard of rank 1 (host " in errors[0]
    assert "rank 2 on " in errors[2] and "stops: nothing heard of rank 1 (host " in errors[2]


@pytest.mark.slow
def test_a_rank_that_is_busy_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Rank 0 works for twice the silence while the other waits in a collective, then leaves long before it."""
    script = HASTE + (
        "peers.SILENCE = 4\n"
        "with distributed.world('cpu') as ranks:\n"
        "    ranks.first(lambda: time.sleep(8))\n"
        "    time.sleep(0 if ranks.rank else 8)\n"
    )
    run_ranks(script, 2, tmp_path)
