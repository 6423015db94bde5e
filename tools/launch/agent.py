"""torchrun, with exit codes that tell why a job ended; started by torchrun.sh.

torchrun itself ends with 1 whatever its ranks said, tries again after a user's mistake, dies of SIGUSR1, and waits for
ever for a head node that was cut off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from functools import partial
from types import FrameType
from typing import Any

from video_gn.files.children import Parent, end_with

MISTAKE, PREEMPTED, INTERRUPTED = 2, 75, 130
HEAD_SILENCE = 45  # seconds


def main(arguments: list[str]) -> int:
    """Run torchrun; returns the exit code."""
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # SLURM's warning
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")  # seconds for the ranks' last step and checkpoint

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    give_up_on_mistakes()
    stop_once()
    take_ranks_along()
    give_up_on_a_silent_head()
    try:
        run(parse_args(arguments))
    except ChildFailedError as failed:
        if any(failure.exitcode == PREEMPTED for failure in failed.failures.values()):
            print("a rank was asked to stop, and so all did; no restart is left for that", file=sys.stderr)
            return PREEMPTED
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        said = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        print(f"rank {rank} ended first, with {said}; no restart is left for that", file=sys.stderr)
        return code if code > 0 else 1
    except SignalException as stopped:
        print(f"stopped by {stopped.sigval.name}", file=sys.stderr)
        return PREEMPTED if stopped.sigval == signal.SIGTERM else INTERRUPTED
    except (RendezvousError, OSError) as error:
        if "EADDRINUSE" in "".join(traceback.format_exception(error)):
            taken = parse_args(arguments).rdzv_endpoint
            print(
                f"error: {taken} is taken by another program or job on this node; set PORT to a free port, the same on "
                "all nodes",
                file=sys.stderr,
            )
            return MISTAKE
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        print(
            f"error: the nodes did not come together, or another one gave up ({said}); "
            "docs/multi_node.md says what to check",
            file=sys.stderr,
        )
        return 1
    return 0


def give_up_on_mistakes() -> None:
    """Let torchrun not start again what a user must correct first.

    What ended with 75 without a signal to this torchrun resumes: another node was taken away, or one rank was stopped.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    monitor = LocalElasticAgent._monitor_workers

    def watch(agent: Any, group: Any) -> Any:
        result = monitor(agent, group)
        if any(failure.exitcode == MISTAKE for failure in (result.failures or {}).values()):
            agent._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = watch  # type: ignore[method-assign]


def stop_once() -> None:
    """Let torchrun heed one stop signal: at a third it would leave its ranks behind, amid their checkpoint."""
    from torch.distributed.elastic.multiprocessing import api

    stop = api._terminate_process_handler

    def heed(signum: int, frame: FrameType | None) -> None:
        for further in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(further, signal.SIG_IGN)
        stop(signum, frame)

    api._terminate_process_handler = heed


def take_ranks_along() -> None:
    """Let the kernel stop the ranks, with a checkpoint, should this process be killed: they would train on unseen."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    end = partial(end_with, Parent.current(), signal.SIGTERM)
    subprocess_handler.Popen = partial(subprocess.Popen, preexec_fn=end)  # type: ignore[misc,assignment]


def give_up_on_a_silent_head() -> None:
    """End this process when the rendezvous' store does not answer: over a cut network torchrun would wait for ever.

    Its ranks, which do not hear of rank 0 either, end by themselves and somewhat earlier.
    """
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    call = C10dRendezvousBackend._call_store

    def end() -> None:
        print(f"error: the head node has not answered for {HEAD_SILENCE} s; start again", file=sys.stderr, flush=True)
        os._exit(1)

    def call_in_time(backend: Any, *arguments: Any, **options: Any) -> Any:
        timer = threading.Timer(HEAD_SILENCE, end)
        timer.daemon = True
        timer.start()
        try:
            return call(backend, *arguments, **options)
        finally:
            timer.cancel()

    C10dRendezvousBackend._call_store = call_in_time  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
