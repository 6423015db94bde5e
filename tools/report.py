"""Write one self-contained HTML page about runs: scores, curves, confusions, speed, environment, config differences.

python tools/report.py runs/demo
python tools/report.py runs/bn runs/gn --out bn_gn.html
python tools/report.py runs/studies/motion_batch_size/*/seed* --out study.html
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", help="the page (default: report.html in the first run's folder)")
    args = parser.parse_args()

    from video_gn.report import write_report

    print(write_report(args.runs, args.out or Path(args.runs[0]) / "report.html"))


if __name__ == "__main__":
    cli.run(main)
