"""What tools/predict.py prints and draws of a classifier's predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from video_gn.console import say
from video_gn.data.decode import VideoError, VideoReader
from video_gn.data.stores import is_url
from video_gn.draw.figures import write_figure
from video_gn.draw.text import panel, resized, write_video
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, fitting_name, make_folder, write_text
from video_gn.files.tables import csv_text
from video_gn.inference import Classifier, Prediction, Timeline

ELSEWHERE = "give another --out"
ROOM = 2**20  # bytes; a video's files may be larger, and say so themselves
THUMBNAILS = 8
FRAMES_AT_ONCE = 32
SMALLEST, LARGEST = 384, 1280  # width in pixels of a picture in a video


def predict_videos(
    classifier: Classifier,
    videos: Sequence[str],
    *,
    top: int = 5,
    timeline: bool = False,
    overlay: bool = False,
    gradcam: str | None = None,
    out: Path = Path("predictions"),
    as_json: bool = False,
) -> None:
    """Print the `top` classes of each video and write the wanted pictures into `out`.

    Where several labels may hold, all classes that are predicted to hold are printed, and marked.

    Args:
        gradcam: the layer to look at; None for no Grad-CAM.
        as_json: print a JSON object per video, in place of lines `video, rank, name, score[, predicted]` between tabs.

    Raises:
        UserError: some videos cannot be read (raised after the others), two would write the same file.
    """
    pictures = timeline or overlay or gradcam is not None
    if pictures:
        _check_names(videos)
        if classifier.config.data.kind == "images":
            raise UserError("--timeline, --overlay and --gradcam are for videos; this net classifies images")
        check_writable(make_folder(out, ELSEWHERE), ROOM, ELSEWHERE)
    bad: list[str] = []
    for video in tqdm(videos, "predicting", unit="video", disable=None):
        try:
            scores = _scores(classifier, video)
            files = _pictures(classifier, video, scores, timeline, overlay, gradcam, out) if pictures else {}
        except VideoError as error:
            bad.append(video)
            say(f"not predicted: {error}")
            if as_json:
                tqdm.write(_printable(json.dumps({"video": video, "error": error.reason}, ensure_ascii=False)))
            continue
        tqdm.write(_printable(_answer(classifier, video, scores, top, files, as_json)))
    if bad:
        raise UserError(
            f"{len(bad)} of {len(videos)} videos cannot be read, such as {bad[0]}; fix them or leave them out"
        )


def _scores(classifier: Classifier, video: str) -> np.ndarray:
    """Return the video's scores. Raises VideoError also for a URL of an unknown kind, or one that needs a package."""
    try:
        return classifier.scores(video)
    except UserError as error:
        if not is_url(video):
            raise
        reason = str(error.__context__ or error)  # the error's own remedies are those of lists
        raise VideoError(video, f"{reason}; download the file, or install what such addresses need") from None


def _check_names(videos: Sequence[str]) -> None:
    """Raise UserError where two videos would write files of one name."""
    seen: dict[str, str] = {}
    for video in videos:
        other = seen.setdefault(Path(video).stem, video)
        if other is not video:
            raise UserError(f"{other} and {video} would write files of one name; call the tool for each, with --out")


def _printable(text: str) -> str:
    """With escapes, which are JSON's too, for what is not UTF-8 in a file's name."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _answer(
    classifier: Classifier, video: str, scores: np.ndarray, top: int, files: dict[str, str], as_json: bool
) -> str:
    predictions = classifier.ranked(scores, top)
    held = None if classifier.task.exclusive else classifier.holding(scores)
    if as_json:
        answer: dict[str, Any] = {"video": video, "predictions": [asdict(prediction) for prediction in predictions]}
        answer |= {} if held is None else {"labels": [prediction.label for prediction in held]}
        return json.dumps(answer | ({"files": files} if files else {}), ensure_ascii=False)
    if held is not None:
        predictions = classifier.ranked(scores, max(top, len(held)))
    lines = [f"{video}\t{rank}\t{p.name}\t{p.score:.4f}" for rank, p in enumerate(predictions, 1)]
    if held is not None:
        lines = [f"{line}\t{'predicted' if p in held else '-'}" for line, p in zip(lines, predictions, strict=True)]
    return "\n".join(lines)


def _pictures(
    classifier: Classifier,
    video: str,
    scores: np.ndarray,
    timeline: bool,
    overlay: bool,
    gradcam: str | None,
    out: Path,
) -> dict[str, str]:
    """Write the files of a video; kind -> path."""
    stem = Path(video).stem
    files: dict[str, Path] = {}

    def named(ending: str) -> Path:
        return out / fitting_name(stem, ending)

    if timeline or overlay:
        line = classifier.timeline(video)
    if timeline:
        files["timeline_csv"] = named(".timeline.csv")
        files["timeline_png"] = named(".timeline.png")
        write_text(files["timeline_csv"], timeline_csv(line, classifier.names), ELSEWHERE)
        plot_timeline(classifier, video, line, files["timeline_png"])
    if overlay:
        files["overlay"] = named(".overlay.mp4")
        write_overlay(classifier, video, line, files["overlay"])
    if gradcam is not None:
        files["gradcam"] = named(".gradcam.mp4")
        (best,) = classifier.ranked(scores, 1)
        write_gradcam(classifier, video, best, gradcam, files["gradcam"])
    for path in files.values():
        say(f"wrote {path}")
    return {kind: str(path) for kind, path in files.items()}


def timeline_csv(line: Timeline, names: Sequence[str]) -> str:
    """Return one row per clip: its first and last frame, the second of its middle ("" without a rate), its scores."""
    rows: list[list[object]] = [["first_frame", "last_frame", "seconds", *(f"score_{name}" for name in names)]]
    for start, middle, scores in zip(line.starts.tolist(), line.middles.tolist(), line.scores, strict=True):
        seconds = f"{middle / line.fps:.3f}" if line.fps else ""
        end = min(start + line.span, line.num_frames) - 1
        rows.append([start, end, seconds, *(f"{score:.6g}" for score in scores)])
    return csv_text(rows)


def plot_timeline(classifier: Classifier, video: str, line: Timeline, path: Path, classes: int = 5) -> None:
    """Draw the scores of the classes with the highest peaks against time, below frames of the video. Writes a PNG."""
    rate = line.fps or 1.0
    end = line.num_frames / rate
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, axis = figure.subplots(2, 1, height_ratios=(1, 2.6), sharex=True)
    with classifier.open(video) as reader:
        numbers = sorted({int((k + 0.5) * line.num_frames / THUMBNAILS) for k in range(THUMBNAILS)})
        for number, frame in zip(numbers, reader.read(numbers).numpy(), strict=True):
            height, width = frame.shape[:2]
            inset = above.inset_axes((((number + 0.5) / line.num_frames) - 0.06, 0, 0.12, 1))
            inset.imshow(resized(frame, max(round(160 * width / height), 1), 160))
            inset.set_anchor("S")
            inset.axis("off")
    above.axis("off")
    for label in line.top(classes):
        axis.plot(line.middles / rate, line.scores[:, label], marker="o", ms=4, label=classifier.names[label])
    seconds = f"{min(line.span, line.num_frames) / rate:.3g}"
    unit = "s" if line.fps else "frames"
    axis.set(xlim=(0, end), ylim=(-0.02, 1.02), ylabel=f"score ({classifier.task.probability})")
    axis.set_xlabel(f"middle of the clip ({unit}); a clip covers {seconds} {unit}")
    axis.grid(alpha=0.3)
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a name is a $
        figure.suptitle(_printable(Path(video).name))
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    write_figure(figure, path, ELSEWHERE, dpi=120)


def write_overlay(classifier: Classifier, video: str, line: Timeline, path: Path, classes: int = 5) -> None:
    """Write the video with the scores of its classes below each frame, as they are at that moment."""
    labels = line.top(classes)
    names = [classifier.names[label] for label in labels]

    def draw(reader: VideoReader) -> Iterator[np.ndarray]:
        width, height = _picture_size(reader.width, reader.height)
        for number, frame in _all_frames(reader, "overlay"):
            now = [float(np.interp(number, line.middles, line.scores[:, label])) for label in labels]
            title = f"{Path(video).name}  {number / line.fps:.1f} s" if line.fps else f"frame {number}"
            text = panel(title, list(zip(names, now, strict=True)), width)
            yield np.concatenate([resized(frame, width, height), text])

    with classifier.open(video) as reader:
        write_video(path, draw(reader), reader.fps)


def write_gradcam(classifier: Classifier, video: str, best: Prediction, layer: str, path: Path) -> None:
    """Write the video as the net sees it beside the same with Grad-CAM's heat of the class `best`."""
    cam = classifier.gradcam(video, best.label, layer)
    *_, box_height, box_width = cam.box

    def draw(reader: VideoReader) -> Iterator[np.ndarray]:
        width, height = _picture_size(box_width, box_height)
        text = panel(f"seen by the net | Grad-CAM of {best.name} at {layer}", [(best.name, best.score)], 2 * width)
        clip, heat = -1, cam.heat(0).numpy()
        for number, frame in _all_frames(reader, "gradcam", cam.box):
            if number // cam.span != clip:
                clip = number // cam.span
                heat = cam.heat(clip).numpy()
            warm = heated(frame, heat[number - cam.starts[clip]])
            pair = [resized(image, width, height) for image in (frame, warm)]
            yield np.concatenate([np.concatenate(pair, 1), text])

    with classifier.open(video) as reader:
        write_video(path, draw(reader), reader.fps)


def heated(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 (h, w, 3), gray where heat (h, w) in [0, 1] is 0, and the hotter the more in its color."""
    grey = frame.mean(2, keepdims=True)
    colour = 255 * matplotlib.colormaps["turbo"](heat)[..., :3]
    share = 0.7 * heat.clip(0, 1)[..., None]
    mixed: np.ndarray = ((1 - share) * grey + share * colour).round().astype(np.uint8)
    return mixed


def _picture_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture in a video: small ones grow, so that text can be read; even."""
    scale = min(max(width, SMALLEST), LARGEST) / width
    return 2 * round(scale * width / 2), 2 * round(scale * height / 2)


def _all_frames(
    reader: VideoReader, what: str, box: tuple[int, int, int, int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, frame) of all of a video, a few in memory at a time; fewer than announced where some are lost."""
    for begin in tqdm(range(0, reader.num_frames, FRAMES_AT_ONCE), what, leave=False, disable=None):
        end = begin + FRAMES_AT_ONCE
        try:
            frames = reader.read(range(begin, min(end, reader.num_frames)), box)
        except VideoError:  # if frames are lost, the reader now knows how many
            frames = reader.read(range(begin, min(end, reader.num_frames)), box)
        yield from enumerate(frames.numpy(), begin)
