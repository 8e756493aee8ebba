"""bfloat16 against float32: how far the fused pictures move, and what it costs or saves here.

Networks with the weights that come with the package, on generated scenes of day and night. Whatever
`compute_dtype` says, parameters, statistics of the normalisation, sums of the attention, softmax,
sums of depthwise taps, GELU, the coupling's exponential and the result are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SIZE, TINY_SIZE = (240, 320), (48, 64)
SCENES, TINY_SCENES = 8, 2
NETWORKS = "crossfuse", "lite"


def work(options: dict[str, Any]) -> Work:
    """A network on all scenes, one after the other; keeps the fused pictures."""
    import jax

    from jaxfuse import models, weights
    from jaxfuse.config import SourceConfig
    from jaxfuse.data.sources import open_source
    from jaxfuse.ops import color

    height, width = options["size"]
    pairs = open_source(
        SourceConfig(kind="synthetic", scenes=options["scenes"], height=height, width=width, seed=3)
    )
    scenes = [pairs[i] for i in range(len(pairs))]
    images = [(color.luma(s.visible)[None], s.infrared[None]) for s in scenes]
    # Both by XLA alone: kernels know float32 only, and the arithmetic is compared.
    model = models.create(options["network"], options["dtype"], kernels="xla")
    params = weights.load_weights(options["network"]).params
    program = jax.jit(lambda *a: model.apply(*a).image)
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [np.asarray(program(params, *pair)) for pair in images]

    def finish() -> dict[str, Any]:
        np.save(options["image"], np.concatenate(last))
        return {"dtype": options["dtype"]}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size, scenes = (TINY_SIZE, TINY_SCENES) if run.tiny else (SIZE, SCENES)

    def side(network: str, dtype: str) -> Side:
        name = f"{network} {dtype}"
        options = {"network": network, "dtype": dtype, "size": size, "scenes": scenes}
        options["image"] = str(run.scratch / f"{name}.npy")
        return Side(name, "bench.precision:work", options)

    sides = [side(n, d) for n in NETWORKS for d in ("float32", "bfloat16")]
    what = f"{scenes} generated scenes of {size[0]}x{size[1]}"
    settings = {"size": size, "scenes": scenes}
    result = record.measure(run, "precision", what, sides, run.rounds(5), settings, rates)
    for network in NETWORKS:
        exact, rounded = (
            np.load(s.options["image"]) for s in sides if s.options["network"] == network
        )
        off = 255.0 * np.abs(exact - rounded)
        result["agreement"] |= {
            f"{network}, largest difference in grey levels": float(off.max()),
            f"{network}, mean difference in grey levels": float(off.mean()),
        }
        record.compare(result, f"{network} float32", f"{network} bfloat16")
    return [result]
