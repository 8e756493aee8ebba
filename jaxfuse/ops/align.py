"""Top-K selection of external patches and their gamma: the external view of CrossFuse.

arXiv 2502.14493, sec. III-B. A *target* sensor has channel means mu (grey levels 0..255). Of a
pool of *external* patches the K whose channel means are closest are kept, and one gamma per channel
moves the kept patches' means onto mu. Everything is pure and compiles. With `axis_name`, inside
`pmap` or `shard_map`, the pool is sharded over that axis and the result is that of a single device.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Num

from jaxfuse.shapes import Array, Float, Int

LEVELS = 256
_STEPS = 65535
# Bounds of log(1 / gamma). Beyond them the mean is within 1e-3 grey level of where it ends.
_LOG_POWER_MIN, _LOG_POWER_MAX = math.log(1e-7), math.log(1e4)
_BISECTIONS = 32
_REACHED = 1e-3


class TopK(NamedTuple):
    """The selected rows, closest first. The same on every device."""

    indices: Int[Array, " k"]
    """int32 rows of the whole pool."""
    distances: Float[Array, " k"]
    """Grey levels, ascending."""


class GammaFit(NamedTuple):
    """What a fit found, per channel."""

    gamma: Float[Array, " c"]
    error: Float[Array, " c"]
    """|mean after correction - target|, grey levels."""
    reached: Bool[Array, " c"]
    """False where no gamma reaches the target: gamma is 1 there."""


class Aligned(NamedTuple):
    """The kept patches, corrected. Arrays that start with n hold this device's share of the K."""

    indices: Int[Array, " k"]
    """Rows of the whole pool, closest first; the same on every device."""
    distances: Float[Array, " k"]
    gamma: Float[Array, " c"]
    """One for all kept patches, over all devices."""
    patches: Float[Array, "n h w c"]
    """Corrected, [0, 1]."""
    companions: tuple[Array, ...]
    """Rows of the companions that belong to `patches`, untouched."""
    error: Float[Array, " c"]
    """What the correction leaves, grey levels."""
    reached: Bool[Array, " c"]
    """False where no gamma reaches the target."""


def _is_bytes(patches: Any, name: str) -> bool:
    if patches.dtype == jnp.uint8:
        return True
    if not jnp.issubdtype(patches.dtype, jnp.floating):
        raise ValueError(f"{name}: dtype {patches.dtype}: give uint8, or floats in [0, 1]")
    return False


def _means(patches: Array | np.ndarray, white: float) -> Array:
    """Mean over height and width of uint8 or [0, 1], on a scale where white is `white`."""
    is_bytes = _is_bytes(patches, "channel_means")
    patches = jnp.asarray(patches)
    _, height, width, _ = patches.shape
    if is_bytes:
        steps, counts = LEVELS - 1, patches.astype(jnp.int32)
    else:
        steps = _STEPS
        unit = jnp.clip(patches.astype(jnp.float32), 0.0, 1.0)
        counts = jnp.round(unit * float(steps)).astype(jnp.int32)
    total = jnp.sum(counts, axis=2)
    if height * width * steps < 2**31:
        total = jnp.sum(total, axis=1).astype(jnp.float32)
    else:
        total = jnp.sum(total.astype(jnp.float32), axis=1)
    # On a grid of powers of two, so that the difference in `distances` rounds the same whether or
    # not a compiler contracts it with this product: otherwise ties would break by chance.
    grid = 2.0**16 if white > 1.0 else 2.0**24
    means = jnp.round(total * (white / (height * width * steps)) * grid) / grid
    if is_bytes:
        return means
    # Also false for what is not a number.
    within = jnp.all((patches >= 0.0) & (patches <= 1.0), axis=(1, 2))
    return jnp.where(within, means, jnp.nan)


def channel_means(patches: Num[Array | np.ndarray, "n h w c"]) -> Float[Array, "n c"]:
    """Mean over height and width, in the unit of the input: uint8 0..255, floats [0, 1].

    Floats are counted in steps of 1 / 65535, which is exact for images that had 8 or 16 bits. The
    sum is one of integers: the same to the last bit however a pool is split (patches up to 180 x
    180; 1e-7 beyond), and without a gradient. A patch with a value outside [0, 1], or none at all,
    gives NaN, which `select_top_k` takes last.
    """
    return _means(patches, 255.0 if patches.dtype == jnp.uint8 else 1.0)


def grey_means(patches: Num[Array | np.ndarray, "n h w c"]) -> Float[Array, "n c"]:
    """`channel_means` in grey levels 0..255 whatever the input: what `select_top_k` compares."""
    return _means(patches, 255.0)


def distances(means: Float[Array, "n c"], target: Float[Array, " c"]) -> Float[Array, " n"]:
    """d = sum over channels of |mean - target|, unit of the inputs. CrossFuse, sec. III-B."""
    if means.ndim != 2 or target.shape != means.shape[1:]:
        raise ValueError(
            f"distances: means of shape {means.shape} and target of shape {target.shape}: "
            "give (patches, channels) and (channels,)"
        )
    # Added one by one: a sum in an order of the compiler's choice would break ties by chance.
    d = jnp.abs(means[:, 0] - target[0])
    for channel in range(1, means.shape[1]):
        d = d + jnp.abs(means[:, channel] - target[channel])
    return d


def _smallest(values: Array, k: int) -> tuple[Array, Array]:
    """The k smallest, ascending, and their positions; `top_k` gives equal values in order."""
    negated, positions = lax.top_k(-values, k)
    return -negated, positions


def select_top_k(
    means: Float[Array, "n c"],
    target: Float[Array, " c"],
    k: int,
    axis_name: str | None = None,
) -> TopK:
    """The k rows of `means` closest to `target` (see `distances`), closest first.

    Ties go to the smaller index. A row with a NaN comes last, at distance infinity.
    axis_name: inside `pmap` or `shard_map`, `means` are this device's rows of a pool sharded over
    that axis; indices count the whole pool. Only k candidates leave each device.
    """
    rows = means.shape[0]
    total = rows if axis_name is None else rows * lax.axis_size(axis_name)
    if not 0 < k <= total:
        raise ValueError(
            f"select_top_k: k = {k} of a pool of {total} patches: use a k from 1 to {total}, "
            "or a larger pool"
        )
    d = distances(means, target)
    d = jnp.where(jnp.isnan(d), jnp.inf, d)
    values, indices = _smallest(d, min(k, rows))
    indices = indices.astype(jnp.int32)
    if axis_name is None:
        return TopK(indices, values)
    indices = indices + lax.axis_index(axis_name).astype(jnp.int32) * rows
    # Gathered in device order, so candidates at one distance are still in order of their index.
    values = lax.all_gather(values, axis_name, tiled=True)
    indices = lax.all_gather(indices, axis_name, tiled=True)
    values, order = _smallest(values, k)
    return TopK(indices[order], values)


@partial(jax.jit, static_argnames=("k", "mesh", "axis"))
def select_top_k_sharded(
    means: Float[Array, "n c"],
    target: Float[Array, " c"],
    k: int,
    mesh: Mesh,
    axis: str = "data",
) -> TopK:
    """`select_top_k` for callers under `jit`, with `means` sharded by rows over `axis` of `mesh`.

    Plain `top_k` on a sharded array would gather all of it on every device; this gathers k rows of
    each. The number of rows must be a multiple of the axis.
    """
    if means.shape[0] % mesh.shape[axis]:
        raise ValueError(
            f"select_top_k_sharded: {means.shape[0]} rows over {mesh.shape[axis]} devices: "
            "append rows of infinity, which are never preferred, up to a multiple"
        )
    rows, whole = PartitionSpec(axis), PartitionSpec()
    select = partial(select_top_k, k=k, axis_name=axis)
    return jax.shard_map(
        select, mesh=mesh, in_specs=(rows, whole), out_specs=whole, check_vma=False
    )(means, target)


def histogram(
    patches: Num[Array | np.ndarray, "n h w c"],
    weights: Num[Array | np.ndarray, " n"] | Bool[Array | np.ndarray, " n"] | None = None,
) -> Float[Array, "c 256"]:
    """How often each grey level 0..255 occurs, per channel, over all patches.

    Floats in [0, 1] count at the nearest level, values beyond at its ends. weights: one per patch,
    such as a mask of the patches to count; booleans and integers are summed as integers, floats as
    float32 (exact for whole numbers below 2^24 a bin).
    """
    is_bytes = _is_bytes(patches, "histogram")
    patches = jnp.asarray(patches)
    count, height, width, channels = patches.shape
    if is_bytes:
        levels = patches.astype(jnp.int32)
    else:
        grey = jnp.clip(patches.astype(jnp.float32), 0.0, 1.0) * 255.0
        levels = jnp.round(grey).astype(jnp.int32)
    pixels = count * height * width
    if weights is None:
        amounts = jnp.ones((), jnp.int32)
    else:
        amounts = jnp.asarray(weights)
        if amounts.shape != (count,):
            raise ValueError(
                f"histogram: weights of shape {amounts.shape} for {count} patches: one per patch"
            )
        whole = not jnp.issubdtype(amounts.dtype, jnp.floating)
        amounts = amounts.astype(jnp.int32 if whole else jnp.float32)
        amounts = jnp.broadcast_to(amounts[:, None], (count, height * width)).reshape(pixels)
    levels = levels.reshape(pixels, channels)
    empty = jnp.zeros(LEVELS, amounts.dtype)
    # "drop" checks every index and costs nothing; a value that is not a number has no sure level.
    counts = [empty.at[levels[:, channel]].add(amounts, mode="drop") for channel in range(channels)]
    return jnp.stack(counts).astype(jnp.float32)


def fit_gamma_report(histogram: Float[Array, "c 256"], target_mean: Float[Array, " c"]) -> GammaFit:
    """`fit_gamma`, with the error it leaves and whether the target can be reached."""
    if (
        histogram.ndim != 2
        or histogram.shape[1] != LEVELS
        or target_mean.shape != histogram.shape[:1]
    ):
        raise ValueError(
            f"fit_gamma: histogram of shape {histogram.shape} and target of shape "
            f"{target_mean.shape}: give (channels, {LEVELS}) and (channels,)"
        )
    share = histogram / jnp.maximum(jnp.sum(histogram, axis=1, keepdims=True), 1.0)
    # Levels 0 and 255 stay where they are whatever gamma is, so they bound what can be reached.
    fixed = 255.0 * share[:, -1]
    moving = share[:, 1:-1]
    log_level = jnp.log(jnp.arange(1, LEVELS - 1, dtype=jnp.float32) / 255.0)

    def mean_at(log_power: Array) -> Array:
        level = jnp.exp(log_level[None, :] * jnp.exp(log_power)[:, None])
        return fixed + 255.0 * jnp.sum(moving * level, axis=1)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        too_bright = mean_at(middle) > target_mean
        return jnp.where(too_bright, middle, low), jnp.where(too_bright, high, middle)

    low = jnp.full(target_mean.shape, _LOG_POWER_MIN, jnp.float32)
    high = jnp.full(target_mean.shape, _LOG_POWER_MAX, jnp.float32)
    low, high = lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    log_power = 0.5 * (low + high)
    brightest = fixed + 255.0 * jnp.sum(moving, axis=1)
    inside = (target_mean > fixed + _REACHED) & (target_mean < brightest - _REACHED)
    log_power = jnp.where(inside, log_power, 0.0)
    error = jnp.abs(mean_at(log_power) - target_mean)
    return GammaFit(jnp.exp(-log_power), error, error < _REACHED)


def fit_gamma(
    histogram: Float[Array, "c 256"], target_mean: Float[Array, " c"]
) -> Float[Array, " c"]:
    """Per-channel gamma that moves the mean of `255 * (x / 255) ** (1 / gamma)` to `target_mean`.

    histogram: counts of grey levels 0..255 per channel. target_mean: grey levels, in (0, 255).
    The mean is monotone in gamma, so the root is unique: bisection of log gamma, 32 steps, |error|
    < 1e-3 grey level. Levels 0 and 255 do not move: a channel whose target is out of reach, or
    whose mean cannot move at all, gets gamma 1. CrossFuse, equation for E_o, sec. III-B.
    """
    return fit_gamma_report(histogram, target_mean).gamma


def apply_gamma(
    patches: Num[Array | np.ndarray, "*b h w c"], gamma: Float[Array, " c"]
) -> Float[Array, "*b h w c"]:
    """x ** (1 / gamma) per channel, on the scale of the input; 0 and the brightest value stay.

    Floats in [0, 1] give floats in [0, 1]. uint8 gives float32 grey levels, not rounded. Gradients
    are finite everywhere (0 at 0). Where gamma is 1, values pass through bit for bit.
    """
    scale = 255.0 if _is_bytes(patches, "apply_gamma") else 1.0
    x = jnp.asarray(patches, jnp.float32) / scale
    if gamma.shape != x.shape[-1:]:
        raise ValueError(
            f"apply_gamma: gamma of shape {gamma.shape} for patches of shape {x.shape}: "
            "give one per channel"
        )
    gamma = gamma.reshape((1,) * (x.ndim - 1) + gamma.shape)
    positive = x > 0
    curved = jnp.power(jnp.where(positive, x, 1.0), 1.0 / gamma)
    curved = jnp.where(gamma == 1.0, x, jnp.where(positive, curved, 0.0))
    return curved * scale


def _share(rows: Array, indices: Array, axis_name: str) -> Array:
    """This device's part of the rows at global `indices`, of a pool sharded over the axis."""
    local = indices - lax.axis_index(axis_name).astype(jnp.int32) * rows.shape[0]
    mine = (local >= 0) & (local < rows.shape[0])
    picked = rows[jnp.clip(local, 0, rows.shape[0] - 1)]
    mask = mine.reshape((-1,) + (1,) * (rows.ndim - 1))
    picked = jnp.where(mask, picked, jnp.zeros((), rows.dtype))
    # Exactly one device adds something to each row, so the sum is a move.
    return lax.psum_scatter(picked, axis_name, scatter_dimension=0, tiled=True)


def align_top_k(
    external_rgb: Num[Array | np.ndarray, "n h w c"],
    target_mean_grey: Float[Array | np.ndarray, " c"],
    k: int,
    companions: tuple[Array | np.ndarray, ...] = (),
    axis_name: str | None = None,
) -> Aligned:
    """Keeps the k external patches closest to the target's channel means and corrects their gamma.

    external_rgb: floats in [0, 1], or uint8. target_mean_grey: grey levels 0..255, not [0, 1].
    companions: arrays with one row per patch, such as the infrared patches; they follow untouched.
    axis_name: inside `pmap` or `shard_map`, the pool is sharded over that axis. Selection and gamma
    are global; of the k kept rows, closest first, device d of D holds d * k / D to (d + 1) * k / D.
    The published method fits one gamma for all kept patches; so does this.
    """
    rows = [jnp.asarray(x) for x in (external_rgb, *companions)]
    for x in rows[1:]:
        if x.shape[:1] != rows[0].shape[:1]:
            raise ValueError(
                f"align_top_k: companion of shape {x.shape} for {rows[0].shape[0]} patches: "
                "give one row per patch"
            )
    target = jnp.asarray(target_mean_grey, jnp.float32)
    is_bytes = _is_bytes(rows[0], "align_top_k")
    chosen = select_top_k(grey_means(rows[0]), target, k, axis_name)
    if axis_name is None:
        kept = [x[chosen.indices] for x in rows]
        counts = histogram(kept[0])
    else:
        devices = lax.axis_size(axis_name)
        if k % devices:
            raise ValueError(
                f"align_top_k: k = {k} over {devices} devices: use a multiple of {devices}"
            )
        kept = [_share(x, chosen.indices, axis_name) for x in rows]
        counts = lax.psum(histogram(kept[0]), axis_name)
    fit = fit_gamma_report(counts, target)
    patches = kept[0].astype(jnp.float32) / 255.0 if is_bytes else kept[0].astype(jnp.float32)
    patches = apply_gamma(patches, fit.gamma)
    return Aligned(
        chosen.indices,
        chosen.distances,
        fit.gamma,
        patches,
        tuple(kept[1:]),
        fit.error,
        fit.reached,
    )
