"""Write what a stage of a trained network says of each video: its output, averaged over space and time.

python tools/extract_features.py runs/demo/checkpoints/last.pt val.csv features/val
python tools/extract_features.py CHECKPOINT all.csv OUT --per video data.root=/data/ucf101 test.views=center
torchrun --nproc-per-node 8 tools/extract_features.py CHECKPOINT LIST OUT --stage res4 --format safetensors

OUT holds shards of `features`, float32 (rows, channels), and index.csv: path, label, shard, row, clips. The same
command continues where a killed one stopped, and loses one shard at most. Videos that cannot be read are named and
counted; more than test.max_unreadable of them is exit code 2, after the others are written. docs/features.md shows how
to read OUT.
"""

from __future__ import annotations

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="runs/NAME/checkpoints/last.pt or best.pt")
    parser.add_argument("list", metavar="LIST", help="list of videos, `path label` a line, relative to data.root")
    parser.add_argument("out", metavar="OUT", help="folder to write, or to continue")
    parser.add_argument("--stage", help="a stage of the network, such as res4 (default: the last)")
    parser.add_argument("--per", choices=("clip", "video"), default="clip", help="a row a ... (default: %(default)s)")
    parser.add_argument("--format", choices=("npz", "safetensors"), default="npz", help="(default: %(default)s)")
    parser.add_argument("--shard", type=int, default=512, metavar="N", help="videos a shard (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the config's")
    args = parser.parse_intermixed_args()
    if args.shard < 1:
        parser.error(f"--shard {args.shard}: at least 1 video")

    from video_gn.features import extract_features

    result = extract_features(
        args.checkpoint,
        args.list,
        args.out,
        stage=args.stage,
        per=args.per,
        form=args.format,
        videos_per_shard=args.shard,
        overrides=args.overrides,
    )
    if result is not None:
        print(result.text())


if __name__ == "__main__":
    cli.run(main)
