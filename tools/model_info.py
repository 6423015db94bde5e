"""What a config's network costs: parameters, GMACs, activation memory and the T x H x W of each stage.

python tools/model_info.py configs/kinetics400/i3d_r50_gn_32x2_8clips.yaml [key=value ...] [--json]
"""

from __future__ import annotations

import json

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override it, e.g. model.norm=bn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    from video_gn.config import load_config
    from video_gn.models.info import describe, table

    info = describe(load_config(args.config, args.overrides))
    print(json.dumps(info) if args.json else table(info))


if __name__ == "__main__":
    cli.run(main)
