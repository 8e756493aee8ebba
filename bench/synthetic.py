"""Made-up scenes a second and core, 240x320."""

from __future__ import annotations

import statistics
from typing import Any

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SIZE, SCENES, TINY_SCENES = (240, 320), 30, 2
SENSORS = "clear", "dim", "haze"


def draw(options: dict[str, Any]) -> Work:
    """Draws new scenes in every run, on one core."""
    import cv2

    from jaxfuse.data.synthetic import SyntheticPairs

    cv2.setNumThreads(1)
    pairs = SyntheticPairs(1 << 20, *SIZE, seed=3, sensor=options["sensor"])
    scenes = options["scenes"]
    done = [0]

    def run() -> None:
        for index in range(done[0], done[0] + scenes):
            pairs[index]
        done[0] += scenes

    def finish() -> dict[str, Any]:
        pair = pairs[0]
        arrays = (pair.visible, pair.infrared, pair.labels)
        # No count of operations says what a scene needs: its floor is writing it.
        return {"operations": 0.0, "bytes": float(scenes * sum(a.nbytes for a in arrays))}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    scenes = TINY_SCENES if run.tiny else SCENES
    sides = [
        Side(name, "bench.synthetic:draw", {"sensor": name, "scenes": scenes}) for name in SENSORS
    ]
    what = f"{scenes} made-up scenes of {SIZE[0]}x{SIZE[1]} on one core"
    settings = {"size": SIZE, "scenes": scenes}
    result = record.measure(run, "synthetic", what, sides, run.rounds(5), settings, rates)
    for name, side in result["sides"].items():
        # By processor time: what others do on the machine does not count.
        rate = scenes / statistics.median(side["cpu_seconds"])
        side["facts"]["scenes_per_second_and_core"] = rate
        what = f"scenes a second and core, sensor {name}"
        result["goals"].append(record.goal(what, 30.0, rate, at_least=True, final=not run.tiny))
    return [result]
