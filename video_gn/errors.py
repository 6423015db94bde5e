"""The one exception for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend. Tools print its one line and exit with code 2.

    The message states the value, the rule and the remedy, and fits on one line.
    """
