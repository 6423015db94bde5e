"""The study file, and how its cells are called."""

from __future__ import annotations

import itertools
import json
import re
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from video_gn.config import Positive, Section, read_yaml
from video_gn.data.motion import CLASSES
from video_gn.errors import UserError

RESERVED = {"seed", "output_dir"}  # the study's own


class Motion(Section):
    """The first `classes` of the embedded data set; train_K.csv and val_K.csv of data.root list them."""

    classes: Annotated[int, Field(ge=2, le=len(CLASSES))]
    train_videos: Positive
    """To render, of all ten classes."""
    val_videos: Positive


class Published(Section):
    """A figure of the paper."""

    cell: dict[str, Any]
    """Values that one cell alone has."""
    value: float


class Study(Section):
    """One study file. Keys of a cell are dotted keys of a config, such as `model.norm`."""

    config: str
    """Path of the config that all cells begin with, relative to the study file."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Key -> values; all combinations are trained."""
    together: list[dict[str, Any]] = Field(default_factory=list)
    """Keys that vary together: each mapping is combined with each combination of `grid`."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Values of all cells that differ from the config's."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    measure: Literal["final", "median5", "test"] = "median5"
    """What the task monitors (validation error) after the last epoch, its median over the last 5 epochs, or the task's
    first score (top-1) by the config's test."""
    rows: tuple[str, ...] = ()
    """Keys whose values name the table's rows and the figures' curves and panels; the other keys name the columns."""
    paper: tuple[Published, ...] = ()
    motion: Motion | None = None
    """Render the embedded data set into data.root first."""

    @property
    def keys(self) -> list[str]:
        """What varies, in the file's order."""
        return list(dict.fromkeys([*self.grid, *itertools.chain.from_iterable(self.together)]))

    @property
    def columns(self) -> list[str]:
        return [key for key in self.keys if key not in self.rows]

    def cells(self) -> list[dict[str, Any]]:
        """Values of each cell, the first key of `grid` varying slowest."""
        products = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return [product | joined for product in products for joined in self.together or [{}]]

    def published(self, cell: dict[str, Any]) -> float | None:
        """Return the paper's figure for a cell."""
        return next((p.value for p in self.paper if p.cell.items() <= cell.items()), None)

    @model_validator(mode="after")
    def _check(self) -> Study:
        if not self.keys:
            raise ValueError("nothing varies; give grid or together some keys")
        joined = set(itertools.chain.from_iterable(self.together))
        if twice := sorted(set(self.grid) & joined | set(self.fixed) & {*self.grid, *joined}):
            raise ValueError(f"{twice[0]} is given twice; a key stands in one of grid, together and fixed")
        if own := sorted(RESERVED & {*self.keys, *self.fixed}):
            raise ValueError(f"{own[0]} is the study's to set; use seeds, and --out of tools/study.py")
        if unknown := [key for key in self.rows if key not in self.keys]:
            raise ValueError(f"rows: {unknown[0]} does not vary; choose of {', '.join(self.keys)}")
        for names in (
            [cell_name(cell) for cell in self.cells()],  # of folders
            [f"{row_label(self, cell)} / {column_label(self, cell)}" for cell in self.cells()],
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two cells are {twice[0]} by name; remove one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat; a repeated seed repeats its run")
        for entry in self.paper:
            if (n := sum(entry.cell.items() <= cell.items() for cell in self.cells())) != 1:
                raise ValueError(f"paper: {entry.cell} fits {n} cells; give the values of one")
        return self


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        UserError: it is missing or malformed, or against the schema.
    """
    try:
        return Study.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        places = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        problems = (f"{place or 'study'}: {message.removeprefix('Value error, ')}" for place, message in places)
        raise UserError(f"{path}: {'; '.join(problems)}") from None


def config_path(study: Study, path: str | Path) -> str:
    """Where the config of the study file `path` lies."""
    return normpath(Path(path).parent / study.config)


def cell_name(cell: dict[str, Any]) -> str:
    """Name of a cell's folder: norm=bn,clips_per_gpu=8."""
    values = ((short(key), re.sub(r"[^\w.+-]+", "-", show(value)).strip("-")) for key, value in cell.items())
    return ",".join(f"{key}={value}" for key, value in values)


def short(key: str) -> str:
    """norm of model.norm."""
    return key.rpartition(".")[2]


def show(value: Any) -> str:
    """Return a value as it stands in a YAML file; what YAML would not read as this string is quoted."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)


def row_label(study: Study, cell: dict[str, Any]) -> str:
    """`bn`, or `norm bn` where not all cells have the same rows' keys; of a study with one row, nothing."""
    named = any(key not in other for other in study.cells() for key in study.rows)
    values = (f"{short(key)} {show(cell[key])}" if named else show(cell[key]) for key in study.rows if key in cell)
    return ", ".join(values)


def column_label(study: Study, cell: dict[str, Any]) -> str:
    """`clips_per_gpu 8`; of a study with one column, nothing."""
    values = (f"{short(key)} {show(cell[key])}" for key in study.columns if key in cell)
    return ", ".join(values)
