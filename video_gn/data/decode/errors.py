"""What may be wrong with a file."""

from __future__ import annotations


class VideoError(Exception):
    """A file (`path`, as given) that cannot be read, or not all that was asked of it, and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it pickles
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CountCorrected(VideoError):
    """Decoding has proved the number of frames wrong: `num_frames` of the reader is now right, indices mean others."""


class NotFetched(VideoError):
    """A file of a store that cannot be reached or refuses: nothing is known of the file."""
