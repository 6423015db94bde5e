"""Tasks by name: what the network is trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from video_gn.tasks.classification import Classification
from video_gn.tasks.multilabel import MultiLabel
from video_gn.tasks.task import BadTarget, Figure, Metrics, Scored, Target, Task

if TYPE_CHECKING:  # tasks need no pydantic
    from video_gn.config import Config

__all__ = ["DEFAULT_TASK", "TASKS", "BadTarget", "Figure", "Metrics", "Scored", "Target", "Task", "build_task"]

TASKS: dict[str, type[Any]] = {"classification": Classification, "multilabel": MultiLabel}

DEFAULT_TASK = "classification"
"""Of configs in files that are older than the key."""


def build_task(config: Config, num_classes: int | None = None) -> Task:
    """Return the task that a config names, with the options of its section.

    `num_classes`: in place of model.num_classes, where a file has others.
    """
    options = getattr(config, config.task)
    return TASKS[config.task](config.model.num_classes if num_classes is None else num_classes, **options.model_dump())
