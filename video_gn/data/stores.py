"""Files of object stores and web servers, by fsspec's URLs: s3://, gs://, https://, memory:// and others.

What a store needs (keys, time limits) is said to fsspec itself; see docs/object_stores.md. Copies on a local disk are
kept here: fsspec's own (filecache::, simplecache::) take what a broken download has left for the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from video_gn.errors import UserError
from video_gn.files.atomic import make_folder, write_bytes

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PAUSES = (1.0, 4.0, 16.0)  # seconds before the second, third and fourth attempt
COPIES = "VIDEO_GN_COPIES"  # the environment's name for the folder of local copies
ELSEWHERE = f"correct {COPIES}, or unset it"
FREE = 0.1  # of the copies' disk stays free


def is_url(path: str) -> bool:
    """Return whether `path` is a URL, such as s3://bucket/a.mp4."""
    return URL.match(path) is not None


def join(root: str, path: str) -> str:
    """Return the URL of `path` below the URL `root`. On the web, what has a meaning in URLs is escaped."""
    return f"{root.rstrip('/')}/{quote(path) if root.startswith('http') else path}"


def fetch(url: str) -> bytes:
    """Return the bytes of a file, as `fetch_new` does; from the folder that COPIES names, or with a copy left there.

    As every video has its turn once an epoch, the first copies are kept, until little of the disk is free.

    Raises:
        FileNotFoundError, OSError, UserError: as `fetch_new`.
    """
    folder = os.environ.get(COPIES)
    if not folder:
        return fetch_new(url)
    copy = Path(folder, hashlib.sha256(url.encode()).hexdigest())
    with suppress(OSError):
        return copy.read_bytes()
    data = fetch_new(url)
    disk = shutil.disk_usage(make_folder(folder, ELSEWHERE))
    if disk.free - len(data) > FREE * disk.total:
        write_bytes(copy, data, ELSEWHERE, durable=False)  # in one move, as several processes read
    return data


def fetch_new(url: str, first: int | None = None) -> bytes:
    """Return the bytes of a file, or the `first` of them, from its store. What fails is tried again after PAUSES.

    A download that ends early is a fault: the stores' clients compare its length with the announced one.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it could not be fetched, with the last fault as text.
        UserError: fsspec does not know this kind of store, or needs another package for it.
    """
    import fsspec.core

    try:
        store, path = fsspec.core.url_to_fs(url)  # one object for all files of a store and process
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot read {url}: {error}; correct data.root, or install what it needs") from None
    options = {} if first is None else {"start": 0, "end": first}
    for pause in (*PAUSES, None):
        try:
            data: bytes = store.cat_file(path, **options)
            return data
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has its own
            text = " ".join((str(error) or type(error).__name__).split())
            if _is_refusal(error):
                raise OSError(f"the store refuses it: {text}") from error
            if pause is None:
                told = f"not fetched in {len(PAUSES) + 1} attempts, which says nothing of the file: {text}"
                raise OSError(told) from error
            time.sleep(pause)
    raise AssertionError


def _is_refusal(error: Any) -> bool:
    """Return whether another attempt would not change it: no permission, a bad request."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, PermissionError)
