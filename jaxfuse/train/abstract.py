"""What a run's data looks like to a training step, from its config alone: no data is opened."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxfuse.config import Experiment
from jaxfuse.methods import Facts, Method
from jaxfuse.train.state import TrainState, init_state

STEPS_PER_EPOCH = 1000
"""Where the config leaves it to the data: it changes constants of a step, never its work."""
GREY = (128.0, 128.0, 128.0)
"""Stands for the target set's mean colours, which are constants of a step too."""


def facts(experiment: Experiment) -> Facts:
    """Facts that any data would do for."""
    epoch = experiment.train.steps_per_epoch or STEPS_PER_EPOCH
    return Facts(epoch, GREY, experiment.data.external.kept_online)


def batch(experiment: Experiment) -> dict[str, Any]:
    """Shapes of what the pipeline gives a step, over all devices."""
    data = experiment.data
    side = data.patch_size

    def images(rows: int, channels: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, side, side, channels), np.float32)

    rows = experiment.train.batch_size
    given = {
        "visible": images(rows, 3),
        "infrared": images(rows, 1),
        "index": jax.ShapeDtypeStruct((rows,), np.uint32),
    }
    if experiment.method.labelled_classes:
        given["labels"] = jax.ShapeDtypeStruct((rows, side, side), np.int32)
    if data.external.kept_online:
        pool = data.external.pool
        given |= {"pool_visible": images(pool, 3), "pool_infrared": images(pool, 1)}
    return given


def state(method: Method) -> TrainState:
    """Shapes of a method's training state."""
    return jax.eval_shape(lambda: init_state(method, jax.random.key(0)))


def on_devices(experiment: Experiment, devices: int, per_device: int) -> Experiment:
    """The experiment with so many target pairs on each device; what online alignment offers and
    keeps grows with the batch, rounded up to what the devices can share.
    """
    rows = devices * per_device
    data, external = experiment.data, experiment.data.external

    def grown(count: int) -> int:
        return devices * max(1, round(count * per_device / experiment.train.batch_size))

    if external.kept_online:
        external = dataclasses.replace(
            external, pool=grown(external.pool), keep=grown(external.keep)
        )
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(data, external=external),
        train=dataclasses.replace(experiment.train, batch_size=rows, devices=0),
    )
