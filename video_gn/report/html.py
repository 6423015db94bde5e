"""Parts of the page: elements, tables, plots, its style.

All text that comes from runs is escaped where it enters: by `table`, `tag` and matplotlib's SVG writer.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
from cycler import cycler

INK, PAPER = "#010203", "#040506"  # become the page's text and background colors
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #5b6470; --line: #d5dae0; --fill: #4c92dc;
  --link: #0b5cad; --band: #f4f6f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #15181c; --quiet: #9aa4b0; --line: #363c44;
  --link: #7db8f5; --band: #1d2126 } }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.45 system-ui, sans-serif }
main { max-width: 70rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere }
a { color: var(--link) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem }
small, .quiet { color: var(--quiet); font-size: .85em }
small { display: block; min-width: 7rem; max-width: 20rem }
.n small { min-width: 0 }
.wide { overflow-x: auto; margin: .4rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { background: var(--band); padding-left: 0 }
.n { text-align: right; white-space: nowrap; padding-left: .7rem; padding-right: .3rem }
svg { color: var(--ink); height: auto; display: block; max-width: 100% }
svg.chart { min-width: 40rem }
svg.bar { display: inline-block; width: 5rem; height: .7rem; vertical-align: baseline; }
svg.bar + span { display: inline-block; min-width: 3.2rem }
summary { cursor: pointer; margin: .5rem 0 }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem }
.pair > * { min-width: 0 }
@media (max-width: 40rem) { main { padding: .7rem } table { font-size: .8rem } }
@media print { details::details-content { content-visibility: visible } }
"""


class Html(str):
    """Text that is HTML already."""


def escaped(value: object) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """Return an element; its content and attributes are escaped."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{''.join(map(escaped, content))}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], text: int = 1) -> Html:
    """Return a table that scrolls sideways on a narrow screen; the first `text` columns are text, others numbers."""

    def cells(name: str, row: Sequence[object]) -> Html:
        return tag("tr", *(tag(name, cell, **({} if k < text else {"class_": "n"})) for k, cell in enumerate(row)))

    body = (cells("td", row) for row in rows)
    return wide(tag("table", tag("thead", cells("th", head)), tag("tbody", *body)))


def wide(content: Html) -> Html:
    return tag("div", content, class_="wide", tabindex="0")


def section(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=_anchor(title))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def details(summary: str, *content: object, is_open: bool = False) -> Html:
    return tag("details", tag("summary", summary), *content, **({"open": ""} if is_open else {}))


def small(text: str) -> Html:
    return tag("small", text)


def as_svg(draw: Callable[[Path], object], name: str, kind: str) -> Html:
    """Return what `draw(path)` draws, as an SVG of class `kind` whose lines and letters take the page's color."""
    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.edgecolor"), "none")
    style |= {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    style |= {"legend.facecolor": PAPER, "legend.fontsize": "small", "grid.color": "#888888"}
    style["axes.prop_cycle"] = cycler(linestyle=["-", "--", ":"]) * matplotlib.rcParams["axes.prop_cycle"]
    with TemporaryDirectory() as folder, matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the letter
        path = Path(folder) / "figure.svg"
        draw(path)
        text = path.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r' id="[A-Za-z0-9.]+_\d+"', "", text
    )  # figure_1, axes_1: nothing refers to them, and figures share them
    opening = f'<svg class="{kind}" role="img" aria-label="{html.escape(name)}"'
    return Html(opening + text.removeprefix("<svg").replace(INK, "currentColor").replace(PAPER, "var(--paper)"))


def _bar(percent: float) -> Html:
    return Html(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="100" height="10" fill="var(--line)"/>'
        f'<rect width="{percent:.1f}" height="10" fill="var(--fill)"/></svg><span>{percent:.1f}</span>'
    )
