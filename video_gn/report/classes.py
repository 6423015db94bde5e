"""What a test found of each class: confusions, accuracies, the task's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from video_gn.data.targets import labels_of
from video_gn.draw.figures import plot_confusion
from video_gn.report.html import Html, _bar, as_svg, details, small, table, tag
from video_gn.report.read import Run, Test
from video_gn.tasks import Scored
from video_gn.tasks.intervals import wilson

MAX_COUNTED = 16  # classes: the accuracies of more are folded away
MAX_PAIRS = 15


def class_report(run: Run, test: Test) -> Html:
    """Return what a test says of the classes, and the videos that it did not score.

    That is the confusion matrix, the most confused pairs and the accuracy by class, or the task's number of each class.
    """
    name = f"{run.name}: {test.result['protocol']}"
    parts = [small(test.source)]
    matrix = test.matrix
    if matrix is not None:
        drawn = as_svg(partial(plot_confusion, matrix, test.classes), f"confusion matrix of {name}", "square")
        parts.append(tag("div", tag("div", drawn), tag("div", _pairs(matrix, test.classes)), class_="pair"))
        summary = f"Accuracy of {len(test.classes)} classes, worst first"
        parts.append(details(summary, _per_class(matrix, test.classes), is_open=len(test.classes) <= MAX_COUNTED))
    elif test.task.by_class is not None and test.scored is not None:
        summary = f"{test.task.by_class.name.capitalize()} of {len(test.classes)} classes, worst first"
        parts.append(details(summary, _class_scores(test, test.scored), is_open=len(test.classes) <= MAX_COUNTED))
    if unreadable := test.result.get("unreadable"):
        rows = table(["video", "reason"], unreadable.items(), text=2)
        parts.append(details(f"Videos that could not be read, and have no score: {len(unreadable):,}", rows))
    return Html(tag("h3", name) + "".join(parts)) if len(parts) > 1 else Html("")


def _pairs(matrix: np.ndarray, classes: Sequence[str]) -> Html:
    """Return the largest counts beside the diagonal, with their share of the class's videos."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [divmod(int(index), len(classes)) for index in order if wrong.flat[index]]
    if not pairs:
        return tag("p", "No video is taken for another class.")
    rows = [[classes[a], classes[b], wrong[a, b], f"{100 * wrong[a, b] / matrix[a].sum():.0f} %"] for a, b in pairs]
    return Html(tag("h3", "Most confused") + table(["class", "taken for", "videos", "of class"], rows, text=2))


def _per_class(matrix: np.ndarray, classes: Sequence[str]) -> Html:
    """Return the accuracy of each class with videos, worst first."""
    rows = []
    for row in np.argsort(matrix.diagonal() / np.maximum(matrix.sum(1), 1), kind="stable"):
        n, hits = int(matrix[row].sum()), int(matrix[row, row])
        if n:
            low, high = wilson(hits, n)
            rows.append([classes[row], _bar(100 * hits / n), f"{low:.0f} to {high:.0f}", f"{hits:,} of {n:,}"])
    return table(["class", "accuracy (%)", "95 % (Wilson)", "videos right"], rows)


def _class_scores(test: Test, scored: Scored) -> Html:
    """Return the task's number of each class that has one, worst first; how often it holds, is predicted, and both."""
    figure = test.task.by_class
    assert figure is not None
    holds, predicted, right = (
        Counter(label for found in of for label in found)
        for of in (
            map(labels_of, scored.targets),
            map(labels_of, scored.predicted),
            (set(labels_of(a)) & set(labels_of(b)) for a, b in zip(scored.targets, scored.predicted, strict=True)),
        )
    )
    values = test.result[figure.key]
    rows: list[list[object]] = []
    for label, name in sorted(enumerate(test.classes), key=lambda item: (values.get(item[1]) or 0, item[0])):
        if values.get(name) is not None:
            counts = [f"{counter[label]:,}" for counter in (holds, predicted, right)]
            rows.append([name, _bar(values[name]), *counts])
    return table(["class", f"{figure.name} (%)", "videos with it", "predicted", "of these right"], rows)
