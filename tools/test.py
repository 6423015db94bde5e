"""Score a trained network: 10 clips per video, scores averaged. Writes test_<protocol>.json and .csv.

python tools/test.py runs/demo/checkpoints/last.pt
python tools/test.py runs/my_run/checkpoints/best.pt test.views=three data.root=/data/kinetics400
torchrun --nproc-per-node 8 tools/test.py CHECKPOINT [key=value ...]

The config is the one in the checkpoint. Only a run's own test (last.pt, its config's list and settings) has the plain
name; scores of other lists, strides, short sides or checkpoints have names of their own (docs/testing.md).
"""

from __future__ import annotations

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", help="runs/NAME/checkpoints/last.pt or best.pt")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the config's")
    parser.add_argument("--out", metavar="FOLDER", help="where the files go (default: the run's folder)")
    args = parser.parse_intermixed_args()

    from video_gn.engine.test import test_checkpoint

    result = test_checkpoint(args.checkpoint, args.overrides, args.out)
    if result is not None:
        print(result.table())


if __name__ == "__main__":
    cli.run(main)
