"""SSVIF: fusion learns what segmentation needs, without labels (IEEE TIP 2026, arXiv 2509.22450).

Stage I trains the fusion network by the fusion loss. Stage II adds a light head on the fused
features (prediction A) and a segmentation model on the fused image (prediction B), and asks A and B
to agree. Head and segmentation model serve training only. Any network in `MODELS` can be trained;
the bounds of the paper's comparison, fusion loss only and labels, are the same code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxfuse.config import SSVIFConfig
from jaxfuse.losses import consistency, fusion, segmentation, structure
from jaxfuse.methods.base import (
    RANK,
    Facts,
    Memory,
    Method,
    Objective,
    Remember,
    Stage,
    per_module,
    remember_nothing,
)
from jaxfuse.methods.examples import prepare_examples
from jaxfuse.models import (
    Head,
    Model,
    Segmenter,
    create_segmenter,
    light_head,
)
from jaxfuse.ops import color
from jaxfuse.shapes import Batch, Features, Gray, Metrics, Params, PRNGKey, Rgb, Scalar

MODULES = ("fusion", "head", "segmenter")
FEW_CLASSES = 1.5
"""Classes in use below which two segmentations agree on nothing: a sure constant map has 1."""
FEW_TOLD_APART = 1.1
"""The same of classes told apart, of which maps that are the same in every image have 1."""
EARLY, NEW = 0.1, 100
"""Share and steps of stage II before which nothing is said of collapse, but at its end."""
LARGEST = 1e3
"""Of the weight that gradnorm gives: a guidance without gradient has nothing to be scaled up."""
TINY = 1e-12


class Networks(NamedTuple):
    """What is trained together."""

    fusion: Model
    head: Head
    segmenter: Segmenter


def fusion_loss(
    config: SSVIFConfig, visible: Gray, infrared: Gray, fused: Gray
) -> tuple[Scalar, Metrics]:
    """Intensity, gradient and SSIM, weighted."""
    terms = {
        "intensity": fusion.maximum_intensity(visible, infrared, fused),
        "gradient": fusion.maximum_gradient(visible, infrared, fused),
        "ssim": structure.both_dissimilarities(visible, infrared, fused),
    }
    weights = (config.intensity_weight, config.gradient_weight, config.ssim_weight)
    loss = sum(w * term for w, term in zip(weights, terms.values(), strict=True))
    return loss, terms


def cross_loss(
    config: SSVIFConfig,
    a: Features,
    b: Features,
    teacher: Features | None = None,
    axis_name: str | None = None,
) -> Scalar:
    """Symmetric: A follows B's target, B follows A's; mean of the two.

    teacher: logits of the pretrained anchor on the fused image; A's target is made of them instead
    of B, and B follows them as well as A.
    """

    a, b = (consistency.regions(x, config.region) for x in (a, b))
    if teacher is not None:
        teacher = consistency.regions(teacher, config.region)

    def target(logits: Features) -> Features:
        if config.anchor == "balanced":
            return consistency.balanced(
                logits, config.sinkhorn_epsilon, config.sinkhorn_steps, axis_name
            )
        return consistency.sharpened(logits, config.sharpness)

    follow = functools.partial(
        consistency.towards, kind=config.loss, weigh=config.confidence, axis_name=axis_name
    )
    to_a = follow(a, target(b if teacher is None else teacher))
    to_b = follow(b, target(a))
    if teacher is not None:
        to_b = (to_b + follow(b, target(teacher))) / 2.0
    return (to_a + to_b) / 2.0


def color_image(fused: Gray, colors: Rgb) -> Rgb:
    """The fused image as `jaxfuse fuse` writes it, which is what a segmentation model will see."""
    return color.replace_luma(colors, fused)


def ramp_up(progress: Scalar, share: float) -> Scalar:
    """exp(-5 (1 - t)^2), t from 0 to 1 over the first `share` of the stage; then 1."""
    t = jnp.clip(progress / share, 0.0, 1.0) if share > 0 else jnp.ones_like(progress)
    return jnp.exp(-5.0 * jnp.square(1.0 - t))


def averages(config: SSVIFConfig) -> tuple[Memory, Remember]:
    """Memory of the dwa rule: the two losses' averages over the last two windows of steps."""
    start = {
        "sums": jnp.zeros((2,), jnp.float32),
        "count": jnp.zeros((), jnp.int32),
        "last": jnp.ones((2,), jnp.float32),
        "before": jnp.ones((2,), jnp.float32),
    }

    def remember(memory: Memory, params: Params, metrics: Metrics) -> Memory:
        sums = memory["sums"] + jnp.stack([metrics["fusion_loss"], metrics["guidance_loss"]])
        count = memory["count"] + 1
        full = count >= config.weighting_window
        mean = sums / count.astype(jnp.float32)
        first = jnp.all(memory["last"] == 1.0) & jnp.all(memory["before"] == 1.0)
        return {
            "sums": jnp.where(full, 0.0, sums),
            "count": jnp.where(full, 0, count),
            "last": jnp.where(full, mean, memory["last"]),
            "before": jnp.where(full, jnp.where(first, mean, memory["last"]), memory["before"]),
        }

    return start, remember


def loss_weights(
    config: SSVIFConfig, memory: Memory, progress: Scalar, norms: tuple[Scalar, Scalar] | None
) -> tuple[Scalar, Scalar]:
    """(w_f, w_c). Constants to the gradient.

    fixed: 1 and guidance_weight. ramp: the latter grows from nearly 0. dwa: both times
    2 softmax(r / T), r = last average / the one before (Liu et al., CVPR 2019, eq. 7). gradnorm:
    w_c makes the gradients of both at the fused image and features as long as each other, up to
    `LARGEST`.
    """
    one = jnp.ones((), jnp.float32)
    if config.weighting == "ramp":
        return one, config.guidance_weight * ramp_up(progress, config.ramp)
    if config.weighting == "dwa":
        ratio = memory["dwa"]["last"] / jnp.maximum(memory["dwa"]["before"], TINY)
        share = 2.0 * jax.nn.softmax(ratio / config.weighting_temperature)
        return share[0], config.guidance_weight * share[1]
    if config.weighting == "gradnorm" and norms is not None:
        ratio = jnp.minimum(norms[0] / jnp.maximum(norms[1], TINY), LARGEST)
        return one, config.guidance_weight * ratio
    return one, config.guidance_weight * one


def _norms(
    pull: Callable[[tuple[Scalar, Scalar]], tuple[Gray, Features]], axis_name: str | None
) -> tuple[Scalar, Scalar]:
    """Norms of both losses' gradients at the fused image and features, over all devices."""

    def norm(cotangents: tuple[float, float]) -> Scalar:
        gradients = pull((jnp.float32(cotangents[0]), jnp.float32(cotangents[1])))
        square = sum(jnp.sum(jnp.square(g)) for g in gradients)
        return jnp.sqrt(square if axis_name is None else lax.pmean(square, axis_name))

    return norm((1.0, 0.0)), norm((0.0, 1.0))


def fusion_objective(networks: Networks, config: SSVIFConfig) -> Objective:
    """Stage I, and stage II of the lower bound: the fusion loss."""

    def objective(
        params: Params,
        memory: Memory,
        examples: Batch,
        key: PRNGKey,
        progress: Scalar,
        axis_name: str | None = None,
    ) -> tuple[Scalar, Metrics]:
        visible, infrared = examples["visible"], examples["infrared"]
        fused = networks.fusion.apply(params["fusion"], visible, infrared)
        loss, terms = fusion_loss(config, visible, infrared, fused.image)
        return loss, {"fusion_loss": loss, **terms}

    return objective


def guidance_loss(
    networks: Networks,
    config: SSVIFConfig,
    params: Params,
    memory: Memory,
    examples: Batch,
    image: Gray,
    features: Features,
    axis_name: str | None = None,
) -> tuple[Scalar, Metrics]:
    """Agreement of A (of the features) and B (of the image), or B's cross-entropy with labels."""
    shown = color_image(image, examples["color"])
    b = networks.segmenter.apply(params["segmenter"], shown)
    if config.guidance == "labels":
        loss, accuracy = segmentation.labels_loss(b, examples["labels"], axis_name)
        return loss, {"accuracy": accuracy}
    a = networks.head.apply(params["head"], features)
    teacher = None
    if "teacher" in memory:
        teacher = networks.segmenter.apply(memory["teacher"], shown)
    loss = cross_loss(config, a, b, teacher, axis_name)
    return loss, consistency.signs(a, b, axis_name)


def guided_objective(networks: Networks, config: SSVIFConfig) -> Objective:
    """Stage II: w_f * fusion loss + w_c * agreement of A and B, or B's cross-entropy."""

    def objective(
        params: Params,
        memory: Memory,
        examples: Batch,
        key: PRNGKey,
        progress: Scalar,
        axis_name: str | None = None,
    ) -> tuple[Scalar, Metrics]:
        visible, infrared = examples["visible"], examples["infrared"]
        fused = networks.fusion.apply(params["fusion"], visible, infrared)

        def losses(image: Gray, features: Features) -> tuple[tuple[Scalar, Scalar], Metrics]:
            whole, terms = fusion_loss(config, visible, infrared, image)
            guidance, seen = guidance_loss(
                networks, config, params, memory, examples, image, features, axis_name
            )
            return (whole, guidance), {**terms, **seen}

        if config.weighting == "gradnorm":
            (whole, guidance), pull, seen = jax.vjp(
                losses, fused.image, fused.features, has_aux=True
            )
            norms = _norms(pull, axis_name)
        else:
            (whole, guidance), seen = losses(fused.image, fused.features)
            norms = None
        w_f, w_c = lax.stop_gradient(loss_weights(config, memory, progress, norms))
        loss = w_f * whole + w_c * guidance
        return loss, {
            "fusion_loss": whole,
            "guidance_loss": guidance,
            RANK: whole + config.guidance_weight * guidance,
            "weight_fusion": w_f,
            "weight_guidance": w_c,
            **seen,
        }

    return objective


def collapse(config: SSVIFConfig, begun: int, record: Mapping[str, float]) -> list[str]:
    """What a log record says against the run; nothing before step `begun`, for new networks tell
    no classes apart yet.
    """
    if record.get("step", math.inf) < begun:
        return []
    used = record.get("classes_in_use", math.inf)
    told = record.get("classes_told_apart", math.inf)
    if used >= FEW_CLASSES and told >= FEW_TOLD_APART:
        return []
    if used < FEW_CLASSES:
        found = "the segmentations have collapsed"
    else:
        found = "the segmentations are the same in every image"
    anchor = "" if config.anchor != "none" else "use method.anchor = 'balanced' or 'pretrained', "
    return [
        f"{found}: {used:.2f} of {config.classes} classes in use, {told:.2f} told apart; agreeing "
        f"({record.get('agreement', math.nan):.0%}) they teach the fusion nothing: {anchor}train "
        "longer, or lower method.guidance_weight"
    ]


def optimizer(rate: float, steps: int, clip: float) -> optax.GradientTransformation:
    """Adam, the rate falling to 0 along a cosine over the module's own steps."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1))),
    )


def build(config: SSVIFConfig, model: Model, facts: Facts, start: Params | None = None) -> Method:
    """SSVIF's two stages for any fusion network.

    start: parameters of the segmentation model, or with `segmenter_start` fresh of its teacher, in
    place of random ones.
    """
    networks = make_networks(config, model)
    if config.guidance == "consistency" and config.anchor == "pretrained" and start is None:
        raise ValueError("a pretrained anchor needs the parameters of its segmentation model")
    steps1 = math.ceil(config.stage1_epochs * facts.steps_per_epoch)
    steps2 = math.ceil(config.stage2_epochs * facts.steps_per_epoch)
    rates = {
        "fusion": (config.learning_rate, steps1 + steps2),
        "head": (config.segmenter_learning_rate, steps2),
        "segmenter": (config.segmenter_learning_rate, steps2),
    }
    transforms = {name: optimizer(*rates[name], config.clip_norm) for name in MODULES}
    fresh = config.segmenter_start == "fresh"
    frozen = config.anchor == "pretrained" and config.teacher_decay == 1.0 and not fresh
    guided = config.guidance != "none"
    moving = ("fusion",)
    if guided:
        learns = config.guidance == "labels" or not frozen
        moving = ("fusion", "head", *(("segmenter",) if learns else ()))
    prepare = prepare_examples(
        config.flips, facts.kept_online, facts.target_means, colors=guided, vertical=False
    )
    plain = prepare_examples(flips=False, colors=guided)
    fuse = fusion_objective(networks, config)
    keep_teacher = config.guidance == "consistency" and config.anchor == "pretrained" and not frozen
    remember_losses: Remember | None = None
    losses_start: Memory = {}
    if guided and config.weighting == "dwa":
        losses_start, remember_losses = averages(config)

    def init(key: PRNGKey) -> Params:
        keys = jax.random.split(key, len(MODULES))
        params = {
            name: network.init(k) for name, network, k in zip(MODULES, networks, keys, strict=True)
        }
        if start is not None and not fresh:
            params["segmenter"] = jax.tree.map(jnp.asarray, start)
        return params

    def memory(params: Params) -> Memory:
        kept: Memory = {"dwa": losses_start} if remember_losses else {}
        if keep_teacher:
            teacher = start if fresh and start is not None else params["segmenter"]
            # A copy, for parameters are donated to the step.
            kept["teacher"] = jax.tree.map(lambda x: jnp.array(x, copy=True), teacher)
        return kept

    def remember(memory: Memory, params: Params, metrics: Metrics) -> Memory:
        new: Memory = {}
        if remember_losses:
            new["dwa"] = remember_losses(memory["dwa"], params, metrics)
        if keep_teacher:
            decay = config.teacher_decay
            new["teacher"] = jax.tree.map(
                lambda old, now: decay * old + (1.0 - decay) * now,
                memory["teacher"],
                params["segmenter"],
            )
        return new

    stages = []
    if steps1:
        tx = per_module(transforms, ("fusion",))
        stages.append(Stage("fusion", 0, steps1, prepare, plain, fuse, tx))
    if steps2:
        tx = per_module(transforms, moving)
        objective = guided_objective(networks, config) if guided else fuse
        stages.append(
            Stage(
                "guided" if guided else "fusion_only",
                steps1,
                steps2,
                prepare,
                plain,
                objective,
                tx,
                remember if keep_teacher or remember_losses else remember_nothing,
            )
        )
    early = max(math.ceil(EARLY * steps2), NEW)
    return Method(
        "ssvif",
        init,
        tuple(stages),
        lambda params: params["fusion"],
        memory,
        doubts=functools.partial(collapse, config, steps1 + min(early, steps2)),
    )


def make_networks(config: SSVIFConfig, model: Model) -> Networks:
    """The fusion network with a head that fits its features, and the segmentation model."""
    size = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    channels = jax.eval_shape(model.apply, params, size, size).features.shape[-1]
    return Networks(
        model,
        light_head(channels, config.classes, config.segmenter_dtype),
        create_segmenter(config.segmenter, config.classes, config.segmenter_dtype),
    )
