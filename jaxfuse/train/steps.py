"""The training step: one pure `update`, and the two ways of running it on many devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jaxfuse import distributed
from jaxfuse.config import ConfigError
from jaxfuse.methods import RANK, Stage
from jaxfuse.shapes import Array, Batch, Metrics, Params, PRNGKey, Scalar
from jaxfuse.train.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def update(
    state: TrainState,
    batch: Batch,
    *,
    stage: Stage,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step of a stage. Metrics are of the parameters before it.

    batch: this device's rows, or all rows under jit. accumulate: parts the examples are split into,
    whose gradients are averaged: the whole batch's where the loss is a mean over examples, which a
    term with a batch mean inside a ratio is not (CrossFuse's decomposition; SSVIF's balanced
    targets, confidence and means over labelled pixels). axis_name: the mapped axis under pmap;
    gradients and metrics are averaged over it. A loss or gradient that is not finite leaves
    parameters and optimizer as they are, from then on, and sets `bad_step`.
    """
    key = jax.random.fold_in(state.key, state.step)
    progress = (state.step - stage.start).astype(jnp.float32) / stage.steps
    with jax.named_scope("prepare"):
        examples, notes = stage.prepare(batch, key, axis_name)
    with jax.named_scope("gradient"):
        loss, metrics, grads = _value_and_grad(
            stage, state, examples, key, progress, axis_name, accumulate
        )
        if axis_name is not None:
            loss, metrics, grads = lax.pmean((loss, metrics, grads), axis_name)
    norm = optax.tree.norm(grads)
    with jax.named_scope("update"):
        updates, opt_state = stage.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        memory = stage.remember(state.memory, params, metrics)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.bad_step < 0)
    params, opt_state, memory = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (params, opt_state, memory),
        (state.params, state.opt_state, state.memory),
    )
    bad_step = jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step)
    new_state = TrainState(state.step + 1, params, opt_state, memory, state.key, bad_step)
    return new_state, {"loss": loss, "grad_norm": norm, **metrics, **notes}


def _value_and_grad(
    stage: Stage,
    state: TrainState,
    examples: Batch,
    key: PRNGKey,
    progress: Scalar,
    axis_name: str | None,
    parts: int,
) -> tuple[Scalar, Metrics, Params]:
    params, memory = state.params, state.memory
    run = jax.value_and_grad(stage.objective, has_aux=True)
    if parts == 1:
        (loss, metrics), grads = run(params, memory, examples, key, progress, axis_name)
        return loss, metrics, grads
    count = len(next(iter(examples.values())))
    if count % parts:
        raise ConfigError(
            f"train.accumulate = {parts}: must divide the {count} examples of a step on each "
            "device (target pairs and kept external patches together)"
        )

    def split(x: Array) -> Array:
        # Rows i, i + parts, ...: keeps a batch that is sharded over devices where it is.
        return x.reshape(count // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(total: Any, part: Batch) -> tuple[Any, None]:
        (loss, metrics), grads = run(params, memory, part, key, progress, axis_name)
        return jax.tree.map(jnp.add, total, (loss, metrics, grads)), None

    pieces = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], pieces)
    (loss, metrics), grads = jax.eval_shape(
        lambda part: run(params, memory, part, key, progress, axis_name), first
    )
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, metrics, grads))
    total, _ = lax.scan(body, zero, pieces)
    return jax.tree.map(lambda x: x / parts, total)


def make_jit_step(stage: Stage, mesh: Mesh, accumulate: int = 1, placed: Any = None) -> Step:
    """`update` under jit: state donated, batch rows sharded.

    placed: the state's sharding, one or a tree of them (`distributed.by_rule`); without, every
    device of the mesh holds all of it.
    """
    whole = distributed.replicated(mesh)
    placed = whole if placed is None else placed
    jitted = jax.jit(
        functools.partial(update, stage=stage, accumulate=accumulate),
        in_shardings=(placed, distributed.by_rows(mesh)),
        out_shardings=(placed, whole),
        donate_argnums=0,
    )
    return distributed.Ahead(jitted)


@functools.cache
def make_validation(stage: Stage, mesh: Mesh) -> Callable[[TrainState, Batch], Scalar]:
    """The loss that ranks the stage's checkpoints, on a batch without augmentation, external
    patches or gradient. The state stays placed as it comes.
    """

    def evaluate(state: TrainState, batch: Batch) -> Scalar:
        progress = (state.step - stage.start).astype(jnp.float32) / stage.steps
        examples, _ = stage.prepare_validation(batch, state.key, None)
        loss, metrics = stage.objective(
            state.params, state.memory, examples, state.key, progress, None
        )
        return metrics.get(RANK, loss)

    return jax.jit(
        evaluate,
        in_shardings=(None, distributed.by_rows(mesh)),
        out_shardings=distributed.replicated(mesh),
    )


def make_pmap_step(stage: Stage, mesh: Mesh, accumulate: int = 1) -> Step:
    """`update` under pmap over the mesh's devices: takes and gives what `make_jit_step` does.

    The state keeps one replicated copy without a device axis, so the two steps can take turns. With
    several processes each gives its own rows.
    """
    devices = mesh.local_devices
    several = jax.process_count() > 1
    mapped = jax.pmap(
        functools.partial(update, stage=stage, accumulate=accumulate, axis_name="data"),
        axis_name="data",
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=None if several else devices,
        donate_argnums=0,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def split(x: Any) -> Any:
            if len(x) % len(devices):
                raise ConfigError(
                    f"a batch of {len(x)} rows cannot be split over {len(devices)} devices: "
                    "make train.batch_size and data.external.pool multiples of the device count"
                )
            return np.reshape(x, (len(devices), len(x) // len(devices), *x.shape[1:]))

        done = mapped(state, jax.tree.map(split, batch))
        return distributed.to_global(done, mesh) if several else done

    return step
