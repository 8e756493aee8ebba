"""Scores of fused images: checks what it is given, then one compiled program per convention."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfuse.metrics.gray import CHANNELS
from jaxfuse.metrics.intensity import spatial_frequency
from jaxfuse.metrics.table import CONVENTIONS, METRICS, Definition
from jaxfuse.metrics.triple import Triple
from jaxfuse.shapes import Array

VERSION = 1
"""Of the definitions: counts up with every change that moves a value by more than rounding."""

DType = Literal["float32", "float64"]
COLOR = "vifb_color"
"""The convention that scores colours; all others score gray."""


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r}: use one of {', '.join(CONVENTIONS)}")


def _definition(name: str, convention: str) -> Definition | None:
    definitions = METRICS[name].definitions
    return definitions.get("vifb" if convention == COLOR else convention)


def names(convention: str, size: tuple[int, int] | None = None) -> tuple[str, ...]:
    """The metrics a convention defines, in the table's order.

    size: (height, width) of the images; leaves out what needs larger ones.
    """
    _check_convention(convention)
    side = None if size is None else min(size)
    found = ((name, _definition(name, convention)) for name in METRICS)
    return tuple(
        name for name, d in found if d is not None and (side is None or d.smallest <= side)
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """What a number is: goes beside it wherever it is written."""

    metric: str
    title: str
    convention: str
    channel: str
    direction: str
    """higher, lower or unclear: which is better."""
    unit: str
    low: float | None
    high: float | None
    version: int = VERSION
    """Of the definition."""


def describe(convention: str, chosen: Sequence[str] | None = None) -> tuple[Row, ...]:
    """For each metric, what a result row records besides its value."""
    rows = []
    for name in _chosen(convention, chosen):
        d = _definition(name, convention)
        assert d is not None
        rows.append(
            Row(
                name,
                METRICS[name].title,
                convention,
                CHANNELS[convention],
                d.direction or METRICS[name].direction,
                d.unit,
                d.low,
                d.high,
            )
        )
    return tuple(rows)


def _chosen(convention: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    known = names(convention)
    if chosen is None:
        return known
    if isinstance(chosen, str):
        raise TypeError(f"names={chosen!r}: give a list of names, such as [{chosen!r}]")
    for name in chosen:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}: use some of {', '.join(METRICS)}")
        if name not in known:
            raise ValueError(f"{convention} does not define {name}: it defines {', '.join(known)}")
    if not chosen:
        raise ValueError("no metric named: leave names out for all of them")
    return tuple(dict.fromkeys(chosen))


def _check_levels(image: Any, what: str) -> None:
    """Raises for numbers that cannot be grey levels 0..255; cannot look inside a traced program."""
    kind = np.dtype(image.dtype)
    if kind != np.uint8 and not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"{what}: dtype {kind}: give uint8, or floats in 0..255")
    if isinstance(image, jax.core.Tracer) or kind == np.uint8:
        return
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 255.0):
        raise ValueError(
            f"{what}: levels from {low:g} to {high:g}: give grey levels 0..255, without NaN"
        )
    if 0.0 < high <= 1.0 and bool(((image > 0) & (image < 1)).any()):
        raise ValueError(f"{what}: levels from {low:g} to {high:g}: multiply by 255")


def _check_images(fused: Any, visible: Any, infrared: Any, convention: str) -> tuple[int, int]:
    """(height, width) of three images that fit together."""
    given = {"fused": fused, "visible": visible, "infrared": infrared}
    axes = {name: 4 if convention == COLOR and name != "infrared" else 3 for name in given}
    for name, image in given.items():
        shape = tuple(image.shape)
        if len(shape) in (3, 4) and axes[name] == 3 and shape[-1] in (1, 3):
            raise ValueError(
                f"{name}: shape {shape}: {convention} scores gray images (batch, height, width): "
                "convert with metrics.to_gray, and put [None] before a single image"
            )
        if len(shape) != axes[name] or 0 in shape or (axes[name] == 4 and shape[-1] != 3):
            form = "(batch, height, width, 3)" if axes[name] == 4 else "(batch, height, width)"
            raise ValueError(f"{name}: shape {shape}: {convention} expects {form}")
        if shape[:3] != tuple(fused.shape[:3]):
            raise ValueError(
                f"{name} is {shape[:3]}, fused is {tuple(fused.shape[:3])} (batch, height, width): "
                "give images of one size; nothing is resized here"
            )
        _check_levels(image, name)
    return fused.shape[1], fused.shape[2]


def _planes(image: Array) -> Array:
    """(b, h, w, 3) to (3 b, h, w)."""
    return jnp.moveaxis(image, -1, 0).reshape(-1, *image.shape[1:3])


def _score_color(
    fused: Array, visible: Array, infrared: Array, chosen: tuple[str, ...]
) -> dict[str, Array]:
    batch = fused.shape[0]
    repeated = jnp.concatenate([infrared] * 3)
    t = Triple(_planes(fused), _planes(visible), repeated)
    found = {}
    for name in chosen:
        if name == "SF":
            # Its sums run over an (h, 3 w) matrix: the steps from one channel to the next count.
            wide = jnp.moveaxis(fused, -1, 2).reshape(*fused.shape[:2], -1)
            found[name] = spatial_frequency(Triple(wide, wide, wide))
        else:
            per_channel = METRICS[name].definitions["vifb"].compute(t).reshape(3, batch)
            found[name] = jnp.mean(per_channel, axis=0)
    return found


@functools.partial(jax.jit, static_argnames=("convention", "chosen", "dtype"))
def _score(
    fused: Array,
    visible: Array,
    infrared: Array,
    convention: str,
    chosen: tuple[str, ...],
    dtype: DType,
) -> dict[str, Array]:
    fused, visible, infrared = (x.astype(dtype) for x in (fused, visible, infrared))
    if convention == COLOR:
        return _score_color(fused, visible, infrared, chosen)
    t = Triple(fused, visible, infrared)
    return {name: METRICS[name].definitions[convention].compute(t) for name in chosen}


def forget() -> None:
    """Drops what has been compiled for other sizes: about a hundred megabytes each."""
    _score.clear_cache()


@contextlib.contextmanager
def _precision(dtype: DType) -> Iterator[None]:
    if dtype == "float64":
        with jax.enable_x64(True):
            yield
    else:
        yield


def score(
    fused: Array | np.ndarray,
    visible: Array | np.ndarray,
    infrared: Array | np.ndarray,
    convention: str = "jaxfuse",
    names: Sequence[str] | None = None,
    dtype: DType = "float32",
) -> dict[str, Array]:
    """Metrics of fused images against their sources: {name: (batch,)}, in the table's order.

    Images (batch, height, width) of grey levels 0..255, uint8 or floats, made by `to_gray` with the
    same convention; `vifb_color` takes fused and visible in colour, (batch, height, width, 3).
    names: some of `names(convention)`; all where left out. dtype: of the arithmetic; float64 needs
    a CPU or GPU, and JAX's 64-bit mode where this is called inside a jitted function.
    A metric that is undefined for an image is NaN there, never anything else (docs/metrics.md lists
    the cases); a PSNR without error is infinite. Images smaller than a metric's windows are errors.
    """
    _check_convention(convention)
    chosen = _chosen(convention, names)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype {dtype!r}: use float32 or float64")
    fused, visible, infrared = (
        x if hasattr(x, "shape") else np.asarray(x) for x in (fused, visible, infrared)
    )
    height, width = _check_images(fused, visible, infrared, convention)
    for name in chosen:
        definition = _definition(name, convention)
        assert definition is not None
        if min(height, width) < definition.smallest:
            raise ValueError(
                f"{name} ({convention}) needs images of {definition.smallest} pixels a side or "
                f"more, these are {height}x{width}: leave it out, as "
                "names=metrics.names(convention, size=(height, width)) does"
            )
    with _precision(dtype):
        return _score(fused, visible, infrared, convention, chosen, dtype)
