"""Fusing frame after frame: the device works on one while the host prepares the next.

Every frame is fused as a picture is, by fixed levels: nothing is stretched by what a frame holds,
so nothing flickers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from jaxfuse.config import counted
from jaxfuse.infer.levels import Levels, program
from jaxfuse.infer.predict import Fuser, ImageError, Way, chosen
from jaxfuse.shapes import Array

Label = TypeVar("Label")


def start(
    fuser: Fuser,
    visible: np.ndarray,
    infrared: np.ndarray,
    method: Way = "auto",
    visible_levels: Levels | None = None,
    infrared_levels: Levels | None = None,
) -> Array | np.ndarray:
    """Begins to fuse a frame; `np.asarray` of the result waits for it.

    visible: (h, w) or (h, w, 3); infrared: (h, w); each uint8, uint16 or floats in [0, 1].
    visible_levels, infrared_levels: their black and white, by default the ends of their dtype;
    levels beyond are clipped, and where both are equal the picture is black. Gives the fused frame
    like visible, in its levels.
    """
    visible_levels = visible_levels or _full(visible)
    infrared_levels = infrared_levels or _full(infrared)
    if infrared_levels[1] <= infrared_levels[0]:
        infrared, infrared_levels = np.zeros_like(infrared), (0.0, 1.0)
    if chosen(fuser.model, infrared.size, method) != "whole":
        return _in_parts(fuser, visible, infrared, method, visible_levels, infrared_levels)
    return program(fuser.model)(
        fuser.params, visible, infrared, np.float32(visible_levels), np.float32(infrared_levels)
    )


def _full(stored: np.ndarray) -> Levels:
    whole = np.issubdtype(stored.dtype, np.integer)
    return 0.0, float(np.iinfo(stored.dtype).max) if whole else 1.0


def _in_parts(
    fuser: Fuser,
    visible: np.ndarray,
    infrared: np.ndarray,
    method: Way,
    visible_levels: Levels,
    infrared_levels: Levels,
) -> np.ndarray:
    """`start` for frames that are too large for one program."""

    def unit(stored: np.ndarray, levels: Levels) -> np.ndarray:
        low, high = np.float32(levels)
        return np.clip((stored.astype(np.float32) - low) / (high - low), 0, 1)

    fused = fuser(unit(visible, visible_levels), unit(infrared, infrared_levels), method=method)
    low, high = np.float32(visible_levels)
    stored = fused * (high - low) + low
    if np.issubdtype(visible.dtype, np.integer):
        stored = np.rint(stored)
    return stored.astype(visible.dtype)


def look_ahead(
    started: Iterable[tuple[Label, Any]], ahead: int
) -> Iterator[tuple[Label, np.ndarray | None]]:
    """Waits for results in order, each once `ahead` more were started.

    None is no result: it needs no waiting, keeps its place and does not count.
    """
    waiting: deque[tuple[Label, Any]] = deque()
    given, ended, begun = iter(started), False, 0
    failure: BaseException | None = None
    while waiting or not ended:
        if not ended:
            try:
                waiting.append(next(given))
                begun += waiting[-1][1] is not None
            except StopIteration:
                ended = True
            except Exception as error:
                # What was begun before it is still given.
                failure, ended = error, True
        while waiting and (ended or begun > ahead or waiting[0][1] is None):
            label, result = waiting.popleft()
            begun -= result is not None
            yield label, None if result is None else np.asarray(result)
    if failure is not None:
        raise failure


def fuse_frames(
    visible_frames: Iterable[np.ndarray],
    infrared_frames: Iterable[np.ndarray],
    fuser: Fuser,
    *,
    method: Way = "auto",
    ahead: int = 1,
) -> Iterator[np.ndarray]:
    """Fuses frames as they come, from two cameras say: as `fuse`, one by one, to a level.

    visible_frames: (h, w) or RGB (h, w, 3). infrared_frames: (h, w) or (h, w, 1). Each uint8,
    uint16, or float in [0, 1]; sizes may change from one pair to the next, which compiles again.
    method: as in `fuse`. ahead: frames that are read before a fused one is given: with 1 the device
    computes while the next frame is read; 0 gives each at once, for the least delay.
    The fused frames are like the visible ones in shape and dtype. Raises ImageError for frames that
    cannot be fused, by number, and where one kind of frames ends before the other.
    """
    if ahead < 0:
        raise ImageError(f"ahead = {ahead}: use 0 or more")

    def started() -> Iterator[tuple[np.dtype, Array | np.ndarray]]:
        pairs = zip(visible_frames, infrared_frames, strict=True)
        number = 0
        while True:
            try:
                visible, infrared = next(pairs)
            except StopIteration:
                return
            except ValueError as error:
                if "zip()" not in str(error):
                    raise
                raise ImageError(
                    f"after {counted(number, 'pair')} one kind of frames ends, the other goes on: "
                    "give as many of both"
                ) from None
            number += 1
            visible, infrared = _checked(visible, infrared, number)
            yield visible.dtype, start(fuser, _narrow(visible), _narrow(infrared), method)

    for dtype, fused in look_ahead(started(), ahead):
        yield fused.astype(dtype, copy=False)


def _narrow(image: np.ndarray) -> np.ndarray:
    """Floats as the network computes: JAX would not keep wider ones."""
    return image.astype(np.float32) if image.dtype.itemsize > 4 else image


def _checked(
    visible: np.ndarray, infrared: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    # Copies: a camera's driver may fill the same memory again while the device still reads it.
    visible, infrared = np.array(visible), np.array(infrared)
    if infrared.ndim == 3 and infrared.shape[2] == 1:
        infrared = infrared[:, :, 0]
    for image, name, shaped in (
        (visible, "visible", visible.ndim == 2 or (visible.ndim == 3 and visible.shape[2] == 3)),
        (infrared, "infrared", infrared.ndim == 2),
    ):
        if not shaped or 0 in image.shape:
            raise ImageError(
                f"{name} frame {number} has shape {image.shape}: give (height, width), or RGB "
                "(height, width, 3) for visible"
            )
        if np.issubdtype(image.dtype, np.floating):
            low, high = float(image.min()), float(image.max())
            # Written so that NaN fails too.
            if not (low >= -1e-6 and high <= 1 + 1e-6):
                raise ImageError(
                    f"{name} frame {number} spans {low:g} to {high:g}: floats must lie in [0, 1]"
                )
        elif image.dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"{name} frame {number} has dtype {image.dtype}: give uint8, uint16, or float in "
                "[0, 1]"
            )
    if visible.shape[:2] != infrared.shape:
        raise ImageError(
            f"frame {number}: visible is {visible.shape[0]} x {visible.shape[1]} and infrared "
            f"{infrared.shape[0]} x {infrared.shape[1]} pixels (height x width): register the "
            "pair, both must cover the same pixels"
        )
    return visible, infrared
