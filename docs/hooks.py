"""mkdocs' hooks: pages made from the repository (README, config keys, tools' helps), and links out of docs/."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from video_gn.config import Config, Section

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "INSTALL.md": "install.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
LABELLED_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for source, page in PAGES.items():
        text = LINK.sub(lambda match: f"]({_from_docs(match[1])}{match[2] or ''})", (ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/config.md", content=config_keys()))
    files.append(File.generated(config, "reference/tools.md", content=tools()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A link to a file of the repository outside docs/ becomes its path; one to no file is a warning."""

    def replace(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if not target.startswith("../") or page.file.src_uri.startswith("reference/"):
            return match[0]
        if not (ROOT / "docs" / target).resolve().exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, target)
        path = target.removeprefix("../")
        return f"`{path}`" if label.strip("`") in path else f"{label} (`{path}`)"

    return LABELLED_LINK.sub(replace, markdown)


def _from_docs(target: str) -> str:
    """A link of a page at the repository's root, as seen from docs/."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return PAGES.get(target, f"../{target}")


def config_keys() -> str:
    """A table of every key of a config, from the schema."""
    lines = ["# Every config key", "", "From `video_gn/config.py`. Any of them can be given as `key=value`.", ""]
    lines += _table(Config, "", skip_sections=True)
    for name, field in Config.model_fields.items():
        if _is_section(field.annotation):
            lines += ["", f"## {name}", "", " ".join((field.annotation.__doc__ or "").split()), ""]
            lines += _table(field.annotation, f"{name}.")
    return "\n".join(lines) + "\n"


def _table(section: type[Section], prefix: str, skip_sections: bool = False) -> list[str]:
    rows = ["| key | default | values | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if skip_sections and _is_section(field.annotation):
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_yaml(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {_values(field)} | {_cell(field.description or '')} |")
    return rows


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _values(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in BOUNDS.items() if hasattr(m, name)]
    extra = field.json_schema_extra
    names = extra.get("enum") if isinstance(extra, dict) else None  # of a table that may grow, such as NORMS
    return _cell(", ".join([_type(typing.Literal[tuple(names)] if names else field.annotation), *bounds]))


BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMES = {int: "integer", float: "number", bool: "true, false", str: "text", type(None): "null"}


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is tuple:
        return (
            f"list of {_type(arguments[0])}" if arguments[-1] is ... else f"{len(arguments)} of {_type(arguments[0])}"
        )
    if arguments:
        return " or ".join(_type(argument) for argument in arguments)
    return NAMES.get(annotation, str(annotation))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def tools() -> str:
    """What each tool prints for --help."""
    lines = ["# Every tool's help", ""]
    for path in sorted((ROOT / "tools").glob("*.py")):
        lines += [f"## {path.name}", "", "```text", _help(path), "```", ""]
    return "\n".join(lines)


def _help(path: Path, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path.relative_to(ROOT)), *arguments, "--help"]
    text = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.rstrip()
    subcommands = re.search(r"^  \{([\w,]+)\}", text, re.MULTILINE)
    if subcommands and not arguments:
        text += "".join(f"\n\n$ {path.name} {name} --help\n{_help(path, name)}" for name in subcommands[1].split(","))
    return text
