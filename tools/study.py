"""Train one config over a grid of values and seeds; writes a table, a csv and two figures.

python tools/study.py configs/studies/motion_batch_size.yaml
python tools/study.py STUDY.yaml data.root=/data/kinetics400      # a value for all cells
python tools/study.py STUDY.yaml --dry-run > jobs.txt             # one command a run, for a cluster
python tools/study.py STUDY.yaml --collect                        # the table of what is finished
torchrun --nproc-per-node 8 tools/study.py STUDY.yaml             # one run after another on all ranks

Run the same command again to continue after an interruption: finished runs are not run again.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli
from video_gn.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("study", help="YAML file, see configs/studies/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override all cells' configs")
    parser.add_argument("--out", type=Path, help="folder of runs and results (default: runs/studies/NAME of the file)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the runs' commands, run nothing")
    what.add_argument("--collect", action="store_true", help="write the results of what is finished, run nothing")
    args = parser.parse_intermixed_args()  # options may stand before, among and after key=value

    from video_gn.console import say
    from video_gn.study import commands, load_study, plan_runs, run_study, write_report

    study = load_study(args.study)
    out = args.out or Path("runs/studies") / Path(args.study).stem
    runs = plan_runs(study, args.study, args.overrides, out)
    if args.dry_run:
        if study.motion is not None:
            say("these commands do not render the embedded data set: start this tool once without --dry-run before")
        print("\n".join(commands(study, args.study, runs)))
    elif args.collect:
        text, problems = write_report(study, runs, out)
        print(text)
        if problems:
            raise UserError("; ".join(problems))
    else:
        run_study(study, runs, out)


if __name__ == "__main__":
    cli.run(main)
