"""A segmentation network learns from labels: what downstream evaluation retrains."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from jaxfuse.config import SegmentationConfig
from jaxfuse.losses import segmentation
from jaxfuse.methods.base import Facts, Memory, Method, Objective, Stage
from jaxfuse.methods.examples import prepare_examples
from jaxfuse.models import Model, Segmenter, create_segmenter, trainable
from jaxfuse.shapes import Batch, Metrics, Params, PRNGKey, Scalar


def objective_of(segmenter: Segmenter) -> Objective:
    """Cross-entropy per labelled pixel of all devices."""

    def objective(
        params: Params,
        memory: Memory,
        examples: Batch,
        key: PRNGKey,
        progress: Scalar,
        axis_name: str | None = None,
    ) -> tuple[Scalar, Metrics]:
        logits = segmenter.apply(params, examples["color"])
        loss, right = segmentation.labels_loss(logits, examples["labels"], axis_name)
        return loss, {"accuracy": right}

    return objective


def build(
    config: SegmentationConfig, model: Model, facts: Facts, start: Params | None = None
) -> Method:
    """One stage. model is not used: what is judged is in the images already.

    start: parameters to begin with, in place of random ones.
    """
    segmenter = create_segmenter(config.segmenter, config.classes, config.segmenter_dtype)
    steps = math.ceil(config.epochs * facts.steps_per_epoch)
    rising = min(round(config.warm_up * steps), steps - 1)
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    if rising:
        rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, rising, steps)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, weight_decay=config.weight_decay, mask=trainable),
    )

    def init(key: PRNGKey) -> Params:
        return segmenter.init(key) if start is None else jax.tree.map(jnp.asarray, start)

    prepare = prepare_examples(
        config.flips, facts.kept_online, facts.target_means, colors=True, vertical=False
    )
    plain = prepare_examples(flips=False, colors=True)
    stage = Stage("segmentation", 0, steps, prepare, plain, objective_of(segmenter), tx)
    return Method("segmentation", init, (stage,), lambda params: params, network=config.segmenter)
