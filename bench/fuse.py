"""Fusing one 480x640 pair: the network on luma and infrared, NumPy arrays in and out.

`jaxfuse.fuse` takes `whole` at this size, and `strips` where XLA alone does it on a processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import published, record
from bench.record import Run
from bench.sides import Side, Work

SIZE, TINY_SIZE = (480, 640), (48, 64)
CHECKED_SIZE = (96, 128)
"""On an accelerator: the size at which its result is compared with the processor's."""


def _pair(options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    visible, infrared = np.random.default_rng(0).random((2, 1, *options["size"], 1), np.float32)
    return visible, infrared


def _network(options: dict[str, Any]) -> tuple[Any, Any]:
    """Our model and its parameters: those of the published side, else random ones."""
    import jax

    from jaxfuse import convert, models

    model = models.create("crossfuse", options["dtype"], kernels=options.get("kernels", "auto"))
    if options["weights"]:
        state = published.load_weights(options["weights"])
        params = jax.tree.map(jax.numpy.asarray, convert.from_torch("crossfuse", state))
    else:
        params = model.init(jax.random.key(0))
    return model, params


def facts(options: dict[str, Any], model: Any, params: Any) -> dict[str, Any]:
    """Operations of the whole image at once, bytes of the maps that sums over pixels force."""
    import jax

    from bench.floor import operations, sweep_bytes
    from jaxfuse import models

    kernels = model.native()
    # Operations are counted in what XLA makes of the network, which sees into no kernel.
    model = models.create(model.name, options["dtype"], kernels="xla")
    luma = jax.ShapeDtypeStruct((1, *options["size"], 1), np.float32)
    count = operations(lambda *a: model.apply(*a).image, params, luma, luma)
    found = {
        "dtype": options["dtype"],
        "kernels": kernels,
        "operations": count.total,
        "bytes": sweep_bytes(model, *options["size"]),
        "matrix_operations": count.matrix,
    }
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["peak_device_bytes"] = stats["peak_bytes_in_use"]
    return found


def whole(options: dict[str, Any]) -> Work:
    """The image as one program."""
    import jax

    model, params = _network(options)
    visible, infrared = _pair(options)
    program = jax.jit(lambda *a: model.apply(*a).image)
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [np.asarray(program(params, visible, infrared))]

    def finish() -> dict[str, Any]:
        np.save(options["image"], last[0].reshape(options["size"]))
        found = facts(options, model, params)
        if options["check"]:
            found["difference_from_processor"] = _difference(options, program, params)
        return found

    return Work(run, finish=finish)


def _difference(options: dict[str, Any], program: Any, params: Any) -> float:
    """Largest difference of a small image from the processor's in float32."""
    import jax

    from jaxfuse import models

    small = {**options, "size": options["check"]}
    visible, infrared = _pair(small)
    ours = np.asarray(program(params, visible, infrared))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        exact = models.create("crossfuse", depthwise="shift").apply(
            jax.device_get(params), visible, infrared
        )
    return float(np.abs(ours - np.asarray(exact.image)).max())


def strips(options: dict[str, Any]) -> Work:
    """The image in exact strips, as large images are fused."""
    from jaxfuse.infer.strips import fuse_strips

    model, params = _network(options)
    visible, infrared = _pair(options)
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [fuse_strips(model, params, visible, infrared, window=options.get("window"))]

    def finish() -> dict[str, Any]:
        np.save(options["image"], last[0])
        return facts(options, model, params)

    return Work(run, finish=finish)


def published_side(options: dict[str, Any]) -> Work:
    """The published network, as its test script calls it."""
    import torch

    made = published.modules(options["reference"], 0, options["weights"])
    visible, infrared = (torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in _pair(options))
    for part in made.values():
        part.eval()
    last: list[np.ndarray] = []

    def run() -> None:
        with torch.no_grad():
            low_v, high_v, _ = made["encoder"](visible)
            low_i, high_i, _ = made["encoder"](infrared)
            low, high = made["base_fuse"](low_v + low_i), made["detail_fuse"](high_v + high_i)
            last[:] = [made["decoder"](visible, low, high)[0].numpy()]

    def finish() -> dict[str, Any]:
        np.save(options["image"], last[0][0, 0])
        return {"threads": torch.get_num_threads()}

    return Work(run, warm=False, finish=finish)


def _difference_name(a: str, b: str) -> str:
    return f"largest difference of {a} from {b}"


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size = TINY_SIZE if run.tiny else SIZE
    weights = str(run.scratch / "fuse.npz") if run.reference else ""

    def side(name: str, target: str, **options: Any) -> Side:
        common = {"size": size, "weights": weights, "dtype": "float32", "check": None}
        image = str(run.scratch / f"{name}.npy")
        return Side(name, f"bench.fuse:{target}", {**common, "image": image, **options})

    if run.accelerator:
        check = TINY_SIZE if run.tiny else CHECKED_SIZE
        sides = [side(f"whole {d}", "whole", dtype=d, check=check) for d in ("float32", "bfloat16")]
        sides.append(side("strips float32", "strips"))
    else:
        sides = [
            side("whole", "whole"),
            side("strips", "strips"),
            side("whole, XLA alone", "whole", kernels="xla"),
            side("strips, XLA alone", "strips", kernels="xla"),
        ]
        if run.reference:
            options = {"reference": str(run.reference), "floor_of": "whole"}
            # First: it writes the weights that the others read.
            sides.insert(0, side("published", "published_side", **options))
    rounds = run.rounds(20 if run.accelerator else 3 if run.reference else 2)
    what = f"one {size[0]}x{size[1]} pair"
    result = record.measure(run, "fuse", what, sides, rounds, {"size": size}, rates)
    images = [(s.name, np.load(s.options["image"])) for s in sides if s.name in result["sides"]]
    for i, (a, first) in enumerate(images):
        for b, other in images[i + 1 :]:
            result["agreement"][_difference_name(b, a)] = float(np.abs(first - other).max())
    goals, final = result["goals"], not run.tiny
    if run.accelerator:
        record.compare(result, "whole float32", "whole bfloat16")
        if "whole bfloat16" in result["sides"]:
            taken = 1e3 * result["sides"]["whole bfloat16"]["median_seconds"]
            goals.append(record.goal("whole bfloat16, milliseconds", 12.0, taken, final=final))
        return [result]
    record.compare(result, "whole, XLA alone", "strips, XLA alone")
    record.compare(result, "whole, XLA alone", "whole")
    record.compare(result, "strips, XLA alone", "strips")
    share = 1.0 / result["sides"]["whole"]["gap"]
    goals.append(record.goal("floor / whole, time", 0.45, share, True, final))
    memory = result["sides"]["strips"]["peak_rss_bytes"] / 1e9
    goals.append(record.goal("peak memory of strips, GB", 1.5, memory, final=final))
    if run.reference:
        record.compare(result, "published", "strips")
        times = record.compare(result, "published", "whole")["time"]["median"]
        goals.append(record.goal("published / whole, time", 8.0, times, True, final))
        for name in ("whole", "strips"):
            what = _difference_name(name, "published")
            goals.append(record.goal(what, 1e-4, result["agreement"][what], final=final))
    result["reference"] = published.facts(run.reference)
    if not run.reference:
        result["notes"].append(record.NO_REFERENCE)
    return [result]
