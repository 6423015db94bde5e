"""Weights into a network, 2D kernels inflated into 3D ones (Wang et al., Non-local Neural Networks, section 3.3).

A kernel k x k becomes t x k x k by repeating it t times and dividing by t, as video-nonlocal-net does it. Were it not
for the zeros padded to the first and last frames, a still video would give what the image gives: docs/weights.md
measures the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from video_gn.errors import UserError

HEAD = "head."
"""Prefix of the layer that depends on the number of classes."""

OPTIONAL = "*.num_batches_tracked"
"""Batch Norm's counter, which some files lack and nothing here depends on."""


@dataclass(frozen=True)
class Report:
    """What became of every key of the network and of the weights: each is in one of the four lists."""

    inflated: list[str] = field(default_factory=list)
    """2D kernels, repeated over T and divided by T, T = 1 included."""
    copied: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    """Keys of the network that keep their initial values."""
    dropped: list[str] = field(default_factory=list)
    """Keys of the weights that the network does not have."""

    def __str__(self) -> str:
        """Return one line per list: what was taken is counted, with examples; what was not is named completely."""
        rows = (
            ("inflated", self.inflated, 4),
            ("copied", self.copied, 4),
            ("new", self.new, len(self.new)),
            ("dropped", self.dropped, len(self.dropped)),
        )
        return "\n".join(f"{name:8} {len(keys):4}  {named(keys, most)}".rstrip() for name, keys, most in rows)


def initialize(model: nn.Module, state: Mapping[str, Tensor], *, drop: Sequence[str] = ()) -> Report:
    """Load weights in video_gn's names into a network; a 4D kernel goes into a 5D one of the same other dimensions.

    The head is copied where its shapes agree, else it stays new. `num_batches_tracked` may be missing or too many.

    Args:
        model: any network of this package; changed in place.
        state: name -> tensor of any float dtype (`video_gn.models.weights.read_weights` gives it).
        drop: patterns of keys (`fnmatch`) that are neither loaded nor missed. A Group Norm net takes a Batch Norm net's
            weights with `("*.running_*",)`.

    Raises:
        UserError: a key fits nowhere, a key of the network gets nothing, or shapes differ. Nothing is loaded then.
    """
    ours = model.state_dict()
    given = {key: tensor for key, tensor in state.items() if not _matches(key, drop)}
    head = [key for key in given if key in ours and key.startswith(HEAD)]
    if any(given[key].shape != ours[key].shape for key in head):
        for key in head:
            del given[key]
    misplaced = [key for key in given if key not in ours and not _matches(key, (OPTIONAL,))]
    empty = [key for key in ours if key not in given and not _matches(key, (OPTIONAL, f"{HEAD}*", *drop))]
    misshapen: list[str] = []

    report = Report(dropped=[key for key in state if key not in ours])
    for key, target in ours.items():
        if key not in given:
            report.new.append(key)
            continue
        weight = given[key].to(target.dtype)
        if weight.dim() == 4 and target.dim() == 5:
            report.inflated.append(key)
            weight = inflate(weight, target.shape[2])
        else:
            report.copied.append(key)
        if weight.shape != target.shape:
            misshapen.append(f"{key} {list(given[key].shape)} into {list(target.shape)}")
        ours[key] = weight
    _refuse(misplaced, empty, misshapen)
    model.load_state_dict(ours)
    return report


def inflate(kernel: Tensor, length: int) -> Tensor:
    """(C_out, C_in, H, W) -> (C_out, C_in, length, H, W), whose sum over time is the kernel."""
    return kernel.unsqueeze(2).expand(-1, -1, length, -1, -1) / length


def _refuse(misplaced: list[str], empty: list[str], misshapen: list[str]) -> None:
    """Raise UserError unless the three lists are empty."""
    problems = []
    if misplaced:
        problems.append(f"keys of the weights that fit nowhere: {len(misplaced)} ({named(misplaced, 3)})")
    if empty:
        problems.append(f"keys of the network that get nothing: {len(empty)} ({named(empty, 3)})")
    if misshapen:
        problems.append(f"other shapes: {len(misshapen)} ({', '.join(misshapen)})")
    if problems:
        raise UserError(
            f"{'; '.join(problems)}; build the network that the weights are of (model section), or leave keys out by "
            """patterns in model.init_drop, such as model.init_drop='["*.running_*"]'"""
        )


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def named(keys: Sequence[str], most: int) -> str:
    """Return at most `most` names, and how many more there are."""
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")
