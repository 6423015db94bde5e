"""Re-encode a list of videos for training, or check that every video of a list can be decoded.

python tools/prepare.py train.csv /data/prepared --root /data/kinetics400     # then data.root=/data/prepared
python tools/prepare.py train.csv /data/prepared --root /data/kinetics400     # again: continues after an interruption
python tools/prepare.py train.csv --check --root /data/kinetics400            # writes train.report.csv beside the list

Bad videos are left out of the new list and named, with the reason, in OUT/quarantine.csv; all others are prepared,
and the exit code is 2. docs/preparing.md has the details.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli
from video_gn.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("list", metavar="LIST", help="one video a line, `path label`, or Kinetics' csv")
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="new folder; with --check, the report's file")
    parser.add_argument("--root", default=".", help="folder that the list's paths are relative to (default: here)")
    parser.add_argument("--check", action="store_true", help="decode all videos and write a report, encode nothing")
    parser.add_argument(
        "--short-side", type=int, default=256, help="pixels; smaller videos keep their size (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, help="videos at a time (default: one a core)")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds that a video may take (%(default)s)")
    args = parser.parse_args()
    if args.out is None and not args.check:
        parser.error("OUT is needed: the folder to write to")

    from video_gn.data.prepare import check_list, prepare_list

    how = {"jobs": args.jobs, "time_limit": args.time_limit}
    if args.check:
        text, bad = check_list(args.list, args.out, args.root, **how)
    else:
        text, bad = prepare_list(args.list, args.out, args.root, short_side=args.short_side, **how)
    print(text)
    if bad:
        path, reason = next(iter(bad.items()))
        raise UserError(f"{len(bad)} videos are bad, such as {path} ({reason}); mend or leave out those that are named")


if __name__ == "__main__":
    cli.run(main)
