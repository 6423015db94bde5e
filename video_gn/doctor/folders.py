"""Folders: the data and its lists, how fast they are read; where the run writes."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from video_gn.data.formats import IMAGE_SUFFIXES, SUFFIXES
from video_gn.doctor.check import Line, Target, user_error_line
from video_gn.errors import UserError
from video_gn.limits import GIB, MIB, size_text

if TYPE_CHECKING:
    from video_gn.config import Config
    from video_gn.data.lists import Record

SLOW = 10e6  # bytes per second: a rule of thumb, some 20 videos of Kinetics at short side 256
SAMPLE = 64  # files of the data folder that are read
READ_LIMIT, WRITTEN = 64 * MIB, 32 * MIB
LOOKED_FOR = 1000  # files of a list; training looks for all of them
DISK_REMEDY = "Try `ls` there: a network disk may hang; copy the data to a local one."


def lists(target: Target) -> Iterator[Line]:
    """Look at the data folder and at each list of the config, and for some of the lists' files."""
    if not target.data.is_dir() and not (target.config and "://" in target.config.data.root):
        yield Line("error", "data folder", f"{target.data}: no such folder", "Name the right one, as data.root=FOLDER.")
        return
    if target.config is None:
        return
    data = target.config.data
    for name in dict.fromkeys((data.train_list, data.val_list, data.test_list)):
        try:
            yield Line("ok", f"list {name}", _list_text(target.config, name))
        except UserError as error:
            yield user_error_line(f"list {name}", error)


def labels(target: Target) -> Iterator[Line]:
    """Report what is odd about the training and validation lists, where both can be read."""
    config = target.config
    if config is None:
        return
    from video_gn.engine.datasets import class_names, list_warnings, quarantine

    try:
        train, val = (_records(config, name) for name in (config.data.train_list, config.data.val_list))
        bad = quarantine(config)
        warnings = list_warnings([record for record in train if record.path not in bad], val, class_names(config))
    except UserError:
        return  # reported by `lists`
    for warning in warnings:
        line = user_error_line("labels", UserError(warning))
        yield line._replace(status="warning")


def _list_text(config: Config, name: str) -> str:
    from video_gn.data.lists import check_files
    from video_gn.engine.datasets import quarantine

    records = _records(config, name)
    if config.data.kind == "images":
        return f"{len(records):,} images"
    bad = quarantine(config)
    wanted = [record for record in records if record.path not in bad]
    some = wanted[:: max(math.ceil(len(wanted) / LOOKED_FOR), 1)]
    check_files(some, config.data.root, name)
    return f"{len(records):,} videos; {len(some):,} of them looked for and there"


def _records(config: Config, name: str) -> list[Record]:
    """Return the records of a list, without a look at its files."""
    from video_gn.data.images import read_image_folder
    from video_gn.engine.datasets import class_names, parse_list

    data = config.data
    if data.kind == "images":
        return read_image_folder(name, data.root, config.model.num_classes)
    return parse_list(config, name, None if data.class_names is None else class_names(config))


def sample_files(target: Target) -> list[Path]:
    """Return up to SAMPLE videos or images: of the training list, or else found in the data folder."""
    config = target.config
    suffixes = SUFFIXES
    if config is not None and config.data.kind == "images":
        suffixes = frozenset(IMAGE_SUFFIXES)
    elif config is not None:
        from video_gn.data.lists import video_path

        with suppress(UserError):
            records = _records(config, config.data.train_list)
            paths = [Path(video_path(record, config.data.root)) for record in records]
            return [path for path in paths[:: math.ceil(len(paths) / SAMPLE)] if path.is_file()]
    folders = islice(os.walk(target.data), 1000)
    files = (Path(folder, name) for folder, _, names in folders for name in sorted(names))
    return list(islice((path for path in files if path.suffix.lower() in suffixes), SAMPLE))


def read_speed(target: Target) -> Iterator[Line]:
    """Read some of the data, or a temporary file where there is none."""
    if not target.data.is_dir():
        return  # said by `lists`
    files = sample_files(target)
    if files:
        begin = time.perf_counter()
        size = _read_files(files)
        seconds = time.perf_counter() - begin
        yield read_speed_line(str(target.data), f"{len(files)} files", size, seconds, len(files))
        return
    try:
        with tempfile.TemporaryFile(dir=target.data) as file:
            size = _write(file.fileno(), WRITTEN)
            begin = time.perf_counter()
            _read_files([Path(f"/proc/self/fd/{file.fileno()}")])
            seconds = time.perf_counter() - begin
        yield read_speed_line(str(target.data), "a temporary file, no video found", size, seconds, 1)
    except OSError as error:
        text = f"{target.data}: no video in it, nor room for a test of its speed ({error.strerror})"
        yield Line("warning", "data folder", text, "Name the folder of the videos, or a config.")


def _read_files(paths: Sequence[Path]) -> int:
    """Read up to READ_LIMIT bytes, where possible not from the page cache; return their number."""
    size = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            with suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while size < READ_LIMIT and (chunk := file.read(MIB)):
                size += len(chunk)
    return size


def _write(descriptor: int, size: int) -> int:
    """Write random bytes through to the disk; return `size`."""
    block = os.urandom(MIB)
    for _ in range(size // MIB):
        os.write(descriptor, block)
    os.fsync(descriptor)
    return size


def read_speed_line(folder: str, what: str, size: int, seconds: float, files: int) -> Line:
    """Judge `size` bytes of `files` files read in `seconds`: slow is few bytes and few files per second."""
    seconds = max(seconds, 1e-6)
    text = f"{folder}: {what}, {size / 1e6:.1f} MB at {size / seconds / 1e6:,.0f} MB/s"
    text += f", {files / seconds:,.0f} files/s" if files > 1 else ""
    if size / seconds < SLOW and files / seconds < 20:
        return Line("warning", "data folder", text, "Copy the data to a local disk: training will wait for it.")
    return Line("ok", "data folder", f"{text} (the page cache may flatter)")


def output_folder(target: Target) -> Iterator[Line]:
    """Try whether the run's folder can be made; judge its space for checkpoints and the speed of writing."""
    place = target.output.absolute()
    while not place.exists():
        place = place.parent
    need = checkpoint_bytes(target.config) if target.config is not None else 0
    free = shutil.disk_usage(place).free
    text = f"{target.output}: {size_text(free)} free"
    if need:
        text += f", checkpoints take up to {size_text(need)}"
    if free < max(need, 2 * WRITTEN):
        yield Line("error", "output folder", text, "Free space there, or set output_dir to a folder on another disk.")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            begin = time.perf_counter()
            speed = _write(file.fileno(), WRITTEN) / (time.perf_counter() - begin)
    except OSError as error:
        text = f"{target.output}: cannot be written ({error.strerror})"
        yield Line("error", "output folder", text, "Set output_dir to a folder that you may write to.")
        return
    text += f", writes at {speed / 1e6:,.0f} MB/s"
    if free < max(2 * need, GIB):
        yield Line("warning", "output folder", text, "Free space there before a long run.")
    elif speed < SLOW:
        yield Line("warning", "output folder", text, "Set output_dir to a local disk: each checkpoint halts training.")
    else:
        yield Line("ok", "output folder", text)


def checkpoint_bytes(config: Config) -> int:
    """Return the bytes of all checkpoints, the one being written included: weights and SGD's momentum in fp32."""
    from video_gn.models import build_model

    model = build_model(config.model, config.dims)
    weights = sum(p.numel() for p in model.parameters())
    return 4 * (config.checkpoint.keep + 2) * (2 * weights + sum(b.numel() for b in model.buffers()))
