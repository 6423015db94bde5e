"""Decoders: whether each gives the frames that were written."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from video_gn.doctor.check import Line, Target, user_error_line
from video_gn.doctor.packages import asks_for
from video_gn.errors import UserError
from video_gn.files.children import call_in_child

DECODER_REMEDY = (
    "Run `pip install -e .` for a version that fits (INSTALL.md), or set data.decoder to one that is OK here."
)


def decoder(name: str, target: Target) -> Iterator[Line]:
    """Decode a rendered clip, out of order, and compare each frame with all rendered ones."""
    from video_gn.data.decode import check_decoder, open_video

    needed = name in ("auto", "pyav") or asks_for(target, name)
    title = f"decoder {name}"
    module = "av" if name in ("auto", "pyav") else name
    try:
        check_decoder(name)
    except UserError as error:
        line = user_error_line(title, error)
        if importlib.util.find_spec(module) is None and not needed:
            line = Line("ok", title, "not installed (optional)", line.remedy)
        yield line if needed or line.status == "ok" else line._replace(status="warning")
        return
    folder = Path(tempfile.mkdtemp())
    try:  # in another process: PyAV, which writes, shall not be loaded next to the decoder that is tried
        call_in_child(_write_clip, folder)
    except Exception:
        yield Line("error" if needed else "warning", title, "not tried: PyAV cannot write a clip", DECODER_REMEDY)
        return
    import numpy as np

    truth = np.load(folder / "frames.npy")
    order = [len(truth) - 1, *range(0, len(truth) - 1, 3), 1]
    with open_video(folder / "clip.mp4", name) as video:
        counted, reader, decoded = video.num_frames, video.decoder, video.read(order).numpy()
    problem = frames_problem(decoded, truth, order) if counted == len(truth) else f"counts {counted} of {len(truth)}"
    if problem:
        yield Line("error" if needed else "warning", title, problem, DECODER_REMEDY)
    else:
        by = f" by {reader}" if name == "auto" else ""
        yield Line("ok", title, f"decodes H.264{by}; {len(order)} frames of {counted} are the rendered ones")


def _write_clip(folder: Path) -> None:
    import numpy as np

    from video_gn.data.motion import CLASSES, render, write_video

    frames = render(CLASSES.index("circle"), 0, num_frames=24, size=64)
    write_video(folder / "clip.mp4", frames)
    np.save(folder / "frames.npy", frames)


def frames_problem(decoded: Any, truth: Any, order: Sequence[int]) -> str | None:
    """Return what is wrong with frames `order` of a video, uint8 (n, H, W, 3), as decoded; `truth` holds all."""
    if decoded.shape[1:] != truth.shape[1:]:
        return f"frames of {decoded.shape[1]} x {decoded.shape[2]}, not {truth.shape[1]} x {truth.shape[2]}"
    distances = abs(decoded[:, None].astype("int16") - truth[None]).mean((2, 3, 4))
    for wanted, row in zip(order, distances, strict=True):
        if row[wanted] > 8:  # of 255; compression at this quality alters 1 or 2
            return f"frame {wanted} is off by {row[wanted]:.0f} of 255 on average"
        if row.argmin() != wanted:
            return f"gives frame {row.argmin()} for frame {wanted}"
    return None
