"""One 3000x4000 pair through `jaxfuse.fuse` by CrossFuse: time and memory.

Windows against the whole image are compared at the largest size for which the whole fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SIZE, TINY_SIZE = (3000, 4000), (96, 128)
BOTH, TINY_BOTH = (960, 1280), (64, 80)
"""Size at which one program over the whole image still fits 24 GB."""
MEMORY_GB = 4.0
SAME = 1e-4


def images(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise on a ramp, so that no part is like another."""
    rng, (h, w) = np.random.default_rng(0), size
    ramp = np.linspace(0, 180, w)[None, :, None]
    visible = (ramp + rng.integers(0, 70, (h, w, 3))).astype(np.uint8)
    return visible, (250 - ramp + rng.integers(-60, 5, (h, w, 1))).clip(0, 255).astype(np.uint8)


def fused(options: dict[str, Any]) -> Work:
    """What a user calls; gray, so that nothing but the network's own result is compared."""
    import jaxfuse
    from bench.fuse import facts

    visible, infrared = images(tuple(options["size"]))
    gray = visible[..., 0].astype(np.float32) / 255
    heat = infrared[..., 0].astype(np.float32) / 255
    used = jaxfuse.load("crossfuse")
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [jaxfuse.fuse(gray, heat, used, method=options["way"])]

    def finish() -> dict[str, Any]:
        np.save(options["image"], last[0])
        found = facts({**options, "dtype": "float32"}, used.model, used.params)
        return {"shape": list(last[0].shape), **found}

    return Work(run, warm=False, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size, both = (TINY_SIZE, TINY_BOTH) if run.tiny else (SIZE, BOTH)

    def side(name: str, shape: tuple[int, int], way: str) -> Side:
        image = str(run.scratch / f"{name.replace(' ', '_')}.npy")
        options = {"size": shape, "way": way, "image": image}
        return Side(name, "bench.large:fused", options, rounds=1)

    h, w = size
    small = f"{both[0]}x{both[1]}"
    sides = [
        side(f"{h}x{w}", size, "strips"),
        side(f"{small} in windows", both, "strips"),
        side(f"{small} whole", both, "whole"),
    ]
    result = record.measure(
        run, "large", f"one {h}x{w} pair", sides, 1, {"size": size, "both": both}, rates
    )
    windows, whole = (np.load(s.options["image"]) for s in sides[1:])
    difference = float(np.abs(windows.astype(np.float64) - whole).max())
    result["agreement"][f"largest difference of windows from whole, {small}"] = difference
    peak = result["sides"][f"{h}x{w}"]["peak_rss_bytes"] / 1e9
    final = not run.tiny
    result["goals"] += [
        record.goal(f"peak memory of {h}x{w}, GB", MEMORY_GB, peak, final=final),
        record.goal("largest difference of windows from whole", SAME, difference, final=final),
    ]
    return [result]
