"""Work on videos, each in a process of its own: a decoder that hangs or crashes costs that video only."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from tqdm import tqdm

from video_gn.data.decode import VideoError, check_decoder
from video_gn.errors import PROGRAMMING_ERRORS, UserError
from video_gn.files.risky import ChildCrashed, ChildLate, call_each

Results = Generator[tuple[int, Any], None, None]


def in_children(
    work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int | None, seconds: float
) -> Results:
    """Call `work` with each tuple in a process of its own, `jobs` at a time (None: one per core).

    Yields (index of the call, result) as they come. The result of what fails, crashes or takes longer than `seconds`
    is a VideoError about the first argument, a path.

    Raises:
        UserError: `work` raised it, as where a file cannot be written; or `jobs` or `seconds` cannot work.
        PROGRAMMING_ERRORS: `work` raised one, and has printed its traceback.
    """
    preload = ["video_gn.data.prepare"]
    with suppress(UserError):
        check_decoder("torchcodec")
        preload.append("torchcodec.decoders")
    with closing(call_each(partial(_caught, work), calls, jobs, seconds, preload)) as answers:
        for index, answer in answers:
            path = os.fspath(calls[index][0])
            if isinstance(answer, (UserError, *PROGRAMMING_ERRORS)):
                raise answer
            if isinstance(answer, ChildLate):
                answer = VideoError(path, f"took longer than the limit of {seconds:g} s")
            elif isinstance(answer, ChildCrashed):
                answer = VideoError(path, f"the process that read it {answer}")
            yield index, answer


def _caught(work: Callable[..., Any], *call: Any) -> Any:
    """Return what `work` returns, or raises: what is no fault of the video as it is, all else as a VideoError."""
    try:
        return work(*call)
    except (VideoError, UserError) as error:
        return error
    except PROGRAMMING_ERRORS as error:
        traceback.print_exc()
        return error
    except Exception as error:
        return VideoError(os.fspath(call[0]), f"{type(error).__name__}: {error}")


def with_bar(results: Results, total: int, what: str) -> Results:
    """Pass results on, with a bar on a terminal that counts the bad ones."""
    bad = 0
    with closing(results), tqdm(total=total, desc=what, unit="video", disable=None) as bar:
        for index, result in results:
            bad += isinstance(result, VideoError)
            bar.set_postfix(bad=bad, refresh=False)
            bar.update()
            yield index, result
