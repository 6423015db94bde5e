"""What a config trains and tests on: its lists and data sets, of videos or of images."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from video_gn.config import Config
from video_gn.console import say
from video_gn.data.augment import augmentations
from video_gn.data.dataset import TestClips, TrainClips, ValClips
from video_gn.data.images import image_classes, read_image_folder
from video_gn.data.lists import Record, check_files, find_list, name_some, read_class_names, read_list
from video_gn.data.mixing import Mixing
from video_gn.data.sampling import ClipSpec
from video_gn.data.targets import labels_of, text_of
from video_gn.distributed.world import World
from video_gn.engine.health import QUARANTINE
from video_gn.errors import UserError
from video_gn.run.checkpoint import Checkpoint
from video_gn.tasks import build_task

CLASSES = "classes.txt"
"""In a list's folder, the names of its classes by label: tools/make_lists.py writes it beside its lists."""
MAX_SHOWN = 8  # class names in a message
SAME_CLASSES = (
    "use lists with the network's classes in its order (tools/make_lists.py --classes FILE makes them), or correct "
    "the names' file where only a name is wrong"
)
"""The remedy for lists of other classes."""


def read_records(config: Config, name: str, world: World, trained: Sequence[str] | None = None) -> list[Record]:
    """Return the records of a list or an image folder, checked on rank 0 for all ranks; data.quarantine's too.

    Args:
        trained: the names of the classes that the net is trained on (`class_names`). Those of an image folder, or of
            the classes.txt in the list's folder, must be the same in the same order.

    Raises:
        UserError: it is missing or malformed, its classes are others, or files of it are missing that are not in
            quarantine.
    """
    return world.first(lambda: _read_records(config, name, trained))


def read_train_records(config: Config, world: World, names: Sequence[str] | None = None) -> list[Record]:
    """Return the records to train on: those of data.train_list that are not in data.quarantine. As `read_records`."""
    records = read_records(config, config.data.train_list, world, names)
    if config.data.quarantine is None:
        return records
    bad = world.first(lambda: quarantine(config))
    good = [record for record in records if record.path not in bad]
    if not good:
        raise UserError(
            f"all {len(records)} training videos are in data.quarantine {config.data.quarantine}; mend them"
        )
    if world.is_main:
        say(f"{len(records) - len(good)} of {len(records)} training videos left out: {config.data.quarantine}")
    return good


def quarantine(config: Config) -> dict[str, str]:
    """By path as in the list, the reason of each video in data.quarantine."""
    name = config.data.quarantine
    return {} if name is None else _read_report(find_list(name, config.data.root))


def _run_quarantine(config: Config) -> dict[str, str]:
    """Return that, and the videos that crashed a worker of this run or made it hang."""
    file = Path(config.output_dir) / QUARANTINE
    return quarantine(config) | (_read_report(file) if file.exists() else {})


def _read_report(file: Path) -> dict[str, str]:
    from video_gn.data.prepare import read_report  # with PyAV, which not every run needs

    return read_report(file)


def class_names(config: Config, checkpoint: Checkpoint | None = None) -> list[str]:
    """Return the names of the classes by label.

    A checkpoint's are those that it was trained with. Those of a training come from data.class_names; of images without
    that from the training tree's folders; of videos from the classes.txt in the training list's folder, where it has as
    many names as there are classes; else they are numbers.

    Raises:
        UserError: the file or the tree is needed, and is missing or does not fit model.num_classes; or data.class_names
            is another file than at the training, and has other classes.
    """
    data, classes = config.data, config.model.num_classes
    if checkpoint is not None and len(known := checkpoint.get("class_names", [])) == classes:
        if checkpoint["config"].get("data", {}).get("class_names") == data.class_names:
            return known
        if data.class_names is not None:
            file = find_list(data.class_names, data.root)
            if (problem := other_classes(known, _names_in(file), str(file))) is not None:
                raise UserError(f"data.class_names: {problem}; leave it out, as the checkpoint has the names")
    if data.class_names is None and checkpoint is None:
        if data.kind == "images":
            return image_classes(data.train_list, data.root)
        with suppress(UserError):  # no list is an error where the list is read
            if len(beside := _names_in(find_list(data.train_list, data.root).with_name(CLASSES))) == classes:
                return beside
    return read_class_names(data.class_names, data.root, classes)


def list_classes(config: Config, name: str) -> tuple[str, list[str]]:
    """Return a file, and the names by label that it says a list's classes have: [] where nothing says so.

    That is the classes.txt in the list's folder, else the file that data.class_names finds now.
    """
    data = config.data
    with suppress(UserError):  # a list that is missing is an error elsewhere; the names' file may be gone
        beside = find_list(name, data.root).with_name(CLASSES)
        if not beside.is_file() and data.class_names is not None:
            beside = find_list(data.class_names, data.root)
        return str(beside), _names_in(beside)
    return "", []


def other_classes(trained: Sequence[str], found: Sequence[str], source: str) -> str | None:
    """Say where a label means one class to the network and another in `source`; None where none does.

    Names are equal without regard to case, blanks, underscores and hyphens. Numbers are no names.
    """
    if _is_unnamed(trained) or _is_unnamed(found):
        return None
    pairs = enumerate(zip(trained, found, strict=False))
    label = next((label for label, (ours, theirs) in pairs if _spelled(ours) != _spelled(theirs)), None)
    if label is None:
        return None
    return (
        f"label {label} is {trained[label]!r} to the network and {found[label]!r} in {source}: its classes are "
        f"{_shown(trained)}, and those of {source} are {_shown(found)}"
    )


def warn_of_other_classes(config: Config, trained: Sequence[str]) -> None:
    """Log a warning where the test list's classes are not the network's, for tools that do not need its labels."""
    source, found = list_classes(config, config.data.test_list)
    if (problem := other_classes(trained, found, source)) is not None:
        say(f"warning: {problem}; predictions have the network's classes, labels of lists are copied as they are")


def trained_classes(path: str) -> list[str]:
    """Return the class names in a checkpoint of this package; [] for another file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        names = content.get("class_names", [])
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    except Exception:  # many kinds, for a foreign file
        return []


def fingerprint(records: Sequence[Record]) -> str:
    """Return the sha256 of a list's records: paths, targets and their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.path}\0{text_of(record.target)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _names_in(file: Path) -> list[str]:
    """Return the lines of a file of names; [] where it is none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, ValueError):
        return []
    while lines and not lines[-1]:
        lines.pop()
    return [] if "" in lines else lines


def _is_unnamed(names: Sequence[str]) -> bool:
    return list(names) == list(map(str, range(len(names))))


def _spelled(name: str) -> str:
    """Return a name as it is compared."""
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[\s_-]+", "", name).casefold() or name


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - MAX_SHOWN
    return ", ".join(names[:MAX_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read_records(config: Config, name: str, trained: Sequence[str] | None) -> list[Record]:
    data = config.data
    if data.kind == "images":
        named = trained is not None and data.class_names is None and not _is_unnamed(trained)
        return read_image_folder(name, data.root, config.model.num_classes, trained if named else None)
    if trained is not None:  # before labels are compared with their number
        source, found = list_classes(config, name)
        if (problem := other_classes(trained, found, source)) is not None:
            raise UserError(f"{name}: {problem}; {SAME_CLASSES}")
    names = None
    if data.class_names is not None:  # which a csv of Kinetics needs
        names = class_names(config) if trained is None else list(trained)
    records = parse_list(config, name, names)
    bad = quarantine(config)
    check_files([record for record in records if record.path not in bad], data.root, name)
    return records


def parse_list(config: Config, name: str, names: list[str] | None) -> list[Record]:
    """Return the records of a list as the config's task reads it, without a look at its files.

    Args:
        names: of the classes, by label, which a csv of Kinetics needs.

    Raises:
        UserError: it is missing or malformed (`lists.read_list`), or none of its videos has a label.
    """
    data, classes = config.data, config.model.num_classes
    parse = build_task(config).parse
    records = read_list(name, data.root, classes, names, absolute_paths=data.absolute_paths, parse=parse)
    if not any(labels_of(record.target) for record in records):
        raise UserError(f"{name}: no video of the list has a label; write them as `path,3;17`")
    return records


def list_warnings(train: Sequence[Record], val: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Return what is odd about lists that can be trained on.

    That is: classes without a training video, a class of all training videos, videos of both lists.

    Args:
        names: of all classes, by label.
    """
    warnings = []
    classes, videos = len(names), Counter(label for record in train for label in labels_of(record.target))
    absent = [label for label in range(classes) if not videos[label]]
    constant = [names[label] for label in range(classes) if videos[label] == len(train)]
    if constant and classes == 1:
        warnings.append(
            "model.num_classes is 1: every video is right from the start; list videos of two classes or more"
        )
    elif constant and not absent:
        warnings.append(
            f"every training video has {name_some(constant)}, so there is nothing to tell it from; add videos without"
        )
    elif absent == [0]:
        warnings.append(
            f"class 0 ({names[0]}) has no training video: labels begin at 0, and the training list's are 1 to "
            f"{classes - 1}; subtract 1 from each and set model.num_classes={classes - 1}"
        )
    elif absent and absent == list(range(len(videos), classes)) and list(names) == [str(n) for n in range(classes)]:
        warnings.append(
            f"model.num_classes is {classes}, and the training list's labels are 0 to {len(videos) - 1}; "
            f"set model.num_classes={len(videos)}"
        )
    elif absent:
        warnings.append(
            f"{len(absent)} of {classes} classes have no training video: {name_some([names[n] for n in absent])}; "
            "add videos, or leave the classes out"
        )
    scored = {label for record in val for label in labels_of(record.target)}
    if any(len(labels_of(record.target)) != 1 for record in train) and 0 < len(scored) < classes:
        unscored = [name for label, name in enumerate(names) if label not in scored]
        warnings.append(
            f"{len(unscored)} of {classes} classes have no validation video, and the mean is over the others: "
            f"{name_some(unscored)}; add videos"
        )
    trained = {os.path.normpath(record.path) for record in train}
    shared = [record.path for record in val if os.path.normpath(record.path) in trained]
    if shared:
        how_many = "all" if len(shared) == len(val) else f"{len(shared):,} of"
        warnings.append(
            f"{how_many} {len(val):,} validation videos are in the training list as well, such as {shared[0]}: the "
            "validation error says little about new videos; take them out of one list"
        )
    return warnings


def train_dataset(config: Config, records: list[Record]) -> TrainClips:
    """Random clips or images with training augmentation."""
    data = config.data
    clips = TrainClips(
        records,
        data.root,
        decoder(config),
        clip_spec(config),
        seed=config.seed,
        max_unreadable=data.max_unreadable,
        clips_per_video=data.clips_per_video,
    )
    clips.quarantine = _run_quarantine(config)
    return clips


def val_dataset(config: Config, records: list[Record]) -> ValClips | TestClips:
    """Return what is validated: one random clip per video (Figure 7), the center crop of an image (section 4.1)."""
    clips: ValClips | TestClips
    if config.data.kind == "images":
        clips = test_dataset(config, records)
    else:
        spec = clip_spec(config, validation=True)
        clips = ValClips(records, config.data.root, decoder(config), spec, seed=config.seed)
    clips.quarantine = _run_quarantine(config)
    return clips


def test_dataset(config: Config, records: list[Record]) -> TestClips:
    """All clips and views of the configured test."""
    test = config.test
    clips = TestClips(
        records,
        config.data.root,
        decoder(config),
        clip_spec(config),
        views=test.views,
        clips=test.clips,
        clip_starts=test.clip_starts,
        short_side=test.short_side,
    )
    clips.quarantine = quarantine(config)
    return clips


def clip_spec(config: Config, *, validation: bool = False) -> ClipSpec:
    """Return the part of the `data` section that says how clips are cut and augmented."""
    data = config.data
    chosen = augmentations(data, validation=validation)
    return ClipSpec(data.frames, data.stride, data.crop, data.short_side, chosen, area=data.area)


def mixing(config: Config) -> Mixing:
    """Return how training clips of a micro-batch are mixed."""
    data = config.data
    return Mixing(data.mixup, data.cutmix, distance=data.clips_per_video)


def decoder(config: Config) -> str:
    """Return what opens the files: data.decoder, or "image"."""
    return "image" if config.data.kind == "images" else config.data.decoder
