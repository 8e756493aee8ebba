"""From the pipeline's batch to what objectives read: online alignment, flips, luma."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxfuse.methods.base import Prepare
from jaxfuse.ops import align, augment, color
from jaxfuse.shapes import IGNORE_LABEL, Batch, Metrics, PRNGKey

EXTERNAL_INDEX = 1 << 30
"""Added to the index of external patches, so that they and target patches never share a random key.
"""


def prepare_examples(
    flips: bool,
    keep: int = 0,
    target_means: tuple[float, ...] | None = None,
    colors: bool = False,
    vertical: bool = True,
) -> Prepare:
    """Batch of the pipeline -> luma and infrared patches, with the online Top-K patches appended.

    Batch: visible (b, s, s, 3), infrared (b, s, s, 1), index (b,), labels (b, s, s) where there are
    any, and for online alignment (keep > 0) pool_visible and pool_infrared, whose labels count as
    unknown. The selection is over the pools of all devices; each device gets an equal share of it.
    flips: left-right and, if `vertical`, up-down. colors: give the colours too, as "color".
    """
    if keep and target_means is None:
        raise ValueError("online alignment needs the target set's mean colours")

    def prepare(batch: Batch, key: PRNGKey, axis_name: str | None = None) -> tuple[Batch, Metrics]:
        images = {name: batch[name] for name in ("visible", "infrared", "labels") if name in batch}
        index = batch["index"].astype(jnp.int32)
        notes: Metrics = {}
        if keep:
            aligned = align.align_top_k(
                batch["pool_visible"],
                jnp.asarray(target_means, jnp.float32),
                keep,
                companions=(batch["pool_infrared"],),
                axis_name=axis_name,
            )
            share = aligned.patches.shape[0]
            rank = 0 if axis_name is None else lax.axis_index(axis_name)
            mine = lax.dynamic_slice_in_dim(aligned.indices, rank * share, share)
            more = {
                "visible": aligned.patches,
                "infrared": aligned.companions[0],
                "labels": jnp.full(aligned.patches.shape[:3], IGNORE_LABEL, jnp.int32),
            }
            images = {name: jnp.concatenate([x, more[name]]) for name, x in images.items()}
            index = jnp.concatenate([index, EXTERNAL_INDEX + mine])
            notes = {
                "external/selected": aligned.indices,
                "external/distance": jnp.mean(aligned.distances),
                "external/gamma": jnp.mean(aligned.gamma),
            }
        if flips:
            keys = augment.example_keys(key, index)
            flipped = augment.paired_flips(keys, *images.values(), vertical=vertical)
            images = dict(zip(images, flipped, strict=True))
        given = {"color": images["visible"]} if colors else {}
        luma = color.luma(images["visible"])
        return {**images, "visible": luma, **given, "index": index}, notes

    return prepare
