"""What is exported: a function of two images with its weights inside, and the sizes it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxfuse import models
from jaxfuse.config import UserError
from jaxfuse.config.errors import require
from jaxfuse.infer.predict import Fuser
from jaxfuse.shapes import Gray

Dtype = Literal["float32", "bfloat16"]

Run: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(visible luma, infrared) -> fused, float32 (batch, height, width, 1) each."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
OPSETS = range(18, 24)
"""Operator sets of ONNX that the graphs of all networks are tested in."""
DEFAULT_OPSET = 18
"""Known to the most runtimes."""
LARGEST_SIDE = 1 << 15


REMEDY = (
    'install the extra export: in a checkout, pip install -c constraints.txt -e ".[export]"; '
    'elsewhere, pip install "jaxfuse[export]"'
)
"""How to come by what exporting needs."""


class ExportError(UserError, ValueError):
    """A network that cannot be exported so; the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an exported network takes and where it runs. A size of None is any, from 1."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None
    platforms: tuple[str, ...] = DEFAULT_PLATFORMS
    """StableHLO: where the file can be run."""
    dtype: Dtype = "float32"
    """Of the arithmetic inside; images are float32."""
    opset: int = DEFAULT_OPSET
    """ONNX: version of its operators."""

    def __post_init__(self) -> None:
        for name, size in zip(("batch", "height", "width"), self.fixed, strict=True):
            require(
                size is None or 1 <= size <= LARGEST_SIDE,
                name,
                size,
                f"give a number from 1 to {LARGEST_SIDE}, or leave it out to take any",
            )
        for platform in self.platforms:
            require(
                platform in PLATFORMS,
                "platforms",
                platform,
                f"choose among {', '.join(PLATFORMS)}",
            )
        require(bool(self.platforms), "platforms", "", f"choose among {', '.join(PLATFORMS)}")
        require(self.dtype in get_args(Dtype), "dtype", self.dtype, "use float32 or bfloat16")
        require(
            self.opset in OPSETS, "opset", self.opset, f"use {OPSETS.start} to {OPSETS.stop - 1}"
        )

    @property
    def fixed(self) -> tuple[int | None, int | None, int | None]:
        """Batch, height and width, None where it may be any."""
        return self.batch, self.height, self.width

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether images of that (batch, height, width) fit."""
        return all(want in (None, have) for want, have in zip(self.fixed, shape, strict=True))

    def image(self) -> jax.ShapeDtypeStruct:
        """Both inputs, abstract: (batch, height, width, 1), symbolic where it may be any."""
        names = ("batch", "height", "width")
        sides = [str(size or name) for size, name in zip(self.fixed, names, strict=True)]
        return jax.ShapeDtypeStruct(export.symbolic_shape(f"{', '.join(sides)}, 1"), jnp.float32)

    def sizes(self) -> str:
        """The sizes in words."""
        sides = zip(("batch", "height", "width"), self.fixed, strict=True)
        return ", ".join(f"{name} {size or 'any'}" for name, size in sides)


def function(fuser: Fuser, platform: str) -> Callable[[Gray, Gray], Gray]:
    """The network as a function of luma and infrared alone, clipped to [0, 1], in the formulation
    for a platform: cpu, gpu, tpu or onnx.
    """

    def fused(visible: Gray, infrared: Gray) -> Gray:
        with models.traced_for(platform):
            image = fuser.model.apply(fuser.params, visible, infrared).image
        return jnp.clip(image.astype(jnp.float32), 0.0, 1.0)

    fused.__name__ = fuser.name
    return fused
