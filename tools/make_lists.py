"""Make train, val and test lists, classes.txt and missing.txt of the videos that are on the disk.

python tools/make_lists.py kinetics /data/k700 annotations/train.csv annotations/validate.csv
python tools/make_lists.py ucf101 /data/UCF-101 /data/ucfTrainTestlist --split 1
python tools/make_lists.py folders my_videos --val 0.2 --group 'scene(\\d+)'

Lists are `path label`, paths relative to ROOT (data.root of a config). Printed: the videos of each class and
split, what was left out and why, what to set in a config. Missing videos are named in missing.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kinetics|ucf101|folders")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("root", metavar="ROOT", help="folder of the videos")
    shared.add_argument("--out", type=Path, help="where the lists go (default: ROOT)")
    shared.add_argument(
        "--force", action="store_true", help="replace lists that exist; what this tool did not write is kept"
    )
    ordered = argparse.ArgumentParser(add_help=False)
    ordered.add_argument("--classes", metavar="FILE", help="class names, one per line (default: the sorted names)")

    kind = kinds.add_parser("kinetics", parents=[shared, ordered], help="Kinetics-400, 600 or 700 by its official csv")
    kind.add_argument("csv", metavar="CSV", nargs="+", help="train.csv, validate.csv, ...: label,youtube_id,...,split")
    kind = kinds.add_parser("ucf101", parents=[shared], help="UCF-101 by its official split")
    kind.add_argument("annotations", metavar="ANNOTATIONS", help="folder ucfTrainTestlist")
    kind.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="which split (%(default)s)")
    kind = kinds.add_parser(
        "folders", parents=[shared, ordered], help="any tree CLASS/video, or one that is split: train/CLASS/video ..."
    )
    kind.add_argument("--val", type=float, default=0.2, help="share of each class for validation (%(default)s)")
    kind.add_argument("--test", type=float, default=0.0, help="share of each class for the test (%(default)s)")
    kind.add_argument("--seed", type=int, default=0, help="another seed draws another split (%(default)s)")
    kind.add_argument("--group", metavar="REGEX", help="paths where it finds the same text stay in one split")
    args = parser.parse_args()

    from video_gn.data import make_lists

    out = args.out or Path(args.root)
    inputs = [*getattr(args, "csv", []), *([args.classes] if getattr(args, "classes", None) else [])]
    make_lists.check_out(out, inputs, args.force)
    if args.kind == "kinetics":
        lists = make_lists.kinetics(args.root, args.csv, args.classes)
    elif args.kind == "ucf101":
        lists = make_lists.ucf101(args.root, args.annotations, args.split)
    else:
        shares = {"val": args.val, "test": args.test, "seed": args.seed}
        lists = make_lists.folders(args.root, group=args.group, classes=args.classes, **shares)
    print(make_lists.write_lists(lists, out))


if __name__ == "__main__":
    cli.run(main)
