"""From what a step takes to how long it will take, and to the largest batch that fits.

A prediction, not a measurement. A chip computes and moves memory at the same time and talks to
other chips afterwards:

    step = max(matrix FLOPs / peak, HBM bytes / bandwidth) + network

    network = sum over collectives: bytes sent / (links x link bandwidth) + hops there and back

Peaks are the datasheet's, which no real program reaches; so a real step is slower. FLOPs are those
of matrix products and convolutions, against the bfloat16 peak: at JAX's default precision a TPU
rounds float32 operands of both to bfloat16 and needs one pass. Arithmetic element by element runs
on the vector units, whose peak is not published, and is left out: it mostly hides behind HBM.
Nothing that a chip sends is taken to overlap with computing, which XLA partly achieves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jaxfuse.plan.chips import HOP_SECONDS, Slice

MAX_COMPILATIONS = 8
"""Of one search for the largest batch."""
GRAIN = 16
"""A search ends when it knows the largest batch to one part in so many."""

LEAP = 64
"""A search tries at most so many times the largest batch that is known to fit."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step, predicted."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory) + self.network

    @property
    def bound(self) -> str:
        """What takes longest: compute, memory or network."""
        parts = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(parts, key=lambda name: parts[name])


def network_seconds(where: Slice, messages: Sequence[tuple[str, float, float]]) -> float:
    """Time the chips talk in a step. messages: kind of collective, times a step, bytes each chip
    sends in all of them.

    A reduction goes to the farthest chip and back, everything else there only.
    """
    if where.chips == 1:
        return 0.0
    speed = where.links * where.chip.link_bytes_per_second
    seconds = 0.0
    for kind, count, sent in messages:
        ways = 2 if kind == "all-reduce" else 1
        seconds += sent / speed + count * ways * where.hops * HOP_SECONDS
    return seconds


def times(
    where: Slice,
    matrix_flops: float,
    memory_bytes: float,
    messages: Sequence[tuple[str, float, float]],
) -> Times:
    """Of a step that takes so much on each chip."""
    chip = where.chip
    return Times(
        matrix_flops / chip.flops_per_second,
        memory_bytes / chip.memory_bytes_per_second,
        network_seconds(where, messages),
    )


@dataclasses.dataclass(frozen=True)
class Largest:
    """What a search found."""

    batch: int
    """The largest that was seen to fit; 0 where none did."""
    too_large: int
    """The smallest that was seen not to fit; 0 where all did."""
    compilations: int


def largest_batch(
    needs: Callable[[int], tuple[bool, int]],
    start: int,
    limit: int,
    multiple: int = 1,
    known: dict[int, tuple[bool, int]] | None = None,
    compilations: int = MAX_COMPILATIONS,
) -> Largest:
    """The largest batch per chip that fits into `limit` bytes, a multiple of `multiple`.

    needs: compiles a step with that batch, and says whether it fits and how many bytes it takes
    (0: unknown). Memory grows nearly in proportion to the batch, so two compilations say about
    where the end is; the rest close in on it. known: verdicts there are already, by batch.
    """
    seen = dict(known or {})
    done = 0
    while True:
        low = max((batch for batch, (fits, _) in seen.items() if fits), default=0)
        high = min((batch for batch, (fits, _) in seen.items() if not fits), default=0)
        step = max(multiple, low // GRAIN // multiple * multiple)
        if done >= compilations or (high and high - low <= step):
            return Largest(low, high, done)
        guess = _guess(seen, limit) if seen else start
        guess = guess or (2 * low if not high else (low + high) // 2)
        # Within what is not known yet; from above only by the grain that matters.
        guess = max(guess, low + step)
        guess = min(guess, high - step) if high else min(guess, max(LEAP * low, start))
        guess = max(multiple, guess // multiple * multiple)
        if guess in seen:
            guess = (low + high) // 2 // multiple * multiple if high else low + step
            if guess in seen or guess < multiple:
                return Largest(low, high, done)
        seen[guess] = needs(guess)
        done += 1


def _guess(seen: dict[int, tuple[bool, int]], limit: int) -> int:
    """Where the line through the two nearest verdicts, or through one and 0, meets the limit; 0
    where nothing is known.
    """
    points = sorted(
        ((batch, size) for batch, (_, size) in seen.items() if size),
        key=lambda point: abs(point[1] - limit),
    )[:2]
    if not points:
        return 0
    (a, size_a), (b, size_b) = (*points, (0, 0))[:2]
    slope = (size_b - size_a) / (b - a)
    return 0 if slope <= 0 else max(1, int(a + (limit - size_a) / slope))
