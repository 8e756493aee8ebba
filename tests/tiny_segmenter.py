"""A segmentation network that compiles in a moment, in place of `segformer_tiny`.

Squares of 4 x 4 pixels go through a hidden layer that also sees the mean of the image.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from jaxfuse import models
from jaxfuse.models import Compute, Segmented, Segmenter
from jaxfuse.shapes import Features, Image, Params, PRNGKey

NAME = "segformer_tiny"
CELL, HIDDEN, SMALLEST = 4, 12, 32


def create(classes: int, compute: Compute) -> Segmenter:
    """A network with the parameters encoder/embed and head/classifier/{weight,bias}."""

    def init(key: PRNGKey) -> Params:
        first, second = jax.random.split(key)
        return {
            "encoder": {"embed": 0.2 * jax.random.normal(first, (CELL * CELL * 3, HIDDEN))},
            "head": {
                "classifier": {
                    "weight": 0.3 * jax.random.normal(second, (HIDDEN, classes)),
                    "bias": jnp.zeros((classes,)),
                }
            },
        }

    def network(params: Params, image: Image) -> Segmented:
        b, height, width, _ = image.shape
        pad = ((0, 0), (0, -height % CELL), (0, -width % CELL), (0, 0))
        image = jnp.pad(jnp.broadcast_to(image, (b, height, width, 3)), pad, "edge")
        rows, columns = image.shape[1] // CELL, image.shape[2] // CELL
        cells = image.reshape(b, rows, CELL, columns, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
        tokens = compute.cast(cells.reshape(b, rows, columns, CELL * CELL * 3))
        hidden = jnp.tanh(tokens @ compute.cast(params["encoder"]["embed"]))
        hidden = hidden - hidden.mean((1, 2), keepdims=True)
        head = params["head"]["classifier"]
        logits = (hidden @ compute.cast(head["weight"])).astype(jnp.float32)
        return Segmented(logits + head["bias"][None, None, None, :], (hidden,))

    def apply(params: Params, image: Image) -> Features:
        if min(image.shape[1:3]) < SMALLEST:
            raise ValueError(f"{NAME}: the image is {image.shape}: needs {SMALLEST} pixels")
        return network(params, 2.0 * image - 1.0).logits

    return Segmenter(NAME, classes, init, apply, network, SMALLEST)


@pytest.fixture(autouse=True, scope="module")
def quick_segmenter() -> Iterator[None]:
    """For a test module to import: every segformer_tiny of it is the network above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SEGMENTERS, NAME, create)
        yield
