"""Depthwise 3x3 convolution: shifted products as in `models.layers`, XLA's grouped one, and ways of
writing the backward pass that were not taken."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SHAPE, TINY_SHAPE = (8, 64, 64, 192), (2, 12, 12, 8)
FORWARD = "shifted", "grouped"
BACKWARD = "shifted", "grouped", "derived", "nine sums"
KERNEL = "shifted", "nine sums"
"""`derived`: JAX's own derivative of the shifted products. `nine sums`: the kernel's cotangent as
nine separate sums over all pixels."""


def _taps(x: Any, kernel: Any) -> Any:
    import jax.numpy as jnp

    h, w = x.shape[1:3]
    padded, kernel = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel.astype(x.dtype)
    return sum(padded[:, i : i + h, j : j + w] * kernel[i, j] for i in range(3) for j in range(3))


def _nine_sums(x: Any, kernel: Any, cotangent: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = [
        (padded[:, i : i + h, j : j + w] * cotangent).astype(jnp.float32).sum((0, 1, 2))
        for i in range(3)
        for j in range(3)
    ]
    return _taps(cotangent, kernel[::-1, ::-1]), jnp.stack(sums).reshape(kernel.shape)


def convolve(options: dict[str, Any]) -> Work:
    """One way, one direction: the result, both cotangents, or that of the kernel alone."""
    import jax
    import jax.numpy as jnp

    from bench.floor import operations
    from jaxfuse.models.layers import Compute, depthwise3x3

    way, part, shape = options["way"], options["part"], tuple(options["shape"])
    dtype = jnp.dtype(options["dtype"])
    names = {"shifted": "shift", "grouped": "lax"}

    def forward(x: Any, kernel: Any) -> Any:
        if way in names:
            return depthwise3x3(x, kernel, Compute(options["dtype"], names[way]))
        return _taps(x, kernel)

    def backward(x: Any, kernel: Any, cotangent: Any) -> Any:
        if way == "nine sums":
            found = _nine_sums(x, kernel, cotangent)
        else:
            found = jax.vjp(forward, x, kernel)[1](cotangent)
        return found[1] if part == "kernel" else found

    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1])), jnp.float32)
    if part == "forward":
        program, arguments, maps = jax.jit(forward), (x, kernel), 2
    else:
        program, arguments = jax.jit(backward), (x, kernel, cotangent)
        maps = 2 if part == "kernel" else 3
    last: list[Any] = []

    def run() -> None:
        last[:] = [jax.block_until_ready(program(*arguments))]

    def finish() -> dict[str, Any]:
        # Counted for the way that does nothing twice.
        if part == "forward":
            count = operations(_taps, x, kernel)
        elif part == "kernel":
            count = operations(lambda *a: _nine_sums(*a)[1], x, kernel, cotangent)
        else:
            count = operations(_nine_sums, x, kernel, cotangent)
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(last[0])]
        return {
            "dtype": options["dtype"],
            "operations": count.total,
            "bytes": float(maps * x.nbytes + kernel.nbytes),
            "mean_squares": [float(np.square(leaf).mean()) for leaf in leaves],
        }

    return Work(run, finish=finish)


def _agreement(result: dict[str, Any], part: str, ways: tuple[str, ...]) -> float | None:
    """Largest relative difference of the mean squares of what the ways compute."""
    sides = [result["sides"].get(f"{part}, {way}") for way in ways]
    squares = [side["facts"]["mean_squares"] for side in sides if side]
    if len(squares) < 2:
        return None
    return max(float(np.abs(np.divide(other, squares[0]) - 1).max()) for other in squares[1:])


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    shape = TINY_SHAPE if run.tiny else SHAPE
    parts = {"forward": FORWARD, "backward": BACKWARD, "kernel": KERNEL}
    if run.accelerator:
        parts = {"forward": FORWARD, "backward": FORWARD}
    dtypes = ("float32", "bfloat16") if run.accelerator else ("float32",)
    results = []
    for dtype in dtypes:
        sides = [
            Side(
                f"{part}, {way}",
                "bench.depthwise:convolve",
                {"part": part, "way": way, "shape": shape, "dtype": dtype},
            )
            for part, ways in parts.items()
            for way in ways
        ]
        what = f"depthwise 3x3 of {'x'.join(map(str, shape))}, {dtype}"
        subject = "depthwise" if dtype == "float32" else f"depthwise-{dtype}"
        rounds = run.rounds(20 if run.accelerator else 5)
        settings = {"shape": shape, "dtype": dtype}
        result = record.measure(run, subject, what, sides, rounds, settings, rates)
        for part, ways in parts.items():
            for way in ways[1:]:
                record.compare(result, f"{part}, {way}", f"{part}, shifted")
            name = f"relative difference of the mean squares, {part}"
            result["agreement"][name] = _agreement(result, part, ways)
        results.append(result)
    return results
