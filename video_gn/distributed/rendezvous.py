"""How the ranks of a run meet, agree on what they are to run, and notice that one of them is gone.

All of it goes through a key-value store that rank 0 (or torchrun) serves, in threads of its own: a rank that reads
weights, evaluates or writes a checkpoint for minutes is alive; one that is dead or cut off is noticed after `SILENCE`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

import video_gn
from video_gn.config import flatten
from video_gn.distributed.signals import Stop
from video_gn.errors import UserError

ROLL_CALL = 120.0
"""Seconds for all ranks to come: they start together, but import torch from a cold disk at different speeds."""
FIRST_SUM = 60.0
"""Seconds for connecting all ranks to each other and for the first all-reduce, once all are there."""
BEAT = 3.0
"""Seconds from one sign of life to the next."""
SILENCE = 30.0
"""Seconds without a sign of life after which a rank is lost. With a beat and torchrun's own time, below a minute."""
HELP = "docs/multi_node.md says what to check"


@dataclass(frozen=True)
class Facts:
    """What a rank tells of itself."""

    host: str
    device: str
    same: dict[str, Any]
    """What must not differ: versions, backend and the config, by flat names."""


def facts_of(device: torch.device, backend: str, settings: Mapping[str, Any]) -> Facts:
    """Return this process's facts; `settings` is nested as a config is."""
    gpu = device.type == "cuda"
    versions = {
        "torch": torch.__version__,
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if gpu else None,
        "backend": backend,
        "video_gn": f"{video_gn.__version__} (sources {code_fingerprint()})",
    }
    name = f"{device} {torch.cuda.get_device_name(device)}" if gpu else str(device)
    return Facts(platform.node(), name, versions | flatten(settings))


def code_fingerprint() -> str:
    """Hash of this package's sources: unlike a commit, it sees edits and needs no repository."""
    digest = hashlib.sha256()
    package = Path(video_gn.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def disagreement(facts: Sequence[Facts]) -> str | None:
    """Return what differs between ranks and must not, with the ranks of each value; None if nothing does."""
    told = []
    for name in dict.fromkeys(name for fact in facts for name in fact.same):
        ranks: dict[str, list[int]] = {}
        for rank, fact in enumerate(facts):
            ranks.setdefault(json.dumps(fact.same.get(name)), []).append(rank)
        if len(ranks) > 1:
            told.append(f"{name}: " + ", ".join(f"{value} ({_ranks(group)})" for value, group in ranks.items()))
    if not told:
        return None
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    return f"the ranks do not agree: {'; '.join(told[:5])}{more}; give all of them the same command, config and code"


def greeting(facts: Sequence[Facts]) -> str:
    """Who is there: a line for all, then one a host."""
    same = facts[0].same
    nccl = f", NCCL {same['NCCL']}" if same.get("NCCL") else ""
    lines = [f"{len(facts)} ranks: torch {same['torch']}, {same['backend']}{nccl}, video_gn {same['video_gn']}"]
    hosts: dict[str, list[str]] = {}
    for rank, fact in enumerate(facts):
        hosts.setdefault(fact.host, []).append(f"rank {rank} {fact.device}")
    return "\n".join(lines + [f"  {host}: {', '.join(ranks)}" for host, ranks in hosts.items()])


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0 to 3, 7`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    names = ", ".join({0: f"{a}", 1: f"{a}, {b}"}.get(b - a, f"{a} to {b}") for a, b in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"


class Peers:
    """The ranks of a run, by way of their store."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.name = f"rank {rank} on {platform.node()}"
        self.hosts = ["?"] * size
        self.store = self._connect(serve=rank == 0)
        self.stop = Stop()
        """Requested of one rank, it is of all, some beats later."""
        self._leaving = threading.Event()

    def _connect(self, serve: bool = False) -> dist.Store:
        """Return a connection to the store that torchrun serves, else rank 0."""
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store = dist.TCPStore(
                host, port, None, serve and not served, timedelta(seconds=ROLL_CALL), wait_for_workers=False
            )
        except RuntimeError as error:
            if "EADDRINUSE" in str(error):
                raise UserError(
                    f"{self.name}: port {port} is taken by another program or job; set MASTER_PORT (torchrun's "
                    "--master-port) to a free one"
                ) from None
            raise UserError(
                f"{self.name}: no connection to rank 0 at {host}:{port} ({_brief(error)}); {HELP}"
            ) from None
        # torchrun's store outlives a restart, and so would the keys of the ranks before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if served else "0"
        return dist.PrefixStore(f"video_gn/{attempt}", store)

    def meet(self, facts: Facts) -> list[Facts]:
        """Wait for all ranks and compare their facts; rank 0 returns all ranks' facts, the others nothing.

        Raises:
            UserError: ranks did not come, or do not agree.
        """
        self.store.set(f"beat/{self.rank}", "0")
        self.store.set(f"facts/{self.rank}", json.dumps(vars(facts)))
        everyone: list[Facts] = []
        if self.rank == 0:
            everyone, problem = self._roll_call()
            self.store.set("verdict", json.dumps([problem, [fact.host for fact in everyone]]))
            if problem is not None:
                time.sleep(1)  # the store goes with this process: let the others read it
        else:
            try:
                self.store.wait(["verdict"], timedelta(seconds=ROLL_CALL + BEAT))
                problem, self.hosts = json.loads(self.store.get("verdict"))
            except RuntimeError as error:
                problem = f"{self.name}: rank 0 does not answer ({_brief(error)}); {HELP}"
        if problem is not None:
            raise UserError(problem)
        return everyone

    def _roll_call(self) -> tuple[list[Facts], str | None]:
        missing, deadline = list(range(self.size)), time.monotonic() + ROLL_CALL
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not self.store.check([f"facts/{rank}"])]
            time.sleep(0.02)
        keys = [f"facts/{rank}" for rank in range(self.size) if rank not in missing]
        facts = [Facts(**json.loads(text)) for text in self.store.multi_get(keys)]
        if missing:
            there = ", ".join(dict.fromkeys(fact.host for fact in facts))
            return facts, (
                f"{_ranks(missing)} of {self.size} did not come within {ROLL_CALL:.0f} s (there: {there}): "
                f"look at their own output; {HELP}"
            )
        self.hosts = [fact.host for fact in facts]
        return facts, disagreement(facts)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Give signs of life and heed the others' for the length of a `with`; a lost rank ends this process.

        A `with` left by an exception ends them without a farewell: the others must not wait for this rank.
        """
        heard = {rank: time.monotonic() for rank in (range(1, self.size) if self.rank == 0 else [0])}
        beat = threading.Thread(target=self._beat, args=(heard,), daemon=True)
        for thread in (beat, threading.Thread(target=self._watch, args=(heard,), daemon=True)):
            thread.start()
        farewell = False
        try:
            yield
            farewell = True
        finally:
            self._leaving.set()
            if farewell:
                beat.join(2 * BEAT)
                with contextlib.suppress(RuntimeError):  # rank 0 may have gone home with its store
                    self.store.set(f"beat/{self.rank}", "left")

    def tell(self, error: UserError) -> None:
        """Print it now, once a host: all ranks may have made it, or this one alone, and the others die of that."""
        first = True
        with contextlib.suppress(RuntimeError):  # rank 0 may have gone home with its store
            first = self.store.add(f"told/{platform.node()}/{error}", 1) == 1
        if first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        error.told = True

    def _beat(self, heard: dict[int, float]) -> None:
        """Thread: tell that this rank lives, and note the time at which each peer's last sign was new."""
        with contextlib.suppress(RuntimeError, UserError):  # no store is silence, which `_watch` tells
            store = self._connect()
            before: dict[int, bytes] = {}
            count = 0
            while not self._leaving.wait(BEAT):
                count += 1
                store.set(f"beat/{self.rank}", str(count))
                peers = list(heard)
                for rank, sign in zip(peers, store.multi_get([f"beat/{rank}" for rank in peers]), strict=True):
                    if sign == b"left":
                        heard[rank] = float("inf")
                    elif sign != before.get(rank):
                        heard[rank], before[rank] = time.monotonic(), sign
                if self.stop.requested:
                    store.set("stop", "")
                elif store.check(["stop"]):
                    self.stop.requested = True
                if self.rank != 0 and store.check(["lost"]):
                    die(f"{self.name} stops: {store.get('lost').decode()}")

    def _watch(self, heard: dict[int, float]) -> None:
        """Thread, apart from `_beat`, which a cut network can block."""
        while not self._leaving.wait(1):
            lost = [rank for rank, last in heard.items() if time.monotonic() - last > SILENCE]
            if lost:
                hosts = ", ".join(dict.fromkeys(self.hosts[rank] for rank in lost))
                message = (
                    f"nothing heard of {_ranks(lost)} (host {hosts}) for {SILENCE:.0f} s: dead, or the network is cut; "
                    "run the same command again to go on from the last checkpoint"
                )
                if self.rank == 0:
                    tell = threading.Thread(target=self.store.set, args=("lost", message), daemon=True)
                    tell.start()
                    time.sleep(BEAT + 1)  # the store goes with this process: let the others read it
                die(f"{self.name}: {message}")


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """End this process if the body is not done in time: a collective that hangs cannot be interrupted."""
    timer = threading.Timer(seconds, die, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def die(message: str) -> NoReturn:
    """End this process from any thread, its main one hanging in a collective."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _brief(error: Exception) -> str:
    """Return the first line of a torch error without its C++ stack."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
