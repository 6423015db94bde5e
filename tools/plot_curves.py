"""Draw training and validation error of runs against epochs to a PNG, from their logs or TensorBoard's files alone.

python tools/plot_curves.py runs/demo
python tools/plot_curves.py runs/bn runs/gn --out bn_gn.png       Figure 4: a curve a run
python tools/plot_curves.py runs/[bg]n_[84]clips --by-norm        Figure 7: a panel a norm, a curve a batch size
python tools/plot_curves.py runs/vgg16_gn --percentiles           Figure 6: of a run with train.percentiles_of
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; each is one curve")
    parser.add_argument("--out", help="the PNG (default: curves.png in the first run's folder)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--by-norm", action="store_true", help="validation error: a panel a norm, a curve a batch size")
    kinds.add_argument("--percentiles", action="store_true", help="the first run's logged percentiles")
    args = parser.parse_args()

    from video_gn.run.plots import plot_by_norm, plot_curves, plot_percentiles

    folder = Path(args.runs[0])
    if args.percentiles:
        print(plot_percentiles(folder, args.out or folder / "percentiles.png"))
    elif args.by_norm:
        print(plot_by_norm(args.runs, args.out or folder / "curves_by_norm.png"))
    else:
        print(plot_curves(args.runs, args.out or folder / "curves.png"))


if __name__ == "__main__":
    cli.run(main)
