"""A folder of prepared videos."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from video_gn.data.decode import VideoError
from video_gn.data.lists import THREADS
from video_gn.data.prepare.names import Video, check_same, new_list, plan, read_records
from video_gn.data.prepare.processes import in_children, with_bar
from video_gn.data.prepare.video import ELSEWHERE, X264, encode_video
from video_gn.data.stores import is_url
from video_gn.errors import UserError
from video_gn.files import h264
from video_gn.files.atomic import remove_leftovers, write_text
from video_gn.files.tables import Row, read_table, row_text, write_table

MANIFEST = ("path", "source", "source_bytes", "source_mtime_ns", "sha256", "frames", "fps", "width", "height", "bytes")
QUARANTINE = ("path", "reason")
OWN_FILES = ("manifest.csv", "quarantine.csv", "prepare.json")


def prepare_list(
    list_path: str, out: Path, root: str, *, short_side: int = 256, jobs: int | None = None, time_limit: float = 600
) -> tuple[str, dict[str, str]]:
    """Re-encode the videos of a list into `out`; write the new list, the manifest and the quarantine there.

    What the manifest has is not done again, where the source has its size and time and the prepared file its size;
    videos that failed are tried again. Lists of one root may share `out`, one after another.

    Args:
        root: folder that the list's entries are relative to.
        short_side: in pixels, even; smaller videos keep their size.
        jobs: videos at a time; None is one per core.
        time_limit: seconds that one video may take.

    Returns:
        A line of numbers, and the reasons of the videos that could not be prepared, by their paths in the list.

    Raises:
        UserError: a bad list or setting; `out` is in use, holds other things, or cannot be written.
    """
    begun = time.monotonic()
    if short_side < 16 or short_side % 2:
        raise UserError(f"the short side {short_side} is not an even number from 16; choose one, such as 256")
    if is_url(root):
        raise UserError(f"videos are prepared from a folder, not from {root}; copy them to a disk first")
    h264.check_encoder()
    file, records = read_records(list_path, root)
    videos = plan(records, root)
    todo = {video.path: video for video in videos}
    with open_folder(out, file, root, {"short_side": short_side, "x264": X264}):
        rows = {row["path"]: row for row in read_table(out / "manifest.csv", MANIFEST)}
        for path in _finished(out, todo, rows, file, root):
            del todo[path]
        skipped = len({video.path for video in videos} - todo.keys())
        reasons = _encode_all(out, rows, list(todo.values()), short_side, jobs, time_limit)
        write_table(out / "manifest.csv", MANIFEST, rows.values(), ELSEWHERE)
        bad = {r.path: reasons[v.path] for r, v in zip(records, videos, strict=True) if v.path in reasons}
        _write_quarantine(out / "quarantine.csv", bad, {record.path for record in records})
        write_text(out / file.name, new_list(file, records, videos, bad), ELSEWHERE, durable=False)
    good = [rows[path] for path in {video.path for video in videos} - reasons.keys()]
    before, after = (sum(int(row[column]) for row in good) / 1e6 for column in ("source_bytes", "bytes"))
    done = f"{len(todo) - len(reasons)} done, {skipped} skipped (done before), {len(reasons)} bad"
    return f"{done}; {time.monotonic() - begun:.0f} s; {before:.1f} MB before, {after:.1f} MB after", bad


@contextmanager
def open_folder(out: Path, file: Path, root: str, settings: dict[str, Any]) -> Iterator[None]:
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
        write_text(own, json.dumps(settings, indent=2) + "\n", ELSEWHERE, durable=False)
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
            check_same(video, rows[video.path]["source"])
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
    # Without the half line that a kill may have left.
    write_table(out / "manifest.csv", MANIFEST, rows.values(), ELSEWHERE)
    calls = [(video.source, out / video.path, short_side) for video in videos]
    with open(out / "manifest.csv", "a", encoding="utf-8", newline="") as manifest:
        for index, result in with_bar(in_children(encode_video, calls, jobs, time_limit), len(calls), "preparing"):
            video, target = videos[index], calls[index][1]
            if isinstance(result, VideoError):
                reasons[video.path] = result.reason
                rows.pop(video.path, None)
                remove_leftovers(target)
                with suppress(OSError):  # there may be no folder, either
                    target.unlink()
                continue
            rows[video.path] = {"path": video.path, "source": video.name, **{k: str(v) for k, v in result.items()}}
            manifest.write(row_text(rows[video.path], MANIFEST))
            manifest.flush()  # from here on a kill cannot lose it
    return reasons


def _write_quarantine(path: Path, bad: dict[str, str], listed: set[str]) -> None:
    """Replace the rows of this list's videos; another list's stay."""
    others = [row for row in read_table(path, QUARANTINE) if row["path"] not in listed]
    mine = [{"path": video, "reason": reason} for video, reason in bad.items()]
    write_table(path, QUARANTINE, [*others, *mine], ELSEWHERE)
