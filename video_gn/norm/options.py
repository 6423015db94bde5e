"""Options of the norms, with the one copy of their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormOptions:
    """Options of all norms; each norm reads its own.

    The config's `model` section has one key per field, and takes its default from here.
    """

    groups: int = 32
    """`gn`: G (section 3.2; 32 is the paper's default)."""
    channels_per_group: int | None = None
    """`gn`: C / G, instead of `groups`."""
    brn_r_max: float = 1.5
    """`brn`: final bound of r (section 4.1)."""
    brn_d_max: float = 0.5
    """`brn`: final bound of d (section 4.1)."""
    brn_warmup: int = 5000
    """`brn`: training forward passes as plain Batch Norm. The paper names none; this is Ioffe's (2017)."""
    brn_ramp: int = 20000
    """`brn`: forward passes after those over which the bounds open. Ioffe's for d_max (r_max's is 35k there)."""
