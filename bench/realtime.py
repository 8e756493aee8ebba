"""Fusing one 480x640 pair with lite: the network on luma, and pictures in colour from arrays to
arrays; beside published networks in PyTorch, each as its own test script calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench import record, rivals
from bench.record import Run
from bench.sides import Side, Work

SIZE, TINY_SIZE = (480, 640), (48, 64)
FRAMES = {"cpu": 25.0, "accelerator": 1000.0}
"""Frames a second to reach."""
IN_A_ROW = 25
"""Frames of a call that measures frames a second, as a camera or a video gives them."""


def _pair(options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    visible, infrared = np.random.default_rng(0).random((2, *options["size"]), np.float32)
    return visible, infrared


def work_of(shape: tuple[int, ...], moved: int) -> dict[str, Any]:
    """What a floor is made of: operations of lite on images of that shape, bytes to and fro."""
    import jax

    from bench.floor import operations
    from jaxfuse import models

    model = models.create("lite")
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct(shape, np.float32)
    count = operations(lambda *a: model.apply(*a).image, params, image, image)
    return {"operations": count.total, "bytes": moved}


def network(options: dict[str, Any]) -> Work:
    """The network, luma and infrared in, fused luma out; on an accelerator arrays stay on it."""
    import jax

    from jaxfuse import models
    from jaxfuse.infer.tiles import compiled

    model = models.create("lite", options["dtype"])
    params = model.init(jax.random.key(0))
    visible, infrared = (
        np.repeat(x[None, :, :, None], options["batch"], 0) for x in _pair(options)
    )
    if options["batch"] > 1:
        visible, infrared = jax.device_put((visible, infrared))
    program = compiled(model)

    frames = options.get("frames", 1)

    def run() -> None:
        for _ in range(frames):
            result = program(params, visible, infrared)
            if options["batch"] > 1:
                result.block_until_ready()
            else:
                np.asarray(result)

    def finish() -> dict[str, Any]:
        found = work_of(visible.shape, 3 * visible.nbytes)
        return {"dtype": options["dtype"], **{name: frames * x for name, x in found.items()}}

    return Work(run, finish=finish)


def picture(options: dict[str, Any]) -> Work:
    """`jaxfuse.fuse` of an 8-bit colour picture and an 8-bit infrared one."""
    import jax

    from jaxfuse import models
    from jaxfuse.infer.predict import Fuser

    model = models.create("lite")
    fuser = Fuser("lite", model.init(jax.random.key(0)), {}, model)
    visible, infrared = (np.rint(255 * x).astype(np.uint8) for x in _pair(options))
    colour = np.stack([visible, visible[::-1], visible[:, ::-1]], -1)
    # Colours and infrared are read, colours are written.
    moved = 2 * colour.nbytes + infrared.nbytes

    def run() -> None:
        for _ in range(options["frames"]):
            fuser(colour, infrared)

    def finish() -> dict[str, Any]:
        found = work_of((1, *options["size"], 1), moved)
        return {name: options["frames"] * x for name, x in found.items()}

    return Work(run, finish=finish)


def rival(options: dict[str, Any]) -> Work:
    """A published network."""
    fuse = rivals.network(Path(options["rivals"]), options["rival"])
    pair = _pair(options)
    return Work(lambda: fuse(*pair), warm=False)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size = TINY_SIZE if run.tiny else SIZE
    common = {"size": size, "dtype": "float32", "batch": 1}

    def side(name: str, target: str, **options: Any) -> Side:
        return Side(name, f"bench.realtime:{target}", {**common, **options})

    if run.accelerator:
        sides = [
            side(f"lite {dtype}, batch {batch}", "network", dtype=dtype, batch=batch)
            for dtype in ("float32", "bfloat16")
            for batch in (1, 16)
        ]
    else:
        row = f"{IN_A_ROW} in a row"
        sides = [
            side("lite", "network"),
            side(f"lite, {row}", "network", frames=IN_A_ROW),
            side(f"picture, {row}", "picture", frames=IN_A_ROW),
        ]
        if run.rivals:
            place = str(run.rivals)
            sides += [
                side(name, "rival", rivals=place, rival=name) for name in rivals.found(run.rivals)
            ]
    what = f"one {size[0]}x{size[1]} pair with lite"
    rounds = run.rounds(20 if run.accelerator else 7)
    result = record.measure(run, "realtime", what, sides, rounds, {"size": size}, rates)
    final = not run.tiny
    for each in sides:
        if each.name not in result["sides"] or "rival" in each.options:
            continue
        if not run.accelerator and "frames" not in each.options:
            continue
        frames = each.options["batch"] * each.options.get("frames", 1)
        pace = frames / result["sides"][each.name]["median_seconds"]
        bound = FRAMES["accelerator" if run.accelerator else "cpu"]
        goal = record.goal(f"{each.name}, frames a second", bound, pace, True, final)
        result["goals"].append(goal)
    for each in sides:
        if "rival" in each.options:
            times = record.compare(result, each.name, "lite")["time"]["median"]
            result["goals"].append(
                record.goal(f"{each.name} / lite, time", 1.0, times, True, final)
            )
    result["reference"] = rivals.facts(run.rivals) if run.rivals else None
    if not run.rivals:
        result["notes"].append("No published networks were measured: give --rivals DIR.")
    return [result]
