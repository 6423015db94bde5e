"""Ranks: whether two of them can add up a tensor."""

from __future__ import annotations

import datetime
import multiprocessing
import socket
from collections.abc import Iterator
from typing import Any

from video_gn.doctor.check import Line, Target, one_line
from video_gn.files.children import Parent, end_with

GLOO_REMEDY = (
    "Let this machine's name resolve (/etc/hosts), allow 127.0.0.1, or set GLOO_SOCKET_IFNAME=lo for one node."
)
NCCL_REMEDY = "Run again with NCCL_DEBUG=INFO, which says why; NCCL_P2P_DISABLE=1 gets round bad links between GPUs."


def all_reduce(backend: str, target: Target) -> Iterator[Line]:
    """Let two ranks add up a tensor; NCCL's on two GPUs, left out where there are fewer."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parent = Parent.current()
    ranks = [context.Process(target=_rank, args=(parent, backend, rank, port, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    title = f"all-reduce {backend}"
    remedy = NCCL_REMEDY if backend == "nccl" else GLOO_REMEDY
    if any(process.exitcode for process in ranks):
        codes = " and ".join(str(process.exitcode) for process in ranks)
        yield Line("error", title, f"the two ranks ended with {codes}", remedy)
        return
    found = [answers.get() for _ in ranks]
    if None in found:
        return
    wrong = [answer for answer in found if answer != 3.0]
    if wrong:
        yield Line("error", title, f"{wrong[0]}", remedy)
    else:
        yield Line("ok", title, "2 ranks on 127.0.0.1 agree")


def _rank(parent: Parent, backend: str, rank: int, port: int, answers: Any) -> None:
    """Put 1 + 2 = 3.0 as it was added up, or what went wrong, or None for too few GPUs."""
    end_with(parent)
    import torch
    import torch.distributed as dist

    device = "cpu"
    if backend == "nccl":
        if torch.cuda.device_count() < 2:
            return answers.put(None)
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    try:
        limit = datetime.timedelta(seconds=15)
        place = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(backend, init_method=place, rank=rank, world_size=2, timeout=limit)
        tensor = torch.full((1000,), rank + 1.0, device=device)
        dist.all_reduce(tensor)
        low, high = tensor.min().item(), tensor.max().item()
        answers.put(low if low == high else f"added up to {low} and {high}, not 3.0")
        dist.destroy_process_group()
    except Exception as error:
        answers.put(one_line(error))
    return None
