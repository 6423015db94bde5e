"""Where in a file a network is: in containers (`state_dict`, `model`), behind prefixes of modules around it.

The rule needs no list of wrappers: wherever a dict of tensors has the landmarks of a known format behind one common
prefix, there is a network. Names are looked at only where a file holds several.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from video_gn.errors import UserError
from video_gn.models.weights.formats import FORMATS, Format, dot, our_names, rename
from video_gn.models.weights.unpickling import Array

DEEPEST = 5
"""Containers within containers that are looked into."""

COPIES = {"ema", "swa", "avg", "averaged", "teacher", "target", "momentum", "k", "key"}
"""Words in the names of networks that follow the trained one (running averages, MoCo's keys)."""

AROUND_PARTS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
"""Modules that torch puts around parts of a network, so that they are in the middle of its keys."""


@dataclass(frozen=True)
class Candidate:
    """A network of a known format in a file."""

    form: Format
    containers: tuple[str, ...]
    """Keys of the dicts around it, outermost first."""
    prefix: str
    """Beginning of its keys, such as "module."."""
    state: dict[str, Tensor]
    """The dict that it is in."""

    @property
    def place(self) -> str:
        """Where it is, for a person; empty for a plain state dict."""
        return ", ".join([*self.containers, *([self.prefix] if self.prefix else [])])

    @property
    def is_copy(self) -> bool:
        """Whether it follows another network, by its name."""
        return any(COPIES & set(re.split(r"[._/-]", name.lower())) for name in (*self.containers, self.prefix))

    def left_out(self) -> list[str]:
        """Return the parts of the dict that are not the network's, with numbers of tensors."""
        taken = our_names(self.state, self.form, self.prefix)
        around = self.prefix.split(".")
        parts: Counter[str] = Counter()
        for key in self.state:
            if key not in taken:
                names = key.split(".")
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(names, around, strict=False)))
                parts[".".join(names[: shared + 1])] += 1
        return [f"{name} ({count})" if count > 1 else name for name, count in parts.items()]


def find_networks(content: Mapping[Any, Any]) -> list[Candidate]:
    """Return every network of a known format in a file's content, the ones in fewer wrappers first."""
    found: list[Candidate] = []
    for containers, state in state_dicts(content):
        here = _networks_in(state, containers)
        if not here and (wrappers := sorted({name for key in state for name in AROUND_PARTS.findall(key)})):
            bare = {AROUND_PARTS.sub("", key): tensor for key, tensor in state.items()}
            here = _networks_in(bare, (*containers, *(f"{name}. within names" for name in wrappers)))
        found += here
    return sorted(found, key=lambda network: len(network.containers) + network.prefix.count("."))


def _networks_in(state: dict[str, Tensor], containers: tuple[str, ...]) -> list[Candidate]:
    return [Candidate(form, containers, prefix, state) for form in FORMATS for prefix in _prefixes(state, form)]


def choose(networks: list[Candidate], source: str) -> Candidate:
    """Return the one network of a file: not its running average, which is taken only where it is the only one.

    Raises:
        UserError: there are several, and they differ.
    """
    first, *others = [network for network in networks if not network.is_copy] or networks
    if any(not _are_equal(first, other) for other in others):
        places = " and ".join(network.place or "the file itself" for network in (first, *others))
        raise UserError(
            f"{source}: holds several networks ({places}); save the one to take: "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    return first


def state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield each dict with tensors in it, and the keys of the containers around it, outermost first."""
    queue: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}  # a pickle can hold a dict that holds itself
    for containers, mapping in queue:
        if tensors := tensors_of(mapping):
            yield containers, tensors
        for key, value in mapping.items():
            if isinstance(value, dict) and id(value) not in seen and len(containers) < DEEPEST:
                seen.add(id(value))
                queue.append(((*containers, str(key)), value))


def tensors_of(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return a dict's tensors by name, without the optimizer's state that Caffe2 keeps among the weights."""
    values = {str(key): value.tensor if isinstance(value, Array) else value for key, value in mapping.items()}
    return {key: value for key, value in values.items() if isinstance(value, Tensor) and not _is_training_state(key)}


def _is_training_state(key: str) -> bool:
    return key.endswith("_momentum") or key in ("lr", "model_iter")


def _prefixes(state: Mapping[str, Tensor], form: Format) -> list[str]:
    """Return what stands before the landmarks of a format: empty, or ending in a dot or slash."""
    keys = {dot(key, form) for key in state}
    first, *others = form.landmarks
    prefixes = sorted(key.removesuffix(first) for key in keys if key.endswith(first))
    return [
        prefix
        for prefix in prefixes
        if prefix[-1:] in ("", ".", "/") and all(prefix + other in keys for other in others)
    ]


def _are_equal(one: Candidate, other: Candidate) -> bool:
    """Whether two networks are one under two names, as where a module holds another twice."""
    a, b = (rename(network.state, network.form, network.prefix) for network in (one, other))
    return all(key in b and torch.equal(a[key], b[key]) for key in a if not key.startswith("head."))
