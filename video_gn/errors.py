"""The exceptions that tools turn into an exit code."""

from __future__ import annotations

PROGRAMMING_ERRORS = (AssertionError, AttributeError, ImportError, NameError, TypeError)
"""Exceptions that say nothing about the file being read: a bug, or a library with another API. Nothing may turn them
into a bad video, which would blame every file in turn."""


class UserError(Exception):
    """A mistake that the user can mend. Tools print its one line and exit with code 2.

    The message states the value, the rule and the remedy; line breaks in it become blanks.
    """

    told = False
    """Whether a rank of this host has printed it already."""

    def __init__(self, message: str) -> None:
        printable = message.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates are not
        super().__init__(" ".join(printable.splitlines()))


class Preempted(Exception):
    """The run was asked to stop and wrote a checkpoint; tools exit with code 75 (EX_TEMPFAIL: try again)."""
