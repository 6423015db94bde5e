"""The complete path on the built-in data set: render, train, 10-clip test, curves; ends with a table.

python tools/demo.py [--config configs/demo/demo.yaml] [key=value ...]
python tools/demo.py --shapes 2 --config configs/custom/motion_multilabel.yaml   # two labels: docs/multilabel.md

What an earlier call has finished is reused; an interrupted one continues.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", default="configs/demo/demo.yaml", help="default: %(default)s")
    parser.add_argument("--train-videos", type=int, default=1200, help="videos to render (default: %(default)s)")
    parser.add_argument("--val-videos", type=int, default=200, help="held-out videos to render (default: %(default)s)")
    parser.add_argument(
        "--shapes", type=int, choices=(1, 2), default=1, help="motions per video; 2 for task: multilabel (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the config's")
    args = parser.parse_args()

    from video_gn.config import load_config
    from video_gn.console import say
    from video_gn.data.motion import write_dataset
    from video_gn.distributed.world import world
    from video_gn.engine.results import finished_result
    from video_gn.engine.test import test_checkpoint
    from video_gn.engine.train import train
    from video_gn.run.plots import plot_curves

    config = load_config(args.config, args.overrides)
    run = Path(config.output_dir)
    say(f"1/4 data set: {config.data.root}")
    write_dataset(config.data.root, train_videos=args.train_videos, val_videos=args.val_videos, shapes=args.shapes)
    say(f"2/4 training: {run}")
    with world(config.device) as ranks:
        train(config, ranks)
    say(f"3/4 {config.test.clips}-clip test")
    checkpoint = run / "checkpoints" / "last.pt"
    result = finished_result(checkpoint, config) or test_checkpoint(checkpoint, args.overrides)
    say("4/4 curves")
    curves = plot_curves([run], run / "curves.png")
    assert result is not None  # a single process is rank 0
    print(f"\n{result.table()}\n\ncurves       {curves}\nTensorBoard  tensorboard --logdir {run}")


if __name__ == "__main__":
    cli.run(main)
