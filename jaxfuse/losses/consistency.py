"""Agreement of two segmentations without labels: targets, distances, signs of collapse.

Cross-segmentation consistency of SSVIF (arXiv 2509.22450): the segmentation from fused features (A)
and the one from the fused image (B) shall be the same. The paper gives no formula; these are ours.
Logits are (b, h, w, k); with `axis_name`, sums run over all devices' pixels.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxfuse.shapes import Array, Features, Metrics, Scalar

Distance = Literal["cross_entropy", "kl", "cosine"]
LEAST_WEIGHT = 0.1
"""Of a pixel whose target is all classes alike."""
TINY = 1e-12


def _add_up(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def regions(logits: Features, side: int) -> Features:
    """Means over squares of side x side cells, (b, ceil(h / side), ceil(w / side), k); squares at
    the lower and right border are of what there is.
    """
    if side == 1:
        return logits
    box, step = (1, side, side, 1), (1, side, side, 1)
    height, width = logits.shape[1:3]
    pad = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))

    def summed(x: Array) -> Array:
        return lax.reduce_window(x, 0.0, lax.add, box, step, pad)

    count = summed(jnp.ones((1, height, width, 1), jnp.float32))
    return summed(logits.astype(jnp.float32)) / count


def balanced(
    logits: Features, epsilon: float, rounds: int, axis_name: str | None = None
) -> Features:
    """Assignment of pixels to classes that uses every class equally, closest to the logits.

    Sinkhorn-Knopp on exp(logits / epsilon): columns (classes) are scaled to equal sums over all
    pixels of the batch, rows (pixels) to 1, `rounds` times. Cuturi, NeurIPS 2013; as targets: Caron
    et al., NeurIPS 2020, eq. 3. A map of one class only is the worst there is, not a minimum.
    """
    scores = logits.astype(jnp.float32) / epsilon
    classes = logits.shape[-1]
    pixels = _add_up(jnp.float32(scores.size // classes), axis_name)
    offset = jnp.zeros((1, 1, 1, classes), jnp.float32)  # log factor of each class
    for _ in range(rounds):
        shares = jax.nn.softmax(scores + offset, axis=-1)
        used = _add_up(jnp.sum(shares, axis=(0, 1, 2), keepdims=True), axis_name) / pixels
        offset = offset - jnp.log(jnp.maximum(used * classes, TINY))
    return jax.nn.softmax(scores + offset, axis=-1)


def sharpened(logits: Features, sharpness: float) -> Features:
    """softmax(sharpness * logits)."""
    return jax.nn.softmax(sharpness * logits.astype(jnp.float32), axis=-1)


def certainty(target: Features) -> Array:
    """1 - entropy / log k, (b, h, w): 1 for one class, 0 for all alike."""
    entropy = -jnp.sum(target * jnp.log(jnp.maximum(target, TINY)), axis=-1)
    return 1.0 - entropy / jnp.log(target.shape[-1])


def distance(logits: Features, target: Features, kind: Distance) -> Array:
    """How far a prediction is from its target, per pixel, (b, h, w), >= 0.

    cross_entropy: -sum t log p. kl: that less the target's entropy. cosine: 1 - cos(p, t).
    """
    if kind == "cosine":
        p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        norms = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(target, axis=-1)
        return 1.0 - jnp.sum(p * target, axis=-1) / jnp.maximum(norms, TINY)
    each = -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    if kind == "kl":
        each = each + jnp.sum(target * jnp.log(jnp.maximum(target, TINY)), axis=-1)
    return each


def towards(
    logits: Features, target: Features, kind: Distance, weigh: bool, axis_name: str | None = None
) -> Scalar:
    """Mean distance to a target whose gradient is stopped; `weigh` by the target's certainty."""
    target = lax.stop_gradient(target)
    each = distance(logits, target, kind)
    if not weigh:
        return jnp.mean(each)
    # Never 0: what balancing makes of a nearly constant map is hardly sure, and must still pull.
    weight = LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * certainty(target)
    # Relative to the mean certainty of all devices: the loss keeps its scale while targets are
    # still unsure.
    mean = jnp.mean(weight) if axis_name is None else lax.pmean(jnp.mean(weight), axis_name)
    return jnp.mean(weight * each) / jnp.maximum(mean, TINY)


def _entropy(p: Array) -> Array:
    """Of the last axis, in nats."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, TINY)), axis=-1)


def signs(a: Features, b: Features, axis_name: str | None = None) -> Metrics:
    """What shows whether two segmentations mean anything.

    classes_in_use: exp of the entropy of the mean prediction, 1 to k; classes_told_apart: exp of
    what a cell's class says about the image it is in (mutual information at equal places, over the
    images of the batch; of one image alone, over its cells), which is 1 for maps that are the same
    in every image, sure or not; both of the worse of the two. confidence: mean largest probability,
    of both; agreement: share of the segmentations' cells with equal classes.
    """

    def over_devices(x: Array) -> Array:
        return x if axis_name is None else lax.pmean(x, axis_name)

    images = a.shape[0] * (1 if axis_name is None else lax.psum(1, axis_name))
    used, told, sure = [], [], []
    for logits in (a, b):
        p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        there = over_devices(jnp.mean(p, axis=0))
        mean = jnp.mean(there, axis=(0, 1))
        spread, unsure = _entropy(mean), over_devices(jnp.mean(_entropy(p)))
        among = jnp.mean(_entropy(there)) if images > 1 else spread
        used.append(jnp.exp(spread))
        told.append(jnp.exp(among - unsure))
        sure.append(jnp.mean(jnp.max(p, axis=-1)))
    equal = jnp.mean((jnp.argmax(a, axis=-1) == jnp.argmax(b, axis=-1)).astype(jnp.float32))
    return {
        "classes_in_use": jnp.minimum(*used),
        "classes_told_apart": jnp.minimum(*told),
        "confidence": (sure[0] + sure[1]) / 2.0,
        "agreement": equal,
    }
