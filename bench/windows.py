"""Fusing in strips, by the size of the windows: why `infer.strips` makes them so small where XLA
alone does the work, and larger ones where kernels do.
"""

from __future__ import annotations

from typing import Any

from bench import record
from bench.record import Run
from bench.sides import Side

SIZE, TINY_SIZE = (240, 320), (48, 64)
WINDOWS = ((96, 96), (128, 160), (240, 320))
TINY_WINDOWS = ((32, 48), (48, 64))


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size, windows = (TINY_SIZE, TINY_WINDOWS) if run.tiny else (SIZE, WINDOWS)
    common = {"size": size, "weights": "", "dtype": "float32", "check": None}

    def side(name: str, h: int, w: int, kernels: str) -> Side:
        image = str(run.scratch / f"{name}.npy")
        options = {**common, "window": (h, w), "image": image, "kernels": kernels}
        return Side(name, "bench.fuse:strips", options)

    sides = [side(f"windows of {h}x{w}", h, w, "xla") for h, w in windows]
    sides += [side(f"windows of {h}x{w}, kernels", h, w, "auto") for h, w in windows]
    what = f"one {size[0]}x{size[1]} pair in strips, by size of window"
    settings = {"size": size, "windows": windows}
    result = record.measure(run, "windows", what, sides, run.rounds(2), settings, rates)
    for kernels in (False, True):
        names = [name for name in result["sides"] if name.endswith("kernels") == kernels]
        quickest = min(names, key=lambda name: result["sides"][name]["median_seconds"])
        for name in names:
            if name != quickest:
                record.compare(result, name, quickest)
    return [result]
