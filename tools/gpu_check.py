"""Try out all that a GPU must do, right and fast: kernels, norms, training steps, clips, a run with a resume.

python tools/gpu_check.py                               # everything, about 6 minutes on an H200
python tools/gpu_check.py --videos DIR --workers 16     # clips of your own videos; 0 renders some
python tools/gpu_check.py --only kernels norms --json gpu.json
python tools/gpu_check.py --quick --device cpu          # does it run? needs TRITON_INTERPRET=1

The exit code is 1 where a result is wrong or a goal of speed is missed (docs/benchmarks.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from video_gn import cli
from video_gn.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="these sections only")
    parser.add_argument("--skip", nargs="+", metavar="SECTION", default=[], help="all but these")
    parser.add_argument("--quick", action="store_true", help="small sizes, no goals of speed")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="folder of videos to read (default: rendered ones)")
    parser.add_argument("--workers", type=int, default=8, help="decoding processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to FILE")
    args = parser.parse_args()

    from video_gn.benchmark.common import environment
    from video_gn.distributed.world import world
    from video_gn.gpu_check import SECTIONS, check
    from video_gn.gpu_check.findings import Place

    for name in [*(args.only or ()), *args.skip]:
        if name not in SECTIONS:
            raise UserError(f"section {name!r} is not known; choose from {', '.join(SECTIONS)}")
    sections = [name for name in args.only or SECTIONS if name not in args.skip]
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    with world(args.device) as here:
        findings = check(Place(here.device, args.quick, args.videos, args.workers), sections)
    if args.json:
        args.json.write_text(json.dumps({"environment": about, "findings": findings.as_json()}, indent=2) + "\n")
    print(f"{len(findings.missed)} missed, {sum(line.ok is True for line in findings.lines)} met")
    if findings.missed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
