"""What a way of training is: parameters and stages, each a pure objective and an optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxfuse.shapes import Batch, Metrics, Params, PRNGKey, Scalar

Prepare = Callable[[Batch, PRNGKey, str | None], tuple[Batch, Metrics]]
"""(batch, key, axis_name) -> (examples, notes): what happens to data once a step, before any
gradient.

Examples share one leading axis, this device's share of them. Notes are equal on all devices.
"""
Memory: TypeAlias = dict[str, Any]
"""What a method keeps from step to step besides parameters and optimizer: a nested dict of arrays,
equal on all devices, empty for most.
"""
RANK = "rank_loss"
"""Name of the metric that ranks the checkpoints of a stage whose loss has moving weights: the same
loss with constant ones. Without it the loss ranks.
"""
Objective = Callable[[Params, Memory, Batch, PRNGKey, Scalar, str | None], tuple[Scalar, Metrics]]
"""(params, memory, examples, key, progress, axis_name) -> (loss, metrics): means over this device's
examples.

progress runs from 0 to 1 over the stage. Only what is not linear in a batch mean needs axis_name.
"""
Remember = Callable[[Memory, Params, Metrics], Memory]
"""(memory, new params, metrics) -> the memory of the next step; metrics are those of all devices.
"""


def remember_nothing(memory: Memory, params: Params, metrics: Metrics) -> Memory:
    """The memory stays what it is."""
    return memory


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A stretch of training with one objective."""

    name: str
    start: int
    """First step, counted over the whole run."""
    steps: int
    prepare: Prepare
    prepare_validation: Prepare
    """The same without anything random and without external patches."""
    objective: Objective
    tx: optax.GradientTransformation
    """Updates the modules this stage trains. The optimizer state has the same structure in all
    stages.
    """
    remember: Remember = remember_nothing

    @property
    def stop(self) -> int:
        return self.start + self.steps


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A published way of training, as pure functions."""

    name: str
    init: Callable[[PRNGKey], Params]
    stages: tuple[Stage, ...]
    deploy: Callable[[Params], Params]
    """The parameters that training is for, those of `network`: all that is needed afterwards."""
    memory: Callable[[Params], Memory] = lambda params: {}
    """The memory a run starts with, from its first parameters."""
    network: str = ""
    """Name of the network that `deploy` gives the parameters of; empty is the fusion network."""
    doubts: Callable[[Mapping[str, float]], list[str]] = lambda record: []
    """What a log record says against the run, in words; a run that ends with any has failed."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that step belongs to; the last one from its end on."""
        for stage in self.stages:
            if step < stage.stop:
                return stage
        return self.stages[-1]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a method must know of the data."""

    steps_per_epoch: int
    target_means: tuple[float, float, float] | None = None
    """Mean red, green and blue of the target sensor's training patches, grey levels."""
    kept_online: int = 0
    """External patches that online alignment adds to each step's batch, over all devices."""


def per_module(
    transforms: dict[str, optax.GradientTransformation], trained: tuple[str, ...]
) -> optax.GradientTransformation:
    """One optimizer per top-level module; modules not in `trained` stay, with their optimizer state
    and counts.

    An optimizer whose module rests must rest too: Adam's bias correction and a schedule count
    updates.
    """

    def init(params: Params) -> dict[str, Any]:
        return {name: transforms[name].init(params[name]) for name in params}

    def update(
        grads: Params, state: dict[str, Any], params: Params | None = None
    ) -> tuple[Params, dict[str, Any]]:
        if params is None:
            raise ValueError("per_module: give the parameters")
        updates, new_state = {}, {}
        for name, grad in grads.items():
            if name in trained:
                updates[name], new_state[name] = transforms[name].update(
                    grad, state[name], params[name]
                )
            else:
                updates[name], new_state[name] = jax.tree.map(jnp.zeros_like, grad), state[name]
        return updates, new_state

    return optax.GradientTransformation(init, update)
