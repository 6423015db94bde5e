"""Classify videos with a trained network: the scores are those of the test (10 clips per video, averaged).

python tools/predict.py runs/demo/checkpoints/last.pt data/motion/val/spin/*.mp4
python tools/predict.py CHECKPOINT video.mp4 --timeline --overlay --gradcam --out predictions
python tools/predict.py CHECKPOINT *.mp4 --top 1 --json | jq -r '[.video, .predictions[0].name] | @tsv'
python tools/predict.py CHECKPOINT video.mp4 --set test.views=center --set data.class_names=classes.txt

On stdout a line `video, rank, class, score` for each of the best classes, between tabs, or with --json an object per
video. With task multilabel a fifth column says which are predicted, from multilabel.threshold on, and all of those have
a line. Files are written to OUT/STEM.timeline.png, .timeline.csv, .overlay.mp4 and .gradcam.mp4. A video that cannot
be read is named; the others are predicted, and the exit code is 2. docs/predict.md has the details.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="runs/NAME/checkpoints/last.pt or best.pt")
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="video files")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes a video (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a video")
    parser.add_argument("--timeline", action="store_true", help="scores over time, as a PNG and a csv")
    parser.add_argument("--overlay", action="store_true", help="the video with the scores written in")
    parser.add_argument("--gradcam", action="store_true", help="a video of where in space and time the net looks")
    parser.add_argument("--layer", help="of --gradcam: a stage of the network, such as res4 (default: the last)")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder for files (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the checkpoint's config; repeatable"
    )
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f"--top {args.top}: at least 1 class")

    from video_gn.inference import load
    from video_gn.predict import predict_videos

    classifier = load(args.checkpoint, args.device, args.set)
    predict_videos(
        classifier,
        args.videos,
        top=args.top,
        timeline=args.timeline,
        overlay=args.overlay,
        gradcam=(args.layer or classifier.model.stages[-1]) if args.gradcam else None,
        out=args.out,
        as_json=args.json,
    )


if __name__ == "__main__":
    cli.run(main)
