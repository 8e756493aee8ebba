"""Examples a second that the pipeline hands to the training step: patches of 64x64.

How many a chip consumes is predicted, not measured: by the plan in bench/results.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, record
from bench.record import Run
from bench.sides import BenchError, Side, Work

BATCH, PATCH, PAIRS, SIZE = 8, 64, 24, (480, 640)
"""Batch and patch of the preset crossfuse."""
TINY_PAIRS, TINY_SIZE = 4, (96, 128)


def _write_pairs(folder: Path, count: int, size: tuple[int, int]) -> None:
    import cv2

    from jaxfuse.data.synthetic import SyntheticPairs

    pairs = SyntheticPairs(count, *size, seed=4)
    for name in ("vi", "ir"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pair = pairs[i]
        visible = np.rint(pair.visible[..., ::-1] * 255).astype(np.uint8)
        infrared = np.rint(pair.infrared[..., 0] * 255).astype(np.uint8)
        for name, image in (("vi", visible), ("ir", infrared)):
            path = folder / name / f"{pair.stem}.png"
            if not cv2.imwrite(str(path), image):
                raise OSError(f"{path}: could not be written")


PLANNED, CHIP = "crossfuse, fusion, v5e:2x2", "v5e"
"""Side of plan-cpu.json whose chips are to be fed, and their kind."""
TIMES = 5.0
"""A loader should give at least so many times what a chip consumes."""


def consumed() -> float:
    """Examples a second that one chip consumes by the plan."""
    path = machine.ROOT / "bench" / "results" / "plan-cpu.json"
    if not path.exists():
        raise BenchError(f"{path.name}: not there: first `python -m bench plan`")
    facts = json.loads(path.read_text(encoding="utf8"))["sides"][PLANNED]["facts"]
    return facts["predicted"]["examples_per_second"] / facts["chips"]


def read(options: dict[str, Any]) -> Work:
    """A pipeline over pairs; one run takes the next `steps` batches."""
    from jaxfuse.config import DataConfig, SourceConfig
    from jaxfuse.data.builders import layouts, prepare
    from jaxfuse.data.pipeline import Pipeline
    from jaxfuse.data.sources import open_source

    folder = Path(options["folder"])
    if not folder.exists():
        _write_pairs(folder, options["pairs"], tuple(options["size"]))
    source = SourceConfig(kind="folders", root=str(folder))
    if options["records"]:
        out = folder.parent / "records"
        done = prepare.prepare(layouts.named("folders"), folder, out)
        source = SourceConfig(kind="records", root=str(done.folder))
    config = DataConfig(target=source, patch_size=PATCH, stride=32, crops="random")
    pipeline = Pipeline(
        open_source(source),
        config=config,
        batch_size=BATCH,
        seed=0,
        cache_bytes=options["cache_bytes"],
    )
    batches = pipeline.batches()
    # Every pair is in the cache before the first run that counts.
    warm = 4 * options["pairs"] // BATCH + 1 if options["cache_bytes"] else 1
    for _ in range(warm):
        next(batches)

    def run() -> None:
        for _ in range(options["steps"]):
            next(batches)

    def finish() -> dict[str, Any]:
        moved = sum(array.nbytes for array in next(batches).values())
        batches.close()
        # Reading patches as bytes, writing them as float32.
        return {"operations": 0.0, "bytes": 1.25 * options["steps"] * moved}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    pairs, size = (TINY_PAIRS, TINY_SIZE) if run.tiny else (PAIRS, SIZE)
    common = {"folder": str(run.scratch / "pairs"), "pairs": pairs, "size": size, "records": False}
    cached = {**common, "cache_bytes": 1 << 30, "steps": 2 if run.tiny else 200}
    uncached = {**common, "cache_bytes": 0, "steps": 1 if run.tiny else 10}
    sides = [
        Side("cached", "bench.loader:read", cached),
        Side("from files each time", "bench.loader:read", uncached),
        Side("from records each time", "bench.loader:read", {**uncached, "records": True}),
    ]
    what = f"batches of {BATCH} random patches from pairs of {size[0]}x{size[1]}"
    chip, cores = consumed(), os.cpu_count() or 1
    settings = {"batch": BATCH, "patch": PATCH, "pairs": pairs, "consumed_by_a_chip": chip}
    result = record.measure(run, "loader", what, sides, run.rounds(5), settings, rates)
    result["notes"].append(f"What a {CHIP} chip consumes is predicted: {PLANNED} in plan-cpu.json.")
    for side in sides:
        found = result["sides"][side.name]
        rate = BATCH * side.options["steps"] / found["median_seconds"]
        found["facts"] |= {"examples_per_second": rate, "cores": cores}
        result["agreement"][f"examples a second, {side.name}"] = rate
    cached_rate = result["sides"]["cached"]["facts"]["examples_per_second"]
    result["goals"].append(
        record.goal(
            f"from memory, {cores} cores: examples a second over those of a {CHIP} chip",
            TIMES,
            cached_rate / chip,
            at_least=True,
            final=not run.tiny,
        )
    )
    return [result]


def table(result: dict[str, Any]) -> list[str]:
    """What reading gives, and how many cores a chip needs, as a Markdown table."""
    chip = result["settings"]["consumed_by_a_chip"]
    rows = [
        f"| examples from | a second | a second and core | over a {CHIP} chip's {chip:.0f} "
        f"| cores for {TIMES:g} times as many |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, side in result["sides"].items():
        rate, cores = side["facts"]["examples_per_second"], side["facts"]["cores"]
        rows.append(
            f"| {name} | {rate:.0f} | {rate / cores:.0f} | x {rate / chip:.1f} "
            f"| {TIMES * chip * cores / rate:.1f} |"
        )
    return rows
