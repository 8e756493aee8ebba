"""Segmentation against labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxfuse.ops.resize import bilinear
from jaxfuse.shapes import IGNORE_LABEL, Features, Labels, Scalar


def labels_loss(
    logits: Features, labels: Labels, axis_name: str | None = None
) -> tuple[Scalar, Scalar]:
    """(cross-entropy, share of right pixels), means over the labelled pixels of all devices.

    logits (b, _, _, classes) are resized to the labels, (b, h, w), bilinear; label 255 counts in
    nothing. A batch without a labelled pixel has loss 0.
    """
    logits = bilinear(logits.astype(jnp.float32), *labels.shape[1:])
    counted = labels != IGNORE_LABEL
    wanted = jnp.where(counted, labels, 0)
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(logits, axis=-1) == wanted) & counted
    count = jnp.sum(counted).astype(jnp.float32)
    if axis_name is not None:
        # Devices hold unequal numbers of labelled pixels, and the step averages over devices.
        count = lax.pmean(count, axis_name)
    count = jnp.maximum(count, 1.0)
    return jnp.sum(jnp.where(counted, each, 0.0)) / count, jnp.sum(right) / count
