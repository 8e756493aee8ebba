"""Everything that changes during training, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfuse.methods import Memory, Method
from jaxfuse.shapes import Array, Params, PRNGKey


class TrainState(NamedTuple):
    """Step, parameters, optimizer state, memory, key; replicated over the devices."""

    step: Array
    """int32 (): steps done, which is also the position in the data."""
    params: Params
    opt_state: Any
    memory: Memory
    """What the method keeps from step to step."""
    key: PRNGKey
    """The run's key; never advanced, step s uses fold_in(key, s)."""
    bad_step: Array
    """int32 (): the first step whose loss or gradient was not finite, else -1.

    Parameters stay from there on.
    """


def init_state(method: Method, key: PRNGKey) -> TrainState:
    """A fresh state. Under jit with out_shardings nothing is made on one device and copied."""
    params_key, run_key = jax.random.split(key)
    params = method.init(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=method.stages[0].tx.init(params),
        memory=method.memory(params),
        key=run_key,
        bad_step=jnp.full((), -1, jnp.int32),
    )
