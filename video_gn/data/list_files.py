"""Write lists beside what a person keeps there: nothing that this program did not write is lost."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from video_gn.errors import UserError
from video_gn.files.atomic import write_text

ELSEWHERE = "give another --out"
RECORD = ".make_lists.json"
"""File beside the lists with the SHA-256 of each as it was written: what differs from it is not this program's."""


def check_out(out: Path, inputs: Sequence[str], force: bool, names: Iterable[str]) -> None:
    """Raise UserError where files cannot be written or one would be replaced; before a walk that may take minutes.

    Args:
        inputs: files that are read: a list among them is never replaced, a classes.txt stays as it is.
        names: of the files that may be written into `out`.
    """
    place = next(place for place in (out, *out.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise UserError(f"{place} is not a folder; give another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} cannot be written to; give another folder for the lists: --out FOLDER")
    for file in (out / name for name in names):
        if not os.path.lexists(file):
            continue
        if file.is_dir():
            raise UserError(f"{file} is a folder, and a list would have its name; rename it, or give another --out")
        if any(os.path.exists(given) and os.path.exists(file) and file.samefile(given) for given in inputs):
            if file.name == "classes.txt":
                continue  # it is written again as it is
            raise UserError(f"{file} is the official list that is read and cannot be written; give another --out")
        if not force:
            raise UserError(f"{file} exists and is not overwritten; give another --out, or --force")


def write_files(out: Path, texts: Mapping[str, str]) -> list[str]:
    """Write each file that has a text into ``out``. One that has none is removed if an earlier call wrote it.

    Where a file is there that no call wrote, or that was changed since, it is kept: under its name, where there is
    nothing to write, else as NAME.bak, NAME.bak2 ...

    Returns:
        Lines that say what was written, removed and kept.

    Raises:
        UserError: a file cannot be written.
    """
    written: list[str] = []
    notes: list[str] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        record = _read_record(out / RECORD)
        for name, text in texts.items():
            file, there = out / name, os.path.lexists(out / name)
            ours = there and _digest(file) == record.get(name)
            if text:
                if there and not ours and (kept := _keep(file, text)):
                    notes.append(f"{file} was not written by this program, or was changed since: kept as {kept}")
                write_text(file, text, ELSEWHERE, durable=False)
                record[name] = hashlib.sha256(text.encode()).hexdigest()
                written.append(str(file))
            elif ours:
                file.unlink()
                notes.append(f"removed {file}, of an earlier run: it would be empty now")
            elif there:
                notes.append(f"{file} stays: it is not of this run, and not as this program would have written it")
        write_text(out / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n", ELSEWHERE, durable=False)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}; {ELSEWHERE}") from None
    return [*notes, f"wrote {', '.join(written)}"]


def _read_record(file: Path) -> dict[str, str]:
    """Name -> digest; empty where the record is missing or damaged: all files are then taken for another's."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict) and all(isinstance(value, str) for value in record.values()):
            return record
    return {}


def _digest(file: Path) -> str | None:
    """Return the SHA-256 of a regular file's content; None of anything else."""
    if file.is_symlink() or not file.is_file():
        return None
    with contextlib.suppress(OSError):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return None


def _keep(file: Path, text: str) -> Path | None:
    """Rename a file that is to be replaced by `text`; returns its new path, None where it holds the same already."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _lines(file.read_bytes().decode("utf-8-sig")) == _lines(text):
            return None
    names = itertools.chain([".bak"], (f".bak{number}" for number in itertools.count(2)))
    kept = next(path for name in names if not os.path.lexists(path := file.with_name(file.name + name)))
    file.rename(kept)
    return kept


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
