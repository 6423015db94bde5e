"""Draw docs/images/norms.png: what each norm averages over, Figure 2 of the paper for clips.

python docs/draw_norms.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file only: no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

N, C, T, ROWS = 4, 6, 3, 3  # cells drawn: samples, channels, frames, rows standing for a frame's H x W pixels
GROUPS = 2
DOWN, BACK = -0.62, (0.5, 0.4)  # a step along (T, H, W) and along N, on paper; one along C is 1

ONE_SET = {"front": "#3d7cc9", "top": "#74a8e4", "side": "#2a5c9e"}
OTHERS = {"front": "#f4f5f7", "top": "#fbfcfd", "side": "#e6e9ee"}
LINE, STRONG, TEXT = "#aab2bf", "#4a5362", "#20262e"

Point = tuple[float, float]
Member = Callable[[int, int], bool]
"""Whether the pixels of sample n and channel c are in the set."""

PANELS: tuple[tuple[str, str, str, Member], ...] = (
    ("Batch Norm", "over N, T, H, W", "one $\\mu$, $\\sigma$ a channel", lambda n, c: c == C - 1),
    ("Layer Norm", "over C, T, H, W", "one $\\mu$, $\\sigma$ a clip", lambda n, c: n == 0),
    ("Instance Norm", "over T, H, W", "one $\\mu$, $\\sigma$ a clip and channel", lambda n, c: n == 0 and c == C - 1),
    (
        "Group Norm",
        "over C/G, T, H, W",
        "one $\\mu$, $\\sigma$ a clip and group (G = 2)",
        lambda n, c: n == 0 and c >= C - C // GROUPS,
    ),
)


def at(c: float, row: float, n: float) -> Point:
    """The place on paper of a corner of the grid; the origin is the front's upper left corner."""
    return c + n * BACK[0], row * DOWN + n * BACK[1]


def draw_block(axes: Axes, member: Member, grouped: bool) -> None:
    """The three faces of the block that one sees, cell by cell, then the borders of frames, groups and faces."""
    height = T * ROWS

    def cell(face: str, inside: bool, *corners: Point) -> None:
        color = (ONE_SET if inside else OTHERS)[face]
        axes.fill(*zip(*corners, strict=True), facecolor=color, edgecolor=LINE, linewidth=0.6, joinstyle="round")

    def line(*points: Point, width: float = 1.3) -> None:
        axes.plot(*zip(*points, strict=True), color=STRONG, linewidth=width, solid_capstyle="round")

    for c in range(C):
        for row in range(height):
            cell("front", member(0, c), at(c, row, 0), at(c + 1, row, 0), at(c + 1, row + 1, 0), at(c, row + 1, 0))
        for n in range(N):
            cell("top", member(n, c), at(c, 0, n), at(c + 1, 0, n), at(c + 1, 0, n + 1), at(c, 0, n + 1))
    for n in range(N):
        for row in range(height):
            corners = at(C, row, n), at(C, row, n + 1), at(C, row + 1, n + 1), at(C, row + 1, n)
            cell("side", member(n, C - 1), *corners)
    for frame in range(1, T):
        line(at(0, frame * ROWS, 0), at(C, frame * ROWS, 0), at(C, frame * ROWS, N), width=0.9)
    if grouped:
        for c in range(C // GROUPS, C, C // GROUPS):
            line(at(c, height, 0), at(c, 0, 0), at(c, 0, N), width=2.2)
    line(at(0, 0, 0), at(C, 0, 0), at(C, height, 0), at(0, height, 0), at(0, 0, 0))
    line(at(0, 0, 0), at(0, 0, N), at(C, 0, N), at(C, height, N), at(C, height, 0))
    line(at(C, 0, 0), at(C, 0, N))


def label_axes(axes: Axes) -> None:
    bottom = T * ROWS
    named = (
        ("C", at(C / 2, bottom + 0.8, 0), 0),
        ("N", at(C + 0.3, bottom + 0.5, N / 2), 0),
        ("T, H, W", at(-1.05, bottom / 2, 0), 90),
    )
    for name, (x, y), turned in named:
        axes.text(x, y, name, ha="center", va="center", fontsize=13, color=TEXT, rotation=turned)
    for frame in range(T):
        x, y = at(-0.18, (frame + 0.5) * ROWS, 0)
        axes.text(x, y, f"$t_{frame + 1}$", ha="right", va="center", fontsize=10, color=STRONG)


def draw(out: Path) -> None:
    figure, panels = plt.subplots(1, len(PANELS), figsize=(15, 4.35), layout="constrained")
    for axes, (title, over, count, member) in zip(panels, PANELS, strict=True):
        draw_block(axes, member, grouped=title == "Group Norm")
        label_axes(axes)
        middle, bottom = C / 2 + N * BACK[0] / 2, at(0, T * ROWS, 0)[1]
        axes.text(middle, N * BACK[1] + 0.55, title, ha="center", fontsize=17, weight="bold", color=TEXT)
        axes.text(middle, bottom - 1.5, over, ha="center", fontsize=14, color=ONE_SET["side"], weight="bold")
        axes.text(middle, bottom - 2.2, count, ha="center", fontsize=12, color=TEXT)
        axes.set(xlim=(-1.5, C + N * BACK[0] + 0.3), ylim=(bottom - 2.4, N * BACK[1] + 1.3), aspect="equal")
        axes.axis("off")
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=110, facecolor="white")


if __name__ == "__main__":
    draw(Path(__file__).resolve().parent / "images" / "norms.png")
