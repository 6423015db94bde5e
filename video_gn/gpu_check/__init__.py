"""What must be true on a GPU, in one command: tools/gpu_check.py. `SECTIONS` says what it consists of.

Correctness comes first, so that a run that is cut short leaves what matters most.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection

import torch

from video_gn.gpu_check import correct, runs, speed
from video_gn.gpu_check.findings import Findings, Place

SECTIONS: dict[str, Callable[[Place, Findings], None]] = {
    "kernels": correct.kernels,
    "pools": correct.pools,
    "stem": correct.stem,
    "formats": correct.formats,
    "net": correct.net,
    "clips": correct.clips,
    "waits": correct.waits,
    "graph": correct.graph,
    "ranks": correct.ranks,
    "norms": speed.norms,
    "parts": speed.parts,
    "steps": speed.steps,
    "loader": runs.loader,
    "training": runs.training,
}


def check(place: Place, sections: Collection[str] = tuple(SECTIONS)) -> Findings:
    """Run sections, in order; one that fails is a finding, and the others still run."""
    findings = Findings()
    for name in SECTIONS:
        if name not in sections:
            continue
        findings.section = name
        try:
            SECTIONS[name](place, findings)
        except Exception as error:  # of any kind: the rest of the run is worth its time
            traceback.print_exc()
            findings.add("stopped by an error", type(error).__name__, ok=False, note=str(error).split("\n")[0][:120])
        if place.gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    return findings
