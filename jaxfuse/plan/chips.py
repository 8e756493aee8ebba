"""TPU chips as their datasheets have them, and how a slice of them is wired. Knows no JAX."""

from __future__ import annotations

import dataclasses
import math
import re

from jaxfuse.config import ConfigError

HOP_SECONDS = 1e-6
"""Time for a message to reach a neighbouring chip: about a microsecond, by the accounts of those
who have measured ("How to Scale Your Model", 2025). No datasheet says it.
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Sources: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, autumn 2026.

    v4 is not here: the compiler takes its two cores for two devices.
    """

    flops_per_second: float
    """Peak of the matrix units in bfloat16, multiply and add counted as two."""
    memory_bytes: int
    """HBM."""
    usable_bytes: int
    """What of it the compiler gives to a program (libtpu 0.0.42 names it when it refuses one); what
    fits is judged by this."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """One link to a neighbour, one way: the stated bidirectional bandwidth per chip (v5e 400, v5p
    1200, v6e 800 GB/s) over twice its links."""
    axes: int
    """Of the torus, each with two links a chip."""
    closes: int
    """An axis of a slice is a ring where it is this long (2 axes) or a multiple of it (3 axes, in
    slices of whole cubes); shorter ones are lines."""


GIB = 1 << 30
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, int(15.75 * GIB), 819e9, 50e9, 2, 16),
    # More than the datasheet's 95 GB is what the compiler gives a program.
    "v5p": Chip(459e12, 95 * GIB, int(95.74 * GIB), 2765e9, 100e9, 3, 4),
    "v6e": Chip(918e12, 32 * GIB, int(31.25 * GIB), 1638e9, 100e9, 2, 16),
}
EXAMPLES = {"v5e": "v5e:16x16", "v5p": "v5p:2x2x1", "v6e": "v6e:16x16"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of one kind of chip, such as v5e:4x4."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which axes are rings."""
        size = self.chip.closes
        if self.chip.axes == 2:
            return tuple(length == size for length in self.shape)
        whole = all(length % size == 0 for length in self.shape)
        return (whole,) * len(self.shape)

    @property
    def links(self) -> int:
        """Of the chips that have fewest, which is where a ring through all chips is slowest."""
        return sum(
            0 if length == 1 else 2 if ring else 1
            for length, ring in zip(self.shape, self.closed, strict=True)
        )

    @property
    def hops(self) -> int:
        """Links from a chip to the one that is farthest away."""
        return sum(
            length // 2 if ring else length - 1
            for length, ring in zip(self.shape, self.closed, strict=True)
        )


def parse(name: str) -> Slice:
    """The slice of a name such as v5e:16x16. Raises ConfigError, which lists the kinds."""
    kind, _, sizes = name.partition(":")
    examples = ", ".join(EXAMPLES.values())
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology {name}: no chip {kind!r}: choose one of {', '.join(CHIPS)} and a shape, "
            f"such as {examples}"
        )
    axes = CHIPS[kind].axes
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") != axes - 1:
        raise ConfigError(
            f"--topology {name}: a slice of {kind} has {axes} lengths: such as {EXAMPLES[kind]}"
        )
    return Slice(kind, tuple(int(size) for size in sizes.split("x")))
