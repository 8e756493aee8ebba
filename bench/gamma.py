"""Gamma of 1000 patches: ours, from a histogram, and the published search over rendered patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import published, record
from bench.record import Run
from bench.sides import Side, Work

COUNT, TINY_COUNT, PATCH = 1000, 24, 64
CHANNELS = "red", "green", "blue"


def _patches(options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 64, 64, 3) of one made-up camera; the channel means, grey levels, of another."""
    from jaxfuse.data.synthetic import SyntheticPairs

    count, size = options["count"], (256, 320)
    each = (size[0] // PATCH) * (size[1] // PATCH)
    scenes = -(-count // each)

    def levels(sensor: str, number: int) -> np.ndarray:
        pairs = SyntheticPairs(number, *size, seed=5, sensor=sensor)
        images = np.stack([pairs[i].visible for i in range(number)])
        return np.rint(images * 255).astype(np.uint8)

    images = levels("clear", scenes).reshape(scenes, size[0] // PATCH, PATCH, -1, PATCH, 3)
    patches = images.swapaxes(2, 3).reshape(-1, PATCH, PATCH, 3)[:count]
    return np.ascontiguousarray(patches), levels("haze", min(scenes, 12)).mean((0, 1, 2))


def _errors(patches: np.ndarray, target: np.ndarray, gamma: np.ndarray) -> dict[str, Any]:
    """|mean - target| per channel in grey levels of exact and of truncated uint8 patches."""
    levels = np.arange(256) / 255.0
    exact, truncated = [], []
    for channel in range(3):
        curve = 255.0 * levels ** (1.0 / gamma[channel])
        share = np.bincount(patches[..., channel].ravel(), minlength=256) / patches[..., 0].size
        exact.append(abs(float(share @ curve - target[channel])))
        truncated.append(abs(float(share @ np.floor(curve) - target[channel])))
    return {
        "gamma": [float(g) for g in gamma],
        "error_grey_levels": exact,
        "error_grey_levels_as_truncated_bytes": truncated,
    }


def ours(options: dict[str, Any]) -> Work:
    """Histogram and fit in one program, from patches in NumPy."""
    import jax

    from bench.floor import operations
    from jaxfuse.ops import align

    patches, target = _patches(options)
    means = target.astype(np.float32)
    fit = jax.jit(lambda patches: align.fit_gamma(align.histogram(patches), means))
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [np.asarray(fit(patches))]

    def finish() -> dict[str, Any]:
        count = operations(fit, patches)
        work = {"operations": count.total, "bytes": float(patches.nbytes)}
        return {**work, **_errors(patches, target, last[0].astype(np.float64))}

    return Work(run, finish=finish)


def published_side(options: dict[str, Any]) -> Work:
    """The published Nelder-Mead search; its patches are BGR."""
    from pathlib import Path

    code = published.functions(Path(options["reference"]) / published.ALIGNMENT)
    patches, target = _patches(options)
    named = [(str(i), patch[..., ::-1].copy()) for i, patch in enumerate(patches)]
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [np.asarray(code["optimize_gamma"](named, list(target[::-1])))]

    return Work(run, warm=False, finish=lambda: _errors(patches, target, last[0][::-1]))


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    count = TINY_COUNT if run.tiny else COUNT
    sides = [Side("ours", "bench.gamma:ours", {"count": count})]
    if run.reference:
        options = {"count": count, "reference": str(run.reference), "floor_of": "ours"}
        # Minutes long and never the same length twice by more than the machine's noise: once.
        sides.append(Side("published", "bench.gamma:published_side", options, rounds=1))
    what = f"one gamma per channel for {count} patches of {PATCH}x{PATCH}"
    result = record.measure(run, "gamma", what, sides, run.rounds(15), {"count": count}, rates)
    mine, final = result["sides"]["ours"], not run.tiny
    error = max(mine["facts"]["error_grey_levels"])
    result["agreement"]["error of ours, grey levels"] = error
    result["goals"] = [
        record.goal("seconds after compilation", 0.05, mine["median_seconds"], final=final),
        record.goal("error of ours, grey levels", 0.01, error, final=final),
    ]
    if run.reference:
        record.compare(result, "published", "ours")
        theirs = result["sides"]["published"]["facts"]
        for kind in ("error_grey_levels", "error_grey_levels_as_truncated_bytes"):
            result["agreement"][f"published: {kind}"] = max(theirs[kind])
    else:
        result["notes"].append(record.NO_REFERENCE)
    result["reference"] = published.facts(run.reference)
    return [result]
