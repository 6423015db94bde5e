"""Train a network as a config says.

One process:      python tools/train.py configs/kinetics400/i3d_r50_gn_32x2_8clips.yaml data.root=/data/kinetics400
8 GPUs, one node: torchrun --nproc-per-node 8 tools/train.py CONFIG [key=value ...]

Run the same command again to resume after an interruption.
"""

from __future__ import annotations

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values that override it, e.g. train.epochs=10"
    )
    args = parser.parse_args()

    from video_gn.config import load_config
    from video_gn.distributed.world import world
    from video_gn.engine.train import train

    config = load_config(args.config, args.overrides)
    with world(config.device, config.model_dump(mode="json")) as ranks:
        train(config, ranks)


if __name__ == "__main__":
    cli.run(main)
