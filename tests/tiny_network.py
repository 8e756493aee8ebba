"""A network and an experiment small enough to train in a test, yet with all that training does.

Run as a program this is the `jaxfuse` command with the network installed as the model "tiny".
TINY_PAUSE makes its jit steps wait that many seconds each, so that there is time to kill it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxfuse import cli, distributed, models
from jaxfuse.config import (
    CrossFuseConfig,
    DataConfig,
    Experiment,
    ExternalConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
)
from jaxfuse.models import Compute, Fused, Model
from jaxfuse.models.layers import conv1x1, conv3x3
from jaxfuse.shapes import Array, Gray, Params, PRNGKey

NAME = "tiny"
CHANNELS = 4
"""Features of each of the two branches."""

SHAPES = {
    ("encoder", "embed"): (3, 3, 1, 2 * CHANNELS),
    ("decoder", "output"): (3, 3, 2 * CHANNELS, 1),
    ("fuse_low", "mix"): (CHANNELS, CHANNELS),
    ("fuse_high", "mix"): (CHANNELS, CHANNELS),
}
"""Module and name of each parameter."""


STAGE1, STEPS = 4, 12
"""Steps of the first stage, and of both."""


def experiment(**changes: Any) -> Experiment:
    """12 steps with flips, weak-aggressive loss and online Top-K on generated scenes.

    changes: fields by dotted name with "__" for the dot, such as `train__batch_size=4`. Tests that
    change nothing that is compiled share programs through the compilation cache.
    """
    given = Experiment(
        name=NAME,
        seed=5,
        model=ModelConfig(name=NAME),
        method=CrossFuseConfig(
            stage1_epochs=1,
            stage2_epochs=2,
            learning_rate=1e-2,
            halve_every_epochs=1,
            crop_size=12,
            flips=True,
        ),
        data=DataConfig(
            target=SourceConfig(kind="synthetic", scenes=4, height=32, width=48, seed=1),
            external=ExternalConfig(
                kind="synthetic",
                scenes=6,
                height=32,
                width=48,
                seed=2,
                sensor="dim",
                alignment="online",
                pool=16,
                keep=8,
            ),
            patch_size=16,
            stride=16,
            threads=2,
        ),
        train=TrainConfig(batch_size=8, steps_per_epoch=4, log_every=2, checkpoint_every=3),
    )
    for name, value in changes.items():
        given = _replaced(given, name.split("__"), value)
    return given


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _replaced(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})


def create(compute: Compute) -> Model:
    """One convolution in, one out, and a matrix for each branch between them."""

    def init(key: PRNGKey) -> Params:
        # One draw for all: XLA compiles a generator for every shape that is drawn.
        noise = 0.3 * jax.random.normal(key, (sum(map(math.prod, SHAPES.values())),))
        params: Params = {}
        for (module, name), shape in SHAPES.items():
            size = math.prod(shape)
            params[module] = {name: noise[:size].reshape(shape)}
            noise = noise[size:]
        return params

    def encode(params: Params, image: Gray) -> tuple[Array, Array]:
        features = jnp.tanh(conv3x3(compute.cast(image), params["encoder"]["embed"]))
        return features[..., :CHANNELS], features[..., CHANNELS:]

    def decode(params: Params, base: Gray, low: Array, high: Array) -> tuple[Gray, Array]:
        features = jnp.concatenate([low, high], axis=-1)
        image = conv3x3(features, params["decoder"]["output"]).astype(jnp.float32)
        return jax.nn.sigmoid(image + 4.0 * base - 2.0), features

    def parts(params: Params, visible: Gray, infrared: Gray) -> dict[str, Array]:
        (low_v, high_v), (low_i, high_i) = encode(params, visible), encode(params, infrared)
        return {
            "low_visible": low_v,
            "low_infrared": low_i,
            "high_visible": high_v,
            "high_infrared": high_i,
        }

    def apply(params: Params, visible: Gray, infrared: Gray) -> Fused:
        p = parts(params, visible, infrared)
        low = conv1x1(p["low_visible"] + p["low_infrared"], params["fuse_low"]["mix"])
        high = conv1x1(p["high_visible"] + p["high_infrared"], params["fuse_high"]["mix"])
        image, features = decode(params, visible, low, high)
        return Fused(image, features, {**p, "low": low, "high": high})

    def reconstruct(params: Params, visible: Gray, infrared: Gray) -> Fused:
        p = parts(params, visible, infrared)
        visible_hat, features = decode(params, visible, p["low_visible"], p["high_visible"])
        infrared_hat, _ = decode(params, infrared, p["low_infrared"], p["high_infrared"])
        return Fused(jnp.stack([visible_hat, infrared_hat]), features, p)

    return Model(NAME, init, apply, reconstruct)


def _pause(seconds: float) -> None:
    without = distributed.to_devices

    def to_devices(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
        time.sleep(seconds)
        return without(batch, mesh)

    distributed.to_devices = to_devices


if __name__ == "__main__":
    models.MODELS[NAME] = create
    _pause(float(os.environ.get("TINY_PAUSE", "0")))
    sys.exit(cli.main())
