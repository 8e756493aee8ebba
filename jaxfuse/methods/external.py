"""Offline Top-K alignment: the external view of CrossFuse, once over a whole external set (methods
as in sec. III-B).
"""

from __future__ import annotations

import dataclasses
import zlib

import jax.numpy as jnp
import numpy as np

from jaxfuse.config import ConfigError, DataConfig
from jaxfuse.data.pairs import DataError, Pairs
from jaxfuse.data.patches import PatchIndex, grid_means, read_patches
from jaxfuse.ops import align

STRONG = 2.0
"""A gamma beyond this, or below its inverse, says that two sets hardly match."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which external patches were kept, and what alignment did to them. Grey levels, red first."""

    target_means: np.ndarray
    """(3,) mean of the target set's patches."""
    candidates: int
    """Patches there were to choose from."""
    stems: tuple[str, ...]
    """Image of each kept patch, closest first."""
    positions: np.ndarray
    """(k, 2) y, x of each kept patch, pixels."""
    distances: np.ndarray
    """(k,) sum over the channels of |patch mean - target mean|."""
    gamma: np.ndarray
    """(3,) exponent of each channel: E' = 255 (E / 255)^(1 / gamma)."""
    reached: np.ndarray
    """(3,) whether the channel's mean could be moved to the target's; gamma is 1 where not."""
    before: np.ndarray
    """(3,) mean of the kept patches as they were."""
    after: np.ndarray
    """(3,) mean of the kept patches aligned."""
    original: np.ndarray
    """(k, s, s, 3) visible patches as they were, [0, 1]."""
    visible: np.ndarray
    """(k, s, s, 3) visible patches aligned, [0, 1]."""
    infrared: np.ndarray
    """(k, s, s, 1) infrared patches, untouched."""

    @property
    def error(self) -> float:
        """Sum over the channels of |after - target|; the published code's `alignment_loss`."""
        return float(np.abs(self.after - self.target_means).sum())

    def doubts(self) -> list[str]:
        """What speaks against the external set, in words."""
        found = [
            f"{name}: no gamma moves the kept patches' mean to the target's, left as it was"
            for name, reached in zip(("red", "green", "blue"), self.reached, strict=True)
            if not reached
        ]
        if not all(1 / STRONG < g < STRONG for g in self.gamma):
            found.append(
                f"gamma {', '.join(f'{g:.2f}' for g in self.gamma)} is strong: the sensors' images "
                "hardly match, and dark parts of the aligned patches show noise and false colours"
            )
        return found

    def summary(self) -> dict:
        """The selection as plain numbers, for JSON."""
        return {
            "target_means": self.target_means.tolist(),
            "candidates": self.candidates,
            "kept": len(self.stems),
            "gamma": self.gamma.tolist(),
            "reached": self.reached.tolist(),
            "means_before": self.before.tolist(),
            "means_after": self.after.tolist(),
            "error": self.error,
            "checksum": zlib.crc32(self.infrared.tobytes(), zlib.crc32(self.original.tobytes())),
            "patches": [
                {"stem": stem, "y": int(y), "x": int(x), "distance": float(d)}
                for stem, (y, x), d in zip(self.stems, self.positions, self.distances, strict=True)
            ],
        }


def target_means(target: Pairs, data: DataConfig) -> np.ndarray:
    """mu: mean red, green, blue of the target's grid patches, grey levels, (3,) float64."""
    means = grid_means(target, data.patch_size, data.stride, data.threads)
    if not len(means):
        raise DataError("the target set has no patches: lower data.patch_size or add images")
    return means.mean(axis=0)


def select(
    target: Pairs, external: Pairs, data: DataConfig, k: int, field: str = "data.external.top_k"
) -> Selection:
    """The k external patches closest to the target sensor in colour, gamma-aligned to it.

    Patches are cut on the grid of `data`. field: what the user calls k. Raises ConfigError where k
    exceeds the external patches.
    """
    mu = target_means(target, data)
    index = PatchIndex(external, data.patch_size, data.stride)
    if k > len(index):
        raise ConfigError(
            f"{field} = {k}, but the external set has {len(index)} patches of "
            f"{data.patch_size} pixels at stride {data.stride}: lower it or data.stride, or add "
            "images"
        )
    means = grid_means(external, data.patch_size, data.stride, data.threads)
    goal = jnp.asarray(mu, jnp.float32)
    chosen = align.select_top_k(jnp.asarray(means, jnp.float32), goal, k)
    rows = np.asarray(chosen.indices)
    images, positions = index.image[rows], index.position[rows]
    patches = read_patches(external, images, positions, data.patch_size, data.threads)
    fit = align.fit_gamma_report(align.histogram(patches.visible), goal)
    aligned = np.asarray(align.apply_gamma(patches.visible, fit.gamma))

    def mean(x: np.ndarray) -> np.ndarray:
        return 255.0 * x.mean(axis=(0, 1, 2), dtype=np.float64)

    return Selection(
        target_means=mu,
        candidates=len(index),
        stems=tuple(external.stem(int(i)) for i in images),
        positions=np.asarray(positions),
        distances=np.asarray(chosen.distances),
        gamma=np.asarray(fit.gamma),
        reached=np.asarray(fit.reached),
        before=mean(patches.visible),
        after=mean(aligned),
        original=patches.visible,
        visible=aligned,
        infrared=patches.infrared,
    )
