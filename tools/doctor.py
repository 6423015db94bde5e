"""Try out what a run needs of this machine: packages, decoders, GPUs, folders, memory, ranks. Starts no training.

python tools/doctor.py                                        # in general; speeds are those of the current folder
python tools/doctor.py /data/kinetics400                      # and of this folder's videos
python tools/doctor.py configs/custom/small_gn.yaml data.root=FOLDER data.workers=8      # for this run
python tools/doctor.py --json                                 # one JSON object: errors, warnings, lines

A line is OK, a warning or an error, with a remedy below (docs/doctor.md). Warnings do not count: the exit code is 0
without an error line and 2 with one.
"""

from __future__ import annotations

import json
import sys

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("target", nargs="?", metavar="CONFIG or FOLDER", help="YAML file, or a folder of videos")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the config's")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    args = parser.parse_intermixed_args()

    from video_gn.doctor import colours, examine, read_target, text_of

    lines = []
    for line in examine(read_target(args.target, args.overrides)):
        lines.append(line)
        if not args.json:
            print(text_of(line, colours()), flush=True)
    count = {status: sum(line.status == status for line in lines) for status in ("error", "warning")}
    if args.json:
        findings = [line._asdict() for line in lines]
        print(json.dumps({"errors": count["error"], "warnings": count["warning"], "lines": findings}, indent=2))
    else:
        print(f"errors: {count['error']}, warnings: {count['warning']}")
    if count["error"]:
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
