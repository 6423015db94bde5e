"""The embedded data set: ten classes that only motion tells apart, rendered and written as real H.264 files.

A textured shape moves over a smooth ground; what leaves the frame on one side enters it on the other. The
classes share all draws but the motion, and every motion keeps position, angle and size uniform. So one frame
is distributed alike in every class: `render(label, seed)[0]` does not even depend on the label. A horizontal
flip turns a video into another one of its class.

With two shapes, a video has two of the ten motions, each of a shape of its own that is smaller, so that both are seen:
two labels hold at once.

Lengths are in 64ths of the frame's side (pixels at size 64), angles in radians, times in frames.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from video_gn.data.lists import format_line
from video_gn.errors import UserError
from video_gn.files import h264
from video_gn.files.atomic import make_folder, replacing, write_text
from video_gn.files.children import Parent, end_with

ELSEWHERE = "set data.root to another folder"
CLASSES = ("up", "down", "sideways", "still", "spin", "grow", "shrink", "circle", "bob", "sway")

RENDERER = 1  # to be raised by every change that alters a pixel
SIDE = 64.0
RADIUS = (9.0, 19.0)  # half the length of a shape
PAIR_SCALE = 0.7  # of the radius of each of two shapes
PAIRS = tuple(itertools.combinations(range(len(CLASSES)), 2))

# A shape is a union of boxes (centre x, centre y, half width, half height) in units of its radius. None looks
# the same after less than half a turn, so that spin shows.
SHAPES = (
    ((0.0, 0.0, 1.0, 0.34),),  # bar
    ((-0.62, 0.0, 0.3, 0.95), (0.1, 0.65, 0.75, 0.3)),  # L
    ((0.0, -0.62, 0.95, 0.3), (0.0, 0.1, 0.3, 0.85)),  # T
    ((0.0, -0.25, 0.7, 0.26), (0.0, 0.0, 0.26, 1.0)),  # cross with one long arm
    ((-0.4, -0.62, 0.55, 0.28), (0.0, 0.0, 0.26, 0.9), (0.4, 0.62, 0.55, 0.28)),  # Z
)


Job = tuple[Path, tuple[int, ...], int, int, int]  # file, labels, seed, num_frames, size


class Track(NamedTuple):
    """Where a shape is: float64 arrays (num_frames,). x and y are not wrapped; y points down."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray


class Look(NamedTuple):
    """What a video shows, whatever its motion. Colours are in [0, 1]."""

    ground: np.ndarray  # (size, size, 3)
    shape: int  # index in SHAPES
    mirror: int  # -1 shows the shape's mirror image
    colour: np.ndarray  # (3,)
    waves: np.ndarray  # (2, 3): two waves on the shape: frequencies along its axes (radians per radius), phase


def draw_track(label: int, rng: np.random.Generator, num_frames: int) -> Track:
    """Draws a motion of class `label`. The draws, and so the first frame, are the same for all labels."""
    x, y = rng.uniform(0, SIDE, 2)
    angle = rng.uniform(0, 2 * math.pi)
    fill = rng.uniform()  # place of the radius in its range
    sign = float(rng.choice((-1, 1)))
    speed = rng.uniform(1.2, 2.2)
    turn = rng.uniform(0.08, 0.16)
    amplitude = rng.uniform(8, 14)
    period, phase = rng.uniform(16, 26), rng.uniform(0, 2 * math.pi)
    ramp = rng.uniform(24, 36)  # frames that the radius takes through its range, before it jumps back

    time = np.arange(num_frames, dtype=np.float64)
    o, line = 0 * time, speed * time
    swing = 2 * math.pi * sign * time / period + phase
    cosine = amplitude * (np.cos(swing) - math.cos(phase))  # starts at 0, wherever the swing does
    sine = amplitude * (np.sin(swing) - math.sin(phase))
    dx, dy, dangle, dfill = {
        "up": (o, -line, o, o),
        "down": (o, line, o, o),
        "sideways": (sign * line, o, o, o),
        "still": (o, o, o, o),
        "spin": (o, o, sign * turn * time, o),
        "grow": (o, o, o, time / ramp),
        "shrink": (o, o, o, -time / ramp),
        "circle": (cosine, sine, o, o),
        "bob": (o, sine, o, o),
        "sway": (sine, o, o, o),
    }[CLASSES[label]]
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * ((fill + dfill) % 1)
    return Track(x + dx, y + dy, angle + dangle, radius)


def draw_look(rng: np.random.Generator, size: int) -> Look:
    """Draws a smooth ground of low contrast and a shape clearly brighter or darker."""
    grid = 2 * math.pi * np.arange(size) / size
    kx, ky = rng.integers(-2, 3, (2, 4, 1, 1))  # whole periods: the ground has no seam either
    texture = np.cos(kx * grid + ky * grid[:, None] + rng.uniform(0, 2 * math.pi, (4, 1, 1))).mean(0)
    colour = rng.uniform(0.42, 0.58) + rng.uniform(-0.05, 0.05, 3)
    ground = colour + 0.08 * texture[..., None]
    contrast = rng.choice((-1, 1)) * rng.uniform(0.22, 0.34)
    colour = colour + contrast + rng.uniform(-0.05, 0.05, 3)
    waves = np.column_stack([rng.uniform(-6, 6, (2, 2)), rng.uniform(0, 2 * math.pi, 2)])
    return Look(ground, int(rng.integers(len(SHAPES))), int(rng.choice((-1, 1))), colour, waves)


def draw_frames(track: Track, look: Look) -> np.ndarray:
    """Render a track: uint8 (num_frames, size, size, 3), on the torus, without motion blur."""
    return _as_pixels(_draw_shape(look.ground.astype(np.float32), track, look))


def _draw_shape(frames: np.ndarray, track: Track, look: Look) -> np.ndarray:
    """Draws a moving shape over frames in [0, 1], float32 ([num_frames,] size, size, 3)."""
    size = frames.shape[-2]
    unit = size / SIDE
    x, y, angle, radius = (values.astype(np.float32)[:, None, None] for values in track)
    pixel = np.arange(size, dtype=np.float32)
    dx = (pixel - x * unit + size / 2) % size - size / 2
    dy = (pixel[:, None] - y * unit + size / 2) % size - size / 2
    radius = radius * unit
    u = look.mirror * (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / radius

    distances = [np.maximum(np.abs(u - cx) - w, np.abs(v - cy) - h) for cx, cy, w, h in SHAPES[look.shape]]
    inside = np.clip(0.5 - np.minimum.reduce(distances) * radius / 1.5, 0, 1)  # an edge 1.5 pixels wide
    inside = inside * inside * (3 - 2 * inside)
    (fu, gu), (fv, gv), (f, g) = look.waves.astype(np.float32).T
    texture = np.sin(fu * u + fv * v + f) + np.sin(gu * u + gv * v + g)
    colour = look.colour.astype(np.float32) + 0.06 * texture[..., None]
    drawn: np.ndarray = np.clip(frames + inside[..., None] * (colour - frames), 0, 1)
    return drawn


def _as_pixels(frames: np.ndarray) -> np.ndarray:
    return (255 * frames + 0.5).astype(np.uint8)


def render(label: int, seed: int, *, num_frames: int = 48, size: int = 64) -> np.ndarray:
    """Render a video of class `label`, a pure function: uint8 (num_frames, size, size, 3)."""
    look, track = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return draw_frames(draw_track(label, track, num_frames), draw_look(look, size))


def render_pair(labels: tuple[int, int], seed: int, *, num_frames: int = 48, size: int = 64) -> np.ndarray:
    """Render a video of two shapes, the one of class `labels[1]` in front, a pure function; as `render`.

    The ground is that of the first shape. What is drawn at random does not depend on the labels.
    """
    children = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    looks = [draw_look(children[0], size), draw_look(children[2], size)]
    tracks = [draw_track(label, rng, num_frames) for label, rng in zip(labels, children[1::2], strict=True)]
    frames = looks[0].ground.astype(np.float32)
    for track, look in zip(tracks, looks, strict=True):
        frames = _draw_shape(frames, track._replace(radius=PAIR_SCALE * track.radius), look)
    return _as_pixels(frames)


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 30) -> None:
    """Write uint8 (T, H, W, 3) RGB frames, H and W even, as H.264 MP4; `path` appears when it is complete.

    Raises UserError where FFmpeg has no libx264.
    """
    # With its macroblock tree, x264 writes frames this small differently each time.
    x264 = {"crf": "18", "preset": "veryfast", "g": "12", "mbtree": "0"}
    with replacing(path, ELSEWHERE, durable=False) as partial:
        h264.encode(partial, frames, fps, x264, threads=1)


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    train_videos: int = 1200,
    val_videos: int = 200,
    num_frames: int = 48,
    size: int = 64,
    seed: int = 0,
    shapes: int = 1,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write `folder`/{train,val}/CLASS/INDEX.mp4, {train,val}.csv, classes.txt and, last, motion.json.

    A complete folder of the same parameters is reused, an interrupted one continued. A video depends on
    (seed, split, index, num_frames, size, shapes) alone, so more videos leave the first ones as they are.

    Args:
        train_videos, val_videos: numbers of videos; each class gets the same number, within one.
        num_frames, size: frames of a video, and their side in pixels (even, at least 32).
        shapes: with 2, each video has two shapes with two motions, and its folder and its line in the list name both;
            each of the 45 pairs of classes gets the same number of videos, within one.
        workers: processes; None is one per core, at most 8; 1 stays in this process.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        UserError: a parameter is out of range, the folder holds other data, or FFmpeg has no libx264.
    """
    if min(train_videos, val_videos, num_frames) < 1 or size < 32 or size % 2 or seed < 0 or shapes not in (1, 2):
        raise UserError(
            f"Got train_videos={train_videos}, val_videos={val_videos}, num_frames={num_frames}, size={size}, "
            f"seed={seed}, shapes={shapes}: use 1 or more, an even size from 32, a seed from 0, 1 or 2 shapes"
        )
    folder = Path(folder)
    counts = {"train_videos": train_videos, "val_videos": val_videos}
    parameters = {"renderer": RENDERER, **counts, "num_frames": num_frames, "size": size, "seed": seed}
    if shapes != 1:
        parameters["shapes"] = shapes
    complete, begun = folder / "motion.json", folder / "motion.partial.json"
    _check_folder(folder, parameters)
    if complete.exists():
        logging.getLogger(__name__).info("%s: reused", folder)
        return
    make_folder(folder, ELSEWHERE)
    record = json.dumps(parameters, indent=2) + "\n"
    write_text(begun, record, ELSEWHERE)  # an interrupted folder says what it holds
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES), ELSEWHERE)
    jobs: list[Job] = []
    for split, (name, videos) in enumerate((("train", train_videos), ("val", val_videos))):
        entries = [_entry(name, index, shapes) for index in range(videos)]
        write_text(folder / f"{name}.csv", "".join(f"{format_line(*entry)}\n" for entry in entries), ELSEWHERE)
        for index, (entry, labels) in enumerate(entries):
            video_seed = np.random.SeedSequence(seed, spawn_key=(split, index)).generate_state(1, np.uint64)
            jobs.append((folder / entry, labels, int(video_seed[0]), num_frames, size))

    jobs = [job for job in jobs if not job[0].exists()]
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    for _ in tqdm(_run(jobs, workers), total=len(jobs), unit="video", disable=None if progress else True):
        pass
    write_text(complete, record, ELSEWHERE)
    begun.unlink(missing_ok=True)


def _entry(split: str, index: int, shapes: int) -> tuple[str, tuple[int, ...]]:
    """Return the path of a video, relative to the folder, and its labels."""
    labels = (index % len(CLASSES),) if shapes == 1 else PAIRS[index % len(PAIRS)]
    return f"{split}/{'_'.join(CLASSES[label] for label in labels)}/{index:05d}.mp4", labels


def _check_folder(folder: Path, parameters: dict[str, int]) -> None:
    """Refuses a folder whose files have other parameters or another origin."""
    records = [path for name in ("motion.json", "motion.partial.json") if (path := folder / name).exists()]
    if not records:
        for name in ("train", "val", "train.csv", "val.csv", "classes.txt"):
            if (folder / name).exists():
                raise UserError(f"{folder} holds another data set's {name}: name a new folder.")
        return
    found, wanted = {"shapes": 1} | json.loads(records[0].read_text()), {"shapes": 1} | parameters
    if differences := [f"{k} is {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]:
        raise UserError(
            f"{folder} holds a motion data set with other parameters ({', '.join(differences)}): "
            "ask for the same ones, name a new folder, or delete this one."
        )


def _run(jobs: list[Job], workers: int) -> Iterator[None]:
    """Run the jobs, in this process or in spawned ones, which inherit no thread or lock."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(_render_file, jobs)
        return
    spawn, parent = multiprocessing.get_context("spawn"), Parent.current()
    with ProcessPoolExecutor(min(workers, len(jobs)), spawn, initializer=end_with, initargs=(parent,)) as pool:
        yield from pool.map(_render_file, jobs, chunksize=8)


def _render_file(job: Job) -> None:
    path, labels, seed, num_frames, size = job
    make_folder(path.parent, ELSEWHERE)
    if len(labels) == 1:
        frames = render(labels[0], seed, num_frames=num_frames, size=size)
    else:
        frames = render_pair((labels[0], labels[1]), seed, num_frames=num_frames, size=size)
    write_video(path, frames)
