"""Videos re-encoded so that random clips are cheap to decode, and lists checked by decoding every file.

A prepared file is H.264 in MP4 without sound: frame i is frame i of the source as `decode` counts and turns it,
shown at i / fps seconds; short GOPs, no B-frames, no CABAC, no deblocking. Every video is worked on in a child
process of its own: a decoder that hangs or crashes costs that video only.

Beside the prepared files and the new list, the folder holds

- `manifest.csv`: a row (MANIFEST) for each prepared video, written as soon as its file is there;
- `quarantine.csv`: `path,reason` of the list's videos that could not be prepared;
- `prepare.json`: the settings, the same for all files in it.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from tqdm import tqdm

from video_gn.children import end_with_client, kill
from video_gn.data.decode import CountCorrected, VideoError, check_decoder, open_video
from video_gn.data.lists import KINETICS_COLUMNS, THREADS, Record, find_list, read_list, video_path
from video_gn.data.stores import is_url
from video_gn.errors import PROGRAMMING_ERRORS, UserError
from video_gn.files.atomic import fitting_name

MANIFEST = ("path", "source", "source_bytes", "source_mtime_ns", "sha256", "frames", "fps", "width", "height", "bytes")
QUARANTINE = ("path", "reason")
REPORT = ("path", "frames", "fps", "width", "height", "duration", "problem")
JOURNAL = (*REPORT, "bytes", "mtime_ns")
OWN_FILES = ("manifest.csv", "quarantine.csv", "prepare.json")

# Chosen by measurement, see docs/preparing.md. Without its macroblock tree x264 writes the same file each time.
X264 = {"preset": "veryfast", "tune": "fastdecode", "crf": "24", "g": "16", "bf": "0", "mbtree": "0"}
FPS_RANGE, DEFAULT_FPS = (1, 240), Fraction(25)  # the default where the source tells none, or none of a camera

Row = dict[str, str]
Results = Generator[tuple[int, Any], None, None]


# ---- one video ----


def encode_video(source: str, target: Path, short_side: int) -> dict[str, Any]:
    """Re-encode `source` as `target`, which appears when it is complete and has been reopened.

    Returns:
        The columns of MANIFEST from `source_bytes` on.

    Raises:
        VideoError: `source` cannot be read to its end, or what was written has other frames.
        OSError: `target` cannot be written.
    """
    with open_video(source) as video:
        status = os.stat(source)
        fps = frame_rate(video.fps)
        height, width = prepared_size(video.height, video.width, short_side)
        partial = partial_of(target)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, video.frames(), height, width, fps)
        except CountCorrected:  # now that the number of frames is right
            _write(partial, video.frames(), height, width, fps)
        expected = (video.num_frames, height, width)
    with open_video(partial) as written:
        found = (written.num_frames, written.height, written.width)
    if found != expected:
        raise VideoError(source, f"prepared as {expected} (frames, height, width), but reads as {found}")
    data = partial.read_bytes()
    os.replace(partial, target)
    return {
        "source_bytes": status.st_size,
        "source_mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(data).hexdigest(),
        "frames": expected[0],
        "fps": round(float(fps), 6),
        "width": expected[2],
        "height": expected[1],
        "bytes": len(data),
    }


def check_video(source: str) -> dict[str, Any]:
    """Decode every frame. Returns the columns of REPORT between path and problem; duration is in seconds.

    Raises VideoError where `source` cannot be read to its end.
    """
    with open_video(source) as video:
        try:
            frames = sum(1 for _ in video.frames())
        except CountCorrected:  # now that the number of frames is right
            frames = sum(1 for _ in video.frames())
        fps = round(float(video.fps), 6) if video.fps else ""
        duration = round(frames / video.fps, 3) if video.fps else ""
        return {"frames": frames, "fps": fps, "width": video.width, "height": video.height, "duration": duration}


def prepared_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width: the short side is `short_side`, or less as nothing is enlarged; both even, as H.264 needs."""
    scale = min(1.0, short_side / min(height, width))
    height, width = (max(2, 2 * min(round(side * scale / 2), side // 2)) for side in (height, width))
    return height, width


def frame_rate(fps: float | None) -> Fraction:
    """The rate to write, in frames a second: the source's average, where it is that of a camera."""
    if fps is None or not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:  # nan is not, either
        return DEFAULT_FPS
    return Fraction(fps).limit_denominator(1001)  # 29.97 is 30000/1001


def partial_of(target: Path) -> Path:
    """The file that becomes `target`. Always the same, so that the next try replaces what a kill has left."""
    return target.with_name(fitting_name(f".{target.name}", ".partial"))


def _write(path: Path, images: Iterable[np.ndarray], height: int, width: int, fps: Fraction) -> None:
    scaler = VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # The matrix is that of the conversion below, told so that no player has to guess it from the size.
        stream = container.add_stream("libx264", rate=fps, options={**X264, "colorspace": "smpte170m"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for index, image in enumerate(images):
            frame = scaler.reformat(
                av.VideoFrame.from_ndarray(image, format="rgb24"),
                width,
                height,
                "yuv420p",
                dst_colorspace=Colorspace.ITU601,
                interpolation=Interpolation.BICUBIC,
                threads=1,
            )
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# ---- a list of videos ----


@dataclass(frozen=True, slots=True)
class Video:
    """One video to prepare."""

    source: str
    """Its file, as it is opened."""
    name: str
    """The same for all ways to write its path: relative to the root, absolute outside of it."""
    path: str
    """Of the prepared file, relative to the folder of prepared files."""


def prepare_list(
    list_path: str, out: Path, root: str, *, short_side: int = 256, jobs: int | None = None, time_limit: float = 600
) -> tuple[str, dict[str, str]]:
    """Re-encode the videos of a list into `out`; write the new list, the manifest and the quarantine there.

    What the manifest has is not done again, where the source has its size and time and the prepared file its size;
    videos that failed are tried again. Lists of one root may share `out`, one after another.

    Args:
        root: folder that the list's entries are relative to.
        short_side: in pixels, even; smaller videos keep their size.
        jobs: videos at a time; None is one a core.
        time_limit: seconds that one video may take.

    Returns:
        A line of figures, and the reasons of the videos that could not be prepared, by their paths in the list.

    Raises:
        UserError: a bad list or setting; `out` is in use, holds other things, or cannot be written.
    """
    begun = time.monotonic()
    if short_side < 16 or short_side % 2:
        raise UserError(f"the short side {short_side} is not an even number from 16; choose one, such as 256")
    if is_url(root):
        raise UserError(f"videos are prepared from a folder, not from {root}; copy them to a disk first")
    _check_encoder()
    file, records = _read(list_path, root)
    videos = plan(records, root)
    todo = {video.path: video for video in videos}
    with _folder(out, file, root, {"short_side": short_side, "x264": X264}):
        rows = {row["path"]: row for row in _read_table(out / "manifest.csv", MANIFEST)}
        for path in _finished(out, todo, rows, file, root):
            del todo[path]
        skipped = len({video.path for video in videos} - todo.keys())
        reasons = _encode_all(out, rows, list(todo.values()), short_side, jobs, time_limit)
        _write_table(out / "manifest.csv", MANIFEST, rows.values())
        bad = {r.path: reasons[v.path] for r, v in zip(records, videos, strict=True) if v.path in reasons}
        _write_quarantine(out / "quarantine.csv", bad, {record.path for record in records})
        _replace_text(out / file.name, _new_list(file, records, videos, bad))
    good = [rows[path] for path in {video.path for video in videos} - reasons.keys()]
    before, after = (sum(int(row[column]) for row in good) / 1e6 for column in ("source_bytes", "bytes"))
    done = f"{len(todo) - len(reasons)} done, {skipped} skipped (done before), {len(reasons)} bad"
    return f"{done}; {time.monotonic() - begun:.0f} s; {before:.1f} MB before, {after:.1f} MB after", bad


def plan(records: Sequence[Record], root: str) -> list[Video]:
    """Where each record's prepared file goes: its own path with the suffix .mp4, below the folder whatever it says.

    Of outside the root, the whole path is kept. Where only the suffix tells two sources apart, those that are not
    .mp4 keep it before the new one (a.avi.mp4). Two spellings of one path get the same file.

    Raises UserError where two sources would still be one file.
    """
    top = os.path.abspath(root)
    videos = []
    for record in records:
        full = os.path.abspath(os.path.join(top, record.path))
        inside = os.path.commonpath([top, full]) == top
        name = os.path.relpath(full, top) if inside else full
        videos.append(Video(video_path(record, root), name, _as_mp4(os.path.splitext(name.lstrip("/"))[0])))
    sharing = Counter(path for _, path in {(video.name, video.path) for video in videos})
    videos = [
        replace(video, path=_as_mp4(video.name.lstrip("/")))
        if sharing[video.path] > 1 and not video.name.endswith(".mp4")
        else video
        for video in videos
    ]
    taken: dict[str, str] = {}
    for video in videos:
        _check_same(video, taken.setdefault(video.path, video.name))
    return videos


def _as_mp4(path: str) -> str:
    """Return the path with .mp4 at its end; a name that would be longer than file systems allow is cut."""
    folder, name = os.path.split(path)
    return os.path.join(folder, fitting_name(name, ".mp4"))


def _check_same(video: Video, name: str) -> None:
    if name != video.name:
        raise UserError(
            f"{video.name} and {name} would both become {video.path}; rename one, or prepare them into two folders"
        )


def _read(list_path: str, root: str) -> tuple[Path, list[Record]]:
    """The list's own path and its records. Labels are not looked at, so they get no range and no class names."""
    file = find_list(list_path, root)
    names: set[str] = set()
    with suppress(UnicodeDecodeError, csv.Error), open(file, encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if KINETICS_COLUMNS.issubset(table.fieldnames or ()):  # its labels are names
            names = {(row["label"] or "").strip() for row in table}
    return file, read_list(str(file), root, 10**18, sorted(names), absolute_paths=True)


def _check_encoder() -> None:
    try:
        av.Codec("libx264", "w")
    except av.codec.codec.UnknownCodecError:
        raise UserError("PyAV's FFmpeg has no libx264; install PyAV's own build (`pip install av`)") from None


@contextmanager
def _folder(out: Path, file: Path, root: str, settings: dict[str, Any]) -> Iterator[None]:
    """Make or reuse `out` for these settings, and keep other runs away. Raises UserError where it may not be used."""
    if out.resolve() == Path(root).resolve() or (out / file.name).resolve() == file.resolve():
        raise UserError(f"{out} holds the originals or their list {file}; name another folder")
    if file.name in OWN_FILES:
        raise UserError(f"the new list would replace the {file.name} of {out}; rename the list")
    own = out / "prepare.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot use the folder {out}: {error.strerror}; name another one") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another run prepares videos into {out}; wait for its end, or name another folder") from None
    except OSError:
        pass  # not every file system can lock
    try:
        if not own.exists() and any(out.iterdir()):
            raise UserError(f"{out} holds other files; name a new folder")
        found = json.loads(own.read_text(encoding="utf-8")) if own.exists() else settings
        if found != settings:
            raise UserError(f"{out} was prepared with {found}, not {settings}; use the same, or name another folder")
        _replace_text(own, json.dumps(settings, indent=2) + "\n")
        yield
    finally:
        os.close(lock)


def _finished(out: Path, videos: dict[str, Video], rows: dict[str, Row], file: Path, root: str) -> list[str]:
    """Paths of the videos that need no work. Raises UserError if no source exists, or a path is another source's."""

    def state(video: Video) -> tuple[bool, bool]:
        try:
            source = os.stat(video.source)
        except OSError:
            return False, False
        row = rows.get(video.path)
        if row is None or (str(source.st_size), str(source.st_mtime_ns)) != (
            row["source_bytes"],
            row["source_mtime_ns"],
        ):
            return True, False
        prepared = out / video.path
        return True, prepared.is_file() and str(prepared.stat().st_size) == row["bytes"]

    for video in videos.values():
        if video.path in rows:
            _check_same(video, rows[video.path]["source"])
    with ThreadPoolExecutor(THREADS) as pool:  # a look at a network disk is all waiting
        states = list(pool.map(state, videos.values()))
    if not any(exists for exists, _ in states):
        raise UserError(f"none of the {len(videos):,} videos of {file} is under {root!r}; correct --root or the list")
    return [path for path, (_, finished) in zip(videos, states, strict=True) if finished]


def _encode_all(
    out: Path, rows: dict[str, Row], videos: list[Video], short_side: int, jobs: int | None, time_limit: float
) -> dict[str, str]:
    """Encode the videos; each adds its row to `rows` and the manifest at once. Returns reasons of bad ones by path."""
    reasons: dict[str, str] = {}
    _write_table(out / "manifest.csv", MANIFEST, rows.values())  # without the half line that a kill may have left
    calls = [(video.source, out / video.path, short_side) for video in videos]
    with open(out / "manifest.csv", "a", encoding="utf-8", newline="") as manifest:
        table = csv.DictWriter(manifest, MANIFEST)
        for index, result in _with_bar(in_children(encode_video, calls, jobs, time_limit), len(calls), "preparing"):
            video, target = videos[index], calls[index][1]
            if isinstance(result, VideoError):
                reasons[video.path] = result.reason
                rows.pop(video.path, None)
                for path in (target, partial_of(target)):
                    with suppress(OSError):  # there may be no folder, either
                        path.unlink()
                continue
            rows[video.path] = {"path": video.path, "source": video.name, **{k: str(v) for k, v in result.items()}}
            table.writerow(rows[video.path])
            manifest.flush()  # from here on a kill cannot lose it
    return reasons


def _new_list(file: Path, records: Sequence[Record], videos: Sequence[Video], bad: dict[str, str]) -> str:
    """The text of the list with the new paths and without the bad videos; all else stays."""
    lines: list[str | None] = list(file.read_bytes().decode("utf-8").split("\n"))
    seen: Counter[str] = Counter()
    for record, video in zip(records, videos, strict=True):
        line = lines[record.line - 1]
        assert line is not None
        # A path may stand once in a list; "./" is another spelling for the second line of the same video.
        path = "./" * seen[video.path] + video.path
        seen[video.path] += 1
        if record.path in bad:
            lines[record.line - 1] = None
        elif path != record.path:
            lines[record.line - 1] = _with_path(line, record.path, path)
    return "\n".join(line for line in lines if line is not None)


def _with_path(line: str, old: str, new: str) -> str:
    """A line of a list with another path, quoted where it was or has to be."""
    quoted_old, quoted_new = ('"' + path.replace('"', '""') + '"' for path in (old, new))
    if quoted_old in line:
        return line.replace(quoted_old, quoted_new, 1)
    if old not in line:
        raise UserError(f"{line.strip()!r}: a row of Kinetics' csv cannot name {new!r}; write the list as `path label`")
    return line.replace(old, quoted_new if new[0] in '"# \t' else new, 1)


def _write_quarantine(path: Path, bad: dict[str, str], listed: set[str]) -> None:
    """Replace the rows of this list's videos; another list's stay."""
    others = [row for row in _read_table(path, QUARANTINE) if row["path"] not in listed]
    mine = [{"path": video, "reason": reason} for video, reason in bad.items()]
    _write_table(path, QUARANTINE, [*others, *mine])


# ---- checking ----


def check_list(
    list_path: str, report: Path | None, root: str, *, jobs: int | None = None, time_limit: float = 600
) -> tuple[str, dict[str, str]]:
    """Decode every video of a list; write a csv (REPORT) with one row a video, in the list's order.

    What an interrupted check has found is in a hidden file beside the report: the next one decodes those videos again
    that had a problem or have changed since, and those that were not reached.

    Args:
        report: the csv; None is LIST.report.csv beside the list.
        root, jobs, time_limit: as `prepare_list`.

    Returns:
        A line of figures, and the problems found, by their paths in the list.

    Raises:
        UserError: a bad list, or the report cannot be written.
    """
    begun = time.monotonic()
    file, records = _read(list_path, root)
    report = report or file.with_name(f"{file.stem}.report.csv")
    if report.resolve() == file.resolve() or not os.access(report.parent, os.W_OK) or report.is_dir():
        raise UserError(f"cannot write the report {report}; give another file after the list")
    journal = report.with_name(f".{report.name}.begun")
    known = {row["path"]: row for row in _read_table(journal, JOURNAL) if not row["problem"]}
    sources = [video_path(record, root) for record in records]
    rows: list[Row] = []
    for record, source in zip(records, sources, strict=True):
        row = {"path": record.path, "problem": "", **_size_and_time(source)}
        found = known.get(record.path, {})
        rows.append(found if row.items() <= found.items() else row)
    todo = [index for index, row in enumerate(rows) if "frames" not in row]
    _write_table(journal, JOURNAL, (row for row in rows if "frames" in row))
    results = in_children(check_video, [(sources[index],) for index in todo], jobs, time_limit)
    with open(journal, "a", encoding="utf-8", newline="") as file_of_rows:
        table = csv.DictWriter(file_of_rows, JOURNAL)
        for number, result in _with_bar(results, len(todo), "checking"):
            row = rows[todo[number]]
            row |= {"problem": result.reason} if isinstance(result, VideoError) else result
            table.writerow(row)
            file_of_rows.flush()  # from here on a kill cannot lose it
    _write_table(report, REPORT, rows)
    journal.unlink()
    bad = {row["path"]: row["problem"] for row in rows if row["problem"]}
    before = f" ({len(rows) - len(todo)} of them before)" if len(todo) < len(rows) else ""
    text = f"{len(rows) - len(bad)} good{before}, {len(bad)} with problems"
    return f"{text}; {time.monotonic() - begun:.0f} s; {report}", bad


def _size_and_time(source: str) -> Row:
    """Of a file that may be gone or on a server: then nothing tells whether it has changed."""
    try:
        status = os.stat(source)
    except OSError:
        return {"bytes": "", "mtime_ns": ""}
    return {"bytes": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}


def read_report(path: str | os.PathLike[str]) -> dict[str, str]:
    """The problems, by path as in the list, that a report of `check_list` or a quarantine.csv names.

    Raises UserError if the file is missing or is neither of them.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or ()
            column = "problem" if "problem" in columns else "reason"
            if "path" not in columns or column not in columns:
                raise UserError(f"{path} has no columns path and problem; give a report of tools/prepare.py --check")
            return {row["path"]: row[column] for row in table if row["path"] and row[column]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the report {path}: {error}; make it with tools/prepare.py --check") from None


# ---- child processes ----


@dataclass(frozen=True, slots=True)
class _Child:
    index: int
    path: str
    process: BaseProcess
    deadline: float


def in_children(
    work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int | None, seconds: float
) -> Results:
    """Call `work` with each tuple in a process of its own, `jobs` at a time (None: one a core).

    Yields (index of the call, result) as they come. The result of what fails, crashes or takes longer than `seconds`
    is a VideoError about the first argument, a path. Raises UserError where a file cannot be written, and
    PROGRAMMING_ERRORS, whose traceback the child has printed.
    """
    jobs = os.cpu_count() or 1 if jobs is None else jobs
    if jobs < 1 or not seconds > 0:
        raise UserError(f"{jobs} jobs and a limit of {seconds:g} s cannot work; give at least one job and some time")
    # Children are forks of a server that has imported all and started nothing: 10 ms each, not seconds.
    context = multiprocessing.get_context("forkserver")
    modules = [__name__]
    with suppress(UserError):
        check_decoder("torchcodec")
        modules.append("torchcodec.decoders")
    context.set_forkserver_preload(modules)
    waiting = enumerate(calls)
    running: dict[Connection, _Child] = {}
    try:
        while True:
            for index, call in islice(waiting, jobs - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, work, call), daemon=True)
                process.start()
                sender.close()  # the child has its own; so its death is the end of the pipe
                running[receiver] = _Child(index, os.fspath(call[0]), process, time.monotonic() + seconds)
            if not running:
                return
            soonest = min(child.deadline for child in running.values())
            ready = set(wait(list(running), max(0.0, soonest - time.monotonic())))
            now = time.monotonic()
            for receiver in [r for r, child in running.items() if r in ready or child.deadline <= now]:
                child = running[receiver]
                late = VideoError(child.path, f"took longer than the limit of {seconds:g} s")
                result = _result(receiver, child) if receiver in ready else late
                _end(running.pop(receiver), receiver)
                if isinstance(result, (UserError, *PROGRAMMING_ERRORS)):
                    raise result
                yield child.index, result
    finally:
        for receiver, child in running.items():
            _end(child, receiver)


def _result(receiver: Connection, child: _Child) -> Any:
    """What the child has sent; where it died before, a VideoError that says how."""
    try:
        return receiver.recv()
    except (EOFError, OSError):
        child.process.join()
    code = child.process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return VideoError(child.path, f"the process that read it crashed ({how})")


def _end(child: _Child, receiver: Connection) -> None:
    kill([child.process])
    receiver.close()


def _child(sender: Connection, work: Callable[..., Any], call: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    end_with_client()
    result: Any
    try:
        result = work(*call)
    except (VideoError, UserError) as error:
        result = error
    except OSError as error:  # reading raises VideoError alone: this was writing
        where = f" {error.filename}" if error.filename else ""
        result = UserError(f"cannot write{where}: {error.strerror or error}; mend that and run the same command again")
    except PROGRAMMING_ERRORS as error:
        traceback.print_exc()
        result = error
    except Exception as error:
        result = VideoError(os.fspath(call[0]), f"{type(error).__name__}: {error}")
    sender.send(result)
    os._exit(0)  # whatever threads a decoder may have left


def _with_bar(results: Results, total: int, what: str) -> Results:
    """The same, with a bar on a terminal that counts the bad ones."""
    bad = 0
    with closing(results), tqdm(total=total, desc=what, unit="video", disable=None) as bar:
        for index, result in results:
            bad += isinstance(result, VideoError)
            bar.set_postfix(bad=bad, refresh=False)
            bar.update()
            yield index, result


# ---- files ----


def _read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a csv of ours; [] where there is none. A last line without its end was cut by a kill: not a row."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if tuple(table.fieldnames or ()) != tuple(columns):
        raise UserError(f"{path} does not have the columns {', '.join(columns)}; restore it, or name another folder")
    return list(table)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    _replace_text(path, text.getvalue())


def _replace_text(path: Path, text: str) -> None:
    """Write a file in one move."""
    partial = partial_of(path)
    try:
        partial.write_bytes(text.encode("utf-8"))
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; mend that and run the same command again") from None
