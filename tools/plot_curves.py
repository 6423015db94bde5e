"""Draw training and validation error of runs against epochs (Figures 4 and 7) to a PNG.

python tools/plot_curves.py runs/demo
python tools/plot_curves.py runs/bn runs/gn --out bn_gn.png
python tools/plot_curves.py runs/vgg16_gn --percentiles    (Figure 6, of a run with train.percentiles_of)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=cli.EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; each is one curve")
    parser.add_argument("--out", help="the PNG (default: curves.png in the first run's folder)")
    parser.add_argument("--percentiles", action="store_true", help="draw the first run's logged percentiles instead")
    args = parser.parse_args()

    from video_gn.plots import plot_curves, plot_percentiles

    if args.percentiles:
        print(plot_percentiles(args.runs[0], args.out or Path(args.runs[0]) / "percentiles.png"))
        return
    print(plot_curves(args.runs, args.out or Path(args.runs[0]) / "curves.png"))


if __name__ == "__main__":
    cli.run(main)
