"""How much of the sources' edges the fused image keeps, and how many it adds: Qabf, Nabf."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import apart, sobel, total
from jaxfuse.shapes import Array


class Edges(NamedTuple):
    """Sobel responses of one image."""

    squared: Array
    """Magnitude, squared: whole numbers, so that two can be compared exactly."""
    magnitude: Array
    angle: Array
    """atan(-gy / gx), pi / 2 where gx = 0."""


@apart("mode")
def _edges(image: Array, mode: str) -> Edges:
    gx, gy = sobel(image, mode)
    squared = gx * gx + gy * gy
    upright = gx == 0
    angle = jnp.arctan(-gy / jnp.where(upright, 1.0, gx))
    return Edges(squared, jnp.sqrt(squared), jnp.where(upright, math.pi / 2, angle))


def edges(t: Triple, mode: str) -> tuple[Edges, ...]:
    """Of visible, infrared and fused image; mode: what lies outside, as in `numpy.pad`."""
    return tuple(_edges(image, mode) for image in t.images)


def _strength(source: Edges, fused: Edges, equal: Array | float) -> Array:
    """The smaller magnitude over the larger; `equal` where they are equal."""
    smaller = jnp.minimum(source.magnitude, fused.magnitude)
    larger = jnp.maximum(source.magnitude, fused.magnitude)
    same = source.squared == fused.squared
    return jnp.where(same, equal, smaller / jnp.where(same, 1.0, larger))


def _alignment(source: Edges, fused: Edges) -> Array:
    """1 for edges along the same line, whichever side is brighter; 0 for perpendicular ones."""
    turn = jnp.abs(source.angle - fused.angle)
    return jnp.abs(turn - math.pi / 2) * (2.0 / math.pi)


def _preserved(strength: Array, alignment: Array) -> Array:
    """Xydeas and Petrovic, 2000, eqs. 5 to 7: the product of two sigmoids."""
    by_strength = 0.9994 * jax.nn.sigmoid(15.0 * (strength - 0.5))
    by_angle = 0.9879 * jax.nn.sigmoid(22.0 * (alignment - 0.8))
    return by_strength * by_angle


@apart()
def _kept(source: Edges, fused: Edges) -> Array:
    quality = _preserved(_strength(source, fused, 1.0), _alignment(source, fused))
    return quality * source.magnitude


@apart("scale")
def _kept_as_published(source: Edges, fused: Edges, scale: float) -> Array:
    """Ratio 1 becomes `scale` times the magnitude; large turns align negatively."""
    strength = _strength(source, fused, scale * source.magnitude)
    turn = jnp.abs(source.angle - fused.angle)
    return _preserved(strength, 1.0 - turn * (2.0 / math.pi)) * source.magnitude


def edge_preservation(t: Triple) -> Array:
    """Equal magnitudes count as 1, opposite directions as one; the border repeated.

    NaN where both sources are constant.
    """
    *sources, fused = t.shared(edges, "edge")
    kept = sum(total(_kept(source, fused)) for source in sources)
    return kept / sum(total(source.magnitude) for source in sources)


def _edge_preservation(t: Triple, scale: float) -> Array:
    *sources, fused = t.shared(edges, "constant")
    kept = sum(total(_kept_as_published(source, fused, scale)) for source in sources)
    return kept / sum(total(source.magnitude) for source in sources)


def edge_preservation_cddfuse(t: Triple) -> Array:
    """Zeros outside; where magnitudes are equal, the magnitude stands for their ratio."""
    return _edge_preservation(t, 1.0)


def edge_preservation_vifb(t: Triple) -> Array:
    """The same with levels multiplied by 255, which only shows where magnitudes are equal."""
    return _edge_preservation(t, 255.0)


@apart()
def _weight(source: Edges) -> Array:
    """g^1.5 from g = 2 on, g = magnitude / 8."""
    magnitude = source.magnitude / 8.0
    # Compared before the root and the division, where whole levels are exact.
    return jnp.where(source.squared >= 256.0, magnitude * jnp.sqrt(magnitude), 0.0)


@apart()
def _lost(source: Edges, other: Edges, fused: Edges) -> Array:
    """What is not kept of `source` where the fused edge is the strongest of the three."""
    strongest = (fused.squared > source.squared) & (fused.squared > other.squared)
    strength = jnp.where(source.squared == 0, 0.0, _strength(source, fused, 1.0))
    # 1 - sqrt(a b) from 1 - a and 1 - b, which keep their digits where nearly nothing is lost.
    missing_strength = 1e-4 + 0.9999 * jax.nn.sigmoid(19.0 * (0.5 - strength))
    missing_angle = 5e-4 + 0.9995 * jax.nn.sigmoid(22.0 * (0.5 - _alignment(source, fused)))
    missing = missing_strength + missing_angle - missing_strength * missing_angle
    return jnp.where(strongest, missing / (1.0 + jnp.sqrt(1.0 - missing)), 0.0)


def added_edges(t: Triple) -> Array:
    """Petrovic's artefacts as modified by Kumar, 2013: loss where the fused edge is the strongest.

    Sobel / 8, border mirrored. NaN where no edge of a source reaches 2.
    """
    visible, infrared, fused = t.shared(edges, "reflect")
    weights = _weight(visible), _weight(infrared)
    lost = _lost(visible, infrared, fused), _lost(infrared, visible, fused)
    total_lost = sum(total(x * w) for x, w in zip(lost, weights, strict=True))
    return total_lost / sum(total(w) for w in weights)
