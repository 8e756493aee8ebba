"""CrossFuse training (IEEE T-CSVT 2025, arXiv 2502.14493): two stages, two views against
overfitting.

Stage I learns to take each modality apart and put it together again; stage II learns to fuse.
External view: patches of another sensor that look like the target sensor join the batch, gamma-
aligned (`ops.align`). Internal view: a crop of the fused image must stay close to its own blurred
copy (`ops.augment`). Both happen inside the step.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxfuse.config import CrossFuseConfig
from jaxfuse.losses import decomposition, fusion, structure
from jaxfuse.methods.base import Facts, Memory, Method, Objective, Stage, per_module
from jaxfuse.methods.examples import prepare_examples
from jaxfuse.models import Model
from jaxfuse.ops import augment
from jaxfuse.shapes import Array, Batch, Metrics, Params, PRNGKey, Scalar

PARTS = ("low_visible", "low_infrared", "high_visible", "high_infrared")
"""What a network that decomposes calls its low and high frequencies."""
DECOMPOSITION_WEIGHT = 2.0
GRADIENT_WEIGHT = 5.0


def self_supervision_weight(config: CrossFuseConfig, progress: Scalar) -> Scalar:
    """theta = base * (cos(pi t) + 1) / 2, with t from 0 to 1 over stage II.

    schedule="published" uses t = epoch / stage2_epochs with the epoch counted from the run's start,
    as the
    published code does: with 40 + 120 epochs theta starts at 0.075, reaches 0 at epoch 120 and
    rises to 0.024.
    """
    if config.schedule == "published":
        epoch = config.stage1_epochs + jnp.floor(progress * config.stage2_epochs + 1e-4)
        t = epoch / config.stage2_epochs
    else:
        t = progress
    return config.self_supervision * (jnp.cos(jnp.pi * t) + 1.0) / 2.0


def learning_rate(config: CrossFuseConfig, steps_per_epoch: int) -> optax.Schedule:
    """Halved every `halve_every_epochs` epochs of a module's own training, down to the floor."""
    every = max(1, round(config.halve_every_epochs * steps_per_epoch))

    def schedule(count: Array) -> Array:
        rate = config.learning_rate * jnp.power(0.5, (count // every).astype(jnp.float32))
        return jnp.maximum(rate, config.learning_rate_floor)

    return schedule


def reconstruction_objective(model: Model) -> Objective:
    """Stage I: 5 (1 - SSIM)/2 + MSE of both modalities, 2 * decomposition, 5 * gradient of the
    visible one.
    """

    def objective(
        params: Params,
        memory: Memory,
        examples: Batch,
        key: PRNGKey,
        progress: Scalar,
        axis_name: str | None = None,
    ) -> tuple[Scalar, Metrics]:
        visible, infrared = examples["visible"], examples["infrared"]
        result = model.reconstruct(params, visible, infrared)
        visible_hat, infrared_hat = result.image
        recon_visible = structure.reconstruction(visible, visible_hat)
        recon_infrared = structure.reconstruction(infrared, infrared_hat)
        gradient = structure.gradient_difference(visible, visible_hat)
        apart, low, high = decomposition.decomposition(
            *(result.parts[name] for name in PARTS), axis_name
        )
        loss = (
            recon_visible
            + recon_infrared
            + DECOMPOSITION_WEIGHT * apart
            + GRADIENT_WEIGHT * gradient
        )
        return loss, {
            "reconstruction_visible": recon_visible,
            "reconstruction_infrared": recon_infrared,
            "gradient": gradient,
            "decomposition": apart,
            "correlation_low": low,
            "correlation_high": high,
        }

    return objective


def fusion_objective(
    model: Model, config: CrossFuseConfig, teacher: Model | None = None
) -> Objective:
    """Stage II: intensity + 10 * gradient + 2 * decomposition + theta * MSE(weak crop, aggressive
    copy), and what else the config gives a weight.

    Decomposition is of networks that have low and high frequencies as parts. teacher: adds the
    imitation of its fused image, by the parameters that memory holds.
    """

    def objective(
        params: Params,
        memory: Memory,
        examples: Batch,
        key: PRNGKey,
        progress: Scalar,
        axis_name: str | None = None,
    ) -> tuple[Scalar, Metrics]:
        visible, infrared = examples["visible"], examples["infrared"]
        fused = model.apply(params, visible, infrared)
        intensity = fusion.maximum_intensity(visible, infrared, fused.image)
        gradient = fusion.maximum_gradient(visible, infrared, fused.image)
        loss = intensity + config.gradient_weight * gradient
        metrics = {"intensity": intensity, "gradient": gradient}
        if config.difference_weight > 0:
            difference = fusion.strongest_difference(visible, infrared, fused.image)
            loss = loss + config.difference_weight * difference
            metrics |= {"difference": difference}
        if config.ssim_weight > 0:
            ssim = structure.both_dissimilarities(visible, infrared, fused.image)
            loss = loss + config.ssim_weight * ssim
            metrics |= {"ssim": ssim}
        if config.correlation_weight > 0:
            unexplained = fusion.unexplained_differences(visible, infrared, fused.image)
            loss = loss + config.correlation_weight * unexplained
            metrics |= {"unexplained": unexplained}
        if fused.parts.keys() >= set(PARTS):
            apart, low, high = decomposition.decomposition(
                *(fused.parts[name] for name in PARTS), axis_name
            )
            loss = loss + DECOMPOSITION_WEIGHT * apart
            metrics |= {"decomposition": apart, "correlation_low": low, "correlation_high": high}
        if config.self_supervision > 0:
            keys = augment.example_keys(key, examples["index"])
            weak, aggressive = augment.weak_aggressive(keys, fused.image, crop=config.crop_size)
            consistency = structure.mean_square(weak, aggressive)
            theta = self_supervision_weight(config, progress)
            loss = loss + theta * consistency
            metrics |= {"consistency": consistency, "theta": theta}
        if teacher is not None:
            shown = teacher.apply(memory["teacher"], visible, infrared).image
            imitation = fusion.imitation(lax.stop_gradient(shown), fused.image)
            loss = loss + config.imitation * imitation
            metrics |= {"imitation": imitation}
        return loss, metrics

    return objective


def build(
    config: CrossFuseConfig,
    model: Model,
    facts: Facts,
    teacher: tuple[Model, Params] | None = None,
) -> Method:
    """CrossFuse's two stages; the first is for a fusion network that can reconstruct its inputs.

    teacher: a network with parameters, whose fused images stage II imitates.
    """
    if model.reconstruct is None and config.stage1_epochs > 0:
        raise ValueError(
            f"model {model.name!r} cannot reconstruct its inputs: set method.stage1_epochs to 0 "
            "to train it with stage II"
        )
    schedule = learning_rate(config, facts.steps_per_epoch)

    def optimizer() -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
            optax.scale_by_learning_rate(schedule),
        )

    modules = tuple(abstract_modules(model))
    transforms = {name: optimizer() for name in modules}
    stage1_modules = tuple(name for name in modules if not name.startswith("fuse_"))
    steps1 = math.ceil(config.stage1_epochs * facts.steps_per_epoch)
    steps2 = math.ceil(config.stage2_epochs * facts.steps_per_epoch)
    prepare = prepare_examples(config.flips, facts.kept_online, facts.target_means)
    plain = prepare_examples(flips=False)
    stages = []
    if steps1:
        objective = reconstruction_objective(model)
        tx = per_module(transforms, stage1_modules)
        stages.append(Stage("reconstruction", 0, steps1, prepare, plain, objective, tx))
    if steps2:
        objective = fusion_objective(model, config, None if teacher is None else teacher[0])
        stages.append(
            Stage(
                "fusion", steps1, steps2, prepare, plain, objective, per_module(transforms, modules)
            )
        )
    kept = {} if teacher is None else {"teacher": teacher[1]}
    return Method(
        "crossfuse", model.init, tuple(stages), lambda params: params, memory=lambda params: kept
    )


def abstract_modules(model: Model) -> dict[str, object]:
    """Top-level modules of a network's parameters, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0))
