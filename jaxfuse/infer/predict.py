"""Fusing arrays of any size with a trained network: load once, call often."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np

from jaxfuse import weights as weight_files
from jaxfuse.config import UserError
from jaxfuse.data.images import pseudo_colour
from jaxfuse.infer.levels import Stretch, program
from jaxfuse.infer.sharded import fuse_sharded
from jaxfuse.infer.strips import fuse_strips
from jaxfuse.infer.tiles import compiled, fuse_tiles
from jaxfuse.models import MODELS, Model, create
from jaxfuse.ops import color
from jaxfuse.shapes import Array, Params

Way = Literal["auto", "whole", "strips", "devices", "tiles"]

DEFAULT_WEIGHTS = "lite"
"""The packaged weights used where none are named."""

WHOLE_PIXELS = {"cpu": 128 * 128}
OTHER_WHOLE_PIXELS = 1 << 19
"""Up to this many pixels, by backend, one program over the whole image is best: it takes about 8 KB
a pixel. On a CPU windows take about the same time and less memory, except by kernels in C++, which
need 2 KB a pixel (bench/results, "fuse")."""

RECOLOUR_PIXELS = 1 << 20
"""Colours are put back in strips of at most this many pixels: each takes about 100 bytes."""


class ImageError(UserError, ValueError):
    """Images that cannot be fused; the message says what was found and the remedy."""


@dataclasses.dataclass(frozen=True, repr=False)
class Fuser:
    """A trained network, ready to call: `fuser(visible, infrared)`."""

    name: str
    params: Params
    metadata: dict[str, str]
    model: Model

    def __call__(
        self,
        visible: np.ndarray,
        infrared: np.ndarray,
        *,
        method: Way = "auto",
        stretch: Stretch = "none",
    ) -> np.ndarray:
        """See `fuse`."""
        return fuse(visible, infrared, self, method=method, stretch=stretch)

    def __repr__(self) -> str:
        # Not the arrays, which fill screens.
        count = sum(x.size for x in jax.tree.leaves(self.params))
        of = [
            f"{key} {self.metadata[key]}" for key in ("experiment", "step") if key in self.metadata
        ]
        return f"Fuser({', '.join([self.name, f'{count:,} parameters', *of])})"


def load(
    path_or_name: str | Path | None = None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Fuser:
    """A trained network from a weights file, a run folder, or the name of packaged weights.

    None takes the package's default. A file or folder comes before packaged weights of that name.
    Raises WeightsError, which says what there is.
    """
    path = _weights_file(path_or_name)
    read = weight_files.load_weights(path)
    if read.name not in MODELS:
        raise weight_files.WeightsError(
            f"{path}: holds {read.name}, a segmentation network: give weights of a fusion network"
        )
    params = jax.tree.map(jax.numpy.asarray, read.params)
    return Fuser(read.name, params, read.metadata, _model(read.name, compute_dtype))


@functools.cache
def _model(name: str, compute_dtype: str) -> Model:
    # What is compiled belongs to a model: weights of one network share it.
    return create(name, compute_dtype)


def _weights_file(path_or_name: str | Path | None) -> Path:
    # The default is the package's own, whatever a file in the current folder is called.
    if path_or_name in (None, ""):
        return weight_files.find_packaged(DEFAULT_WEIGHTS)
    return weight_files.find(path_or_name)


@functools.lru_cache(maxsize=4)
def _load_cached(path: Path, written: int) -> Fuser:
    return load(path)


def _fuser(weights: Fuser | str | Path | None) -> Fuser:
    if isinstance(weights, Fuser):
        return weights
    path = _weights_file(weights).resolve()
    # A file that training has replaced meanwhile is read again.
    return _load_cached(path, path.stat().st_mtime_ns)


def fuse(
    visible: np.ndarray,
    infrared: np.ndarray,
    weights: Fuser | str | Path | None = None,
    *,
    method: Way = "auto",
    stretch: Stretch = "none",
) -> np.ndarray:
    """Fuses a visible and an infrared image of the same scene.

    visible: (h, w), (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4, alpha dropped). infrared: (h, w),
    (h, w, 1), or three equal channels, with or without alpha. Each uint8, uint16, or float in
    [0, 1]; any size from 1x1.
    weights: what `load` takes, or a `Fuser`.
    method: "whole" runs one program over the image; "strips" gives the same in bounded memory;
    "devices" gives the same with the image's rows split over all devices; "auto" picks one of the
    first two; "tiles" is approximate, independent overlapping tiles.
    stretch: "minmax" spreads the fused luma over [0, 1] as the published test script does.
    Returns height and width of the input, RGB where visible is colour and (h, w) else, in visible's
    dtype (rounded). Colours (CbCr, BT.601) are the visible image's. Raises ImageError for sizes
    that differ, NaN, levels outside [0, 1].
    """
    for value, known, what in (
        (method, get_args(Way), "method"),
        (stretch, get_args(Stretch), "stretch"),
    ):
        if value not in known:
            raise ImageError(f"{what} = {value!r}: choose one of {', '.join(known)}")
    fuser = _fuser(weights)
    for image, name in ((visible, "visible"), (infrared, "infrared")):
        if isinstance(image, str | Path):
            raise ImageError(
                f"{name} = {str(image)!r}: give an array; files are read by the command "
                "`jaxfuse fuse --ir FILE --vi FILE --out FILE`"
            )
    visible, infrared = np.asarray(visible), np.asarray(infrared)
    rgb = _checked(visible, "visible", (1, 3, 4))[..., :3]
    heat = _one_channel(_checked(infrared, "infrared", (1, 3, 4))[..., :3])
    if rgb.shape[:2] != heat.shape[:2]:
        raise ImageError(
            f"visible is {rgb.shape[0]} x {rgb.shape[1]} and infrared {heat.shape[0]} x "
            f"{heat.shape[1]} pixels (height x width): register the pair, both must cover the same "
            "pixels"
        )
    if chosen(fuser.model, heat.size, method) == "whole" and heat.size <= RECOLOUR_PIXELS:
        levels = (np.float32((0.0, _white(x))) for x in (rgb, heat))
        run = program(fuser.model, stretch)
        result = np.asarray(run(fuser.params, rgb, heat[:, :, 0], *levels)).astype(visible.dtype)
    else:
        result = _in_parts(fuser, _unit(rgb), _unit(heat), method, stretch, visible.dtype)
    return result if result.shape[2] == 3 else result[:, :, 0]


def _in_parts(
    fuser: Fuser,
    rgb: np.ndarray,
    heat: np.ndarray,
    method: Way,
    stretch: Stretch,
    dtype: np.dtype,
) -> np.ndarray:
    """The fused picture, (h, w, c) in `dtype`, where one program would take too much memory."""
    fused = _fuse_luma(fuser, np.asarray(color.luma(rgb)), heat, method)[:, :, None]
    if stretch == "minmax":
        low, high = float(fused.min()), float(fused.max())
        fused = (fused - low) / (high - low) if high > low else fused
    result = np.empty(rgb.shape, dtype)
    rows = max(1, RECOLOUR_PIXELS // rgb.shape[1])
    for first in range(0, rgb.shape[0], rows):
        part = slice(first, first + rows)
        result[part] = _as_dtype(color.replace_luma(rgb[part], fused[part]), dtype)
    return result


def _as_dtype(image: Array, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return np.rint(np.asarray(image) * np.float32(np.iinfo(dtype).max)).astype(dtype)
    return np.asarray(image).astype(dtype)


def chosen(model: Model, pixels: int, method: Way) -> Way:
    """The way that an image of so many pixels goes: what "auto" stands for here."""
    if method != "auto":
        return method
    limit = WHOLE_PIXELS.get(jax.default_backend(), OTHER_WHOLE_PIXELS)
    limit = OTHER_WHOLE_PIXELS if model.native() else limit
    return "whole" if pixels <= limit or not model.passes else "strips"


def _fuse_luma(fuser: Fuser, luma: np.ndarray, infrared: np.ndarray, method: Way) -> np.ndarray:
    """Fused luma (h, w) of (h, w, 1) float32 images in [0, 1]."""
    method = chosen(fuser.model, luma.size, method)
    if method in ("strips", "devices") and not fuser.model.passes:
        raise ImageError(
            f'method = "{method}": {fuser.name} has no exact windows: use "whole", or "tiles"'
        )
    if method == "tiles":
        return fuse_tiles(fuser.model, fuser.params, luma[:, :, 0], infrared[:, :, 0])
    if method == "strips":
        return fuse_strips(fuser.model, fuser.params, luma[:, :, 0], infrared[:, :, 0])
    if method == "devices":
        return fuse_sharded(fuser.model, fuser.params, luma[:, :, 0], infrared[:, :, 0])
    return np.asarray(compiled(fuser.model)(fuser.params, luma[None], infrared[None]))[0, :, :, 0]


def _checked(image: np.ndarray, name: str, channels: tuple[int, ...]) -> np.ndarray:
    """(h, w, c) as stored: uint8, uint16, or float32 in [0, 1]."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in channels or 0 in image.shape:
        raise ImageError(
            f"{name} has shape {image.shape}: give (height, width) or (height, width, channels) "
            f"with channels in {channels}"
        )
    if image.dtype == np.uint8 or image.dtype == np.uint16:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"{name} has dtype {image.dtype}: give uint8, uint16, or float in [0, 1]")
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise ImageError(f"{name} holds {bad} values that are NaN or infinite: replace them first")
    low, high = float(image.min()), float(image.max())
    if low < -1e-6 or high > 1.0 + 1e-6:
        raise ImageError(
            f"{name} spans {low:g} to {high:g}: floats must lie in [0, 1]; divide by the largest "
            "level"
        )
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def _white(stored: np.ndarray) -> float:
    """The level that stands for 1."""
    return float(np.iinfo(stored.dtype).max) if stored.dtype.kind == "u" else 1.0


def _unit(stored: np.ndarray) -> np.ndarray:
    """float32 in [0, 1]."""
    return stored.astype(np.float32) / np.float32(_white(stored))


def _one_channel(infrared: np.ndarray) -> np.ndarray:
    """(h, w, 1), as stored; the mean of three channels in float32."""
    if infrared.shape[2] == 1:
        return infrared
    infrared = _unit(infrared)
    worst = pseudo_colour(infrared)
    if worst is not None:
        raise ImageError(
            f"infrared has three channels that differ by up to {worst:.0f} grey levels: a "
            "pseudo-colour picture; give the camera's gray export"
        )
    return infrared.mean(axis=2, keepdims=True, dtype=np.float32)
