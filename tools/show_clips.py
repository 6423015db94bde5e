"""Draw what the network is fed as a contact sheet: random training clips after augmentation, a video's test clips.

python tools/show_clips.py configs/demo/demo.yaml
python tools/show_clips.py runs/my_run/config.yaml --train 20 --test 2 --out clips.png
python tools/show_clips.py CONFIG data.root=/data/videos seed=1     # other clips

The fastest way to find a data bug: wrong labels, wrong colors, squeezed or blank frames, time that stands still.
Prints the name of the PNG. docs/predict.md shows one.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the config.yaml of a run's folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the config's")
    parser.add_argument("--train", type=int, default=8, metavar="N", help="training clips (default: %(default)s)")
    parser.add_argument(
        "--test", type=int, default=1, metavar="N", help="videos with test clips (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="frames of a clip (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("clips.png"), help="the PNG (default: %(default)s)")
    args = parser.parse_intermixed_args()
    if min(args.train, args.test) < 0 or args.frames < 1:
        parser.error("--train and --test are at least 0, --frames at least 1")

    from video_gn.config import load_config
    from video_gn.show_clips import show_clips

    config = load_config(args.config, args.overrides)
    print(show_clips(config, args.out, train=args.train, test=args.test, frames=args.frames))


if __name__ == "__main__":
    cli.run(main)
