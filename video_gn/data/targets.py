"""Targets: what a line of a list says of its video, and how its text is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

Target = int | tuple[int, ...]
"""A label, or the rising labels that hold at once."""

SEPARATOR = ";"
"""Between labels of one video."""
SEVERAL = re.compile(r"-?[0-9]+(?:[ \t]*;[ \t]*-?[0-9]+)+")


class BadTarget(ValueError):
    """A target in a list that cannot be used: its value, the rule and the remedy."""

    def __init__(self, message: str, *, of_list: bool = False) -> None:
        """`of_list`: the remedy is one for the list, so that its other lines need not be named."""
        super().__init__(message)
        self.of_list = of_list


def parse_label(text: str, num_classes: int, form: str = "path label") -> int:
    """Read a class label; `form` is what a line looks like. Raises BadTarget where it is not from 0 to K - 1."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise BadTarget(f"the label {text[:20]!r} is not an integer; write `{form}`, comments start with #")
    label = int(text)
    if not 0 <= label < num_classes:
        raise BadTarget(f"the label {label} is outside 0 to {num_classes - 1}; correct it or set model.num_classes")
    return label


def parse_one(text: str, num_classes: int) -> int:
    """Read the only label of a video. Raises BadTarget."""
    if not text:
        raise BadTarget("a path and a label are needed; write `path label`")
    if SEVERAL.fullmatch(text):
        raise BadTarget(
            f"{text[:20]!r} is several labels, and a video has one in task: classification; set task: multilabel",
            of_list=True,
        )
    return parse_label(text, num_classes)


def parse_several(text: str, num_classes: int) -> tuple[int, ...]:
    """Read labels joined by `;`, or nothing for a video without any. Raises BadTarget, also for a repeated label."""
    parts = [part.strip() for part in text.split(SEPARATOR)] if text else []
    labels = [parse_label(part, num_classes, form="path,3;17") for part in parts]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise BadTarget(f"the label {twice} is given twice; remove one")
    return tuple(sorted(labels))


def labels_of(target: Target) -> tuple[int, ...]:
    """Return the labels that hold, rising."""
    return (target,) if isinstance(target, int) else target


def text_of(target: Target) -> str:
    """Return a target as lists and score files write it: `3`, `3;17`, or nothing."""
    return SEPARATOR.join(map(str, labels_of(target)))


def name_of(target: Target, names: Sequence[str]) -> str:
    """Return a target for people: `spin (4)`, `up, spin (0;4)`, `no label`; `names` are by label."""
    labels = labels_of(target)
    return f"{', '.join(names[label] for label in labels)} ({text_of(target)})" if labels else "no label"
