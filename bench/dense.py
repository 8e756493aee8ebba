"""The kernel gradient of a dense 3x3 convolution: in bands of rows, and as XLA derives it."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SHAPE, TINY_SHAPE = (16, 64, 64, 64, 192), (2, 12, 12, 16, 16)
"""Batch, height, width, channels in and out: the attention of the low-frequency branch."""
WAYS = "bands", "derived"


def gradient(options: dict[str, Any]) -> Work:
    """One way of computing it."""
    import jax
    import jax.numpy as jnp

    from bench.floor import operations
    from jaxfuse.models import layers

    b, h, w, i, o = options["shape"]
    convolve = {"bands": layers.conv3x3, "derived": layers.plain3x3}[options["way"]]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(b, h, w, i)), jnp.float32)
    pull = jnp.asarray(rng.normal(size=(b, h, w, o)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, i, o)), jnp.float32)

    def pulled(x: Any, kernel: Any, pull: Any, way: Any = convolve) -> Any:
        return jax.vjp(lambda k: way(x, k), kernel)[1](pull)[0]

    program = jax.jit(pulled)
    last: list[Any] = []

    def run() -> None:
        last[:] = [jax.block_until_ready(program(x, kernel, pull))]

    def finish() -> dict[str, Any]:
        count = operations(lambda *a: pulled(*a, way=layers.plain3x3), x, kernel, pull)
        return {
            "operations": count.total,
            "bytes": float(x.nbytes + pull.nbytes + kernel.nbytes),
            "mean_square": float(np.square(np.asarray(last[0], np.float64)).mean()),
        }

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    shape = TINY_SHAPE if run.tiny else SHAPE
    sides = [Side(way, "bench.dense:gradient", {"way": way, "shape": shape}) for way in WAYS]
    b, h, w, i, o = shape
    what = f"kernel gradient of a dense 3x3, {b}x{h}x{w}, {i} to {o} channels"
    settings = {"shape": shape}
    result = record.measure(run, "dense", what, sides, run.rounds(7), settings, rates)
    record.compare(result, "derived", "bands")
    first, second = (result["sides"][way]["facts"]["mean_square"] for way in WAYS)
    result["agreement"]["relative difference of the mean squares"] = abs(first / second - 1)
    return [result]
