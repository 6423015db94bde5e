"""The one exception for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend. Tools print its one line and exit with code 2.

    The message states the value, the rule and the remedy; line breaks in it become blanks.
    """

    def __init__(self, message: str) -> None:
        printable = message.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates are not
        super().__init__(" ".join(printable.splitlines()))
