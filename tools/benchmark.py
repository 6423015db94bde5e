"""Measure video_gn beside other libraries: the alternatives in turn in one run, medians, spread and ratios.

python tools/benchmark.py decode                # a clip, and the 10 test clips, against the decoders' bare calls
python tools/benchmark.py loader --videos DIR   # training clips a second, against pytorchvideo's loading
python tools/benchmark.py test                  # the 10-clip test on the CPU, against pytorchvideo's i3d_r50
python tools/benchmark.py norm --json norm.json # Group Norm and ReLU, against PyTorch's and Batch Norm
python tools/benchmark.py step                  # a training step: time and memory

Without --videos the embedded motions are rendered at Kinetics' size (340x256, 10 s) into data/benchmark, once.
A library that is not installed is left out, with a line on stderr.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from video_gn import cli
from video_gn.errors import UserError

HELP = {
    "decode": "one clip and the 10 test clips of a video",
    "loader": "training clips, from files to the device",
    "test": "the 10-clip test on the CPU",
    "norm": "the norms of the R50 I3D of a 32x2 batch",
    "step": "a training step of the R50 I3D",
}


def main() -> None:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        repeats = 3 if name == "test" else 5
        command.add_argument("--repeats", type=int, default=repeats, help="timings a table (default: %(default)s)")
        command.add_argument("--quick", action="store_true", help="a small size: does it run?")
        command.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
        if name in ("decode", "loader", "test"):
            command.add_argument("--videos", type=Path, metavar="DIR", help="folder of videos to read")
        if name in ("decode", "loader"):
            command.add_argument("--pyslowfast", type=Path, metavar="DIR", help="checkout of PySlowFast to add")
        if name == "loader":
            command.add_argument("--workers", type=int, default=2, help="decoding processes (default: %(default)s)")
        if name in ("norm", "step"):
            command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = vars(parser.parse_args())
    for name in ("repeats", "workers"):
        if options.get(name, 1) < (name == "repeats"):
            raise UserError(f"--{name} {options[name]} is too few; give {int(name == 'repeats')} or more")
    command, json_file = options.pop("command"), options.pop("json")

    from video_gn.benchmark.common import report

    tables = import_module(f"video_gn.benchmark.{command}").run(**options)
    print(report(command, tables, json_file))


if __name__ == "__main__":
    cli.run(main)
